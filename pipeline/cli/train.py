"""`denoise-train`: arguments → TrainOptions → train → exit code."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import Interrupted, Stop, stopping
from ..text import printable
from .command import PlainCommand, Version, exit_codes, named_path, new_app, run_app

if TYPE_CHECKING:
    from ..training.distributed import ProcessGroup
    from ..training.options import TrainOptions
    from ..training.train import Outcome

DATA, NOISE, NETWORK = "Data", "Noise", "Network"
OPTIMISATION, RUN = "Optimisation", "Run"
OWN_SHOTS = ("pairs", "bursts", "single")  # kinds of data that hold real noise
EXAMPLES = """[bold]Examples[/]

[cyan]denoise-train photos -o runs/photos --network unet --targets clean \\
    --noise gaussian:0-55 --optimizer muon --tile-px 64[/]
  photographs with white noise of σ up to 55/255

[cyan]denoise-train shots/first --pairs shots/second -o runs/shots --network unet[/]
  your own noisy shots, two per scene under the same names

[cyan]denoise-train shots/first --pairs shots/second -o runs/shots --network unet --resume[/]
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
            parser=named_path,
            metavar="DATA",
            help="Folder of clean photographs, or of noisy images as the options below say.",
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PATH",
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
            metavar="recorrupted|neighbor|blind-spot|auto",
            help="DATA holds single noisy images; learn by adding noise like theirs, from "
            "neighbouring pixels, from hidden pixels, or as suits their noise.",
            rich_help_panel=DATA,
        ),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            metavar="TYX|ZYX|…",
            help="What the pages of a file are: T shots of one scene; S, Z, C scenes of their own. "
            "Several axes must agree with the file's description.",
            show_default="with --bursts as the file says, else TYX; SYX without",
            rich_help_panel=DATA,
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW-HIGH",
            help="Black and white of samples above 8 bits, now and for the weights.",
            show_default="as denoise-batch finds them",
            rich_help_panel=DATA,
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            parser=named_path,
            metavar="PATH",
            help="Two-tensor file (noisy, clean) to validate on, if DATA is such a file (.pt, "
            ".pth, .pkl).",
            rich_help_panel=DATA,
        ),
    ] = None,
    tiles: Annotated[
        int, typer.Option(help="Training tiles per epoch.", rich_help_panel=DATA)
    ] = 50_000,
    tile_px: Annotated[
        int,
        typer.Option(
            help="Side of a tile in pixels.",
            show_default="32; 64 for a U-Net on own shots",
            rich_help_panel=DATA,
        ),
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
            "its parts (white, poisson-gaussian, correlated, raw, camera, jpeg, 8bit), gaussian:25 "
            "or gaussian:0-55 (σ in 1/255), poisson:30, bernoulli:0.5 or subpixel:8; join several "
            "with +.",
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
    framed_share: Annotated[
        float,
        typer.Option(
            help="Share of tiles with an even frame without noise, as the paper of a scan.",
            show_default="0; 0.15 with --noise real",
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
            show_default="0; 0.99 for a U-Net on own shots",
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
        str,
        typer.Option(
            help="sgd, adam, adamw or muon.",
            show_default="sgd; muon for a U-Net on own shots",
            rich_help_panel=OPTIMISATION,
        ),
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
            help="Epochs over which the learning rate rises from 0; a tenth of the run at most.",
            rich_help_panel=OPTIMISATION,
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
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=named_path,
            metavar="PATH",
            help="Run folder, new or empty.",
            rich_help_panel=RUN,
        ),
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
        typer.Option(
            "--device", "-d", help="auto, cpu, cuda, cuda:N, mps or xpu.", rich_help_panel=RUN
        ),
    ] = "auto",
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="On CUDA, record the launches of a step and replay them.",
            rich_help_panel=RUN,
        ),
    ] = False,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            help="Minutes between checkpoints, besides the one after every validation.",
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
    two-tensor file, pages of a stack), or pixels of one image (--self).

    The run folder receives best.safetensors (for denoise-batch --weights),
    last.safetensors, model-card.md (what they are), a checkpoint, config.json,
    metrics.jsonl (a line for every validation), samples.png (clean or
    second shot, noisy, output) and, with the extra "plots", curves.png.

    A run validates after ten seconds of training, then at every 2 % of its
    length or as often as takes a tenth of its time, and at its end. It validates
    the weights of --init first, and keeps them as best until others are better.

    On several GPUs or machines, start the same options with torchrun:
    [cyan]torchrun --nproc-per-node 4 -m denoise_batch.training DATA …[/]
    --batch-size is the global batch size, so the weights do not depend on the
    number of processes.

    Ctrl-C and SIGTERM finish the current step and save a checkpoint; --resume
    continues from it.

    Exit codes: 0 done, 1 diverged or no usable data, 2 usage, 4 device,
    5 weights or checkpoint that cannot be used or written, 130 Ctrl-C, 143 SIGTERM.
    """
    with exit_codes():
        from ..training.distributed import process_group

        given = _given(context)
        kind = _kind(data, pairs, bursts, self_supervised, validation_file)
        paths = {"data": data, "output": output, "pairs": pairs, "validation_file": validation_file}
        options = _options({**given, **paths, "kind": kind})
        options.refuse_ignored(given)
        with process_group() as group:
            outcome = _run(options, group, _command(context))
        if not group.is_first:
            return
        best, start = outcome.best, outcome.start
        if not (output / "curves.png").exists():
            typer.echo("curves.png needs matplotlib: pip install 'denoise-batch[plots]'", err=True)
        typer.echo(
            f"best: step {best.step} (epoch {best.epoch:.2f}), {outcome.noisy_psnr:.2f} → "
            f"{best.validation_psnr:.2f} dB over all validation tiles "
            f"({outcome.noisy_psnr_mean:.2f} → {best.validation_psnr_mean:.2f} dB averaged per "
            f"tile){_over_start(outcome)}: {printable(str(outcome.weights))}"
        )
        if best == start:
            _warn(
                f"training improved nothing: best.safetensors holds the weights of --init {init} "
                "as they were; train longer, on more data or with a smaller --lr"
            )
        if outcome.gain < 0:
            _warn(
                f"the best weights make noisy tiles worse, by {-outcome.gain:.2f} dB: do not use "
                "them; train longer, or start from good weights with --init"
            )


def _over_start(outcome: "Outcome") -> str:
    """Say what training gained over the weights of --init."""
    if outcome.start is None:
        return ""
    gain = outcome.best.validation_psnr - outcome.start.validation_psnr
    gain_mean = outcome.best.validation_psnr_mean - outcome.start.validation_psnr_mean
    return f", {gain:+.2f} ({gain_mean:+.2f}) dB over the start"


def _warn(text: str) -> None:
    typer.echo(f"warning: {printable(text)}", err=True)


def _command(context: typer.Context) -> str:
    """Return the command that began this run, as a shell takes it."""
    words = ["denoise-train"]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if name == "resume" or source is None or source.name == "DEFAULT":
            continue
        flags = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "argument":
            words.insert(1, str(value))
        elif isinstance(value, bool):
            words.append(flags[0] if value else flags[-1])
        else:
            words += [flags[0], str(value)]
    return shlex.join(words)


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the fields of TrainOptions that the command line sets."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    chosen = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
    chosen -= {"bursts", "show_version"}  # no fields; see `_kind`
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
    from ..options import parse_range
    from ..training.distributed import was_restarted
    from ..training.options import TrainOptions, default_rates

    if "value_range" in chosen:
        chosen["value_range"] = parse_range(chosen["value_range"])
    if "epochs" in chosen and ("steps" in chosen or "minutes" in chosen):
        raise OptionError("--epochs, --steps and --minutes exclude each other")
    network = "tconv"
    if "init" in chosen:
        network = load_weights(find_weights(chosen["init"])).network.architecture
    network = chosen.get("network", network)
    defaults: dict[str, Any] = {"optimizer": TrainOptions.optimizer, "network": network}
    if network.startswith("unet") and chosen["kind"] in OWN_SHOTS:
        defaults |= {"optimizer": "muon", "tile_px": 64, "ema": 0.99}
    lr, momentum = default_rates(chosen.get("optimizer", defaults["optimizer"]), network)
    resume = chosen.get("resume", False) or was_restarted()
    defaults |= {"lr": lr, "momentum": momentum}
    if chosen["kind"] == "clean" and chosen.get("noise") == "real":
        defaults |= {"gray_share": 0.12, "graphics_share": 0.12, "framed_share": 0.15}
    return TrainOptions(**{**defaults, **chosen, "resume": resume})


def _run(options: "TrainOptions", group: "ProcessGroup", command: str) -> "Outcome":
    """Train to the end, or until Ctrl-C or SIGTERM after finishing the current step."""
    from ..training.run_folder import RunFolder
    from ..training.train import train
    from .training_bar import training_bar

    stop = Stop()
    try:
        with training_bar(options) as progress:
            device = group.device(options.device)  # all processes agree on it
            if group.is_first:
                progress.show_device(device)
            if group.size > 1:  # the others would wait for the gradients of one that stops
                return train(options, progress, group, command=command)
            with stopping(stop):
                return train(options, progress, group, stop, command)
    except KeyboardInterrupt as interrupt:
        if stop.signal is None:
            raise
        place = "the same command with --resume continues from here"
        if isinstance(interrupt, Interrupted):  # an unfinished step is lost
            place = "the same command with --resume continues from the last checkpoint"
            if not RunFolder(options.output).checkpoint.exists():
                place = "nothing is saved yet"
        typer.echo(f"stopped; {place}", err=True)
        raise typer.Exit(128 + stop.signal) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `denoise-train` and return its exit code."""
    return run_app(app, arguments)
