"""Samples of an image: a loaded Pillow image → a tensor of the same depth, and back.

Nothing here needs numpy: bytes are copied straight from and to the tensors' memory.
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

from .metadata import Metadata, StorageFormat
from .sniff import WIDE_GRAY
from .tiff import RawPage


@dataclass(frozen=True)
class ValueRange:
    """The affine map from stored samples to [0, 1]: (sample − offset) / span.

    Attributes:
        offset: the sample that maps to 0.
        span: the distance to the sample that maps to 1: 255 for 8 bits, 65535 for 16, the range of
            the samples for floats outside [0, 1].
    """

    offset: float
    span: float

    @classmethod
    def of(cls, samples: Tensor) -> "ValueRange":
        """The range of uint8 and uint16 samples is their type's; floats outside [0, 1] have theirs.

        Raises:
            ImageError: a float is not finite, or the floats' range exceeds float32.
        """
        if samples.dtype == torch.uint8:
            return BITS_8
        if samples.dtype == torch.uint16:
            return BITS_16
        low, high = float(samples.min()), float(samples.max())
        if low >= 0 and high <= 1:
            return UNIT
        found = cls(low, (high - low) or 1.0)
        if not bool(torch.isfinite(found.to_unit(torch.tensor([low, high]))).all()):
            raise ImageError("holds NaN, infinite or enormous values; replace them first")
        return found

    def to_unit(self, samples: Tensor) -> Tensor:
        """Samples of any shape and type as float32 in [0, 1], in a new tensor."""
        values = samples.to(torch.float32, copy=True)
        return (values.sub_(self.offset) if self.offset else values).div_(self.span)

    def from_unit(self, values: Tensor, samples: Tensor) -> Tensor:
        """Values as new samples, of the type of the `samples` that they replace.

        Integers are rounded to the nearest and clamped; floats are not. Values that `to_unit` made
        come back bit for bit.

        Args:
            values: float, any shape.
            samples: the stored samples, of that shape.
        """
        if samples.is_floating_point():
            if self == UNIT and samples.dtype == torch.float32:
                return values.to(torch.float32)
            # Add the change to the stored sample: an unchanged pixel keeps every bit.
            return samples + (values - self.to_unit(samples)) * self.span
        levels = (values * self.span).add_(0.5).clamp_(0, self.span)  # the conversion truncates
        if samples.dtype == torch.uint8:
            return levels.to(torch.uint8)
        return levels.to(torch.int32).to(torch.uint16)


BITS_8 = ValueRange(0.0, 255.0)
BITS_16 = ValueRange(0.0, 65535.0)
UNIT = ValueRange(0.0, 1.0)


@dataclass(frozen=True)
class DecodedImage:
    """One decoded page of a file, with all that its output needs to keep.

    Attributes:
        samples: (H, W, C) as stored: uint8, uint16 or float32, C = 1 or 3.
        alpha: (H, W, 1) of the same type, which is not denoised; None for opaque images.
        value_range: stored samples ↔ [0, 1].
        storage: how the file stored the samples.
        metadata: what the file says beside its pixels.
        note: what reading had to change or drop, for the user; "" if nothing.
        masks: pages of a TIFF file that go along unchanged behind this one.
    """

    samples: Tensor
    alpha: Tensor | None
    value_range: ValueRange
    storage: StorageFormat
    metadata: Metadata
    note: str = ""
    masks: tuple[RawPage, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width, _ = self.samples.shape
        return height, width

    def to_unit(self) -> Tensor:
        """The samples as float32 (C, H, W) in [0, 1], in a new tensor."""
        return self.value_range.to_unit(self.samples).permute(2, 0, 1)


# A mode can be written as any of these without loss; the first that the format holds is used.
_PROMOTIONS = {
    "1": ("1", "L", "RGB"),
    "L": ("L", "RGB"),
    "LA": ("LA", "RGBA"),
    "RGB": ("RGB",),
    "RGBA": ("RGBA",),
    "I;16": ("I;16",),
    "F": ("F",),
}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"}
_DTYPES = {"I;16": torch.uint16, "I": torch.int32, "F": torch.float32}  # others are uint8
_STRIP_BYTES = 1 << 22  # copied at once from a Pillow image

EXTRA_SAMPLES_NOTE = "extra samples dropped: they are not alpha"


def decode(
    image: Image.Image, *, bits: int = 16, white_is_zero: bool = False
) -> tuple[Tensor, Tensor | None, str]:
    """The samples of a loaded image.

    Args:
        image: loaded.
        bits: depth of wide gray: 12 (scaled to 16) or 16.
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
        return _wide_gray(image, bits, white_is_zero), None, "I;16"

    has_alpha = image.has_transparency_data
    if image.mode in {"1", "L", "LA", "La"}:
        mode = "LA" if has_alpha else image.mode
        converted = image.convert("LA" if has_alpha else "L")
    elif image.mode in _COLOUR:
        mode = "RGBA" if has_alpha else "RGB"
        converted = _cmyk_to_rgb(image) if image.mode == "CMYK" else image.convert(mode)
    else:
        raise ImageError(f"has mode {image.mode}, which is not supported; convert it to RGB")
    if not has_alpha:
        return from_pil(converted), None, mode
    alpha = from_pil(converted.getchannel("A"))
    return from_pil(converted.convert(mode[:-1])), alpha, mode


def encode(page: DecodedImage, samples: Tensor, mode: str) -> Image.Image:
    """The Pillow image that stores `samples`, and the page's alpha, in `mode`.

    Args:
        page: the source.
        samples: (H, W, C) on the CPU, of the page's shape and type.
        mode: by `target_mode`.

    Raises:
        ShapeError: the shape is not the page's.
    """
    if samples.shape != page.samples.shape:
        raise ShapeError(f"samples {tuple(samples.shape)} are not {tuple(page.samples.shape)}")
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
    return image if image.mode == mode else image.convert(mode)


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
    contiguous = samples.contiguous()
    return Image.frombytes("RGB" if channels == 3 else mode, (width, height), memory(contiguous))


def from_pil(image: Image.Image) -> Tensor:
    """(H, W, C): the samples of a Pillow image, in a copy.

    The type is uint16 for mode I;16, int32 for I, float32 for F and uint8 for modes of 8 bits.
    """
    dtype, channels = _DTYPES.get(image.mode, torch.uint8), len(image.getbands())
    width, height = image.size
    samples = torch.empty((height, width, channels), dtype=dtype)
    target = memory(samples)
    row = width * channels * dtype.itemsize
    rows = max(1, _STRIP_BYTES // row)
    for top in range(0, height, rows):  # in strips: never two copies of the whole image
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        target[top * row : bottom * row] = strip.tobytes()
    return samples


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable, not copied; valid as long as the tensor."""
    size = tensor.numel() * tensor.element_size()
    buffer = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(buffer).cast("B")


def _wide_gray(image: Image.Image, bits: int, white_is_zero: bool) -> Tensor:
    if image.mode == "I;16" and bits == 16 and not white_is_zero:
        return from_pil(image)
    wide = from_pil(image.convert("I"))
    if bits == 12:
        wide = (wide * 65535 + 2047) // 4095
    return (65535 - wide if white_is_zero else wide).clamp_(0, 65535).to(torch.uint16)


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
