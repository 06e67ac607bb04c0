"""Batches of (input, target): what a training step reads. Everything lives on the device."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import OptionError

from .noise import ChainedNoise, NoiseModel
from .photographs import load_photograph, map_tiles

# Of tiles worked on at once before the first step: 50 MB as float32, and noise some times that.
PIECE_PX = 1 << 22

Denoise = Callable[[Tensor], Tensor]


class Pairs(ABC):
    """Training tiles by index, as two independently noisy versions."""

    @abstractmethod
    def __len__(self) -> int:
        """Tiles of an epoch."""

    @abstractmethod
    def batch(
        self, indices: Tensor, random: "StepRandom", denoise: Denoise
    ) -> tuple[Tensor, Tensor]:
        """(input, target), each float32 (n, 3, H, W), of the tiles at `indices`.

        `denoise` is the network as it is now, for pairs whose target depends on it.

        Target pixels of which nothing is known are NaN.
        """


class StepRandom:
    """Randomness of one training step: a function of seed and step, so a run resumes bit for bit.

    Attributes:
        host: for what Python reads: places, symmetries; never waits for the device.
        device: for noise.
    """

    def __init__(self, device: torch.device) -> None:
        self.host = torch.Generator()
        self.device = torch.Generator(device)

    def start(self, seed: int, step: int) -> None:
        """Forget everything before; begin step `step` of the run with this seed."""
        digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
        self.host.manual_seed(int.from_bytes(digest[:8]) >> 1)
        self.device.manual_seed(int.from_bytes(digest[8:16]) >> 1)


class CropPairs(Pairs):
    """Photographs on the device; every batch cuts new places and draws new noise.

    Args:
        photographs: uint8 (3, H, W), each at least `tile_px` a side.
        noise: the model, of factor 1.
        tile_px: side of a crop.
        count: tiles of an epoch.
        has_clean_targets: the target is the clean crop instead of a second noisy version.
        gray_share: share of the crops that become gray, with one noise for all three channels, as
            the network sees a gray image; without them it takes such noise for detail.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        noise: NoiseModel,
        tile_px: int,
        count: int,
        has_clean_targets: bool = False,
        gray_share: float = 0.0,
    ) -> None:
        self._gray_share = gray_share
        self._photographs = photographs
        self._noise = noise
        self._tile_px = tile_px
        self._count = count
        self._has_clean_targets = has_clean_targets
        areas = [p.shape[1] * p.shape[2] for p in photographs]
        self._areas = torch.tensor(areas, dtype=torch.float64)

    def __len__(self) -> int:
        """Tiles of an epoch."""
        return self._count

    def batch(self, indices: Tensor, random: StepRandom, denoise: Denoise) -> tuple[Tensor, Tensor]:
        """As many random crops as there are indices; large photographs give more of them."""
        size = self._tile_px
        chosen = torch.multinomial(self._areas, len(indices), True, generator=random.host)
        places = torch.rand(len(indices), 2, generator=random.host, dtype=torch.float64)
        crops = []
        for number, (down, across) in zip(chosen.tolist(), places.tolist(), strict=True):
            photograph = self._photographs[number]
            top = int(down * (photograph.shape[1] - size + 1))
            left = int(across * (photograph.shape[2] - size + 1))
            crops.append(photograph[:, top : top + size, left : left + size])
        clean = to_float(torch.stack(crops))
        is_gray = torch.rand(len(indices), generator=random.host) < self._gray_share
        is_gray = upload(is_gray, clean.device).view(-1, 1, 1, 1)
        clean = _grayed(clean, is_gray)
        noisy = self._noise.draw(clean, random.device)
        noisy = _of_one_noise(noisy, is_gray)
        if self._has_clean_targets:
            return noisy, clean
        target = self._noise.draw_target(clean, random.device)
        return noisy, _of_one_noise(target, is_gray)


class StoredPairs(Pairs):
    """D noisy versions of every tile; each time two different ones are chosen.

    Args:
        versions: uint8 (T, D, 3, H, W), D ≥ 2.
        noise: what is drawn anew on top of them each time, of factor 1.
        gray_share: share of the tiles that become gray, with one noise for all three channels.
    """

    def __init__(
        self, versions: Tensor, noise: NoiseModel | None = None, gray_share: float = 0.0
    ) -> None:
        self._versions = versions
        self._noise = noise
        self._gray_share = gray_share

    @property
    def tile_px(self) -> int:
        """Side of a tile."""
        return self._versions.shape[-1]

    def __len__(self) -> int:
        """How many tiles."""
        return len(self._versions)

    def batch(self, indices: Tensor, random: StepRandom, denoise: Denoise) -> tuple[Tensor, Tensor]:
        """Two different stored versions of every tile."""
        count, device = self._versions.shape[1], self._versions.device
        shape = (len(indices),)
        indices = upload(indices, device)
        first = torch.randint(count, shape, generator=random.device, device=device)
        step = torch.randint(1, count, shape, generator=random.device, device=device)
        second = (first + step) % count
        noisy = to_float(self._versions[indices, first])
        target = to_float(self._versions[indices, second])
        chance = torch.rand(shape, generator=random.device, device=device).view(-1, 1, 1, 1)
        is_gray = chance < self._gray_share
        noisy, target = _grayed(noisy, is_gray), _grayed(target, is_gray)
        if self._noise is None:
            return noisy, target
        noisy = self._noise.draw(noisy, random.device)
        target = self._noise.draw_target(target, random.device)
        return _of_one_noise(noisy, is_gray), _of_one_noise(target, is_gray)


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
    has_clean_targets: bool = False,
    gray_share: float = 0.0,
) -> Pairs:
    """The photographs as pairs of tiles of `tile_px` a side, on the device.

    A noise model that samples a larger source (subpixel) is drawn `versions` times of `count` tiles
    now, since the sources would not fit in memory; any other noise, also one that follows it, is
    drawn anew at every step. Without subpixel noise places are too, and `count` only says how many
    make an epoch.

    Raises:
        OptionError: clean targets with a noise model that has none.
    """
    if noise.factor == 1:
        loaded = [load_photograph(path).to(device) for path in photographs]
        return CropPairs(loaded, noise, tile_px, count, has_clean_targets, gray_share)
    if has_clean_targets:
        raise OptionError("--targets clean: not with subpixel noise, which stores noisy tiles")

    models = noise.models if isinstance(noise, ChainedNoise) else (noise,)
    rest = ChainedNoise(models[1:]) if len(models) > 1 else None

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([models[0].draw(squares, generator) for _ in range(versions)], 1)

    source_px = tile_px * noise.factor
    stored = map_tiles(photographs, count, source_px, seed, draw, is_zoomed=True)
    return StoredPairs(stored.to(device), rest, gray_share)


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

    source_px, is_zoomed = tile_px * noise.factor, noise.factor > 1

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        rows = []
        for piece in torch.split(squares, tiles_at_once(source_px)):
            source = to_float(piece)
            rows.append(torch.stack([noise.draw(source, generator), noise.clean(source)], 1))
        return torch.cat(rows)

    tiles = map_tiles(photographs, count, source_px, seed, draw, is_zoomed=is_zoomed).to(device)
    return Validation(tiles[:, 0].contiguous(), tiles[:, 1].contiguous())


def mean_and_std(pairs: Pairs, tile_px: int, random: StepRandom) -> tuple[list[float], list[float]]:
    """Each channel's mean and deviation over the inputs of 2 000 tiles, or of all if fewer.

    Drawn in pieces, whose moments are joined as in Chan et al. (1979); of one piece they are
    torch's to the last bit.
    """
    counts, means, variances = [], [], []
    first = torch.arange(min(len(pairs), 2_000))
    for indices in torch.split(first, tiles_at_once(tile_px)):
        noisy, _ = pairs.batch(indices, random, torch.zeros_like)
        counts.append([noisy[:, 0].numel()])
        means.append(noisy.mean((0, 2, 3)).cpu().double())
        variances.append(noisy.std((0, 2, 3)).cpu().double().square())
    count, each = torch.tensor(counts, dtype=torch.float64), torch.stack(means)
    mean = (count * each).sum(0) / count.sum()
    squares = (count - 1) * torch.stack(variances) + count * (each - mean).square()
    std = (squares.sum(0) / (count.sum() - 1)).sqrt()
    return mean.float().tolist(), std.float().tolist()


def tiles_at_once(side_px: int) -> int:
    """How many tiles of this side make a piece of `PIECE_PX` pixels; at least one."""
    return max(1, PIECE_PX // side_px**2)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device, without waiting for what the device is still doing.

    On CUDA from pinned memory, which torch does not hand out again before the copy is made.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _grayed(tiles: Tensor, is_gray: Tensor) -> Tensor:
    """The tiles (N, 3, H, W), gray where `is_gray` (N, 1, 1, 1) says so."""
    luma = (tiles * _luma(tiles.device)).sum(1, keepdim=True)
    return torch.where(is_gray, luma, tiles)


def _of_one_noise(tiles: Tensor, is_gray: Tensor) -> Tensor:
    """The tiles (N, 3, H, W), with the first channel's noise in all three where they are gray."""
    return torch.where(is_gray, tiles[:, :1], tiles)


@cache
def _luma(device: torch.device) -> Tensor:
    """ITU-R BT.601, (1, 3, 1, 1); kept, since an upload would wait."""
    return torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1)
