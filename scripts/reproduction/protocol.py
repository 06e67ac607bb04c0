"""The report's data: 32×32 tiles, two noisy versions each by point sampling, and their clean mean.

The same squares and the same noise as `denoise-train CORPUS --noise subpixel:8 --seed 0` draws, so
that PSNR here and there can be compared. Built once, then read from one file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from scale import ValueRange
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
class Protocol:
    """Training tiles as uint8 (T, 3, 32, 32), validation tiles as float32 (V, 3, 32, 32).

    Attributes:
        noisy: first noisy version of every training tile.
        other: second one, independent.
        clean: their mean over all that could be drawn, rounded to 8 bits (noise of −59 dB).
        validation_noisy: one noisy version of every validation tile.
        validation_clean: the exact mean.
        photographs: number of photographs on either side of the split.
    """

    noisy: Tensor
    other: Tensor
    clean: Tensor
    validation_noisy: Tensor
    validation_clean: Tensor
    photographs: tuple[int, int]


def load_protocol(corpus: Path, cache: Path, scale: ValueRange) -> Protocol:
    """The data, from the cache if the same photographs gave it before."""
    split = split_photographs(corpus, SOURCE_PX, VALIDATION_SHARE)
    names = [path.relative_to(corpus).as_posix() for path in (*split.training, *split.validation)]
    key = f"{scale.tiles} {scale.validation_tiles} {SEED} {names}".encode()
    file = cache / f"protocol-{hashlib.sha256(key).hexdigest()[:12]}.safetensors"
    if file.exists():
        tensors, _ = load_tensors(file)
        return Protocol(**tensors, photographs=(len(split.training), len(split.validation)))

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
    return Protocol(**tensors, photographs=(len(split.training), len(split.validation)))


def standardisation(protocol: Protocol) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of the first 2 000 noisy tiles, as denoise-train has them."""
    tiles = to_float(protocol.noisy[:2000])
    return tiles.mean((0, 2, 3)).tolist(), tiles.std((0, 2, 3)).tolist()
