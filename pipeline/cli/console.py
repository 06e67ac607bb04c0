"""What a run shows while it goes and when it has ended: bars, plain lines, or JSON lines."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ..files.scan import Job
from ..options import DenoiseOptions
from ..quality import Quality
from ..reports.files import write_report
from ..reports.report import number, report_of
from ..reports.table import print_summary, totals
from ..streaming.result import Result
from ..streaming.session import Events, Start, Summary


class Screen(Protocol):
    """How a run is shown."""

    @property
    def events(self) -> Events:
        """Whom the run tells how it goes."""

    def plan(self, start: Start) -> None:
        """Show what a run would do (`--dry-run`)."""

    def finish(self, summary: Summary) -> None:
        """Show what a run came to."""


@contextmanager
def screen(log: str, *, is_quiet: bool) -> Iterator[Screen]:
    """The screen that `--log` and `--quiet` ask for.

    Args:
        log: auto (bars on a terminal, else plain), plain or json.
        is_quiet: show failures only.
    """
    if log == "json":
        yield JsonLines(sys.stdout, is_quiet)
    elif is_quiet:
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
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Bars(progress)


@dataclass
class Bars:
    """A bar for the images, and one for the tiles of a large image."""

    progress: Progress

    def __post_init__(self) -> None:
        self._images = self.progress.add_task("images", total=None)
        self._tiles = self.progress.add_task("tiles", total=None, visible=False)

    @property
    def events(self) -> Events:
        """Whom the run tells how it goes."""
        return Events(self._on_start, self._on_result, self._on_tile)

    def plan(self, start: Start) -> None:
        """Show what a run would do."""
        self.progress.stop()
        _print_plan(start, Console())

    def finish(self, summary: Summary) -> None:
        """Show what a run came to."""
        self.progress.stop()
        print_summary(summary, Console())

    def _on_start(self, start: Start) -> None:
        self.progress.start()  # again, where folders are watched
        self.progress.reset(self._images, total=len(start.jobs) + len(start.skipped))

    def _on_result(self, result: Result) -> None:
        self.progress.advance(self._images)

    def _on_tile(self, job: Job, done: int, tiles: int) -> None:
        self.progress.update(
            self._tiles, description=job.name, completed=done, total=tiles, visible=done < tiles
        )


@dataclass
class Lines:
    """A line for every image that is done or failed, then the table."""

    stream: TextIO

    def __post_init__(self) -> None:
        self._done, self._total = 0, 0

    @property
    def events(self) -> Events:
        """Whom the run tells how it goes."""
        return Events(self._on_start, self._on_result)

    def plan(self, start: Start) -> None:
        """Show what a run would do."""
        _print_plan(start, Console())

    def finish(self, summary: Summary) -> None:
        """Show what a run came to."""
        print_summary(summary, Console())

    def _on_start(self, start: Start) -> None:
        self._done, self._total = 0, len(start.jobs)
        count = _counted(start)
        skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
        self._total += count["failed"]
        self._say(f"{len(start.jobs)} to denoise{skipped}, {start.precision} on {start.device}")

    def _on_result(self, result: Result) -> None:
        if result.status == "skipped":
            return
        self._done += 1
        self._total = max(self._total, self._done)  # more than planned, after failures
        count = f"[{self._done}/{self._total}]"
        if result.status == "failed":
            self._say(f"{count} failed {result.reason}")
        else:
            size = "{}x{}".format(*result.size) if result.size else ""
            seconds = sum(result.seconds.values())
            self._say(f"{count} done {result.job.name} {size} {seconds:.2f} s")

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


@dataclass
class Quiet:
    """Failures, and nothing else."""

    stream: TextIO

    @property
    def events(self) -> Events:
        """Whom the run tells how it goes."""
        return Events(on_result=self._on_result)

    def plan(self, start: Start) -> None:
        """Silence."""

    def finish(self, summary: Summary) -> None:
        """Show what a run came to."""
        if summary.exit_code != 0:
            print(totals(summary), file=self.stream, flush=True)

    def _on_result(self, result: Result) -> None:
        if result.status == "failed":
            print(f"failed {result.reason}", file=self.stream, flush=True)


@dataclass
class JsonLines:
    """One JSON object a line: `start`, `image` for every image, `end`; or `plan` of a dry run."""

    stream: TextIO
    is_quiet: bool

    @property
    def events(self) -> Events:
        """Whom the run tells how it goes."""
        return Events(self._on_start, self._on_result)

    def plan(self, start: Start) -> None:
        """Show what a run would do."""
        for job in start.jobs:
            self._write({"event": "plan", "status": "todo", **_of_job(job)})
        for result in start.skipped:
            row = {"event": "plan", "status": result.status, **_of_job(result.job)}
            self._write({**row, "reason": result.reason})

    def finish(self, summary: Summary) -> None:
        """Show what a run came to."""
        if self.is_quiet and summary.exit_code == 0:
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
                "stage_seconds": _rounded(summary.stage_seconds),
                "signal": summary.signal,
                "exit_code": summary.exit_code,
            }
        )

    def _on_start(self, start: Start) -> None:
        if not self.is_quiet:
            self._write(
                {
                    "event": "start",
                    "todo": len(start.jobs),
                    **_counted(start),
                    "device": start.device,
                    "precision": start.precision,
                    "weights": start.weights,
                }
            )

    def _on_result(self, result: Result) -> None:
        if self.is_quiet and result.status != "failed":
            return
        self._write(
            {
                "event": "image",
                "status": result.status,
                **_of_job(result.job),
                "reason": result.reason,
                "size": result.size,
                "pages": result.pages,
                "notes": result.notes,
                "seconds": _rounded(dict(result.seconds)),
                **_of_quality(result.quality),
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self.stream, flush=True)


def _of_job(job: Job) -> dict[str, str]:
    return {"name": job.name, "source": job.source_name, "output": job.output_name}


def _of_quality(quality: Quality | None) -> dict[str, Any]:
    if quality is None:
        return {}
    return {
        "sigma_in_255": number(quality.sigma_in_255, 2),
        "sigma_out_255": number(quality.sigma_out_255, 2),
        "psnr_in": number(quality.psnr_in, 3),
        "psnr_out": number(quality.psnr_out, 3),
        "psnr_basis": quality.basis,
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 4) for stage, value in seconds.items()}


def _counted(start: Start) -> dict[str, int]:
    """How many jobs are not begun, by what becomes of them."""
    failed = sum(result.status == "failed" for result in start.skipped)
    return {"skipped": len(start.skipped) - failed, "failed": failed}


def _print_plan(start: Start, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for job in start.jobs:
        say(f"would denoise {job.source_name} → {job.output_name}")
    for result in start.skipped:
        job = result.job
        if result.status == "failed":
            say(f"would fail {job.source_name} ({result.reason})")
        else:
            say(f"would skip {job.source_name} ({result.reason}: {job.output_name})")
    count = _counted(start)
    bad = f", {count['failed']} to fail" if count["failed"] else ""
    say(
        f"{len(start.jobs)} to denoise, {count['skipped']} to skip{bad}, {start.precision} on "
        f"{start.device}; nothing was written"
    )


def write_reports(options: DenoiseOptions, summary: Summary, *, is_quiet: bool) -> None:
    """Write every report that can be written, with a progress bar on a terminal.

    Raises:
        OptionError: one could not be written; errors of more than one are printed before.
    """
    report, console = report_of(options, summary), Console(stderr=True)
    columns = (TextColumn("report"), BarColumn(), MofNCompleteColumn())
    is_shown = console.is_terminal and not is_quiet
    failures: list[Exception] = []
    with Progress(*columns, console=console, transient=True, disable=not is_shown) as progress:
        for path in options.reports:
            task = progress.add_task("report", total=None)

            def on_picture(done: int, of: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=of)

            try:
                write_report(path, report, on_picture)
            except Exception as error:  # whatever it is, the others' turn comes first
                failures.append(error)
                continue
            if not is_quiet:
                _say(console, f"report: {path}")
    for failure in failures[:-1]:
        _say(console, f"error: {failure}")
    if failures:
        raise failures[-1]


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
