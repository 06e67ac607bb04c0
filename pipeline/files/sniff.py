"""What the head of a file says and Pillow does not: sample depth, WebP's coding, chunks and boxes.

Nothing is narrowed silently: a file that would lose bits, samples or frames is refused here,
before it is decoded.
"""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from denoise_batch.kernels.errors import ImageError

WIDE_GRAY = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}  # modes

_HEAD_BYTES = 1 << 16
_PNG_BITS, _PNG_COLOUR_TYPE = 24, 25  # offsets in the file
_PNG_RGB, _PNG_RGBA = 2, 6
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_SIGNED = 2  # a sample format


@dataclass(frozen=True)
class FileHead:
    """How a file stores its samples.

    Attributes:
        bits: bits of the widest sample, page by page; only TIFF files have several pages.
        sample_bytes: what the decoded samples of all pages take.
        is_16_bit_colour: PNG or TIFF in RGB or RGBA of 16 bits, of which Pillow would keep 8.
        is_lossless_webp: WebP that codes its pixels losslessly.
    """

    bits: tuple[int, ...]
    sample_bytes: int
    is_16_bit_colour: bool
    is_lossless_webp: bool

    @property
    def pages(self) -> int:
        """Number of pages."""
        return len(self.bits)


def sniff(image: Image.Image, file: BinaryIO) -> FileHead:
    """Read the head of a file that Pillow has opened; Pillow's position in it stays as it was.

    Args:
        image: opened, not loaded; at its first page, before and after.
        file: the file that it was opened from.
    """
    with rewound(file):
        file.seek(0)
        head = file.read(_HEAD_BYTES)
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    bits, sample_bytes = [], 0
    for page in range(pages):
        if pages > 1:
            image.seek(page)
        bits.append(_sample_bits(image, head))
        pixel_bytes = len(image.getbands()) * max(1, bits[-1] // 8)
        sample_bytes += image.width * image.height * pixel_bytes
    if pages > 1:
        image.seek(0)
    return FileHead(
        bits=tuple(bits),
        sample_bytes=sample_bytes,
        is_16_bit_colour=bits[0] == 16 and _is_colour(image, head),
        is_lossless_webp=image.format == "WEBP" and _is_lossless_webp(file),
    )


def refuse_unsupported(image: Image.Image, bits: int) -> None:
    """Refuse, before decoding, what Pillow would open with a silent loss.

    Args:
        image: opened, at the page in question.
        bits: bits of the page's widest sample.

    Raises:
        ImageError: an animation, colour of more than 8 bits, or samples that float32 cannot hold.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in {"MPO", "TIFF"}:
        raise ImageError(
            f"has {frames} frames; animations are not supported; save each frame as its own file"
        )
    if bits > 8 and image.mode not in WIDE_GRAY:
        raise ImageError(
            f"has {bits}-bit samples in mode {image.mode}, of which Pillow would keep 8 bits; "
            "convert it to 8-bit colour or to 16-bit gray"
        )
    is_signed = _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())
    is_wide = image.mode == "I" and image.format not in {"PNG", "PPM", "JPEG2000"}
    if is_signed or is_wide or bits > 32:
        raise ImageError(
            f"has {'signed' if is_signed else 'wide integer or double'} samples; "
            "convert it to unsigned 16-bit gray or to 32-bit float"
        )
    if image.format == "JPEG2000" and 8 < bits < 16:
        raise ImageError(
            f"has {bits}-bit samples, which would be written with 16; convert it to 16-bit PNG or "
            "TIFF"
        )
    if image.mode in WIDE_GRAY and "transparency" in image.info:
        raise ImageError("has 16-bit gray with a transparent colour; remove the transparency")


@contextmanager
def rewound(file: BinaryIO) -> Iterator[None]:
    """Restore the position of a file that Pillow is reading."""
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


def png_chunks(file: BinaryIO, names: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The name and data of the chunks of a PNG file with these names, in order.

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


def pnm_maximum(image: Image.Image) -> int | None:
    """The largest possible sample of a PGM or PPM file, if it is not that of 8 or 16 bits.

    Args:
        image: opened, not loaded.
    """
    tiles = getattr(image, "tile", None)
    if image.format != "PPM" or not tiles:
        return None
    decoder, _, _, parameters = tiles[0]
    if not decoder.startswith("ppm") or not isinstance(parameters, tuple) or image.mode == "1":
        return None
    most = int(parameters[-1])
    return None if most in (255, 65535) else most


def significant_bits(image: Image.Image, file: BinaryIO) -> int | None:
    """Significant bits of the colours of a 16-bit PNG file, if fewer than 16 and if it says so."""
    if image.format != "PNG":
        return None
    said = next((data for _, data in png_chunks(file, {b"sBIT"})), b"")
    bits = max(said[: 1 if len(said) < 3 else 3], default=16)
    return bits if 8 < bits < 16 else None


def jp2_profile(image: Image.Image, file: BinaryIO) -> bytes | None:
    """The colour profile of a JPEG 2000 file, which Pillow does not read."""
    if image.format != "JPEG2000":
        return None
    with rewound(file):
        file.seek(0)
        header = next(_jp2_boxes(file, b"jp2h"), b"")
    for box in _jp2_boxes(io.BytesIO(header), b"colr"):
        if box[:1] in {b"\2", b"\3"}:  # method, precedence, approximation, profile
            return box[3:] or None
    return None


def _sample_bits(image: Image.Image, head: bytes) -> int:
    """Bits of the widest sample on the current page, which Pillow's mode may hide."""
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,))))
    if image.format == "PNG":
        return head[_PNG_BITS]
    if image.format == "JPEG2000":
        # SOC and SIZ markers, then 38 bytes up to the first component's precision minus one.
        at = head.find(b"\xff\x4f\xff\x51")
        return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else 8
    if image.format == "AVIF":
        at = head.find(b"av1C")
        return 10 if 0 <= at < len(head) - 6 and head[at + 6] & 0x40 else 8
    tiles = getattr(image, "tile", None)
    decoder, _, _, parameters = tiles[0] if tiles else ("", 0, 0, ())
    if image.format == "PPM" and decoder.startswith("ppm"):
        return 16 if isinstance(parameters, tuple) and int(parameters[-1]) > 255 else 8
    if image.format == "SGI":
        return 16 if decoder == "sgi16" else 8
    return 8


def _is_colour(image: Image.Image, head: bytes) -> bool:
    """Whether a PNG or TIFF file holds RGB or RGBA."""
    if image.mode not in {"RGB", "RGBA", "RGBX"}:
        return False
    if image.format == "PNG":  # Pillow opens 16-bit gray with alpha as RGBA
        return head[_PNG_COLOUR_TYPE] in {_PNG_RGB, _PNG_RGBA}
    return image.format == "TIFF"


def _is_lossless_webp(file: BinaryIO) -> bool:
    """Whether a WebP file codes its pixels in a VP8L chunk."""
    with rewound(file):
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:3] == b"VP8" and head[3:4] in b" L":
                return head[3:4] == b"L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, io.SEEK_CUR)
    return False


def _jp2_boxes(file: BinaryIO, name: bytes) -> Iterator[bytes]:
    """The contents of the boxes of this name in a JPEG 2000 file."""
    end = file.seek(0, io.SEEK_END)
    at = file.seek(0)
    while len(head := file.read(16)) >= 8:
        lead, size = 8, int.from_bytes(head[:4])
        if size == 1:  # the real size follows in 8 bytes
            lead, size = 16, int.from_bytes(head[8:])
        size = size or end - at
        if not lead <= size <= end - at:  # no box: a bare codestream, or damage
            return
        if head[4:8] == name:
            file.seek(at + lead)
            yield file.read(size - lead)
        at = file.seek(at + size)
