"""Samples: a decoded Pillow image → tensors of the depth that it has, and back to the same mode.

No numpy: bytes cross over in the tensors' own memory. What has to be dropped is told in
`StorageFormat.note`, by whoever reads the file.
"""

import ctypes
import io
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

import torch
from PIL import Image, ImageCms
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError

from .sniff import WIDE_GRAY


@dataclass(frozen=True)
class ValueRange:
    """The affine map of stored samples to [0, 1]: (sample − offset) / span.

    Attributes:
        offset: the sample that becomes 0.
        span: what is added for 1: 255 of 8 bits, 65535 of 16, the range of float samples that
            leave [0, 1].
    """

    offset: float
    span: float

    def to_unit(self, samples: Tensor) -> Tensor:
        """Samples of any shape and type as float32, [0, 1]."""
        values = samples.to(torch.float32, copy=True)
        return (values.sub_(self.offset) if self.offset else values).div_(self.span)

    def from_unit(self, values: Tensor, samples: Tensor) -> Tensor:
        """Values as new samples in the place of `samples`, whose type they take.

        Integers are rounded to the nearest and clamped; floats are not. Values that `to_unit` made
        come back bit for bit.

        Args:
            values: float, any shape.
            samples: what was stored, of that shape.
        """
        if samples.dtype == torch.float32:
            if self == UNIT:
                return values.to(torch.float32)
            # Added to what was stored, so that an unchanged pixel keeps every bit.
            return samples + (values - self.to_unit(samples)) * self.span
        levels = (values * self.span).add_(0.5).clamp_(0, self.span)  # the conversion cuts
        if samples.dtype == torch.uint8:
            return levels.to(torch.uint8)
        return levels.to(torch.int32).to(torch.uint16)


BITS_8 = ValueRange(0.0, 255.0)
BITS_16 = ValueRange(0.0, 65535.0)
UNIT = ValueRange(0.0, 1.0)


def float_range(samples: Tensor) -> ValueRange:
    """The map of float samples: their range to [0, 1], or nothing for those that are there."""
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and high <= 1:
        return UNIT
    return ValueRange(low, (high - low) or 1.0)


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable and without a copy; outlives no tensor."""
    size = tensor.numel() * tensor.element_size()
    buffer = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(buffer).cast("B")


# A mode may be written as any of these without a loss; the first that the format holds wins.
# RGB;16 and RGBA;16 are no modes of Pillow: see `deep`.
_PROMOTIONS = {
    "1": ("1", "L", "RGB"),
    "L": ("L", "RGB"),
    "LA": ("LA", "RGBA"),
    "RGB": ("RGB",),
    "RGBA": ("RGBA",),
    "I;16": ("I;16",),
    "F": ("F",),
    "RGB;16": ("RGB;16",),
    "RGBA;16": ("RGBA;16",),
}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"}
NO_ALPHA = "extra samples that are not alpha are dropped"  # a note
_STRIP_BYTES = 1 << 22  # of a decoded image that is copied at once


@dataclass(frozen=True)
class StorageFormat:
    """How a file stored its samples: enough to store others in the same way.

    Attributes:
        format: Pillow's name of the source's format, such as "PNG".
        mode: Pillow's mode of the result: 1, L, LA, RGB, RGBA, I;16 or F; or RGB;16, RGBA;16.
        size: (height, width).
        scale: stored samples ↔ [0, 1].
        compression: the source's compression in Pillow's spelling (TIFF, TGA), or None.
        is_lossless: the source is lossless WebP.
        is_progressive: the source is a progressive JPEG.
        note: what reading had to change or drop, for the report; "" when nothing.
    """

    format: str
    mode: str
    size: tuple[int, int]
    scale: ValueRange = BITS_8
    compression: str | None = None
    is_lossless: bool = False
    is_progressive: bool = False
    note: str = ""

    @property
    def channels(self) -> int:
        """1 or 3, without alpha."""
        return 3 if self.mode.startswith("RGB") else 1


@dataclass(frozen=True)
class Decoded:
    """The samples of one image.

    Attributes:
        samples: (H, W, C) uint8, uint16 or float32, C = 1 or 3.
        alpha: (H, W, 1) of the same type, or None.
        mode: that results take; see Layout.
        scale: samples ↔ [0, 1].
    """

    samples: Tensor
    alpha: Tensor | None
    mode: str
    scale: ValueRange


def decode(image: Image.Image, *, bits: int = 16, white_is_zero: bool = False) -> Decoded:
    """The samples of a loaded image.

    Args:
        image: loaded.
        bits: depth of wide gray: 12 (brought to 16) or 16.
        white_is_zero: wide gray is stored inverted (Pillow itself turns 8 bits round).

    Raises:
        ImageError: the mode is not one of those that can be denoised, or a float is not finite.
    """
    if image.mode == "F":
        stored = _samples(image, torch.float32, 1)
        scale = float_range(stored)
        ends = torch.tensor([float(stored.min()), float(stored.max())])
        if not bool(torch.isfinite(scale.to_unit(ends)).all()):
            raise ImageError("holds NaN, infinite or enormous values; replace them first")
        return Decoded(stored, None, "F", scale)
    if image.mode in WIDE_GRAY:
        return Decoded(_wide_gray(image, bits, white_is_zero), None, "I;16", BITS_16)

    has_alpha = image.has_transparency_data
    if image.mode in {"1", "L", "LA", "La"}:
        mode = "LA" if has_alpha else image.mode
        converted = image.convert("LA" if has_alpha else "L")
    elif image.mode in _COLOUR:
        mode = "RGBA" if has_alpha else "RGB"
        converted = _cmyk_to_rgb(image) if image.mode == "CMYK" else image.convert(mode)
    else:
        raise ImageError(f"has mode {image.mode}, which is not supported; convert it to RGB")
    alpha = None
    if has_alpha:
        alpha = _samples(converted.getchannel("A"), torch.uint8, 1)
        converted = converted.convert(mode[:-1])
    return Decoded(_samples(converted, torch.uint8, len(converted.getbands())), alpha, mode, BITS_8)


def encode(
    samples: Tensor,
    alpha: Tensor | None,
    layout: StorageFormat,
    format_name: str,
    modes: Collection[str],
) -> Image.Image:
    """The image that stores `samples` in the layout's mode, or in a wider one of `modes`.

    Args:
        samples: (H, W, C) on the CPU, of the type that the layout's mode has.
        alpha: (H, W, 1) for LA and RGBA.
        layout: the source's.
        format_name: the format to be written, for the message.
        modes: the modes that this format holds.

    Raises:
        ImageError: the format cannot hold the samples.
        ShapeError: the shape is not the source's.
    """
    mode = target_mode(layout, format_name, modes)
    height, width = layout.size
    if tuple(samples.shape) != (height, width, layout.channels):
        raise ShapeError(
            f"samples {tuple(samples.shape)} are not {(height, width, layout.channels)}"
        )
    size = (width, height)
    memory = memory_of(samples.contiguous())
    if mode in {"F", "I;16"}:
        return Image.frombytes(mode, size, memory)
    image = Image.frombytes("L" if layout.channels == 1 else "RGB", size, memory)
    if mode == "1":
        return image.convert("1", dither=Image.Dither.NONE)
    if mode.endswith("A"):
        if alpha is None:
            raise ShapeError(f"mode {layout.mode} needs the alpha channel of its picture")
        opacity = Image.frombytes("L", size, memory_of(alpha.contiguous()))
        is_widened = mode == "RGBA" and layout.channels == 1
        colours = (image,) * 3 if is_widened else image.split()
        return Image.merge(mode, (*colours, opacity))
    return image if image.mode == mode else image.convert(mode)


def target_mode(layout: StorageFormat, format_name: str, modes: Collection[str]) -> str:
    """The layout's mode, or the wider one of `modes` that takes its place without a loss.

    Raises:
        ImageError: there is none.
    """
    mode = next((mode for mode in _PROMOTIONS[layout.mode] if mode in modes), None)
    if mode is None:
        raise ImageError(f"{format_name} cannot hold mode {layout.mode}; write a .png or .tif file")
    return mode


def _samples(image: Image.Image, dtype: torch.dtype, channels: int) -> Tensor:
    """The image's bytes as a tensor (H, W, C), strip by strip: never two copies of the whole."""
    width, height = image.size
    samples = torch.empty((height, width, channels), dtype=dtype)
    memory = memory_of(samples)
    row = width * channels * dtype.itemsize
    rows = max(1, _STRIP_BYTES // row)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        memory[top * row : bottom * row] = strip.tobytes()
    return samples


def _wide_gray(image: Image.Image, bits: int, white_is_zero: bool) -> Tensor:
    if image.mode == "I;16" and bits == 16 and not white_is_zero:
        return _samples(image, torch.uint16, 1)
    wide = _samples(image.convert("I"), torch.int32, 1)
    if bits == 12:
        wide = (wide * 65535 + 2047) // 4095
    return (65535 - wide if white_is_zero else wide).clamp_(0, 65535).to(torch.uint16)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """To sRGB through the embedded profile where one is usable, else by plain arithmetic."""
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, ImportError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")
