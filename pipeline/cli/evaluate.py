"""`denoise-eval`: arguments → EvalOptions → evaluate → table or JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import exit_codes, run_app

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="A safetensors file or a shipped name.")],
    data: Annotated[Path, typer.Argument(help="Folder of clean images.")],
    noise: Annotated[
        list[str] | None,
        typer.Option(
            help="Noise to add, as for denoise-train, such as gaussian:25 (the default) or camera; "
            "repeat for several."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    gray: Annotated[bool, typer.Option("--gray", help="Score luminance, not colour.")] = False,
    device: Annotated[
        str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    tta: Annotated[
        bool, typer.Option("--tta", help="Average 8 turned and mirrored passes, as denoise-batch.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON, not a table; null for ∞ dB.")
    ] = False,
) -> None:
    """Score weights on clean images with synthetic noise: PSNR and SSIM, noisy and denoised.

    The noise is not clipped, the outputs are not rounded. Each image's noise depends on the seed,
    its name and the noise model alone.

    Exit codes: 0 done, 1 an image cannot be read, 2 usage, 3 no images, 4 device, 5 weights.
    """
    with exit_codes():
        from dataclasses import asdict

        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from ..evaluate import evaluate as run
        from ..evaluate import means
        from ..metrics import psnr_of_mse
        from ..options import EvalOptions

        noises = tuple(noise or ["gaussian:25"])
        options = EvalOptions(weights, data, noises, seed, gray, device, precision, tta)
        scores = run(options)
        if as_json:
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
                "images": [_in_json(row) for row in rows],
                "means": [_in_json(asdict(mean)) for mean in means(scores)],
            }
            typer.echo(json.dumps(result, indent=2, allow_nan=False))
            return
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


def _in_json(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for what JSON has no number for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-eval`; returns the exit code."""
    return run_app(app, arguments)
