"""What a run was asked for, checked once, here."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denoise_batch.kernels import OptionError

from .files.scan import Naming
from .networks import ARCHITECTURES
from .training.noise import NoiseModel, parse_noise

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
# Where nobody chooses a highest rate. SGD's depends on the network: with that of `tconv` half of
# the units of `upsample` die, and trained weights of `unet` are lost in 40 steps.
_USUAL_SGD_LR = {"tconv": 4.0, "upsample": 1.5, "unet": 0.1}
_USUAL_LR = 1e-3
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


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

    @property
    def noise_model(self) -> NoiseModel:
        """The parsed `noise`."""
        return parse_noise(self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


FORMATS = {
    "preserve": None,
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
    "ppm": ".ppm",
    "avif": ".avif",
    "jp2": ".jp2",
}


REPORTS = (".json", ".csv", ".html")


@dataclass(frozen=True)
class DenoiseOptions:
    """One run of denoise-batch.

    Attributes:
        inputs: folders, files and glob patterns.
        output: where the outputs go; None puts them beside the input.
        weights: a file, a shipped name, or None for the default.
        device: auto, cpu, cuda, cuda:N or mps.
        reference: folder with the clean images under the same names.
        batch_size: images that go through the network together; None chooses by their size.
        recursive: whether folders are searched to the bottom.
        overwrite: denoise again what already has an output, whoever made it.
        quality: of lossy formats, 1 to 100.
        format: a key of `FORMATS`.
        suffix: added to the outputs' names, before the dot.
        strength: 0 keeps the input, 1 is the network's output, between them their mixture.
        is_ensemble: average over the eight turned and mirrored versions of every image.
        precision: what convolutions compute in: auto, fp32, bf16 or fp16.
        tile: auto (large images are cut up as memory demands), off, or the side of a tile.
        shard: (number, shards): the share of the images that this run does, numbered from 1.
        limit: images that this run denoises at most; None: all.
        has_cuda_graphs: on CUDA, replay the launches of shapes that come again.
        is_measuring: estimate every image's noise and, without references, its PSNR.
        reports: files to write the run's report to, by suffix .json, .csv or .html.
        engine: "local" (this machine) or "ray" (a cluster).
        ray_address: of the cluster; None: what RAY_ADDRESS says, or one on this machine.
    """

    inputs: tuple[str, ...]
    output: Path | None = None
    weights: str | None = None
    device: str = "auto"
    reference: Path | None = None
    batch_size: int | None = None
    recursive: bool = True
    overwrite: bool = False
    quality: int = 95
    format: str = "preserve"
    suffix: str = ""
    strength: float = 1.0
    is_ensemble: bool = False
    precision: str = "auto"
    tile: str = "auto"
    shard: tuple[int, int] = (1, 1)
    limit: int | None = None
    has_cuda_graphs: bool = False
    is_measuring: bool = True
    reports: tuple[Path, ...] = ()
    engine: str = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"--batch-size {self.batch_size}: must be at least 1, or auto")
        if not 1 <= self.quality <= 100:
            raise OptionError(f"--quality {self.quality}: between 1 and 100")
        if self.reference is not None and not self.reference.is_dir():
            raise OptionError(f"--reference {self.reference}: not a folder")
        if self.format not in FORMATS:
            raise OptionError(f"--format {self.format!r}: choose {', '.join(FORMATS)}")
        if any(character in self.suffix for character in "/\\\0"):
            raise OptionError(f"--suffix {self.suffix!r}: part of a file's name, without slashes")
        if not 0 <= self.strength <= 1:
            raise OptionError(f"--strength {self.strength}: between 0 and 1")
        if self.precision not in PRECISIONS:
            raise OptionError(f"--precision {self.precision!r}: choose {', '.join(PRECISIONS)}")
        if self.tile not in ("auto", "off") and not (self.tile.isdecimal() and int(self.tile) > 0):
            raise OptionError(f"--tile {self.tile!r}: auto, off, or a tile's side in pixels")
        number, shards = self.shard
        if not 1 <= number <= shards:
            raise OptionError(f"--shard {number}/{shards}: I/N with I from 1 to N")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit {self.limit}: must be at least 1")
        for path in self.reports:
            _check_report(path)
        if self.engine not in ("local", "ray"):
            raise OptionError(f"--engine {self.engine!r}: choose local or ray")
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError(f"--ray-address {self.ray_address}: goes with --engine ray")

    @property
    def tile_px(self) -> int | None:
        """Side of a tile; 0: never, None: automatic."""
        return {"auto": None, "off": 0}[self.tile] if not self.tile.isdecimal() else int(self.tile)

    @property
    def naming(self) -> Naming:
        """What outputs are called."""
        return Naming(self.suffix, FORMATS[self.format])

    def digest(self, precision: str) -> str:
        """Of everything that makes an output another one, but weights and input.

        Args:
            precision: what `auto` came to.
        """
        quality = [self.quality, self.strength, self.is_ensemble, precision]
        return hashlib.sha256(json.dumps([1, *quality]).encode()).hexdigest()[:16]


def _check_report(path: Path) -> None:
    if path.suffix.lower() not in REPORTS:
        raise OptionError(f"--report {path}: end it in {', '.join(REPORTS)}")
    if path.is_dir():
        raise OptionError(f"--report {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OptionError(f"--report {path}: there is no folder {path.parent}; make it first")


@dataclass(frozen=True)
class EvalOptions:
    """One run of denoise-eval.

    Attributes:
        weights: a file or a shipped name.
        data: folder of clean images.
        noises: noise models, each as `--noise` spells it.
        seed: of the noise.
        is_gray: score luminance instead of colour.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: "fp32" or "bf16".
    """

    weights: str
    data: Path
    noises: tuple[str, ...]
    seed: int = 0
    is_gray: bool = False
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise OptionError(f"--precision {self.precision!r}: choose fp32, bf16")
        for noise in self.noises:
            self.model(noise)

    def model(self, noise: str) -> NoiseModel:
        """The parsed noise."""
        return parse_noise(noise)
