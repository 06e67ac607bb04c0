"""Communication between a run and its caller: `Progress` out, `Stop` in.

A batch, a training run, several devices and a Ray cluster report through the same `Progress`;
`--log`, the progress bars and the Python interface each subclass it. Every call is made in the
thread that called the run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, Protocol, TypeVar

READER = "reader"  # name of the threads that read files, and may outlive a run that is cut short
StartT_contra = TypeVar("StartT_contra", contravariant=True)
ResultT_contra = TypeVar("ResultT_contra", contravariant=True)


class Progress(Generic[StartT_contra, ResultT_contra]):
    """Receives what a run reports; override what you want to see."""

    def on_start(self, start: StartT_contra) -> None:
        """Called once, when it is known what the run is going to do."""

    def on_step(self, name: str, done: int, total: int) -> None:
        """Called as the network goes through an image, or after each training step.

        Args:
            name: of the image; "" for training steps.
            done: pixels of all pages, or steps, so far.
            total: pixels, or steps, in all, as far as is known.
        """

    def on_result(self, result: ResultT_contra) -> None:
        """Called for each image once it is finished, failed or skipped; for each validation."""


class Stop:
    """Whether a run shall end early; set from a signal handler.

    Attributes:
        signal: the signal that asked for it.
        is_at_once: whether it shall not even finish what is in flight, but for files that are being
            written.
    """

    is_at_once = False

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, signal: int) -> None:
        """End as soon as what is in flight is finished."""
        self.signal = signal

    def __bool__(self) -> bool:
        return self.signal is not None


class Stoppable(Protocol):
    """Anything that can be asked to stop."""

    def set(self, signal: int) -> None:
        """End as soon as what is in flight is finished."""


class Interrupted(KeyboardInterrupt):
    """A run ends at once.

    Attributes:
        signal: that ordered it.
    """

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


@contextmanager
def stopping(stop: Stoppable) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM asks `stop`; the second also raises Interrupted.

    A signal that the caller had ignored (`nohup`, a shell's `&`) stays ignored. Outside the main
    thread, where no handler can be set, nothing changes.
    """
    is_asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        stop.set(number)
        if is_asked:
            raise Interrupted(number)
        is_asked = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
