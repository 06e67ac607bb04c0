"""The files of `--report`: JSON, CSV and HTML."""

from collections.abc import Callable
from pathlib import Path

from denoise_batch.kernels import OptionError

from ..files.atomic import atomic_write
from .report import Report, render_csv, render_json


def write_report(
    path: Path,
    report: Report,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a report in the form that the suffix names, whole or not at all.

    Args:
        path: ends in .json, .csv or .html.
        report: the run.
        on_picture: for HTML, called after each image that was read again, with how many are done
            and how many there are.

    Raises:
        OptionError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = render_json(report)
    elif suffix == ".csv":
        text = render_csv(report)
    else:
        from .html import render_html  # with Jinja2, which other runs do not need

        text = render_html(report, on_picture)
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise OptionError(f"--report {path}: cannot be written: {error.strerror}") from error
