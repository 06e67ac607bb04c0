"""Shared by all commands: -h, --version, errors as one line on stderr, exit codes."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from ..process import tune_process
from ..progress import READER, Interrupted
from ..text import printable
from .streams import lost_output, standard_streams


class PlainCommand(TyperCommand):
    """A command whose help shows no type for flags, and whose errors are one line each."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> Any:
        """Parse the arguments; what is wrong with them may quote one, such as a file's name."""
        given = list(args)
        try:
            return super().make_context(info_name, args, *rest, **more)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = printable(message)  # type: ignore[attr-defined]  # click's
                self.on_usage_error(given, error)
            raise

    def on_usage_error(self, args: list[str], error: Exception) -> None:
        """Called with the arguments and what is wrong with them, before it is printed."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, flags with an empty metavar."""
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag:
                param.metavar = ""
        return params


def new_app() -> typer.Typer:
    """An app of one command that understands -h and can install shell completion."""
    return typer.Typer(
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoise-batch {version('denoise-batch')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
]


def named_path(text: str) -> Path:
    """Parse a path; an empty one, which `Path` takes for the current folder, is refused."""
    if text == "":
        raise typer.BadParameter("is empty; name a folder or a file")
    return Path(text)


@contextmanager
def exit_codes(*, quiet: bool = False) -> Iterator[None]:
    """Turn our errors and signals into a line and an exit code; wraps a command's work.

    Args:
        quiet: say nothing if there is nothing to do.
    """
    tune_process()
    # torch warns on import if numpy is missing, which this tool does not need.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(128 + signal_of(interrupt)) from None
    except Exception as error:
        # Imported here: the errors' package imports torch, which --help does not wait for.
        from denoise_batch.kernels.errors import DenoiseBatchError, NoImagesError

        if not isinstance(error, DenoiseBatchError):
            raise
        if not (quiet and isinstance(error, NoImagesError)):
            print(f"error: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that ended a run."""
    return interrupt.signal if isinstance(interrupt, Interrupted) else signal.SIGINT


def run_app(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run a Typer app on the arguments (the process's own by default); return the exit code."""
    code = 0
    with standard_streams():
        try:
            app(args=arguments)
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 0
    if arguments is None and any(thread.name == READER for thread in threading.enumerate()):
        # A run that was cut short has threads in the midst of C++ code, where Python's end would
        # abort the process (SIGABRT).
        os._exit(code)
    return code


def require_output() -> None:
    """End with 1 if standard output, which is all that the command makes, could not be written."""
    if lost_output():
        raise typer.Exit(1)
