"""What the noise of single shots is like, to choose how to learn from them.

A network that learns from one shot alone takes what neighbouring pixels have in common for the
picture, so their noise must not be correlated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise_level import NORMAL_MAD

CORRELATED = 0.2  # from here on, what is left of the noise shows
_MOST_SHOTS = 32
_MOST_PX = 512  # side of the middle of a shot that is looked at
_BLOCK_PX = 16
_FLAT_SHARE = 0.25  # of the blocks
_GROUPS = 8  # of blocks by brightness


@dataclass(frozen=True)
class NoiseKind:
    """What the noise is like.

    Attributes:
        across: correlation of horizontal neighbours, about.
        down: correlation of vertical neighbours, about.
        growth: σ in the brightest flat areas, as a multiple of that in the darkest.
    """

    across: float
    down: float
    growth: float

    @property
    def correlation(self) -> float:
        """The larger of both."""
        return max(self.across, self.down)


def measure_noise(shots: Sequence[Tensor]) -> NoiseKind:
    """Measure the noise in flat areas of shots.

    The second differences down and across, [1 −2 1] both ways, suppress the picture. For white
    noise, neighbouring ones correlate by −2/3; for a correlation ρ of neighbouring pixels by
    q = (7ρ − 4)/(6 − 8ρ). q comes from signs, which edges and bright pixels with more noise hardly
    change: sin(π/2 · mean sign product) for normal variables.

    Args:
        shots: (C, H, W), in unit range.
    """
    products = torch.zeros(2, 2, dtype=torch.float64)  # (axis; sum, count)
    levels: list[Tensor] = []
    step = -(-len(shots) // _MOST_SHOTS)
    for shot in shots[::step]:
        blocks = _flat_blocks(_middle(shot))
        if not len(blocks):
            continue
        details = _second_differences(blocks)
        signs = details.sign()
        for axis, (one, other) in enumerate(
            ((signs[:, :, :-1], signs[:, :, 1:]), (signs[:, :-1], signs[:, 1:]))
        ):
            product = one * other
            products[axis] += torch.stack([product.sum(), product.abs().sum()]).double()
        sigma = details.abs().flatten(1).median(1).values / (6 * NORMAL_MAD)
        levels.append(torch.stack([blocks.mean((1, 2)), sigma], 1))
    across, down = (_correlation(total.item(), count.item()) for total, count in products)
    return NoiseKind(across, down, _growth(torch.cat(levels)) if levels else 1.0)


def _middle(shot: Tensor) -> Tensor:
    """(H, W): one channel, of the middle of a large shot; colours mix what sensors measured."""
    channel = shot[len(shot) // 2]
    tops = [max(0, (extent - _MOST_PX) // 2) for extent in channel.shape]
    return channel[tops[0] : tops[0] + _MOST_PX, tops[1] : tops[1] + _MOST_PX]


def _flat_blocks(image: Tensor) -> Tensor:
    """[blocks, side, side]: those whose means of 4×4 pixels vary least."""
    rows, columns = (extent // _BLOCK_PX for extent in image.shape)
    cut = image[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
    blocks = cut.reshape(rows, _BLOCK_PX, columns, _BLOCK_PX).permute(0, 2, 1, 3)
    blocks = blocks.reshape(-1, _BLOCK_PX, _BLOCK_PX)
    if not len(blocks):
        return blocks
    coarse = blocks.reshape(-1, _BLOCK_PX // 4, 4, _BLOCK_PX // 4, 4).mean((2, 4)).flatten(1)
    count = math.ceil(_FLAT_SHARE * len(blocks))
    return blocks[coarse.var(1).argsort()[:count]]


def _second_differences(blocks: Tensor) -> Tensor:
    down = blocks[:, 2:] - 2 * blocks[:, 1:-1] + blocks[:, :-2]
    return down[:, :, 2:] - 2 * down[:, :, 1:-1] + down[:, :, :-2]


def _correlation(total: float, count: float) -> float:
    """ρ of neighbouring pixels by the products of signs of their second differences."""
    if not count:
        return 0.0
    q = math.sin(math.pi / 2 * total / count)
    return min(1.0, max(-1.0, (6 * q + 4) / (7 + 8 * max(q, -0.8))))


def _growth(levels: Tensor) -> float:
    """σ of the brightest group of blocks, divided by that of the darkest one; rows (mean, σ)."""
    order = levels[levels[:, 0].argsort(), 1]
    group = max(1, len(order) // _GROUPS)
    dark, bright = order[:group].median().item(), order[-group:].median().item()
    return bright / dark if dark > 0 else 1.0
