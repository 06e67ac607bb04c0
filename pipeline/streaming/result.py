"""A run's plan, the result of each image, and the summary."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from denoise_batch.kernels.errors import StorageError

from ..files.scan import Job
from ..quality import Basis, Quality

STAGES = ("decode", "transfer", "compute", "encode", "measure")


@dataclass(frozen=True)
class Result:
    """The result of one file.

    Attributes:
        job: where it came from and where it went.
        status: done, failed (see reason) or skipped (see reason).
        reason: why it failed or was skipped.
        size: (width, height) of its first page, once it was read.
        pages: number of pages.
        notes: what the user should know about a finished image: what its file could not keep, or
            why there is no PSNR although references were given.
        seconds: time by stage (`STAGES`); a batch's time is split by pixels.
        quality: noise and PSNR before and after, if they were measured.
        is_retried: the network's output was not finite in the requested precision and was computed
            again in float32.
        pixels_of_pages: sum over all pages, where they differ in size.
        level_255: noise level that the network was told, mean over the pages, in units of 1/255;
            None if it takes none.
        is_storage_fault: it failed because the output or a store did, not the image.
    """

    job: Job
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    size: tuple[int, int] | None = None
    pages: int = 1
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    is_retried: bool = False
    pixels_of_pages: int | None = None
    level_255: float | None = None
    is_storage_fault: bool = False

    @property
    def pixels(self) -> int:
        """Sum over all pages; by default each is as large as the first."""
        if self.pixels_of_pages is not None:
            return self.pixels_of_pages
        return self.size[0] * self.size[1] * self.pages if self.size else 0


@dataclass(frozen=True)
class Estimate:
    """What a run will take, as far as it can be told.

    Attributes:
        images: to denoise.
        looked_at: files whose heads were read; the others are taken to be like them.
        megapixels: of all pages.
        input_bytes: of the files to read.
        output_bytes: of the files to write.
        seconds: from the first read to the last write.
        basis: where `seconds` comes from: the speed of the last run, or of the network alone.
    """

    images: int = 0
    looked_at: int = 0
    megapixels: float | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    seconds: float | None = None
    basis: Literal["", "last run", "network"] = ""


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes:
        jobs: images to denoise.
        rest: images beyond `--limit`; they replace jobs that fail.
        skipped: results of images that are not begun: already done, or not to be overwritten.
        device: where the network runs.
        precision: of its convolutions: fp32, bf16 or fp16.
        weights: the weights file.
        kernels: which ones compute, in words, and why no faster ones do.
        passed_over: names of image files of kinds that are not read.
        estimate: makes an estimate, which reads heads of files.
    """

    jobs: tuple[Job, ...]
    rest: tuple[Job, ...]
    skipped: tuple[Result, ...]
    device: str
    precision: str
    weights: str
    kernels: str = ""
    passed_over: tuple[str, ...] = ()
    estimate: Callable[[], Estimate] = Estimate


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        results: one for each image, in the order of the inputs.
        seconds: from the first read to the last write.
        device: where the network ran.
        weights: the file it was loaded from.
        signal: the signal that ended the run early; images without a result wait for the next run.
        left: number of images that a signal or the limit left over.
        kernels: which ones computed, in words, and why no faster ones did.
        passed_over: names of image files of kinds that are not read.
        gave_up: why the run ended early by itself: the output or a store kept failing.
    """

    results: tuple[Result, ...]
    seconds: float
    device: str
    weights: str
    signal: int | None = None
    left: int = 0
    kernels: str = ""
    passed_over: tuple[str, ...] = ()
    gave_up: str = ""

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the run early."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 6 all failed, 7 gave up, 130 or 143 for SIGINT or SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        if self.gave_up:
            return StorageError.exit_code
        failed = sum(result.status == "failed" for result in self.results)
        if failed == 0:
            return 0
        return 6 if failed == len(self.results) else 1

    @property
    def megapixels(self) -> float:
        """Sum over the images that were denoised."""
        return sum(result.pixels for result in self.results if result.status == "done") / 1e6

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Time by stage, summed over the images; stages overlap, so the sums exceed `seconds`."""
        return {
            stage: sum(result.seconds.get(stage, 0.0) for result in self.results)
            for stage in STAGES
        }


@dataclass(frozen=True)
class Totals:
    """Counts and means of a run; a mean is over the images that have the value, or None.

    Attributes:
        done: images denoised.
        failed: images that failed.
        skipped: images that an earlier run had denoised.
        sigma_in_255: mean estimated σ of the inputs' noise, in units of 1/255.
        sigma_out_255: mean estimated σ of the outputs' noise, in units of 1/255.
        level_255: mean noise level that the network was told, in units of 1/255.
        scored: images with a finite PSNR before and after; the means below are over these.
        psnr_in: mean PSNR of the inputs in dB.
        psnr_out: mean PSNR of the outputs in dB.
        basis: "estimate" as soon as one PSNR is estimated, else "reference"; None without a PSNR.
    """

    done: int
    failed: int
    skipped: int
    sigma_in_255: float | None
    sigma_out_255: float | None
    level_255: float | None
    scored: int
    psnr_in: float | None
    psnr_out: float | None
    basis: Basis | None

    @property
    def gain(self) -> float | None:
        """Mean gain in dB."""
        if self.psnr_in is None or self.psnr_out is None:
            return None
        return self.psnr_out - self.psnr_in


def add_up(results: Sequence[Result]) -> Totals:
    """Return the totals of a run's results."""
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
        sigma_in_255=_mean([quality.sigma_in_255 for quality in qualities]),
        sigma_out_255=_mean([quality.sigma_out_255 for quality in qualities]),
        level_255=_mean([result.level_255 for result in results]),
        scored=len(scored),
        psnr_in=_mean([quality.psnr_in for quality in scored]),
        psnr_out=_mean([quality.psnr_out for quality in scored]),
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
    """Return the denoised images, worst first."""
    return sorted((result for result in results if result.status == "done"), key=rank)


def rank(result: Result) -> tuple[int, float]:
    """A key that sorts the worst image first.

    Images with a PSNR come first, by the output's; then those with only a σ, by the input's; then
    the others, in their order.
    """
    quality = result.quality
    if quality is None:
        return 2, 0.0
    if is_scored(quality) and quality.psnr_out is not None:
        return 0, quality.psnr_out
    return 1, -(quality.sigma_in_255 or 0.0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
