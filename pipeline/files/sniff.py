"""What a file's own bytes say and Pillow does not: depth, WebP's coding, a PNG file's end.

Nothing is narrowed in silence: what would lose bits, samples or frames is refused here, before it
is decoded.
"""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image

from denoise_batch.kernels.errors import ImageError

WIDE_GRAY = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}


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
        ImageError: an animation, colour of more than 8 bits, or samples that float32 cannot hold.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in {"MPO", "TIFF"}:
        raise ImageError(
            f"has {frames} frames; animations are not supported; split it into one file a frame"
        )
    bits = sample_bits(image, file)
    if bits > 8 and image.mode not in WIDE_GRAY:
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
    if image.mode in WIDE_GRAY and "transparency" in image.info:
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


def jp2_profile(image: Image.Image, file: BinaryIO) -> bytes | None:
    """The colour profile of a JPEG 2000 file, which Pillow passes over."""
    if image.format != "JPEG2000":
        return None
    with rewound(file):
        file.seek(0)
        header = next(_jp2_boxes(file, b"jp2h"), b"")
    for box in _jp2_boxes(io.BytesIO(header), b"colr"):
        if box[:1] in {b"\2", b"\3"}:  # method, precedence, approximation, profile
            return box[3:] or None
    return None


def _jp2_boxes(file: BinaryIO, name: bytes) -> Iterator[bytes]:
    """What the boxes of this name hold, from here to the end of the file."""
    end = file.seek(0, io.SEEK_END)
    at = file.seek(0)
    while len(head := file.read(16)) >= 8:
        lead, size = 8, int.from_bytes(head[:4])
        if size == 1:  # it follows in 8 bytes
            lead, size = 16, int.from_bytes(head[8:])
        size = size or end - at
        if not lead <= size <= end - at:  # no box: a bare codestream, or damage
            return
        if head[4:8] == name:
            file.seek(at + lead)
            yield file.read(size - lead)
        at = file.seek(at + size)


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
