"""What the noise of single shots is like, to choose how to learn from them.

A network that learns from one shot alone takes what neighbouring pixels have in common for the
picture, so their noise must not be correlated.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.photons import NORMAL_MEAN
from ..noise_level import NORMAL_MAD

CORRELATED = 0.2  # from here on, what is left of the noise shows
MOST_UNEVEN = 1.4  # growth of noise, up or down, that may be taken for even
MOST_TAILED = 1.05  # tail of noise that may be taken for normal
_MOST_BLOCKS = 48  # a side; of larger shots every second is looked at, say
_BLOCK_PX = 16
NONE_FOUND = (
    f"no area of {_BLOCK_PX}×{_BLOCK_PX} px shows noise: all are constant or clipped at black or "
    "white, or the images are smaller; use images as the camera wrote them, or --self blind-spot"
)
_FLAT_SHARE = 0.25  # of the blocks
# Shares of a block's pixels: at its least or greatest value, for σ and for signs, which clipping
# changes less (of half of the pixels by little, of more beyond all measure); in squares of 2×2 of
# one value; filled by `prepare`.
_MOST_CLIPPED, _MOST_AT_END, _MOST_EVEN, _MOST_FILLED = 0.02, 0.3, 0.3, 0.1
_GROUPS = 8  # of blocks by brightness


@dataclass(frozen=True)
class NoiseKind:
    """What the noise is like.

    Attributes:
        across: correlation of horizontal neighbours, about.
        down: correlation of vertical neighbours, about.
        growth: σ in the brightest flat areas, as a multiple of that in the darkest.
        tail: how heavy the tails are: σ by mean size, as a multiple of normal noise's.
        sigma: median of the flat areas; 0 if all are clipped.
        is_found: whether any area shows noise; the rest says nothing otherwise.
    """

    across: float
    down: float
    growth: float
    tail: float
    sigma: float
    is_found: bool = True

    @property
    def correlation(self) -> float:
        """The larger of both."""
        return max(self.across, self.down)

    @property
    def is_normal(self) -> bool:
        """Whether the noise may be taken for normal noise of one strength."""
        return 1 / MOST_UNEVEN < self.growth < MOST_UNEVEN and self.tail < MOST_TAILED


def measure_noise(
    shots: Sequence[Tensor], unknown: Sequence[Tensor | None] | None = None
) -> NoiseKind:
    """Measure the noise in flat areas of shots; not in constant, clipped or unknown ones.

    The second differences down and across, [1 −2 1] both ways, suppress the picture. For white
    noise, neighbouring ones correlate by −2/3; for a correlation ρ of neighbouring pixels by
    q = (7ρ − 4)/(6 − 8ρ). q comes from signs, which edges and bright pixels with more noise hardly
    change: sin(π/2 · mean sign product) for normal variables.

    Args:
        shots: (C, H, W), in unit range.
        unknown: of each, (1, H, W), pixels without meaning; None if there are none.
    """
    unknown = [None] * len(shots) if unknown is None else unknown
    products = torch.zeros(2, 2, dtype=torch.float64)  # (axis; sum, count)
    levels, tails = [torch.empty(0, 2)], [torch.empty(0)]
    for shot, mask in zip(shots, unknown, strict=True):
        # One channel: colours mix what sensors measured. The middle one, if it is not empty.
        middle = len(shot) // 2
        for channel in (middle, *range(middle), *range(middle + 1, len(shot))):
            blocks = _flat_blocks(shot[channel, None], mask, _MOST_AT_END)[:, 0]
            if len(blocks):
                break
        else:
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
    tail, sigma = torch.cat(tails), torch.cat(levels)
    return NoiseKind(
        across,
        down,
        _growth(sigma),
        tail.mean().item() if len(tail) else 1.0,
        sigma[:, 1].median().item() if len(sigma) else 0.0,
        is_found=bool(products.any()),
    )


def noise_roots(shots: Iterable[Tensor], unknown: Sequence[Tensor | None]) -> Tensor:
    """Return `noise_root` of each shot; of one without noise, that of the others' mean, if any.

    Args:
        shots: (C, H, W), in unit range.
        unknown: of each, (1, H, W), pixels without meaning; None if there are none.

    Returns:
        (N, C, C), on the host.
    """
    roots = torch.stack([noise_root(*pair) for pair in zip(shots, unknown, strict=True)])
    is_found = roots.flatten(1).any(1)
    if bool(is_found.any()):
        seen = roots[is_found].double()
        roots[~is_found] = _root((seen @ seen.mT).mean(0))
    return roots


def noise_root(shot: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Return a matrix that turns white noise of σ 1 into noise as in the shot's flat areas.

    It is the square root of the covariance of the channels, whose noise may have anything in common
    (where gray is stored as RGB: all).

    Args:
        shot: (C, H, W), in unit range.
        unknown: (1, H, W), pixels without meaning; None if there are none.

    Returns:
        (C, C), on the host; 0 where no area of 16×16 pixels shows noise.
    """
    shot = shot.cpu()
    blocks = _flat_blocks(shot, unknown, _MOST_CLIPPED)
    if not len(blocks):
        blocks = _flat_blocks(shot, unknown, _MOST_AT_END)
    if not len(blocks):
        return torch.zeros(len(shot), len(shot))
    details = _second_differences(blocks).transpose(0, 1).flatten(1).double()
    return _root(details @ details.T / (36 * details.shape[1]))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root.float()


def _flat_blocks(image: Tensor, unknown: Tensor | None, most_at_end: float) -> Tensor:
    """[blocks, C, side, side]: of those that show noise, the flattest by means of 4×4.

    Blocks that are constant, clipped or filled do not show any. A channel without content, as those
    of a dye that is stored as RGB, decides nothing.

    Args:
        image: (C, H, W).
        unknown: (1, H, W), or None.
        most_at_end: share of a block's pixels that may have its least or its greatest value.
    """
    side, blocks = _BLOCK_PX, _blocks(image)
    has_content = image.flatten(1).amin(1) < image.flatten(1).amax(1)
    if not len(blocks) or not bool(has_content.any()):
        return blocks[:0]
    seen = blocks[:, has_content]
    ends = (seen == end for end in (seen.amin((2, 3), True), seen.amax((2, 3), True)))
    is_whole = torch.stack([_share(at) for at in ends]).amax(0) <= most_at_end
    corner = seen[:, :, 1:, 1:]
    others = (seen[:, :, :-1, :-1], seen[:, :, :-1, 1:], seen[:, :, 1:, :-1])
    is_even = torch.stack([corner == other for other in others]).all(0)
    is_whole &= _share(is_even) <= _MOST_EVEN
    if unknown is not None:
        is_whole &= _blocks(unknown.to(blocks)).mean((1, 2, 3)) <= _MOST_FILLED
    if not bool(is_whole.any()):
        return blocks[:0]
    blocks = blocks[is_whole]
    coarse = blocks.reshape(*blocks.shape[:2], side // 4, 4, side // 4, 4).mean((3, 5))
    count = math.ceil(_FLAT_SHARE * len(blocks))
    return blocks[coarse.flatten(2).var(2).sum(1).argsort()[:count]]


def _blocks(image: Tensor) -> Tensor:
    """[blocks, C, side, side] of (C, H, W); of a large image some, from everywhere."""
    blocks = image
    for axis in (1, 2):
        step = max(1, -(-image.shape[axis] // (_BLOCK_PX * _MOST_BLOCKS)))
        if image.shape[axis] < _BLOCK_PX:
            return image.new_empty(0, len(image), _BLOCK_PX, _BLOCK_PX)
        blocks = blocks.unfold(axis, _BLOCK_PX, _BLOCK_PX * step)
    return blocks.flatten(1, 2).transpose(0, 1)


def _share(marks: Tensor) -> Tensor:
    """(blocks,): the share of the pixels that are marked, in the channel where most are."""
    return marks.float().mean((2, 3)).amax(1)


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
