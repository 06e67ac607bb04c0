"""A run as a report: what was done, with what, and what came of every image.

`document` is the JSON form; its fields are documented in docs/reports.md and only ever added to
within one schema number.
"""

import hashlib
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from denoise_batch.kernels import WeightsError

from .. import weights as shipped
from ..device import describe_device
from ..models import load_tensors
from ..options import DenoiseOptions
from ..streaming.result import Result, Summary
from .table import Totals, total

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Everything that reports in files say.

    Attributes:
        options: what was asked for.
        summary: what came of it.
        totals: the images together.
        created: UTC, ISO 8601.
        versions: of this tool, Python and torch.
        device: name and description of where the network ran.
        weights: name (of shipped ones), file, sha256, architecture.
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
        """One for every image, in the order of the inputs."""
        return self.summary.results


def report_of(options: DenoiseOptions, summary: Summary) -> Report:
    """Gather what a report says, now."""
    return Report(
        options,
        summary,
        total(summary.results),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        {
            "denoise_batch": version("denoise-batch"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        {"name": summary.device, "description": describe_device(summary.device)},
        _weights(Path(summary.weights)),
    )


def document(report: Report) -> dict[str, Any]:
    """The report as plain JSON values; an infinite or unknown number is null."""
    summary, totals = report.summary, report.totals
    return {
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
            "sigma_in_255": number(totals.sigma_in_255, 3),
            "sigma_out_255": number(totals.sigma_out_255, 3),
            "scored": totals.scored,
            "psnr_in": number(totals.psnr_in, 4),
            "psnr_out": number(totals.psnr_out, 4),
            "gain": number(totals.gain, 4),
            "psnr_basis": totals.basis,
        },
        "images": [image(result) for result in summary.results],
    }


def image(result: Result) -> dict[str, Any]:
    """One image as plain JSON values."""
    quality = result.quality
    width, height = result.size or (None, None)

    def of(value: Callable[[Any], float | None], digits: int) -> float | None:
        return None if quality is None else number(value(quality), digits)

    return {
        "name": result.job.name,
        "source": result.job.source_name,
        "output": result.job.output_name,
        "status": result.status,
        "reason": result.reason,
        "width": width,
        "height": height,
        "pages": result.pages,
        "sigma_in_255": of(lambda q: q.sigma_in_255, 3),
        "sigma_out_255": of(lambda q: q.sigma_out_255, 3),
        "psnr_in": of(lambda q: q.psnr_in, 4),
        "psnr_out": of(lambda q: q.psnr_out, 4),
        "gain": of(lambda q: q.gain, 4),
        "psnr_basis": None if quality is None else quality.basis,
        "psnr_reason": "" if quality is None else quality.reason,
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
        "retried_in_fp32": result.is_retried,
        "notes": list(result.notes),
    }


def number(value: float | None, digits: int) -> float | None:
    """Rounded; None for what JSON has no number for."""
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


def _weights(file: Path) -> dict[str, str | None]:
    known = {shipped.FOLDER / entry["file"]: name for name, entry in _shipped().items()}
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        architecture = load_tensors(file)[1]["network"]["architecture"]
    except (OSError, WeightsError):  # taken away since the run
        digest, architecture = None, None
    name = known.get(file)
    return {"name": name, "file": str(file), "sha256": digest, "architecture": architecture}


def _shipped() -> dict[str, Any]:
    entries: dict[str, Any] = shipped.manifest()["weights"]
    return entries
