"""What an image file says beside its pixels: read from one file, written to another."""

import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import Image, ImageOps

from .copies import clean_segments, clean_tags, clean_text, clean_xmp, has_thumbnail, with_thumbnail
from .sniff import avif_code_points, avif_exif, bmp_profile, jp2_profile, png_chunk, png_chunks
from .tiff_tags import (
    ASCII,
    BYTE,
    UNDEFINED,
    Directory,
    Tag,
    long,
    rational,
    read_block,
    replace_last_directory,
    short,
    with_text,
    write_block,
)

# Tags that describe how a TIFF file stores its samples; the writer sets its own.
_TIFF_STRUCTURE = {
    *range(256, 260), 262, 266, 273, *range(277, 280), 284, *range(292, 294), 317, *range(320, 329),
    330, *range(332, 335), *range(336, 340), 347, *range(512, 522), *range(529, 533), 559,
    *range(32995, 32999), 34675,
    50674,
}  # fmt: skip
# Tags that count levels of samples: true as long as bits and samples of a pixel are the same.
_TIFF_LEVELS = {280, 281, 290, 291, 301, 340, 341}
_SUBFILE_TYPES = {254, 255}
_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 258, 262, 277
WHITE_IS_ZERO = 0
# Modes whose samples a TIFF file packs, and the bits of one.
PACKED_BITS = {"L;2": 2, "L;4": 4, "I;12": 12}
_OF_BYTES = {1, 2, 6, 7}  # types
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"}
ORIENTATION = 274
_ICC, _XMP, _LAYERS = 34675, 700, 37724
_DESCRIPTION, _SOFTWARE = 270, 305
_OF_FIRST_PAGE = {_DESCRIPTION, 50838, 50839}  # ImageJ's, of the whole stack
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
# Chunks that stay true, though not every writer may copy them.
_PNG_KEPT = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT"}
_PNG_KEPT |= {b"sCAL", b"pCAL", b"sTER"}
_SRGB = {b"", b"\1\x0d", b"\2\2"}  # CICP: nothing said, sRGB, unspecified
_PILLOW_CHUNKS = {b"pHYs", b"eXIf"}  # written from their values
_PNG_HEADER = 33  # bytes of signature and IHDR
_SAFE_TO_COPY = 0x20  # a bit of the fourth letter of a chunk's name
_RAW_EXIF = "Raw profile type exif"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_WITH_METADATA = {
    "PNG",
    "JPEG",
    "TIFF",
    "WEBP",
    "AVIF",
    "HEIF",
}  # EXIF with its orientation, and ICC
_EXIF_VERBATIM = {
    "PNG",
    "JPEG",
    "WEBP",
    "HEIF",
    "JXL",
}  # formats that can carry a damaged EXIF block
_JPEG_SEGMENT = 65533  # bytes


@dataclass(frozen=True)
class StorageFormat:
    """How a file stored its samples: enough to store others in the same way.

    Attributes:
        format: Pillow's name of the format, such as "PNG".
        mode: Pillow's mode for the output: 1, L, LA, RGB, RGBA, I;16 or F; or what Pillow does
            not have: L, LA, RGB or RGBA and a kind, as in RGB;16, L;F64, RGBA;F16; or L;2, L;4.
        compression: the compression in Pillow's spelling (TIFF, TGA), or None.
        is_lossless: the file is lossless WebP or JPEG XL.
        is_progressive: the file is a progressive JPEG.
        photometric: what the samples of a TIFF page mean, where Pillow does not read it, or where
            white is stored as 0.
        extra_sample: the kind of the last sample of such a page with an even number of them.
        maximum: the largest sample, if the file's depth is not its samples' type's: 4095 for 12
            bits; samples of fewer than 8 bits are scaled up to these.
        chroma: of HEIF: 420, 422 or 444.
    """

    format: str
    mode: str
    compression: str | None = None
    is_lossless: bool = False
    is_progressive: bool = False
    photometric: int | None = None
    extra_sample: int = 2
    maximum: int | None = None
    chroma: int = 420


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        exif: the EXIF block, unchanged, led by b"Exif\\0\\0"; for TIFF, the descriptive tags.
        icc_profile: the colour profile.
        dpi: horizontal and vertical resolution in pixels per inch.
        xmp: the XMP packet.
        comment: the last JPEG comment.
        segments: XMP, Photoshop/IPTC and other comments of a JPEG file, as segments, verbatim.
        chunks: text and colour chunks of a PNG file, and all that are safe to copy, verbatim.
        is_exif_in_text: the EXIF block comes from one of these text chunks.
        cicp: primaries and transfer function of an AVIF file's colours, as code points of
            ITU-T H.273, if they are not sRGB's.
        tags: all tags of a TIFF page, unchanged.
        companions: what an OpenEXR file holds beside the picture (see `render.py`).
    """

    exif: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    comment: bytes | None = None
    segments: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    is_exif_in_text: bool = False
    cicp: tuple[int, int] | None = None
    tags: tuple[Tag, ...] = ()
    companions: Any = None

    @property
    def described(self) -> set[int]:
        """Codes of the tags that describe a TIFF page, and not how it stores its samples."""
        return {tag.code for tag in self.tags} - _TIFF_STRUCTURE

    def with_exif(self, data: bytes) -> "Metadata":
        """The same with another EXIF block."""
        return replace(self, exif=exif_block(data), is_exif_in_text=False)

    def without_copies(self) -> tuple["Metadata", list[str]]:
        """The same without copies of the noisy picture and promises of what is gone; and notes."""
        dropped: list[str] = []
        cleaned = replace(
            self,
            xmp=None if self.xmp is None else clean_xmp(self.xmp, dropped),
            segments=clean_segments(self.segments, dropped),
            chunks=tuple((name, clean_text(name, data, dropped)) for name, data in self.chunks),
        )
        return cleaned, [f"{copy} dropped: it is noisy" for copy in dict.fromkeys(dropped)]

    @property
    def has_thumbnail(self) -> bool:
        """Whether the EXIF block holds a thumbnail of its own."""
        return not self.is_exif_in_text and has_thumbnail(self.exif)

    def with_thumbnail(self, picture: Image.Image | None) -> "Metadata":
        """The same with a thumbnail of `picture`, if there was one and there is room for it."""
        if self.exif is None or self.is_exif_in_text:
            return self
        with suppress(struct.error, IndexError):
            return replace(self, exif=with_thumbnail(self.exif, picture))
        return self

    def with_description(self, text: str | None) -> "Metadata":
        """The same, of TIFF, with another description of the image, or as of a page without one."""
        dropped = _OF_FIRST_PAGE if text is None else {_DESCRIPTION}
        tags = [tag for tag in self.tags if tag.code not in dropped]
        if text is not None:
            tags.append(Tag(_DESCRIPTION, ASCII, text.encode() + b"\0"))
        return replace(self, tags=tuple(tags), exif=_block_of(tags)) if self.tags else self

    def with_software(self, text: str) -> "Metadata":
        """The same, saying what made the picture; a damaged EXIF block stays as it is."""
        if self.tags:
            tags = [tag for tag in self.tags if tag.code != _SOFTWARE]
            tags.append(Tag(_SOFTWARE, ASCII, text.encode() + b"\0"))
            return replace(self, tags=tuple(tags), exif=_block_of(tags))
        if self.is_exif_in_text or (self.exif and self.exif_tags() is None):
            return self
        with suppress(struct.error):
            block = exif_block(with_text(self.exif, _SOFTWARE, text))
            if block and (
                not self.exif or (len(block) > _JPEG_SEGMENT) == (len(self.exif) > _JPEG_SEGMENT)
            ):
                return replace(self, exif=block)
        return self

    def exif_tags(self) -> tuple[Tag, ...] | None:
        """The tags of the EXIF block: empty without a block, None if the block is damaged."""
        if self.tags or not self.exif:
            return self.tags
        directory = read_block(self.exif)
        is_whole = directory is not None and not directory.damaged
        return tuple(directory.tags.values()) if directory is not None and is_whole else None

    def orientation(self) -> int:
        """EXIF orientation, 1 to 8; 1 if the EXIF block cannot be read."""
        directory = read_block(self.exif) if self.exif else None
        return directory.value(ORIENTATION, 1) if directory else 1


def read_metadata(
    image: Image.Image, file: BinaryIO, directory: Directory | None = None
) -> Metadata:
    """Read the metadata of an opened image.

    Args:
        image: opened by Pillow, not loaded.
        file: the file that it was opened from.
        directory: for TIFF, that of the page.
    """
    if directory is not None:
        return tiff_metadata(directory)
    info = image.info
    exif = info.get("exif")
    is_exif_in_text = image.format == "PNG" and exif is None and _RAW_EXIF in info
    if is_exif_in_text:
        exif = _exif_from_text(info[_RAW_EXIF])
    if image.format == "AVIF":
        exif = avif_exif(image, exif)
    applications = getattr(image, "applist", [])
    comments = [number for number, (name, _) in enumerate(applications) if name == "COM"]
    segments = (
        bytes([0xFF, 0xFE if name == "COM" else 0xE0 + int(name[3:])])
        + (len(data) + 2).to_bytes(2)
        + data
        for number, (name, data) in enumerate(applications)
        if (name == "APP1" and data.startswith(b"http://ns.adobe.com/x"))
        or name == "APP13"
        or number in comments[:-1]
    )
    chunks = tuple(png_chunks(file, is_kept_chunk)) if image.format == "PNG" else ()
    code_points = avif_code_points(image, file) or dict(chunks).get(b"cICP", b"")[:2]
    return Metadata(
        exif=exif_block(exif),
        icc_profile=info.get("icc_profile") or jp2_profile(image, file) or bmp_profile(image, file),
        dpi=_dpi(info.get("dpi")),
        xmp=info.get("xmp"),
        comment=info.get("comment") if image.format in {"JPEG", "MPO"} else None,
        segments=b"".join(segments),
        chunks=chunks,
        is_exif_in_text=is_exif_in_text,
        cicp=None if code_points in _SRGB else (code_points[0], code_points[1]),
    )


def tiff_metadata(directory: Directory) -> Metadata:
    """The metadata of a TIFF page."""
    dropped = (_TIFF_STRUCTURE | {_LAYERS}) - {_BITS, _SAMPLES}
    tags = {code: tag for code, tag in directory.tags.items() if code not in dropped}
    values: dict[int, Any] = {c: tag.data for c, tag in tags.items() if tag.type in _OF_BYTES}
    clean_tags(values)
    tags |= {code: replace(tags[code], data=value) for code, value in values.items()}
    tags = {code: tag for code, tag in tags.items() if tag.data}  # thumbnails alone
    profile, xmp = directory.tags.get(_ICC), tags.get(_XMP)
    unit = directory.value(_UNIT, _INCH)
    resolution = [directory.rational(code) for code in (_X_RESOLUTION, _Y_RESOLUTION)]
    scale = {_INCH: 1.0, _CENTIMETRE: 2.54}.get(unit)
    return Metadata(
        exif=_block_of(tags.values()),
        tags=tuple(tags.values()),
        icc_profile=profile.data if profile else None,
        dpi=_dpi([value * scale for value in resolution]) if scale else None,
        xmp=xmp.data.rstrip(b"\0") if xmp else None,
    )


def _block_of(tags: Iterable[Tag]) -> bytes | None:
    """The EXIF block that says what the tags of a TIFF page say."""
    others = {_BITS, _SAMPLES, _XMP, *_SUBFILE_TYPES}
    described = [tag for tag in tags if tag.code not in others]
    return write_block(described) if described else None


def _dpi(found: Any) -> tuple[float, float] | None:
    try:
        dpi = (float(found[0]), float(found[1]))
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return None
    return dpi if all(0 < value < 65536 for value in dpi) else None


def is_kept_chunk(name: bytes) -> bool:
    """Whether a chunk of a PNG file goes along: by its name, or as every writer may copy it."""
    if name in _PNG_KEPT:
        return True
    return bool(name[0] & name[3] & _SAFE_TO_COPY) and name not in _PILLOW_CHUNKS


def exif_block(data: bytes | None) -> bytes | None:
    """The block with the lead that Pillow expects."""
    return data if not data or data.startswith(b"Exif\0\0") else b"Exif\0\0" + data


def save_options(
    format_name: str, metadata: Metadata, storage: StorageFormat, quality: int, mode: str
) -> dict[str, Any]:
    """Arguments of Pillow's `save` that store an image as its source did, with its metadata.

    Args:
        format_name: Pillow's name of the format to write.
        metadata: the source's metadata.
        storage: how the source stored its samples.
        quality: 1 to 100, for lossy formats.
        mode: the mode to write.
    """
    exif, xmp, _ = _fitting(metadata, format_name)
    icc_profile = None if _is_gray_profile_of_colour(metadata, mode) else metadata.icc_profile
    common = {"exif": exif, "icc_profile": icc_profile}
    subsampling = "4:4:4" if quality >= 90 else "4:2:0"
    dpi = metadata.dpi
    options: dict[str, Any] = {}
    if format_name == "PNG":
        options = {**common, "dpi": dpi}
        if metadata.is_exif_in_text:  # it stays in the text
            del options["exif"]
    elif format_name == "JPEG":
        options = {**common, "dpi": dpi, "quality": quality, "subsampling": subsampling}
        options |= {"comment": metadata.comment, "progressive": storage.is_progressive}
        options |= {"extra": metadata.segments} if metadata.segments else {"xmp": xmp}
    elif format_name == "TIFF":  # its tags are set by `set_tiff_tags`
        keep = storage.compression in _TIFF_COMPRESSIONS
        options["compression"] = storage.compression if keep else "tiff_adobe_deflate"
    elif format_name == "WEBP":
        options = {**common, "xmp": xmp, "lossless": storage.is_lossless, "exact": True}
        options["quality"] = 75 if storage.is_lossless else quality  # effort, if lossless
    elif format_name == "AVIF":
        options = {**common, "xmp": xmp, "quality": quality}
        options["exif"] = _VerbatimExif(exif) if exif else None
        options["subsampling"] = "4:0:0" if storage.mode in {"1", "L"} else subsampling
    elif format_name == "BMP":
        options = {"dpi": dpi}
    elif format_name == "TGA":
        options = {"rle": storage.compression == "tga_rle"}
    return {key: value for key, value in options.items() if value is not None}


def set_tiff_tags(
    file: BinaryIO,
    metadata: Metadata,
    storage: StorageFormat,
    mode: str,
    width: int,
    link: int | None = None,
) -> None:
    """Say in a TIFF file, of whose last page only the samples are written, what its source said.

    Args:
        file: open for reading and writing.
        metadata: of the page's source.
        storage: how the source stored the samples.
        mode: the mode that was written.
        width: of the page, in samples; rows that are packed were written as bytes.
        link: where the file points to the page, if it is known.

    Raises:
        ImageError: the file would exceed 4 GB.
    """

    def tags_of(written: Directory) -> list[Tag]:
        tags = {code: tag for code, tag in written.tags.items() if code in _TIFF_STRUCTURE}
        if storage.photometric == WHITE_IS_ZERO:
            tags[_PHOTOMETRIC] = short(_PHOTOMETRIC, WHITE_IS_ZERO)
        if bits := PACKED_BITS.get(mode):
            tags |= {_WIDTH: long(_WIDTH, width), _BITS: short(_BITS, bits)}
        said = {tag.code: tag for tag in metadata.exif_tags() or ()}
        if metadata.xmp and _XMP not in said:
            said[_XMP] = Tag(_XMP, BYTE, metadata.xmp)
        if metadata.dpi and not metadata.tags:
            for code, value in zip((_X_RESOLUTION, _Y_RESOLUTION), metadata.dpi, strict=True):
                said[code] = rational(code, value)
            said[_UNIT] = short(_UNIT, _INCH)
        if metadata.icc_profile and not _is_gray_profile_of_colour(metadata, mode):
            tags[_ICC] = Tag(_ICC, UNDEFINED, metadata.icc_profile)
        is_same = all(
            said[c].values == (tags[c].values if c in tags else (1,))
            for c in (_BITS, _SAMPLES)
            if c in said
        )
        dropped = _TIFF_STRUCTURE if is_same else _TIFF_STRUCTURE | _TIFF_LEVELS
        tags |= {code: tag for code, tag in said.items() if code not in dropped}
        return list(tags.values())

    file.flush()
    replace_last_directory(file, tags_of, link)


def upright(image: Image.Image, metadata: Metadata) -> Image.Image:
    """The image turned the way it is meant to be viewed."""
    orientation = metadata.orientation()
    if orientation == 1:
        return image
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def holds_orientation(format_name: str) -> bool:
    """Whether files of a format say how they are to be turned; others need upright pixels."""
    return format_name in _WITH_METADATA


def lost_metadata(metadata: Metadata, format_name: str, mode: str) -> str:
    """What of the metadata a written file lacks and a user should know of; "" if nothing.

    Args:
        metadata: the source's metadata.
        format_name: Pillow's name of the written format.
        mode: the written mode.
    """
    notes = []
    if metadata.icc_profile is not None and format_name not in _WITH_METADATA:
        notes.append(f"colour profile dropped: {format_name} cannot hold one")
    elif _is_gray_profile_of_colour(metadata, mode):
        notes.append("colour profile dropped: it is for gray, and the output is RGB")
    if format_name not in _EXIF_VERBATIM and metadata.exif_tags() is None:
        notes.append(f"damaged EXIF block dropped: {format_name} cannot hold it")
    if metadata.cicp and format_name not in {"AVIF", "PNG", "HEIF"}:
        notes.append(f"colour space dropped: {format_name} cannot hold its code points (CICP)")
    if format_name == "PNG" and any(_is_void(chunk, mode) for chunk in metadata.chunks):
        notes.append("significant bits (sBIT) dropped: they are of other channels")
    notes += _fitting(metadata, format_name)[2]
    return "; ".join(notes)


def _fitting(metadata: Metadata, format_name: str) -> tuple[bytes | None, bytes | None, list[str]]:
    """EXIF block and XMP packet as a format can hold them, and what was dropped for that."""
    exif, xmp, notes = metadata.exif, metadata.xmp, []
    tags = metadata.exif_tags()
    if tags is None and format_name not in _EXIF_VERBATIM:
        exif = None
    if format_name == "JPEG" and exif and len(exif) > _JPEG_SEGMENT:
        small = [
            tag for tag in tags or () if len(tag.data) <= 1024 and tag.code not in {_BITS, _SAMPLES}
        ]
        exif = write_block(small) if small else None
        exif = exif if exif and len(exif) <= _JPEG_SEGMENT else None
        notes.append("large EXIF tags dropped: JPEG holds 64 KB of them")
    if format_name == "JPEG" and xmp and len(xmp) > _JPEG_SEGMENT - 29 and not metadata.segments:
        xmp = None
        notes.append("XMP dropped: JPEG holds 64 KB of it")
    return exif, xmp, notes


def _is_gray_profile_of_colour(metadata: Metadata, mode: str) -> bool:
    """Whether the colour profile is for gray, though RGB is written."""
    return mode.startswith("RGB") and (metadata.icc_profile or b"")[16:20] == b"GRAY"


def _exif_from_text(text: str) -> bytes | None:
    """The EXIF block as ImageMagick keeps it in PNG: a name, a length, hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) or None
    except ValueError:
        return None


class _VerbatimExif(Image.Exif):
    """An EXIF block that Pillow's AVIF writer takes as it is: its own would retype the tags."""

    def __init__(self, block: bytes) -> None:
        super().__init__()
        self._block = block
        self.load(block)

    def tobytes(self, offset: int = 8) -> bytes:
        return self._block


def png_head(metadata: Metadata, mode: str) -> bytes:
    """Chunks of a PNG file, to be put behind its header: text and colour, verbatim.

    Args:
        metadata: the source's metadata.
        mode: the mode to write.
    """
    chunks = [chunk for chunk in metadata.chunks if not _is_void(chunk, mode)]
    if metadata.xmp and not any(data.startswith(_XMP_KEYWORD) for _, data in chunks):
        # Keyword, no compression, no language, no translated keyword, text.
        chunks.append((b"iTXt", _XMP_KEYWORD + b"\0" * 5 + metadata.xmp))
    if metadata.cicp and not any(name == b"cICP" for name, _ in chunks):
        chunks.insert(0, (b"cICP", bytes([*metadata.cicp, 0, 1])))
    return b"".join(png_chunk(name, data) for name, data in chunks)


class PngWriter:
    """A file that puts chunks behind the header of the PNG that Pillow writes to it."""

    def __init__(self, file: BinaryIO, chunks: bytes) -> None:
        self._file, self._chunks, self._count = file, chunks, 0

    def write(self, data: bytes) -> int:
        """Write, with the chunks at the place where the header ends."""
        before = max(0, _PNG_HEADER - self._count)
        self._count += len(data)
        if before and self._count >= _PNG_HEADER:
            self._file.write(data[:before] + self._chunks)
            data = data[before:]
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def _is_void(chunk: tuple[bytes, bytes], mode: str) -> bool:
    """Whether a chunk says how many bits of each sample count, and the samples are others now."""
    bands = mode.partition(";")[0]
    channels = len(bands) if bands in {"LA", "RGB", "RGBA"} else 1
    return chunk[0] == b"sBIT" and len(chunk[1]) != channels
