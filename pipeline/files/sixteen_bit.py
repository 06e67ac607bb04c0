"""Colour of 16 bits, which Pillow has no mode for: through tifffile and imagecodecs.

Both come with the extra `scientific` and bring numpy; without them such a file is an `ImageError`.
They carry the samples. Everything else that a file says is still read and written by Pillow: a PNG
file's chunks are taken from a small picture that Pillow saves, and a TIFF file is saved by Pillow
as gray, three or four samples for every pixel, before its tags are told that they are colours.
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

from .decoded_image import DecodedImage
from .metadata import read_metadata, save_options
from .pixels import BITS_16, NO_ALPHA, StorageFormat, memory_of
from .sniff import png_chunks, rewound, sample_bits

_IMAGE_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 256, 258, 262, 277, 338
_RGB = 2
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of an extra sample
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def is_deep(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a file that Pillow opened as 8-bit colour has 16 bits."""
    if image.format not in {"PNG", "TIFF"} or image.mode not in {"RGB", "RGBA", "RGBX"}:
        return False
    if image.format == "PNG":  # 16-bit gray with alpha is RGBA to Pillow
        with rewound(file):
            file.seek(25)
            if file.read(1) not in {b"\x02", b"\x06"}:
                return False
    return sample_bits(image, file) == 16


def read(image: Image.Image, file: BinaryIO, frames: int) -> tuple[DecodedImage, ...]:
    """The pages of such a file.

    Raises:
        ImageError: the extra is missing, or the pages are of a kind that is not supported.
    """
    if not (find_spec("imagecodecs") and find_spec("tifffile")):
        raise ImageError(
            "has 16-bit colour, of which Pillow would keep 8 bits; install the extra: "
            "pip install 'denoise-batch[scientific]'"
        )
    if image.format == "PNG":
        return (_read_png(image, file),)
    return _read_tiff(image, file, frames)


def write(file: BinaryIO, name: str, pages: Sequence[tuple[DecodedImage, Tensor]]) -> None:
    """Write pages of 16-bit colour.

    Args:
        file: open for reading and writing, empty.
        name: PNG (of one page) or TIFF.
        pages: each with its new samples.
    """
    if name == "PNG":
        file.write(_png(*pages[0]))
    else:
        _write_tiff(file, pages)


def _picture(array: Any, layout: dict[str, Any], metadata: Any) -> DecodedImage:
    """A page of numpy's (H, W, 3 or 4), 16 bits of any byte order."""
    samples = torch.from_numpy(array.astype("=u2", copy=True))
    height, width, channels = samples.shape
    mode = "RGB;16" if channels == 3 else "RGBA;16"
    alpha = samples[:, :, 3:].contiguous() if channels == 4 else None
    described = StorageFormat(mode=mode, size=(height, width), scale=BITS_16, **layout)
    return DecodedImage(samples[:, :, :3].contiguous(), alpha, described, metadata)


def _all_samples(picture: DecodedImage, samples: Tensor) -> Tensor:
    """(H, W, 3 or 4), with alpha where there is one."""
    if picture.alpha is None:
        return samples.contiguous()
    return torch.cat([part.view(torch.int16) for part in (samples, picture.alpha)], 2)


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
    return _picture(array, {"format": "PNG"}, metadata)


def _png(picture: DecodedImage, samples: Tensor) -> bytes:
    import imagecodecs
    import numpy

    stored = _all_samples(picture, samples)
    array = numpy.frombuffer(memory_of(stored), numpy.uint16).reshape(stored.shape)
    encoded = imagecodecs.png_encode(array)
    small = io.BytesIO()
    options = save_options("PNG", picture.metadata, picture.layout, 100, "RGB")
    Image.new("RGB", (1, 1)).save(small, "PNG", **options)
    head = len(_PNG_MAGIC) + 25  # IHDR
    said = b"".join(
        struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in _chunks(small.getvalue())
        if name not in {b"IHDR", b"IDAT", b"IEND"}
    )
    return bytes(encoded[:head]) + said + bytes(encoded[head:])


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(_PNG_MAGIC)
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def _read_tiff(image: Image.Image, file: BinaryIO, frames: int) -> tuple[DecodedImage, ...]:
    import tifffile

    pages = []
    with rewound(file):
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            for frame, page in zip(range(frames), tiff.pages, strict=False):
                page = page.aspage()
                image.seek(frame)
                if page.dtype is None or page.dtype.kind + str(page.dtype.itemsize) != "u2":
                    raise ImageError(f"page {frame + 1} is not of 16 bits as the first; split it")
                if page.photometric != _RGB or page.samplesperpixel not in (3, 4):
                    raise ImageError(
                        f"has 16-bit samples, {page.samplesperpixel} for a pixel, that are no RGB; "
                        "convert it to 16-bit RGB"
                    )
                array = page.asarray()
                if page.planarconfig == 2:
                    array = array.transpose(1, 2, 0)
                layout = {"format": "TIFF", "compression": image.info.get("compression")}
                if page.samplesperpixel == 4 and page.extrasamples:
                    kind = int(page.extrasamples[0])
                    if kind == _PREMULTIPLIED:
                        array = _straight(array)
                    elif kind != _ALPHA:
                        array = array[:, :, :3]
                        layout["note"] = NO_ALPHA
                pages.append(_picture(array, layout, read_metadata(image, file)))
    return tuple(pages)


def _straight(array: Any) -> Any:
    """Colours that were multiplied with alpha, (H, W, 4), as they were before; as Pillow's 8 bit.

    Nothing is known of what lies below an alpha of 0, and stays what it is.
    """
    alpha = array[:, :, 3:].astype("int64")
    divisor = alpha.clip(1)
    colours = (array[:, :, :3].astype("int64") * 65535 + divisor // 2) // divisor
    straight = array.copy()
    straight[:, :, :3] = colours.clip(0, 65535)
    return straight


def _write_tiff(file: BinaryIO, pages: Sequence[tuple[DecodedImage, Tensor]]) -> None:
    import tifffile
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with AppendingTiffWriter(file) as target:
        for picture, samples in pages:
            stored = _all_samples(picture, samples)
            height, width, channels = stored.shape
            gray = Image.frombytes("I;16", (width * channels, height), memory_of(stored))
            options = save_options("TIFF", picture.metadata, picture.layout, 100, "RGB")
            tags = options.setdefault("exif", Image.Exif())
            tags[_SAMPLES] = 1
            if channels == 4:
                tags[_EXTRA_SAMPLES] = _ALPHA
            gray.save(target, format="TIFF", **options)
            target.newFrame()
    file.flush()
    file.seek(0)
    with tifffile.TiffFile(file, mode="r+") as tiff:
        written = [page.aspage() for page in tiff.pages]
        for (picture, samples), page in zip(pages, written, strict=True):
            channels = 3 if picture.alpha is None else 4
            page.tags[_IMAGE_WIDTH].overwrite(samples.shape[1])
            page.tags[_BITS].overwrite((16,) * channels)
            page.tags[_PHOTOMETRIC].overwrite(_RGB)
            page.tags[_SAMPLES].overwrite(channels)
