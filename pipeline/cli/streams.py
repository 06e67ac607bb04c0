"""The process's standard streams: always there, and never the end of the work."""

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class LogStream:
    """Standard output or error; once it fails (a full disk, a closed pipe) it is silent.

    Args:
        stream: what is written to.
        name: of the stream, for the user.
        tell: called once, with the reason, when the stream fails.

    Attributes:
        error: why it failed; None while it works.
    """

    def __init__(self, stream: TextIO, name: str, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.error: OSError | None = None
        self._stream = stream
        self._name = name
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        if not isinstance(text, str):  # click asks so whether a stream takes bytes
            raise TypeError(f"text expected, not {type(text).__name__}")
        if self.error is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        with self._lock:
            is_first, self.error = self.error is None, error
        if is_first:
            with suppress(OSError):  # what is buffered, and what C libraries write, goes nowhere
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            self.tell(f"{self._name} cannot be written ({error.strerror}); going on without it")


@contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, no fault of standard output or error ends the work; the other one tells of it."""
    _open_missing()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            # A file's name need not be valid text, nor fit the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")

    def tell(stream: TextIO) -> Callable[[str], None]:
        return lambda reason: print(f"warning: {reason}", file=stream, flush=True)

    out = LogStream(sys.stdout, "standard output", lambda reason: tell(sys.stderr)(reason))
    err = LogStream(sys.stderr, "standard error", tell(cast(TextIO, out)))
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def lost_output() -> bool:
    """Whether standard output failed; a reader that has seen enough (a closed pipe) is no fault."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    return error is not None and not isinstance(error, BrokenPipeError)


def _open_missing() -> None:
    """Open the null device as whichever of the descriptors 0 to 2 the caller closed.

    The next files to be opened would get these numbers, and what C libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
