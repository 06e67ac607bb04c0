"""Samples: a decoded Pillow image → float tensors, and tensors → an image of the same mode.

Also what a file's own bytes say and Pillow does not: depth, WebP's coding, a PNG file's end.
No numpy: bytes cross over through `torch.frombuffer`. Nothing is narrowed in silence: what would
lose bits, samples or pages is refused with an `ImageError` that says so, or told in `Layout.note`.
"""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import torch
from PIL import Image, ImageCms
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError

# A mode may be written as any of these without a loss; the first that the format holds wins.
_PROMOTIONS = {
    "1": ("1", "L", "RGB"),
    "L": ("L", "RGB"),
    "LA": ("LA", "RGBA"),
    "RGB": ("RGB",),
    "RGBA": ("RGBA",),
    "I;16": ("I;16",),
    "F": ("F",),
}
_WIDE_GRAY = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_COLOUR = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"}


@dataclass(frozen=True)
class Layout:
    """How a file stored its samples: enough to store others in the same way.

    Attributes:
        format: Pillow's name of the source's format, such as "PNG".
        mode: Pillow's mode of the result: 1, L, LA, RGB, RGBA, I;16 or F.
        size: (height, width).
        samples: float32 (1, H, W) as stored, only for float images that leave [0, 1].
        compression: the source's compression in Pillow's spelling (TIFF, TGA), or None.
        is_lossless: the source is lossless WebP.
        is_progressive: the source is a progressive JPEG.
        note: what reading had to change or drop, for the report; "" when nothing.
    """

    format: str
    mode: str
    size: tuple[int, int]
    samples: Tensor | None = None
    compression: str | None = None
    is_lossless: bool = False
    is_progressive: bool = False
    note: str = ""


@contextmanager
def rewound(file: BinaryIO) -> Iterator[None]:
    """Look into a file that Pillow is reading, and leave its position as it was."""
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


def refuse_unsupported(image: Image.Image, file: BinaryIO) -> None:
    """Refuse, before decoding, what Pillow would open with a silent loss.

    Raises:
        ImageError: several pages, colour of more than 8 bits, or samples that float32 cannot hold.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(
            f"has {frames} pages; multi-page files are not supported yet; "
            "split it into files of one page"
        )
    bits = sample_bits(image, file)
    if bits > 8 and image.mode not in _WIDE_GRAY:
        raise ImageError(
            f"has {bits}-bit samples in mode {image.mode}, of which Pillow would keep 8 bits; "
            "convert it to 8-bit colour or to 16-bit gray"
        )
    is_signed = 2 in getattr(image, "tag_v2", {}).get(339, ())
    is_wide = image.mode == "I" and image.format not in {"PNG", "PPM", "JPEG2000"}
    if is_signed or is_wide or bits > 32:
        raise ImageError(
            f"has {'signed' if is_signed else 'wide integer or double'} samples; "
            "convert it to unsigned 16-bit gray or to 32-bit float"
        )
    if image.mode in _WIDE_GRAY and "transparency" in image.info:
        raise ImageError("has 16-bit gray with a transparent colour; remove the transparency")


def sample_bits(image: Image.Image, file: BinaryIO) -> int:
    """Bits of the widest sample in the file, which Pillow's mode may hide."""
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2", {}).get(258, (1,))))
    tiles = getattr(image, "tile", None)
    decoder, _, _, parameters = tiles[0] if tiles else ("", 0, 0, ())
    if image.format == "PPM" and decoder.startswith("ppm"):
        return 16 if isinstance(parameters, tuple) and int(parameters[-1]) > 255 else 8
    if image.format == "SGI":
        return 16 if decoder == "sgi16" else 8
    if image.format not in {"PNG", "JPEG2000", "AVIF"}:
        return 8
    with rewound(file):
        file.seek(0)
        head = file.read(1 << 16)
    if image.format == "PNG":
        return head[24]
    if image.format == "JPEG2000":
        # SOC and SIZ markers, then 38 bytes up to the first component's precision minus one.
        at = head.find(b"\xff\x4f\xff\x51")
        return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else 8
    at = head.find(b"av1C")
    return 10 if 0 <= at < len(head) - 6 and head[at + 6] & 0x40 else 8


def is_lossless_webp(file: BinaryIO) -> bool:
    """Whether a WebP file codes its pixels in a VP8L chunk."""
    with rewound(file):
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:3] == b"VP8" and head[3:4] in b" L":
                return head[3:4] == b"L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def png_chunks(file: BinaryIO, names: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG file with these names, in order.

    Raises:
        ImageError: the file ends before its end mark.
    """
    with rewound(file):
        end = file.seek(0, io.SEEK_END)
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, name = int.from_bytes(head[:4]), head[4:]
            if name == b"IEND":
                return
            if file.tell() + size + 4 > end:
                break
            if name in names:
                yield name, file.read(size)
                size = 0
            file.seek(size + 4, io.SEEK_CUR)
    raise ImageError("is truncated (no end mark); copy it again from its source")


def decode(
    image: Image.Image, *, bits: int = 16, white_is_zero: bool = False
) -> tuple[Tensor, Tensor | None, str, Tensor | None]:
    """The samples of a loaded image.

    Args:
        image: loaded.
        bits: depth of wide gray: 12 or 16.
        white_is_zero: wide gray is stored inverted (Pillow itself turns 8 bits round).

    Returns:
        pixels float32 (C, H, W) in [0, 1] stored as (H, W, C), C = 1 or 3; alpha uint8 (1, H, W)
        or None; the mode that results take; and the stored samples of a float image that leaves
        [0, 1], else None.

    Raises:
        ImageError: the mode is not one of those that can be denoised, or a float is not finite.
    """
    if image.mode == "F":
        stored = _bytes_to_tensor(image.tobytes(), torch.float32).view(1, image.height, image.width)
        low, span = _float_range(stored)
        pixels = (stored - low) / span
        if not bool(torch.isfinite(pixels).all()):
            raise ImageError("holds NaN, infinite or enormous values; replace them first")
        return pixels, None, "F", None if (low, span) == (0.0, 1.0) else stored
    if image.mode in _WIDE_GRAY:
        wide = _bytes_to_tensor(image.convert("I").tobytes(), torch.int32)
        pixels = wide.view(1, image.height, image.width).to(torch.float32) / (2**bits - 1)
        return 1 - pixels if white_is_zero else pixels, None, "I;16", None

    has_alpha = image.has_transparency_data
    if image.mode in {"1", "L", "LA", "La"}:
        mode = "LA" if has_alpha else image.mode
        converted = image.convert("LA" if has_alpha else "L")
    elif image.mode in _COLOUR:
        mode = "RGBA" if has_alpha else "RGB"
        converted = _cmyk_to_rgb(image) if image.mode == "CMYK" else image.convert(mode)
    else:
        raise ImageError(f"has mode {image.mode}, which is not supported; convert it to RGB")
    bands = len(converted.getbands())
    samples = _bytes_to_tensor(converted.tobytes(), torch.uint8)
    samples = samples.view(image.height, image.width, bands).permute(2, 0, 1)
    alpha = samples[-1:].contiguous() if has_alpha else None
    colour = samples[:-1] if has_alpha else samples
    return colour.to(torch.float32).div_(255), alpha, mode, None


def encode(
    pixels: Tensor, alpha: Tensor | None, layout: Layout, format_name: str, modes: Collection[str]
) -> Image.Image:
    """The image that stores `pixels` in the layout's mode, or in a wider one of `modes`.

    Args:
        pixels: (C, H, W) of any device and float type; rounded to the nearest level and clamped.
        alpha: uint8 (1, H, W) for LA and RGBA.
        layout: the source's.
        format_name: the format to be written, for the message.
        modes: the modes that this format holds.

    Raises:
        ImageError: the format cannot hold the samples, or they are not finite.
        ShapeError: the shape is not the source's.
    """
    mode = next((mode for mode in _PROMOTIONS[layout.mode] if mode in modes), None)
    if mode is None:
        raise ImageError(f"{format_name} cannot hold mode {layout.mode}; write a .png or .tif file")
    channels = 3 if layout.mode.startswith("RGB") else 1
    if tuple(pixels.shape) != (channels, *layout.size):
        raise ShapeError(f"pixels {tuple(pixels.shape)} are not {(channels, *layout.size)}")
    values = pixels.detach().to("cpu", torch.float32)
    low, high = values.aminmax()
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ImageError("the result holds NaN or infinite values, nothing was written")

    height, width = layout.size
    if mode == "F":
        if layout.samples is not None:
            offset, span = _float_range(layout.samples)
            # Added to what was stored, so that an unchanged pixel keeps every bit.
            values = layout.samples + (values - (layout.samples - offset) / span) * span
        return Image.frombytes("F", (width, height), _tensor_to_bytes(values))
    peak = 65535 if mode == "I;16" else 255
    levels = (values * peak).add_(0.5).clamp_(0, peak)  # the conversion to integers cuts
    if mode == "I;16":
        packed = _tensor_to_bytes(levels.to(torch.int32).to(torch.uint16))
        return Image.frombytes("I;16", (width, height), packed)
    stored = levels.to(torch.uint8)
    if channels == 1 and mode.startswith("RGB"):
        stored = stored.expand(3, -1, -1)
    if mode.endswith("A"):
        if alpha is None:
            raise ShapeError(f"mode {layout.mode} needs the alpha channel of its picture")
        stored = torch.cat([stored, alpha.cpu()])
    packed = _tensor_to_bytes(stored.permute(1, 2, 0))
    if mode == "1":
        gray = Image.frombytes("L", (width, height), packed)
        return gray.convert("1", dither=Image.Dither.NONE)
    return Image.frombytes(mode, (width, height), packed)


def _float_range(samples: Tensor) -> tuple[float, float]:
    """(low, span) of the affine map to [0, 1]; (0, 1) for samples that are there already."""
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, (high - low) or 1.0


def _bytes_to_tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _tensor_to_bytes(tensor: Tensor) -> bytearray:
    contiguous = tensor.contiguous().view(-1).view(torch.uint8)
    buffer = bytearray(contiguous.numel())
    torch.frombuffer(buffer, dtype=torch.uint8).copy_(contiguous)
    return buffer


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
