"""`denoise-eval`: arguments → EvalOptions → evaluate → table, comparison or JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..text import printable, valid
from .command import (
    PlainCommand,
    Version,
    exit_codes,
    named_path,
    new_app,
    require_output,
    run_app,
)

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..evaluate import EvalOptions, Score
    from ..suite import RowScore

SCORING, NETWORK, OUTPUT = "Scoring", "Network", "Output"
EXAMPLES = """[bold]Examples[/]

[cyan]denoise-eval unet-level-10 photos[/]
  white noise of σ = 25/255

[cyan]denoise-eval runs/photos/best.safetensors photos --noise poisson:30 --noise camera --gray[/]
  two noise models, scored on luminance

[cyan]denoise-eval unet-level-10 runs/photos/best.safetensors photos[/]
  which of two weights is better, and how surely

[cyan]denoise-eval tconv photos --noise subpixel:8 --json[/]
  JSON for another program

[cyan]denoise-eval runs/photos/best.safetensors photos --suite --pairs shots[/]
  everything that a picture may be, and real pairs in shots/noisy and shots/clean
"""

app = new_app()


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def evaluate(
    weights: Annotated[
        list[str],
        typer.Argument(
            metavar="WEIGHTS [WEIGHTS]",
            help="A safetensors file or the name of shipped weights; two of them are compared.",
        ),
    ],
    data: Annotated[
        Path, typer.Argument(parser=named_path, metavar="DATA", help="Folder of clean images.")
    ],
    noise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Noise to add, spelled as for denoise-train; repeat for several models.",
            show_default="gaussian:25",
            rich_help_panel=SCORING,
        ),
    ] = None,
    suite: Annotated[
        bool,
        typer.Option(
            "--suite",
            help="Score many kinds of noise, gray, clean, flat and drawn pictures, a row each.",
            rich_help_panel=SCORING,
        ),
    ] = False,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            parser=named_path,
            metavar="FOLDER",
            help="With --suite: real shots in FOLDER/noisy and FOLDER/clean, under the same "
            "names; repeat for several folders.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    floors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --suite: JSON of what each row must reach, row → field → number; exit "
            "code 1 if one does not.",
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
            "--device", "-d", help="auto, cpu, cuda, cuda:N, mps or xpu.", rich_help_panel=NETWORK
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32; on a GPU bf16 or fp16.", rich_help_panel=NETWORK)
    ] = "fp32",
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Average 8 rotated and mirrored passes, as denoise-batch does.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    noise_level: Annotated[
        str,
        typer.Option(
            metavar="auto|SIGMA|1.3x",
            help="Noise level that the network is told, as for denoise-batch.",
            rich_help_panel=NETWORK,
        ),
    ] = "auto",
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

    [bold]--suite[/] prints a row for each kind of noise and picture: mean PSNR, the
    lowest, the gain of the image that gained least, the largest deviation from the
    clean image, the mean noise level that the network was told, and its seconds.

    Pictures above 8 bits, every page for itself, are scaled as denoise-batch does:
    by the range that the weights were trained with, or by their file's.

    Two weights are compared on the same noisy images, in the range that either was
    trained with, if any: the difference of each image's PSNR, their mean with a
    95 % interval (bootstrap), and Wilcoxon's signed-rank test.

    Noise is not clipped, unless its model does so (8bit, raw, camera, jpeg, real),
    and outputs are not rounded, except in rows of --suite named 8-bit and of 8-bit
    files of --pairs. Each image's noise depends only on the seed, the image's name
    and the noise model.

    Exit codes: 0 done, 1 an image cannot be read or a floor is missed, 2 usage,
    3 no images, 4 device, 5 weights.
    """
    with exit_codes():
        from denoise_batch.kernels import OptionError

        from ..evaluate import EvalOptions
        from ..evaluate import evaluate as run

        if len(weights) > 2:
            raise OptionError(f"{len(weights)} WEIGHTS: takes one, or two to compare")
        if suite and len(weights) > 1:
            raise OptionError("--suite takes one WEIGHTS: score each by itself")
        if suite and (noise or gray):
            raise OptionError("--suite has noise and gray images of its own: leave out the others")
        if not suite and (pairs or floors):
            raise OptionError("--pairs and --floors need --suite")
        noises = () if suite else tuple(noise or ["gaussian:25"])
        options, *others = (
            EvalOptions(one, data, noises, seed, gray, device, precision, tta, noise_level)
            for one in weights
        )
        if suite:
            _run_suite(options, pairs or [], floors, as_json)
        elif others:
            _compare(options, others[0], as_json)
        elif as_json:
            typer.echo(_to_json(run(options)))
        else:
            _print_table(run(options))
        require_output()


def _run_suite(
    options: "EvalOptions", pairs: Sequence[Path], floors: Path | None, as_json: bool
) -> None:
    """Print the suite's rows; exit with 1 if a floor is missed."""
    from dataclasses import asdict

    from ..suite import misses, read_floors, run_suite

    wanted = read_floors(floors) if floors else {}
    scores = run_suite(options, pairs)
    missed = misses(scores, wanted)
    if as_json:
        lines = [
            {"row": row, "field": field, "floor": floor} for (row, field), floor in missed.items()
        ]
        result = {"rows": [asdict(score) for score in scores], "missed": lines}
        typer.echo(json.dumps(valid(result), indent=2, allow_nan=False))
    else:
        _print_suite(scores)
    for (row, field), floor in missed.items():
        found = [getattr(score, field) for score in scores if score.row == row]
        value = f"{found[0]:.2f}" if found else "not scored"
        typer.echo(f"{printable(row)}: {field} is {value}, the floor is {floor:g}", err=True)
    if missed:
        raise typer.Exit(1)


def _print_suite(scores: Sequence["RowScore"]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("row", no_wrap=True)
    has_level = any(score.level is not None for score in scores)
    headings = ["images", "PSNR in", "PSNR out", "lowest", "worst gain", "largest"]
    for heading in [*headings, *(["level"] if has_level else []), "seconds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        level = "–" if score.level is None else f"{score.level:.1f}"
        table.add_row(
            escape(printable(score.row)),
            str(score.images),
            f"{score.psnr_in:.2f}",
            f"[bold]{score.psnr_out:.2f}[/bold]",
            f"{score.lowest:.2f}",
            f"{score.worst_gain:+.2f}",
            f"{score.largest:.1f}",
            *([level] if has_level else []),
            f"{score.seconds:.1f}",
        )
    console = Console(emoji=False)
    console.width = max(console.width, 100)
    console.print(table)


def _compare(first: "EvalOptions", second: "EvalOptions", as_json: bool) -> None:
    """Print each image's difference, the means and a verdict for every noise model."""
    from dataclasses import replace

    from ..comparison import compare
    from ..evaluate import common_range
    from ..evaluate import evaluate as run

    ends = common_range((first.weights, second.weights))
    first, second = (replace(one, value_range=ends) for one in (first, second))
    scores = run(first), run(second)
    comparisons = compare(*scores)
    names = (first.weights, second.weights)
    if as_json:
        typer.echo(_comparison_json(names, ends, scores, comparisons))
        return
    for letter, name in zip("AB", names, strict=True):
        typer.echo(f"{letter}: {printable(name)}")
    if ends is not None:
        typer.echo(f"samples above 8 bits: {ends[0]:g} is black, {ends[1]:g} is white for both")
    _print_differences(scores, comparisons)
    for comparison in comparisons:
        typer.echo(f"{comparison.noise}: {comparison.verdict('A', 'B')}")


def _comparison_json(
    names: tuple[str, str],
    ends: tuple[float, float] | None,
    scores: tuple[Sequence["Score"], Sequence["Score"]],
    comparisons: Sequence["Comparison"],
) -> str:
    from dataclasses import asdict

    from ..comparison import difference
    from ..metrics import psnr_of_mse

    images = [
        {
            "image": one.name,
            "noise": one.noise,
            "psnr_in": psnr_of_mse(one.mse_in),
            "psnr_first": psnr_of_mse(one.mse_out),
            "psnr_second": psnr_of_mse(other.mse_out),
            "difference": difference(one, other),
        }
        for one, other in zip(*scores, strict=True)
    ]
    result = {
        "weights": names,
        "range": ends,
        "images": [_with_nulls(row) for row in images],
        "comparisons": [{**asdict(c), "verdict": c.verdict(*names)} for c in comparisons],
    }
    return json.dumps(valid(result), indent=2, allow_nan=False)


def _print_differences(
    scores: tuple[Sequence["Score"], Sequence["Score"]], comparisons: Sequence["Comparison"]
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..comparison import difference
    from ..evaluate import means
    from ..metrics import psnr_of_mse

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("noise", no_wrap=True)
    for heading in ("PSNR in", "A", "B", "B − A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one, other in zip(*scores, strict=True):
        table.add_row(
            escape(printable(one.name)),
            one.noise,
            *(f"{psnr_of_mse(value):.2f}" for value in (one.mse_in, one.mse_out, other.mse_out)),
            f"{difference(one, other):+.2f}",
        )
    table.add_section()
    for first, second, comparison in zip(*map(means, scores), comparisons, strict=True):
        table.add_row(
            "[bold]mean[/bold]",
            first.noise,
            f"{first.psnr_in:.2f}",
            f"{first.psnr_out:.2f}",
            f"{second.psnr_out:.2f}",
            f"[bold]{comparison.difference:+.2f}[/bold]",
        )
    Console(emoji=False).print(table)


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
    return json.dumps(valid(result), indent=2, allow_nan=False)


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
            escape(printable(score.name)),
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
    Console(emoji=False).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `denoise-eval` and return its exit code."""
    return run_app(app, arguments)
