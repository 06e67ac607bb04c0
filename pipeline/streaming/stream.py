"""Read → batch → denoise → write, at the same time, with bounded queues and per-image failures."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import Picture, read_image, write_image
from ..files.scan import Job
from ..networks import Network
from .references import find_reference, psnr_in_and_out

BATCH_PIXELS = 2**21  # of an automatic batch; enough to fill a device, little enough for a laptop
MOST_IMAGES = 64  # of an automatic batch, and of images held in memory for each stage
READERS = 2
WRITERS = 2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        job: where it came from and went.
        status: done, failed (see reason) or skipped (its output was there).
        reason: why it failed.
        size: (width, height), once it was read.
        psnr_in: dB of the input against the reference, if there is one.
        psnr_out: dB of the output.
        notes: what the user should know of a finished image: something its file could not keep,
            or why there is no PSNR although references were given.
    """

    job: Job
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    size: tuple[int, int] | None = None
    psnr_in: float | None = None
    psnr_out: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Item:
    job: Job
    picture: Picture


def stream(
    jobs: Sequence[Job],
    network: Network,
    *,
    device: torch.device,
    batch_size: int | None,
    reference: Path | None,
    quality: int,
    on_result: Callable[[Result], None],
) -> None:
    """Denoise every job's image; a failing one is reported and the rest goes on.

    Images of one shape share a batch. Memory is bounded by a few batches, whatever the folder's
    size. On KeyboardInterrupt, files that are being written are finished before it goes on up.

    Args:
        jobs: what to do; the order of results may differ.
        network: in inference mode, on the device.
        device: where the network computes.
        batch_size: images a batch at most; None chooses by their size.
        reference: folder of clean images to compare with.
        quality: of lossy formats.
        on_result: called in this thread, once for every job.
    """
    writes: set[Future[Result]] = set()

    def finish(most_left: int) -> None:
        while len(writes) > most_left:
            done, _ = wait(writes, return_when=FIRST_COMPLETED)
            writes.difference_update(done)
            for future in done:
                on_result(future.result())

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        try:
            for batch in _batches(_read_ahead(jobs, readers, on_result), batch_size):
                for item, output in _denoise(network, batch, device, on_result):
                    task = writers.submit(_write, item, output, reference, quality)
                    writes.add(task)
                finish(MOST_IMAGES)
        except KeyboardInterrupt:
            readers.shutdown(cancel_futures=True)
            raise
        finally:
            finish(0)


def _read_ahead(
    jobs: Sequence[Job], readers: ThreadPoolExecutor, on_result: Callable[[Result], None]
) -> Iterator[_Item]:
    """The jobs' pictures in order, a few read in advance."""
    waiting: deque[tuple[Job, Future[Picture]]] = deque()
    queue = iter(jobs)
    while True:
        while len(waiting) < 2 * READERS and (job := next(queue, None)) is not None:
            waiting.append((job, readers.submit(read_image, job.source)))
        if not waiting:
            return
        job, future = waiting.popleft()
        try:
            yield _Item(job, future.result())
        except ImageError as error:
            on_result(Result(job, "failed", str(error)))


def _batches(items: Iterator[_Item], batch_size: int | None) -> Iterator[list[_Item]]:
    """Group by shape; when too many wait, the shape that waits longest goes as it is."""
    buckets: OrderedDict[Shape, list[_Item]] = OrderedDict()
    for item in items:
        shape = tuple(item.picture.pixels.shape)
        bucket = buckets.setdefault(shape, [])
        bucket.append(item)
        if len(bucket) >= (batch_size or _automatic_batch_size(shape)):
            yield buckets.pop(shape)
        elif _waiting_pixels(buckets) > 2 * BATCH_PIXELS:
            yield buckets.popitem(last=False)[1]
    yield from buckets.values()


def _automatic_batch_size(shape: Shape) -> int:
    return max(1, min(MOST_IMAGES, BATCH_PIXELS // (shape[1] * shape[2])))


def _waiting_pixels(buckets: OrderedDict[Shape, list[_Item]]) -> int:
    return sum(len(bucket) * shape[1] * shape[2] for shape, bucket in buckets.items())


def _denoise(
    network: Network,
    batch: list[_Item],
    device: torch.device,
    on_result: Callable[[Result], None],
) -> Iterator[tuple[_Item, Tensor]]:
    """Each item with its output on the host; out of memory halves the batch."""
    try:
        # Channels-last, as the pictures are and the kernels like it.
        rows = torch.stack([item.picture.pixels.permute(1, 2, 0) for item in batch])
        inputs = rows.permute(0, 3, 1, 2)
        outputs = network(inputs.to(device)).to("cpu")
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(batch) == 1:
            reason = f"{batch[0].job.source}: too large for the memory of {device}"
            on_result(Result(batch[0].job, "failed", reason))
            return
        middle = len(batch) // 2
        yield from _denoise(network, batch[:middle], device, on_result)
        yield from _denoise(network, batch[middle:], device, on_result)
        return
    yield from zip(batch, outputs, strict=True)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _write(item: _Item, output: Tensor, reference: Path | None, quality: int) -> Result:
    job, pixels = item.job, item.picture.pixels
    size = (pixels.shape[2], pixels.shape[1])
    if not torch.isfinite(output).all():
        return Result(job, "failed", f"{job.source}: the network's output is not finite", size)
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.output, item.picture, output, quality=quality)
    except ImageError as error:
        return Result(job, "failed", str(error), size)
    except OSError as error:
        reason = f"{job.output.parent}: cannot be created: {error.strerror}"
        return Result(job, "failed", reason, size)
    notes = [f"{job.name}: {item.picture.layout.note}"] if item.picture.layout.note else []
    psnr_in, psnr_out = None, None
    if reference is not None:
        clean = find_reference(reference, job.name)
        if clean is None:
            notes.append(f"{job.name}: no reference in {reference}")
        else:
            try:
                psnr_in, psnr_out = psnr_in_and_out(pixels, output, clean)
            except ImageError as error:
                notes.append(str(error))
    return Result(job, "done", "", size, psnr_in, psnr_out, tuple(notes))
