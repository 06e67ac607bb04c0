"""What `denoise-batch` shows during and after a run: bars, plain lines, or JSON lines."""

import json
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from ..options import DenoiseOptions
from ..progress import Progress
from ..reports import write_report
from ..reports.report import make_report, result_to_json
from ..reports.table import print_summary, totals_line
from ..streaming.result import Plan, Result, Summary


class Display(Progress[Plan, Result]):
    """Shows a run as it goes, and what it came to."""

    @abstractmethod
    def show_plan(self, plan: Plan) -> None:
        """Show what a run would do (`--dry-run`)."""

    @abstractmethod
    def show_summary(self, summary: Summary) -> None:
        """Show what a run came to."""


@contextmanager
def display(log: str, *, quiet: bool) -> Iterator[Display]:
    """The display that `--log` and `--quiet` ask for.

    Args:
        log: auto (bars on a terminal, else plain), plain or json.
        quiet: show failures only.
    """
    if log == "json":
        yield JsonLines(sys.stdout, quiet)
    elif quiet:
        yield Quiet(sys.stderr)
    elif log == "plain" or not Console(stderr=True).is_terminal:
        yield Lines(sys.stderr)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield Bars(bars)


class Bars(Display):
    """A bar for the images, and one for the tiles of a large image."""

    def __init__(self, bars: RichProgress) -> None:
        self.bars = bars
        self._images = bars.add_task("images", total=None)
        self._tiles = bars.add_task("tiles", total=None, visible=False)

    def on_start(self, start: Plan) -> None:
        """Show the bars, also after the summary of an earlier round of `--watch`."""
        self.bars.start()
        self.bars.reset(self._images, total=len(start.jobs) + len(start.skipped))

    def on_result(self, result: Result) -> None:
        """Advance the bar of the images."""
        self.bars.advance(self._images)

    def on_step(self, name: str, done: int, total: int) -> None:
        """Show the tiles of a large image."""
        self.bars.update(
            self._tiles, description=name, completed=done, total=total, visible=done < total
        )

    def show_plan(self, plan: Plan) -> None:
        """Print a line for each image."""
        self.bars.stop()
        _print_plan(plan, Console())

    def show_summary(self, summary: Summary) -> None:
        """Print the table."""
        self.bars.stop()
        print_summary(summary, Console())


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
        _print_plan(plan, Console())

    def show_summary(self, summary: Summary) -> None:
        """Print the table."""
        print_summary(summary, Console())

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Quiet(Display):
    """Failures, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def on_result(self, result: Result) -> None:
        """Print a failure."""
        if result.status == "failed":
            print(f"failed {result.reason}", file=self.stream, flush=True)

    def show_plan(self, plan: Plan) -> None:
        """Print nothing."""

    def show_summary(self, summary: Summary) -> None:
        """Print the totals if anything failed."""
        if summary.exit_code != 0:
            print(totals_line(summary), file=self.stream, flush=True)


class JsonLines(Display):
    """One JSON object per line: `start`, `image` for each image, `end`; `plan` of a dry run."""

    def __init__(self, stream: TextIO, quiet: bool) -> None:
        self.stream = stream
        self.quiet = quiet

    def on_start(self, start: Plan) -> None:
        """Write the `start` event."""
        if not self.quiet:
            self._write(
                {
                    "event": "start",
                    "todo": len(start.jobs),
                    **_counts(start),
                    "device": start.device,
                    "precision": start.precision,
                    "weights": start.weights,
                }
            )

    def on_result(self, result: Result) -> None:
        """Write an `image` event; its keys are those of the JSON report."""
        if not self.quiet or result.status == "failed":
            self._write({"event": "image", **result_to_json(result)})

    def show_plan(self, plan: Plan) -> None:
        """Write a `plan` event for each image."""
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
                "seconds": round(summary.seconds, 3),
                "megapixels": round(summary.megapixels, 3),
                "stage_seconds": {k: round(v, 4) for k, v in summary.stage_seconds.items()},
                "signal": summary.signal,
                "exit_code": summary.exit_code,
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self.stream, flush=True)


def write_reports(options: DenoiseOptions, summary: Summary, *, quiet: bool) -> None:
    """Write every report that can be written, with a progress bar on a terminal.

    Raises:
        OptionError: one could not be written; the errors of all but the last are printed before.
    """
    report, console = make_report(options, summary), Console(stderr=True)
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
    console.print(line, markup=False, highlight=False, soft_wrap=True)
