"""The data: 32×32 tiles with two noisy versions each, by point sampling, and their clean mean.

Squares and noise are those of `denoise-train CORPUS --noise subpixel:8 --seed 0`, so that PSNR
can be compared. Built once, then read from one file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from config import Scale
from torch import Tensor

from denoise_batch.models import load_tensors, save_tensors
from denoise_batch.training.data import (
    VALIDATION_SEED,
    map_tiles,
    split_photographs,
    validation_tiles,
)
from denoise_batch.training.noise import SubpixelNoise
from denoise_batch.training.pairs import to_float

NOISE = SubpixelNoise(8)
TILE_PX = 32
SOURCE_PX = NOISE.factor * TILE_PX
SEED = 0
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """Training tiles as uint8 (T, 3, 32, 32), validation tiles as float32 (V, 3, 32, 32).

    Attributes:
        noisy: a noisy version of every training tile.
        other: a second, independent one.
        clean: their expectation, rounded to 8 bits (an error of −59 dB).
        validation_noisy: a noisy version of every validation tile.
        validation_clean: their exact expectation.
        photographs: numbers of training and validation photographs.
    """

    noisy: Tensor
    other: Tensor
    clean: Tensor
    validation_noisy: Tensor
    validation_clean: Tensor
    photographs: tuple[int, int]


def load_dataset(corpus: Path, cache: Path, scale: Scale) -> Dataset:
    """Return the data, from the cache if it was built from the same photographs."""
    split = split_photographs(corpus, SOURCE_PX, VALIDATION_SHARE)
    names = [path.relative_to(corpus).as_posix() for path in (*split.training, *split.validation)]
    key = f"{scale.tiles} {scale.validation_tiles} {SEED} {names}".encode()
    file = cache / f"protocol-{hashlib.sha256(key).hexdigest()[:12]}.safetensors"
    if file.exists():
        tensors, _ = load_tensors(file)
        return Dataset(**tensors, photographs=(len(split.training), len(split.validation)))

    def versions(squares: Tensor, generator: torch.Generator) -> Tensor:
        drawn = [NOISE.draw(squares, generator) for _ in range(2)]
        mean = NOISE.clean(squares.to(torch.float32)).round().to(torch.uint8)
        return torch.stack([*drawn, mean], 1)

    tiles = map_tiles(split.training, scale.tiles, SOURCE_PX, SEED, versions, is_zoomed=True)
    held_out = validation_tiles(
        split.validation,
        NOISE,
        count=scale.validation_tiles,
        tile_px=TILE_PX,
        seed=VALIDATION_SEED,
        device=torch.device("cpu"),
    )
    tensors = {
        "noisy": tiles[:, 0].contiguous(),
        "other": tiles[:, 1].contiguous(),
        "clean": tiles[:, 2].contiguous(),
        "validation_noisy": held_out.noisy,
        "validation_clean": held_out.clean,
    }
    cache.mkdir(parents=True, exist_ok=True)
    save_tensors(file, tensors, {"corpus": corpus.name, "tiles": scale.tiles})
    return Dataset(**tensors, photographs=(len(split.training), len(split.validation)))


def standardisation(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of 2 000 noisy tiles, as denoise-train."""
    tiles = to_float(dataset.noisy[:2000])
    return tiles.mean((0, 2, 3)).tolist(), tiles.std((0, 2, 3)).tolist()
