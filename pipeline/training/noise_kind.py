"""What the noise of single shots is like, to choose how to learn from them.

A network that learns from one shot alone takes what neighbouring pixels have in common for the
picture, so their noise must not be correlated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.photons import NORMAL_MEAN
from ..noise_level import NORMAL_MAD

CORRELATED = 0.2  # from here on, what is left of the noise shows
MOST_UNEVEN = 1.4  # growth of noise, up or down, that may be taken for even
MOST_TAILED = 1.05  # tail of noise that may be taken for normal
_MOST_SHOTS = 32
_MOST_PX = 512  # side of the middle of a shot that is looked at
_BLOCK_PX = 16
_FLAT_SHARE = 0.25  # of the blocks
_MOST_CLIPPED = 0.02  # share of a block's pixels
_GROUPS = 8  # of blocks by brightness


@dataclass(frozen=True)
class NoiseKind:
    """What the noise is like.

    Attributes:
        across: correlation of horizontal neighbours, about.
        down: correlation of vertical neighbours, about.
        growth: σ in the brightest flat areas, as a multiple of that in the darkest.
        tail: how heavy the tails are: σ by mean size, as a multiple of normal noise's.
    """

    across: float
    down: float
    growth: float
    tail: float

    @property
    def correlation(self) -> float:
        """The larger of both."""
        return max(self.across, self.down)

    @property
    def is_normal(self) -> bool:
        """Whether the noise may be taken for normal noise of one strength."""
        return 1 / MOST_UNEVEN < self.growth < MOST_UNEVEN and self.tail < MOST_TAILED


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
    levels, tails = [torch.empty(0, 2)], [torch.empty(0)]
    step = -(-len(shots) // _MOST_SHOTS)
    for shot in shots[::step]:
        # One channel: colours mix what sensors measured.
        channel = shot[len(shot) // 2]
        blocks = _flat_blocks(_middle(channel[None]))[:, 0]
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
        # The fewer pixels a difference has, the less normal it is if they are not.
        fine = blocks.diff(dim=1).diff(dim=2).flatten(1)
        tail = fine.square().mean(1).sqrt() / fine.abs().mean(1).clamp_min(1e-30) * NORMAL_MEAN
        # Where noise is clipped it seems weaker.
        ends = (blocks <= blocks.min()) | (blocks >= blocks.max())
        is_whole = ends.flatten(1).float().mean(1) <= _MOST_CLIPPED
        levels.append(torch.stack([blocks.mean((1, 2)), sigma], 1)[is_whole])
        tails.append(tail)
    across, down = (_correlation(total.item(), count.item()) for total, count in products)
    tail = torch.cat(tails)
    return NoiseKind(
        across, down, _growth(torch.cat(levels)), tail.mean().item() if len(tail) else 1.0
    )


def noise_root(shot: Tensor) -> Tensor:
    """Return a matrix that turns white noise of σ 1 into noise as in the shot's flat areas.

    It is the square root of the covariance of the channels, whose noise may have anything in common
    (where gray is stored as RGB: all).

    Args:
        shot: (C, H, W), in unit range; sides of at least 16 pixels.

    Returns:
        (C, C), on the host.
    """
    details = (
        _second_differences(_flat_blocks(_middle(shot).cpu())).transpose(0, 1).flatten(1).double()
    )
    values, vectors = torch.linalg.eigh(details @ details.T / (36 * details.shape[1]))
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root.float()


def _middle(shot: Tensor) -> Tensor:
    """(C, H, W): the middle of a large shot."""
    tops = [max(0, (extent - _MOST_PX) // 2) for extent in shot.shape[1:]]
    return shot[:, tops[0] : tops[0] + _MOST_PX, tops[1] : tops[1] + _MOST_PX]


def _flat_blocks(image: Tensor) -> Tensor:
    """[blocks, C, side, side]: those whose means of 4×4 pixels vary least."""
    side = _BLOCK_PX
    rows, columns = (extent // side for extent in image.shape[1:])
    cut = image[:, : rows * side, : columns * side]
    blocks = cut.reshape(len(image), rows, side, columns, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    if not len(blocks):
        return blocks
    coarse = blocks.reshape(*blocks.shape[:2], side // 4, 4, side // 4, 4).mean((3, 5))
    count = math.ceil(_FLAT_SHARE * len(blocks))
    return blocks[coarse.flatten(2).var(2).sum(1).argsort()[:count]]


def _second_differences(blocks: Tensor) -> Tensor:
    down = blocks[..., 2:, :] - 2 * blocks[..., 1:-1, :] + blocks[..., :-2, :]
    return down[..., 2:] - 2 * down[..., 1:-1] + down[..., :-2]


def _correlation(total: float, count: float) -> float:
    """ρ of neighbouring pixels by the products of signs of their second differences."""
    if not count:
        return 0.0
    q = math.sin(math.pi / 2 * total / count)
    return min(1.0, max(-1.0, (6 * q + 4) / (7 + 8 * max(q, -0.8))))


def _growth(levels: Tensor) -> float:
    """σ of the brightest group of blocks, divided by that of the darkest one; rows (mean, σ)."""
    if not len(levels):
        return 1.0
    order = levels[levels[:, 0].argsort(), 1]
    group = max(1, len(order) // _GROUPS)
    dark, bright = order[:group].median().item(), order[-group:].median().item()
    return bright / dark if dark > 0 else 1.0
