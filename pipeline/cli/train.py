"""`denoise-train`: arguments → TrainOptions → train → exit code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import Interrupted, Progress, Stop, stopping
from ..text import printable
from .command import PlainCommand, Version, exit_codes, new_app, run_app

if TYPE_CHECKING:
    import rich.progress

    from ..training.distributed import ProcessGroup
    from ..training.options import TrainOptions
    from ..training.run_folder import Epoch
    from ..training.train import Outcome, TrainStart

DATA, NOISE, NETWORK = "Data", "Noise", "Network"
OPTIMISATION, RUN = "Optimisation", "Run"
EXAMPLES = """[bold]Examples[/]

[cyan]denoise-train photos -o runs/photos --network unet --noise gaussian:0-55[/]
  photographs with white noise of σ up to 55/255

[cyan]denoise-train shots/first --pairs shots/second -o runs/shots --network unet[/]
  your own noisy shots, two per scene under the same names

[cyan]denoise-train photos -o runs/photos --network unet --noise gaussian:0-55 --resume[/]
  continue a run that was stopped
"""

app = new_app()


# Most parameters are only declared here: `_given` passes what the user chose to TrainOptions by
# name. The defaults repeat those of TrainOptions for --help; a test keeps both alike.
@app.command(cls=PlainCommand, epilog=EXAMPLES)
def train(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder of clean photographs, or of noisy images as the options below say.",
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of second noisy shots; DATA holds the first ones under the same names.",
            rich_help_panel=DATA,
        ),
    ] = None,
    bursts: Annotated[
        bool,
        typer.Option(
            "--bursts",
            help="DATA holds a folder of noisy shots per scene.",
            rich_help_panel=DATA,
        ),
    ] = False,
    self_supervised: Annotated[
        str | None,
        typer.Option(
            "--self",
            metavar="neighbor",
            help="DATA holds single noisy images; learn from neighbouring pixels.",
            rich_help_panel=DATA,
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            help="Two-tensor file (noisy, clean) to validate on, if DATA is such a file (.pt, "
            ".pth, .pkl).",
            rich_help_panel=DATA,
        ),
    ] = None,
    tiles: Annotated[
        int, typer.Option(help="Training tiles per epoch.", rich_help_panel=DATA)
    ] = 50_000,
    tile_px: Annotated[
        int, typer.Option(help="Side of a tile in pixels.", rich_help_panel=DATA)
    ] = 32,
    validation_tiles: Annotated[
        int, typer.Option(help="Tiles to validate on, from held-out data.", rich_help_panel=DATA)
    ] = 1_000,
    validation_share: Annotated[
        float,
        typer.Option(help="Share of photographs or scenes held out.", rich_help_panel=DATA),
    ] = 0.2,
    augment: Annotated[
        bool,
        typer.Option(metavar="", help="Rotate and mirror tiles at random.", rich_help_panel=DATA),
    ] = True,
    shuffle: Annotated[
        bool,
        typer.Option(metavar="", help="Use a new order in every epoch.", rich_help_panel=DATA),
    ] = True,
    noise: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Noise added to clean photographs: real (a mixture, for any picture) or one of "
            "its parts (white, poisson-gaussian, correlated, raw, jpeg, 8bit), gaussian:25 or "
            "gaussian:0-55 (σ in 1/255), poisson:30, bernoulli:0.5, subpixel:8 or camera; join "
            "several with +.",
            rich_help_panel=NOISE,
        ),
    ] = "subpixel:8",
    versions: Annotated[
        int,
        typer.Option(
            help="Noisy versions stored per tile (subpixel noise only).", rich_help_panel=NOISE
        ),
    ] = 2,
    targets: Annotated[
        str,
        typer.Option(help="Training targets: noisy (Noise2Noise) or clean.", rich_help_panel=NOISE),
    ] = "noisy",
    gray_share: Annotated[
        float,
        typer.Option(
            help="Share of tiles turned gray, to train for gray images too.",
            show_default="0; 0.12 with --noise real",
            rich_help_panel=NOISE,
        ),
    ] = 0.0,
    graphics_share: Annotated[
        float,
        typer.Option(
            help="Share of drawn tiles (text, lines, patterns, flat colours), not of photographs.",
            show_default="0; 0.12 with --noise real",
            rich_help_panel=NOISE,
        ),
    ] = 0.0,
    network: Annotated[
        str | None,
        typer.Option(
            help="Architecture: tconv, upsample, unet or unet-level (told the noise level).",
            show_default="that of --init, or tconv",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: a file or the name of shipped weights.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    estimator: Annotated[
        bool,
        typer.Option(
            "--estimator",
            help="Train the noise estimator of --init (unet-level), and nothing else.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(help="fp32, or bf16 for mixed precision (on a GPU).", rich_help_panel=NETWORK),
    ] = "fp32",
    ema: Annotated[
        float,
        typer.Option(
            help="Decay of the moving average of the parameters; 0 disables it.",
            rich_help_panel=NETWORK,
        ),
    ] = 0.0,
    epochs: Annotated[
        int, typer.Option(help="Passes over the tiles.", rich_help_panel=OPTIMISATION)
    ] = 15,
    steps: Annotated[
        int | None,
        typer.Option(help="Length of the run in steps, not epochs.", rich_help_panel=OPTIMISATION),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Length of the run in minutes of training, not epochs; not reproducible.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Tiles per step.", rich_help_panel=OPTIMISATION)
    ] = 8,
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam, adamw or muon.", rich_help_panel=OPTIMISATION)
    ] = "sgd",
    loss: Annotated[
        str,
        typer.Option(
            help="mse, or log: the logarithm of each tile's error, so that weak noise counts like "
            "strong.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = "mse",
    lr: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate.",
            show_default="0.001; with sgd 4 (upsample 1.5, unets 0.1)",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    warmup_epochs: Annotated[
        float,
        typer.Option(
            help="Epochs over which the learning rate rises from 0.", rich_help_panel=OPTIMISATION
        ),
    ] = 0.2,
    schedule: Annotated[
        str,
        typer.Option(
            help="Learning rate after the warm-up: cosine or constant.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = "cosine",
    momentum: Annotated[
        float | None,
        typer.Option(
            help="Momentum of sgd and muon.",
            show_default="0.9; with muon 0.95",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    nesterov: Annotated[
        bool,
        typer.Option(help="Nesterov momentum for sgd and muon.", rich_help_panel=OPTIMISATION),
    ] = True,
    weight_decay: Annotated[
        float,
        typer.Option(
            help="L2 penalty; decoupled weight decay for adamw and muon.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 0.0,
    clip_norm: Annotated[
        float,
        typer.Option(
            help="Clip the gradient norm to this value; 0 disables clipping.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 0.1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Run folder, new or empty.", rich_help_panel=RUN)
    ] = Path("runs/train"),
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed for tiles, noise, shuffling and initialisation.", rich_help_panel=RUN
        ),
    ] = 0,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Use only algorithms that give the same bits every time on one device.",
            rich_help_panel=RUN,
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUN),
    ] = "auto",
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            help="Minutes between checkpoints, besides the one after every epoch.",
            rich_help_panel=RUN,
        ),
    ] = 5.0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --output.", rich_help_panel=RUN),
    ] = False,
    show_version: Version = False,
) -> None:
    """Train a denoiser without clean targets (Noise2Noise), on any kind of noise.

    Input and target of the network are two noisy versions of one tile: drawn
    independently by --noise, two shots of one scene (--pairs, --bursts, a
    two-tensor file), or neighbouring pixels of one image (--self neighbor).

    The run folder receives best.safetensors (for denoise-batch --weights),
    last.safetensors, a checkpoint, config.json, metrics.jsonl, samples.png
    (clean, noisy, output) and, with the extra "plots", curves.png.

    On several GPUs or machines, start the same options with torchrun:
    [cyan]torchrun --nproc-per-node 4 -m denoise_batch.training DATA …[/]
    --batch-size is the global batch size, so the weights do not depend on the
    number of processes.

    Ctrl-C and SIGTERM finish the current step and save a checkpoint; --resume
    continues from it.

    Exit codes: 0 done, 1 diverged or no usable data, 2 usage, 4 device,
    5 weights of --init, 130 Ctrl-C, 143 SIGTERM.
    """
    with exit_codes():
        from ..training.distributed import process_group

        given = _given(context)
        kind = _kind(data, pairs, bursts, self_supervised, validation_file)
        paths = {"data": data, "output": output, "pairs": pairs, "validation_file": validation_file}
        options = _options({**given, **paths, "kind": kind})
        options.refuse_ignored(given)
        with process_group() as group:
            outcome = _run(options, group)
        if not group.is_first:
            return
        best = outcome.best
        if not (output / "curves.png").exists():
            typer.echo("curves.png needs matplotlib: pip install 'denoise-batch[plots]'", err=True)
        typer.echo(
            f"best: epoch {best.number}, {outcome.noisy_psnr:.2f} → {best.validation_psnr:.2f} dB "
            f"over all validation tiles ({outcome.noisy_psnr_mean:.2f} → "
            f"{best.validation_psnr_mean:.2f} dB averaged per tile): "
            + printable(str(outcome.weights))
        )


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the fields of TrainOptions that the command line sets."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    chosen = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
    chosen -= {"bursts", "self_supervised", "show_version"}  # no fields; see `_kind`
    return {name: context.params[name] for name in chosen}


def _kind(
    data: Path,
    pairs: Path | None,
    bursts: bool,
    self_supervised: str | None,
    validation_file: Path | None,
) -> str:
    """Return what DATA holds, as `TrainOptions.kind` names it."""
    from denoise_batch.kernels import OptionError

    if self_supervised not in (None, "neighbor"):
        raise OptionError(f"--self {self_supervised}: choose neighbor")
    is_tensors = data.suffix.lower() in (".pt", ".pth", ".pkl")
    kinds = {
        "pairs": pairs is not None,
        "bursts": bursts,
        "single": self_supervised is not None,
        "tensors": is_tensors,
    }
    if sum(kinds.values()) > 1:
        raise OptionError("--pairs, --bursts, --self and a two-tensor file exclude each other")
    if validation_file is not None and not is_tensors:
        raise OptionError("--validation requires a two-tensor file as DATA")
    return next((kind for kind, is_meant in kinds.items() if is_meant), "clean")


def _options(chosen: dict[str, Any]) -> "TrainOptions":
    """Add the defaults that depend on other options."""
    from denoise_batch.kernels import OptionError

    from ..models import find_weights, load_weights
    from ..training.distributed import was_restarted
    from ..training.options import TrainOptions, default_rates

    if "epochs" in chosen and ("steps" in chosen or "minutes" in chosen):
        raise OptionError("--epochs, --steps and --minutes exclude each other")
    network = "tconv"
    if "init" in chosen:
        network = load_weights(find_weights(chosen["init"])).network.architecture
    network = chosen.get("network", network)
    lr, momentum = default_rates(chosen.get("optimizer", TrainOptions.optimizer), network)
    resume = chosen.get("resume", False) or was_restarted()
    defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "network": network}
    if chosen["kind"] == "clean" and chosen.get("noise") == "real":
        defaults |= {"gray_share": 0.12, "graphics_share": 0.12}
    return TrainOptions(**{**defaults, **chosen, "resume": resume})


def _run(options: "TrainOptions", group: "ProcessGroup") -> "Outcome":
    """Train to the end, or until Ctrl-C or SIGTERM after finishing the current step."""
    from ..training.train import train

    stop = Stop()
    with _progress_bar(options.batch_size) as progress:
        if group.size > 1:  # the others would wait for the gradients of one that stops
            return train(options, progress, group)
        try:
            with stopping(stop):
                return train(options, progress, group, stop)
        except KeyboardInterrupt as interrupt:
            if stop.signal is None:
                raise
            is_cut = isinstance(interrupt, Interrupted)  # an unfinished step is lost
            place = "the last checkpoint" if is_cut else "here"
            typer.echo(f"stopped; the same command with --resume continues from {place}", err=True)
            raise typer.Exit(128 + stop.signal) from None


class TrainingBar(Progress["TrainStart", "Epoch"]):
    """Shows a bar of the steps, and a line for every epoch.

    Args:
        bar: the terminal's progress display.
        batch_size: tiles per step.
    """

    def __init__(self, bar: "rich.progress.Progress", batch_size: int) -> None:
        self._bar = bar
        self._batch_size = batch_size
        self._task = bar.add_task("steps", total=None, images_per_s=0.0)

    def on_start(self, start: "TrainStart") -> None:
        """Print the size of the data and how noisy it is."""
        counts = start.counts
        skipped = f" ({counts.too_small} more are too small)" if counts.too_small else ""
        self._print(
            f"{counts.training} to train on, {counts.validation} to validate on{skipped}; noisy "
            f"validation tiles: {start.noisy_psnr:.2f} dB"
        )

    def on_step(self, name: str, done: int, total: int) -> None:
        """Move the bar."""
        speed = self._bar.tasks[0].speed or 0.0  # recent steps per second
        images_per_s = speed * self._batch_size
        self._bar.update(self._task, completed=done, total=total, images_per_s=images_per_s)

    def on_result(self, result: "Epoch") -> None:
        """Print the result of an epoch."""
        self._print(
            f"epoch {result.number}: training loss {result.training_loss:.6f}, validation "
            f"{result.validation_psnr:.3f} dB, lr {result.lr:.3g}, {result.seconds:.0f} s, "
            f"{result.images_per_s:.0f} images/s{', best so far' if result.is_best else ''}"
        )

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _progress_bar(batch_size: int) -> Iterator[TrainingBar]:
    """Show the bar on stderr inside the block; without a terminal only the lines."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    columns = (
        rich_progress.TextColumn("steps"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[images_per_s]:.0f} images/s  ETA"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield TrainingBar(bar, batch_size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `denoise-train` and return its exit code."""
    return run_app(app, arguments)
