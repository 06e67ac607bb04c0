"""The display of a run: bars, plain lines or JSON lines, then a table."""

import json
import logging
import math
import sys
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape, render
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from denoise_batch.kernels import DenoiseBatchError, NoImagesError
from denoise_batch.kernels.dispatch import COMPILED_IN_WORDS, GEMM_IN_WORDS

from ..files.kinds import count_suffixes, passed_over_line
from ..options import DenoiseOptions
from ..progress import Progress
from ..quality import Quality
from ..reports import write_report
from ..reports.report import make_report, result_to_json
from ..streaming.result import (
    Estimate,
    Plan,
    Result,
    Summary,
    Totals,
    add_up,
    is_scored,
    ranked,
)
from ..streaming.stream import Engine
from ..streaming.verify import Check
from ..text import printable, valid
from .command import signal_of
from .streams import LogStream

MOST_ROWS = 40
WORST_AND_BEST = 10  # rows of each, for a longer run
MOST_FAILED_ROWS = 10
MOST_NOTES = 20
LEAST_NAME_CELLS = 20
_GAP = 2  # cells between columns, one of which the box draws
_NOTHING = "[dim]–[/dim]"


@dataclass(frozen=True)
class _Column:
    """A column beside the image's name; rich would cut its values where it should drop it.

    Attributes:
        heading: one or two lines.
        rank: the column of the highest rank is dropped first from a narrow terminal.
        cell: a result's value, as markup.
        total: the last row's value, as text.
    """

    heading: str
    rank: int
    cell: Callable[[Result], str]
    total: str = ""

    def width(self, results: Sequence[Result]) -> int:
        """Cells of the widest value or line of the heading."""
        values = (render(self.cell(result)).plain for result in results)
        return max(map(cell_len, (*values, *self.heading.split("\n"), self.total)))


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table, notes, failures, each stage's share of the time, and the totals.

    The table has every image of a short run, and the worst, the best and the failed ones of a long
    run.
    """
    totals = add_up(summary.results)
    table = _table(summary.results, totals, console.width)
    if table is not None:
        console.print(table)
    _print_notes(summary, totals, console)
    for result in summary.results:
        if result.status == "failed":
            line = f"[red]failed[/red] {escape(printable(result.reason))}"
            console.print(line, highlight=False, soft_wrap=True)
    for line in (
        passed_over_line(summary.passed_over),
        _stage_line(summary),
        _kernels_line(summary),
        totals_line(summary),
    ):
        if line:
            _print_line(console, line)


def _kernels_line(summary: Summary) -> str:
    """What computed, where that explains the time: no kernels, or kernels that were compiled."""
    is_worth_it = any(words in summary.kernels for words in (GEMM_IN_WORDS, COMPILED_IN_WORDS))
    return f"computed by {summary.kernels}" if is_worth_it else ""


def totals_line(summary: Summary) -> str:
    """Return counts, megapixels, seconds and speed in one line."""
    totals = add_up(summary.results)
    by_status = {"done": totals.done, "skipped": totals.skipped, "failed": totals.failed}
    counts = [f"{n} {status}" for status, n in by_status.items() if n or status == "done"]
    if summary.left:
        counts.append(f"{summary.left} left for the next run")
    megapixels, seconds = summary.megapixels, summary.seconds
    speed = ""
    if megapixels and seconds:
        speed = f", {megapixels / seconds:.1f} MP/s, {totals.done / seconds:.1f} images/s"
    interrupted = "interrupted: " if summary.is_interrupted else ""
    hint = " (--overwrite denoises them again)" if totals.skipped else ""
    return (
        f"{interrupted}{', '.join(counts)}{hint}; {megapixels:.1f} MP in {seconds:.1f} s{speed} "
        f"on {summary.device}"
    )


def shortened(name: str, cells: int) -> str:
    """Return a path's end, which says most, behind an ellipsis if the path is too long."""
    if cell_len(name) <= cells:
        return name
    kept = name
    while kept and cell_len(kept) > cells - 1:
        kept = kept[1:]
    return "…" + kept


def estimate_line(estimate: Estimate) -> str:
    """Return what a run will take, as far as it can be told, and how that is known."""
    parts = [f"{estimate.images} image{'' if estimate.images == 1 else 's'}"]
    if estimate.megapixels is not None:
        parts.append(f"{estimate.megapixels:.1f} MP")
    if estimate.input_bytes is not None:
        parts.append(f"{_bytes(estimate.input_bytes)} to read")
    if estimate.output_bytes is not None:
        parts.append(f"about {_bytes(estimate.output_bytes)} to write")
    if estimate.seconds is not None:
        how = {"last run": "at the last run's speed", "network": "for the network alone"}
        parts.append(f"about {_duration(estimate.seconds)} {how[estimate.basis]}")
    few = estimate.megapixels is not None and estimate.looked_at < estimate.images
    sample = f" (by {estimate.looked_at} of them)" if few else ""
    return f"estimate{sample}: {', '.join(parts)}"


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in asdict(estimate).items()
    }


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{seconds < 10 * size:d}f} {unit}"
    return f"{math.ceil(seconds)} s"


def _stage_line(summary: Summary) -> str:
    """Each stage's share of the time; stages of different images overlap."""
    seconds = summary.stage_seconds
    whole = sum(seconds.values())
    if not whole:
        return ""
    return " · ".join(f"{stage} {value / whole:.0%}" for stage, value in seconds.items())


def _print_notes(summary: Summary, totals: Totals, console: Console) -> None:
    notes = [note for result in summary.results for note in result.notes]
    for note in notes[:MOST_NOTES]:
        _print_line(console, f"note: {note}")
    if len(notes) > MOST_NOTES:
        _print_line(console, f"{len(notes) - MOST_NOTES} more notes not shown")
    qualities = [result.quality for result in summary.results if result.quality]
    # "too little noise (σ̂ 2.0)" and "too little noise (σ̂ 3.0)" are one reason.
    reasons = Counter(quality.reason.partition(" (")[0] for quality in qualities if quality.reason)
    for reason, count in reasons.most_common():
        images = "image" if count == 1 else "images"
        _print_line(console, f"no PSNR for {count} {images}: {reason}")
    if totals.basis == "estimate":
        line = "est.: estimated without a reference (SURE), assuming white Gaussian noise"
        _print_line(console, line)


def _table(results: Sequence[Result], totals: Totals, width: int) -> Table | None:
    """Lay out the table; None if no image was denoised and none failed."""
    if totals.done + totals.failed == 0:
        return None
    groups = _groups(results)
    shown = [result for _, group in groups for result in group]
    columns, room = _fit(_columns(totals), shown, width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    table.add_column("image", no_wrap=True, max_width=room)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for heading, group in groups:
        if heading:
            table.add_row(f"[dim italic]{heading}[/]")
        for result in group:
            name = escape(shortened(printable(result.job.name), room))
            table.add_row(name, *(column.cell(result) for column in columns))
        table.add_section()
    count = totals.scored or totals.done
    if count:
        cells = [column.total and f"[bold]{column.total}[/bold]" for column in columns]
        table.add_row(f"[bold]mean of {count}[/bold]", *cells)
    return table


def _groups(results: Sequence[Result]) -> list[tuple[str, Sequence[Result]]]:
    """The table's rows under their headings; skipped images only count in the totals."""
    seen = [result for result in results if result.status != "skipped"]
    if len(seen) <= MOST_ROWS:
        return [("", seen)]
    done = ranked(seen)
    failed = [result for result in seen if result.status == "failed"]
    groups: list[tuple[str, Sequence[Result]]] = []
    if len(done) > 2 * WORST_AND_BEST:
        groups.append((f"worst {WORST_AND_BEST} of {len(done)}", done[:WORST_AND_BEST]))
        groups.append((f"best {WORST_AND_BEST}", done[-WORST_AND_BEST:]))
    elif done:
        groups.append((f"{len(done)} done", done))
    if failed:
        shown = failed[:MOST_FAILED_ROWS]
        part = f"{len(shown)} of " if len(shown) < len(failed) else ""
        groups.append((f"{part}{len(failed)} failed", shown))
    return groups


def _columns(totals: Totals) -> list[_Column]:
    def measured(
        heading: str, rank: int, value: Callable[[Quality], float | None], spec: str, mean: float
    ) -> _Column:
        def cell(result: Result) -> str:
            number = value(result.quality) if result.quality else None
            if number is None:
                return _NOTHING
            return format(number, spec) if math.isfinite(number) else "∞"

        return _Column(heading, rank, cell, format(mean, spec))

    columns = [_Column("size", 6, _size)]
    if totals.sigma_in_255 is not None and totals.sigma_out_255 is not None:
        columns += [
            measured("σ in", 3, lambda q: q.sigma_in_255, ".1f", totals.sigma_in_255),
            measured("σ out", 3, lambda q: q.sigma_out_255, ".1f", totals.sigma_out_255),
        ]
    if totals.level_255 is not None:
        columns.append(_Column("level", 3, _level, f"{totals.level_255:.1f}"))
    if totals.psnr_in is not None and totals.psnr_out is not None:
        est = "\nest." if totals.basis == "estimate" else ""
        columns += [
            measured(f"PSNR in{est}", 2, lambda q: q.psnr_in, ".2f", totals.psnr_in),
            measured(f"PSNR out{est}", 1, lambda q: q.psnr_out, ".2f", totals.psnr_out),
            _Column("gain", 0, _gain, f"{totals.gain:+.2f}"),
        ]
    columns.append(_Column("time", 5, _time))
    if totals.failed:
        columns.append(_Column("status", 4, _status))
    return columns


def _fit(
    columns: list[_Column], results: Sequence[Result], width: int
) -> tuple[list[_Column], int]:
    """Drop the least important columns until the name has room; return the rest and that room."""
    widths = {column.heading: column.width(results) + _GAP for column in columns}
    while True:
        room = width - sum(widths[column.heading] for column in columns)
        lowest = max((column.rank for column in columns), default=0)
        if room >= LEAST_NAME_CELLS or lowest == 0:
            return columns, max(room, 8)
        columns = [column for column in columns if column.rank != lowest]


def _gain(result: Result) -> str:
    quality = result.quality
    if quality is None or quality.gain is None or not is_scored(quality):
        return _NOTHING
    colour = "green" if quality.gain > 0 else "red"
    return f"[{colour}]{quality.gain:+.2f}[/{colour}]"


def _size(result: Result) -> str:
    return f"{result.size[0]}×{result.size[1]}" if result.size else ""


def _level(result: Result) -> str:
    return _NOTHING if result.level_255 is None else f"{result.level_255:.1f}"


def _time(result: Result) -> str:
    seconds = sum(result.seconds.values())
    return f"{seconds:.2f} s" if seconds else ""


def _status(result: Result) -> str:
    return "[red]failed[/red]" if result.status == "failed" else result.status


class Display(Progress[Plan, Result]):
    """Shows a run as it goes, and what it came to."""

    def show_engine(self, engine: Engine) -> None:
        """Show what is going to compute, before the images are looked for."""

    @abstractmethod
    def show_plan(self, plan: Plan) -> None:
        """Show what a run would do (`--dry-run`)."""

    @abstractmethod
    def show_summary(self, summary: Summary) -> None:
        """Show what a run came to."""

    def show_preview(self, files: Sequence[Path]) -> None:
        """Say where the sheet of `--preview` is."""
        for file in files:
            _print_line(Console(emoji=False), f"preview: {file}")

    def warn(self, reason: str) -> None:
        """Tell of something that does not end the run."""
        print(f"error: {printable(reason)}", file=sys.stderr, flush=True)


@contextmanager
def display(log: str, *, quiet: bool) -> Iterator[Display]:
    """The display that `--log` and `--quiet` ask for.

    Args:
        log: auto (bars on a terminal, else plain), plain or json.
        quiet: show failures only, no warnings.
    """
    logger = logging.getLogger("denoise_batch")
    level = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        with _display(log, quiet=quiet) as shown:
            yield shown
    finally:
        logger.setLevel(level)


@contextmanager
def _display(log: str, *, quiet: bool) -> Iterator[Display]:
    console = Console(stderr=True, emoji=False, highlight=False)
    if log == "json":
        lines = JsonLines(sys.stdout, quiet)
        if isinstance(sys.stderr, LogStream):
            sys.stderr.tell = lines.warn
        try:
            yield lines
        except KeyboardInterrupt as interrupt:
            number = signal_of(interrupt)
            lines.show_error("interrupted", 128 + number, number)
            raise
        except NoImagesError as error:
            if not quiet:
                lines.show_error(str(error), error.exit_code)
            raise
        except DenoiseBatchError as error:
            lines.show_error(str(error), error.exit_code)
            raise
        except Exception as error:
            if not isinstance(error, typer.Exit):  # a bug, whose traceback follows
                lines.show_error(f"{type(error).__name__}: {error}", 1)
            raise
    elif quiet:
        yield Quiet(sys.stderr)
    elif log == "plain" or not console.is_terminal or console.is_dumb_terminal:
        yield Lines(sys.stderr)
    else:
        with Bars(console) as bars:
            yield bars


# Shares of the time of a large image: read before the network, and gone through it.
_READ, _COMPUTED = 0.1, 0.9
_BAR_CELLS = 40


class Bars(Display):
    """What computes, the image at hand, and a bar for all of them; gone at the end.

    Args:
        console: a terminal.
        clock: seconds that only increase.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._head = "starting"
        self._reset(0)
        self.live = Live(
            console=console,
            get_renderable=self._rendered,
            transient=True,
            refresh_per_second=8,
        )

    def _reset(self, total: int) -> None:
        self._total = total
        self._over = 0  # images that are done or failed
        self._pixels = 0  # of those that are done
        self._inside: dict[str, tuple[int, int]] = {}  # pixels done and in all, by the image's name
        self._last: tuple[str, str] = "", "reading"
        self._started = self._clock()

    def __enter__(self) -> "Bars":
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def show_engine(self, engine: Engine) -> None:
        """Show weights, precision, device and kernels."""
        self._head = (
            f"{engine.weights_file.stem}, {engine.precision} on {engine.device}: {engine.kernels}"
        )

    def on_start(self, start: Plan) -> None:
        """Begin, also after the summary of an earlier round of `--watch`."""
        self._head = (
            f"{Path(start.weights).stem}, {start.precision} on {start.device}: {start.kernels}"
        )
        self._reset(len(start.jobs))
        self.live.start()
        if len(start.jobs) > 1:
            _print_line(self.live.console, estimate_line(start.estimate()))

    def on_step(self, name: str, done: int, total: int) -> None:
        """Show how far the network is with an image."""
        self._inside.pop(name, None)
        self._inside[name] = done, total  # the last one is the one at hand

    def on_result(self, result: Result) -> None:
        """Count an image."""
        self._inside.pop(result.job.name, None)
        self._last = result.job.name, result.status
        if result.status == "skipped":
            return
        self._over += 1
        self._total = max(self._total, self._over)  # more than planned, after failures
        if result.status == "done":
            self._pixels += result.pixels

    def show_preview(self, files: Sequence[Path]) -> None:
        """Print a line for each file."""
        self.live.stop()
        super().show_preview(files)

    def show_plan(self, plan: Plan) -> None:
        """Print a line for each image."""
        self.live.stop()
        _print_plan(plan, Console(emoji=False))

    def show_summary(self, summary: Summary) -> None:
        """Print the table."""
        self.live.stop()
        print_summary(summary, Console(emoji=False))

    def _rendered(self) -> Group:
        """The lines; called from the thread that refreshes them."""
        width = self._console.width
        head = Text(printable(self._head), "dim", no_wrap=True, overflow="ellipsis")
        if not self._total:
            return Group(head)
        inside = dict(self._inside)
        shares = (_READ + (_COMPUTED - _READ) * done / total for done, total in inside.values())
        share = min(1.0, (self._over + sum(shares)) / self._total)
        elapsed = max(1e-6, self._clock() - self._started)
        left = _clock_time(elapsed * (1 - share) / share) if share and elapsed >= 1 else "-:--:--"
        megapixels = (self._pixels + sum(done for done, _ in inside.values())) / 1e6
        facts = (
            f"{self._over}/{self._total}  {share:4.0%}  {megapixels / elapsed:.1f} MP/s  ETA {left}"
        )
        line = Table.grid(padding=(0, 2, 0, 0))
        cells = max(4, min(_BAR_CELLS, width - cell_len(facts) - 2))
        bar = ProgressBar(total=1.0, completed=share, width=cells)
        line.add_row(bar, Text(facts, no_wrap=True, overflow="ellipsis"))
        return Group(head, self._at_hand(inside, width), line)

    def _at_hand(self, inside: dict[str, tuple[int, int]], width: int) -> Text:
        """The image that the network is at, or was at last."""
        name, what = self._last
        if inside:
            name, (done, total) = list(inside.items())[-1]
            what = "writing"
            if done < total:
                what = f"denoising, {done / 1e6:.1f} of {total / 1e6:.1f} MP"
        name = shortened(printable(name), max(1, width - len(what) - 2))
        return Text(f"{name}  {what}".lstrip(), no_wrap=True, overflow="ellipsis")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Lines(Display):
    """A line for each image that is done or failed, then the table."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._done, self._total = 0, 0

    def on_start(self, start: Plan) -> None:
        """Print how much there is to do, and where."""
        count = _counts(start)
        self._done, self._total = 0, len(start.jobs) + count["failed"]
        skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
        self._print(f"{len(start.jobs)} to denoise{skipped}, {start.precision} on {start.device}")
        if len(start.jobs) > 1:
            self._print(estimate_line(start.estimate()))

    def on_result(self, result: Result) -> None:
        """Print one line, unless the image was skipped."""
        if result.status == "skipped":
            return
        self._done += 1
        self._total = max(self._total, self._done)  # more than planned, after failures
        count = f"[{self._done}/{self._total}]"
        if result.status == "failed":
            self._print(f"{count} failed {result.reason}")
        else:
            size = "{}x{}".format(*result.size) if result.size else ""
            seconds = sum(result.seconds.values())
            self._print(f"{count} done {result.job.name} {size} {seconds:.2f} s")

    def show_plan(self, plan: Plan) -> None:
        """Print a line for each image."""
        _print_plan(plan, Console(emoji=False))

    def show_summary(self, summary: Summary) -> None:
        """Print the table."""
        print_summary(summary, Console(emoji=False))

    def _print(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)


class Quiet(Display):
    """Failures, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def on_result(self, result: Result) -> None:
        """Print a failure."""
        if result.status == "failed":
            print(f"failed {printable(result.reason)}", file=self.stream, flush=True)

    def show_preview(self, files: Sequence[Path]) -> None:
        """Print nothing."""

    def show_plan(self, plan: Plan) -> None:
        """Print nothing."""

    def show_summary(self, summary: Summary) -> None:
        """Print the totals if anything failed."""
        if summary.exit_code != 0:
            print(totals_line(summary), file=self.stream, flush=True)


class JsonLines(Display):
    """One JSON object per line: `start`, `image`, `end`; of a dry run `plan` and `estimate`.

    `error` is what ends a run early, before or after its first image, and `warning` what does not.
    `passed_over`, of `start` and `end`, counts image files that are not read, by their suffix.
    Each line has its `time`, UTC in ISO 8601.
    """

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self.stream = stream
        self.quiet = quiet
        self._count = {"done": 0, "failed": 0, "skipped": 0}

    def on_start(self, start: Plan) -> None:
        """Write the `start` event."""
        self._count = dict.fromkeys(self._count, 0)
        if not self.quiet:
            self._write(
                {
                    "event": "start",
                    "todo": len(start.jobs),
                    **_counts(start),
                    "device": start.device,
                    "precision": start.precision,
                    "kernels": start.kernels,
                    "weights": start.weights,
                    "passed_over": count_suffixes(start.passed_over),
                    "estimate": _estimate_json(start.estimate()),
                }
            )

    def on_result(self, result: Result) -> None:
        """Write an `image` event; its keys are those of the JSON report."""
        self._count[result.status] += 1
        if not self.quiet or result.status == "failed":
            self._write({"event": "image", **result_to_json(result)})

    def show_preview(self, files: Sequence[Path]) -> None:
        """Write a `preview` event."""
        self._write({"event": "preview", "files": [str(file) for file in files]})

    def show_plan(self, plan: Plan) -> None:
        """Write a `plan` event for each image, `passed_over` if there is cause, and `estimate`."""
        todo = [Result(job, "done") for job in plan.jobs]
        for result in (*todo, *plan.skipped):
            is_todo = result.status == "done"
            self._write(
                {
                    "event": "plan",
                    "status": "todo" if is_todo else result.status,
                    "name": result.job.name,
                    "source": result.job.source_name,
                    "output": result.job.output_name,
                    **({} if is_todo else {"reason": result.reason}),
                }
            )
        if plan.passed_over:
            counts = count_suffixes(plan.passed_over)
            self._write({"event": "passed_over", "passed_over": counts})
        self._write({"event": "estimate", **_estimate_json(plan.estimate())})

    def show_summary(self, summary: Summary) -> None:
        """Write the `end` event."""
        if self.quiet and summary.exit_code == 0:
            return
        count = {"done": 0, "failed": 0, "skipped": 0}
        for result in summary.results:
            count[result.status] += 1
        self._write(
            {
                "event": "end",
                **count,
                "left": summary.left,
                "kernels": summary.kernels,
                "passed_over": count_suffixes(summary.passed_over),
                "seconds": round(summary.seconds, 3),
                "megapixels": round(summary.megapixels, 3),
                "stage_seconds": {k: round(v, 4) for k, v in summary.stage_seconds.items()},
                "signal": summary.signal,
                "exit_code": summary.exit_code,
            }
        )

    def show_check(self, check: Check) -> None:
        """Write a `verify` event."""
        event = {"event": "verify", "status": check.state, "name": check.name, "output": check.path}
        self._write(event | ({"reason": check.reason} if check.reason else {}))

    def show_verified(
        self, counts: dict[str, int], read: int, seconds: float, signal: int | None, exit_code: int
    ) -> None:
        """Write the `end` event of `--verify`."""
        if not self.quiet or exit_code:
            figures = {"megabytes": round(read / 1e6, 3), "seconds": round(seconds, 3)}
            ending = {"signal": signal, "exit_code": exit_code}
            self._write({"event": "end", **counts, **figures, **ending})

    def warn(self, reason: str) -> None:
        """Write a `warning` event too."""
        super().warn(reason)
        self._write({"event": "warning", "reason": reason})

    def show_error(self, reason: str, exit_code: int, signal: int | None = None) -> None:
        """Write an `error` event, unless it is a signal, and the `end` event."""
        if signal is None:
            self._write({"event": "error", "reason": reason, "exit_code": exit_code})
        self._write({"event": "end", **self._count, "signal": signal, "exit_code": exit_code})

    def _write(self, event: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"event": event.pop("event"), "time": time, **event}
        print(json.dumps(valid(event)), file=self.stream, flush=True)


def write_reports(options: DenoiseOptions, summary: Summary, *, quiet: bool) -> None:
    """Write every report that can be written, with a progress bar on a terminal.

    Raises:
        OptionError: one could not be written; the errors of all but the last are printed before.
    """
    report, console = make_report(options, summary), Console(stderr=True, emoji=False)
    columns = (TextColumn("report"), BarColumn(), MofNCompleteColumn())
    is_shown = console.is_terminal and not quiet
    failures: list[Exception] = []
    with RichProgress(*columns, console=console, transient=True, disable=not is_shown) as bars:
        for path in options.reports:
            task = bars.add_task("report", total=None)

            def on_picture(done: int, of: int, task: TaskID = task) -> None:
                bars.update(task, completed=done, total=of)

            try:
                write_report(path, report, on_picture)
            except Exception as error:  # one report that fails must not cost the others
                failures.append(error)
                continue
            if not quiet:
                _print_line(console, f"report: {path}")
    for failure in failures[:-1]:
        _print_line(console, f"error: {failure}")
    if failures:
        raise failures[-1]


def _print_plan(plan: Plan, console: Console) -> None:
    for job in plan.jobs:
        _print_line(console, f"would denoise {job.source_name} → {job.output_name}")
    for result in plan.skipped:
        source, output = result.job.source_name, result.job.output_name
        if result.status == "failed":
            _print_line(console, f"would fail {source} ({result.reason})")
        else:
            _print_line(console, f"would skip {source} ({result.reason}: {output})")
    if line := passed_over_line(plan.passed_over):
        _print_line(console, line)
    if plan.jobs:
        _print_line(console, estimate_line(plan.estimate()))
    count = _counts(plan)
    bad = f", {count['failed']} to fail" if count["failed"] else ""
    _print_line(
        console,
        f"{len(plan.jobs)} to denoise, {count['skipped']} to skip{bad}, {plan.precision} on "
        f"{plan.device}; nothing was written",
    )


def _counts(plan: Plan) -> dict[str, int]:
    """Number of images that are not begun, by what becomes of them."""
    failed = sum(result.status == "failed" for result in plan.skipped)
    return {"skipped": len(plan.skipped) - failed, "failed": failed}


def _print_line(console: Console, line: str) -> None:
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
