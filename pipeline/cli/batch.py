"""`denoise-batch`: arguments → DenoiseOptions → denoise → table and exit code."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from .exits import exit_codes, run_app

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoise-batch {version('denoise-batch')}")
        raise typer.Exit


@app.command()
def denoise(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Folders (searched deeply), files or globs."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the outputs go, mirroring the input's tree. Default: INPUT-denoised.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="A safetensors file or a shipped name."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    reference: Annotated[
        Path | None,
        typer.Option(help="Folder of clean images under the same names: adds PSNR to the table."),
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="Images a batch: auto or a number.")
    ] = "auto",
    recursive: Annotated[bool, typer.Option(help="Search folders to the bottom.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Denoise again what already has an output.")
    ] = False,
    quality: Annotated[int, typer.Option("--quality", "-q", help="Of JPEG and WebP, 1-100.")] = 95,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Denoise folders of images.

    The input is never written to. Outputs keep the format, bit depth, alpha and metadata of their
    inputs and appear whole or not at all. One bad image never stops a folder.

    Exit codes: 0 done, 1 some files failed, 2 usage, 3 no images found, 4 device, 5 weights,
    6 every file failed, 130 interrupted (files in flight are finished).
    """
    with exit_codes():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        from denoise_batch.kernels import OptionError

        from ..options import DenoiseOptions
        from ..reports.table import print_summary
        from ..streaming.denoise import denoise as run
        from ..streaming.stream import Result

        if batch_size != "auto" and not batch_size.isdigit():
            raise OptionError(f"--batch-size {batch_size!r}: auto or a whole number")
        options = DenoiseOptions(
            inputs=tuple(inputs),
            output=output,
            weights=weights,
            device=device,
            reference=reference,
            batch_size=None if batch_size == "auto" else int(batch_size),
            recursive=recursive,
            overwrite=overwrite,
            quality=quality,
        )
        screen = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
            task = progress.add_task("images", total=None)

            def on_start(count: int) -> None:
                progress.update(task, total=count)

            def on_result(result: Result) -> None:
                progress.advance(task)

            summary = run(options, on_start, on_result)
        print_summary(summary, Console())
        raise typer.Exit(summary.exit_code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-batch`; returns the exit code."""
    return run_app(app, arguments)
