"""Noise that grows with the signal, as photons' does, and the curve behind which it is even.

Microscopes and other scientific cameras store counts, whose noise has the variance gain·x + rest.
A network is told one level for a whole picture, so it sees them behind a root (ADR 36). Anscombe,
"The transformation of Poisson, binomial and negative-binomial data" (1948); with the noise of
reading out: Murtagh, Starck and Bijaoui, "Image restoration with noise suppression using a
multiresolution support" (1995).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranges import Curve, ValueRange

NORMAL_MEAN = math.sqrt(2 / math.pi)  # of |n|, n standard normal; a median has steps, as counts
REMOVED = 0.25
MEAN_WEIGHT = 0.9008  # E min(|n|/REMOVED, 1), n standard normal
LEAST_GROWTH = 2.5  # of the variance from dark to bright: below, the noise is as good as even
LEAST_SIGMA = 2 / 255  # of the brightest: below, there is little to remove
_MOST_MISFIT = 0.1  # of a group's variance, the median; texture is no line
_ROOT = math.sqrt(3 / 2)
_BLOCK_PX, _CELL_PX = 16, 4
_GROUPS, _LEAST_BLOCKS = 12, 10  # by brightness; blocks of a group
_FLAT_SHARE = 0.3  # of a group's blocks
_MOST_BLACK, _MOST_WHITE = 0.5, 0.02  # share of a block's samples
_MOST_PAGES, _MOST_STRIPS, _MOST_COLUMNS = 8, 64, 128  # rows of blocks in all, and blocks of a row


@dataclass(frozen=True)
class PhotonCurve(Curve):
    """√(x − zero + 3/8 gain) from `zero` on, the line that goes on from there below; 0 and 1 stay.

    Attributes:
        gain: growth of the variance from black to white.
        zero: where the variance ends: black, or below it by what reading out adds.
    """

    gain: float
    zero: float

    def encoded(self, shares: Tensor) -> Tensor:
        """Return the values behind the curve."""
        black, white = self._ends
        return self._root(shares).sub_(black).div_(white - black)

    def decoded(self, values: Tensor) -> Tensor:
        """Return the shares that `encoded` made these values of."""
        black, white = self._ends
        start = self._start
        root = values * (white - black) + black
        above = root.clamp_min(start).square_().sub_(start**2)
        below: Tensor = (root - start).clamp_max_(0).mul_(2 * start)
        return below.add_(above).add_(self.zero)

    def lift(self, values: Tensor, before: Tensor) -> Tensor:
        """Return 0 at `zero`, and a quarter of the gain, the variance behind √, far above it.

        Between the two: Mäkitalo and Foi, "A closed-form approximation of the exact unbiased
        inverse of the Anscombe variance-stabilizing transformation" (2011). Less where less than
        `REMOVED` deviations of the noise were removed, and on average as much for all of it.
        """
        black, white = self._ends
        root = (values * (white - black) + black).clamp_min_(self._start)
        part = root.mul_(2 / math.sqrt(self.gain)).reciprocal_()
        lifted: Tensor = 1 / 4 + part * (_ROOT / 4 + part * (-11 / 8 + part * (5 / 8 * _ROOT)))
        removed = (values - before).abs_().mul_((white - black) * 2 / math.sqrt(self.gain))
        return lifted.mul_(self.gain).mul_(removed.div_(REMOVED).clamp_max_(1)).div_(MEAN_WEIGHT)

    def _root(self, shares: Tensor) -> Tensor:
        above, start = shares - self.zero, self._start
        root = (above.clamp_min(0) + start**2).sqrt_()
        return root.add_(above.clamp_max_(0), alpha=1 / (2 * start))

    @property
    def _ends(self) -> tuple[float, float]:
        black, white = self._root(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return black, white

    @property
    def _start(self) -> float:
        return math.sqrt(3 / 8 * self.gain)


def find_photons(
    pages: Sequence[Tensor], hidden: Sequence[Tensor], scale: ValueRange
) -> PhotonCurve | None:
    """Return the curve for pages whose noise grows with the signal; None for others.

    In the flattest blocks of every brightness, the diagonal differences of 2×2 pixels show the
    noise; a line is fitted to their variance. What the picture adds there changes it little.

    Args:
        pages: (H, W, C) of one file; a few are looked at.
        hidden: (H, W) for each page: pixels that mean nothing.
        scale: of the file, without a curve.
    """
    found = list(_blocks(pages, hidden, scale))
    if not found:
        return None
    blocks = torch.cat(found)
    if len(blocks):  # where noise is clipped it seems weaker; few photons are often none
        least, most = blocks.aminmax()
        black, white = (end.flatten(1).float().mean(1) for end in (blocks <= least, blocks >= most))
        blocks = blocks[(black <= _MOST_BLACK) & (white <= _MOST_WHITE)]
    size = len(blocks) // _GROUPS
    if size < _LEAST_BLOCKS:
        return None
    brightness = blocks.mean((1, 2))
    order = brightness.argsort()
    rows = []
    for group in order[: size * _GROUPS].view(_GROUPS, size):
        chosen = blocks[group]
        cells = chosen.view(size, _BLOCK_PX // _CELL_PX, _CELL_PX, -1, _CELL_PX).mean((2, 4))
        flat = cells.flatten(1).var(1).argsort()[: max(_LEAST_BLOCKS // 2, int(_FLAT_SHARE * size))]
        chosen = chosen[flat]
        a, b, c, d = (chosen[:, row::2, column::2] for row in (0, 1) for column in (0, 1))
        sigma = ((a - b - c + d).abs() / 2).mean() / NORMAL_MEAN
        rows.append(torch.stack([brightness[group[flat]].mean(), sigma.square()]))
    means, variances = torch.stack(rows).double().unbind(1)
    if bool((variances <= 0).any()):
        return None
    gain, rest = _line(means, variances)
    fitted = gain * means + rest
    misfit = (variances / fitted - 1).abs().median()
    is_photons = gain > 0 and fitted[0] > 0 and fitted[-1] > LEAST_GROWTH * fitted[0]
    if not is_photons or misfit > _MOST_MISFIT or fitted[-1] < LEAST_SIGMA**2:
        return None
    return PhotonCurve(gain, -rest / gain)


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and value at 0 of the line whose relative distance to points is least."""
    weight = 1 / y.square()
    for _ in range(10):
        total = weight.sum()
        middle, level = (weight * x).sum() / total, (weight * y).sum() / total
        spread = (weight * (x - middle).square()).sum().clamp_min(1e-30)
        slope = (weight * (x - middle) * (y - level)).sum() / spread
        fitted = slope * x + level - slope * middle
        weight = 1 / fitted.clamp_min(y.min() / 4).square()
    return float(slope), float(level - slope * middle)


def _blocks(
    pages: Sequence[Tensor], hidden: Sequence[Tensor], scale: ValueRange
) -> Iterator[Tensor]:
    """[blocks, side, side]: shares of the span, of blocks all of whose pixels mean something."""
    side = _BLOCK_PX
    numbers = range(0, len(pages), -(-len(pages) // _MOST_PAGES))
    for number in numbers:
        page, mask = pages[number], hidden[number]
        rows, columns = page.shape[0] // side, page.shape[1] // side
        step = -(-max(1, rows) // (_MOST_STRIPS // len(numbers)))
        for row in range((step - 1) // 2, rows if columns else 0, step):
            strip = slice(row * side, (row + 1) * side), slice(0, columns * side)
            values = scale.to_unit(page[strip]).permute(2, 0, 1)
            blocks = values.reshape(-1, side, columns, side).permute(2, 0, 1, 3)
            is_seen = ~mask[strip].reshape(side, columns, side).any(2).any(0)
            yield blocks[is_seen][:: -(-columns // _MOST_COLUMNS)].flatten(0, 1)
