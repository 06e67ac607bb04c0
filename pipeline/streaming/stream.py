"""Decode → transfer → compute → encode, all at the same time, for any number of files.

    reader threads:  job → budget → pages, their noise          (Pillow; one torch thread each)
    this thread:     pages → buckets → network → downloads      (`Denoiser`)
    writer threads:  downloads → file, whole or not at all      (the same)

What is in flight is bounded by the bytes that it takes, not by counts: a file takes its share of
the budget before it is decoded and gives it back when it is written. This thread never waits while
pages do: a batch that is not full goes as it is. Everything that other threads have to say comes
through one queue, as calls for this thread to make.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from .in_flight import FileInFlight, Page, read_pages_of
from .memory import Budget, cores
from .quality import assess
from .result import Result
from .transfer import Download
from .writer import Writer

MOST_IMAGES = 64  # of an automatic batch
_MOST_FILES = 256  # in flight, however small: a run that is told to stop finishes them
_BATCHES_IN_FLIGHT = 3  # on a device that computes while we go on
_TURN_FILES, _TURN_PIXELS = 6, 1 << 24  # for each writer, or in all; seconds of the network
# Of a file in flight: its samples, those of the output, and a copy in Pillow while it is decoded or
# encoded.
_COPIES = 3


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


def takes_turns(denoiser: Denoiser) -> bool:
    """Whether the network computes on every core, so that writing has to wait for it."""
    return denoiser.device.type == "cpu" and torch.get_num_threads() >= cores()


def worker_threads(denoiser: Denoiser) -> int:
    """How many threads decode, and how many encode."""
    return min(16, cores()) if takes_turns(denoiser) else max(2, min(8, cores() // 2))


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
        self.fetch = fetch
        self.is_measuring = is_measuring
        self._jobs: Iterator[Job] = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._buckets: Buckets[Page] = Buckets()
        self._files: set[FileInFlight] = set()  # read, and no result yet
        self._readers_left = threads
        self._made: list[FileInFlight] = []  # by the network, for the writers
        self._writing = 0
        self._takes_turns = takes_turns(denoiser)
        self._on_device: deque[Download] = deque()
        self._is_cancelled = False

    def run(self) -> None:
        torch_threads = torch.get_num_threads()
        for _ in range(self.threads):
            threading.Thread(target=self._read_all, name="reader", daemon=True).start()
        self._encoders = ThreadPoolExecutor(
            self.threads, thread_name_prefix="writer", initializer=_compute_alone
        )
        try:
            while self._readers_left or self._files:
                self._receive()
                if self.stop and not self._is_cancelled:
                    self._cancel()
                if batch := self._next_batch():
                    self._compute(batch)
                self._hand_out()
        finally:
            self.budget.close()
            self._is_cancelled = True
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

    def _next_batch(self) -> list[Page] | None:
        """A full batch, or the oldest that there is rather than to stand idle."""
        return self._buckets.full() or self._buckets.oldest()

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
        on_tile = partial(self.watcher.on_tile, batch[0].file.job)
        outputs = self.denoiser.denoise(
            [page.picture for page in batch],
            is_float32=batch[0].is_float32,
            is_probed=batch[0].file.is_estimable,
            on_tile=on_tile,
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
        if self._takes_turns and len(self._buckets) and not self._fills_turn():
            return
        for file in self._made:
            self._writing += 1
            self._encoders.submit(self._write, file)
        self._made.clear()
        while self._takes_turns and self._writing:
            self._inbox.get()()

    def _fills_turn(self) -> bool:
        """Several files a writer, so that all end at about the same time, or fewer large ones."""
        pixels = sum(math.prod(file.size) * len(file.pictures) for file in self._made)
        fewest = self.threads if pixels >= _TURN_PIXELS else self.threads * _TURN_FILES
        return len(self._made) >= fewest

    def _finish(self, file: FileInFlight, result: Result | None) -> None:
        """The file's end: its bytes go back, its result is told (none where it was given up)."""
        self._files.discard(file)
        self.budget.release(file.held)
        if result is not None:
            self.watcher.on_result(result)

    def _cancel(self) -> None:
        """Begin nothing new: what waits for the network is given up, what it made is written."""
        self._is_cancelled = True
        self.budget.close()
        for file in {page.file for page in self._buckets.clear()}:
            self._finish(file, None)

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

    def _on_readers_end(self) -> None:
        self._readers_left -= 1

    # In reader and writer threads

    def _read_all(self) -> None:
        _compute_alone()
        try:
            while not self._is_cancelled:
                with self._jobs_lock:
                    job = next(self._jobs, None)
                if job is None or not self._read(job):
                    break
        except BaseException as error:
            self._inbox.put(partial(_raise, error))
        self._inbox.put(self._on_readers_end)

    def _read(self, job: Job) -> bool:
        """Decode one file; False if the run ends."""
        held, waited = 0, 0.0
        started = time.perf_counter()

        def reserve(sample_bytes: int) -> None:
            nonlocal held, waited
            wanted = max(self.budget.limit // _MOST_FILES, sample_bytes * _COPIES)
            before = time.perf_counter()
            if not self.budget.acquire(wanted):
                raise _Cancelled
            held, waited = wanted, time.perf_counter() - before

        try:
            self.fetch(job.source)
            source, digest, pictures = read_pages_of(job.source, reserve)
        except _Cancelled:
            return False
        except ImageError as error:
            seconds = time.perf_counter() - started - waited
            self._inbox.put(partial(self._on_unreadable, job, str(error), held, seconds))
            return True
        file = FileInFlight(job, pictures, source, digest, held)
        file.seconds["decode"] = time.perf_counter() - started - waited
        if self.is_measuring:
            started = time.perf_counter()
            is_probing = self.denoiser.is_probing
            try:
                file.noises = tuple(assess(page, is_probing=is_probing) for page in pictures)
            except Exception as error:
                file.note_no_estimate(error)
            file.seconds["measure"] = time.perf_counter() - started
        self._inbox.put(partial(self._on_read, file))
        return True

    def _write(self, file: FileInFlight) -> None:
        try:
            samples, probes, not_finite = [], [], []
            for number in range(len(file.pictures)):
                stored, is_finite, seconds = file.outputs[number].wait()
                samples.append(stored)
                probes.append(file.outputs[number].probe)
                if not is_finite:
                    not_finite.append(number)
                for stage, value in seconds.items():
                    file.seconds[stage] = file.seconds.get(stage, 0.0) + value
            if not_finite and not file.is_retried and self.denoiser.precision is not None:
                self._inbox.put(partial(self._on_retry, file, not_finite))
                return
            if not_finite:
                result = file.failed(f"{file.job.source}: the network's output is not finite")
            else:
                result = self.writer.write(file, samples, probes)
            self._inbox.put(partial(self._on_written, file, result))
        except BaseException as error:
            self._inbox.put(partial(_raise, error))


class _Cancelled(BaseException):
    """The budget was closed while a reader waited for it; no `Exception`, which reading catches."""


def _compute_alone() -> None:
    """In a thread that measures what it writes: without helpers.

    A team of OpenMP threads for each writer, beside the network's, makes more threads than cores;
    then libgomp lets all of them sleep between operations: half the network's speed.
    """
    torch.set_num_threads(1)


def _raise(error: BaseException) -> None:
    raise error
