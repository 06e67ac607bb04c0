"""SIGINT and SIGTERM: the first asks a run to stop, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stop:
    """Whether a run shall end early; set from a signal handler.

    Attributes:
        signal: the signal that asked for it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, signal: int) -> None:
        """End as soon as what is in flight is finished."""
        self.signal = signal

    def __bool__(self) -> bool:
        return self.signal is not None


class Stoppable(Protocol):
    """What can be asked to stop."""

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

    Outside the main thread, where no handler can be set, nothing changes.
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
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
