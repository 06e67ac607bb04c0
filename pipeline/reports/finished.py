"""Images that earlier runs denoised: what their files show of them, for the HTML report.

A run skips what its manifest says is done, and so knows nothing of these but their names.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from denoise_batch.kernels import ImageError

from ..files.images import read_pages
from ..files.pixels import outlines
from ..files.scratch import Lazy
from ..options import DenoiseOptions
from ..quality import Quality, assess, measure
from ..streaming.large import on_disk_if_large
from ..streaming.references import find_reference, psnr_in_and_out
from ..streaming.result import Result, add_up
from ..streaming.session import UNCHANGED
from .report import Report

_NO_ESTIMATE = "it is estimated only while an image is denoised"
_THREADS = 4


def is_finished(result: Result) -> bool:
    """Whether an earlier run made this image's output, from the same input in the same way."""
    return result.status == "skipped" and result.reason == UNCHANGED


def with_finished(report: Report, on_image: Callable[[int, int], None]) -> Report:
    """Return the report with size, noise and, given references, PSNR of finished images.

    Args:
        report: of a run.
        on_image: called after each finished image, with how many are read and how many there are.
    """
    finished = [result for result in report.results if is_finished(result)]
    if not finished:
        return report
    seen: dict[int, Result] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        read = threads.map(lambda result: _read(result, report.options), finished)
        for done, (result, known) in enumerate(zip(finished, read, strict=True), 1):
            seen[id(result)] = known
            on_image(done, len(finished))
    results = tuple(seen.get(id(result), result) for result in report.results)
    return replace(report, summary=replace(report.summary, results=results), totals=add_up(results))


def _read(result: Result, options: DenoiseOptions) -> Result:
    """Return the result with what the files show; as it is if they cannot be read."""
    try:
        return _measured(result, options)
    except Exception:  # the page says of each image why it cannot be shown
        return result


def _measured(result: Result, options: DenoiseOptions) -> Result:
    job = result.job
    place = on_disk_if_large(job.output.parent)
    pages = read_pages(job.source, place, options.value_range)
    sketches = outlines(pages)
    height, width = sketches[0].size
    known = replace(
        result,
        size=(width, height),
        pages=len(pages),
        pixels_of_pages=sum(math.prod(page.size) for page in sketches),
    )
    written = read_pages(job.output, place, options.value_range)
    kinds = [
        [(page.samples.shape, page.samples.dtype) for page in outlines(file)]
        for file in (pages, written)
    ]
    samples = Lazy(lambda number: written[number].samples, range(len(written)))
    if kinds[0] != kinds[1]:
        return known  # written in another format, whose values are others
    psnr: tuple[float, float] | None = None
    if options.reference is not None:
        clean = find_reference(options.reference, job.name)
        try:
            if clean is not None:
                psnr = psnr_in_and_out(pages, samples, clean, job.output)
        except ImageError as error:
            known = replace(known, notes=(*known.notes, str(error)))
    if not options.measure and psnr is None:
        return known
    noises = [assess(page, probe=False) for page in pages] if options.measure else []
    quality = measure(pages, samples, noises, [], psnr)
    if psnr is None:
        quality = Quality(quality.sigma_in_255, quality.sigma_out_255, reason=_NO_ESTIMATE)
    return replace(known, quality=quality)
