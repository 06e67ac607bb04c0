"""Decode → transfer → compute → encode, all at the same time, for any number of files.

    reader threads:  job → budget → pages, their noise          (Pillow; one torch thread each)
    this thread:     pages → batches → network → downloads      (`BatchDenoiser`)
    writer threads:  downloads → file, whole or not at all      (Pillow; one torch thread each)

What is in flight is bounded by the bytes that it takes, not by counts: a file takes its part of
the budget before it is decoded and gives it back once it is written. This thread never waits while
pages do: a batch that is not full goes as it is. Readers and writers report to it through one
queue.
"""

import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import torch

from denoise_batch.kernels import ImageError, OptionError
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.errors import StorageError

from ..device import (
    Download,
    available_host_bytes,
    compute_bytes,
    cores,
    device_failures,
    free_host_bytes,
    in_flight_bytes,
    precision_on,
    resolve_device,
    torch_dtype,
)
from ..files.footprint import Footprint
from ..files.images import output_format
from ..files.metadata import Metadata, StorageFormat
from ..files.pixels import DecodedImage, PagesOnDisk
from ..files.ranges import BITS_8
from ..files.scan import Job
from ..files.scratch import Lazy, Scratch
from ..models import Weights, find_weights, load_weights
from ..options import DenoiseOptions
from ..process import return_large_blocks
from ..progress import READER, Progress, Stop
from .denoiser import BatchDenoiser
from .large import LARGE, is_large, scratch_for
from .manifest import FOLDER, Manifest, Storage
from .result import Plan, Result
from .steps import FileInFlight, Writer, decode_file

# Maximum pixels of an automatic batch: enough to fill a device. On a processor more would make
# nothing faster and take more memory than one ordinary photograph.
BATCH_PIXELS_ON_CPU = 1 << 20
BATCH_PIXELS = 1 << 24


class Engine(ABC):
    """Denoises jobs.

    Attributes:
        device: where networks run, for the user.
        precision: of their convolutions: fp32, bf16 or fp16.
        weights_file: of the network.
        digests: of weights and options, for manifests.
    """

    device: str
    precision: str
    weights_file: Path
    digests: tuple[str, str]

    @property
    def kernels(self) -> str:
        """What computes, in words."""
        return "chosen by each worker"

    def megapixels_per_second(self) -> float | None:
        """Speed of the network alone, measured for a moment; None where that tells little."""
        return None

    @abstractmethod
    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Denoise the jobs' files, record and yield each; one bad file never stops the rest.

        `progress` receives steps only: the caller reports the results.

        Raises:
            DeviceError: the device failed.
        """

    def close(self) -> None:
        """Release what is held between runs; by default nothing."""
        return


class LocalEngine(Engine):
    """This process, on one device.

    Args:
        options: of the run.
        storage: where its files come from and go to.

    Attributes:
        denoiser: the loaded network with the run's settings.

    Raises:
        OptionError: the device does not compute in the precision.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage) -> None:
        self._options = options
        self._storage = storage
        self._device = resolve_device(options.device)
        self.device = str(self._device)
        self.precision = precision_on(options.precision, self._device)
        self.weights_file, weights = weights_for(options)
        self.digests = (weights.sha256, options.digest(self.precision))
        self._software = (
            f"denoise-batch {version('denoise-batch')}, weights {self.weights_file.stem} "
            f"(sha256 {weights.sha256[:12]})"
        )
        with device_failures(self._device):
            network = weights.network.to(self._device)
            memory = compute_bytes(self._device)
        self.denoiser = BatchDenoiser(
            network,
            self._device,
            memory=memory,
            precision=torch_dtype(self.precision),
            strength=options.strength,
            level=options.level,
            level_factor=options.level_factor,
            tta=options.tta,
            tile_px=options.tile_px,
            cuda_graphs=options.cuda_graphs,
            probe=options.measure and options.reference is None,
        )

    @property
    def kernels(self) -> str:
        """What computes on the device, in words."""
        return ops_for(self._device).in_words

    def megapixels_per_second(self) -> float | None:
        """Denoise noise, twice: the first pass is slower.

        Raises:
            DeviceError: the device failed.
        """
        if self._options.strength == 0:
            return None
        shape = _MEASURED_PX, _MEASURED_PX, 3
        generator = torch.Generator().manual_seed(0)
        samples = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        stored = StorageFormat("PNG", "RGB")
        page = DecodedImage(samples, None, BITS_8, stored, Metadata())
        seconds = 0.0
        with device_failures(self._device):
            for _ in range(2):
                started = time.perf_counter()
                for output in self.denoiser.denoise([page], probe=False):
                    if isinstance(output, ImageError):
                        return None
                    output.wait()
                seconds = time.perf_counter() - started
        return _MEASURED_PX**2 / 1e6 / seconds

    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Stream the jobs through the network."""
        options, storage = self._options, self._storage
        writer = Writer(
            manifests,
            self.digests,
            options.quality,
            options.reference,
            storage.upload,
            options.times,
            self._software if options.provenance else None,
            options.png_level,
            None if options.level is not None else options.level_factor,
            options.strength,
        )
        is_cpu = self._device.type == "cpu"
        if is_cpu:  # beside a GPU the host's speed counts, and it has room
            return_large_blocks()
        with device_failures(self._device, "finished files are kept"):
            yield from stream(
                jobs,
                self.denoiser,
                writer,
                budget=Budget(in_flight_bytes(self._device)),
                batch_size=options.batch_size,
                batch_pixels=BATCH_PIXELS_ON_CPU if is_cpu else BATCH_PIXELS,
                progress=progress,
                stop=stop,
                fetch=storage.fetch,
                threads=options.workers,
                measure=options.measure,
                value_range=options.value_range,
            )


def with_stored_range(options: DenoiseOptions) -> DenoiseOptions:
    """Return the options with the file and range of their weights, unless they give a range.

    Raises:
        WeightsError: the weights cannot be used.
    """
    if options.value_range is not None:
        return options
    file = find_weights(options.weights)
    return replace(options, weights=str(file), value_range=load_weights(file).value_range)


def weights_for(options: DenoiseOptions) -> tuple[Path, Weights]:
    """Load the weights of a run; return their file too.

    Raises:
        WeightsError: they cannot be used.
        OptionError: the run says a noise level that they take no notice of, or says none and they
            cannot estimate it.
    """
    file = find_weights(options.weights)
    weights = load_weights(file)
    network = weights.network
    if not network.spec.takes_level and options.noise_level != "auto":
        raise OptionError(
            f"--noise-level {options.noise_level}: has no effect on {file.stem}, whose network "
            f"({network.architecture}) is not told how much noise there is; leave it out, or take "
            "other weights"
        )
    if network.spec.takes_level and network.estimator is None and options.level is None:
        raise OptionError(
            f"{file.stem} cannot estimate how much noise there is; say it (--noise-level 10), or "
            "train its estimator (denoise-train --estimator)"
        )
    return file, weights


_MEASURED_PX = 512  # a side
_MOMENT_S = 0.1
MOST_IMAGES = 64  # in an automatic batch
_BATCHES_IN_FLIGHT = 3  # on a device that computes while the host goes on
_MOST_FILES = 256  # in flight, however small: a run that is told to stop finishes them
# Per file in flight: its samples, those of the output, and a copy in Pillow during decoding or
# encoding. On a GPU those of the output wait for a writer in pinned blocks, an eighth larger.
_COPIES = 3
_BACKLOG_FILES, _BACKLOG_PIXELS = 6, 1 << 24  # per writer, or in all: seconds of the network

Item = TypeVar("Item")


def stream(
    jobs: Sequence[Job],
    denoiser: BatchDenoiser,
    writer: Writer,
    *,
    budget: "Budget",
    batch_size: int | None = None,
    batch_pixels: int = 1 << 20,
    progress: Progress[Plan, Result] | None = None,
    stop: Stop | None = None,
    threads: int | None = None,
    fetch: Callable[[Path], None] = lambda source: None,
    measure: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Iterator[Result]:
    """Denoise every job's file and yield its result; a failing one never stops the rest.

    Close the generator to end early: files that are being written are finished, but not told.

    Args:
        jobs: what to do; the order of results may differ.
        denoiser: turns pages into outputs.
        writer: turns outputs into files.
        budget: bytes that files in flight may take.
        batch_size: maximum pages per batch; None chooses by size and memory.
        batch_pixels: maximum pixels of an automatic batch.
        progress: receives how far each image is.
        stop: once set, what is in flight is finished and no other file is begun; at once, what is
            being written.
        threads: number of reader threads, and of writer threads; None chooses by the cores.
        fetch: called with each source before it is read.
        measure: estimate every input's noise, and skip the network's second pass where its error
            could not be estimated anyway.
        value_range: black and white of samples above 8 bits; None: as each file says or shows.
    """
    run = _Stream(denoiser, writer, budget, batch_size, batch_pixels)
    run.progress = progress or run.progress
    run.stop = run.stop if stop is None else stop  # a Stop that is not set is false
    run.fetch, run.measure, run.value_range = fetch, measure, value_range
    return run.results(jobs, threads or worker_threads(denoiser))


@dataclass(frozen=True)
class _Page:
    """One page of a file on its way to the network."""

    file: FileInFlight
    number: int
    is_float32: bool = False

    @property
    def image(self) -> DecodedImage:
        return self.file.images[self.number]

    @property
    def outline(self) -> DecodedImage:
        return self.file.outlines[self.number]


# What readers and writers report; any exception is reported as itself.
@dataclass(frozen=True)
class _Decoded:
    file: FileInFlight


@dataclass(frozen=True)
class _Unreadable:
    job: Job
    reason: str
    held: int
    seconds: float
    is_storage_fault: bool


@dataclass(frozen=True)
class _ReaderEnded:
    pass


@dataclass(frozen=True)
class _Written:
    file: FileInFlight
    result: Result


@dataclass(frozen=True)
class _NotFinite:
    file: FileInFlight
    pages: list[int]


_Message = _Decoded | _Unreadable | _ReaderEnded | _Written | _NotFinite | BaseException


class _Stream:
    def __init__(
        self,
        denoiser: BatchDenoiser,
        writer: Writer,
        budget: "Budget",
        batch_size: int | None,
        batch_pixels: int,
    ) -> None:
        self.denoiser = denoiser
        self.writer = writer
        self.budget = budget
        self.batch_size = batch_size
        self.batch_pixels = batch_pixels
        self.progress: Progress[Plan, Result] = Progress()
        self.stop = Stop()
        self.fetch: Callable[[Path], None] = lambda source: None
        self.measure = False
        self.value_range: tuple[float, float] | None = None
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._results: deque[Result] = deque()
        self._batches: Batches[_Page] = Batches()
        self._in_flight: set[FileInFlight] = set()  # decoded, and no result yet
        self._finished: list[FileInFlight] = []  # by the network, waiting for the writers
        self._writing = 0
        self._on_device: deque[tuple[Download, list[_Page]]] = deque()
        self._is_stopping = False
        self._jobs_lock = threading.Lock()
        self._free: tuple[float, int | None] = -math.inf, None  # when, and what was said then

    def results(self, jobs: Sequence[Job], threads: int) -> Iterator[Result]:
        self._jobs = iter(jobs)
        self._readers = threads
        takes_turns = _takes_turns(self.denoiser)
        torch_threads = torch.get_num_threads()
        for _ in range(threads):
            threading.Thread(target=self._read_all, name=READER, daemon=True).start()
        writers = ThreadPoolExecutor(
            threads, thread_name_prefix="writer", initializer=_use_single_torch_thread
        )
        try:
            while (self._readers or self._in_flight) and not self.stop.is_at_once:
                self._receive()
                if self.stop and not self._is_stopping:
                    self._give_up_waiting()
                self._compute_batch()
                if not takes_turns or not len(self._batches) or self._backlog_is_full(threads):
                    self._submit(writers)
                    yield from self._drain()
                    while takes_turns and self._writing and not self.stop.is_at_once:
                        self._handle(self._inbox.get())
                        yield from self._drain()
                yield from self._drain()
            if self.stop.is_at_once:
                self._end_at_once(writers)
                yield from self._drain()
        finally:
            self._stop_reading()
            writers.shutdown(cancel_futures=True)
            torch.set_num_threads(torch_threads)  # new threads begin with this number

    # In the caller's thread

    def _receive(self) -> None:
        """Handle what readers and writers report; wait only if there is nothing to compute."""
        try:
            self._handle(self._inbox.get(block=not len(self._batches)))
            while True:
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _handle(self, message: _Message) -> None:
        match message:
            case _Decoded(file):
                self._in_flight.add(file)
                if self._is_stopping:
                    self._finish(file, None)
                else:
                    for number in range(len(file.images)):
                        self._add(_Page(file, number))
            case _Unreadable(job, reason, held, seconds, is_storage_fault):
                self.budget.release(held)
                spent = {"decode": seconds}
                self._results.append(
                    Result(job, "failed", reason, seconds=spent, is_storage_fault=is_storage_fault)
                )
            case _ReaderEnded():
                self._readers -= 1
            case _Written(file, result):
                self._writing -= 1
                self._finish(file, result)
            case _NotFinite(file, pages):
                self._writing -= 1
                file.is_retried = True
                for number in pages:
                    del file.outputs[number]
                    page = _Page(file, number, is_float32=True)
                    file.pixels_done -= math.prod(page.outline.size)
                    self._add(page)
            case BaseException():
                raise message

    def _add(self, page: _Page) -> None:
        """Let a page wait for others of its kind; a tiled one goes alone."""
        image, denoiser = page.outline, self.denoiser
        height, width = denoiser.padded_shape(image)
        if denoiser.is_tiled(image):
            self._batches.add(page, page, 1)
            return
        most = min(self.batch_pixels, denoiser.most_pixels)
        size = self.batch_size or max(1, min(MOST_IMAGES, most // (height * width)))
        samples = image.samples
        kind = (
            height, width, samples.shape[2], samples.dtype, page.is_float32, page.file.wants_probe
        )  # fmt: skip
        self._batches.add(kind, page, size)

    # What these two hold goes when they return: `results` would keep it while it waits.

    def _submit(self, writers: ThreadPoolExecutor) -> None:
        for file in self._finished:
            self._writing += 1
            writers.submit(self._write, file)
        self._finished.clear()

    def _compute_batch(self) -> None:
        """Compute a full batch, or the oldest pages rather than leave the network idle."""
        batch = self._batches.full() or self._batches.oldest()
        if not batch:
            return
        first = batch[0].file
        is_of_one = all(page.file is first for page in batch)
        done = first.pixels_done

        def tell(pixels: int) -> None:
            if is_of_one:  # the others' images are small
                self._tell(first, done + pixels)

        try:
            images = [page.image for page in batch]
        except ImageError as error:  # of pages on disk, whose file goes alone
            for file in {page.file for page in batch}:
                self._fail(file, error)
            return
        outputs = self.denoiser.denoise(
            images,
            is_float32=batch[0].is_float32,
            probe=batch[0].file.wants_probe,
            on_pixels=tell,
        )
        last: Download | None = None
        for page, output in zip(batch, outputs, strict=True):
            file = page.file
            if file not in self._in_flight:  # another of its pages failed
                continue
            if isinstance(output, ImageError):
                self._finish(file, file.failed(f"{file.job.source}: {output}"))
                continue
            file.outputs[page.number] = output
            file.pixels_done += math.prod(page.outline.size)
            if not is_of_one:
                self._tell(file, file.pixels_done)
            if len(file.outputs) == len(file.images):
                self._finished.append(file)
            last = output.download
        if last is not None:
            # Wait for an older batch, so that the device's queue stays short and never empty.
            self._on_device.append((last, [page for page in batch if page.file.is_on_disk]))
            if len(self._on_device) > self._most_batches - 1:
                download, pages = self._on_device.popleft()
                download.arrive()
                self._put_away(pages)

    @property
    def _most_batches(self) -> int:
        """Number of batches whose outputs are in memory, of pages on disk too."""
        return 1 + _BATCHES_IN_FLIGHT if self.denoiser.is_asynchronous else 1

    def _put_away(self, pages: Sequence[_Page]) -> None:
        """Move outputs to the disk where their pages are; the last ones may wait for the writer."""
        for page in pages:
            file = page.file
            if file in self._in_flight and len(file.outputs) < len(file.images):
                try:
                    file.put_away(page.number)
                except ImageError as error:
                    self._fail(file, error)

    def _fail(self, file: FileInFlight, error: ImageError) -> None:
        """Give a file up for what its scratch file does."""
        if file in self._in_flight:
            reason, is_fault = f"{file.job.source}: {error}", isinstance(error, StorageError)
            self._finish(file, file.failed(reason, is_storage_fault=is_fault))

    def _tell(self, file: FileInFlight, pixels: int) -> None:
        self.progress.on_step(file.job.name, pixels, file.pixels)

    def _backlog_is_full(self, threads: int) -> bool:
        """Whether there is enough to write to keep all writers busy: many files, or large ones."""
        pixels = sum(file.pixels for file in self._finished)
        files = threads if pixels >= _BACKLOG_PIXELS else threads * _BACKLOG_FILES
        return len(self._finished) >= files

    def _finish(self, file: FileInFlight, result: Result | None) -> None:
        """Give a file's bytes back and report its result; None: it was given up."""
        self._in_flight.discard(file)
        for _, pages in self._on_device:
            pages[:] = [page for page in pages if page.file is not file]
        if len(file.outputs) < len(file.images):
            self._batches.drop(lambda page: page.file is file)
        if isinstance(file.images, PagesOnDisk):
            file.images.scratch.close()  # whose room the next file may need
        self.budget.release(file.held)
        if result is not None:
            self._results.append(result)

    def _drain(self) -> Iterator[Result]:
        while self._results:
            result = self._results.popleft()
            # At the end what fails too is left, as if not begun.
            if result.status == "done" or not self.stop.is_at_once:
                yield result

    def _give_up_waiting(self) -> None:
        """Begin nothing new: give up what waits for the network, write what it has finished."""
        self._stop_reading()
        for file in {page.file for page in self._batches.clear()}:
            self._finish(file, None)

    def _end_at_once(self, writers: ThreadPoolExecutor) -> None:
        """Finish only what is being written."""
        self._stop_reading()
        writers.shutdown(cancel_futures=True)
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Written | BaseException):
                self._handle(message)

    def _stop_reading(self) -> None:
        self._is_stopping = True
        self.budget.close()

    # In reader threads

    def _read_all(self) -> None:
        _use_single_torch_thread()
        try:
            while not self._is_stopping:
                with self._jobs_lock:
                    job = next(self._jobs, None)
                if job is None or not self._read(job):
                    break
        except BaseException as error:
            self._inbox.put(error)
        self._inbox.put(_ReaderEnded())

    def _read(self, job: Job) -> bool:
        """Decode one file; False if the run ended meanwhile."""
        held, waited = 0, 0.0
        scratch: Scratch | None = None
        started = time.perf_counter()

        def reserve(footprint: Footprint) -> Scratch | None:
            nonlocal held, waited, scratch
            wanted = max(self.budget.limit // _MOST_FILES, footprint.sample_bytes * _COPIES)
            coding, need = self._needs(footprint, job)
            free = self._free_bytes()
            left = available_host_bytes() if free is None else free
            is_on_disk = is_large(footprint, coding, need, left)
            if is_on_disk:
                coding, need = self._needs_on_disk(footprint, job)
                wanted = coding
            is_much = free is not None and (coding > free // LARGE or need > free)
            goes_alone = is_on_disk or is_much
            wanted = max(wanted, self.budget.limit + 1) if goes_alone else wanted
            before = time.perf_counter()
            if not self.budget.acquire(wanted):
                raise _Ended
            held, waited = wanted, time.perf_counter() - before
            if goes_alone:
                _refuse_beyond(free_host_bytes(), need, footprint, is_on_disk=is_on_disk)
            if not is_on_disk:
                return None
            disk = footprint.disk_bytes + job.source.stat().st_size  # the output is about as large
            scratch = scratch_for(job.root / FOLDER, footprint, disk)
            scratch.on_use = self._end_if_stopped  # reading alone may take minutes
            return scratch

        try:
            self.fetch(job.source)
            file = decode_file(job, reserve, self.value_range)
            file.held = held
            file.seconds["decode"] = time.perf_counter() - started - waited
            if self.measure:
                file.assess(probe=self.denoiser.probe)
            if scratch is not None:
                scratch.on_use = lambda: None
        except _Ended:
            return False
        except ImageError as error:
            seconds = time.perf_counter() - started - waited
            is_storage_fault = isinstance(error, StorageError)
            if scratch is not None:
                scratch.close()
            self._inbox.put(_Unreadable(job, str(error), held, seconds, is_storage_fault))
            return True
        self._inbox.put(_Decoded(file))
        return True

    def _free_bytes(self) -> int | None:
        """Memory that was free a moment ago; asking for every file would take a millisecond each.

        A file that needs much of it waits until it is alone, and is judged by what is free then.
        """
        asked, free = self._free
        if time.monotonic() - asked > _MOMENT_S:
            free = free_host_bytes()
            self._free = time.monotonic(), free
        return free

    def _end_if_stopped(self) -> None:
        if self._is_stopping or self.stop:
            raise _Ended

    def _needs(self, footprint: Footprint, job: Job) -> tuple[int, int]:
        """About the most memory that a file takes at once: without the network, and with it."""
        samples = footprint.sample_bytes
        coding = footprint.peak_bytes(output_format(job.output))
        if self.writer.reference is not None:  # the clean image and the output are read as well
            coding = max(coding, 5 * samples)
        largest = max((page.pixels for page in footprint.pages), default=0)
        return coding, max(coding, 2 * samples + self.denoiser.host_bytes(largest))

    def _needs_on_disk(self, footprint: Footprint, job: Job) -> tuple[int, int]:
        """The same with the pages on disk, of which a batch is in memory."""
        largest = max(page.pixels for page in footprint.pages)
        sample_bytes = max(page.total_bytes // max(1, page.pixels) for page in footprint.pages)
        wanted = self.batch_size * largest if self.batch_size else self.batch_pixels
        pixels = max(largest, min(footprint.pixels, wanted))
        coding = footprint.peak_bytes_on_disk(output_format(job.output))
        if self.writer.reference is not None:
            coding += 3 * largest * sample_bytes
        batches = (1 + 2 * self._most_batches) * pixels * sample_bytes  # and their outputs
        return coding, max(coding, batches + self.denoiser.host_bytes(pixels))

    # In writer threads

    def _write(self, file: FileInFlight) -> None:
        try:
            outputs = [file.outputs[number] for number in range(len(file.images))]
            are_finite, spent = zip(*(output.outcome() for output in outputs), strict=True)
            not_finite = [number for number, is_finite in enumerate(are_finite) if not is_finite]
            if not_finite and not file.is_retried and self.denoiser.precision is not None:
                # The other pages' outputs are kept, and counted when the file is written.
                file.add_seconds(spent[number] for number in not_finite)
                self._inbox.put(_NotFinite(file, not_finite))
                return
            file.add_seconds(spent)
            if not_finite:
                result = file.failed(f"{file.job.source}: the network's output is not finite")
            else:
                file.levels = tuple(
                    float(output.level) for output in outputs if output.level is not None
                )
                result = self.writer.write(
                    file,
                    Lazy(lambda output: output.samples(), outputs),
                    Lazy(lambda output: output.probe, outputs),
                )
            self._inbox.put(_Written(file, result))
        except BaseException as error:
            self._inbox.put(error)


def _refuse_beyond(free: int | None, need: int, footprint: Footprint, *, is_on_disk: bool) -> None:
    """Refuse a file, before it is decoded, for which the system would end the whole run.

    Raises:
        ImageError: it needs more memory than is free.
    """
    if free is None or need <= free:
        return
    pages = f"{len(footprint.pages)} pages, " if len(footprint.pages) > 1 else ""
    is_of_all = pages and not is_on_disk
    split = "split it into files of fewer pages" if is_of_all else "split it into smaller images"
    raise ImageError(
        f"needs about {need / 1e9:.2g} GB of memory ({pages}{footprint.pixels / 1e6:.0f} "
        f"megapixels), {free / 1e9:.2g} GB are free within this process's limits; {split}, or give "
        "it more"
    )


class _Ended(BaseException):
    """The run ended while a file was read; not an `Exception`, which reading catches."""


class Batches(Generic[Item]):
    """Items that wait to share a batch, by key; the key that has waited longest comes first."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, tuple[int, list[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for _, items in self._waiting.values())

    def add(self, key: Hashable, item: Item, batch_size: int) -> None:
        """Let an item wait under its key; `batch_size` items make a full batch."""
        _, items = self._waiting.get(key, (0, []))
        items.append(item)
        self._waiting[key] = (batch_size, items)

    def full(self) -> list[Item] | None:
        """Remove and return a full batch, if there is one."""
        for key, (batch_size, items) in self._waiting.items():
            if len(items) >= batch_size:
                return self._take(key, batch_size)
        return None

    def oldest(self) -> list[Item] | None:
        """Remove and return what waits under the oldest key, full or not; None if empty."""
        for key, (batch_size, _) in self._waiting.items():
            return self._take(key, batch_size)
        return None

    def drop(self, is_dropped: Callable[[Item], bool]) -> None:
        """Remove items."""
        for key, (batch_size, items) in list(self._waiting.items()):
            if left := [item for item in items if not is_dropped(item)]:
                self._waiting[key] = (batch_size, left)
            else:
                del self._waiting[key]

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        items = [item for _, waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        return items

    def _take(self, key: Hashable, count: int) -> list[Item]:
        batch_size, items = self._waiting.pop(key)
        if rest := items[count:]:
            self._waiting[key] = (batch_size, rest)
        return items[:count]


class Budget:
    """Bytes that files in flight may take together; first come, first served.

    A file that needs more than the limit waits until it is alone.

    Args:
        limit: bytes.

    Attributes:
        used: bytes taken now.
        most: highest `used` so far.
        waiting: number of callers inside `acquire`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.most = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """Number of callers that wait for room."""
        return len(self._queue)

    def acquire(self, size: int) -> bool:
        """Wait for `size` bytes; False if the budget was closed meanwhile."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._is_closed or self._may_go(ticket, size))
            self._queue.remove(ticket)
            if self._is_closed:
                return False
            self.used += size
            self.most = max(self.most, self.used)
            self._changed.notify_all()
            return True

    def release(self, size: int) -> None:
        """Give bytes back."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may_go(self, ticket: object, size: int) -> bool:
        return self._queue[0] is ticket and (self.used == 0 or self.used + size <= self.limit)


def _takes_turns(denoiser: BatchDenoiser) -> bool:
    """Whether the network computes on every core, so that writers have to wait (ADR 23)."""
    return denoiser.device.type == "cpu" and torch.get_num_threads() >= cores()


def worker_threads(denoiser: BatchDenoiser) -> int:
    """Number of threads that decode, and of threads that encode.

    A GPU waits for the slower of the two: each may have every core while the other waits.
    """
    if denoiser.is_asynchronous:
        return max(2, min(64, cores()))
    return min(16, cores()) if _takes_turns(denoiser) else max(2, min(8, cores() // 2))


def _use_single_torch_thread() -> None:
    """Keep this thread's torch operations in it.

    A team of OpenMP threads per reader and writer, beside the network's, makes more threads than
    cores; libgomp then lets all of them sleep between operations: half the network's speed.
    """
    torch.set_num_threads(1)
