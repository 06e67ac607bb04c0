"""Shots of one scene against each other: whole-pixel shifts, and motion that is no shift.

A shift is the peak of the phase correlation (Kuglin and Hines, "The phase correlation image
alignment method", 1975) of the low frequencies, where noise is weak. It counts only if it makes the
shots significantly more alike than no shift does: aligned shots stay where they are, however noisy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_PX = 1024  # side of the middle of a shot that is looked at
_PASS = 0.1  # deviation of the low-pass, in cycles per pixel
_SIGNIFICANT = 6.0  # standard errors, of many squares …
_FEW = 20  # … and twice as many, of so few
_CELL_PX = 8  # side of the squares whose differences are compared
_LEAST_CELLS = 16
_PARTS = 4  # a side
_LEAST_PART_PX = 48
_MOVED_PX = 2  # what rounding and a slight turn do not explain


@dataclass(frozen=True)
class Shift:
    """How far a shot's content lies from the first one's, in whole pixels.

    Attributes:
        down: towards higher rows.
        right: towards higher columns.
        moved: (parts that lie elsewhere still, parts, largest distance in pixels).
    """

    down: int
    right: int
    moved: tuple[int, int, float] = (0, 0, 0.0)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.down or self.right)


def find_shift(first: Tensor, other: Tensor) -> Shift:
    """Return how far the content of `other` lies from that of `first`.

    Shifts of up to a quarter of a side are found.

    Args:
        first: (C, H, W), in any unit.
        other: the same shape.
    """
    pair = torch.stack([_middle(first), _middle(other)])
    down, right = _shift(pair[None])[0]
    down, right = _refined(pair, down, right)
    shifted = torch.stack(_overlap(pair[0], pair[1], down, right))
    return Shift(down, right, _moved(shifted))


def common_area(shifts: Sequence[Shift], size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return the rows and columns of every shot that show what all of them show.

    Args:
        shifts: of every shot; that of the first is 0, 0.
        size: (height, width) of the shots.
    """
    spans = []
    for extent, offsets in zip(
        size, ([s.down for s in shifts], [s.right for s in shifts]), strict=True
    ):
        start, stop = max(0, -min(offsets)), extent - max(0, max(offsets))
        spans.append([slice(start + offset, stop + offset) for offset in offsets])
    return list(zip(*spans, strict=True))


def _middle(shot: Tensor) -> Tensor:
    """(H, W): the mean of the channels, of the middle of a large shot."""
    slices = []
    for extent in shot.shape[1:]:
        side = min(extent, _MOST_PX)
        start = (extent - side) // 2
        slices.append(slice(start, start + side))
    middle: Tensor = shot[:, slices[0], slices[1]].mean(0)
    return middle


def _overlap(first: Tensor, other: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """What both images (…, H, W) show if the content of the other lies further by this much."""
    area = common_area([Shift(0, 0), Shift(down, right)], (first.shape[-2], first.shape[-1]))
    return first[..., area[0][0], area[0][1]], other[..., area[1][0], area[1][1]]


def _low_pass(height: int, width: int, like: Tensor) -> Tensor:
    """Weights of the frequencies of `rfft2`."""
    rows = torch.fft.fftfreq(height, device=like.device).view(-1, 1)
    columns = torch.fft.rfftfreq(width, device=like.device)
    weights: Tensor = (-(rows**2 + columns**2) / (2 * _PASS**2)).exp()
    return weights


def _shift(pairs: Tensor) -> list[tuple[int, int]]:
    """(down, right) of each of the pairs (N, 2, H, W), or (0, 0) if no shift is significant."""
    height, width = pairs.shape[2:]
    weight = _low_pass(height, width, pairs)
    centred = pairs - pairs.mean((2, 3), keepdim=True)
    hann = [torch.hann_window(n + 2, periodic=False)[1:-1] for n in (height, width)]
    spectra = torch.fft.rfft2(centred * torch.outer(*hann).to(pairs.device))
    cross = spectra[:, 1] * spectra[:, 0].conj()
    phases = cross / cross.abs().clamp_min(1e-30)
    surface = torch.fft.irfft2(phases * weight, s=(height, width))
    for axis, extent in ((1, height), (2, width)):
        beyond = torch.arange(extent // 4 + 1, extent - extent // 4, device=pairs.device)
        surface.index_fill_(axis, beyond, -math.inf)
    smooth = _as_bright(torch.fft.irfft2(torch.fft.rfft2(centred) * weight, s=(height, width)))
    found = []
    for pair, peak in zip(smooth, surface.flatten(1).argmax(1).tolist(), strict=True):
        down, right = peak // width, peak % width
        down, right = down - height * (down > height // 2), right - width * (right > width // 2)
        found.append((down, right) if _is_better(pair, (down, right), (0, 0)) else (0, 0))
    return found


def _as_bright(images: Tensor) -> Tensor:
    """Centred images (…, H, W) of one contrast: their exposures may differ."""
    return images / images.std((-2, -1), keepdim=True).clamp_min(1e-30)


def _is_better(pair: Tensor, shift: tuple[int, int], than: tuple[int, int]) -> bool:
    """Whether one shift makes the smooth images (2, H, W) significantly more alike than another.

    The mean squared difference must fall by several times its standard error, which comes from its
    deviation over small squares at the better shift: there, only noise is left.
    """
    if shift == than:
        return False
    at, before = (_differences(pair, one, (shift, than)) for one in (shift, than))
    if at.numel() < _LEAST_CELLS:
        return False
    error = at.std() * (2 / at.numel()) ** 0.5
    least = _SIGNIFICANT * (1 + _FEW / at.numel())  # few squares tell their deviation badly
    return bool((before - at).mean() > least * error)


def _differences(pair: Tensor, shift: tuple[int, int], among: Sequence[tuple[int, int]]) -> Tensor:
    """Mean squared difference of every cell, at places that all of the shifts reach."""
    height, width = pair.shape[1:]
    margins = [max(abs(one[axis]) for one in among) + 1 for axis in (0, 1)]
    rows, columns = (
        slice(margin, extent - margin)
        for margin, extent in zip(margins, (height, width), strict=True)
    )
    moved = pair[1].roll((-shift[0], -shift[1]), (0, 1))
    errors = (pair[0] - moved)[rows, columns].square()
    tall, wide = (extent // _CELL_PX for extent in errors.shape)
    if tall <= 0 or wide <= 0:
        return errors.new_zeros(0)
    errors = errors[: tall * _CELL_PX, : wide * _CELL_PX]
    return errors.reshape(tall, _CELL_PX, wide, _CELL_PX).mean((1, 3))


def _refined(pair: Tensor, down: int, right: int) -> tuple[int, int]:
    """The neighbouring shift at which the pair (2, H, W) is most alike; noise blurs the peak."""
    if (down, right) == (0, 0):
        return 0, 0
    height, width = pair.shape[1:]
    centred = pair - pair.mean((1, 2), keepdim=True)
    spectra = torch.fft.rfft2(centred) * _low_pass(height, width, pair)
    smooth = _as_bright(torch.fft.irfft2(spectra, s=(height, width)))
    near = [(down + dy, right + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    errors = [float(_differences(smooth, shift, near).mean()) for shift in near]
    return near[errors.index(min(errors))]


def _moved(pair: Tensor) -> tuple[int, int, float]:
    """How many parts of an aligned pair (2, H, W) lie elsewhere, of how many, and how far."""
    rows, columns = (max(1, min(_PARTS, extent // _LEAST_PART_PX)) for extent in pair.shape[1:])
    tall, wide = pair.shape[1] // rows, pair.shape[2] // columns
    if rows * columns == 1:
        return 0, 1, 0.0
    cut = pair[:, : rows * tall, : columns * wide]
    parts = cut.reshape(2, rows, tall, columns, wide).permute(1, 3, 0, 2, 4)
    distances = [math.hypot(*shift) for shift in _shift(parts.reshape(-1, 2, tall, wide))]
    far = [distance for distance in distances if distance >= _MOVED_PX]
    return len(far), len(distances), max(far, default=0.0)
