"""A training run's folder: configuration, metrics, weights, checkpoint and pictures."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels import (
    ExponentialMovingAverage,
    OptionError,
    ShapeError,
    TrainingError,
)
from denoise_batch.kernels.optim import Optimizer

from ..files.atomic import atomic_file, atomic_write
from ..files.pixels import to_pil
from ..models import Network, load_tensors, save_tensors, save_weights
from .data_files import describe_files
from .distributed import ProcessGroup
from .options import TrainOptions

# Options that may differ when a run is resumed.
FREE_OPTIONS = {
    "output",
    "data",
    "pairs",
    "validation_file",
    "device",
    "cuda_graphs",
    "checkpoint_minutes",
    "resume",
}
# Options that every run has: a config.json without them is another program's.
REQUIRED_OPTIONS = {f.name for f in fields(TrainOptions) if f.default is MISSING}
FILES = "data_files"  # what config.json holds besides options
SAMPLES = 6  # rows of samples.png
GAP_PX = 4


@dataclass(frozen=True)
class ValidationResult:
    """What a validation found, and the training since the one before; a line of metrics.jsonl.

    Attributes:
        number: 1 for the first.
        step: steps of the run so far.
        epoch: the same in epochs, with a fraction.
        training_loss: mean over the batches since the last validation, against the targets; None
            for the weights of --init, which a run validates before its first step.
        validation_psnr: dB, of one MSE over all validation tiles (the course paper's protocol).
        validation_psnr_mean: dB, averaged over tiles.
        lr: learning rate of the last step; 0 before the first.
        seconds: training time since the last validation, without that of validation.
        images_per_s: training tiles per second of that time.
        is_best: whether validation_psnr is the highest so far.
    """

    number: int
    step: int
    epoch: float
    training_loss: float | None
    validation_psnr: float
    validation_psnr_mean: float
    lr: float
    seconds: float
    images_per_s: float
    is_best: bool


@dataclass
class TrainingState:
    """Everything that the next step depends on: the content of a checkpoint.

    Attributes:
        network: the network in training.
        optimizer: updates its parameters.
        average: moving average of its parameters, validated and saved instead of them.
        loss_sum: sum of the losses since the last validation; a 0-d tensor on the device.
        step: steps done.
        validations: validations done.
        validated_step: steps done before the last of them.
        seconds: time spent in steps since then.
        total_seconds: time spent in steps before.
        start: the validation of the weights of --init; None without them.
        best: the best validation so far.
        is_consistent: whether counts, weights and optimiser belong to the same step.
    """

    network: Network
    optimizer: Optimizer
    average: ExponentialMovingAverage
    loss_sum: Tensor
    step: int = 0
    validations: int = 0
    validated_step: int = 0
    seconds: float = 0.0
    total_seconds: float = 0.0
    start: ValidationResult | None = None
    best: ValidationResult | None = None
    is_consistent: bool = True

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Mark the state as inconsistent inside the block, and after an exception in it."""
        self.is_consistent = False
        yield
        self.is_consistent = True

    def finish_validation(self, result: ValidationResult) -> None:
        """Begin to count anew."""
        with self.updating():
            self.loss_sum.zero_()
            self.total_seconds += self.seconds
            self.seconds = 0.0
            self.validated_step = self.step
            self.validations = result.number
            if result.step == 0:
                self.start = result
            if result.is_best:
                self.best = result


class RunFolder:
    """config.json, metrics.jsonl, weights, checkpoint, model card, samples.png and curves.png.

    Every file is replaced atomically. Of several processes only the first reads and writes; the
    others need no such folder.
    """

    def __init__(self, path: Path, group: ProcessGroup | None = None) -> None:
        self.path = path
        self._group = group or ProcessGroup()
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.checkpoint = path / "checkpoint.safetensors"
        self.curves = path / "curves.png"
        self.samples = path / "samples.png"
        self.card = path / "model-card.md"

    def check(self, options: TrainOptions) -> None:
        """Check that `start` can begin the run, or resume the run in this folder.

        Raises:
            OptionError: the folder is not writable, or holds another run or files of other origin,
                or that run's data were others.
            TrainingError: the data cannot be read.
        """

        def check() -> None:
            self._check(options)
            if self.config.exists():
                self._check_files(options)

        self._group.on_first(check)

    def start(self, options: TrainOptions) -> None:
        """Create the folder and config.json, or with `options.resume` keep those of the run.

        Raises:
            OptionError, TrainingError: as for `check`.
        """
        self._group.on_first(lambda: self._start(options))

    def _check(self, options: TrainOptions) -> None:
        wanted = options.to_json()
        try:
            nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
            if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
                raise OptionError(f"--output {self.path}: {nearest} is not a writable folder")
            if not self.config.exists():
                self._check_empty()
                return
            found = json.loads(self.config.read_text())
        except OSError as error:
            raise OptionError(f"--output {self.path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{self.config}: damaged ({error}); use another folder") from error
        if not isinstance(found, dict) or REQUIRED_OPTIONS - found.keys():
            raise OptionError(
                f"{self.config}: is no training run's; choose a new or empty --output folder"
            )
        if not options.resume:
            raise OptionError(
                f"{self.path}: already holds a run; choose another --output, or continue it with "
                "--resume"
            )
        found.pop(FILES, None)
        # Earlier releases had fewer options, and accepted some that have no effect.
        found = {f.name: f.default for f in fields(options) if f.default is not MISSING} | found
        free = FREE_OPTIONS | options.ignored.keys()
        names = sorted((wanted.keys() | found.keys()) - free)
        other = [n for n in names if wanted.get(n) != found.get(n)]
        if other:
            changes = ", ".join(f"{n} was {found.get(n)}, now {wanted.get(n)}" for n in other)
            raise OptionError(f"--resume: {self.path} holds a run with other options: {changes}")

    def _check_files(self, options: TrainOptions) -> None:
        began = json.loads(self.config.read_text()).get(FILES)  # earlier releases did not tell
        if began is None or began == (now := describe_files(options)):
            return
        raise OptionError(
            f"--resume: the data changed since {self.path} began (were {began}, now {now}); "
            f"restore them, or start a new run from its weights: --init {self.best} -o a new folder"
        )

    def _check_empty(self) -> None:
        if not self.path.is_dir():
            return
        # Hidden are what systems leave everywhere, and what a death left of config.json.
        names = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise OptionError(
                f"--output {self.path}: holds {names[0]}{more}, but no training run; choose a new "
                "or empty folder"
            )

    def _start(self, options: TrainOptions) -> None:
        self._check(options)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.config.exists():
                content = json.dumps(options.to_json() | {FILES: describe_files(options)}, indent=2)
                atomic_write(self.config, content.encode() + b"\n")
        except OSError as error:
            raise OptionError(f"--output {self.path}: {error.strerror}") from error

    def save_weights(
        self, network: Network, result: ValidationResult, training: Mapping[str, Any]
    ) -> None:
        """Write last.safetensors, and best.safetensors after the best validation so far."""
        save_weights(self.last, network, training)
        if result.is_best:
            save_weights(self.best, network, training)

    def record(self, result: ValidationResult) -> list[dict[str, Any]]:
        """Write the line of metrics.jsonl, dropping later lines of validations to be redone.

        Returns:
            All lines.
        """
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        lines = [*lines[: result.number - 1], json.dumps(asdict(result), allow_nan=False)]
        atomic_write(self.metrics, "".join(f"{line}\n" for line in lines).encode())
        return [json.loads(line) for line in lines]

    def save_card(self, text: str) -> None:
        """Write model-card.md."""
        atomic_write(self.card, text.encode())

    def save_checkpoint(self, state: TrainingState) -> None:
        """Save everything that the next step depends on."""
        if not self._group.is_first:
            return
        network, optimizer, average = state.network, state.optimizer, state.average
        tensors = {f"network.{name}": value for name, value in network.named_parameters()}
        tensors |= {f"optimizer.{name}": v for name, v in optimizer.state_dict().items()}
        tensors |= {f"average.{name}": v for name, v in average.state_dict().items()}
        header = {
            "step": state.step,
            "validations": state.validations,
            "validated_step": state.validated_step,
            "seconds": state.seconds,
            "total_seconds": state.total_seconds,
            "start": asdict(state.start) if state.start else None,
            "best": asdict(state.best) if state.best else None,
            "lr": optimizer.lr,
            "mean": network.normalize.mean,
            "std": network.normalize.std,
        }
        save_tensors(self.checkpoint, tensors | {"loss_sum": state.loss_sum}, header)

    def _read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.checkpoint.exists():
            return load_tensors(self.checkpoint)
        # A run that dies between its first validation and its first checkpoint begins anew.
        if self.metrics.exists() and len(self.metrics.read_text().splitlines()) > 1:
            raise OptionError(
                f"--resume: {self.checkpoint} is missing, without which the run cannot go on; "
                f"restore it, or start a new run from its weights: --init {self.best} -o a new "
                "folder"
            )
        return None

    def load_checkpoint(self, state: TrainingState) -> None:
        """Restore the last checkpoint, if there is one.

        The network keeps the standardisation that it was trained with, whatever the data or the
        file of --init would give now.

        Raises:
            OptionError: the run validated twice, but has no checkpoint, or has no best weights.
            TrainingError: it is of a network of other layers, as an earlier release had.
        """
        found = self._group.on_first(self._read_checkpoint)
        if found is None:
            return
        tensors, header = found
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "average": {}}
        state.loss_sum.copy_(tensors.pop("loss_sum"))
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        try:
            state.network.load_state_dict(parts["network"])
        except ShapeError as error:
            raise TrainingError(
                f"{self.checkpoint}: holds another network than this release's "
                f"{state.network.architecture}; begin a new run from its weights: --init "
                f"{self.best} -o a new folder"
            ) from error
        state.optimizer.load_state_dict(parts["optimizer"])
        state.average.load_state_dict(parts["average"])
        state.step, best = header["step"], header["best"]
        if "epochs" in header:  # earlier releases validated after every epoch
            state.validations, state.validated_step = header["epochs"], header["epoch_start"]
            best = best and {"epoch": float(best["number"]), **best}
        else:
            state.validations, state.validated_step = (
                header["validations"],
                header["validated_step"],
            )
        state.seconds, state.total_seconds = header["seconds"], header["total_seconds"]
        start = header.get("start")  # earlier releases did not validate it
        state.start = ValidationResult(**start) if start else None
        state.best = ValidationResult(**best) if best else None
        if state.best and self._group.on_first(lambda: not self.best.exists()):
            raise OptionError(
                f"--resume: {self.best} is missing; restore it, or start a new run from "
                f"--init {self.last} -o a new folder"
            )
        if "mean" in header:  # checkpoints of earlier releases lack these and the learning rate
            state.network.normalize.mean = tuple(header["mean"])
            state.network.normalize.std = tuple(header["std"])
            state.optimizer.lr = header["lr"]


def draw_samples(path: Path, clean: Tensor, noisy: Tensor, output: Tensor) -> None:
    """Draw rows of clean | noisy | output, as in the course paper's Figures 2 and 3.

    All are stretched alike, to the range of the clean ones.

    Args:
        path: PNG to write.
        clean: (N, 3, H, W) in [0, 1], NaN where only `noisy` is known; the first `SAMPLES` are
            drawn.
        noisy: same shape.
        output: same shape.
    """
    count, _, height, width = clean[:SAMPLES].shape
    zoom = max(1, 128 // width)
    size = (3 * (width * zoom + GAP_PX) - GAP_PX, count * (height * zoom + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    clean, noisy, output = (images[:count].cpu().float() for images in (clean, noisy, output))
    clean = torch.where(clean.isnan(), noisy, clean)
    low, high = _ends(clean)
    columns = [(images - low) / (high - low) for images in (clean, noisy, output)]
    for row in range(count):
        for column, images in enumerate(columns):
            tile = _to_image(images[row]).resize(
                (width * zoom, height * zoom), Image.Resampling.BOX
            )
            sheet.paste(tile, (column * (width * zoom + GAP_PX), row * (height * zoom + GAP_PX)))
    with atomic_file(path) as file:
        sheet.save(file, "PNG")


class Curves:
    """curves.png, redrawn at intervals: one drawing takes as long as a hundred small steps.

    Args:
        path: PNG to write.
        noisy_psnr: dB of the noisy validation tiles.
        loss: of the run, as `draw_curves` takes it.
        seconds: shortest interval between two drawings.
    """

    def __init__(self, path: Path, noisy_psnr: float, loss: str, seconds: float = 20.0) -> None:
        self.path = path
        self.noisy_psnr = noisy_psnr
        self.loss = loss
        self.seconds = seconds
        self._drawn_at = time.monotonic()
        self._rows: Sequence[Mapping[str, Any]] = ()  # not drawn yet

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over all lines of metrics.jsonl after a validation."""
        self._rows = rows
        if time.monotonic() - self._drawn_at >= self.seconds:
            self.draw()

    def draw(self) -> None:
        """Draw the lines that are not drawn yet."""
        if self._rows:
            draw_curves(self.path, self._rows, self.noisy_psnr, self.loss)
        self._rows = ()
        self._drawn_at = time.monotonic()


# Names of the losses on the axis; the validation's error is comparable with the first alone.
LOSS_NAMES = {
    "mse": "mean squared error",
    "log": "logarithm of the error, relative to the noise",
    "estimator": "mean squared error of √level",
}


def draw_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], noisy_psnr: float, loss: str = "mse"
) -> bool:
    """Plot losses and PSNR over the steps, as the course paper's Figure 1 does over epochs.

    Args:
        path: PNG to write.
        rows: the lines of metrics.jsonl.
        noisy_psnr: dB of the noisy validation tiles, for the title: as a line far below the curve
            it would flatten it.
        loss: of the training: a key of `LOSS_NAMES`.

    Returns:
        Whether matplotlib (the extra `plots`) is installed; without it nothing is drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, psnrs = figure.subplots(1, 2)
    values = [row["validation_psnr"] for row in rows]
    errors = [10 ** (-value / 10) for value in values]
    style = {"marker": "o", "markersize": 3}
    trained = [(row["step"], row["training_loss"]) for row in rows if row["step"]]
    losses.plot(*zip(*trained, strict=True) if trained else ([], []), label="training", **style)
    losses.set(xlabel="step", ylabel=LOSS_NAMES[loss], title="training loss")
    if loss == "mse":
        losses.plot(steps, errors, label="validation", **style)
        losses.set(title="loss", yscale="log")
        losses.legend()
    psnrs.plot(steps, values, color="C1", **style)
    psnrs.set(
        xlabel="step", ylabel="dB", title=f"validation PSNR (noisy tiles: {noisy_psnr:.2f} dB)"
    )
    for axes in (losses, psnrs):
        axes.grid(alpha=0.3)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def _ends(images: Tensor) -> tuple[float, float]:
    """Return what all but a thousandth of the values at either end lie in."""
    values = images.flatten().sort().values
    dropped = len(values) // 1000
    low, high = float(values[dropped]), float(values[-1 - dropped])
    return (low, high) if high > low else (0.0, 1.0)


def _to_image(pixels: Tensor) -> Image.Image:
    """Convert (3, H, W) in [0, 1] to a Pillow image."""
    return to_pil((pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0))
