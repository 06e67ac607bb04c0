"""Samples of an image: a loaded Pillow image → a tensor of the same depth, and back.

Nothing here needs numpy: bytes are copied straight from and to the tensors' memory.
"""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import overload

import torch
from PIL import Image, ImageCms
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError

from .light import SRGB, is_linear
from .metadata import PACKED_BITS, WHITE_IS_ZERO, Metadata, StorageFormat
from .photons import find_photons
from .ranges import (
    BITS_8,
    NOTHING_DECLARED,
    Declared,
    ValueRange,
    as_bits,
    clamped,
    find_range,
    is_no_data,
    narrow_pages,
)
from .scratch import Lazy, Places, Scratch, memory
from .sniff import WIDE_GRAY
from .tiff import RawPage


@dataclass(frozen=True)
class KeptPixels:
    """Pixels that the network does not see, and that are written back as they are.

    Attributes:
        mask: (H, W).
        values: [pixels, C], as stored.
    """

    mask: Tensor
    values: Tensor


@dataclass(frozen=True)
class DecodedImage:
    """One decoded page of a file, with all that its output needs to keep.

    Attributes:
        samples: (H, W, C) as stored, but for `kept` pixels, `outliers` and gray in RGB, which has
            one channel after `prepare`: uint8, uint16 or float32, C = 1 or 3.
        alpha: (H, W, 1) of the same type, which is not denoised; None for opaque images.
        value_range: stored samples ↔ [0, 1], by `prepare`.
        storage: how the file stored the samples.
        metadata: what the file says beside its pixels.
        note: what reading had to change or drop, for the user; "" if nothing.
        masks: pages of a TIFF file that go along unchanged behind this one.
        declared: what the file says about its values.
        kept: pixels without meaning, which `samples` has others for; None if there are none.
        outliers: pixels too far beyond the range for a network (stars, hot pixels), likewise.
    """

    samples: Tensor
    alpha: Tensor | None
    value_range: ValueRange
    storage: StorageFormat
    metadata: Metadata
    note: str = ""
    masks: tuple[RawPage, ...] = ()
    declared: Declared = NOTHING_DECLARED
    kept: KeptPixels | None = None
    outliers: KeptPixels | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width, _ = self.samples.shape
        return height, width

    def to_unit(self) -> Tensor:
        """The samples as float32 (C, H, W) in [0, 1], in a new tensor."""
        return self.value_range.to_unit(self.samples).permute(2, 0, 1)

    def with_outliers(self, samples: Tensor) -> Tensor:
        """Samples of this page's shape, or as stored, with the outliers as stored."""
        return _put_back(samples, self.outliers)

    def stored(self, samples: Tensor) -> Tensor:
        """New samples as the file stores them: gray in all of its channels, kept pixels put back.

        Args:
            samples: (H, W, C) on the CPU, of the shape and type of `self.samples`.

        Raises:
            ShapeError: the shape is another.
        """
        if samples.shape != self.samples.shape:
            raise ShapeError(f"samples {tuple(samples.shape)} are not {tuple(self.samples.shape)}")
        is_flat = flat_pixels(self.samples)
        if is_flat is not None:
            samples = samples.clone()
            _set_pixels(samples, is_flat, _pixels(self.samples, is_flat))
        if self.storage.mode.startswith("RGB") and samples.shape[2] == 1:
            samples = torch.cat([samples] * 3, 2)  # expand and copy take four times as long
        return _put_back(_put_back(samples, self.outliers), self.kept)


def _put_back(samples: Tensor, kept: KeptPixels | None) -> Tensor:
    if kept is None:
        return samples
    samples = samples.clone()
    _set_pixels(samples, kept.mask, kept.values[:, : samples.shape[2]])
    return samples


class PagesOnDisk(Sequence[DecodedImage]):
    """Pages of a file whose samples are in a scratch file: each is read when it is asked for.

    Args:
        scratch: where they go.
        pages: of which one at a time is in memory.

    Attributes:
        scratch: where they are.
        outlines: the pages with samples that have a shape and a type, but no memory (torch's device
            "meta"), without alpha, kept pixels and outliers.

    Raises:
        StorageError: there is no room for them.
    """

    def __init__(self, scratch: Scratch, pages: Iterable[DecodedImage]) -> None:
        self.scratch = scratch
        self.outlines: list[DecodedImage] = []
        self._places: list[Places] = []
        for page in pages:
            self.outlines.append(_outline(page))
            self._places.append(scratch.put(_tensors(page)))

    def __len__(self) -> int:
        return len(self.outlines)

    @overload
    def __getitem__(self, place: int) -> DecodedImage: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[DecodedImage]: ...
    def __getitem__(self, place: int | slice) -> DecodedImage | Sequence[DecodedImage]:
        if isinstance(place, slice):
            return Lazy(self.__getitem__, range(len(self))[place])
        samples, alpha, *rest = self.scratch.get(self._places[place])
        kept, outliers = (
            KeptPixels(mask, values) if mask is not None and values is not None else None
            for mask, values in (rest[:2], rest[2:])
        )
        outline = self.outlines[place]
        assert samples is not None  # every page has some
        return replace(outline, samples=samples, alpha=alpha, kept=kept, outliers=outliers)

    def has_alpha(self, number: int) -> bool:
        """Whether a page has an alpha channel; nothing is read for it."""
        return self._places[number][1] is not None

    def change(self, number: int, page: DecodedImage) -> None:
        """Put a page in the place of another.

        Raises:
            StorageError: there is no room for it.
        """
        self.outlines[number] = _outline(page)
        self._places[number] = self.scratch.put(_tensors(page), self._places[number])


def _tensors(page: DecodedImage) -> list[Tensor | None]:
    parts: list[Tensor | None] = [page.samples, page.alpha]
    for pixels in (page.kept, page.outliers):
        parts += [None, None] if pixels is None else [pixels.mask, pixels.values]
    return parts


def _outline(page: DecodedImage) -> DecodedImage:
    samples = _shape_alone(page.samples.shape, page.samples.dtype)
    return replace(page, samples=samples, alpha=None, kept=None, outliers=None)


@lru_cache(64)  # one for all pages: small blocks between large ones keep these apart once freed
def _shape_alone(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def outlines(pages: Sequence[DecodedImage]) -> Sequence[DecodedImage]:
    """The pages for what does not depend on their samples' values; nothing is read for them."""
    return pages.outlines if isinstance(pages, PagesOnDisk) else pages


def with_note(pages: Sequence[DecodedImage], note: str) -> Sequence[DecodedImage]:
    """The pages, the first with this note; pages on disk are changed there."""
    if isinstance(pages, PagesOnDisk):
        pages.outlines[0] = replace(pages.outlines[0], note=note)
        return pages
    return replace(pages[0], note=note), *pages[1:]


YUV_OFF = 1  # levels: decoders of WebP round the three colours of one luma differently
FLAT_PX = 17  # side: beyond a JPEG's blocks, whose noise is in their mean
_FLAT_PIXELS = 1 << 19  # looked at together: marks of more are blocks that the system has to map


def prepare(
    pages: Sequence[DecodedImage], asked: tuple[float, float] | None = None
) -> Sequence[DecodedImage]:
    """Pages of one file as a network takes them.

    All pages above 8 bits share one range of values, and a curve if they are linear light or their
    noise grows with the signal. RGB with R = G = B throughout has one channel. Pixels without
    meaning (not finite, "no data", hidden under alpha 0) and outliers are filled from their
    surroundings, and remembered.

    Args:
        pages: as read; those on disk are changed there, one after the other.
        asked: black and white of samples above 8 bits; None: by `find_range`.
    """
    is_on_disk = isinstance(pages, PagesOnDisk)

    def each(make: Callable[[int], Tensor], numbers: Sequence[int]) -> Sequence[Tensor]:
        return Lazy(make, numbers) if is_on_disk else [make(number) for number in numbers]

    every, sketches = range(len(pages)), outlines(pages)

    def without_meaning(number: int) -> Tensor:
        sketch = sketches[number]
        if isinstance(pages, PagesOnDisk):
            has_alpha = pages.has_alpha(number)
        else:
            has_alpha = pages[number].alpha is not None
        if has_alpha or sketch.samples.is_floating_point() or sketch.declared.no_data is not None:
            return _without_meaning(pages[number])
        return torch.zeros(sketch.size, dtype=torch.bool)  # nothing to read

    hidden = each(without_meaning, every)
    deep = [number for number in every if sketches[number].samples.dtype != torch.uint8]
    ranges, note = [BITS_8] * len(pages), sketches[0].note
    if deep:
        samples = each(lambda number: pages[number].samples, deep)
        found, voids = find_range(
            samples,
            each(hidden.__getitem__, deep),
            sketches[deep[0]].declared,
            asked,
            [sketches[number].samples.numel() for number in deep],
        )
        if voids:
            declared, is_deep = hidden, set(deep)

            def with_voids(number: int) -> Tensor:
                if number not in is_deep:
                    return declared[number]
                return declared[number] | is_no_data(pages[number].samples, voids)

            hidden = each(with_voids, every)
        masks = each(hidden.__getitem__, deep)
        is_light = [
            is_linear(sketches[number].storage, sketches[number].metadata) for number in deep
        ]
        photons = None if any(is_light) else find_photons(samples, masks, found)
        for number, has_light in zip(deep, is_light, strict=True):
            curve = SRGB if has_light else photons
            maximum = sketches[number].storage.maximum
            ranges[number] = replace(found, ceiling=maximum, curve=curve)
        if len(deep) > 1 and asked is None:
            narrow = narrow_pages(samples, masks, found)
            note = "; ".join(filter(None, (note, _note_on_narrow_pages(narrow, deep, found))))

    def prepared(number: int) -> DecodedImage:
        page = replace(pages[number], value_range=ranges[number])
        return _prepared(replace(page, note=note) if number == 0 else page, hidden[number])

    if not isinstance(pages, PagesOnDisk):
        return tuple(map(prepared, every))
    for number in every:
        pages.change(number, prepared(number))
    return pages


def _without_meaning(page: DecodedImage) -> Tensor:
    """(H, W): pixels that, as far as the page itself says, mean nothing."""
    no_data = page.declared.no_data
    mask = is_no_data(page.samples, [] if no_data is None else [no_data])
    return mask if page.alpha is None else mask | (page.alpha == 0)[:, :, 0]


def _note_on_narrow_pages(
    narrow: Mapping[int, tuple[float, float]], deep: Sequence[int], scale: ValueRange
) -> str:
    """A note on pages whose noise is small beside the file's range; "" if there are none."""
    if not narrow:
        return ""
    first, (low, high) = next(iter(narrow.items()))
    named = f"page {deep[first] + 1} holds" if len(narrow) == 1 else (
        f"{len(narrow)} pages, such as page {deep[first] + 1}, hold"
    )  # fmt: skip
    return (
        f"{named} little of the file's range ({low:.4g} to {high:.4g} of {scale.offset:.4g} to "
        f"{scale.offset + scale.span:.4g}), so that less of the noise is removed; split the file"
    )


def _prepared(page: DecodedImage, mask: Tensor) -> DecodedImage:
    samples, seen, kept, outliers = page.samples, page.samples, None, None
    beyond, gaps = page.value_range.is_beyond(samples), None
    if _is_any(mask) or (beyond is not None and _is_any(beyond)):
        beyond = torch.zeros_like(mask) if beyond is None else beyond & ~mask
        gaps = mask | beyond
        kept, outliers = (
            KeptPixels(where, _pixels(samples, where)) if _is_any(where) else None
            for where in (mask, beyond)
        )
        seen = _pixels(samples, ~gaps)[:, None]
    is_lossy = page.storage.format in {"WEBP", "AVIF"} and not page.storage.is_lossless
    if samples.shape[2] == 3 and seen.numel() and _is_gray(seen, YUV_OFF if is_lossy else 0):
        samples = samples[:, :, :1].contiguous()
    if gaps is not None:
        samples = _filled(samples, gaps, page.value_range)
    return replace(page, samples=samples, kept=kept, outliers=outliers)


def _is_any(mask: Tensor) -> bool:
    """Whether a pixel of (H, W) is marked: torch's `any` takes 30 times as long where none is."""
    return bool(mask.view(torch.uint8).amax())


def _is_gray(samples: Tensor, most_off: int) -> bool:
    """Whether the three channels of (H, W, 3) are equal; decided early for most colours.

    Args:
        samples: all, or those that count.
        most_off: how far, in levels of 8 bits, the channels of a gray pixel may be apart.
    """
    for part in (samples[:: max(1, len(samples) // 8)], samples):
        if most_off:
            least, most = part.amin(2), part.amax(2)
            if bool(((most - least) > most_off).any()):
                return False
            continue
        red, green, blue = (as_bits(part)[:, :, channel] for channel in range(3))
        if not (torch.equal(red, green) and torch.equal(green, blue)):
            return False
    return True


def _filled(samples: Tensor, mask: Tensor, scale: ValueRange) -> Tensor:
    """The samples, with masked pixels replaced by their surroundings' mean and noise.

    Means by push-pull (Gortler et al., "The Lumigraph", 1996): from the finest resolution that has
    any. Without noise in the filled areas a blind network removes less elsewhere, next to none
    around a large area (Kodak at σ 25: rms error 0.085 instead of 0.031).
    """
    # A channel at a time: in float32, at several resolutions, all of them would be large.
    parts = [
        _surroundings(scale.to_unit(samples[:, :, channel : channel + 1]), mask)
        for channel in range(samples.shape[2])
    ]
    inside, sigma = torch.cat([mean for mean, _ in parts], 1), torch.cat([s for _, s in parts])
    generator = torch.Generator().manual_seed(0)
    inside += sigma * torch.randn(inside.shape, generator=generator)
    if samples.dtype == torch.uint8:
        new = (inside * scale.span).round_().clamp_(0, scale.span)
    else:
        new = scale.share(inside).double() * scale.span + scale.offset
        new = new if samples.is_floating_point() else new.round_().to(torch.int64)
        new = clamped(new, samples.dtype)
    result = samples.clone()
    _set_pixels(result, mask, new.to(samples.dtype))
    return result


def _surroundings(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[pixels, C]: the mean around each masked pixel; and [C]: the σ outside."""
    weight = (~mask).to(torch.float32)[:, :, None]
    sigma = _sigma_outside(values, mask)
    values = values.masked_fill(mask[:, :, None], 0.0)  # NaN times 0 is not 0
    levels = [(values, weight)]
    while bool((weight < 1e-3).any()) and max(weight.shape[:2]) > 1:
        values, weight = (_halved(_smoothed(part)) for part in (values, weight))
        share = weight.clamp(0, 1)
        values, weight = values / weight.clamp_min(1e-9) * share, share
        levels.append((values, weight))
    mean = values / weight.clamp_min(1e-9)
    for values, weight in reversed(levels[:-1]):
        height, width = weight.shape[:2]
        coarse = _smoothed(mean.repeat_interleave(2, 0).repeat_interleave(2, 1))
        mean = values + (1 - weight) * coarse[:height, :width]
    return _pixels(mean, mask), sigma


def _sigma_outside(values: Tensor, mask: Tensor) -> Tensor:
    """[C]: σ of the noise outside the mask, by the median of the finest diagonal differences."""
    height, width = (extent // 2 * 2 for extent in mask.shape)
    a, b = values[:height:2, :width:2], values[:height:2, 1:width:2]
    c, d = values[1:height:2, :width:2], values[1:height:2, 1:width:2]
    hidden = mask[:height, :width].reshape(height // 2, 2, width // 2, 2).any(3).any(1)
    found = ((a - b - c + d).abs() / 2)[~hidden]  # [quads, C]
    return found.median(0).values / 0.6745 if len(found) else values.new_zeros(values.shape[2])


def _smoothed(values: Tensor) -> Tensor:
    """(H, W, C) after (1 2 1)/4 down and across, with the edges repeated."""
    for axis in (0, 1):
        places = torch.arange(values.shape[axis])
        beside = values.index_select(axis, (places - 1).clamp_min(0))
        beside += values.index_select(axis, (places + 1).clamp_max(len(places) - 1))
        values = beside.div_(4).add_(values, alpha=0.5)
    return values


def _halved(sums: Tensor) -> Tensor:
    """(H, W, C) → sums over 2×2; what is missing at the ends counts as 0."""
    height, width, channels = sums.shape
    even = sums.new_zeros(height + height % 2, width + width % 2, channels)
    even[:height, :width] = sums
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels)
    return blocks.sum((1, 3))


def flat_pixels(samples: Tensor) -> Tensor | None:
    """Pixels in the middle of `FLAT_PX` square pixels of one value; None if there are none.

    Such an area holds no noise (it is synthetic, or saturated), so nothing is to be removed there;
    a network may be off by a level or two.

    Args:
        samples: (H, W, C); what lies beyond the edges counts as equal.

    Returns:
        (H, W), or None.
    """
    bits, reach = as_bits(samples), FLAT_PX // 2
    found: Tensor | None = None
    rows = max(4 * FLAT_PX, _FLAT_PIXELS // bits.shape[1])
    for top in range(0, len(bits), rows):
        start, bottom = max(0, top - reach - 1), top + rows
        strip = bits[start : bottom + reach + 1]
        # Every such area covers half of its width in one of these rows: mostly, there is none.
        if bool(_differs_across(strip[::reach]).all()):
            continue
        is_flat = _flat_in(strip)[top - start : bottom - start]
        if bool(is_flat.any()):
            found = torch.zeros(bits.shape[:2], dtype=torch.bool) if found is None else found
            found[top:bottom] = is_flat
    return found


def _flat_in(bits: Tensor) -> Tensor:
    """(H, W): `flat_pixels` of all rows that are half of `FLAT_PX` from an end that is no edge."""
    differs = _differs_across(bits)
    down = _unequal(bits[1:], bits[:-1])
    differs[1:] |= down
    differs[:-1] |= down
    return ~_spread(differs, FLAT_PX // 2)


def _differs_across(bits: Tensor) -> Tensor:
    """(H, W): whether a row has different neighbours within half of `FLAT_PX`."""
    differs = torch.zeros(bits.shape[:2], dtype=torch.bool)
    across = _unequal(bits[:, 1:], bits[:, :-1])
    differs[:, 1:] |= across
    differs[:, :-1] |= across
    return _spread(differs.T, FLAT_PX // 2).T


def _unequal(first: Tensor, second: Tensor) -> Tensor:
    """(H, W): whether pixels (H, W, C) differ."""
    height, width, channels = first.shape
    unequal = (first != second).flatten()
    # A pixel's samples are neighbours: a plane at a time, each read takes a cache line for a byte.
    pixels = max(0, len(unequal) - channels + 1)
    result = unequal[:pixels]
    for channel in range(1, channels):
        result = result | unequal[channel : channel + pixels]
    return result[::channels].contiguous().view(height, width)


def _spread(marks: Tensor, distance: int) -> Tensor:
    """Mark rows up to `distance` above and below a marked one too, in one byte's steps."""
    reached = 0
    while reached < distance:
        step = min(max(1, reached), distance - reached)
        wider = marks.clone()
        wider[step:] |= marks[:-step]
        wider[:-step] |= marks[step:]
        marks, reached = wider, reached + step
    return marks


def _pixels(samples: Tensor, mask: Tensor) -> Tensor:
    """[pixels, C]: those of (H, W, C) that are marked; torch indexes no unsigned wide integers."""
    bits = as_bits(samples)
    parts = [bits[rows][mask[rows]] for rows in _row_strips(mask)]
    return torch.cat(parts).view(samples.dtype)


def _set_pixels(samples: Tensor, mask: Tensor, values: Tensor) -> None:
    """Set marked pixels of contiguous (H, W, C) in place."""
    bits, new, done = as_bits(samples), as_bits(values), 0
    for rows in _row_strips(mask):
        count = int(mask[rows].sum())
        bits[rows][mask[rows]] = new[done : done + count]
        done += count


def _row_strips(mask: Tensor) -> Iterator[slice]:
    """Strips of rows of (H, W): torch makes two 64-bit indices of each pixel that is marked."""
    rows = max(1, _STRIP_BYTES // (16 * mask.shape[1]))
    return (slice(top, top + rows) for top in range(0, len(mask), rows))


# A mode can be written as any of these without loss; the first that the format holds is used.
_PROMOTIONS = {
    "1": ("1", "L", "RGB"),
    "L": ("L", "RGB"),
    "L;2": ("L;2", "L", "RGB"),
    "L;4": ("L;4", "L", "RGB"),
    "LA": ("LA", "RGBA"),
    "RGB": ("RGB",),
    "RGBA": ("RGBA",),
    "I;12": ("I;12", "I;16"),
    "I;16": ("I;16",),
    "F": ("F",),
}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"}
_DTYPES = {"I;16": torch.uint16, "I": torch.int32, "F": torch.float32}  # others are uint8
_STRIP_BYTES = 1 << 22
# Copied at once from a Pillow image. The system would have to map larger blocks for every strip,
# which took ten times as long as the copies.
_COPIED_BYTES = 1 << 18

EXTRA_SAMPLES_NOTE = "extra samples dropped: they are not alpha"


def decode(
    image: Image.Image, *, bits: int = 16, white_is_zero: bool = False
) -> tuple[Tensor, Tensor | None, str]:
    """The samples of a loaded image.

    Args:
        image: loaded.
        bits: depth of wide gray: 12 or 16.
        white_is_zero: wide gray is stored inverted (Pillow itself inverts 8 bits).

    Returns:
        samples (H, W, C) of uint8, uint16 or float32, C = 1 or 3; alpha (H, W, 1) or None; and the
        mode that the output takes (see `StorageFormat`).

    Raises:
        ImageError: images of this mode cannot be denoised.
    """
    if image.mode == "F":
        return from_pil(image), None, "F"
    if image.mode in WIDE_GRAY:
        return _wide_gray(image, bits, white_is_zero), None, f"I;{bits}"

    has_alpha = image.has_transparency_data
    if image.mode in {"1", "L", "LA", "La"}:
        mode = "LA" if has_alpha else image.mode
        converted = _in_mode(image, "LA" if has_alpha else "L")
    elif image.mode in _COLOUR:
        mode = "RGBA" if has_alpha else "RGB"
        converted = _cmyk_to_rgb(image) if image.mode == "CMYK" else _in_mode(image, mode)
    else:
        raise ImageError(f"has mode {image.mode}, which is not supported; convert it to RGB")
    if not has_alpha:
        return from_pil(converted), None, mode
    alpha = from_pil(converted.getchannel("A"))
    return from_pil(converted.convert(mode[:-1])), alpha, mode


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode; itself if it has that, where Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def encode(page: DecodedImage, samples: Tensor, mode: str) -> Image.Image:
    """The Pillow image that stores `samples`, and the page's alpha, in `mode`.

    Args:
        page: the source.
        samples: (H, W, C) on the CPU, as `as_written` returned them.
        mode: by `target_mode`.

    Raises:
        ShapeError: the page has no alpha channel for this mode.
    """
    if bits := PACKED_BITS.get(mode):
        return _packed(samples, bits)
    image = to_pil(samples)
    if mode == "1":
        return image.convert("1", dither=Image.Dither.NONE)
    if mode.endswith("A"):
        if page.alpha is None:
            raise ShapeError(f"mode {mode} needs the alpha channel of its page")
        opacity = to_pil(page.alpha)
        is_widened = mode == "RGBA" and image.mode == "L"
        colours = (image,) * 3 if is_widened else image.split()
        return Image.merge(mode, (*colours, opacity))
    return _in_mode(image, mode)


def as_written(
    page: DecodedImage, samples: Tensor, format_name: str, mode: str
) -> tuple[DecodedImage, Tensor]:
    """A page, and samples as `page.stored` returned them, in a format's depth and sense.

    Samples of a file that says its largest (PNM, TIFF of 12 bits) are scaled to 16 bits where the
    format has no such; TIFF that stores white as 0 still does.

    Args:
        page: the source.
        samples: (H, W, C).
        format_name: Pillow's name of the format.
        mode: by `target_mode`.
    """
    storage, is_byte = page.storage, samples.dtype == torch.uint8
    most, white = storage.maximum, 255 if is_byte else storage.maximum or 65535
    holds_most = mode in PACKED_BITS or format_name == "PPM" or (
        format_name == "PAM" and not is_byte
    )  # fmt: skip
    if most is not None and not holds_most:
        alpha, white = page.alpha, 255 if is_byte else 65535
        if not is_byte:
            samples = rescaled(samples, most, white)
            alpha = None if alpha is None else rescaled(alpha, most, white)
        page = replace(page, alpha=alpha, storage=replace(storage, maximum=None))
    is_gray = samples.shape[2] == 1 and not samples.is_floating_point()
    if format_name == "TIFF" and storage.photometric == WHITE_IS_ZERO and is_gray:
        samples = (white - samples.to(torch.int32)).to(samples.dtype)
    return page, samples


def rescaled(samples: Tensor, most: int, new_most: int) -> Tensor:
    """Samples in 0 … most as the nearest in 0 … new_most, of the same type."""
    levels = (samples.to(torch.int64) * (2 * new_most) + most) // (2 * most)
    return levels.clamp_(0, new_most).to(samples.dtype)


def _packed(samples: Tensor, bits: int) -> Image.Image:
    """(H, W, 1) as the bytes of a TIFF file's rows of 2, 4 or 12 bits, in an image of 8 bits.

    `set_tiff_tags` then says what they are.
    """
    height, width, _ = samples.shape
    levels = samples if bits > 8 else rescaled(samples, 255, (1 << bits) - 1)
    many = 2 if bits > 8 else 8 // bits  # samples in whole bytes
    wide = torch.zeros(height, -(-width // many) * many, dtype=torch.int32)
    wide[:, :width] = levels[:, :, 0].to(torch.int32)
    together = torch.zeros(height, wide.shape[1] // many, dtype=torch.int32)
    for index in range(many):
        together = together << bits | wide[:, index::many]
    size = many * bits // 8
    parts = [together >> 8 * (size - 1 - byte) & 255 for byte in range(size)]
    packed = torch.stack(parts, 2).reshape(height, -1, 1)
    return to_pil(packed[:, : (width * bits + 7) // 8].to(torch.uint8))


def pnm_bytes(page: DecodedImage, samples: Tensor) -> bytes:
    """A PGM or PPM file whose largest possible sample is the page's, as in its source."""
    height, width, channels = samples.shape
    most = page.storage.maximum
    if most is None:
        raise ShapeError("the page has no largest sample of its own")
    header = f"P{6 if channels == 3 else 5}\n{width} {height}\n{most}\n".encode("ascii")
    if samples.dtype == torch.uint8:
        stored = rescaled(samples, 255, most).contiguous()
    else:  # big-endian
        wide = samples.to(torch.int32)
        stored = torch.stack([wide >> 8, wide & 255], 3).to(torch.uint8)
    return header + bytes(memory(stored))


def target_mode(mode: str, format_name: str, modes: Collection[str]) -> str:
    """The mode itself, or the first wider one in `modes` that holds it without loss.

    Raises:
        ImageError: there is none.
    """
    target = next((wider for wider in _PROMOTIONS.get(mode, (mode,)) if wider in modes), None)
    if target is None:
        remedy = "a .tif file" if "F" in mode else "a .png or .tif file"
        raise ImageError(f"{format_name} cannot hold mode {mode}; write {remedy}")
    return target


def to_pil(samples: Tensor) -> Image.Image:
    """A Pillow image of samples on the CPU, in a copy.

    Args:
        samples: (H, W, C) uint8 with C = 1 or 3, or (H, W, 1) uint16 or float32.
    """
    height, width, channels = samples.shape
    mode = {torch.uint16: "I;16", torch.float32: "F"}.get(samples.dtype, "L")
    image = Image.new("RGB" if channels == 3 else mode, (width, height), None)  # not filled first
    contiguous = samples.contiguous()  # held until it is copied
    image.frombytes(memory(contiguous))
    return image


def from_pil(image: Image.Image) -> Tensor:
    """(H, W, C): the samples of a Pillow image, in a copy.

    The type is uint16 for mode I;16, int32 for I, float32 for F and uint8 for modes of 8 bits.
    """
    dtype, channels = _DTYPES.get(image.mode, torch.uint8), len(image.getbands())
    width, height = image.size
    samples = torch.empty((height, width, channels), dtype=dtype)
    target = memory(samples)
    row = width * channels * dtype.itemsize
    rows = max(1, _COPIED_BYTES // row)
    for top in range(0, height, rows):  # in strips: never two copies of the whole image
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        target[top * row : bottom * row] = strip.tobytes()
    return samples


def _wide_gray(image: Image.Image, bits: int, white_is_zero: bool) -> Tensor:
    if image.mode == "I;16" and bits == 16 and not white_is_zero:
        return from_pil(image)
    wide, most = from_pil(image.convert("I")), (1 << bits) - 1
    return (most - wide if white_is_zero else wide).clamp_(0, most).to(torch.uint16)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB through the embedded profile if it is usable, else by plain arithmetic."""
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, ImportError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")
