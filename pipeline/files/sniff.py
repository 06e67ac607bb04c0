"""What the head of a file says and Pillow does not: sample depth, WebP's coding, chunks and boxes.

Nothing is narrowed silently: a file that would lose bits, samples or frames is refused here,
before it is decoded.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from PIL import Image

from denoise_batch.kernels.errors import ImageError

from .footprint import Footprint, PageSize
from .tiff import Layout
from .tiff_tags import Directory, read_block, read_directories, short, write_block

# What Pillow raises for a TIFF page of a kind that it does not know.
_UNREADABLE = (SyntaxError, KeyError, TypeError, ValueError, EOFError)
_COLOUR = {"RGB", "RGBA", "RGBX"}  # Pillow opens 16-bit gray with alpha as RGBA, too
WIDE_GRAY = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}  # modes

_HEAD_BYTES = 1 << 16
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG frame
_ANCILLARY = 0x20  # a bit of the first letter of a chunk's name
_FRAME_CHUNKS = {b"acTL", b"fcTL", b"fdAT", b"tRNS"}  # not beside the pixels
_CHUNK_SIZES = {b"gAMA": 4, b"pHYs": 9, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24}
_CHUNK_SIZES |= {b"cLLI": 8, b"tIME": 7}
_CHUNK_LIMIT, _TEXT_LIMIT = 1 << 20, 64 << 20  # bytes of one and of all; Pillow takes no more
_NCLX = b"colrnclx"
_EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)  # version, id and protection between
_ORIENTATION = 274
_PNG_BITS = 24  # its offset in the file
# TIFF tags
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_COMPRESSION, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 259, 338, 339
_PALETTE, _CMYK = 3, 5  # photometric interpretations
_SIGNED, _FLOAT = 2, 3  # sample formats
_WEBP = 50001  # a compression


@dataclass(frozen=True)
class FileHead:
    """How a file stores its samples; only TIFF files have several pages.

    Attributes:
        frames: where each page is, as Pillow counts.
        bits: bits of the widest sample, page by page.
        footprint: what the pages take.
        is_beyond_pillow: PNG or TIFF that Pillow cannot read, or would narrow to 8 bits.
        is_lossless_webp: WebP that codes its pixels losslessly.
        directories: the tags of each page of a TIFF file.
        planes: of a stack whose pages share one frame; else 1.
        plane_bytes: distance between two of its planes.
    """

    frames: tuple[int, ...]
    bits: tuple[int, ...]
    footprint: Footprint
    is_beyond_pillow: bool = False
    is_lossless_webp: bool = False
    directories: tuple[Directory, ...] = ()
    planes: int = 1
    plane_bytes: int = 0


def sniff(image: Image.Image, file: BinaryIO, layout: Layout | None = None) -> FileHead:
    """Read the head of a file that Pillow has opened; Pillow's position in it stays as it was.

    Args:
        image: opened, not loaded; at its first page, before and after.
        file: the file that it was opened from.
        layout: which of a TIFF file's pages hold pictures.
    """
    if image.format == "TIFF":
        return _sniff_tiff(image, file, layout or Layout((0,)))
    with rewound(file):
        file.seek(0)
        head = file.read(_HEAD_BYTES)
    bits = _sample_bits(image, head)
    return FileHead(
        frames=(0,),
        bits=(bits,),
        footprint=Footprint((_page_size(image, bits),), image.format or ""),
        is_beyond_pillow=image.format == "PNG"
        and bits == 16
        and (image.mode in _COLOUR or "transparency" in image.info),
        is_lossless_webp=image.format == "WEBP" and _is_lossless_webp(file),
    )


def sniff_tiff(file: BinaryIO, layout: Layout) -> FileHead:
    """Read the tags of a TIFF file, whether Pillow can open it or not."""
    found = list(read_directories(file))
    frames = tuple(frame for frame in layout.frames if frame < len(found))
    directories = tuple(found[frame] for frame in frames)
    bits = tuple(max(page.values(_BITS_PER_SAMPLE, (1,))) for page in directories)
    planes = layout.planes
    return FileHead(
        frames=frames * planes,
        bits=bits * planes,
        footprint=Footprint([*map(_tiff_page_size, directories)] * planes, "TIFF"),
        is_beyond_pillow=True,
        directories=directories * planes,
        planes=planes,
        plane_bytes=layout.plane_bytes,
    )


def _sniff_tiff(image: Image.Image, file: BinaryIO, layout: Layout) -> FileHead:
    with rewound(file):
        file.seek(0)
        is_big_endian = file.read(2) == b"MM"
        head = sniff_tiff(file, layout)
    is_beyond_pillow = False
    try:
        for frame, bits, directory in zip(head.frames, head.bits, head.directories, strict=True):
            if frame != image.tell():
                image.seek(frame)
            is_wide_colour = bits == 16 and image.mode in _COLOUR
            # libtiff has turned their bytes already, and Pillow turns them again.
            is_turned = image.mode == "F" and is_big_endian and directory.value(_COMPRESSION, 1) > 1
            is_beyond_pillow |= is_wide_colour or is_turned or _holds_bands(directory)
            is_beyond_pillow |= directory.value(_COMPRESSION) == _WEBP  # not in its libtiff
        if image.tell() != 0:
            image.seek(0)
    except _UNREADABLE:
        is_beyond_pillow = True
    return replace(head, is_beyond_pillow=is_beyond_pillow)


def _page_size(image: Image.Image, bits: int) -> PageSize:
    """The size of the only page of a file that is not TIFF."""
    has_alpha = image.has_transparency_data
    colours = 3 if image.mode == "P" else sum(band not in "Aa" for band in image.getbands())
    bands = colours + has_alpha
    return PageSize(image.width * image.height, bands, -(-bits // 8), has_alpha or bits > 8)


def _tiff_page_size(page: Directory) -> PageSize:
    photometric, bands = page.value(_PHOTOMETRIC), page.value(_SAMPLES, 1)
    bands = 3 if photometric == _PALETTE else bands
    is_float = page.value(_SAMPLE_FORMAT) == _FLOAT
    sample_bytes = -(-page.value(_BITS_PER_SAMPLE, 1) // 8)
    sample_bytes = max(4, sample_bytes) if is_float else sample_bytes
    has_alpha = bands in (2, 4) and photometric != _CMYK
    pixels = page.value(_WIDTH) * page.value(_HEIGHT)
    return PageSize(pixels, bands, sample_bytes, has_alpha or sample_bytes > 1)


def refuse_unsupported(image: Image.Image, bits: int) -> None:
    """Refuse, before decoding, what Pillow would open with a silent loss.

    Args:
        image: opened, at the page in question.
        bits: bits of the page's widest sample.

    Raises:
        ImageError: an animation, colour of more than 8 bits, or samples that float32 cannot hold.
    """
    # Not asked of TIFF: Pillow would look at pages that it cannot read.
    frames = 1 if image.format in {"MPO", "TIFF"} else getattr(image, "n_frames", 1)
    if frames > 1:
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


def jpeg_kind(start: bytes) -> str:
    """Why Pillow does not open a JPEG file; "" if its head does not say."""
    at = 2 if start.startswith(b"\xff\xd8") else len(start)
    while at + 10 <= len(start) and start[at] == 0xFF:
        marker, size = start[at + 1], int.from_bytes(start[at + 2 : at + 4])
        if marker in _FRAMES:
            bits = start[at + 4]
            if marker == 0xF7:
                return "JPEG-LS"
            if marker in {0xC3, 0xC7, 0xCB, 0xCF}:
                return f"a lossless {bits}-bit JPEG"
            bands = start[at + 9]
            if bits != 8:
                return f"a {bits}-bit JPEG"
            return "a damaged JPEG" if bands in {1, 3, 4} else f"a JPEG of {bands} bands"
        at += 2 + size
    return ""


def _holds_bands(page: Directory) -> bool:
    """Whether a TIFF page has several samples that are neither colours nor gray with alpha."""
    is_gray = page.value(_PHOTOMETRIC, 0) <= 1
    return is_gray and page.value(_SAMPLES, 1) > 1 and not any(page.values(_EXTRA_SAMPLES))


@contextmanager
def rewound(file: BinaryIO) -> Iterator[None]:
    """Restore the position of a file that Pillow is reading."""
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


def png_chunks(file: BinaryIO, is_wanted: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
    """The name and data of the chunks of a PNG file with wanted names, in order.

    Raises:
        ImageError: the file ends before its end mark.
    """
    with rewound(file):
        for name, at, size in _png_index(file):
            if is_wanted(name):
                file.seek(at)
                yield name, file.read(size)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))


def without_bad_chunks(file: BinaryIO) -> tuple[BinaryIO, str]:
    """A PNG file without chunks beside its pixels that are damaged, or too large for readers.

    Returns:
        the file itself, or a copy in memory; and a note, "" if nothing is missing.

    Raises:
        ImageError: the file ends before its end mark.
    """
    dropped, spans, text_bytes = set(), [], 0
    for name, at, size in _png_index(file):
        if name[0] & _ANCILLARY and name not in _FRAME_CHUNKS:
            file.seek(at)
            data, checksum = file.read(size), file.read(4)
            inflated = _inflated(name, data)
            text_bytes += inflated
            is_sound = checksum == struct.pack(">I", zlib.crc32(name + data))
            is_fit = size == _CHUNK_SIZES.get(name, size) and inflated <= _CHUNK_LIMIT
            if not is_sound or not is_fit or text_bytes > _TEXT_LIMIT:
                text_bytes -= inflated
                dropped.add(name.decode("latin-1"))
                continue
        spans.append((at - 8, size + 12))
    file.seek(0)
    if not dropped:
        return file, ""
    parts = [PNG_MAGIC]
    for at, size in spans:
        file.seek(at)
        parts.append(file.read(size))
    note = f"chunks dropped, damaged or over 1 MiB: {', '.join(sorted(dropped))}"
    return io.BytesIO(b"".join(parts)), note


def _png_index(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and size of each chunk's data, with that of the end mark."""
    end = file.seek(0, io.SEEK_END)
    at = len(PNG_MAGIC)
    while at + 12 <= end:
        file.seek(at)
        head = file.read(8)
        size, name = int.from_bytes(head[:4]), head[4:]
        if at + size + 12 > end:
            break
        yield name, at + 8, size
        if name == b"IEND":
            return
        at += size + 12
    raise ImageError("is truncated (no end mark); copy it again from its source")


def _inflated(name: bytes, data: bytes) -> int:
    """The size of a chunk's text or profile: above the limit if it cannot be inflated."""
    rest = data.partition(b"\0")[2]
    if name == b"iTXt" and rest[:1] == b"\1":
        method, rest = rest[1:2], rest[2:].split(b"\0", 2)[-1]
    elif name in {b"zTXt", b"iCCP"}:
        method, rest = rest[:1], rest[1:]
    else:
        return len(data) if name in {b"tEXt", b"iTXt"} else 0
    if method != b"\0":  # Deflate; there is no other
        return _CHUNK_LIMIT + 1
    inflator = zlib.decompressobj()
    try:
        size = len(inflator.decompress(rest, _CHUNK_LIMIT + 1))
    except zlib.error:
        return _CHUNK_LIMIT + 1
    return size if inflator.eof else _CHUNK_LIMIT + 1


def avif_code_points(image: Image.Image, file: BinaryIO) -> bytes:
    """Primaries and transfer function of an AVIF file's colours (ITU-T H.273); b"" if unsaid."""
    if image.format != "AVIF":
        return b""
    with rewound(file):
        file.seek(0)
        head = file.read(_HEAD_BYTES)
    at = head.find(_NCLX)
    found = head[at + len(_NCLX) : at + len(_NCLX) + 4] if at >= 0 else b""
    return found[1::2]  # both fit in the lower byte of their 16 bits


def set_avif_code_points(file: BinaryIO, code_points: tuple[int, int]) -> None:
    """Say in a written AVIF file what its colours are."""
    with rewound(file):
        file.seek(0)
        at = file.read(_HEAD_BYTES).find(_NCLX)
        if at < 0:
            raise ImageError("AVIF holds no colour space that could be set; choose another format")
        file.seek(at + len(_NCLX))
        file.write(struct.pack(">2H", *code_points))


def avif_exif(image: Image.Image, exif: bytes | None) -> bytes | None:
    """The EXIF block of an AVIF file with its orientation, which the file keeps apart.

    Pillow joins the two by writing all tags anew; here only that of the orientation is.
    """
    decoder = getattr(image, "_decoder", None)
    try:
        *_, original, orientation, _ = decoder.get_info()  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):  # another Pillow
        return exif
    directory = read_block(original) if original else None
    if orientation == 1 and (directory is None or directory.value(_ORIENTATION, 1) == 1):
        return original or None
    tags = dict(directory.tags) if directory else {}
    return write_block([*({**tags, _ORIENTATION: short(_ORIENTATION, orientation)}).values()])


def without_avif_exif(file: BinaryIO, start: bytes) -> BinaryIO | None:
    """A copy in memory of an AVIF file whose EXIF block is hidden; None if it has none."""
    if start[4:8] != b"ftyp" or b"avif" not in start[8:64]:
        return None
    file.seek(0)
    content, hidden = _EXIF_ITEM.subn(rb"\1free", file.read(), count=1)
    return io.BytesIO(content) if hidden else None


def bmp_profile(image: Image.Image, file: BinaryIO) -> bytes | None:
    """The colour profile in a BMP file of version 5, which Pillow does not read.

    A profile that is linked is empty here: b"".
    """
    if image.format not in {"BMP", "DIB"}:
        return None
    with rewound(file):
        file.seek(14)
        header = file.read(124)
        if header[:4] != b"\x7c\0\0\0" or header[56:60] not in {b"DEBM", b"KNIL"}:
            return None
        at, size = struct.unpack_from("<2I", header, 112)
        file.seek(14 + at)
        return file.read(min(size, _HEAD_BYTES << 8)) if header[56:60] == b"DEBM" else b""


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
    said = next((data for _, data in png_chunks(file, lambda name: name == b"sBIT")), b"")
    bits = max(said[: 1 if len(said) < 3 else 3], default=16)
    return bits if 8 < bits < 16 else None


def widened(image: Image.Image, bits: int) -> str:
    """A note on samples that the output has more bits for; "" if it has not.

    Args:
        image: opened, not loaded.
        bits: of a PNG file's samples.
    """
    if image.format == "PNG" and image.mode == "L" and bits in (2, 4):
        return f"{bits}-bit gray is written with 8 bits"
    tiles = getattr(image, "tile", None)
    parameters = tiles[0][3] if tiles and image.format in {"BMP", "DIB", "TGA"} else ()
    mode = parameters[0] if isinstance(parameters, tuple) and parameters else parameters
    is_narrow = isinstance(mode, str) and mode.endswith((";15", ";16"))
    return "16-bit colour is written with 8 bits a channel" if is_narrow else ""


def jp2_profile(image: Image.Image, file: BinaryIO) -> bytes | None:
    """The colour profile of a JPEG 2000 file, which Pillow does not read."""
    if image.format != "JPEG2000":
        return None
    with rewound(file):
        file.seek(0)
        header = next(boxes(file, b"jp2h"), b"")
    for box in boxes(io.BytesIO(header), b"colr"):
        if box[:1] in {b"\2", b"\3"}:  # method, precedence, approximation, profile
            return box[3:] or None
    return None


def _sample_bits(image: Image.Image, head: bytes) -> int:
    """Bits of the widest sample on the current page, which Pillow's mode may hide."""
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


def boxes(file: BinaryIO, name: bytes) -> Iterator[bytes]:
    """The contents of the boxes of this name in a file of boxes: JPEG 2000, JPEG XL."""
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
