"""Copies of the test's process, to be killed."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def forked(run: Callable[[], int]) -> int:
    """The process id of a copy of this process that does `run`, silently."""
    child = os.fork()
    if child == 0:
        try:
            with Path(os.devnull).open("w") as sink:
                sys.stdout = sys.stderr = sink
                os._exit(run())
        finally:
            os._exit(70)
    return child


def is_over(child: int) -> bool:
    """Whether a child has ended; its exit status is gone then."""
    return os.waitpid(child, os.WNOHANG) != (0, 0)


def kill(child: int) -> None:
    """Kill a child with SIGKILL, unless it is over."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
