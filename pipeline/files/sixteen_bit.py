"""Colour of 16 bits, for which Pillow has no mode: through tifffile and imagecodecs.

Both come with the extra `scientific` and bring numpy; without them such a file is an `ImageError`.
They carry the samples; Pillow still reads and writes everything else. For PNG it saves a tiny image
whose chunks are copied into the output. For TIFF it saves gray, three or four samples for every
pixel, and then the tags are changed to say that they are colours.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .metadata import Metadata, StorageFormat, read_metadata, save_options
from .pixels import EXTRA_SAMPLES_NOTE, DecodedImage, to_pil
from .ranges import BITS_16, NOTHING_DECLARED, Declared
from .sniff import png_chunks, rewound, significant_bits

_IMAGE_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 256, 258, 262, 277, 338  # tags
_RGB = 2  # a photometric interpretation
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of an extra sample
_PLANAR = 2
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def read(image: Image.Image, file: BinaryIO, pages: int) -> tuple[DecodedImage, ...]:
    """Read the pages of a PNG or TIFF file in 16-bit colour.

    Args:
        image: opened by Pillow, not loaded.
        file: the file that it was opened from.
        pages: how many the file has.

    Raises:
        ImageError: the extra is missing, or a page is of a kind that is not supported.
    """
    if not (find_spec("imagecodecs") and find_spec("tifffile")):
        raise ImageError(
            "has 16-bit colour, of which Pillow would keep 8 bits; install the extra: "
            "pip install 'denoise-batch[scientific]'"
        )
    return (_read_png(image, file),) if image.format == "PNG" else _read_tiff(image, file, pages)


def write(file: BinaryIO, format_name: str, pages: Sequence[tuple[DecodedImage, Tensor]]) -> None:
    """Write pages of 16-bit colour.

    Args:
        file: open for reading and writing, empty.
        format_name: PNG (one page) or TIFF.
        pages: each with its new samples.
    """
    if format_name == "PNG":
        file.write(_png(*pages[0]))
    else:
        _write_tiff(file, pages)


def _read_png(image: Image.Image, file: BinaryIO) -> DecodedImage:
    import imagecodecs

    if "transparency" in image.info:
        raise ImageError("has 16-bit colour with a transparent colour; remove the transparency")
    metadata = read_metadata(image, file)
    late = dict(png_chunks(file, {b"eXIf"}))  # it may follow the pixels
    if late:
        metadata = metadata.with_exif(late[b"eXIf"])
    with rewound(file):
        file.seek(0)
        array = imagecodecs.png_decode(file.read())
    declared = Declared(bits=significant_bits(image, file))
    return _page(array, metadata, "PNG", declared=declared)


def _read_tiff(image: Image.Image, file: BinaryIO, pages: int) -> tuple[DecodedImage, ...]:
    import tifffile

    decoded = []
    with rewound(file):
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            for number, page in zip(range(pages), tiff.pages, strict=False):
                page = page.aspage()
                image.seek(number)
                if page.dtype is None or page.dtype.kind + str(page.dtype.itemsize) != "u2":
                    raise ImageError(
                        f"page {number + 1} does not have 16-bit samples, as the first does; "
                        "split it into files of one page"
                    )
                if page.photometric != _RGB or page.samplesperpixel not in (3, 4):
                    raise ImageError(
                        f"has 16-bit samples, {page.samplesperpixel} for each pixel, that are not "
                        "RGB; convert it to 16-bit RGB"
                    )
                array = page.asarray()
                if page.planarconfig == _PLANAR:
                    array = array.transpose(1, 2, 0)
                note = ""
                if page.samplesperpixel == 4 and page.extrasamples:
                    kind = int(page.extrasamples[0])
                    if kind == _PREMULTIPLIED:
                        array = _unpremultiplied(array)
                    elif kind != _ALPHA:
                        array = array[:, :, :3]
                        note = EXTRA_SAMPLES_NOTE
                compression = image.info.get("compression")
                metadata = read_metadata(image, file)
                declared = Declared.of_tags(lambda tag: page.tags.valueof(tag))  # noqa: B023
                decoded.append(_page(array, metadata, "TIFF", compression, note, declared))
    return tuple(decoded)


def _page(
    array: Any,
    metadata: Metadata,
    format_name: str,
    compression: str | None = None,
    note: str = "",
    declared: Declared = NOTHING_DECLARED,
) -> DecodedImage:
    """A page from numpy's (H, W, 3 or 4), 16 bits in either byte order."""
    samples = torch.from_numpy(array.astype("=u2", copy=True))
    has_alpha = samples.shape[2] == 4
    alpha = samples[:, :, 3:].contiguous() if has_alpha else None
    storage = StorageFormat(format_name, "RGBA;16" if has_alpha else "RGB;16", compression)
    colours = samples[:, :, :3].contiguous()
    return DecodedImage(colours, alpha, BITS_16, storage, metadata, note, declared)


def _unpremultiplied(array: Any) -> Any:
    """(H, W, 4) with colours divided by alpha, as Pillow divides those of 8 bits."""
    alpha = array[:, :, 3:].astype("int64")
    divisor = alpha.clip(1)
    colours = (array[:, :, :3].astype("int64") * 65535 + divisor // 2) // divisor
    straight = array.copy()
    straight[:, :, :3] = colours.clip(0, 65535)
    return straight


def _png(page: DecodedImage, samples: Tensor) -> bytes:
    import imagecodecs

    encoded = imagecodecs.png_encode(_with_alpha(page, samples).numpy())
    small = io.BytesIO()
    options = save_options("PNG", page.metadata, page.storage, 100, "RGB")
    Image.new("RGB", (1, 1)).save(small, "PNG", **options)
    header_end = len(_PNG_MAGIC) + 25  # after IHDR
    chunks = b"".join(
        struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in _chunks(small.getvalue())
        if name not in {b"IHDR", b"IDAT", b"IEND"}
    )
    return bytes(encoded[:header_end]) + chunks + bytes(encoded[header_end:])


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """All chunks of a PNG file: name and data."""
    chunks, at = [], len(_PNG_MAGIC)
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def _write_tiff(file: BinaryIO, pages: Sequence[tuple[DecodedImage, Tensor]]) -> None:
    import tifffile
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with AppendingTiffWriter(file) as target:
        for page, samples in pages:
            stored = _with_alpha(page, samples)
            height, width, channels = stored.shape
            gray = to_pil(stored.reshape(height, width * channels, 1))
            options = save_options("TIFF", page.metadata, page.storage, 100, "RGB")
            tags = options.setdefault("exif", Image.Exif())
            tags[_SAMPLES] = 1
            if channels == 4:
                tags[_EXTRA_SAMPLES] = _ALPHA
            gray.save(target, format="TIFF", **options)
            target.newFrame()
    file.flush()
    file.seek(0)
    with tifffile.TiffFile(file, mode="r+") as tiff:
        written = [tiff_page.aspage() for tiff_page in tiff.pages]
        for (page, samples), tiff_page in zip(pages, written, strict=True):
            channels = 3 if page.alpha is None else 4
            tiff_page.tags[_IMAGE_WIDTH].overwrite(samples.shape[1])
            tiff_page.tags[_BITS].overwrite((16,) * channels)
            tiff_page.tags[_PHOTOMETRIC].overwrite(_RGB)
            tiff_page.tags[_SAMPLES].overwrite(channels)


def _with_alpha(page: DecodedImage, samples: Tensor) -> Tensor:
    """(H, W, 3 or 4): the samples, with the page's alpha if it has one."""
    if page.alpha is None:
        return samples.contiguous()
    parts = [part.view(torch.int16) for part in (samples, page.alpha)]  # torch 2.4 joins no uint16
    return torch.cat(parts, 2).view(torch.uint16)
