"""Small images to denoise, and ways to write and read files that Pillow alone does not have."""

import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageCms
from torch import Tensor

from denoise_batch.files.images import read_image, write_pages
from denoise_batch.files.pixels import DecodedImage, to_pil

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_ICC = ICC[:16] + b"GRAY" + ICC[20:]
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><!-- kept --></x:xmpmeta>"
DAMAGED_EXIF = b"Exif\0\0" + b"\0" * 40

_CHANNELS = {"L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured image with a little noise in it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 4, 4, generator=generator)
    rows = torch.linspace(0, 3, height).round().long()
    columns = torch.linspace(0, 3, width).round().long()
    image = coarse[:, rows][:, :, columns]
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    return to_pil((image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0))


def noise_image(mode: str, width: int = 7, height: int = 5) -> Image.Image:
    """An image of any mode, every sample random; odd extents by default."""
    size, count = (width, height), width * height
    if mode == "1":
        return noise_image("L", width, height).point(lambda value: 255 * (value > 127)).convert("1")
    if mode == "I;16":
        return Image.frombytes("I;16", size, _noise_bytes(2 * count))
    if mode == "F":
        return float_image(torch.rand(count).tolist(), width)
    image = Image.frombytes(mode, size, _noise_bytes(_CHANNELS[mode] * count))
    if mode in {"P", "PA"}:
        image.putpalette(_noise_bytes(768))
    return image


def float_image(values: list[float], width: int) -> Image.Image:
    """These values, row by row."""
    data = struct.pack(f"{len(values)}f", *values)
    return Image.frombytes("F", (width, len(values) // width), data)


def _noise_bytes(count: int) -> bytes:
    return bytes(torch.randint(0, 256, (count,)).tolist())


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    """The path, after saving the image there; WebP losslessly."""
    if path.suffix == ".webp":
        options = {"lossless": True, "exact": True, **options}
    image.save(path, **options)
    return path


def opened(path: Path) -> Image.Image:
    """The image of a file, loaded."""
    with Image.open(path) as image:
        image.load()
        return image.copy() if image.format != "JPEG" else image


def write_unit(path: Path, page: DecodedImage, values: Tensor, *, quality: int = 95) -> None:
    """Write values (C, H, W) in [0, 1] as the page was stored."""
    rows = values.to(torch.float32).permute(1, 2, 0)
    write_pages(path, [page], [page.value_range.from_unit(rows, page.samples)], quality=quality)


def rewritten(path: Path) -> Path:
    """The file after reading it and writing the same pixels back."""
    page = read_image(path)
    target = path.parent / "out" / path.name
    write_unit(target, page, page.to_unit())
    assert [entry.name for entry in target.parent.iterdir()] == [path.name]
    return target


def png_bytes(
    bits: int, colour_type: int, width: int, height: int, row: bytes, key: bytes = b""
) -> bytes:
    """A PNG file by hand, for the depths that Pillow cannot write; `key` becomes transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * height)
    head = chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"")
    body = head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_bytes(tags: dict[int, Any], samples: bytes, *, width: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF file of one row by hand, for the depths that Pillow cannot write."""
    basic = {256: width, 257: 1, 259: 1, 273: 300, 278: 1, 279: len(samples)}
    tags = {**basic, **tags}
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, tags[tag], 0)
        if isinstance(tags[tag], int)
        else struct.pack(f"{order}HHII", tag, 3, len(tags[tag]), 280)
        for tag in sorted(tags)
    )
    magic = b"II" if order == "<" else b"MM"
    head = magic + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + b"\0" * 4
    bits = tags[258]
    more = struct.pack(f"{order}{len(bits)}H", *bits) if isinstance(bits, tuple) else b""
    return (head.ljust(280, b"\0") + more).ljust(300, b"\0") + samples


def blobs(size: int = 160, seed: int = 0) -> Tensor:
    """Gray discs on waves, in about [0, 1]: (1, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size) / 64, torch.arange(size) / 64, indexing="ij")
    picture = 0.3 + 0.15 * torch.sin(5 * x + 2 * y + seed) * torch.cos(3 * y)
    for _ in range(size // 8):
        at_y, at_x, radius = torch.rand(3, generator=generator).tolist()
        distance = (y - at_y * size / 64) ** 2 + (x - at_x * size / 64) ** 2
        picture += 0.4 * (distance < (0.03 + 0.12 * radius) ** 2)
    return picture[None]
