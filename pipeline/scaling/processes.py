"""Workers on this machine: one process per device, connected by a pipe."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from denoise_batch.kernels.errors import DenoiseBatchError, DeviceError

from ..files.scan import Job
from ..process import tune_process
from ..progress import Stop
from ..streaming.result import Result
from .dispatch import Worker, WorkerLostError
from .worker_session import WorkerConfig, WorkerSession

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

# A fresh interpreter: a fork would inherit CUDA, locks and threads in an undefined state.
_CONTEXT = multiprocessing.get_context("spawn")


class ProcessWorker(Worker):
    """A worker in a process of its own.

    Args:
        name: for messages.
        config: what the worker is told.
    """

    def __init__(self, name: str, config: WorkerConfig) -> None:
        self.name = name
        self._config = config
        self._stop: Event = _CONTEXT.Event()
        self._process: Any = None
        self._pipe: Connection[Any, Any] | None = None

    def start(self, is_over: Callable[[], bool]) -> bool:
        """Start the process unless it is up; the network is loaded when this returns."""
        if self._process is not None:
            return True
        ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, self._stop, self._config), name=self.name, daemon=True
        )
        self._process.start()
        theirs.close()  # so that its death ends the pipe
        self._pipe = ours
        while not ours.poll(0.1):
            if is_over():
                self.close()
                return False
        self._receive()
        return True

    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Send a chunk, receive its results."""
        assert self._pipe is not None  # it was started
        try:
            self._pipe.send(list(jobs))
        except OSError as error:
            raise WorkerLostError(self._ending()) from error
        while not isinstance(result := self._receive(), str):
            yield result
        self.kernels = result

    def stop(self) -> None:
        """Set the flag that the process checks between files."""
        self._stop.set()

    def close(self) -> None:
        """Kill the process: files in flight are no longer needed, and files are whole or absent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
            process.close()

    def _receive(self) -> Any:
        assert self._pipe is not None  # it was started
        try:
            message = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerLostError(self._ending()) from error
        if isinstance(message, DenoiseBatchError):
            raise message
        return message

    def _ending(self) -> str:
        process = self._process
        if process is None:
            return "it was closed"
        process.join(5)
        code = process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


class SharedStop(Stop):
    """A stop that the run's own process sets; workers ignore signals."""

    def __init__(self, event: "Event") -> None:
        super().__init__()
        self._event = event

    def __bool__(self) -> bool:
        return self._event.is_set()


def _serve(pipe: "Connection[Any, Any]", event: "Event", config: WorkerConfig) -> None:
    """Run a worker process: send None when it is up, then each chunk's results and its kernels."""
    # Ctrl-C and a service's SIGTERM reach all processes; the run's own process decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    tune_process()
    with suppress(EOFError, OSError):  # the run's own process is gone
        try:
            session = WorkerSession(config)
            pipe.send(None)  # it is up
            while True:
                for result in session.run(pipe.recv(), SharedStop(event)):
                    pipe.send(result)
                pipe.send(session.kernels)
        except DenoiseBatchError as error:
            pipe.send(error)
        except (EOFError, OSError):
            raise
        except Exception as error:
            pipe.send(DeviceError(f"{type(error).__name__}: {error}"))
