"""The HTML report: one self-contained file that needs no network.

Its style and script are `assets/report.css` and `assets/report.js`; all else is written here,
so that the page can be read without its script as well. Pictures are read again from the input and
output files when the report is made: all of them in full for a small run, the worst and the best
of a long one, thumbnails of the rest for as long as the file stays below `MOST_BYTES`.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib import resources
from pathlib import Path

from denoise_batch.kernels import ImageError

from ..files.scan import real_path
from ..streaming.references import find_reference
from ..streaming.result import Result
from .image_sections import Pictures, slider, table, views
from .pictures import load, thumbnails, view
from .report import Report
from .summary_sections import about, cards, charts, notes
from .table import ranked

MOST_BYTES = 23_000_000
MOST_IN_FULL = 24  # of a long run: the worst half and the best half of them
_THUMBNAIL_PX = ((100, 320), (500, 200), (math.inf, 112))  # up to so many images, so large
_THREADS = 4


def html(report: Report, on_picture: Callable[[int, int], None] = lambda done, of: None) -> str:
    """The page as a string.

    Args:
        report: the run.
        on_picture: told of every picture that was read: done, in all.
    """
    # Results, not images, are told apart by position: names need not be unique.
    numbers = {id(result): number for number, result in enumerate(report.results)}
    in_full = _in_full(report.results)
    pictures = _pictures(report, in_full, numbers, on_picture)
    page = resources.files(__package__) / "assets"
    style = (page / "report.css").read_text(encoding="utf-8")
    script = (page / "report.js").read_text(encoding="utf-8")
    title = escape(_title(report))
    sections = "".join(
        (
            cards(report),
            charts(report.results),
            views(report, in_full, numbers, pictures),
            table(report, numbers, pictures),
            notes(report.results),
            about(report),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="generator" content="denoise-batch {escape(report.versions["denoise_batch"])}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#table">Skip to the table</a>
<header><div>
<div><h1>{title}</h1><p>{_subtitle(report)}</p></div>
<button id="theme" type="button" aria-label="Light or dark">◐</button>
</div></header>
<main>
{sections}
</main>
<dialog aria-labelledby="dialog-name"><div><h3 id="dialog-name"></h3>
<button type="button" aria-label="Close">✕</button></div>
{slider("", "", "the image", None)}</dialog>
<footer><p>Made by denoise-batch {escape(report.versions["denoise_batch"])}. This file needs no
network and runs nothing but its own script.</p></footer>
<script>
{script}</script>
</body>
</html>
"""


def _in_full(results: Sequence[Result]) -> list[Result]:
    """All denoised images of a small run, worst first; the worst and the best of a long one."""
    order = ranked(results)
    if len(order) <= MOST_IN_FULL:
        return order
    half = MOST_IN_FULL // 2
    return order[:half] + order[-half:]


def _pictures(
    report: Report,
    in_full: Sequence[Result],
    numbers: dict[int, int],
    on_picture: Callable[[int, int], None],
) -> dict[int, Pictures]:
    """By position, what to show; views first, then thumbnails while there is room for them."""
    shown = [result for result in report.results if result.status != "failed"]
    side_px = next(side for most, side in _THUMBNAIL_PX if len(shown) <= most)
    full = {id(result) for result in in_full}
    order = [*in_full, *(result for result in shown if id(result) not in full)]
    pictures: dict[int, Pictures] = {}
    room = MOST_BYTES - 400 * len(report.results)  # a row of the table
    with ThreadPoolExecutor(_THREADS) as threads:
        # A few ahead, not all: a picture of 100 megapixels is 300 MB.
        for start in range(0, len(order), 2 * _THREADS):
            group = order[start : start + 2 * _THREADS]
            made = threads.map(
                lambda result: _picture(report, result, side_px, id(result) in full), group
            )
            for result, picture in zip(group, made, strict=True):
                room -= _bytes(picture)
                pictures[numbers[id(result)]] = picture
                on_picture(len(pictures), len(order))
            if room < 0:
                break
    return pictures


def _picture(report: Report, result: Result, side_px: int, is_full: bool) -> Pictures:
    try:
        noisy, scale = load(result.job.source)
        denoised, _ = load(result.job.output, scale)
        small = thumbnails(noisy, denoised, side_px)
        if not is_full:
            return Pictures(small)
        clean = None
        if report.options.reference is not None:
            path = find_reference(report.options.reference, result.job.name)
            clean = None if path is None else load(path, scale)[0]
        return Pictures(small, view(noisy, denoised, clean))
    except ImageError as error:
        return Pictures(problem=str(error))
    except Exception as error:  # whatever it is, it costs one picture, not the report
        return Pictures(problem=f"{type(error).__name__}: {error}")


def _bytes(picture: Pictures) -> int:
    small, large = picture.thumbnails, picture.view
    parts = [small.noisy, small.denoised] if small else []
    if large:
        parts += [large.noisy, large.denoised, large.residual, *(uri for _, uri in large.crops)]
    return sum(map(len, parts))


def _title(report: Report) -> str:
    inputs = report.options.inputs
    name = real_path(Path(inputs[0])).name or inputs[0]
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    return f"Denoised: {name}{more}"


def _subtitle(report: Report) -> str:
    weights = report.weights["name"] or Path(report.weights["file"] or "").name
    parts = (
        report.created.replace("T", " ").replace("Z", " UTC"),
        f"weights {weights}",
        f"{report.device['name']} ({report.device['description']})",
    )
    interrupted = " · interrupted" if report.summary.is_interrupted else ""
    return " · ".join(map(escape, parts)) + interrupted
