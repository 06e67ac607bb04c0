"""What a training run was asked for, checked once, here."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denoise_batch.kernels import OptionError

from ..models import ARCHITECTURES
from .noise import NoiseModel, parse_noise

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
# Where nobody chooses a highest rate. SGD's depends on the network: with that of `tconv` half of
# the units of `upsample` die, and trained weights of `unet` are lost in 40 steps.
_USUAL_SGD_LR = {"tconv": 4.0, "upsample": 1.5, "unet": 0.1}
_USUAL_LR = 1e-3
# Times 1_000_003, as the order of tiles takes it, it still fits in torch's 64 bits.
LARGEST_SEED = 18 * 10**12


def usual_rates(optimizer: str, network: str) -> tuple[float, float]:
    """Learning rate and momentum for who chooses none."""
    momentum = 0.95 if optimizer == "muon" else 0.9
    return _USUAL_SGD_LR.get(network, 4.0) if optimizer == "sgd" else _USUAL_LR, momentum


@dataclass(frozen=True)
class TrainOptions:
    """One training run.

    Attributes:
        data: folder of clean photographs.
        output: run folder; holds config.json, metrics.jsonl, best and last safetensors.
        network: architecture's name.
        kind: what `data` is: "clean" photographs, to which noise is added; "pairs" with the second
            shots in `pairs`; "bursts", a folder of shots for each scene; "single" noisy images;
            "tensors", the course's file of two tensors.
        pairs: folder of the second shots.
        validation_file: two-tensor file (noisy, clean) to validate on, for "tensors".
        noise: noise model, as `--noise` spells it.
        targets: "noisy" (Noise2Noise) or "clean".
        gray_share: share of the tiles that become gray, with one noise for all channels.
        init: weights to start from instead of random ones.
        tiles: training tiles of an epoch.
        tile_px: side of a tile that the network sees.
        versions: noisy versions stored of a tile, for noise that cannot be drawn at each step.
        validation_tiles: tiles of photographs that are never trained on.
        validation_share: share of the photographs held out for them.
        epochs: passes over the training tiles, unless `steps` or `minutes` says how long.
        steps: length of the run in steps instead.
        minutes: length of the run in minutes of training instead; such a run is not repeatable,
            since its learning rate follows the clock.
        batch_size: tiles a step.
        optimizer: "sgd", "adam", "adamw" or "muon".
        lr: highest learning rate; rises over `warmup_epochs`, then falls to 0 as a half cosine
            with `schedule` "cosine", or stays with "constant".
        momentum: of SGD and Muon.
        nesterov: Nesterov's look-ahead, of SGD and Muon.
        weight_decay: L2 penalty, or AdamW's and Muon's decay.
        clip_norm: longest gradient; a longer one is scaled down. 0 never clips.
        ema: decay of the moving average of the parameters that is validated and saved; 0: none.
        precision: "fp32", or "bf16" for mixed precision.
        augment: turn and mirror tiles at random.
        shuffle: new order each epoch; otherwise sequential, as the report did.
        seed: of tiles, noise, order and initial weights.
        deterministic: use algorithms that give the same bits every time, on any device.
        device: where everything happens.
        checkpoint_minutes: between two checkpoints, besides one at the end of every epoch.
        resume: go on from the run folder's checkpoint, if it has one.
    """

    data: Path
    output: Path
    network: str
    noise: str = "subpixel:8"
    kind: str = "clean"
    pairs: Path | None = None
    validation_file: Path | None = None
    targets: str = "noisy"
    gray_share: float = 0.0
    init: str | None = None
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
    checkpoint_minutes: float = 5.0
    resume: bool = False

    def __post_init__(self) -> None:
        choices = {
            "network": tuple(ARCHITECTURES),
            "kind": ("clean", "pairs", "bursts", "single", "tensors"),
            "targets": ("noisy", "clean"),
            "optimizer": OPTIMIZERS,
            "schedule": ("cosine", "constant"),
            "precision": ("fp32", "bf16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError(f"--{name} {getattr(self, name)!r}: choose {', '.join(known)}")
        if not 0 < self.validation_share < 1:
            raise OptionError(f"--validation-share {self.validation_share}: between 0 and 1")
        if not 0 <= self.gray_share <= 1:
            raise OptionError(f"--gray-share {self.gray_share}: between 0 and 1")
        if not 0 <= self.ema < 1:
            raise OptionError(f"--ema {self.ema}: at least 0 and below 1")
        least = {"tiles": 1, "tile_px": 8, "validation_tiles": 1, "versions": 2, "epochs": 1}
        least |= {"batch_size": 1, "lr": 0, "warmup_epochs": 0, "momentum": 0, "weight_decay": 0}
        least |= {"clip_norm": 0, "seed": 0, "checkpoint_minutes": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} {getattr(self, name)}: must be at least {smallest}")
        if self.seed > LARGEST_SEED:
            raise OptionError(f"--seed {self.seed}: must be at most {LARGEST_SEED}, for torch")
        if self.steps is not None and self.minutes is not None:
            raise OptionError("--steps and --minutes exclude each other")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"--steps {self.steps}: must be at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise OptionError(f"--minutes {self.minutes}: must be above 0")
        if self.deterministic and self.minutes is not None:
            raise OptionError("--deterministic: not with --minutes, whose steps follow the clock")
        parse_noise(self.noise)
        if self.kind != "clean" and self.targets == "clean":
            raise OptionError("--targets clean: there are none among real noisy shots")
        if self.kind != "clean" and self.gray_share:
            raise OptionError(
                f"--gray-share {self.gray_share}: only with clean photographs; leave it out, and "
                "put gray shots among the others"
            )

    @property
    def ignored(self) -> dict[str, str]:
        """Options without effect in this run, each with the reason."""
        reasons: dict[str, str] = {}
        if self.kind != "clean":
            reasons |= dict.fromkeys(("noise", "versions"), "the shots bring their own noise")
        if self.kind == "tensors":
            names = ("tiles", "tile_px", "validation_tiles")
            reasons |= dict.fromkeys(names, "a two-tensor file brings its own tiles")
        if self.optimizer in ("adam", "adamw"):
            reason = f"--optimizer {self.optimizer} has none, only sgd and muon"
            reasons |= dict.fromkeys(("momentum", "nesterov"), reason)
        return reasons

    def refuse_ignored(self, given: Iterable[str]) -> None:
        """Make sure that no option that somebody chose is one without effect.

        Raises:
            OptionError: one is.
        """
        reasons = self.ignored
        for name in given:
            if name in reasons:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag}: has no effect: {reasons[name]}; leave it out")

    @property
    def noise_model(self) -> NoiseModel:
        """The parsed `noise`."""
        return parse_noise(self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
