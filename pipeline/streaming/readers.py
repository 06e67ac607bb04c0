"""Threads that decode, as the budget allows, and look at the noise of what they decoded."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from denoise_batch.kernels import ImageError

from ..files.scan import Job
from .in_flight import FileInFlight, read_pages_of
from .memory import Budget
from .quality import assess
from .turns import compute_alone

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
        compute_alone()
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
