"""The steps of one file before and after the network: decode it, write it."""

import errno
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError
from denoise_batch.kernels.errors import StorageError, first_line

from ..files.footprint import Footprint
from ..files.images import read_pages, write_pages
from ..files.pixels import DecodedImage, PagesOnDisk, outlines
from ..files.scan import FileStat, Job
from ..files.scratch import Scratch
from ..models import LARGEST_LEVEL, LevelEstimator
from ..quality import Noise, Probe, Quality, assess, measure
from .denoiser import Output, OutputOnDisk
from .manifest import Manifest, sha256_of
from .references import find_reference, psnr_in_and_out
from .result import Result

LEAST_CHANGE_255 = 0.25  # a smaller one rounds to nothing in most pixels of 8 bits
WEAK_255 = 8.0  # a level that leaves it to the network whether there is noise at all
# What fails for every output, and may pass; other errors are the file's own. Not all systems have
# all of them.
_STORAGE_FAULTS = {getattr(errno, name, None) for name in (
    "ENOSPC", "EDQUOT", "EROFS", "EIO", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO", "ETIMEDOUT",
    "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOTCONN", "ECONNRESET",
    "ECONNREFUSED", "ECONNABORTED", "ESHUTDOWN", "EMFILE", "ENFILE", "EAGAIN", "ENOLCK",
    "ENOMEDIUM", "EUCLEAN",
)}  # fmt: skip
_STRIP_ROWS = 64  # a whole page in float32 is large


@dataclass(eq=False)
class FileInFlight:
    """A file between decoding and writing.

    Attributes:
        job: where it comes from and where it goes.
        images: its pages, in memory or on disk.
        source: the input's stat from before it was read.
        source_sha256: of the input's bytes.
        held: bytes of the budget that it occupies.
        noises: of the pages, if the run measures.
        levels: noise levels that the network was told, of the pages, for values in [0, 1].
        outputs: of the pages, as they are finished.
        pixels_done: of these pages.
        seconds: time by stage.
        notes: what the user should know about it.
        is_retried: a page was computed again in float32.
    """

    job: Job
    images: Sequence[DecodedImage]
    source: FileStat
    source_sha256: str
    held: int = 0
    noises: tuple[Noise, ...] = ()
    levels: tuple[float, ...] = ()
    outputs: dict[int, Output | OutputOnDisk] = field(default_factory=dict)
    pixels_done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_retried: bool = False

    @property
    def outlines(self) -> Sequence[DecodedImage]:
        """Its pages, for what does not depend on their samples' values."""
        return outlines(self.images)

    @property
    def is_on_disk(self) -> bool:
        """Whether its pages, and their outputs, are in a scratch file."""
        return isinstance(self.images, PagesOnDisk)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first page."""
        height, width = self.outlines[0].size
        return width, height

    @cached_property
    def pixels(self) -> int:
        """Sum over all pages."""
        return sum(math.prod(image.size) for image in self.outlines)

    @property
    def level_255(self) -> float | None:
        """Mean noise level that the network was told; None if it takes none."""
        told = [255 * min(level, LARGEST_LEVEL) for level in self.levels]
        return sum(told) / len(told) if told else None

    @property
    def wants_probe(self) -> bool:
        """Whether the network is probed, because its error may be estimated from that."""
        return bool(self.noises) and not any(noise.reason for noise in self.noises)

    def assess(self, *, probe: bool) -> None:
        """Estimate the noise of the pages; `probe`: and whether the error could be estimated."""
        started = time.perf_counter()
        try:
            self.noises = tuple(assess(page, probe=probe) for page in self.images)
        except Exception as error:
            self.note_no_estimate(error)
        self.seconds["measure"] = time.perf_counter() - started

    def add_seconds(self, passes: Iterable[Mapping[str, float]]) -> None:
        """Add the time of these passes, stage by stage."""
        for seconds in passes:
            for stage, value in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def put_away(self, number: int) -> None:
        """Move a page's output to where the pages are, if they are on disk; wait for it.

        Raises:
            StorageError: there is no room for it.
        """
        output = self.outputs.get(number)
        if isinstance(self.images, PagesOnDisk) and isinstance(output, Output):
            self.outputs[number] = OutputOnDisk(output, self.images.scratch)

    def note_no_estimate(self, error: Exception) -> None:
        """Say why there are no estimates; a missing number never costs the image."""
        reason = first_line(error)
        self.notes.append(f"{self.job.name}: its noise could not be estimated: {reason}")

    def failed(self, reason: str, *, is_storage_fault: bool = False) -> Result:
        """The result of a file that cannot be finished."""
        return Result(
            self.job,
            "failed",
            reason,
            self.size,
            len(self.images),
            seconds=self.seconds,
            is_storage_fault=is_storage_fault,
        )


def decode_file(
    job: Job,
    reserve: Callable[[Footprint], Scratch | None],
    value_range: tuple[float, float] | None = None,
) -> FileInFlight:
    """Read a job's source: its stat, digest and pages, all from the same bytes.

    Args:
        job: what to read.
        reserve: called with what the file takes, before it is decoded; may wait, or raise; returns
            where its pages are to be, None for in memory.
        value_range: black and white of samples above 8 bits; None: as the file says or shows.

    Raises:
        ImageError: it cannot be read, or changed while it was being read.
    """
    source = job.source
    try:
        stat = FileStat.of_source(job)
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    try:
        images = read_pages(source, reserve, value_range)
        digest = sha256_of(source)
        now = FileStat.of_source(job)
        # A new ctime alone may be a backup that links the file.
        is_same = now._replace(ctime_ns=stat.ctime_ns) == stat
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    if not is_same:
        raise ImageError(f"{source}: changed while it was being read; run again when it is whole")
    return FileInFlight(job, images, stat, digest)


@dataclass(frozen=True)
class Writer:
    """Writes denoised files; called from several threads.

    Attributes:
        manifests: of every output folder.
        run: digests of weights and options, for the manifest.
        quality: of lossy formats, 1 to 100.
        reference: folder of clean images to compare with.
        upload: called with every output that was written.
        times: outputs get the times of their inputs.
        software: what outputs say made them; None: nothing.
        png_level: of PNG, 0 to 9.
        level_factor: what the network's own estimates of noise levels were multiplied by; None if
            the levels were given.
        strength: share of the network in the outputs; the rest is the input.
    """

    manifests: Mapping[Path, Manifest]
    run: tuple[str, str]
    quality: int = 95
    reference: Path | None = None
    upload: Callable[[Path], None] = lambda output: None
    times: bool = True
    software: str | None = None
    png_level: int = 2
    level_factor: float | None = None
    strength: float = 1.0

    def write(
        self, file: FileInFlight, samples: Sequence[Tensor], probes: Sequence[Probe | None] = ()
    ) -> Result:
        """Write one file, whole or not at all; a failure is its result.

        Args:
            file: what was read.
            samples: of its pages, denoised.
            probes: of its pages, if the run estimates its error.
        """
        job = file.job
        manifest = self.manifests[job.root]
        started = time.perf_counter()
        try:
            losses = write_pages(
                job.output,
                file.images,
                samples,
                quality=self.quality,
                png_level=self.png_level,
                source=job.source,
                times=self.times,
                software=self.software,
                on_written=lambda unfinished: manifest.record(
                    job.output,
                    unfinished,
                    job.canonical_path,
                    file.source,
                    file.source_sha256,
                    self.run,
                ),
            )
            file.seconds["encode"] = time.perf_counter() - started
            started = time.perf_counter()
            notes = [*_loss_notes(file, losses), *self._level_notes(file, samples)]
            psnr = self._compare(file, samples, notes)
            compared = time.perf_counter() - started
            started = time.perf_counter()
            self.upload(job.output)
            manifest.confirm(job.output)
        except ImageError as error:
            return file.failed(str(error), is_storage_fault=_is_storage_fault(error, file))
        file.seconds["encode"] += time.perf_counter() - started
        started = time.perf_counter() - compared
        quality = self._measure(file, samples, probes, psnr)
        if file.noises or psnr is not None:
            file.add_seconds([{"measure": time.perf_counter() - started}])
        return Result(
            job,
            "done",
            "",
            file.size,
            len(file.images),
            (*notes, *file.notes),
            file.seconds,
            quality,
            file.is_retried,
            file.pixels,
            file.level_255,
        )

    def _describe_level(self, file: FileInFlight, samples: Sequence[Tensor]) -> list[str]:
        """Notes on a level beyond the training's, and on an image that hardly changed."""
        name, largest = file.job.name, 255 * LARGEST_LEVEL
        levels = [round(255 * level, 1) for level in file.levels]
        notes = []
        if (strongest := max(levels, default=0.0)) > largest:
            where = f"{name}, page {levels.index(strongest) + 1}" if len(levels) > 1 else name
            notes.append(
                f"{where}: noise level {strongest:g} is beyond the {largest:.0f} that the "
                "network was trained for, which it was told instead"
            )
        if not levels:
            return notes
        most = 0.0
        for page, after in zip(file.images, samples, strict=True):
            change = _slight_change_255(page, after)
            if change is None:
                return notes
            most = max(most, change)
        hardly = f"{name}: hardly changed ({most:.2f} of 255)"
        if strongest == 0 and self.level_factor:
            notes.append(
                f"{hardly}: so many neighbouring pixels are equal that it was taken for a drawing "
                "or dithering; to denoise it, give --noise-level"
            )
        elif self.strength < 1:
            notes.append(
                f"{hardly}, as its noise level is {strongest:.1f} and --strength {self.strength:g}"
            )
        elif strongest < WEAK_255:
            notes.append(
                f"{hardly}, as its noise level is {strongest:.1f}; --noise-level sets another"
            )
        else:
            notes.append(
                f"{hardly}, though its noise level is {strongest:.1f}: nothing looked like noise"
            )
        return notes

    def _level_notes(self, file: FileInFlight, samples: Sequence[Tensor]) -> list[str]:
        """As `_describe_level`; pages that cannot be read again cost no image that is written."""
        try:
            return self._describe_level(file, samples)
        except ImageError as error:
            return [f"{file.job.name}: {error}"]

    def _compare(
        self, file: FileInFlight, samples: Sequence[Tensor], notes: list[str]
    ) -> tuple[float, float] | None:
        """PSNR before and after against the reference; a missing one is noted."""
        if self.reference is None:
            return None
        clean = find_reference(self.reference, file.job.name)
        if clean is None:
            notes.append(f"{file.job.name}: no reference in {self.reference}")
            return None
        try:
            return psnr_in_and_out(file.images, samples, clean, file.job.output)
        except ImageError as error:
            notes.append(str(error))
            return None

    def _measure(
        self,
        file: FileInFlight,
        samples: Sequence[Tensor],
        probes: Sequence[Probe | None],
        psnr: tuple[float, float] | None,
    ) -> Quality | None:
        """Noise and error before and after; a failure is noted."""
        if not file.noises and psnr is None:
            return None
        factor = self.level_factor or 1.0
        try:
            pages = zip(file.outlines, file.levels, strict=False) if self.level_factor else ()
            estimates = [
                LevelEstimator.noise(level / factor, is_gray=page.samples.shape[2] == 1)
                for page, level in pages
            ]
            return measure(file.images, samples, file.noises, probes, psnr, estimates)
        except Exception as error:
            file.note_no_estimate(error)
            return None if psnr is None else Quality(None, None, *psnr, "reference")


def _is_storage_fault(error: ImageError, file: FileInFlight) -> bool:
    """Whether an output could not be written because of where it goes, not because of itself."""
    cause = error.__cause__
    if isinstance(error, StorageError) or not isinstance(cause, OSError):
        return isinstance(error, StorageError)
    if cause.errno in (errno.EACCES, errno.EPERM):  # of the whole output, or of one of its folders
        return not os.access(file.job.root, os.W_OK | os.X_OK)
    if cause.errno is not None:
        return cause.errno in _STORAGE_FAULTS
    try:  # Encoders in C do not say why; the unfinished file has left its space meanwhile.
        return shutil.disk_usage(file.job.output.parent).free < file.held
    except OSError:
        return True


def _slight_change_255(page: DecodedImage, samples: Tensor) -> float | None:
    """Root mean square of output − input, in units of 1/255; None from `LEAST_CHANGE_255` up.

    The first rows mostly change enough for the whole page.
    """
    total, enough = 0.0, (LEAST_CHANGE_255 / 255) ** 2 * samples.numel()
    for top in range(0, len(samples), _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        if torch.equal(page.samples[rows], samples[rows]):
            continue
        before, after = (page.value_range.to_unit(x[rows]) for x in (page.samples, samples))
        total += float((after - before).square_().sum(dtype=torch.float64))
        if total >= enough:
            return None
    return 255 * math.sqrt(total / samples.numel())


def _loss_notes(file: FileInFlight, losses: Sequence[str]) -> list[str]:
    """Notes on what the output could not keep, and on a retry in float32."""
    name, pairs = file.job.name, zip(file.outlines, losses, strict=True)
    said = [note for page, loss in pairs for note in (page.note, loss)]
    notes = [f"{name}: {note}" for note in dict.fromkeys(said) if note]
    if file.is_retried:
        notes.append(f"{name}: was not finite in low precision, made again in float32")
    return notes
