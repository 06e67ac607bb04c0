"""Camera RAW, developed by LibRaw to linear light: the extra `raw`.

White balance of the camera, sRGB's primaries, upright, 16 bits, no curve and no brightening: a
picture to develop further. The EXIF block goes along, without the maker's notes.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from denoise_batch.kernels.errors import ImageError

from .footprint import Footprint, PageSize
from .metadata import Metadata, StorageFormat, exif_block
from .pixels import DecodedImage
from .ranges import BITS_8
from .tiff_tags import Tag, read_block, read_directories, write_block

# Description, maker, model, software, date, artist, copyright, EXIF, GPS.
_KEPT = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}
_MAKER_NOTES = 37500  # full of offsets into the file
_TIFF_LIKE = {b"II*\0", b"MM\0*", b"IIRO", b"IIRS", b"MMOR", b"IIU\0"}


def read(path: Path, file: BinaryIO, on_size: Callable[[Footprint], object]) -> DecodedImage:
    """Develop a file.

    Args:
        path: the file.
        file: the same, open.
        on_size: called with what the file takes, before it is decoded.

    Raises:
        ImageError: LibRaw does not know it, or it is damaged.
    """
    import rawpy

    try:
        with rawpy.imread(str(path)) as raw:
            sizes = raw.sizes
            if sizes.iwidth * sizes.iheight > 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62):
                raise Image.DecompressionBombError(f"{sizes.iwidth} x {sizes.iheight}")
            on_size(Footprint([PageSize(sizes.iwidth * sizes.iheight, 3, 2)], "RAW"))
            pixels = raw.postprocess(
                use_camera_wb=True,
                output_color=rawpy.ColorSpace.sRGB,
                output_bps=16,
                gamma=(1, 1),
                no_auto_bright=True,
            )
            exif = _exif(file) or _exif_of_preview(raw)
    except rawpy.LibRawError as error:
        text = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ImageError(
            f"cannot be developed ({text}); check the file, or convert it to DNG"
        ) from error
    samples = torch.from_numpy(pixels.view("int16")).view(torch.uint16).contiguous()
    metadata = Metadata(exif=exif, icc_profile=linear_srgb())
    note = "developed to linear light" if exif else "developed to linear light, without EXIF"
    return DecodedImage(samples, None, BITS_8, StorageFormat("RAW", "RGB;16"), metadata, note)


def _exif(file: BinaryIO) -> bytes | None:
    """The EXIF block of a file that is built like TIFF."""
    file.seek(0)
    content = file.read()
    if content[:4] not in _TIFF_LIKE:
        return None
    magic = b"II*\0" if content[:2] == b"II" else b"MM\0*"
    directory = next(read_directories(io.BytesIO(magic + content[4:])), None)
    return _block(tuple(directory.tags.values())) if directory else None


def _exif_of_preview(raw: object) -> bytes | None:
    """The EXIF block of the JPEG picture in other files."""
    import rawpy

    try:
        thumbnail = raw.extract_thumb()  # type: ignore[attr-defined]
        if thumbnail.format != rawpy.ThumbFormat.JPEG:
            return None
        with Image.open(io.BytesIO(thumbnail.data), formats=["JPEG"]) as image:
            directory = read_block(exif_block(image.info.get("exif")))
    except (rawpy.LibRawError, OSError):
        return None
    return _block(tuple(directory.tags.values())) if directory else None


def _block(tags: tuple[Tag, ...]) -> bytes | None:
    kept = [
        Tag(tag.code, tag.type, tag.data, tuple(map(_without_notes, tag.directories)))
        for tag in tags
        if tag.code in _KEPT
    ]
    return write_block(kept) if kept else None


def _without_notes(directory: tuple[Tag, ...]) -> tuple[Tag, ...]:
    return tuple(tag for tag in directory if tag.code != _MAKER_NOTES)


def linear_srgb() -> bytes:
    """A colour profile of sRGB's primaries and linear light (ICC.1:2001-04, version 2)."""

    def fixed(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"Linear sRGB\0"
    linear = b"curv" + bytes(8)  # no points: the identity
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": fixed(0.9642, 1, 0.8249),
        b"rXYZ": fixed(0.43607, 0.22249, 0.01392),
        b"gXYZ": fixed(0.38515, 0.71687, 0.09708),
        b"bXYZ": fixed(0.14307, 0.06061, 0.71410),
        b"rTRC": linear,
        b"gTRC": linear,
        b"bTRC": linear,
    }
    at = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for code, data in tags.items():
        table += struct.pack(">4sII", code, at + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", at + len(content), b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content
