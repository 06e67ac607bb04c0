"""What a run came to, as data: totals, and the JSON and CSV forms of `--report`.

The JSON form is documented in docs/reports.md. Within one `SCHEMA` fields are only ever added.
"""

import csv
import hashlib
import io
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from denoise_batch.kernels import WeightsError

from ..device import describe_device
from ..files.kinds import count_suffixes
from ..models import SHIPPED, load_tensors, shipped_manifest
from ..options import DenoiseOptions
from ..quality import Quality
from ..streaming.result import Result, Summary, Totals, add_up
from ..text import valid

SCHEMA = 1
# What a spreadsheet takes for the start of a formula (OWASP, "CSV injection").
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@dataclass(frozen=True)
class Report:
    """Everything that a report file says.

    Attributes:
        options: what was asked for.
        summary: what came of it.
        totals: counts and means over the images.
        created: UTC, ISO 8601.
        versions: of this tool, Python and torch.
        device: name and description of the device that the network ran on, and which kernels did.
        weights: name (None unless shipped), file, sha256 and architecture.
    """

    options: DenoiseOptions
    summary: Summary
    totals: Totals
    created: str
    versions: dict[str, str]
    device: dict[str, str]
    weights: dict[str, str | None]

    @property
    def results(self) -> tuple[Result, ...]:
        """One result for every image, in the order of the inputs."""
        return self.summary.results


def make_report(options: DenoiseOptions, summary: Summary) -> Report:
    """Gather what a report says; the time of the call is its time."""
    return Report(
        options,
        summary,
        add_up(summary.results),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        {
            "denoise_batch": version("denoise-batch"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        {
            "name": summary.device,
            "description": describe_device(summary.device),
            "kernels": summary.kernels,
        },
        _describe_weights(Path(summary.weights)),
    )


def render_json(report: Report) -> str:
    """Return the JSON form; an infinite or unknown number is null."""
    summary, totals = report.summary, report.totals
    document = {
        "format": "denoise-batch report",
        "schema": SCHEMA,
        "created": report.created,
        "versions": report.versions,
        "device": report.device,
        "weights": report.weights,
        "options": _plain(asdict(report.options)),
        "exit_code": summary.exit_code,
        "totals": {
            "images": len(summary.results),
            "done": totals.done,
            "failed": totals.failed,
            "skipped": totals.skipped,
            "left": summary.left,
            "megapixels": round(summary.megapixels, 6),
            "seconds": round(summary.seconds, 3),
            "megapixels_per_second": _rate(summary.megapixels, summary.seconds),
            "images_per_second": _rate(totals.done, summary.seconds),
            "stage_seconds": {k: round(v, 4) for k, v in summary.stage_seconds.items()},
            "sigma_in_255": _rounded(totals.sigma_in_255, 3),
            "sigma_out_255": _rounded(totals.sigma_out_255, 3),
            "level_255": _rounded(totals.level_255, 3),
            "scored": totals.scored,
            "psnr_in": _rounded(totals.psnr_in, 4),
            "psnr_out": _rounded(totals.psnr_out, 4),
            "gain": _rounded(totals.gain, 4),
            "psnr_basis": totals.basis,
        },
        "passed_over": count_suffixes(summary.passed_over),
        "images": [result_to_json(result) for result in summary.results],
    }
    return json.dumps(valid(document), indent=1, ensure_ascii=False) + "\n"


def render_csv(report: Report) -> str:
    """Return the CSV form: `result_to_json` in rows, stages as `seconds_decode` …, `kernels`.

    The rows of files that were passed over have a name and the status "passed over". A text that
    a spreadsheet would compute has an apostrophe before it.
    """
    rows = []
    for result in report.results:
        row = result_to_json(result)
        seconds = row.pop("seconds")
        row["notes"] = "; ".join(row["notes"])
        stages = report.summary.stage_seconds
        row |= {f"seconds_{stage}": seconds.get(stage) for stage in stages}
        rows.append({**row, "kernels": report.device["kernels"]})
    passed_over = [{"name": name, "status": "passed over"} for name in report.summary.passed_over]
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")  # RFC 4180
        writer.writeheader()
        writer.writerows(
            {key: _cell(value) for key, value in row.items()} for row in rows + passed_over
        )
    return file.getvalue()


def result_to_json(result: Result) -> dict[str, Any]:
    """Return one image as plain JSON values: in `images` of a report, and a line of `--log json`.

    Every key is always there:

    - name: path below the input folder; source, output: paths or URLs.
    - status: "done", "failed" or "skipped"; reason: why it failed or was skipped, else "".
    - width, height: pixels of the first page, null if it was not read; pages: how many.
    - sigma_in_255, sigma_out_255: estimated σ of the noise in units of 1/255, 3 decimals, or null.
    - level_255: noise level that the network was told, in the same unit, or null.
    - psnr_in, psnr_out, gain: dB, 4 decimals; null if unknown or infinite.
    - psnr_basis: "reference", "estimate" or null; psnr_reason: why there is no PSNR, else "".
    - seconds: by stage, 4 decimals; without the stages that the image did not reach.
    - retried_in_fp32: whether low precision overflowed and the image was computed again.
    - notes: list of strings.
    """
    quality = result.quality or Quality(None, None)
    width, height = result.size or (None, None)
    return {
        "name": result.job.name,
        "source": result.job.source_name,
        "output": result.job.output_name,
        "status": result.status,
        "reason": result.reason,
        "width": width,
        "height": height,
        "pages": result.pages,
        "sigma_in_255": _rounded(quality.sigma_in_255, 3),
        "sigma_out_255": _rounded(quality.sigma_out_255, 3),
        "level_255": _rounded(result.level_255, 3),
        "psnr_in": _rounded(quality.psnr_in, 4),
        "psnr_out": _rounded(quality.psnr_out, 4),
        "gain": _rounded(quality.gain, 4),
        "psnr_basis": quality.basis,
        "psnr_reason": quality.reason,
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
        "retried_in_fp32": result.is_retried,
        "notes": list(result.notes),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        value = f"'{value}"
    return valid(value)


def _rounded(value: float | None, digits: int) -> float | None:
    """Round a number; return None for one that JSON cannot express."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _rate(amount: float, seconds: float) -> float | None:
    return round(amount / seconds, 4) if seconds else None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _describe_weights(file: Path) -> dict[str, str | None]:
    names = {SHIPPED / entry["file"]: name for name, entry in shipped_manifest()["weights"].items()}
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        architecture = load_tensors(file)[1]["network"]["architecture"]
    except (OSError, WeightsError):  # deleted or replaced since the run
        digest, architecture = None, None
    name = names.get(file)
    return {"name": name, "file": str(file), "sha256": digest, "architecture": architecture}
