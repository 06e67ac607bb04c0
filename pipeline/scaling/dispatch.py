"""Jobs → workers → results, with back-pressure; a lost worker's jobs go to another.

Each worker has a thread here that sends it one chunk at a time and takes its results as they come,
so nothing piles up. Chunks shrink towards the end, so that all workers finish together. Jobs that a
lost worker had not reported are sent out again, in smaller chunks each time, so a file that crashes
its worker can be isolated and reported.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence

from denoise_batch.kernels.errors import DenoiseBatchError, DeviceError

from ..files.scan import Job
from ..streaming.result import Result

MOST_IN_CHUNK = 256
TRIES = 3
_RETRY_CHUNK = {1: 8, 2: 1}  # by the number of times the job has lost its worker
_LAST_WORDS_S = 30.0  # for a worker to report the end of its chunk
_STARTS = 5  # of a worker in a row without a result
PATIENCE_S = 600.0  # without any worker


class WorkerLostError(Exception):
    """A worker died, or cannot be reached."""


class Worker(ABC):
    """A process on some device; called by one thread, except `stop` and `close`.

    Attributes:
        name: for messages; unique.
        kernels: what computed on it so far, in words; "" before its first chunk's end.
    """

    name: str
    kernels: str = ""

    @abstractmethod
    def start(self, is_over: Callable[[], bool]) -> bool:
        """Start the worker unless it is up; False if `is_over` became true first.

        Raises:
            WorkerLostError: it started and was lost; another try may succeed.
            DenoiseBatchError: it can never work: weights, device or storage.
        """

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield the jobs' results as they come; after `stop`, perhaps not all.

        Raises:
            WorkerLostError: it was lost before the last result.
            DeviceError: the device failed, which counts as a loss.
        """

    @abstractmethod
    def stop(self) -> None:
        """Begin no further file; files in flight are finished and reported."""

    @abstractmethod
    def close(self) -> None:
        """Kill the worker; it may be started again."""


class Dispatch:
    """One run of jobs on workers.

    Args:
        workers: started when there is something to do, and kept for the next run.
        patience_s: time to wait while there is no worker.
    """

    def __init__(self, workers: Sequence[Worker], patience_s: float = PATIENCE_S) -> None:
        self._workers = workers
        self._patience_s = patience_s
        self._jobs: deque[Job] = deque()
        self._retries: deque[Job] = deque()
        self._losses: Counter[Job] = Counter()
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Result | DenoiseBatchError] = queue.SimpleQueue()
        self._out = 0  # jobs that workers hold
        self._running = 0  # workers that are up
        self._is_stopping = False
        self._is_over = False
        self._last_loss = ""
        self._starts: dict[str, int] = {}  # of each worker, since its last result

    def run(
        self, jobs: Sequence[Job], is_stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Result, None, None]:
        """Have the workers do all jobs; yield each result as soon as it is there.

        Args:
            jobs: distinct.
            is_stopped: once true, what is in flight is finished and nothing else is begun.

        Raises:
            DeviceError: there was no worker for `patience_s`, or all were lost repeatedly.
            DenoiseBatchError: an error that no worker can recover from.
        """
        self._jobs.extend(jobs)
        open_jobs = len(self._jobs)
        threads = [
            threading.Thread(target=self._serve, args=(worker,), name=worker.name, daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        alone_since = time.monotonic()
        try:
            while open_jobs:
                if is_stopped() and not self._is_stopping:
                    self._stop()
                if self._is_stopping and self._out_now() == 0 and self._inbox.empty():
                    return
                try:
                    message = self._inbox.get(timeout=0.1)
                except queue.Empty:
                    if self._running:
                        alone_since = time.monotonic()
                    self._check_patience(alone_since, threads)
                    continue
                if isinstance(message, DenoiseBatchError):
                    raise message
                open_jobs -= 1
                yield message
        except BaseException:
            self._is_over = True  # before they are closed, so that none is started again
            for worker in self._workers:
                worker.close()
            raise
        finally:
            self._is_over = True
            for worker, thread in zip(self._workers, threads, strict=True):
                thread.join(_LAST_WORDS_S)
                if thread.is_alive():
                    worker.close()
                    thread.join()

    def _check_patience(self, alone_since: float, threads: Sequence[threading.Thread]) -> None:
        why = f" ({self._last_loss})" if self._last_loss else ""
        if not any(thread.is_alive() for thread in threads) and self._inbox.empty():
            raise DeviceError(f"all workers get lost again and again{why}; finished files are kept")
        if time.monotonic() - alone_since > self._patience_s:
            raise DeviceError(
                f"there was no worker for {self._patience_s:.0f} s{why}; finished files are kept"
            )

    def _stop(self) -> None:
        self._is_stopping = True
        for worker in self._workers:
            worker.stop()

    def _out_now(self) -> int:
        with self._lock:
            return self._out

    def _serve(self, worker: Worker) -> None:
        """Start a worker, feed it, and start it again when it is lost."""
        self._starts[worker.name] = 0
        try:
            while not self._is_over and self._starts[worker.name] < _STARTS:
                self._starts[worker.name] += 1
                try:
                    if not worker.start(lambda: self._is_over):
                        return
                    self._change_running(1)
                    try:
                        self._feed(worker)
                    finally:
                        self._change_running(-1)
                except WorkerLostError as error:
                    self._last_loss = f"{worker.name}: {error}"
                    worker.close()
                    time.sleep(0.1)
        except DenoiseBatchError as error:
            self._inbox.put(error)
        except Exception as error:
            self._inbox.put(DeviceError(f"{worker.name}: {type(error).__name__}: {error}"))

    def _feed(self, worker: Worker) -> None:
        while not self._is_over:
            chunk = self._take()
            if not chunk:
                time.sleep(0.05)  # another worker may still be lost
                continue
            left = dict.fromkeys(chunk)
            try:
                for result in worker.run(chunk):
                    del left[result.job]
                    self._starts[worker.name] = 0
                    self._report(result)
            except (WorkerLostError, DeviceError) as error:
                # A failed device counts as a loss: a fresh process may find it working.
                self._give_back(worker, left, str(error))
                raise WorkerLostError(str(error)) from error
            with self._lock:
                self._out -= len(left)  # of a run that was stopped

    def _take(self) -> list[Job]:
        with self._lock:
            if self._is_stopping:
                return []
            if self._retries:
                # A chunk holds jobs with the same number of losses: after two a job goes alone.
                losses, waiting = self._losses[self._retries[0]], self._retries
                alike = sum(self._losses[job] == losses for job in waiting)
                size = min(_RETRY_CHUNK[losses], alike)
            else:
                waiting = self._jobs
                size = min(MOST_IN_CHUNK, -(-len(waiting) // (2 * len(self._workers))))
            chunk = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            self._out += len(chunk)
            return chunk

    def _report(self, result: Result) -> None:
        # Reported before it counts as ended, so that the run never seems over too early.
        self._inbox.put(result)
        with self._lock:
            self._out -= 1

    def _give_back(self, worker: Worker, left: dict[Job, None], reason: str) -> None:
        for job in left:
            with self._lock:
                self._losses[job] += 1
                if self._losses[job] < TRIES:
                    self._retries.append(job)
                    self._out -= 1
                    continue
            self._starts[worker.name] = 0  # the file is to blame
            where = f"{worker.name}: {reason}"
            text = f"{job.source}: took its worker down {TRIES} times ({where}); is it too large?"
            self._report(Result(job, "failed", text))
        with self._lock:
            self._retries = deque(sorted(self._retries, key=lambda job: self._losses[job]))

    def _change_running(self, change: int) -> None:
        with self._lock:
            self._running += change
