"""Batches of (input, target) for one training step; every tensor is on the training device."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics import luma
from .filters import enlargement, filtered
from .graphics import Graphics
from .noise import NoiseModel, rms

# Pixels of the tiles processed at once before the first step: 50 MB as float32, several times that
# with noise.
CHUNK_PX = 1 << 22
# Shares of the crops that are halved (of large photographs only), of those that are enlarged, up to
# so many times, and of the tiles that end in mirrors.
HALVED_SHARE = 0.15
ENLARGED_SHARE = 0.2
LARGEST_SCALE = 3.0
MIRRORED_SHARE = 0.25
CLEAN_GRAPHICS_SHARE = 0.4  # of the drawn tiles; so are most drawings, and some look like noise
# Of the tiles with a frame: shares with a round one, and with a black or a white one, and how much
# of a side is left, at least.
ROUND_SHARE, BLACK_OR_WHITE_SHARE, LEAST_INSIDE = 0.3, 0.7, 0.35

Denoise = Callable[[Tensor], Tensor]


class Generators:
    """Random generators of one training step, seeded by run and step: a run resumes bit for bit.

    Attributes:
        host: for values that Python reads (crops, symmetries), which must not wait for the device.
        device: for noise.
    """

    def __init__(self, device: torch.device) -> None:
        self.host = torch.Generator()
        self.device = torch.Generator(device)

    def seed(self, seed: int, step: int) -> None:
        """Restart both generators for this step of the run with this seed."""
        digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
        self.host.manual_seed(int.from_bytes(digest[:8]) >> 1)
        self.device.manual_seed(int.from_bytes(digest[8:16]) >> 1)


class Batch(NamedTuple):
    """Tiles of one step, float32 on the training device.

    Attributes:
        noisy: input of the network, (n, 3, H, W).
        target: a second noisy version, or the clean tiles; NaN where a pixel is unknown.
        level: root mean square of noisy − clean of every tile, in the unit of the pixels, (n,);
            for white noise σ before clipping.
    """

    noisy: Tensor
    target: Tensor
    level: Tensor


class Pairs(ABC):
    """Training tiles by index, each as two independently noisy versions.

    Attributes:
        known_share: share of the target that is known, where every tile has the same.
    """

    known_share: float = 1.0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tiles per epoch."""

    @abstractmethod
    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        """Return the tiles at `indices`.

        Args:
            indices: int64 (n,), on the host.
            generators: seeded for this step.
            denoise: the current network, for pairs whose target depends on its output.
        """


@dataclass(frozen=True)
class Validation:
    """Held-out tiles: `noisy` and `clean`, each float32 (V, 3, H, W), and their `level` (V,)."""

    noisy: Tensor
    clean: Tensor
    level: Tensor


class CropPairs(Pairs):
    """Random crops of clean photographs and drawn graphics, with new noise in every batch.

    The network pads a crop's borders as it pads an image's, so each crop trains for borders. An
    image whose sides are no multiples of the network's is first extended by mirroring; a share of
    the tiles ends in such an extension too.

    Args:
        photographs: uint8 (3, H, W), or float32 (1 or 3, H, W) in [0, 1]; each side at least
            `tile_px`. A share of the crops is twice as large and halved; another is enlarged, as
            cameras' pictures at full size are softer than those of the web.
        noise: a model with factor 1.
        tile_px: side of a crop.
        count: tiles per epoch.
        has_clean_targets: use the clean crop as target instead of a second noisy version.
        gray_share: share of crops turned gray, with the same noise in all three channels, as the
            network sees a gray image; a network that never saw such noise takes it for detail.
        graphics: drawn pictures, with sides of at least `tile_px`.
        graphics_share: share of crops that are taken from them.
        framed_share: share of tiles with an even frame, where there is no noise.
        clean_share: share of crops of photographs that get no noise, whatever `noise` says.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        noise: NoiseModel,
        tile_px: int,
        count: int,
        has_clean_targets: bool = False,
        gray_share: float = 0.0,
        graphics: Graphics | None = None,
        graphics_share: float = 0.0,
        framed_share: float = 0.0,
        clean_share: float = 0.0,
    ) -> None:
        self._photographs = photographs
        self._noise = noise
        self._tile_px = tile_px
        self._count = count
        self._has_clean_targets = has_clean_targets
        self._gray_share = gray_share
        self._graphics = graphics
        self._graphics_share = graphics_share
        self._framed_share = framed_share
        self._clean_share = clean_share
        areas = [p.shape[1] * p.shape[2] for p in photographs]
        self._areas = torch.tensor(areas, dtype=torch.float64)

    def __len__(self) -> int:
        """Return the number of tiles per epoch."""
        return self._count

    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        """Return one random crop per index; a photograph is chosen in proportion to its area."""
        host, count = generators.host, len(indices)
        chosen = torch.multinomial(self._areas, count, True, generator=host).tolist()
        draws = torch.rand(count, 4, generator=host, dtype=torch.float64).tolist()
        crops = [self._crop(number, *draw) for number, draw in zip(chosen, draws, strict=True)]
        is_gray = (torch.rand(count, generator=host) < self._gray_share).tolist()
        chances = torch.rand(count, generator=host).tolist()
        tiles: dict[int, tuple[Tensor, ...]] = {}
        for gray in (False, True):
            rows = [row for row in range(count) if is_gray[row] == gray]
            if rows:
                clean = _stacked([crops[row] for row in rows])
                clean = luma(clean) if gray else clean
                drawn = self._draw(clean, generators.device)
                tiles |= dict(zip(rows, zip(*drawn, strict=True), strict=True))
                for place, row in enumerate(rows):
                    is_graphic = draws[row][2] < self._graphics_share
                    share = CLEAN_GRAPHICS_SHARE if is_graphic else self._clean_share
                    if chances[row] < share:
                        tile = clean[place].expand(3, -1, -1)
                        tiles[row] = tile, tile, torch.zeros_like(drawn.level[place])
        batch = Batch(*map(torch.stack, zip(*(tiles[row] for row in range(count)), strict=True)))
        _end_in_mirrors(batch, host)
        if self._framed_share:
            _frame(batch[:2], self._framed_share, host)
        return batch

    def _crop(self, number: int, down: float, across: float, kind: float, scale: float) -> Tensor:
        """Cut (3, tile_px, tile_px) from a photograph or from graphics, of their type."""
        size, picture = self._tile_px, self._photographs[number]
        is_graphic = self._graphics is not None and kind < self._graphics_share
        if self._graphics and is_graphic:
            graphic = self._graphics[int(kind / self._graphics_share * len(self._graphics))]
            picture = upload(graphic, picture.device)
        is_halved = not is_graphic and scale < HALVED_SHARE and min(picture.shape[1:]) >= 2 * size
        cut = 2 * size if is_halved else size
        top, left = (
            int(down * (picture.shape[1] - cut + 1)),
            int(across * (picture.shape[2] - cut + 1)),
        )
        crop = picture[:, top : top + cut, left : left + cut].expand(3, -1, -1)
        if not is_halved:
            enlarged = 0 if is_graphic else (scale - 1) / ENLARGED_SHARE + 1
            return _enlarged(crop, 1 + (LARGEST_SCALE - 1) * enlarged) if enlarged > 0 else crop
        if crop.is_floating_point():
            return crop.reshape(3, size, 2, size, 2).mean((2, 4))
        rows = crop[:, ::2].to(torch.int16) + crop[:, 1::2]
        total = rows[:, :, ::2] + rows[:, :, 1::2]
        return total.add_(2).bitwise_right_shift_(2).to(torch.uint8)

    def _draw(self, clean: Tensor, generator: torch.Generator) -> Batch:
        """Draw noise for clean tiles of one or three channels; the batch has three."""
        noisy, level = self._noise.draw_with_level(clean, generator)
        target = clean if self._has_clean_targets else self._noise.draw_target(clean, generator)
        return Batch(noisy.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1), level)


class StoredPairs(Pairs):
    """D stored noisy versions of every tile; each batch picks two different ones.

    Args:
        versions: uint8 (T, D, 3, H, W), D ≥ 2.
        noise: additional noise drawn anew for every batch, with factor 1.
        gray_share: share of tiles turned gray, with the same noise in all three channels.
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
        """Return the number of tiles."""
        return len(self._versions)

    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        """Return two different stored versions of every tile."""
        count, device = self._versions.shape[1], self._versions.device
        shape = (len(indices),)
        indices = upload(indices, device)
        first = torch.randint(count, shape, generator=generators.device, device=device)
        step = torch.randint(1, count, shape, generator=generators.device, device=device)
        second = (first + step) % count
        noisy = to_float(self._versions[indices, first])
        target = to_float(self._versions[indices, second])
        chance = torch.rand(shape, generator=generators.device, device=device).view(-1, 1, 1, 1)
        is_gray = chance < self._gray_share
        noisy, target = _to_gray(noisy, is_gray), _to_gray(target, is_gray)
        level = level_of_two(noisy, target)
        if self._noise is None:
            return Batch(noisy, target, level)
        noisy, added = self._noise.draw_with_level(noisy, generators.device)
        target = self._noise.draw_target(target, generators.device)
        level = (level.square() + added.square()).sqrt()
        return Batch(_share_noise(noisy, is_gray), _share_noise(target, is_gray), level)


def _enlarged(tile: Tensor, scale: float) -> Tensor:
    """Enlarge the upper left of a tile (3, size, size) to all of it."""
    factor = torch.full((1, 1, 1, 1), scale, device=tile.device)
    large = filtered(tile[None].float(), lambda size: enlargement(size, factor))[0]
    return large if tile.is_floating_point() else large.round_().to(tile.dtype)


def _end_in_mirrors(batch: Batch, generator: torch.Generator) -> None:
    """Overwrite the last rows and columns of a share of the tiles by their mirrored neighbours.

    At most 15, as sides are padded to multiples of 16, and at most an eighth of the tile.
    """
    count, _, size, _ = batch.noisy.shape
    draws = torch.rand(count, 3, generator=generator).tolist()
    for row, (chance, down, across) in enumerate(draws):
        if chance >= MIRRORED_SHARE:
            continue
        for dim, share in ((1, down), (2, across)):
            cut = int(share * (min(15, size // 8) + 1))
            for tile in (batch.noisy[row], batch.target[row]):
                inside = tile.narrow(dim, size - 1 - 2 * cut, cut)
                tile.narrow(dim, size - cut, cut).copy_(inside.flip(dim))


def _frame(tiles: Sequence[Tensor], share: float, generator: torch.Generator) -> None:
    """Paint around a rectangle or an ellipse in a share of the tiles, in one colour.

    So frames, bars above and below a film, the paper of a scan and the ground of a cut-out product
    look: without any noise.

    Args:
        tiles: (N, C, H, W) each; all are painted alike.
        share: of the N.
        generator: on the host.
    """
    count, channels, *size = tiles[0].shape
    draws = torch.rand(count, 8 + channels, generator=generator).tolist()
    is_outside = torch.zeros(count, 1, *size, dtype=torch.bool)
    colours = torch.zeros(count, channels, 1, 1, dtype=tiles[0].dtype)
    for row, (chance, round_, kind, shade, tall, top, wide, left, *colour) in enumerate(draws):
        if chance >= share:
            continue
        down, across = (
            _off_middle(extent, 1 - (1 - LEAST_INSIDE) * max(0.0, 1.5 * cut - 0.5), start)
            for extent, cut, start in zip(size, (tall, wide), (top, left), strict=True)
        )
        is_outside[row] = (
            down[:, None].square() + across.square() > 1
            if round_ < ROUND_SHARE
            else (down.abs() > 1)[:, None] | (across.abs() > 1)
        )
        values = [round(shade)] * channels if kind < BLACK_OR_WHITE_SHARE else colour
        colours[row] = torch.tensor(values).view(-1, 1, 1)
    mask, paint = (upload(host, tiles[0].device) for host in (is_outside, colours))
    for tile in tiles:
        tile.copy_(torch.where(mask, paint, tile))


def _off_middle(extent: int, length: float, start: float) -> Tensor:
    """Distance from the middle of a part of an extent, in halves of that part.

    Args:
        extent: in pixels.
        length: of the part, by that of the extent.
        start: 0 for a part at the beginning, 1 for one at the end.
    """
    along = (torch.arange(extent) + 0.5) / extent
    return (along - (1 - length) * start) / length * 2 - 1


def mean_and_std(
    pairs: Pairs, tile_px: int, generators: Generators
) -> tuple[list[float], list[float]]:
    """Return each channel's mean and deviation over the inputs of up to 2 000 tiles.

    Tiles are drawn in chunks whose moments are combined as in Chan et al. (1979); for a single
    chunk the result equals torch's to the last bit.
    """
    counts, means, variances = [], [], []
    first = torch.arange(min(len(pairs), 2_000))
    for indices in torch.split(first, tiles_per_chunk(tile_px)):
        noisy = pairs.batch(indices, generators, torch.zeros_like).noisy
        counts.append([noisy[:, 0].numel()])
        means.append(noisy.mean((0, 2, 3)).cpu().double())
        variances.append(noisy.std((0, 2, 3)).cpu().double().square())
    count, each = torch.tensor(counts, dtype=torch.float64), torch.stack(means)
    mean = (count * each).sum(0) / count.sum()
    squares = (count - 1) * torch.stack(variances) + count * (each - mean).square()
    std = (squares.sum(0) / (count.sum() - 1)).sqrt()
    return mean.float().tolist(), std.float().tolist()


def tiles_per_chunk(side_px: int) -> int:
    """Return how many tiles of this side make a chunk of `CHUNK_PX` pixels; at least one."""
    return max(1, CHUNK_PX // side_px**2)


def level_of_two(one: Tensor, other: Tensor) -> Tensor:
    """Return the level (N,) of tiles whose noise is independent and equally strong."""
    return rms(one - other) / 2**0.5


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)


def _stacked(crops: Sequence[Tensor]) -> Tensor:
    """Join uint8 and float crops as float32 in [0, 1]."""
    if all(crop.dtype == torch.uint8 for crop in crops):
        return to_float(torch.stack(list(crops)))
    return torch.stack([c if c.is_floating_point() else to_float(c) for c in crops])


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to the device without waiting for work in progress there.

    CUDA copies from pinned memory, which torch does not reuse before the copy is done.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _to_gray(tiles: Tensor, is_gray: Tensor) -> Tensor:
    """Turn the tiles (N, 3, H, W) gray where `is_gray` (N, 1, 1, 1) is set."""
    return torch.where(is_gray, luma(tiles), tiles)


def _share_noise(tiles: Tensor, is_gray: Tensor) -> Tensor:
    """Copy the first channel, with its noise, to the other two in gray tiles (N, 3, H, W)."""
    return torch.where(is_gray, tiles[:, :1], tiles)
