"""How a command ends: errors as one line on stderr, and the exit code that they stand for."""

import io
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from ..progress import Interrupted


@contextmanager
def exit_codes() -> Iterator[None]:
    """Around a command's work: our errors and signals become a line and an exit code."""
    # torch misses numpy aloud on import; the tool does not need it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be valid text, nor fit the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        number = interrupt.signal if isinstance(interrupt, Interrupted) else signal.SIGINT
        raise typer.Exit(128 + number) from None
    except Exception as error:
        # Imported here: the errors' package imports torch, which --help does not wait for.
        from denoise_batch.kernels.errors import DenoiseBatchError

        if not isinstance(error, DenoiseBatchError):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error


def run_app(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run a Typer app on the arguments (the process's own by default); returns the exit code."""
    try:
        app(args=arguments)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    return 0
