"""A training run's folder: configuration, metrics, weights and the checkpoint to go on from."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from denoise_batch.kernels import ExponentialMovingAverage, OptionError
from denoise_batch.kernels.optim import Optimizer

from ..files.atomic import atomic_write
from ..models import Network, load_tensors, save_tensors
from .distributed import ProcessGroup
from .options import TrainOptions

# What may differ between a run and its resumption.
FREE_OPTIONS = {
    "output",
    "data",
    "pairs",
    "validation_file",
    "device",
    "checkpoint_minutes",
    "resume",
}


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        number: 1 for the first.
        training_loss: mean over the epoch's batches, against the targets.
        validation_psnr: dB, one MSE over all validation tiles (the report's protocol).
        validation_psnr_mean: dB, per tile and then averaged.
        lr: learning rate of the last step.
        seconds: training alone, without validation.
        step: steps of the run so far.
        images_per_s: tiles learnt from in a second of training.
        is_best: highest validation_psnr so far.
    """

    number: int
    training_loss: float
    validation_psnr: float
    validation_psnr_mean: float
    lr: float
    seconds: float
    step: int
    images_per_s: float
    is_best: bool


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        loss_sum: of the epoch under way; a 0-d tensor on the device.
        step: steps done.
        epochs: epochs done, validation included.
        epoch_start: steps done when the epoch under way began.
        seconds: spent in steps of the epoch under way.
        total_seconds: spent in steps of the epochs before it.
        best: the best epoch so far.
        is_whole: these counts, the weights and the optimiser's state are of one step.
    """

    loss_sum: Tensor
    step: int = 0
    epochs: int = 0
    epoch_start: int = 0
    seconds: float = 0.0
    total_seconds: float = 0.0
    best: Epoch | None = None
    is_whole: bool = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, nothing is whole; nor after an interruption of it."""
        self.is_whole = False
        yield
        self.is_whole = True

    def finish(self, epoch: Epoch) -> None:
        """Go over to the next epoch."""
        with self.changing():
            self.loss_sum.zero_()
            self.total_seconds += self.seconds
            self.seconds = 0.0
            self.epoch_start = self.step
            self.epochs = epoch.number
            if epoch.is_best:
                self.best = epoch


class RunFolder:
    """config.json, metrics.jsonl, best and last weights, checkpoint; each whole at any time.

    In a team of several workers the first one reads and writes; the others need no such folder.
    """

    def __init__(self, path: Path, team: ProcessGroup | None = None) -> None:
        self.path = path
        self._team = team or ProcessGroup()
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.checkpoint = path / "checkpoint.safetensors"
        self.curves = path / "curves.png"
        self.samples = path / "samples.png"

    def check(self, options: TrainOptions) -> None:
        """Make sure that `start` can begin the run, or go on with the one that is there.

        Raises:
            OptionError: the folder cannot be written, or holds another run.
        """
        self._team.first(lambda: self._check(options))

    def start(self, options: TrainOptions) -> None:
        """Begin the run, or with `options.resume` go on with the one that is there.

        Raises:
            OptionError: as of `check`.
        """
        self._team.first(lambda: self._start(options))

    def _check(self, options: TrainOptions) -> None:
        wanted = options.to_json()
        try:
            nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
            if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
                raise OptionError(f"--output {self.path}: {nearest} is no folder to write in")
            if not self.config.exists():
                return
            found = json.loads(self.config.read_text())
        except OSError as error:
            raise OptionError(f"--output {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise OptionError(f"{self.config}: damaged ({error}); use another folder") from error
        if not options.resume:
            raise OptionError(
                f"{self.path}: already holds a run; give another --output, or --resume to go on"
            )
        # Runs of earlier releases may have been given options that have no effect.
        free = FREE_OPTIONS | options.ignored.keys()
        names = sorted((wanted.keys() | found.keys()) - free)
        other = [n for n in names if wanted.get(n) != found.get(n)]
        if other:
            changes = ", ".join(f"{n} was {found.get(n)}, now {wanted.get(n)}" for n in other)
            raise OptionError(f"--resume: {self.path} holds a run with other options: {changes}")

    def _start(self, options: TrainOptions) -> None:
        self._check(options)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.config.exists():
                content = json.dumps(options.to_json(), indent=2)
                atomic_write(self.config, content.encode() + b"\n")
        except OSError as error:
            raise OptionError(f"--output {self.path}: {error.strerror}") from error

    def record(self, epoch: Epoch) -> list[dict[str, Any]]:
        """Set the epoch's line in metrics.jsonl; lines of epochs that are done anew go.

        Returns:
            All lines.
        """
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        lines = [*lines[: epoch.number - 1], json.dumps(asdict(epoch))]
        atomic_write(self.metrics, "".join(f"{line}\n" for line in lines).encode())
        return [json.loads(line) for line in lines]

    def save_checkpoint(
        self,
        progress: Progress,
        network: Network,
        optimizer: Optimizer,
        average: ExponentialMovingAverage,
    ) -> None:
        """Everything that the next step depends on."""
        if not self._team.is_first:
            return
        tensors = {f"network.{name}": value for name, value in network.named_parameters()}
        tensors |= {f"optimizer.{name}": v for name, v in optimizer.state_dict().items()}
        tensors |= {f"average.{name}": v for name, v in average.state_dict().items()}
        header = {
            "step": progress.step,
            "epochs": progress.epochs,
            "epoch_start": progress.epoch_start,
            "seconds": progress.seconds,
            "total_seconds": progress.total_seconds,
            "best": asdict(progress.best) if progress.best else None,
            "lr": optimizer.lr,
            "mean": network.standardize.mean,
            "std": network.standardize.std,
        }
        save_tensors(self.checkpoint, tensors | {"loss_sum": progress.loss_sum}, header)

    def load_checkpoint(
        self,
        progress: Progress,
        network: Network,
        optimizer: Optimizer,
        average: ExponentialMovingAverage,
    ) -> None:
        """Go on from the last checkpoint, if there is one.

        The weights are of its standardisation, not of what the data, or the file of --init, would
        give now.
        """
        found = self._team.first(
            lambda: load_tensors(self.checkpoint) if self.checkpoint.exists() else None
        )
        if found is None:
            return
        tensors, header = found
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "average": {}}
        progress.loss_sum.copy_(tensors.pop("loss_sum"))
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        network.load_state_dict(parts["network"])
        optimizer.load_state_dict(parts["optimizer"])
        average.load_state_dict(parts["average"])
        progress.step, progress.epochs = header["step"], header["epochs"]
        progress.epoch_start = header["epoch_start"]
        progress.seconds, progress.total_seconds = header["seconds"], header["total_seconds"]
        progress.best = Epoch(**header["best"]) if header["best"] else None
        if "mean" in header:  # checkpoints of earlier releases tell neither these nor the rate
            network.standardize.mean = tuple(header["mean"])
            network.standardize.std = tuple(header["std"])
            optimizer.lr = header["lr"]
