"""The HTML report: one self-contained file that needs no network.

`assets/report.html` is its Jinja2 template, with `report.css` and `report.js`; this module prepares
the values that the template shows. Images are read again from the input and output files when the
report is written: all of them in full for a short run, the worst and the best of a long one, and
thumbnails of the rest while the file stays below `MOST_BYTES`. So are those that an earlier run
denoised (`finished.py`).
"""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from denoise_batch.kernels import ImageError

from ..files.kinds import passed_over_line
from ..files.scan import real_path
from ..quality import Quality
from ..streaming.references import find_reference
from ..streaming.result import Result, is_scored, rank
from ..text import printable
from .finished import is_finished, with_finished
from .pictures import VIEW_PX, Thumbnails, View, load, thumbnails, view
from .report import Report

MOST_BYTES = 23_000_000
MOST_IN_FULL = 24
IN_FULL_PIXELS = 24_000_000  # of all images in full together, if they have more than `VIEW_PX`
MOST_NOTES = 200
MOST_STEMS = 260  # as many as a chart of this width can tell apart
TALLEST_VIEW_PX = 640
_THUMBNAIL_PX = ((100, 320), (500, 200), (math.inf, 112))  # (images up to, long side)
_PAGE_BYTES = 50_000  # style, script and the like
_ROW_BYTES = 1200  # a row of the table without its thumbnails
_THREADS = 4
_CHART_WIDTH, _CHART_HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 12, 24  # margins of a chart


@dataclass
class Image:
    """One image of the page.

    Attributes:
        number: its position among the results, which tells images of the same name apart.
        result: what became of it.
        thumbnails: before and after; None if there was no room.
        view: the image in full; None for most images of a long run.
        problem: why it cannot be shown.
    """

    number: int
    result: Result
    thumbnails: Thumbnails | None = None
    view: View | None = None
    problem: str = ""

    @property
    def is_hidden(self) -> bool:
        """Whether the page had no room for it."""
        return self.result.status != "failed" and self.thumbnails is None and not self.problem

    @property
    def view_width_px(self) -> int:
        """Width in CSS pixels: small images twice as large, tall ones no taller than a screen."""
        assert self.view is not None
        width, height = self.view.size
        zoom = 2 if max(width, height) <= VIEW_PX // 2 else 1
        return max(240, min(zoom * width, round(width * TALLEST_VIEW_PX / height)))


@dataclass(frozen=True)
class Chart:
    """Every image's value before and after, ordered by the value after; lengths in SVG units.

    Attributes:
        heading: the caption's first words.
        basis: where the values come from.
        title: the name that screen readers speak.
        ticks: (y, label) of each grid line.
        stems: (x, y before, y after, label) of each image.
        radius: of the dots.
        count: how many images are shown, in words.
    """

    heading: str
    basis: str
    title: str
    ticks: list[tuple[float, str]]
    stems: list[tuple[float, float, float, str]]
    radius: float
    count: str
    width: int = _CHART_WIDTH
    height: int = _CHART_HEIGHT
    left: int = _LEFT
    right: int = _CHART_WIDTH - _RIGHT


def render_html(
    report: Report,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
    *,
    most_in_full: int = MOST_IN_FULL,
    most_bytes: int = MOST_BYTES,
) -> str:
    """Return the page.

    Args:
        report: the run.
        on_picture: called after each image that was read again, with how many are done and how
            many there are.
        most_in_full: show the worst half and the best half of so many images in full.
        most_bytes: include thumbnails of the other images while the page stays below this size.
    """
    report = with_finished(report, on_picture)
    images = [Image(number, result) for number, result in enumerate(report.results)]
    order = sorted(
        (image for image in images if image.result.status == "done" or is_finished(image.result)),
        key=lambda image: rank(image.result),
    )
    in_full = order
    if len(order) > most_in_full:
        in_full = order[: most_in_full // 2] + order[-(most_in_full // 2) :]
    _read_pictures(report, images, in_full, most_bytes, on_picture)

    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            no_quality=Quality(None, None),
            has_sigma=report.totals.sigma_in_255 is not None,
            has_level=report.totals.level_255 is not None,
            has_psnr=report.totals.scored > 0,
            has_time=report.totals.done > 0,
            finished=sum(map(is_finished, report.results)),
            title=_title(report),
            subtitle=_subtitle(report),
            counts=_counts(report),
            stage_shares=_stage_shares(report),
            charts=charts(report.results),
            groups=_groups(in_full, len(order)),
            images=images,
            hidden=sum(image.is_hidden for image in images),
            notes=[note for result in report.results for note in result.notes],
            most_notes=MOST_NOTES,
            passed_over=passed_over_line(report.summary.passed_over),
        )
    )


def page_environment() -> Environment:
    """Return the templates of `assets`, with their filters, style and script."""
    loader = PackageLoader(__package__, "assets")
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    environment.filters["number"] = _number
    environment.filters["duration"] = _duration
    environment.tests["finished"] = is_finished
    environment.tests["finite"] = lambda value: value is not None and math.isfinite(value)
    environment.globals["style"] = Markup(loader.get_source(environment, "report.css")[0])
    environment.globals["script"] = Markup(loader.get_source(environment, "report.js")[0])
    return environment


def breakable(name: str) -> Markup:
    """Return a name as HTML that may break after the marks inside it."""
    return Markup(re.sub(r"([/\\_.\-]+)(?=.)", r"\1<wbr>", str(escape(printable(name)))))


def charts(results: Sequence[Result]) -> list[Chart]:
    """Charts of PSNR and noise, if at least two images have them."""
    psnr, sigma, is_estimate = [], [], False
    for result in results:
        name, quality = result.job.name, result.quality
        if quality is None:
            continue
        if quality.sigma_in_255 is not None and quality.sigma_out_255 is not None:
            sigma.append((name, quality.sigma_in_255, quality.sigma_out_255))
        if is_scored(quality) and quality.psnr_in is not None and quality.psnr_out is not None:
            psnr.append((name, quality.psnr_in, quality.psnr_out))
            is_estimate |= quality.basis == "estimate"
    found = []
    if len(psnr) > 1:
        basis = "estimated (SURE)" if is_estimate else "measured against references"
        title = "PSNR of every image before and after"
        found.append(_chart("PSNR (dB)", basis, title, psnr, "dB", 2))
    if len(sigma) > 1:
        title = "Noise of every image before and after"
        found.append(_chart("Noise σ̂ (0–255 scale)", "estimated", title, sigma, "(0–255 scale)", 1))
    return found


def _chart(
    heading: str,
    basis: str,
    title: str,
    values: Sequence[tuple[str, float, float]],
    unit: str,
    digits: int,
) -> Chart:
    """Lay out (name, before, after) of two or more images.

    More than `MOST_STEMS` images are thinned out evenly; the first and the last stay.
    """
    ordered = sorted(values, key=lambda value: value[2])
    count = f"{len(ordered)} images"
    if len(ordered) > MOST_STEMS:
        step = (len(ordered) - 1) / (MOST_STEMS - 1)
        ordered = [ordered[round(index * step)] for index in range(MOST_STEMS)]
        count = f"{len(ordered)} of {count}"
    bounds = [bound for _, before, after in ordered for bound in (before, after)]
    ticks = nice_ticks(min(bounds), max(bounds))
    low, high = min(ticks[0], *bounds), max(ticks[-1], *bounds)

    def y(value: float) -> float:
        share = (value - low) / (high - low)
        return _CHART_HEIGHT - _BOTTOM - share * (_CHART_HEIGHT - _TOP - _BOTTOM)

    pitch = (_CHART_WIDTH - _LEFT - _RIGHT) / len(ordered)
    stems = [
        (
            _LEFT + (index + 0.5) * pitch,
            y(before),
            y(after),
            f"{name}: {before:.{digits}f} → {after:.{digits}f} {unit}",
        )
        for index, (name, before, after) in enumerate(ordered)
    ]
    labels = [(y(tick), f"{tick:g}") for tick in ticks]
    return Chart(heading, basis, title, labels, stems, max(1.1, min(4.5, pitch * 0.32)), count)


def nice_ticks(low: float, high: float) -> list[float]:
    """Two to eight round numbers that span [low, high]."""
    span = max(high - low, 1e-6 * max(abs(high), 1), 1e-9)
    raw = span / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return [round(index * step, 12) for index in range(first, last + 1)]


def _read_pictures(
    report: Report,
    images: Sequence[Image],
    in_full: Sequence[Image],
    most_bytes: int,
    on_picture: Callable[[int, int], None],
) -> None:
    """Read views, then thumbnails while there is room."""
    shown = [image for image in images if image.result.status != "failed"]
    side_px = next(side for most, side in _THUMBNAIL_PX if len(shown) <= most)
    full = {image.number for image in in_full}
    most_pixels = IN_FULL_PIXELS // max(1, len(in_full))
    order = [*in_full, *(image for image in shown if image.number not in full)]
    room = most_bytes - _PAGE_BYTES - _ROW_BYTES * len(images)
    done = 0
    with ThreadPoolExecutor(_THREADS) as threads:
        # A few ahead, not all: an image of 100 megapixels is 300 MB.
        for start in range(0, len(order), 2 * _THREADS):
            group = order[start : start + 2 * _THREADS]
            sizes = threads.map(
                lambda image: _read(report, image, side_px, image.number in full, most_pixels),
                group,
            )
            for size in sizes:
                room -= size
                done += 1
                on_picture(done, len(order))
            if room < 0:
                break


def _read(report: Report, image: Image, side_px: int, is_full: bool, most_pixels: int) -> int:
    """Fill in an image's thumbnails and, if it is shown in full, its view; return their bytes."""
    job = image.result.job
    try:
        noisy, scale = load(job.source)
        denoised, _ = load(job.output, scale)
        small = thumbnails(noisy, denoised, side_px)
        if is_full:
            clean = None
            if report.options.reference is not None:
                path = find_reference(report.options.reference, job.name)
                clean = None if path is None else load(path, scale)[0]
            image.view = view(noisy, denoised, clean, most_pixels)
        image.thumbnails = small
    except ImageError as error:
        image.problem = str(error)
    except Exception as error:  # an unreadable image must not cost the report
        image.problem = f"{type(error).__name__}: {error}"
    uris = [image.thumbnails.noisy, image.thumbnails.denoised] if image.thumbnails else []
    if image.view:
        seen = image.view
        uris += [seen.noisy, seen.denoised, seen.residual, *(uri for _, uri in seen.crops)]
    return sum(map(len, uris))


def _groups(in_full: Sequence[Image], done: int) -> list[tuple[str, str, Sequence[Image]]]:
    """(heading, note, images) of the images in full, worst first."""
    if not in_full:
        return []
    if done > len(in_full):
        half = len(in_full) // 2
        return [
            (f"Worst {half}", f"of {done}", in_full[:half]),
            (f"Best {half}", f"of {done}", in_full[half:]),
        ]
    note = "worst first" if done > 1 else ""
    return [("Before and after", note, in_full)]


def _stage_shares(report: Report) -> dict[str, float]:
    seconds = report.summary.stage_seconds if report.totals.done else {}
    total = sum(seconds.values())
    return {stage: value / total for stage, value in seconds.items()} if total else {}


def _counts(report: Report) -> str:
    totals = report.totals
    finished = sum(map(is_finished, report.results))
    counts = {
        "by earlier runs": finished,
        "failed": totals.failed,
        "skipped": totals.skipped - finished,
        "left": report.summary.left,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _title(report: Report) -> str:
    inputs = report.options.inputs
    name = real_path(Path(inputs[0])).name or inputs[0]
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    return f"Denoised: {name}{more}"


def _subtitle(report: Report) -> str:
    weights = report.weights["name"] or Path(report.weights["file"] or "").name
    parts = [
        report.created.replace("T", " ").replace("Z", " UTC"),
        f"weights {weights}",
        f"{report.device['name']} ({report.device['description']})",
    ]
    return " · ".join(parts + ["interrupted"] * report.summary.is_interrupted)


def _number(value: float, spec: str) -> str:
    """Format a number; an infinite one as ∞."""
    return format(value, spec) if math.isfinite(value) else "∞"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
