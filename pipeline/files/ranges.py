"""Value ranges: which samples are black and white, and which stand for "no data".

Networks take values in [0, 1]. Samples of 8 bits fill their type; deeper ones rarely do, so their
range is what the file declares or, without that, what nearly all of its samples lie in.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The network never sees values further than this beyond [0, 1]; what exceeds them passes by it. It
# denoises up to about here: at 1 stars lose 0.1 to 0.7 dB, without a limit 2 to 20 dB.
BEYOND = 0.5

TAIL = 0.001  # share of the samples that may lie beyond each end of an estimated range
SEVERAL = 3  # samples of one value, far from all others, that stand for no data
_MOST_SAMPLES = 2**18  # of a file that its range is estimated from
_MOST_STRAYS = 1000  # single values far from all others that are stepped over
_STRIP_SAMPLES = 2**22

_MIN_VALUE, _MAX_VALUE, _NO_DATA, _DESCRIPTION = 340, 341, 42113, 270  # TIFF tags
_INTEGER_LIMITS = {
    torch.uint8: (0, 255),
    torch.uint16: (0, 65535),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.uint32: (0, 2**32 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}
_EXACT_IN_FLOAT32 = {torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32}


@dataclass(frozen=True)
class ValueRange:
    """The affine map from stored samples to [0, 1]: (sample − offset) / span.

    Attributes:
        offset: the sample that maps to 0.
        span: the distance to the sample that maps to 1.
        ceiling: the largest sample that the file can hold, if it is below its type's: 4095 for 12
            bits; None otherwise.
    """

    offset: float
    span: float
    ceiling: int | None = None

    @classmethod
    def of(cls, samples: Tensor) -> "ValueRange":
        """Return the range of one image's samples, whose file declares none."""
        if samples.dtype == torch.uint8:
            return BITS_8
        return find_range([samples.reshape(1, -1, 1)])[0]

    def to_unit(self, samples: Tensor) -> Tensor:
        """Return samples of any shape and type as float32 in [−`BEYOND`, 1 + `BEYOND`], new."""
        if samples.dtype == torch.uint8:
            return samples.to(torch.float32).div_(self.span)
        values = samples.to(self._arithmetic(samples), copy=True)
        values = (values.sub_(self.offset) if self.offset else values).div_(self.span)
        return values.clamp_(-BEYOND, 1 + BEYOND).to(torch.float32)

    def from_unit(self, values: Tensor, samples: Tensor) -> Tensor:
        """Return values as new samples, of the type of the `samples` that they replace.

        Integers are rounded to the nearest and clamped to what the file can hold; floats are not.
        Above 8 bits a sample changes by as much as its value: those that `to_unit` made come back
        bit for bit, and what lies beyond the range is kept.

        Args:
            values: float, any shape.
            samples: the stored samples, of that shape.
        """
        if samples.dtype == torch.uint8:
            levels = (values * self.span).add_(0.5).clamp_(0, self.span)  # conversion truncates
            return levels.to(torch.uint8)
        arithmetic = self._arithmetic(samples)
        change = (values.to(torch.float32) - self.to_unit(samples)).to(arithmetic) * self.span
        if samples.is_floating_point():
            return (samples.to(arithmetic) + change).to(samples.dtype)
        levels = samples.to(torch.int64) + change.round_().to(torch.int64)
        return clamped(levels, samples.dtype, self.ceiling).to(samples.dtype)

    def _arithmetic(self, samples: Tensor) -> torch.dtype:
        """Return the type to compute in: float32 unless it would lose bits or overflow."""
        is_exact = samples.dtype in _EXACT_IN_FLOAT32 and 1e-30 < self.span < 1e30
        return torch.float32 if is_exact else torch.float64


BITS_8 = ValueRange(0.0, 255.0)
BITS_16 = ValueRange(0.0, 65535.0)
UNIT = ValueRange(0.0, 1.0)


@dataclass(frozen=True)
class Declared:
    """What a file says about its values.

    Attributes:
        low: the sample that is black.
        high: the sample that is white; None if the file does not say.
        bits: significant bits of integer samples, by PNG's sBIT; None if the file does not say.
        no_data: the sample that stands for "no data"; None if the file does not say.
    """

    low: float = 0.0
    high: float | None = None
    bits: int | None = None
    no_data: float | None = None

    @classmethod
    def of_tags(cls, value: Callable[[int], Any]) -> "Declared":
        """Read the tags of a TIFF page.

        SMinSampleValue and SMaxSampleValue; `min=` and `max=` in ImageJ's description; GDAL_NODATA.

        Args:
            value: the value of a tag by its number; None if the page has no such tag.
        """
        low, high = _number(value(_MIN_VALUE), min), _number(value(_MAX_VALUE), max)
        text = value(_DESCRIPTION)
        if high is None and isinstance(text, str) and text.startswith("ImageJ="):
            said = dict(re.findall(r"^(min|max)=([-+0-9.eE]+)\s*$", text, re.MULTILINE))
            low, high = _number(said.get("min"), min), _number(said.get("max"), max)
        if high is not None and not (low or 0.0) < high:
            low = high = None
        return cls(low or 0.0, high, None, _number(value(_NO_DATA), min, is_finite=False))


NOTHING_DECLARED = Declared()


def clamped(levels: Tensor, dtype: torch.dtype, ceiling: int | None = None) -> Tensor:
    """Return values within what an integer type, or a ceiling below that, can hold."""
    if dtype not in _INTEGER_LIMITS:
        return levels
    lowest, highest = _INTEGER_LIMITS[dtype]
    return levels.clamp(lowest, highest if ceiling is None else ceiling)


def is_no_data(samples: Tensor, values: Sequence[float]) -> Tensor:
    """Return (H, W): pixels of (H, W, C) that are not finite, or one of the values.

    One float band suffices, since the others may be shifted; an integer must be so in all of them,
    since 0 occurs in colours.
    """
    found = torch.zeros(samples.shape[:2], dtype=torch.bool)
    if not values and not samples.is_floating_point():
        return found
    if samples.is_floating_point():
        found |= ~torch.isfinite(samples).all(2)
    comparable = samples if samples.is_floating_point() else samples.to(torch.int64)
    for value in values:
        if math.isnan(value):
            continue
        if samples.is_floating_point():  # a file of float32 may declare −3.4028234663852886e+38
            value = torch.tensor(value, dtype=torch.float64).to(samples.dtype).item()
            found |= (comparable == value).any(2)
        else:
            found |= (comparable == value).all(2)
    return found


def find_range(
    pages: Sequence[Tensor],
    hidden: Sequence[Tensor] | None = None,
    declared: Declared = NOTHING_DECLARED,
    asked: tuple[float, float] | None = None,
) -> tuple[ValueRange, tuple[float, ...]]:
    """Find the range of a file's samples, and the values that stand for no data.

    The range is `asked`; else what the file declares, unless its samples lie further beyond than
    half the width; else all but `TAIL` of the samples at either end. It comes from a sample of the
    pixels, so memory does not grow with the file.

    Several samples of one value that lies beyond the others' range by more than its width, with
    next to nothing between, stand for no data. The type's largest value may also be saturation:
    it must cover areas. Single samples out there (hot pixels) never move the range.

    Args:
        pages: (H, W, C), of one type above 8 bits.
        hidden: (H, W) for each page: pixels known to mean nothing; None for none.
        declared: what the file says.
        asked: the ends of the range, whatever the file says.
    """
    values, counts = _histogram(pages, hidden)
    if len(values) == 0:
        return (UNIT if asked is None else _between(*asked)), ()
    sums = counts.cumsum(0)
    first, last, voids = _without_voids(values, sums, pages)
    low, high = _ends(values, sums, first, last)
    if not low < high:
        low, high = values[first].item(), values[last].item()
    if asked is not None:
        low, high = asked
    elif declared.high is not None:
        half = (declared.high - declared.low) / 2
        if declared.low - half <= low and high <= declared.high + half:
            low, high = declared.low, declared.high
    elif declared.bits is not None:
        most = 2**declared.bits - 1  # not scaled up to the type, as PNG would have it
        low, high = (0, most) if values[last] <= most else (0, 65535)
    if not low < high:  # one value: any range will do
        full = _INTEGER_LIMITS.get(pages[0].dtype, (0, 1))
        low, high = full if full[0] <= low <= full[1] else (low - 0.5, low + 0.5)
    return _between(low, high), voids


def _between(low: float, high: float) -> ValueRange:
    return ValueRange(float(low), float(high) - float(low))


def _histogram(pages: Sequence[Tensor], hidden: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return the values of the samples, ascending, and how often each occurs.

    Of large files the values come from about `_MOST_SAMPLES` samples, but all are counted that lie
    beyond these by more than their range: a few of them may stand for no data.
    """
    total = sum(page.numel() for page in pages)
    step = -(-total // _MOST_SAMPLES)
    parts = []
    for number, page in enumerate(pages):
        height, width, channels = page.shape
        stride = step
        while math.gcd(stride, width) > 1 and stride < height * width:
            stride += 1  # not down a few columns
        pixels, mask = page.reshape(-1, channels), None if hidden is None else hidden[number]
        seen = _comparable(pixels[::stride])
        parts.append(seen if mask is None else seen[~mask.flatten()[::stride]])
    values, counts = _counted(parts)
    if step == 1 or len(values) == 0:
        return values, counts
    low, high = _ends(values, counts.cumsum(0), 0, len(values) - 1)
    span = max(high - low, 0.0)
    least, most = low - span, high + span
    beyond = [torch.zeros(0)]
    for number, page in enumerate(pages):
        mask = None if hidden is None else hidden[number].flatten()
        for strip in _strips(page.reshape(-1, page.shape[2]), mask):
            beyond.append(strip[(strip < least) | (strip > most)])
    far, far_counts = _counted(beyond)
    is_near = (values >= least) & (values <= most)
    values, counts = (
        torch.cat([values[is_near], far]),
        torch.cat([counts[is_near] * step, far_counts]),
    )
    order = values.argsort()
    return values[order], counts[order]


def _counted(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The values of all parts, ascending, and how often each occurs."""
    pool = torch.cat([part.flatten().double() for part in parts])
    values, counts = torch.unique(pool, return_counts=True)
    return values, counts


def _strips(pixels: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Yield the samples that are not masked, a strip at a time."""
    rows = max(1, _STRIP_SAMPLES // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        strip = _comparable(pixels[top : top + rows])
        strip = strip if mask is None else strip[~mask[top : top + rows]]
        if strip.numel():
            yield strip


def _comparable(samples: Tensor) -> Tensor:
    """Return samples in a type that torch can order."""
    if samples.is_floating_point():
        return samples
    return samples.to(torch.int64 if samples.dtype == torch.uint32 else torch.int32)


def _ends(values: Tensor, sums: Tensor, first: int, last: int) -> tuple[float, float]:
    """Return what all but `TAIL` of the samples at either end of values[first:last + 1] lie in."""
    before = int(sums[first - 1]) if first else 0
    total = int(sums[last]) - before
    dropped = max(math.ceil(TAIL * total), 1) if total >= 16 else 0
    wanted = torch.tensor([before + dropped, before + total - 1 - dropped])
    low, high = values[torch.searchsorted(sums, wanted, right=True)].tolist()
    return low, high


def _without_voids(
    values: Tensor, sums: Tensor, pages: Sequence[Tensor]
) -> tuple[int, int, tuple[float, ...]]:
    """Return the first and the last value that is not far from all others, and the voids.

    Args:
        values: ascending.
        sums: number of samples up to each value.
        pages: all samples.
    """
    first, last, voids = 0, len(values) - 1, []

    def count(start: int, stop: int) -> int:
        return int(sums[stop - 1]) - (int(sums[start - 1]) if start else 0) if stop > start else 0

    for _ in range(_MOST_STRAYS):
        if last - first < 2:
            break
        # What stands alone at one end must not widen the range that the other is judged by.
        low, high = _ends(values, sums, first + 1, last - 1)
        width = high - low
        limits = torch.tensor([low - width, high + width], dtype=values.dtype)
        near, beyond = torch.searchsorted(values, limits).tolist()
        dropped = [0, 0]
        for side, end, start, stop in ((0, first, first + 1, near), (1, last, beyond, last)):
            distance = low - values[end].item() if side == 0 else values[end].item() - high
            samples = count(end, end + 1)
            if not distance > width > 0:
                continue
            if samples >= SEVERAL:
                is_alone = count(start, stop) <= max(2, samples // 20)
                if not (is_alone and _is_plausible(values[end].item(), pages)):
                    continue
                voids.append(values[end].item())
            dropped[side] = 1
        first, last = first + dropped[0], last - dropped[1]
        if not any(dropped):
            return first, last, tuple(voids)
    return first, last, tuple(voids)


def _is_plausible(value: float, pages: Sequence[Tensor]) -> bool:
    """Whether a value stands for no data; where sensors saturate, only if it covers areas."""
    is_peak = value >= 255 and math.log2(value + 1).is_integer()
    if not is_peak:
        return True
    alone, beside = 0, 0
    for page in pages:
        here = (_comparable(page) == value).all(2)
        alone += int(here.sum())
        beside += int((here[:, 1:] & here[:, :-1]).sum())
    return beside > alone / 2


def _number(value: Any, choose: Callable[[Any], Any], *, is_finite: bool = True) -> float | None:
    """Return a tag's value as a number, of several the one to `choose`; None if it is none."""
    try:
        if isinstance(value, (tuple, list)):
            value = choose([float(one) for one in value])
        if isinstance(value, bytes):
            value = value.decode("ascii")
        number = float(value.strip(" \0") if isinstance(value, str) else value)
    except (TypeError, ValueError, UnicodeDecodeError):
        return None
    return number if not is_finite or math.isfinite(number) else None
