"""Batches of (input, target): what a training step reads. Everything lives on the device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .noise import NoiseModel
from .tiles import map_tiles


class Pairs(ABC):
    """Training tiles by index, as two independently noisy versions."""

    @abstractmethod
    def __len__(self) -> int:
        """How many tiles."""

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(input, target), each float32 (n, 3, H, W), of the tiles at `indices`."""


class DrawnPairs(Pairs):
    """Clean tiles; both versions are drawn anew whenever a tile is asked for.

    Args:
        clean: uint8 (T, 3, H, W).
        noise: the model, of factor 1.
    """

    def __init__(self, clean: Tensor, noise: NoiseModel) -> None:
        self._clean = clean
        self._noise = noise

    def __len__(self) -> int:
        """How many tiles."""
        return len(self._clean)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two fresh draws of every tile."""
        source = _to_float(self._clean[indices])
        return self._noise.draw(source, generator), self._noise.draw(source, generator)


class StoredPairs(Pairs):
    """D noisy versions of every tile; each time two different ones are chosen.

    Args:
        versions: uint8 (T, D, 3, H, W), D ≥ 2.
    """

    def __init__(self, versions: Tensor) -> None:
        self._versions = versions

    def __len__(self) -> int:
        """How many tiles."""
        return len(self._versions)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two different stored versions of every tile."""
        count, device = self._versions.shape[1], self._versions.device
        shape = (len(indices),)
        first = torch.randint(count, shape, generator=generator, device=device)
        step = torch.randint(1, count, shape, generator=generator, device=device)
        second = (first + step) % count
        versions = self._versions
        return _to_float(versions[indices, first]), _to_float(versions[indices, second])


@dataclass(frozen=True)
class Validation:
    """Held-out tiles: `noisy` and `clean`, each float32 (V, 3, H, W)."""

    noisy: Tensor
    clean: Tensor


def training_pairs(
    photographs: Sequence[Path],
    noise: NoiseModel,
    *,
    count: int,
    tile_px: int,
    versions: int,
    seed: int,
    device: torch.device,
) -> Pairs:
    """Cut `count` tiles of `tile_px` a side out of the photographs, onto the device.

    A noise model that samples a larger source (subpixel) is drawn `versions` times now, since the
    sources would not fit in memory; any other noise is drawn anew at every step.
    """
    source_px = tile_px * noise.factor
    if noise.factor == 1:
        clean = map_tiles(photographs, count, source_px, seed, lambda squares, _: squares)
        return DrawnPairs(clean.to(device), noise)

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([noise.draw(squares, generator) for _ in range(versions)], 1)

    return StoredPairs(map_tiles(photographs, count, source_px, seed, draw).to(device))


def validation_tiles(
    photographs: Sequence[Path],
    noise: NoiseModel,
    *,
    count: int,
    tile_px: int,
    seed: int,
    device: torch.device,
) -> Validation:
    """Cut `count` tiles with one noisy version each, drawn once and for all."""

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        source = _to_float(squares)
        return torch.stack([noise.draw(source, generator), noise.clean(source)], 1)

    tiles = map_tiles(photographs, count, tile_px * noise.factor, seed, draw).to(device)
    return Validation(tiles[:, 0].contiguous(), tiles[:, 1].contiguous())


def _to_float(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32) / 255
