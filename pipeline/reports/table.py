"""What a run of denoise-batch shows on a terminal: one table and a few lines of totals."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..quality import Basis, Quality
from ..streaming.result import Result, Summary


@dataclass(frozen=True)
class Totals:
    """Means are over the images that have the value; None where none has.

    Attributes:
        done: images that were denoised.
        failed: that were not.
        skipped: that an earlier run had done.
        sigma_in_255: mean estimated σ of the inputs, in units of 1/255.
        sigma_out_255: of the outputs.
        scored: images with a finite PSNR in and out, of which are:
        psnr_in: mean dB of the inputs.
        psnr_out: of the outputs.
        basis: what the PSNRs come from; "estimate" as soon as one does.
    """

    done: int
    failed: int
    skipped: int
    sigma_in_255: float | None
    sigma_out_255: float | None
    scored: int
    psnr_in: float | None
    psnr_out: float | None
    basis: Basis | None

    @property
    def gain(self) -> float | None:
        """Mean dB that the outputs are better."""
        if self.psnr_in is None or self.psnr_out is None:
            return None
        return self.psnr_out - self.psnr_in


def total(results: Sequence[Result]) -> Totals:
    """Add a run's images up."""
    qualities = [result.quality for result in results if result.quality is not None]
    scored = [quality for quality in qualities if is_scored(quality)]
    count = {"done": 0, "failed": 0, "skipped": 0}
    for result in results:
        count[result.status] += 1
    basis: Basis | None = "reference" if scored else None
    if any(quality.basis == "estimate" for quality in scored):
        basis = "estimate"
    return Totals(
        **count,
        sigma_in_255=_mean(qualities, lambda quality: quality.sigma_in_255),
        sigma_out_255=_mean(qualities, lambda quality: quality.sigma_out_255),
        scored=len(scored),
        psnr_in=_mean(scored, lambda quality: quality.psnr_in),
        psnr_out=_mean(scored, lambda quality: quality.psnr_out),
        basis=basis,
    )


def is_scored(quality: Quality | None) -> bool:
    """Whether there is a finite PSNR before and after."""
    return (
        quality is not None
        and quality.psnr_in is not None
        and quality.psnr_out is not None
        and math.isfinite(quality.psnr_in)
        and math.isfinite(quality.psnr_out)
    )


def ranked(results: Sequence[Result]) -> list[Result]:
    """The denoised images, worst first: by PSNR of the output, without one by σ of the input.

    Images without any quality come last, in their order.
    """

    def key(result: Result) -> tuple[int, float]:
        quality = result.quality
        if quality is None:
            return 2, 0.0
        if is_scored(quality) and quality.psnr_out is not None:
            return 0, quality.psnr_out
        return 1, -(quality.sigma_in_255 or 0.0)

    return sorted((result for result in results if result.status == "done"), key=key)


def _mean(qualities: Sequence[Quality], value: Callable[[Quality], float | None]) -> float | None:
    values = [number for quality in qualities if (number := value(quality)) is not None]
    return sum(values) / len(values) if values else None


MOST_ROWS = 40
WORST_AND_BEST = 10  # images of a longer run, each
MOST_FAILED_ROWS = 10
MOST_NOTES = 20
LEAST_NAME_CELLS = 20
_GAP = 2  # cells between columns, one of which the box draws


@dataclass(frozen=True)
class _Column:
    """A column beside the name's.

    Attributes:
        heading: one or two lines.
        rank: columns of the highest rank go first when the terminal is too narrow.
        cells: of the widest value.
        text: markup of an image's value.
        total: markup in the last row.
    """

    heading: str
    rank: int
    cells: int
    text: Callable[[Result], str]
    total: str = ""

    @property
    def width(self) -> int:
        return max(self.cells, *(cell_len(line) for line in self.heading.split("\n")))


def print_summary(summary: Summary, console: Console) -> None:
    """Every image of a short run, worst and best of a long one; notes, failures and totals."""
    together = total(summary.results)
    table = _table(summary.results, together, console.width)
    if table is not None:
        console.print(table)
    _print_notes(summary, together, console)
    for result in summary.results:
        if result.status == "failed":
            line = f"[red]failed[/red] {escape(result.reason)}"
            console.print(line, highlight=False, soft_wrap=True)
    for line in (stage_shares(summary), totals(summary)):
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def totals(summary: Summary) -> str:
    """Counts, megapixels, seconds and speed in one line."""
    together = total(summary.results)
    by_status = {"done": together.done, "skipped": together.skipped, "failed": together.failed}
    counts = [f"{n} {status}" for status, n in by_status.items() if n or status == "done"]
    if summary.left:
        counts.append(f"{summary.left} left for the next run")
    megapixels, seconds = summary.megapixels, summary.seconds
    speed = ""
    if megapixels and seconds:
        speed = f", {megapixels / seconds:.1f} MP/s, {together.done / seconds:.1f} images/s"
    interrupted = "interrupted: " if summary.is_interrupted else ""
    hint = " (--overwrite denoises again)" if together.skipped else ""
    return (
        f"{interrupted}{', '.join(counts)}{hint}; {megapixels:.1f} MP in {seconds:.1f} s{speed} "
        f"on {summary.device}"
    )


def stage_shares(summary: Summary) -> str:
    """Each stage's share of the work; stages of different images overlap."""
    seconds = summary.stage_seconds
    whole = sum(seconds.values())
    if not whole:
        return ""
    return " · ".join(f"{stage} {value / whole:.0%}" for stage, value in seconds.items())


def _print_notes(summary: Summary, together: Totals, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    notes = [note for result in summary.results for note in result.notes]
    for note in notes[:MOST_NOTES]:
        say(f"note: {note}")
    if len(notes) > MOST_NOTES:
        say(f"{len(notes) - MOST_NOTES} more notes are not shown")
    qualities = [result.quality for result in summary.results if result.quality]
    reasons = Counter(quality.reason for quality in qualities if quality.reason)
    kinds = Counter(reason.partition(" (")[0] for reason in reasons.elements())
    for reason, count in kinds.most_common():
        say(f"no PSNR for {count} image{'s' if count > 1 else ''}: {reason}")
    if together.basis == "estimate":
        say("est.: estimated without a reference (SURE), for white Gaussian noise")


def _table(results: Sequence[Result], together: Totals, width: int) -> Table | None:
    """None if no image was denoised and none failed."""
    if together.done + together.failed == 0:
        return None
    columns = _fitting(_columns(results, together), width)
    room = width - sum(column.width + _GAP for column in columns)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    table.add_column("image", no_wrap=True, max_width=max(room, 8))
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)

    def add(result: Result) -> None:
        name = escape(shortened(result.job.name, max(room, 8)))
        table.add_row(name, *(column.text(result) for column in columns))

    for heading, group in _groups(results):
        if heading:
            table.add_row(f"[dim italic]{heading}[/]")
        for result in group:
            add(result)
        table.add_section()
    count = together.scored or together.done
    if count:
        cells = [column.total and f"[bold]{column.total}[/bold]" for column in columns]
        table.add_row(f"[bold]mean of {count}[/bold]", *cells)
    return table


def _groups(results: Sequence[Result]) -> list[tuple[str, Sequence[Result]]]:
    """What the table shows, under headings: skipped images only count in the totals."""
    seen = [result for result in results if result.status != "skipped"]
    if len(seen) <= MOST_ROWS:
        return [("", seen)]
    order = ranked(seen)
    failed = [result for result in seen if result.status == "failed"]
    groups: list[tuple[str, Sequence[Result]]] = []
    if len(order) > 2 * WORST_AND_BEST:
        groups.append((f"worst {WORST_AND_BEST} of {len(order)}", order[:WORST_AND_BEST]))
        groups.append((f"best {WORST_AND_BEST}", order[-WORST_AND_BEST:]))
    elif order:
        groups.append((f"{len(order)} done", order))
    if failed:
        shown = failed[:MOST_FAILED_ROWS]
        part = f"{len(shown)} of " if len(shown) < len(failed) else ""
        groups.append((f"{part}{len(failed)} failed", shown))
    return groups


def _columns(results: Sequence[Result], together: Totals) -> list[_Column]:
    columns = [_Column("size", 6, _widest(results, _size), _size)]
    if together.sigma_in_255 is not None:
        out = together.sigma_out_255
        columns += [
            _Column("σ in", 3, 5, _of(_sigma_in, "{:.1f}"), f"{together.sigma_in_255:.1f}"),
            _Column("σ out", 3, 5, _of(_sigma_out, "{:.1f}"), f"{out:.1f}"),
        ]
    if together.scored and together.gain is not None:
        est = "\nest." if together.basis == "estimate" else ""
        columns += [
            _Column(f"PSNR in{est}", 2, 5, _of(_psnr_in, "{:.2f}"), f"{together.psnr_in:.2f}"),
            _Column(f"PSNR out{est}", 1, 5, _of(_psnr_out, "{:.2f}"), f"{together.psnr_out:.2f}"),
            _Column("gain", 0, 6, _gain, f"{together.gain:+.2f}"),
        ]
    columns.append(_Column("time", 5, 7, _time))
    if any(result.status == "failed" for result in results):
        columns.append(_Column("status", 4, 6, _status))
    return columns


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """The columns that leave the name its room, the least important ones dropped first."""
    kept = list(columns)
    while kept and width - sum(c.width + _GAP for c in kept) < LEAST_NAME_CELLS:
        worst = max(column.rank for column in kept)
        if worst == 0:
            break
        kept = [column for column in kept if column.rank != worst]
    return kept


def shortened(name: str, cells: int) -> str:
    """The end of a path, which says most, behind an ellipsis where it is too long."""
    if cell_len(name) <= cells:
        return name
    kept = name
    while kept and cell_len(kept) > cells - 1:
        kept = kept[1:]
    return "…" + kept


def _sigma_in(quality: Quality) -> float | None:
    return quality.sigma_in_255


def _sigma_out(quality: Quality) -> float | None:
    return quality.sigma_out_255


def _psnr_in(quality: Quality) -> float | None:
    return quality.psnr_in


def _psnr_out(quality: Quality) -> float | None:
    return quality.psnr_out


def _of(value: Callable[[Quality], float | None], form: str) -> Callable[[Result], str]:
    def text(result: Result) -> str:
        number = None if result.quality is None else value(result.quality)
        if number is None:
            return "[dim]–[/dim]"
        return form.format(number) if math.isfinite(number) else "∞"

    return text


def _gain(result: Result) -> str:
    quality = result.quality
    if quality is None or quality.gain is None or not is_scored(quality):
        return "[dim]–[/dim]"
    colour = "green" if quality.gain > 0 else "red"
    return f"[{colour}]{quality.gain:+.2f}[/{colour}]"


def _size(result: Result) -> str:
    return f"{result.size[0]}×{result.size[1]}" if result.size else ""


def _time(result: Result) -> str:
    seconds = sum(result.seconds.values())
    return f"{seconds:.2f} s" if seconds else ""


def _status(result: Result) -> str:
    return "[red]failed[/red]" if result.status == "failed" else result.status


def _widest(results: Sequence[Result], text: Callable[[Result], str]) -> int:
    return max((cell_len(text(result)) for result in results), default=0)
