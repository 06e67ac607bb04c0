"""Tiles of real noisy scenes: of two shots of one, or of single shots with more noise, say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..files.ranges import BEYOND, ValueRange
from ..noise_level import NORMAL_MAD
from .noise_kind import noise_roots
from .pairs import Batch, Denoise, Generators, Pairs, to_float, upload

METHODS = ("recorrupted", "neighbor", "blind-spot")
# Weight of Neighbor2Neighbor's regulariser, γ/(1 + γ), with γ = 16 as the paper has it for real
# noise. With its 2 for drawn noise the network blurs more and more, as half of what a target lacks
# of the picture is the network's own blur: 1.2 dB below its start after 24 seconds.
NEIGHBOR_SHARE = 16 / 17
SPOT_CELL_PX = 8  # one pixel of every such cell is hidden: 1.6 %
_WINDOW_PX = 5  # side of the window that a hidden pixel's substitute is drawn from
MOST_OTHERS = 16  # shots that a target is the mean of


@dataclass(frozen=True)
class Scene:
    """Aligned shots of one subject, as their files store them.

    Attributes:
        samples: (V, C, H, W), uint8, uint16 or float32, C = 1 or 3.
        value_range: stored samples ↔ [0, 1].
        unknown: (V, 1, H, W), pixels without meaning, and outliers; None if there are none.
    """

    samples: Tensor
    value_range: ValueRange
    unknown: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of shots."""
        return len(self.samples)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.samples.shape[2], self.samples.shape[3]

    def unit(self, shot: int) -> Tensor:
        """Return a shot, (C, H, W), float32 in unit range, as `denoise-batch` sees it."""
        return self.value_range.to_unit(self.samples[shot])

    def hidden(self, shot: int) -> Tensor | None:
        """Return a shot's pixels without meaning, (1, H, W); None if there are none."""
        return None if self.unknown is None else self.unknown[shot]

    def to(self, device: torch.device) -> "Scene":
        """Return the scene on a device."""
        unknown = None if self.unknown is None else self.unknown.to(device)
        return replace(self, samples=self.samples.to(device), unknown=unknown)


class Place(NamedTuple):
    """A part of a shot of a scene."""

    scene: Scene
    shot: int
    rows: slice
    columns: slice

    def of(self, values: Tensor) -> Tensor:
        """Return that part of (V, C, H, W): (C, rows, columns)."""
        return values[self.shot, :, self.rows, self.columns]


class ScenePairs(Pairs):
    """Random crops of random scenes; what is learnt from a crop depends on the method.

    "shots": one shot is the input and the mean of others, up to `MOST_OTHERS`, the target. Like one
    of them (Noise2Noise) it is unbiased and independent of the input, but far less noisy.

    "recorrupted": Recorrupted-to-Recorrupted (Pang et al., 2021) draws noise like the shot's; added
    to the shot it gives the input, taken away from it the target. Their noises are independent if
    they are normal. (The paper's α is 1: its 0.5 makes targets of 5 times the noise's variance.)

    "neighbor": Neighbor2Neighbor (Huang et al., 2021) draws two adjacent pixels from every 2×2
    cell; the first ones make the input, the second ones the target. Its regulariser, the squared
    distance of (output − target) to g₁(f(y)) − g₂(f(y)), equals the plain loss against a target
    shifted by γ/(1 + γ) of that difference (scaled by 1 + γ), which is how it is computed here.

    "blind-spot": Noise2Void (Krull et al., 2019) hides a pixel of every cell from the network and
    takes it as the target; a neighbour's value takes its place. The target is unknown elsewhere.

    Args:
        scenes: on the device; of at least two shots each for "shots", whose first one is used by
            the other methods.
        tile_px: side of a tile.
        count: tiles per epoch.
        method: as above.
    """

    def __init__(
        self, scenes: Sequence[Scene], tile_px: int, count: int, method: str = "shots"
    ) -> None:
        self._scenes = scenes
        self._tile_px = tile_px
        self._count = count
        self.method = method
        if method == "blind-spot":
            self.known_share = (tile_px // SPOT_CELL_PX) ** 2 / tile_px**2
        if method == "recorrupted":
            shots = (scene.unit(0).expand(3, -1, -1) for scene in scenes)
            roots = noise_roots(shots, [scene.hidden(0) for scene in scenes])
            self._noise_roots = roots.to(scenes[0].samples.device)
        areas = [scene.size[0] * scene.size[1] for scene in scenes]
        self._areas = torch.tensor(areas, dtype=torch.float64)

    def __len__(self) -> int:
        """Return the number of tiles per epoch."""
        return self._count

    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        """Return one random crop per index."""
        count, size = len(indices), self._tile_px * (2 if self.method == "neighbor" else 1)
        host = generators.host
        chosen = torch.multinomial(self._areas, count, True, generator=host).tolist()
        draws = torch.rand(count, 4, generator=host, dtype=torch.float64).tolist()
        scenes, places = [self._scenes[number] for number in chosen], []
        for scene, (down, across, one, _) in zip(scenes, draws, strict=True):
            top = int(down * (scene.size[0] - size + 1))
            left = int(across * (scene.size[1] - size + 1))
            rows, columns = slice(top, top + size), slice(left, left + size)
            places.append(Place(scene, int(one * len(scene)), rows, columns))
        noisy = _cut(places).expand(-1, 3, -1, -1)
        unknown = _unknown(places)
        if self.method == "shots":
            others = [
                _others(place, other) for place, (*_, other) in zip(places, draws, strict=True)
            ]
            return _mean_batch(noisy, unknown, others)
        if self.method == "neighbor":
            return _neighbor_batch(noisy, unknown, generators, denoise)
        if self.method == "recorrupted":
            roots = self._noise_roots[upload(torch.tensor(chosen), noisy.device)]
            return _recorrupted_batch(noisy, unknown, roots, generators)
        input, target = hide_spots(noisy, generators)
        return Batch(input, _without(target, unknown), _level_of_one(noisy))


def _others(place: Place, draw: float) -> list[Place]:
    """Return up to `MOST_OTHERS` shots that follow each other, around one and without it.

    Args:
        place: of that shot.
        draw: in [0, 1), where among them it lies, if there are more.
    """
    total = len(place.scene)
    count = min(total, MOST_OTHERS + 1)
    numbers = [(place.shot - int(draw * count) + step) % total for step in range(count)]
    return [place._replace(shot=number) for number in numbers if number != place.shot]


def _mean_batch(
    noisy: Tensor, own_unknown: Tensor | None, others: Sequence[Sequence[Place]]
) -> Batch:
    """Return the batch of shots and the mean of the others of each, NaN where none is known."""
    places = [place for of_tile in others for place in of_tile]
    values, unknown = _cut(places), _unknown(places)
    owner = torch.tensor([number for number, of_tile in enumerate(others) for _ in of_tile])
    is_own = owner == torch.arange(len(others))[:, None]  # (tiles, shots)
    sums = upload(is_own.to(torch.float32), noisy.device)
    number = sums.sum(1).view(-1, 1, 1, 1)
    if unknown is not None:
        values = values.masked_fill(unknown, 0.0)
        number = (sums @ (~unknown).flatten(1).to(sums.dtype)).view(len(sums), *unknown.shape[1:])
    target = (sums @ values.flatten(1)).view(len(sums), *values.shape[1:]) / number
    # The mean of k shots has a kth of their variance.
    squares = _without((noisy - target).square() * (number / (number + 1)), own_unknown)
    level = squares.nanmean((1, 2, 3)).nan_to_num(0.0).sqrt()
    return Batch(noisy, target.expand(-1, 3, -1, -1), level)


def hide_spots(noisy: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
    """Hide one random pixel of every cell of `SPOT_CELL_PX`, in all channels.

    Its place takes the value of a random neighbour, which is as noisy as it was. The neighbours'
    median (N2V2, Höck et al., 2022) has hardly any noise: a network learns to tell hidden pixels by
    it, and what it makes of all others is then left to chance.

    Args:
        noisy: (N, C, H, W), sides of at least a cell.
        generators: of the step.

    Returns:
        The tiles, with other pixels in the places of the hidden ones; and the hidden pixels, NaN
        elsewhere.
    """
    n, channels, height, width = noisy.shape
    rows, columns = height // SPOT_CELL_PX, width // SPOT_CELL_PX
    device = noisy.device
    draw = torch.randint(
        SPOT_CELL_PX**2, (n, rows, columns), generator=generators.device, device=device
    )
    down = draw // SPOT_CELL_PX + SPOT_CELL_PX * torch.arange(rows, device=device).view(-1, 1)
    across = draw % SPOT_CELL_PX + SPOT_CELL_PX * torch.arange(columns, device=device)
    place = (down * width + across).view(n, 1, -1)
    # The window lies inside the tile, so the spot may be anywhere in it.
    at = torch.arange(_WINDOW_PX, device=device)
    top = (down - _WINDOW_PX // 2).clamp(0, height - _WINDOW_PX).view(n, -1, 1, 1)
    left = (across - _WINDOW_PX // 2).clamp(0, width - _WINDOW_PX).view(n, -1, 1, 1)
    window = ((top + at.view(-1, 1)) * width + left + at).view(n, 1, -1, _WINDOW_PX**2)
    flat = noisy.flatten(2)
    values = flat.gather(2, window.flatten(2).expand(-1, channels, -1))
    values = values.view(n, channels, -1, _WINDOW_PX**2)
    is_spot = window == place[..., None]
    chance = torch.rand(is_spot.shape, generator=generators.device, device=device)
    chosen = chance.masked_fill(is_spot, -1).argmax(3, keepdim=True)
    others = values.gather(3, chosen.expand(-1, channels, -1, -1))[..., 0]
    places = place.expand(-1, channels, -1)
    input = flat.scatter(2, places, others)
    target = torch.full_like(flat, torch.nan).scatter_(2, places, flat.gather(2, places))
    return input.view_as(noisy), target.view_as(noisy)


class _Neighbors:
    """Two adjacent pixels for every 2×2 cell of a batch."""

    def __init__(self, like: Tensor, generators: Generators) -> None:
        n, _, height, width = like.shape
        shape = (n, 1, height // 2, width // 2, 1)
        first = torch.randint(4, shape, generator=generators.device, device=like.device)
        # Pixels 0 1 / 2 3: horizontal neighbours differ in bit 0, vertical ones in bit 1.
        step = torch.randint(1, 3, shape, generator=generators.device, device=like.device)
        self._first, self._second = first, first ^ step

    def pick(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the second pixels as two images (N, C, H/2, W/2)."""
        n, c, height, width = images.shape
        cells = images.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 1, 2, 4, 3, 5)
        cells = cells.reshape(n, c, height // 2, width // 2, 4)
        places = (index.expand(-1, c, -1, -1, -1) for index in (self._first, self._second))
        one, other = (cells.gather(4, place)[..., 0] for place in places)
        return one, other


def _neighbor_batch(
    noisy: Tensor, unknown: Tensor | None, generators: Generators, denoise: Denoise
) -> Batch:
    neighbors = _Neighbors(noisy, generators)
    input, target = neighbors.pick(noisy)
    level = _level_of_one(noisy)  # neighbours also differ by edges
    output, output_neighbor = neighbors.pick(denoise(noisy))
    target = target + NEIGHBOR_SHARE * (output - output_neighbor)
    if unknown is not None:
        unknown = neighbors.pick(unknown)[1]
    return Batch(input, _without(target, unknown), level)


def _recorrupted_batch(
    noisy: Tensor, unknown: Tensor | None, roots: Tensor, generators: Generators
) -> Batch:
    """Return the batch of tiles and noise like theirs, of which `roots` (N, C, C) are the roots."""
    white = torch.randn(noisy.shape, generator=generators.device, device=noisy.device)
    drawn = (roots @ white.flatten(2)).view_as(noisy)
    level = (2 * roots.square().sum((1, 2)) / roots.shape[1]).sqrt()
    return Batch(noisy + drawn, _without(noisy - drawn, unknown), level)


def _cut(places: Sequence[Place]) -> Tensor:
    """Return crops as `Scene.unit` gives them, float32 (N, C, H, W)."""
    channels = max(place.scene.samples.shape[1] for place in places)
    crops = [place.of(place.scene.samples).expand(channels, -1, -1) for place in places]
    if all(crop.dtype == torch.uint8 for crop in crops):
        return to_float(torch.stack(crops))
    ranges = [place.scene.value_range for place in places]
    ends = torch.tensor([[scale.offset for scale in ranges], [scale.span for scale in ranges]])
    offset, span = upload(ends, crops[0].device).view(2, -1, 1, 1, 1)
    # torch joins no uint16.
    values = torch.stack([crop.to(torch.float32) for crop in crops])
    return values.sub_(offset).div_(span).clamp_(-BEYOND, 1 + BEYOND)


def _unknown(places: Sequence[Place]) -> Tensor | None:
    """Return where the crops are unknown, (N, 1, H, W); None if nowhere."""
    if all(place.scene.unknown is None for place in places):
        return None
    masks = []
    for place in places:
        found = place.scene.unknown
        crop = place.of(place.scene.samples)[:1]
        masks.append(torch.zeros_like(crop, dtype=torch.bool) if found is None else place.of(found))
    return torch.stack(masks)


def _without(target: Tensor, unknown: Tensor | None) -> Tensor:
    return target if unknown is None else target.masked_fill(unknown, torch.nan)


def _level_of_one(noisy: Tensor) -> Tensor:
    """Return the level (N,) of tiles by Donoho's median of the diagonal differences."""
    a, b, c, d = (noisy[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1))
    height, width = d.shape[2:]
    detail = (a[:, :, :height, :width] - b[:, :, :height] - c[:, :, :, :width] + d) / 2
    return detail.abs().flatten(1).median(1).values / NORMAL_MAD
