"""`--report`: a run as a JSON, CSV or HTML file, whole or not at all."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from denoise_batch.kernels import OptionError

from ..files.atomic import atomic_write
from .report import Report, document, image


def write_report(
    path: Path, report: Report, on_picture: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Write the report in the form that the suffix names.

    Args:
        path: ends in .json, .csv or .html.
        report: the run.
        on_picture: of HTML, told of every picture that is read again: done, in all.

    Raises:
        OptionError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = json.dumps(document(report), indent=1, ensure_ascii=False) + "\n"
    elif suffix == ".csv":
        text = _csv(report)
    else:
        from .page import html

        text = html(report, on_picture)
    try:
        # A name that is no Unicode (POSIX allows it) is written with its bytes escaped.
        atomic_write(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OptionError(f"--report {path}: cannot be written: {error.strerror}") from error


def _csv(report: Report) -> str:
    """One line for each image: the fields of the JSON form, stages as `seconds_decode` …"""
    rows = []
    for result in report.results:
        row = image(result)
        seconds = row.pop("seconds")
        row["notes"] = "; ".join(row["notes"])
        stages = report.summary.stage_seconds
        rows.append({**row, **{f"seconds_{stage}": seconds.get(stage) for stage in stages}})
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")  # RFC 4180
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue()
