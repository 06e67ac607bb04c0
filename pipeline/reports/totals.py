"""What the images of a run come to together, and which came out worst and best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..streaming.quality import Basis, Quality
from ..streaming.result import Result


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
