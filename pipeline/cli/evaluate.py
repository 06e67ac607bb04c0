"""`denoise-eval`: arguments → EvalOptions → evaluate → table or JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import PlainCommand, Version, exit_codes, new_app, run_app

if TYPE_CHECKING:
    from ..evaluate import Score

SCORING, NETWORK, OUTPUT = "Scoring", "Network", "Output"
EXAMPLES = """[bold]Examples[/]

[cyan]denoise-eval unet-gaussian-4 photos[/]
  white noise of σ = 25/255

[cyan]denoise-eval runs/photos/best.safetensors photos --noise poisson:30 --noise camera --gray[/]
  two noise models, scored on luminance

[cyan]denoise-eval tconv photos --noise subpixel:8 --json[/]
  JSON for another program
"""

app = new_app()


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS", help="A safetensors file or the name of shipped weights."
        ),
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of clean images.")],
    noise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Noise to add, spelled as for denoise-train; repeat for several models.",
            show_default="gaussian:25",
            rich_help_panel=SCORING,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.", rich_help_panel=SCORING)] = 0,
    gray: Annotated[
        bool,
        typer.Option("--gray", help="Score luminance instead of colour.", rich_help_panel=SCORING),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            "--device", "-d", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=NETWORK
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16 (on a GPU).", rich_help_panel=NETWORK)
    ] = "fp32",
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Average 8 rotated and mirrored passes, as denoise-batch does.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON instead of a table; ∞ dB becomes null.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    show_version: Version = False,
) -> None:
    """Score weights on clean images with synthetic noise: PSNR and SSIM.

    Noise is not clipped and outputs are not rounded. Each image's noise
    depends only on the seed, the image's name and the noise model.

    Exit codes: 0 done, 1 an image cannot be read, 2 usage, 3 no images,
    4 device, 5 weights.
    """
    with exit_codes():
        from ..evaluate import EvalOptions
        from ..evaluate import evaluate as run

        noises = tuple(noise or ["gaussian:25"])
        options = EvalOptions(weights, data, noises, seed, gray, device, precision, tta)
        scores = run(options)
        if as_json:
            typer.echo(_to_json(scores))
        else:
            _print_table(scores)


def _to_json(scores: Sequence["Score"]) -> str:
    from dataclasses import asdict

    from ..evaluate import means
    from ..metrics import psnr_of_mse

    rows = [
        {
            "image": score.name,
            "noise": score.noise,
            "psnr_in": psnr_of_mse(score.mse_in),
            "psnr_out": psnr_of_mse(score.mse_out),
            "ssim_in": score.ssim_in,
            "ssim_out": score.ssim_out,
        }
        for score in scores
    ]
    result = {
        "images": [_with_nulls(row) for row in rows],
        "means": [_with_nulls(asdict(mean)) for mean in means(scores)],
    }
    return json.dumps(result, indent=2, allow_nan=False)


def _with_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Replace infinities, which JSON cannot hold, by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _print_table(scores: Sequence["Score"]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..evaluate import means
    from ..metrics import psnr_of_mse

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("noise", no_wrap=True)
    for heading in ("PSNR in", "PSNR out", "SSIM in", "SSIM out"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        table.add_row(
            escape(score.name),
            score.noise,
            f"{psnr_of_mse(score.mse_in):.2f}",
            f"{psnr_of_mse(score.mse_out):.2f}",
            f"{score.ssim_in:.4f}",
            f"{score.ssim_out:.4f}",
        )
    table.add_section()
    for mean in means(scores):
        table.add_row(
            "[bold]mean[/bold]",
            mean.noise,
            f"{mean.psnr_in:.2f}",
            f"[bold]{mean.psnr_out:.2f}[/bold]",
            f"{mean.ssim_in:.4f}",
            f"{mean.ssim_out:.4f}",
        )
        table.add_row(
            "one MSE over all",
            mean.noise,
            f"{mean.set_psnr_in:.2f}",
            f"{mean.set_psnr_out:.2f}",
        )
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `denoise-eval` and return its exit code."""
    return run_app(app, arguments)
