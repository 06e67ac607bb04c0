"""`denoise-train`: arguments → TrainOptions → train → exit code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import exit_codes, run_app

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..training.data import Counts
    from ..training.run_folder import Epoch
    from ..training.train import Watcher
if TYPE_CHECKING:
    from ..training.distributed import ProcessGroup
    from ..training.options import TrainOptions
    from ..training.train import Outcome, Watcher


def watcher_of(progress: "Progress", batch_size: int) -> "Watcher":
    """Live steps, and a line for every epoch."""
    from ..training.train import Watcher

    task = progress.add_task("steps", total=None, images_per_s=0.0)

    def on_start(counts: "Counts", noisy_psnr: float) -> None:
        skipped = f" ({counts.too_small} more are too small)" if counts.too_small else ""
        progress.console.print(
            f"{counts.training} to train on, {counts.validation} to validate with{skipped}; noisy "
            f"validation tiles: {noisy_psnr:.2f} dB",
            highlight=False,
            soft_wrap=True,
        )

    def on_step(step: int, steps: int) -> None:
        speed = progress.tasks[0].speed or 0.0  # steps a second, lately
        images_per_s = speed * batch_size
        progress.update(task, completed=step, total=steps, images_per_s=images_per_s)

    def on_epoch(epoch: "Epoch") -> None:
        progress.console.print(
            f"epoch {epoch.number}: training loss {epoch.training_loss:.6f}, validation "
            f"{epoch.validation_psnr:.3f} dB, lr {epoch.lr:.3g}, {epoch.seconds:.0f} s, "
            f"{epoch.images_per_s:.0f} images/s{', best so far' if epoch.is_best else ''}",
            highlight=False,
            soft_wrap=True,
        )

    return Watcher(on_start, on_step, on_epoch)


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def train(
    data: Annotated[
        Path, typer.Argument(help="Folder of clean photographs, or what the options below say.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Run folder; must not hold a run yet.")
    ] = Path("runs/train"),
    network: Annotated[
        str | None,
        typer.Option(
            help="Architecture: tconv, upsample or unet.", show_default="that of --init, or tconv"
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="gaussian:25, gaussian:0-55 (σ in 1/255), poisson:30, bernoulli:0.5, subpixel:8, "
            "camera; several joined by +.",
            show_default="subpixel:8",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="DATA holds noisy shots, this folder second shots under the same names."),
    ] = None,
    bursts: Annotated[
        bool, typer.Option("--bursts", help="DATA holds a folder of noisy shots for each scene.")
    ] = False,
    self_supervised: Annotated[
        str | None,
        typer.Option("--self", help="neighbor: DATA holds single noisy images, no second shots."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Two-tensor file (noisy, clean), where DATA is one (.pt, .pth, .pkl)."),
    ] = None,
    targets: Annotated[str, typer.Option(help="noisy (Noise2Noise) or clean.")] = "noisy",
    gray_share: Annotated[
        float, typer.Option(help="Share of tiles made gray, so that gray images work too.")
    ] = 0.0,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a file or a shipped name.")
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(help="Training tiles of an epoch.", show_default="50000")
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Side of a tile, in pixels.", show_default="32")
    ] = None,
    versions: Annotated[
        int | None,
        typer.Option(help="Noisy versions stored of each tile (subpixel noise).", show_default="2"),
    ] = None,
    validation_tiles: Annotated[
        int | None,
        typer.Option(help="Tiles of photographs that are never trained on.", show_default="1000"),
    ] = None,
    validation_share: Annotated[
        float, typer.Option(help="Share of the photographs held out.")
    ] = 0.2,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the tiles.", show_default="15")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length in steps, instead of epochs.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Length in minutes of training, instead; not repeatable bit for bit."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Tiles a step.")] = 8,
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw or muon.")] = "sgd",
    lr: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate.", show_default="0.001; with sgd 4 (upsample 1.5, unet 0.1)"
        ),
    ] = None,
    warmup_epochs: Annotated[
        float, typer.Option(help="Epochs over which the rate rises from 0.")
    ] = 0.2,
    schedule: Annotated[str, typer.Option(help="After warm-up: cosine or constant.")] = "cosine",
    momentum: Annotated[
        float | None,
        typer.Option(help="Of SGD and Muon.", show_default="0.9; with muon 0.95"),
    ] = None,
    nesterov: Annotated[
        bool | None,
        typer.Option(
            "--nesterov/--no-nesterov",
            help="Nesterov's look-ahead, of both.",
            show_default="nesterov",
        ),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="L2 penalty; decoupled with adamw and muon.")
    ] = 0.0,
    clip_norm: Annotated[
        float, typer.Option(help="Longest gradient; 0 never scales one down.")
    ] = 0.1,
    ema: Annotated[
        float, typer.Option(help="Decay of the parameters' moving average; 0: none.")
    ] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")] = "fp32",
    augment: Annotated[bool, typer.Option(help="Turn and mirror tiles at random.")] = True,
    shuffle: Annotated[bool, typer.Option(help="A new order in every epoch.")] = True,
    seed: Annotated[int, typer.Option(help="Of tiles, noise, order and initial weights.")] = 0,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="The same bits every time, on any one device."),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Between checkpoints, besides one after every epoch.")
    ] = 5.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, if there is one.")
    ] = False,
) -> None:
    """Train a denoiser, Noise2Noise-style: from photographs and synthetic noise, or real noise.

    Both the network's input and its target are noisy versions of a tile: drawn independently by
    `--noise`, or two shots of one scene (`--pairs`, `--bursts`, a two-tensor file), or neighbouring
    pixels of a single one (`--self neighbor`).
    The run folder gets config.json, metrics.jsonl, best.safetensors, last.safetensors, a
    checkpoint, samples.png (clean, noisy, output) and, with the extra `plots`, curves.png; use
    best.safetensors with `denoise-batch --weights`.

    On several GPUs or machines: `torchrun --nproc-per-node 4 -m denoise_batch.training
    DATA …` with the same options; `--batch-size` is the joint one, so the weights are the same.

    Ctrl-C and SIGTERM finish the step and save it; --resume goes on.

    Exit codes: 0 done, 1 diverged or no usable photographs, 2 usage, 4 device, 5 weights
    of --init, 130 Ctrl-C, 143 SIGTERM.
    """
    with exit_codes():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from denoise_batch.kernels import OptionError

        from ..models import find_weights, load_weights
        from ..training.distributed import process_group, was_restarted
        from ..training.options import TrainOptions, usual_rates

        pass

        if self_supervised not in (None, "neighbor"):
            raise OptionError(f"--self {self_supervised}: choose neighbor")
        kinds = {
            "pairs": pairs is not None,
            "bursts": bursts,
            "single": self_supervised is not None,
            "tensors": data.suffix.lower() in (".pt", ".pth", ".pkl"),
        }
        if sum(kinds.values()) > 1:
            raise OptionError("--pairs, --bursts, --self and a two-tensor file exclude each other")
        if validation is not None and not kinds["tensors"]:
            raise OptionError("--validation goes with a two-tensor file as DATA")
        if epochs is not None and (steps is not None or minutes is not None):
            raise OptionError("--epochs, --steps and --minutes exclude each other")
        kind = next((kind for kind, is_meant in kinds.items() if is_meant), "clean")
        if network is None:
            network = (
                "tconv" if init is None else load_weights(find_weights(init)).network.architecture
            )
        usual_lr, usual_momentum = usual_rates(optimizer, network)
        choices: dict[str, Any] = {
            "noise": noise, "tiles": tiles, "tile_px": tile_px, "versions": versions,
            "validation_tiles": validation_tiles, "momentum": momentum, "nesterov": nesterov,
        }  # fmt: skip
        given = {name: value for name, value in choices.items() if value is not None}
        options = TrainOptions(
            **{"momentum": usual_momentum, **given},
            data=data,
            output=output,
            network=network,
            kind=kind,
            pairs=pairs,
            validation_file=validation,
            targets=targets,
            gray_share=gray_share,
            init=init,
            validation_share=validation_share,
            epochs=TrainOptions.epochs if epochs is None else epochs,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=usual_lr if lr is None else lr,
            warmup_epochs=warmup_epochs,
            schedule=schedule,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            ema=ema,
            precision=precision,
            augment=augment,
            shuffle=shuffle,
            seed=seed,
            deterministic=deterministic,
            device=device,
            checkpoint_minutes=checkpoint_minutes,
            resume=resume or was_restarted(),
        )
        options.refuse_ignored(given)
        console = Console(stderr=True)
        columns = (
            TextColumn("steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[images_per_s]:.0f} images/s  ETA"),
            TimeRemainingColumn(),
        )
        with (
            process_group() as team,
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            outcome = _run(options, watcher_of(progress, batch_size), team)
        if not team.is_first:
            return
        best = outcome.best
        if not (output / "curves.png").exists():
            typer.echo("curves.png needs matplotlib: pip install 'denoise-batch[plots]'", err=True)
        typer.echo(
            f"best: epoch {best.number}, {outcome.noisy_psnr:.2f} → {best.validation_psnr:.2f} dB "
            f"over all validation tiles ({outcome.noisy_psnr_mean:.2f} → "
            f"{best.validation_psnr_mean:.2f} dB averaged per tile): {outcome.weights}"
        )


def _run(options: "TrainOptions", watcher: "Watcher", team: "ProcessGroup") -> "Outcome":
    """Train to the end, or until Ctrl-C or SIGTERM; the step in hand is finished."""
    from ..progress import Interrupted, Stop, stopping
    from ..training.train import train

    if team.size > 1:  # the others would wait for the gradients of one that stops
        return train(options, watcher, team)
    stop = Stop()
    try:
        with stopping(stop):
            return train(options, watcher, team, stop)
    except KeyboardInterrupt as interrupt:
        if stop.signal is None:
            raise
        is_cut = isinstance(interrupt, Interrupted)  # a step that was not finished is lost
        place = "the last checkpoint" if is_cut else "here"
        typer.echo(f"stopped; the same command with --resume goes on from {place}", err=True)
        raise typer.Exit(128 + stop.signal) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-train`; returns the exit code."""
    return run_app(app, arguments)
