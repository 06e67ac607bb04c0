"""The files of `--report`, after the run."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ..options import DenoiseOptions
from ..reports.files import write_report
from ..reports.report import report_of
from ..streaming.denoise import Summary


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
