"""The options of a training run and their checks."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denoise_batch.kernels import OptionError

from ..models import ARCHITECTURES
from ..options import check_range
from .axes import parse_axes
from .noise import NoiseModel, parse_noise
from .scene_pairs import METHODS

LOSSES = ("mse", "log")
OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
# Default learning rates. SGD's depends on the network: with that of `tconv`, half of the units of
# `upsample` die, and trained weights of `unet` are lost in 40 steps.
_DEFAULT_SGD_LR = {"tconv": 4.0, "upsample": 1.5, "unet": 0.1, "unet-level": 0.1}
_DEFAULT_LR = 1e-3
# Multiplied by 1_000_003, as the order of tiles does, it still fits in torch's 64 bits.
LARGEST_SEED = 18 * 10**12


def default_rates(optimizer: str, network: str) -> tuple[float, float]:
    """Return the default learning rate and momentum of an optimiser for a network."""
    momentum = 0.95 if optimizer == "muon" else 0.9
    return _DEFAULT_SGD_LR.get(network, 4.0) if optimizer == "sgd" else _DEFAULT_LR, momentum


@dataclass(frozen=True)
class TrainOptions:
    """One training run.

    Attributes:
        data: folder of clean photographs, or what `kind` says.
        output: run folder; holds config.json, metrics.jsonl, weights and a checkpoint.
        network: name of the architecture.
        noise: noise model, as spelled in `--noise`.
        kind: content of `data`: "clean" photographs, to which noise is added; "pairs", first noisy
            shots, with the second ones in `pairs`; "bursts", a folder of noisy shots per scene;
            "single" noisy images; "tensors", the course's two-tensor file.
        pairs: folder of the second shots.
        self_supervised: how "single" images are learnt from: "recorrupted", "neighbor",
            "blind-spot" or "auto".
        axes: what the pages of a file are, as `--axes` spells it; None by the kind of data.
        value_range: (black, white) of samples above 8 bits; None: as `denoise-batch` does.
        validation_file: two-tensor file (noisy, clean) to validate on, for "tensors".
        targets: "noisy" (Noise2Noise) or "clean".
        gray_share: share of tiles turned gray, with the same noise in all channels.
        graphics_share: share of tiles of drawn graphics (text, lines, patterns, flat colours).
        framed_share: share of tiles with an even frame, where there is no noise.
        init: weights to start from instead of random ones.
        estimator: train the noise estimator of `init` and leave its other layers as they are.
        loss: "mse", or "log" (`LogMSELoss`), which weighs weak and strong noise alike.
        tiles: training tiles per epoch.
        tile_px: side of a tile, as the network sees it.
        versions: noisy versions stored per tile, for noise that cannot be drawn in every step.
        validation_tiles: tiles of held-out photographs.
        validation_share: share of photographs held out.
        epochs: passes over the training tiles, unless `steps` or `minutes` sets the length.
        steps: length of the run in steps.
        minutes: length of the run in minutes of training; not reproducible, because the learning
            rate follows the clock.
        batch_size: tiles per step.
        optimizer: "sgd", "adam", "adamw" or "muon".
        lr: highest learning rate; rises over `warmup_epochs`, then falls to 0 along a half cosine
            ("cosine") or stays ("constant").
        warmup_epochs: epochs of rising learning rate; it rises for a tenth of the run at most.
        schedule: "cosine" or "constant".
        momentum: momentum of SGD and Muon.
        nesterov: use Nesterov momentum in SGD and Muon.
        weight_decay: L2 penalty; decoupled weight decay for AdamW and Muon.
        clip_norm: largest gradient norm; larger gradients are scaled down to it. 0 disables it.
        ema: decay of the moving average of the parameters, which is validated and saved; 0
            disables it.
        precision: "fp32", or on a GPU "bf16" for mixed precision.
        augment: rotate and mirror tiles at random.
        shuffle: use a new order in each epoch; otherwise sequential, as in the course paper.
        seed: seed of tiles, noise, order and initial weights.
        deterministic: use only algorithms that give the same bits every time.
        device: auto, cpu, cuda, cuda:N, mps or xpu.
        cuda_graphs: on CUDA, record the launches of a step and replay them.
        checkpoint_minutes: interval between checkpoints, besides the one after every validation.
        resume: continue from the run folder's checkpoint, if it has one.
    """

    data: Path
    output: Path
    network: str
    noise: str = "subpixel:8"
    kind: str = "clean"
    pairs: Path | None = None
    self_supervised: str = "neighbor"
    axes: str | None = None
    value_range: tuple[float, float] | None = None
    validation_file: Path | None = None
    targets: str = "noisy"
    gray_share: float = 0.0
    graphics_share: float = 0.0
    framed_share: float = 0.0
    init: str | None = None
    estimator: bool = False
    loss: str = "mse"
    tiles: int = 50_000
    tile_px: int = 32
    versions: int = 2
    validation_tiles: int = 1_000
    validation_share: float = 0.2
    epochs: int = 15
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    optimizer: str = "sgd"
    lr: float = 4.0
    warmup_epochs: float = 0.2
    schedule: str = "cosine"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    clip_norm: float = 0.1
    ema: float = 0.0
    precision: str = "fp32"
    augment: bool = True
    shuffle: bool = True
    seed: int = 0
    deterministic: bool = False
    device: str = "auto"
    cuda_graphs: bool = False
    checkpoint_minutes: float = 5.0
    resume: bool = False

    def __post_init__(self) -> None:
        choices = {
            "network": tuple(ARCHITECTURES),
            "kind": ("clean", "pairs", "bursts", "single", "tensors"),
            "self_supervised": (*METHODS, "auto"),
            "targets": ("noisy", "clean"),
            "loss": LOSSES,
            "optimizer": OPTIMIZERS,
            "schedule": ("cosine", "constant"),
            "precision": ("fp32", "bf16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = "self" if name == "self_supervised" else name
                raise OptionError(f"--{flag} {getattr(self, name)!r}: choose {', '.join(known)}")
        if not 0 < self.validation_share < 1:
            raise OptionError(
                f"--validation-share {self.validation_share}: must be between 0 and 1"
            )
        for name in ("gray_share", "graphics_share", "framed_share"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} {getattr(self, name)}: must be between 0 and 1")
        if not 0 <= self.ema < 1:
            raise OptionError(f"--ema {self.ema}: must be at least 0 and below 1")
        least = {"tiles": 1, "tile_px": 8, "validation_tiles": 1, "versions": 2, "epochs": 1}
        least |= {"batch_size": 1, "lr": 0, "warmup_epochs": 0, "momentum": 0, "weight_decay": 0}
        least |= {"clip_norm": 0, "seed": 0, "checkpoint_minutes": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} {getattr(self, name)}: must be at least {smallest}")
        if self.seed > LARGEST_SEED:
            raise OptionError(f"--seed {self.seed}: must be at most {LARGEST_SEED}")
        if self.steps is not None and self.minutes is not None:
            raise OptionError("--steps and --minutes exclude each other")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"--steps {self.steps}: must be at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise OptionError(f"--minutes {self.minutes}: must be above 0")
        if self.deterministic and self.minutes is not None:
            raise OptionError(
                "--deterministic and --minutes exclude each other: minutes follow the clock"
            )
        if self.estimator and self.init is None:
            raise OptionError(
                "--estimator: needs --init with the weights of a network that is told the noise "
                "level (--network unet-level)"
            )
        if self.estimator and not ARCHITECTURES[self.network].takes_level:
            raise OptionError(
                f"--estimator: {self.network} takes no noise level; start from weights of "
                "unet-level"
            )
        parse_noise(self.noise)
        if self.value_range is not None:
            check_range(*self.value_range)
        if self.axes is not None and "T" in parse_axes(self.axes) and self.kind == "single":
            raise OptionError(
                f"--axes {self.axes}: T are shots of one scene, which teach more than --self: use "
                "--bursts, or S instead of T if every page shows another scene"
            )
        if self.kind != "clean" and self.targets == "clean":
            raise OptionError("--targets clean: real noisy shots have no clean targets")
        if self.kind != "clean" and self.gray_share:
            raise OptionError(
                f"--gray-share {self.gray_share}: works with clean photographs only; leave it out "
                "and add gray shots to the data"
            )
        for name in ("graphics_share", "framed_share"):
            if self.kind != "clean" and (share := getattr(self, name)):
                flag = name.replace("_", "-")
                raise OptionError(
                    f"--{flag} {share}: works with clean photographs only; leave it out"
                )

    @property
    def ignored(self) -> dict[str, str]:
        """Options that have no effect in this run, each with the reason."""
        reasons: dict[str, str] = {}
        if self.kind != "clean":
            reasons |= dict.fromkeys(("noise", "versions"), "the shots contain their own noise")
        if self.kind == "tensors":
            names = ("tiles", "tile_px", "validation_tiles")
            reasons |= dict.fromkeys(names, "a two-tensor file contains its own tiles")
            reasons |= dict.fromkeys(("axes", "value_range"), "a two-tensor file has neither")
        if self.kind == "clean":
            reasons["axes"] = "every page is a photograph"
        if self.estimator:
            reasons["loss"] = "the estimator has a loss of its own"
        if self.optimizer in ("adam", "adamw"):
            reason = f"only sgd and muon use it, not {self.optimizer}"
            reasons |= dict.fromkeys(("momentum", "nesterov"), reason)
        return reasons

    def refuse_ignored(self, given: Iterable[str]) -> None:
        """Check that none of the given options is without effect.

        Raises:
            OptionError: one has no effect in this run.
        """
        reasons = self.ignored
        for name in given:
            if name in reasons:
                flag = "range" if name == "value_range" else name.replace("_", "-")
                raise OptionError(f"--{flag}: has no effect: {reasons[name]}; leave it out")

    @property
    def ranks_by_mean(self) -> bool:
        """Whether the tiles' mean PSNR ranks validations: it weighs weak noise like strong."""
        return self.estimator or self.loss == "log"

    @property
    def noise_model(self) -> NoiseModel:
        """The parsed noise model."""
        return parse_noise(self.noise)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for config.json."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
