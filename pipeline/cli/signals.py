"""SIGINT and SIGTERM as a wish to stop, and as an order when repeated."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """What can be asked to stop."""

    def set(self, signal: int) -> None:
        """End as soon as what is in flight is finished."""


@contextmanager
def stopping(stop: Stoppable) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM asks `stop`; the second raises KeyboardInterrupt.

    Outside the main thread, where no handler can be set, nothing changes.
    """
    is_asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        stop.set(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
