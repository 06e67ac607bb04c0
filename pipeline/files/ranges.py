"""Value ranges: which samples are black and white, and which stand for "no data".

Networks take values in [0, 1]. Samples of 8 bits fill their type; deeper ones rarely do, so their
range is what the file declares or, without that, what nearly all of its samples lie in.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# The network never sees values further than this beyond [0, 1]; what exceeds them passes by it. It
# denoises up to about here: at 1 stars lose 0.1 to 0.7 dB, without a limit 2 to 20 dB.
BEYOND = 0.5

TAIL = 0.001  # share of the samples that may lie beyond each end of an estimated range
FEW = 0.1  # share of the samples that may be outliers at one end: hot pixels, saturated stars
FENCE = 2.0  # widths of all others beyond which these lie
NEAR_FENCE = 0.5  # the same, where there are many: others are not as bright
FAR = 8.0  # and beyond which areas are no highlights, if they are saturated
STARS = 0.01  # or less than this share
SEVERAL = 3  # samples of one value, far from all others, that stand for no data
NARROW = 1 / 8  # of a file's range: a page that takes less of it is noted
_MOST_SAMPLES = 2**18  # of a file that its range is estimated from
_MOST_PAGE_SAMPLES = 2**14  # of a page, to compare its range with the file's
_MOST_CHANNELS = 4
_MOST_STRAYS = 1000  # single values far from all others that are stepped over
_STRIP_SAMPLES = 2**22
_LEAST_CROWD = 3  # of 3×3 pixels: a line of one pixel's width is no row of hot pixels
_PICTURE = 5.0  # σ of the noise: what is narrower holds little but noise

_MIN_VALUE, _MAX_VALUE, _NO_DATA, _DESCRIPTION = 340, 341, 42113, 270  # TIFF tags
_INTEGER_LIMITS = {
    torch.uint8: (0, 255),
    torch.uint16: (0, 65535),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.uint32: (0, 2**32 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}
_EXACT_IN_FLOAT32 = {torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32}


class Curve(ABC):
    """A map of [0, 1] onto itself, steady and monotonic also beyond, for the network's sake."""

    @abstractmethod
    def encoded(self, shares: Tensor) -> Tensor:
        """Return the values that the network sees for these shares of the span."""

    @abstractmethod
    def decoded(self, values: Tensor) -> Tensor:
        """Return the shares that `encoded` made these values of."""

    def lift(self, values: Tensor, before: Tensor) -> Tensor:
        """Return what `decoded` lacks for values whose noise is removed; 0 if it lacks nothing.

        The mean of a curve's values is not its value for the mean.

        Args:
            values: denoised.
            before: noisy; where they are the same, nothing is lacking.
        """
        return values.new_zeros(())


@dataclass(frozen=True)
class ValueRange:
    """The map from stored samples to [0, 1]: (sample − offset) / span, through a curve if any.

    Attributes:
        offset: the sample that maps to 0.
        span: the distance to the sample that maps to 1.
        ceiling: the largest sample that the file can hold, if it is below its type's: 4095 for 12
            bits; None otherwise.
        curve: from there to what the network sees; None for the same.
    """

    offset: float
    span: float
    ceiling: int | None = None
    curve: Curve | None = None

    def to_unit(self, samples: Tensor) -> Tensor:
        """Return samples of any shape and type as float32 in [−`BEYOND`, 1 + `BEYOND`], new.

        The curve comes behind these limits, if there is one.
        """
        if samples.dtype == torch.uint8:
            return samples.to(torch.float32).div_(self.span)
        values = samples.to(self._arithmetic(samples), copy=True)
        values = (values.sub_(self.offset) if self.offset else values).div_(self.span)
        values = values.clamp_(-BEYOND, 1 + BEYOND).to(torch.float32)
        return values if self.curve is None else self.curve.encoded(values)

    def is_beyond(self, samples: Tensor) -> Tensor | None:
        """Return (H, W): pixels of (H, W, C) that `to_unit` clamps; None if it never does."""
        if samples.dtype == torch.uint8:
            return None
        found = torch.zeros(samples.shape[:2], dtype=torch.bool)
        least, most = self.offset - BEYOND * self.span, self.offset + (1 + BEYOND) * self.span
        rows = max(1, _STRIP_SAMPLES // max(1, samples.shape[1] * samples.shape[2]))
        for top in range(0, len(samples), rows):
            strip = _comparable(samples[top : top + rows])
            found[top : top + rows] = ((strip < least) | (strip > most)).any(2)
        return found

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
        arithmetic, values, before = (
            self._arithmetic(samples),
            values.float(),
            self.to_unit(samples),
        )
        change = self.share(values) - self.share(before)
        if self.curve is not None:
            change += self.curve.lift(values, before)
        change = change.to(arithmetic) * self.span
        if samples.is_floating_point():
            return (samples.to(arithmetic) + change).to(samples.dtype)
        levels = samples.to(torch.int64) + change.round_().to(torch.int64)
        return clamped(levels, samples.dtype, self.ceiling).to(samples.dtype)

    def share(self, values: Tensor) -> Tensor:
        """Return which share of the span values in [0, 1] stand for: the same without a curve."""
        return values if self.curve is None else self.curve.decoded(values)

    def is_exact_in_float32(self, dtype: torch.dtype) -> bool:
        """Whether float32 neither loses bits of samples of a type nor overflows."""
        return dtype in _EXACT_IN_FLOAT32 and 1e-30 < self.span < 1e30

    def levels(self, dtype: torch.dtype) -> tuple[int, int] | None:
        """Least and most that samples of an integer type may be in the file; None for floats."""
        if dtype not in _INTEGER_LIMITS:
            return None
        lowest, highest = _INTEGER_LIMITS[dtype]
        return lowest, highest if self.ceiling is None else self.ceiling

    def _arithmetic(self, samples: Tensor) -> torch.dtype:
        return torch.float32 if self.is_exact_in_float32(samples.dtype) else torch.float64


BITS_8 = ValueRange(0.0, 255.0)
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

    def of_samples(self, factor: int, white: int | None) -> "Declared":
        """Return the same of samples that are the file's times `factor`.

        Args:
            factor: 85 for 2 bits that fill 8.
            white: the largest sample, if samples are the distance to it: white was stored as 0.
        """

        def of_sample(value: float) -> float:
            return value * factor if white is None else white - value * factor

        high = self.high
        low, high = (
            (self.low, None) if high is None else sorted((of_sample(self.low), of_sample(high)))
        )
        no_data = None if self.no_data is None else of_sample(self.no_data)
        return replace(self, low=low, high=high, no_data=no_data)


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
    sizes: Sequence[int] | None = None,
) -> tuple[ValueRange, tuple[float, ...]]:
    """Find the range of a file's samples, and the values that stand for no data.

    The range is `asked`; else what the file declares, unless its samples lie further beyond than
    half the width; else all but `TAIL` of the samples at either end, outliers aside. It comes from
    a sample of the pixels, so memory does not grow with the file.

    Outliers lie beyond the others by more than `FENCE` times the width of these, and are few. They
    are isolated pixels (hot ones); or small or saturated areas with what leads up to them (stars),
    if the rest holds a picture, and not just the background of one.

    Several samples of one value that lies beyond the others' range by more than its width, with
    next to nothing between, stand for no data. The type's largest value may also be saturation:
    it must cover areas.

    Args:
        pages: (H, W, C), of one type above 8 bits; asked for one after the other, several times.
        hidden: (H, W) for each page: pixels known to mean nothing; None for none.
        declared: what the file says.
        asked: the ends of the range, whatever the file says.
        sizes: the pages' numbers of samples, if they are known.
    """
    sizes = [page.numel() for page in pages] if sizes is None else sizes
    seen = _Seen.of(pages, hidden, _MOST_SAMPLES, sizes)
    if len(seen.values) == 0:
        return (UNIT if asked is None else _between(*asked)), ()
    values, counts = _histogram(seen, pages, hidden)
    first, last, voids = _without_voids(values, counts.cumsum(0), seen, pages)
    low, high = seen.ends(values[first], values[last])
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


def narrow_pages(
    pages: Sequence[Tensor], hidden: Sequence[Tensor], file_range: ValueRange
) -> dict[int, tuple[float, float]]:
    """Return number → own range of the pages that take less than `NARROW` of their file's.

    Args:
        pages: (H, W, C), of one type above 8 bits.
        hidden: (H, W) for each page: pixels that mean nothing.
        file_range: of all.
    """
    found = {}
    for number, (page, mask) in enumerate(zip(pages, hidden, strict=True)):
        seen = _Seen.of([page], [mask], _MOST_PAGE_SAMPLES, [page.numel()])
        if len(seen.values):
            low, high = seen.ends(seen.values.min(), seen.values.max())
            if 0 < high - low < NARROW * file_range.span:
                found[number] = low, high
    return found


@dataclass(frozen=True)
class _Seen:
    """Samples that stand for all of a file.

    Attributes:
        values: [n] float64.
        places: [n] int64: page, row, column and channel, as one number.
        step: every which pixel they are of.
        pages: (H, W, C), all of them.
        starts: [pages]: the place of each page's first sample.
    """

    values: Tensor
    places: Tensor
    step: int
    pages: Sequence[Tensor]
    starts: Tensor

    @classmethod
    def of(
        cls,
        pages: Sequence[Tensor],
        hidden: Sequence[Tensor] | None,
        most: int,
        sizes: Sequence[int],
    ) -> "_Seen":
        """Take about `most` samples from all pages, which have `sizes`."""
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        step = max(1, -(-sum(sizes) // most))
        # At once: small blocks between the pages' large ones would keep these apart when freed.
        room = sum(sizes) // step + _MOST_CHANNELS * len(sizes)
        values = torch.empty(room, dtype=torch.float64)
        places = torch.empty(room, dtype=torch.int64)
        count = 0
        for number, page in enumerate(pages):
            height, width, channels = page.shape
            stride = step
            while math.gcd(stride, width) > 1 and stride < height * width:
                stride += 1  # not down a few columns
            seen = _comparable(page.reshape(-1, channels)[::stride])
            place = torch.arange(0, height * width, stride)[:, None] * channels
            place = place + torch.arange(channels) + starts[number]
            if hidden is not None:
                is_seen = ~hidden[number].flatten()[::stride]
                seen, place = seen[is_seen], place[is_seen]
            more = slice(count, count + seen.numel())
            values[more], places[more] = seen.flatten().double(), place.flatten()
            count = more.stop
        return cls(values[:count], places[:count], step, pages, starts)

    def ends(self, lowest: Tensor, highest: Tensor) -> tuple[float, float]:
        """Return the ends of the range of what lies in [lowest, highest], outliers aside."""
        is_inside = (self.values >= lowest) & (self.values <= highest)
        values, places = self.values[is_inside], self.places[is_inside]
        if len(values) == 0:
            return 0.0, 0.0
        ordered, order = values.sort()
        places = places[order]
        low = -self._end(-ordered.flip(0), places.flip(0), -1)
        return low, self._end(ordered, places, 1)

    def _end(self, ordered: Tensor, places: Tensor, sign: int) -> float:
        """Return the upper end of ascending values, which are the samples times `sign`."""
        total = len(ordered)
        tail = max(math.ceil(TAIL * total), 1) if total >= 16 else 0
        end, few = ordered[total - 1 - tail].item(), int(FEW * total)
        top = ordered[total - 1 - few].item()
        width = top - ordered[few].item()
        has_stars = False
        for distance in (FENCE, NEAR_FENCE):
            fence = top + distance * width
            if not end > fence > top:
                break
            within = int(torch.searchsorted(ordered, fence, right=True))
            is_isolated = self._crowd(places[within:], fence, sign) < _LEAST_CROWD
            isolated, areas = int(is_isolated.sum()), ordered[within:][~is_isolated]
            # Where hot pixels are many, some are neighbours by chance.
            if len(areas) > tail + isolated // 10 and not has_stars:
                saturated = int((areas == areas[-1]).sum())
                are_stars = saturated > len(areas) / 10 or len(areas) < STARS * total
                is_far = areas[-1].item() > top + FAR * width
                is_picture = width > _PICTURE * self._sigma(places)
                has_stars = are_stars and is_far and is_picture
                if not has_stars:
                    is_inside = torch.cat([torch.ones(within, dtype=torch.bool), ~is_isolated])
                    ordered, places = ordered[is_inside], places[is_inside]
                    within = len(ordered)
            ordered, places = ordered[:within], places[:within]
            end = float(ordered[within - 1 - max(math.ceil(TAIL * within), 1)])
            if isolated <= tail and not has_stars:
                break
        return end

    def _crowd(self, places: Tensor, fence: float, sign: int) -> Tensor:
        """Return how many of the 3×3 samples around each place lie beyond the fence."""
        return (self._around(places) * sign > fence).sum(0)

    def _sigma(self, places: Tensor) -> float:
        """Return σ of the noise, by what samples differ from the median of the 3×3 around."""
        around = self._around(places[:: max(1, len(places) // _MOST_PAGE_SAMPLES)])
        off = (around[4] - around.median(0).values).abs()
        return off.median().item() / 0.6745 / 0.95  # σ of the difference is 0.95 σ

    def _around(self, places: Tensor) -> Tensor:
        """Return [9, n]: the 3×3 samples around each place, edges repeated."""
        found = torch.empty(9, len(places), dtype=torch.float64)
        owners = torch.searchsorted(self.starts, places.contiguous(), right=True) - 1
        for number in torch.unique(owners).tolist():
            page, is_here = self.pages[number], owners == number
            bits = as_bits(page)
            height, width, channels = page.shape
            place = places[is_here] - self.starts[number]
            row, column = place // (width * channels), place // channels % width
            for index in range(9):
                rows = (row + index // 3 - 1).clamp(0, height - 1)
                columns = (column + index % 3 - 1).clamp(0, width - 1)
                samples = bits[rows, columns, place % channels].view(page.dtype)
                found[index, is_here] = _comparable(samples).double()
        return found


def _histogram(
    seen: _Seen, pages: Sequence[Tensor], hidden: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the values of the samples, ascending, and how often each occurs.

    Of large files the values come from what is seen, but all are counted that lie beyond these by
    more than their range: a few of them may stand for no data.
    """
    values, counts = _counted(seen.values)
    if seen.step == 1:
        return values, counts
    low, high = seen.ends(values[0], values[-1])
    span = max(high - low, 0.0)
    least, most = low - span, high + span
    far, far_counts = _counted(torch.zeros(0))
    for number, page in enumerate(pages):
        mask = None if hidden is None else hidden[number].flatten()
        for strip in _strips(page.reshape(-1, page.shape[2]), mask):
            beyond = strip[(strip < least) | (strip > most)]
            if beyond.numel():  # many samples of no data are one value
                far, far_counts = _added(far, far_counts, *_counted(beyond))
    is_near = (values >= least) & (values <= most)
    values, counts = (
        torch.cat([values[is_near], far]),
        torch.cat([counts[is_near] * seen.step, far_counts]),
    )
    order = values.argsort()
    return values[order], counts[order]


def _counted(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The values of samples in float64, ascending, and how often each occurs."""
    values, counts = torch.unique(samples.flatten().double(), return_counts=True)
    return values, counts


def _added(
    values: Tensor, counts: Tensor, more: Tensor, more_counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and how often they occur in two parts together."""
    both, places = torch.unique(torch.cat([values, more]), return_inverse=True)
    sums = torch.zeros(len(both), dtype=torch.int64)
    return both, sums.index_add_(0, places, torch.cat([counts, more_counts]))


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


def as_bits(samples: Tensor) -> Tensor:
    """Return samples as signed integers of their size, which torch can index: equal bit for bit."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return samples.view(kinds[samples.element_size()])


def _without_voids(
    values: Tensor, sums: Tensor, seen: _Seen, pages: Sequence[Tensor]
) -> tuple[int, int, tuple[float, ...]]:
    """Return the first and the last value that is not far from all others, and the voids.

    Args:
        values: ascending.
        sums: number of samples up to each value.
        seen: samples that stand for all.
        pages: all samples.
    """
    first, last, voids = 0, len(values) - 1, []
    low, high = 0.0, 0.0
    aside: list[int | None] | None = None

    def count(start: int, stop: int) -> int:
        return int(sums[stop - 1]) - (int(sums[start - 1]) if start else 0) if stop > start else 0

    for _ in range(_MOST_STRAYS):
        if last - first < 2:
            break
        # What stands alone at one end must not widen the range that the other is judged by.
        several = [end if count(end, end + 1) >= SEVERAL else None for end in (first, last)]
        if several != aside:
            aside = several
            low, high = seen.ends(values[first + 1], values[last - 1])
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
                if count(start, stop) > max(2, samples // 20):
                    continue
                if _is_plausible(values[end].item(), pages):
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
