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
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.decoded_image import DecodedImage
from ..files.images import dropped, output_format, read_pages, write_pages
from ..files.scan import Job
from ..progress import Stop
from ..quality import Noise, Probe, Quality, assess, measure
from .denoiser import Denoiser, Output
from .manifest import FileStat, Manifest, sha256_of
from .memory import Budget, cores
from .references import find_reference, psnr_in_and_out
from .result import Result
from .transfer import Download

Item = TypeVar("Item")


class Buckets(Generic[Item]):
    """Waiting items by key, the key that waits longest first."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, tuple[int, list[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for _, items in self._waiting.values())

    def add(self, key: Hashable, item: Item, batch_size: int) -> None:
        """Let an item wait under its key, of which `batch_size` make a full batch."""
        _, items = self._waiting.get(key, (0, []))
        items.append(item)
        self._waiting[key] = (batch_size, items)

    def full(self) -> list[Item] | None:
        """A full batch, if there is one."""
        for key, (batch_size, items) in self._waiting.items():
            if len(items) >= batch_size:
                return self._take(key, batch_size)
        return None

    def oldest(self) -> list[Item] | None:
        """What waits under the oldest key, full or not; None if nothing waits."""
        for key, (batch_size, _) in self._waiting.items():
            return self._take(key, batch_size)
        return None

    def clear(self) -> list[Item]:
        """Everything that waits, waiting no more."""
        items = [item for _, waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        return items

    def _take(self, key: Hashable, count: int) -> list[Item]:
        batch_size, items = self._waiting.pop(key)
        if rest := items[count:]:
            self._waiting[key] = (batch_size, rest)
        return items[:count]


@dataclass(eq=False)
class FileInFlight:
    """A file between its decoding and its writing.

    Attributes:
        job: where it comes from and goes.
        pictures: its pages.
        source: the input's stamp from before it was read.
        source_sha256: of the input.
        held: bytes of the budget.
        noises: of the pages, where the run estimates.
        outputs: of the pages, as far as they are made.
        seconds: by stage.
        notes: what the user should know of it.
        is_retried: some page was made again in float32.
    """

    job: Job
    pictures: tuple[DecodedImage, ...]
    source: FileStat
    source_sha256: str
    held: int
    noises: tuple[Noise, ...] = ()
    outputs: dict[int, Output] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_retried: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first page."""
        height, width = self.pictures[0].layout.size
        return width, height

    @property
    def pixels(self) -> int:
        """Of all pages."""
        sizes = [picture.layout.size for picture in self.pictures]
        return sum(height * width for height, width in sizes)

    @property
    def is_estimable(self) -> bool:
        """Whether the network shall be probed, since an estimate of the error may come of it."""
        return bool(self.noises) and not any(noise.reason for noise in self.noises)

    def count(self, passes: Iterable[dict[str, float]]) -> None:
        """Add the seconds of these passes, stage by stage."""
        for seconds in passes:
            for stage, value in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def note_no_estimate(self, error: Exception) -> None:
        """Say why there are no estimates; a picture is not lost for lack of a number."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        self.notes.append(f"{self.job.name}: its noise could not be estimated: {line}")

    def failed(self, reason: str) -> Result:
        """The result of a file that cannot be finished."""
        return Result(
            self.job, "failed", reason, self.size, len(self.pictures), seconds=self.seconds
        )


@dataclass(frozen=True)
class Page:
    """One page of a file, on its way to the network."""

    file: FileInFlight
    number: int
    is_float32: bool = False

    @property
    def picture(self) -> DecodedImage:
        """As it was decoded."""
        return self.file.pictures[self.number]


def read_pages_of(
    source: Path, reserve: Callable[[int], None]
) -> tuple[FileStat, str, tuple[DecodedImage, ...]]:
    """A file's stamp, digest and pages, all of the same bytes.

    Raises:
        ImageError: it cannot be read, or changed meanwhile.
    """
    try:
        stamp = FileStat.of(source)
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    try:
        pictures = read_pages(source, reserve)
        digest = sha256_of(source)
        is_same = FileStat.of(source) == stamp
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    if not is_same:
        raise ImageError(f"{source}: changed while it was being read; run again when it is whole")
    return stamp, digest, pictures


_FILES, _PIXELS = 6, 1 << 24  # for each writer, or in all; seconds of the network


def takes_turns(denoiser: Denoiser) -> bool:
    """Whether the network computes on every core, so that writing has to wait for it."""
    return denoiser.device.type == "cpu" and torch.get_num_threads() >= cores()


def worker_threads(denoiser: Denoiser) -> int:
    """How many threads decode, and how many encode."""
    return min(16, cores()) if takes_turns(denoiser) else max(2, min(8, cores() // 2))


def write_backlog_full(files: Sequence[FileInFlight], threads: int) -> bool:
    """Whether these keep all writers busy until all end at about the same time.

    Several files a writer, or fewer large ones.

    Args:
        files: that the network is done with.
        threads: that write.
    """
    pixels = sum(math.prod(file.size) * len(file.pictures) for file in files)
    return len(files) >= (threads if pixels >= _PIXELS else threads * _FILES)


def use_single_torch_thread() -> None:
    """In a thread that measures what it reads or writes: without helpers.

    A team of OpenMP threads for each writer, beside the network's, makes more threads than cores;
    then libgomp lets all of them sleep between operations: half the network's speed.
    """
    torch.set_num_threads(1)


_MOST_FILES = 256  # in flight, however small: a run that is told to stop finishes them
# Of a file in flight: its samples, those of the output, and a copy in Pillow while it is decoded or
# encoded.
_COPIES = 3


@dataclass(frozen=True)
class Listener:
    """Who is told, always in a reader's thread.

    Attributes:
        on_read: of a decoded file, which holds its bytes of the budget.
        on_unreadable: of one that cannot be decoded: job, reason, bytes of the budget to be given
            back, seconds.
        on_error: of what no file should cause; that reader ends.
        on_end: of every reader's end.
    """

    on_read: Callable[[FileInFlight], None]
    on_unreadable: Callable[[Job, str, int, float], None]
    on_error: Callable[[BaseException], None]
    on_end: Callable[[], None]


class Readers:
    """Readers of the files of jobs, each file once, in the order of the jobs.

    Args:
        jobs: what to read.
        budget: bytes that files in flight may take; closing it ends all readers.
        listener: who is told.
        fetch: called with each source before it is read.
        is_measuring: estimate every input's noise.
        is_probing: and whether its error could be estimated.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        budget: Budget,
        listener: Listener,
        *,
        fetch: Callable[[Path], None],
        is_measuring: bool,
        is_probing: bool,
    ) -> None:
        self.budget = budget
        self.listener = listener
        self.fetch = fetch
        self.is_measuring = is_measuring
        self.is_probing = is_probing
        self._jobs = iter(jobs)
        self._lock = threading.Lock()
        self._is_stopped = False

    def start(self, threads: int) -> None:
        """Begin to read."""
        for _ in range(threads):
            threading.Thread(target=self._read_all, name="reader", daemon=True).start()

    def stop(self) -> None:
        """Begin no other file."""
        self._is_stopped = True

    def _read_all(self) -> None:
        use_single_torch_thread()
        try:
            while not self._is_stopped:
                with self._lock:
                    job = next(self._jobs, None)
                if job is None or not self._read(job):
                    break
        except BaseException as error:
            self.listener.on_error(error)
        self.listener.on_end()

    def _read(self, job: Job) -> bool:
        """Decode one file; False if the run ends."""
        held, waited = 0, 0.0
        started = time.perf_counter()

        def reserve(sample_bytes: int) -> None:
            nonlocal held, waited
            wanted = max(self.budget.limit // _MOST_FILES, sample_bytes * _COPIES)
            before = time.perf_counter()
            if not self.budget.acquire(wanted):
                raise _Closed
            held, waited = wanted, time.perf_counter() - before

        try:
            self.fetch(job.source)
            source, digest, pictures = read_pages_of(job.source, reserve)
        except _Closed:
            return False
        except ImageError as error:
            seconds = time.perf_counter() - started - waited
            self.listener.on_unreadable(job, str(error), held, seconds)
            return True
        file = FileInFlight(job, pictures, source, digest, held)
        file.seconds["decode"] = time.perf_counter() - started - waited
        if self.is_measuring:
            started = time.perf_counter()
            try:
                file.noises = tuple(assess(page, is_probing=self.is_probing) for page in pictures)
            except Exception as error:
                file.note_no_estimate(error)
            file.seconds["measure"] = time.perf_counter() - started
        self.listener.on_read(file)
        return True


class _Closed(BaseException):
    """The budget was closed while a reader waited for it; no `Exception`, which reading catches."""


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
                    job.output,
                    unfinished,
                    job.canonical_path,
                    file.source,
                    file.source_sha256,
                    self.run,
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
            self.threads, thread_name_prefix="writer", initializer=use_single_torch_thread
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
        if (
            self._takes_turns
            and len(self._buckets)
            and not write_backlog_full(self._made, self.threads)
        ):
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
