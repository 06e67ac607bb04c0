"""`denoise-export`: weights → an ONNX file, for other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .command import PlainCommand, Version, exit_codes, new_app, require_output, run_app

app = new_app()

EXAMPLES = """[bold]Examples[/]

[cyan]denoise-export unet-level-10 unet.onnx[/]  shipped weights

[cyan]denoise-export runs/photos/best.safetensors mine.onnx[/]  your own
"""


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def export(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS", help="A safetensors file or the name of shipped weights."
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The ONNX file to write: x.onnx.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it exists.")
    ] = False,
    version: Version = False,
) -> None:
    """Write a network as an ONNX model (opset 17), which takes images of any size.

    Input `image`: float32 (N, 3, H, W) in [0, 1], gray in all three channels. Output `denoised`:
    the same, not clamped. Networks that are told the noise level have an input `noise_level`, (N,),
    for values in [0, 1]; below 0 it is estimated, if the weights can.

    Exit codes: 0 written, 2 usage, 5 weights.
    """
    with exit_codes():
        from denoise_batch.kernels import OptionError

        from ..export import export as write
        from ..models import find_weights, load_weights

        if file.suffix.lower() != ".onnx":
            raise OptionError(f"{file}: the name of an ONNX file ends with .onnx")
        if file.exists() and not overwrite:
            raise OptionError(f"{file}: exists; take another name, or --overwrite")
        found = find_weights(weights)
        write(load_weights(found), file, found.stem)
        typer.echo(f"{file}: {found.stem}, {file.stat().st_size / 1e6:.1f} MB")
        require_output()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `denoise-export` and return its exit code."""
    return run_app(app, arguments)
