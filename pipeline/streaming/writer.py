"""The last stage: a denoised file's samples → the file, its line in the manifest, its result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import dropped, output_format, write_pages
from ..sure import Probe
from .in_flight import FileInFlight
from .manifest import Manifest
from .quality import Quality, measure
from .references import find_reference, psnr_in_and_out
from .result import Result


@dataclass(frozen=True)
class Writer:
    """Writes files; called from several threads.

    Attributes:
        manifests: of every output folder.
        run: digests of weights and options, for the manifest.
        quality: of lossy formats.
        reference: folder of clean images to compare with.
        deliver: called with every output that was written.
    """

    manifests: Mapping[Path, Manifest]
    run: tuple[str, str]
    quality: int = 95
    reference: Path | None = None
    deliver: Callable[[Path], None] = lambda output: None

    def write(
        self, file: FileInFlight, samples: Sequence[Tensor], probes: Sequence[Probe | None] = ()
    ) -> Result:
        """Write one file, whole or not at all; a failure is its result.

        Args:
            file: what was read.
            samples: of its pages, denoised.
            probes: of its pages, where the run estimates its error.
        """
        job, pictures = file.job, file.pictures
        started = time.perf_counter()
        manifest = self.manifests[job.root]
        try:
            write_pages(
                job.output,
                pictures,
                samples,
                quality=self.quality,
                on_written=lambda unfinished: manifest.record(
                    job.output, unfinished, job.place, file.source, file.source_sha256, self.run
                ),
            )
            self.deliver(job.output)
        except ImageError as error:
            return file.failed(str(error))
        file.seconds["encode"] = time.perf_counter() - started
        kind = output_format(job.output)
        said = [note for p in pictures for note in (p.layout.note, dropped(p, kind))]
        notes = [f"{job.name}: {note}" for note in dict.fromkeys(said) if note]
        if file.is_retried:
            notes.append(f"{job.name}: was not finite in low precision, made again in float32")
        started = time.perf_counter()
        psnr: tuple[float, float] | None = None
        if self.reference is not None:
            clean = find_reference(self.reference, job.name)
            if clean is None:
                notes.append(f"{job.name}: no reference in {self.reference}")
            else:
                try:
                    psnr = psnr_in_and_out(pictures, samples, clean)
                except ImageError as error:
                    notes.append(str(error))
        quality = None
        if file.noises or psnr is not None:
            try:
                quality = measure(pictures, samples, file.noises, probes, psnr)
            except Exception as error:
                file.note_no_estimate(error)
                quality = None if psnr is None else Quality(None, None, *psnr, "reference")
            spent = time.perf_counter() - started
            file.seconds["measure"] = file.seconds.get("measure", 0.0) + spent
        notes += file.notes
        return Result(
            job,
            "done",
            "",
            file.size,
            len(pictures),
            tuple(notes),
            file.seconds,
            quality,
            file.is_retried,
            file.pixels,
        )
