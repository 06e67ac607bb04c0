"""How bright a shot is beside another one of the same scene: a gain and an offset.

Dyes bleach, lamps drift and exposures differ, so the shots of a scene may be lines of each other.
The line goes through the means of squares. The noise in what it starts from would flatten it, so
the diagonal neighbours of a square, which share no row or column with it, stand for the square: an
instrument, whose noise is another's (Reiersøl, "Confluence analysis by means of instrumental sets
of variables", 1945).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..noise_level import NORMAL_MAD

_CELLS_PX = {1024: 16, 128: 8, 0: 4}  # sides of squares, in scenes from such a side on
_LEAST_CELLS, _LEAST_OBJECTS = 16, 6
_STRUCTURE = 0.3  # correlation of neighbours from which squares show more than noise
_SIGNIFICANT, _UNLIKELY = 5.0, 2.0  # standard errors …
_STRIPS = 8  # … by leaving out so many, one after the other
_LEAST = 0.02  # of the contrast: less of a difference does no harm
# Correlation of two shots, without their noise: of different scenes, if there are many squares, and
# of the same. Between the two lie scenes that changed.
_UNLIKE, _ALIKE, _MANY_CELLS = 0.5, 0.9, 200
_ROUNDS, _OFF_LINE = 4, 5.0  # of fitting, and deviations from which on a square does not count
_NOISE_OF_LIGHT = 0.05  # share of a square's light that its noise may be
_FAR_OUT = 10.0  # deviations of the ground that no noise has


@dataclass(frozen=True)
class Brightness:
    """A shot's brightness beside the first one's: shot = gain · first + offset.

    Attributes:
        gain: of the contrast.
        offset: in the shots' unit.
        difference: the largest difference of the shots, as a share of the first's contrast.
        off_line: (H, W), pixels of squares where the shots differ otherwise, as where one of them
            is saturated; None if there is no difference in brightness.
    """

    gain: float = 1.0
    offset: float = 0.0
    difference: float = 0.0
    off_line: Tensor | None = None

    @property
    def is_different(self) -> bool:
        """Whether there is a difference."""
        return self.off_line is not None


def find_brightness(first: Tensor, other: Tensor, unknown: Tensor) -> Brightness | None:
    """Return how bright a shot is beside the first, if they differ by more than noise explains.

    Scenes that are flat, or show hardly more than noise, tell nothing; nor do those that changed.

    Args:
        first: (C, H, W), in a unit that is linear in light.
        other: the same shape, in any such unit.
        unknown: (H, W), pixels without meaning in either of them.

    Returns:
        None if the first shows something, and the other nothing of it.
    """
    side = next(cell for least, cell in _CELLS_PX.items() if min(first.shape[1:]) >= least)
    known = ~unknown
    (x, share), (y, _) = _cells(first, known, side), _cells(other, known, side)
    is_seen = share > 0.5
    fit = _fit(x, y, is_seen)
    if fit is None:
        return Brightness()
    line, use = fit
    low, high = x[use].min().item(), x[use].max().item()
    found = torch.tensor([line.at(low) - low, line.at(high) - high, line.correlation])
    errors = _errors(x, y, use, line, (low, high))
    least = (_SIGNIFICANT * errors[:2]).clamp_min(_LEAST * (high - low))
    if found[2] + _UNLIKELY * errors[2] < _UNLIKE and int(use.sum()) >= _MANY_CELLS:
        return None
    if found[2] < _ALIKE or not bool((found[:2].abs() > least).any()):
        return Brightness()
    difference = found[:2].abs().max().item() / (high - low)
    off_line = (is_seen & ~use).repeat_interleave(side, 0).repeat_interleave(side, 1)
    whole = torch.zeros_like(unknown)
    whole[: off_line.shape[0], : off_line.shape[1]] = off_line
    return Brightness(line.gain, line.offset, difference, whole)


class _Line(NamedTuple):
    """y = gain · x + offset, and how y and x correlate without their noise."""

    gain: float
    offset: float
    correlation: float

    def at(self, x: float) -> float:
        return self.gain * x + self.offset


def _fit(x: Tensor, y: Tensor, is_seen: Tensor) -> tuple[_Line, Tensor] | None:
    """The line through squares, without those far off it, and which are left; None as for _line."""
    use, fit = is_seen, None
    for _ in range(_ROUNDS):
        line = _line(x, y, use)
        if line is None:
            return None
        distance = (y - line.gain * x - line.offset).abs()
        spread = distance[use].median() / NORMAL_MAD
        light = (line.gain * (x - x[use].median())).abs()  # brings noise of its own
        most = _OFF_LINE * spread + _NOISE_OF_LIGHT * light + 1e-6 * y[is_seen].abs().amax()
        use = is_seen & (distance <= most)
        fit = line, use
    return fit


def _line(x: Tensor, y: Tensor, use: Tensor) -> _Line | None:
    """The line through squares that are used; None if x shows hardly more than noise."""
    count, weight = int(use.sum()), use.to(x.dtype)
    pairs = _of_neighbours(weight, weight)
    if min(count, pairs) < _LEAST_CELLS:
        return None
    middle, level = x[use].mean(), y[use].mean()
    x, y = (x - middle) * weight, (y - level) * weight
    of_x, of_y, of_both = (_of_neighbours(a, b) / pairs for a, b in ((x, x), (y, y), (y, x)))
    least_x, least_y = (_STRUCTURE * float(values.square().sum()) / count for values in (x, y))
    if of_x <= least_x:
        return _line_of_objects(x, y, use, middle, level)
    gain = of_both / of_x
    correlation = of_both / math.sqrt(of_x * max(of_y, least_y)) if of_both else 0.0
    return _Line(gain, float(level - gain * middle), correlation)


def _line_of_objects(
    x: Tensor, y: Tensor, use: Tensor, middle: Tensor, level: Tensor
) -> _Line | None:
    """The line through an even ground and what stands far out of it, such as stars.

    They are smaller than squares, so that their neighbours do not tell them from noise; x and y are
    0 at the mean and where they are not used.
    """
    ground, ground_y = x[use].median(), y[use].median()
    x, y = (x - ground) * use, (y - ground_y) * use
    is_object = x.abs() > _FAR_OUT * x[use].abs().median() / NORMAL_MAD
    if int(is_object.sum()) < _LEAST_OBJECTS:
        return None
    x, y = x[is_object], y[is_object]
    gain = float((x * y).sum() / x.square().sum())
    correlation = float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-30))
    if correlation < _ALIKE:  # what one shot alone has, as cosmic rays
        return None
    offset = float(level + ground_y - gain * (middle + ground))
    return _Line(gain, offset, correlation)


def _errors(x: Tensor, y: Tensor, use: Tensor, line: _Line, ends: tuple[float, float]) -> Tensor:
    """Standard errors of the line at both ends and of its correlation, by leaving strips out.

    Squares that lie in a row may have their noise in common, and those in a column too, so there
    are strips of both kinds (jackknife); the larger error counts.
    """
    errors = []
    for axis in (0, 1):
        strips = torch.arange(x.shape[axis]) * _STRIPS // x.shape[axis]
        strips = strips[:, None] if axis == 0 else strips[None, :]
        found = []
        for strip in range(_STRIPS):
            without = _line(x, y, use & (strips != strip))
            if without is not None:
                found.append([*map(without.at, ends), without.correlation])
        if len(found) < _STRIPS / 2:
            return torch.full((3,), math.inf)
        whole = torch.tensor([*map(line.at, ends), line.correlation])
        errors.append((torch.tensor(found) - whole).square().mean(0).mul(_STRIPS - 1).sqrt())
    return torch.stack(errors).amax(0)


def _of_neighbours(a: Tensor, b: Tensor) -> float:
    """Sum of the products of squares (rows, columns) and their diagonal neighbours."""
    down, up = (a[:-1], b[1:]), (a[1:], b[:-1])
    return float(
        sum(
            (one[:, :-1] * two[:, 1:]).sum() + (one[:, 1:] * two[:, :-1]).sum()
            for one, two in (down, up)
        )
    )


def _cells(shot: Tensor, known: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Of squares (rows, columns): the mean of what is known, over the channels; its share."""
    rows, columns = (extent // side for extent in known.shape)
    area = slice(0, rows * side), slice(0, columns * side)
    shape = (rows, side, columns, side)
    weight = known[area].double()
    values = shot[:, area[0], area[1]].double().mean(0).masked_fill(~known[area], 0)
    share = weight.reshape(shape).mean((1, 3))
    return values.reshape(shape).mean((1, 3)) / share.clamp_min(1e-9), share
