"""Decode → transfer → compute → encode, all at the same time, for any number of files.

    reader threads:  job → budget → pages, their noise          (Pillow; one torch thread each)
    this thread:     pages → buckets → network → downloads      (`Denoiser`)
    writer threads:  downloads → file, whole or not at all      (the same)

What is in flight is bounded by the bytes that it takes, not by counts: a file takes its share of
the budget before it is decoded and gives it back when it is written. This thread never waits while
pages do: a batch that is not full goes as it is. Everything that other threads have to say comes
through one queue, as calls for this thread to make.
"""

import queue
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from denoise_batch.kernels import ImageError

from ..files.scan import Job
from ..stop import Stop
from .buckets import Buckets
from .denoiser import Denoiser
from .in_flight import FileInFlight, Page
from .memory import Budget
from .readers import Listener, Readers
from .result import Result
from .transfer import Download
from .turns import compute_alone, fills_turn, takes_turns, worker_threads
from .writer import Writer

MOST_IMAGES = 64  # of an automatic batch
_BATCHES_IN_FLIGHT = 3  # on a device that computes while we go on


@dataclass(frozen=True)
class Watcher:
    """Who is told how it goes, always in the thread that called `stream`.

    Attributes:
        on_result: told of every file as soon as it is done.
        on_tile: told of every finished tile of a large page: job, tiles done, tiles in all.
    """

    on_result: Callable[[Result], None] = lambda result: None
    on_tile: Callable[[Job, int, int], None] = lambda job, done, tiles: None


def stream(
    jobs: Sequence[Job],
    denoiser: Denoiser,
    writer: Writer,
    *,
    budget: Budget,
    batch_size: int | None = None,
    batch_pixels: int = 1 << 20,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
    threads: int | None = None,
    fetch: Callable[[Path], None] = lambda source: None,
    is_measuring: bool = False,
) -> None:
    """Denoise every job's file; a failing one is reported and the rest goes on.

    Args:
        jobs: what to do; the order of results may differ.
        denoiser: makes outputs of pages.
        writer: makes files of outputs.
        budget: bytes that files in flight may take.
        batch_size: pages a batch at most; None chooses by size and memory.
        batch_pixels: of an automatic batch, at most.
        watcher: who is told.
        stop: once set, what is in flight is finished and no other file is begun.
        threads: that decode, and as many that encode; None chooses by the machine's cores.
        fetch: called by these with each source before it is read.
        is_measuring: estimate every input's noise, and leave the network's second pass out where
            its error could not be estimated anyway.
    """
    _Stream(
        jobs,
        denoiser,
        writer,
        budget,
        batch_size,
        batch_pixels,
        watcher or Watcher(),
        Stop() if stop is None else stop,
        threads or worker_threads(denoiser),
        fetch,
        is_measuring,
    ).run()


class _Stream:
    def __init__(
        self,
        jobs: Sequence[Job],
        denoiser: Denoiser,
        writer: Writer,
        budget: Budget,
        batch_size: int | None,
        batch_pixels: int,
        watcher: Watcher,
        stop: Stop,
        threads: int,
        fetch: Callable[[Path], None],
        is_measuring: bool,
    ) -> None:
        self.denoiser = denoiser
        self.writer = writer
        self.budget = budget
        self.batch_size = batch_size
        self.batch_pixels = batch_pixels
        self.watcher = watcher
        self.stop = stop
        self.threads = threads
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._buckets: Buckets[Page] = Buckets()
        self._files: set[FileInFlight] = set()  # read, and no result yet
        self._readers = Readers(
            jobs,
            budget,
            Listener(
                self._later(self._on_read),
                self._later(self._on_unreadable),
                self._later(_raise),
                self._later(self._on_reader_end),
            ),
            fetch=fetch,
            is_measuring=is_measuring,
            is_probing=denoiser.is_probing,
        )
        self._readers_left = threads
        self._made: list[FileInFlight] = []  # by the network, for the writers
        self._writing = 0
        self._takes_turns = takes_turns(denoiser)
        self._on_device: deque[Download] = deque()
        self._is_cancelled = False

    def run(self) -> None:
        torch_threads = torch.get_num_threads()
        self._readers.start(self.threads)
        self._encoders = ThreadPoolExecutor(
            self.threads, thread_name_prefix="writer", initializer=compute_alone
        )
        try:
            while self._readers_left or self._files:
                self._receive()
                if self.stop and not self._is_cancelled:
                    self._cancel()
                # A full batch, or the oldest that there is rather than to stand idle.
                if batch := self._buckets.full() or self._buckets.oldest():
                    self._compute(batch)
                self._hand_out()
        finally:
            self._stop_reading()
            self._encoders.shutdown(cancel_futures=True)
            torch.set_num_threads(torch_threads)  # what threads to come begin with

    # In this thread

    def _receive(self) -> None:
        """Do what other threads ask for; wait only where nothing is to be computed."""
        try:
            self._inbox.get(block=not len(self._buckets))()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _add(self, page: Page) -> None:
        picture, denoiser = page.picture, self.denoiser
        height, width = denoiser.padded_shape(picture)
        if denoiser.is_tiled(picture):
            self._buckets.add(page, page, 1)
            return
        most = min(self.batch_pixels, denoiser.most_pixels)
        size = self.batch_size or max(1, min(MOST_IMAGES, most // (height * width)))
        layout, samples = picture.layout, picture.samples
        kind = (
            height, width, layout.channels, samples.dtype, page.is_float32, page.file.is_estimable
        )  # fmt: skip
        self._buckets.add(kind, page, size)

    def _compute(self, batch: list[Page]) -> None:
        outputs = self.denoiser.denoise(
            [page.picture for page in batch],
            is_float32=batch[0].is_float32,
            is_probed=batch[0].file.is_estimable,
            on_tile=partial(self.watcher.on_tile, batch[0].file.job),
        )
        last: Download | None = None
        for page, output in zip(batch, outputs, strict=True):
            file = page.file
            if file not in self._files:  # another of its pages failed
                continue
            if isinstance(output, ImageError):
                self._finish(file, file.failed(f"{file.job.source}: {output}"))
                continue
            file.outputs[page.number] = output
            if len(file.outputs) == len(file.pictures):
                self._made.append(file)
            last = output.download
        if last is not None and self.denoiser.is_asynchronous:
            # Wait for an older batch, so that the device's queue stays short and never empty.
            self._on_device.append(last)
            if len(self._on_device) > _BATCHES_IN_FLIGHT:
                self._on_device.popleft().wait()

    def _hand_out(self) -> None:
        """Let the writers have what is made; with turns, once it keeps all of them busy."""
        if self._takes_turns and len(self._buckets) and not fills_turn(self._made, self.threads):
            return
        for file in self._made:
            self._writing += 1
            self._encoders.submit(self._write, file)
        self._made.clear()
        while self._takes_turns and self._writing:
            self._inbox.get()()

    def _finish(self, file: FileInFlight, result: Result | None) -> None:
        """The file's end: its bytes go back, its result is told (none where it was given up)."""
        self._files.discard(file)
        self.budget.release(file.held)
        if result is not None:
            self.watcher.on_result(result)

    def _cancel(self) -> None:
        """Begin nothing new: what waits for the network is given up, what it made is written."""
        self._stop_reading()
        for file in {page.file for page in self._buckets.clear()}:
            self._finish(file, None)

    def _stop_reading(self) -> None:
        self._is_cancelled = True
        self._readers.stop()
        self.budget.close()

    def _on_read(self, file: FileInFlight) -> None:
        self._files.add(file)
        if self._is_cancelled:
            self._finish(file, None)
            return
        for number in range(len(file.pictures)):
            self._add(Page(file, number))

    def _on_unreadable(self, job: Job, reason: str, held: int, seconds: float) -> None:
        self.budget.release(held)
        self.watcher.on_result(Result(job, "failed", reason, seconds={"decode": seconds}))

    def _on_written(self, file: FileInFlight, result: Result) -> None:
        self._writing -= 1
        self._finish(file, result)

    def _on_retry(self, file: FileInFlight, numbers: Sequence[int]) -> None:
        self._writing -= 1
        file.is_retried = True
        for number in numbers:
            del file.outputs[number]
            self._add(Page(file, number, is_float32=True))

    def _on_reader_end(self) -> None:
        self._readers_left -= 1

    # In reader and writer threads

    def _later(self, call: Callable[..., None]) -> Callable[..., None]:
        """What other threads call so that this one makes the call."""
        return lambda *arguments: self._inbox.put(partial(call, *arguments))

    def _write(self, file: FileInFlight) -> None:
        try:
            outputs = [file.outputs[number] for number in range(len(file.pictures))]
            samples, are_finite, spent = zip(*(output.wait() for output in outputs), strict=True)
            not_finite = [number for number, is_finite in enumerate(are_finite) if not is_finite]
            is_again = not_finite and not file.is_retried and self.denoiser.precision is not None
            # The other pages' outputs are kept, and counted when the file is written.
            file.count([spent[number] for number in not_finite] if is_again else spent)
            if is_again:
                self._inbox.put(partial(self._on_retry, file, not_finite))
                return
            if not_finite:
                result = file.failed(f"{file.job.source}: the network's output is not finite")
            else:
                result = self.writer.write(file, samples, [output.probe for output in outputs])
            self._inbox.put(partial(self._on_written, file, result))
        except BaseException as error:
            self._inbox.put(partial(_raise, error))


def _raise(error: BaseException) -> None:
    raise error
