"""What an image file says beside its pixels: read from one file, written to another."""

from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import Image, ImageOps, PngImagePlugin

from .sniff import jp2_profile, png_chunks

# Tags that describe how a TIFF file stores its samples; the writer sets its own.
_TIFF_STRUCTURE = {
    *range(254, 260), 262, 266, 273, *range(277, 282), 284, 317, *range(320, 326), 330,
    *range(332, 335), 336, *range(338, 342), 347, *range(512, 522), *range(529, 533), 34675,
}  # fmt: skip
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"}
ORIENTATION = 274
_XMP, _EXIF_FOLDER, _GPS_FOLDER, _PAGE_NUMBER = 700, 0x8769, 0x8825, 297  # tags
_RAW_EXIF = "Raw profile type exif"
_PNG_CHUNKS = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt", b"iTXt"}
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_WITH_METADATA = {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"}  # EXIF with its orientation, and ICC
_EXIF_VERBATIM = {"PNG", "JPEG", "WEBP"}  # formats that can carry a damaged EXIF block


@dataclass(frozen=True)
class StorageFormat:
    """How a file stored its samples: enough to store others in the same way.

    Attributes:
        format: Pillow's name of the format, such as "PNG".
        mode: Pillow's mode for the output: 1, L, LA, RGB, RGBA, I;16 or F; or RGB;16 or RGBA;16,
            which Pillow does not have.
        compression: the compression in Pillow's spelling (TIFF, TGA), or None.
        is_lossless: the file is lossless WebP.
        is_progressive: the file is a progressive JPEG.
        maximum: the largest sample, if the file's depth is not its samples' type's: 4095 for 12
            bits.
    """

    format: str
    mode: str
    compression: str | None = None
    is_lossless: bool = False
    is_progressive: bool = False
    maximum: int | None = None


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        exif: the EXIF block, unchanged, led by b"Exif\\0\\0"; for TIFF, the descriptive tags.
        icc_profile: the colour profile.
        dpi: horizontal and vertical resolution in pixels per inch.
        xmp: the XMP packet.
        comment: the JPEG comment.
        segments: XMP and Photoshop/IPTC segments of a JPEG file, verbatim.
        chunks: text and colour chunks of a PNG file, verbatim.
        is_exif_in_text: the EXIF block comes from one of these text chunks.
    """

    exif: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    comment: bytes | None = None
    segments: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    is_exif_in_text: bool = False

    def with_exif(self, data: bytes) -> "Metadata":
        """The same with another EXIF block."""
        return replace(self, exif=exif_block(data), is_exif_in_text=False)

    def exif_tags(self) -> Image.Exif | None:
        """The tags of the EXIF block: empty without a block, None if the block is damaged."""
        tags, tried = Image.Exif(), Image.Exif()
        try:
            if self.exif:
                tags.load(self.exif)
                tried.load(self.exif)
                tried.tobytes()  # values are only parsed on access
        except Exception:  # Pillow raises almost anything; the image does not need its EXIF
            return None
        return tags

    def orientation(self) -> int:
        """EXIF orientation, 1 to 8; 1 if the EXIF block cannot be read."""
        tags = Image.Exif()
        try:
            tags.load(self.exif or b"")
            return int(tags.get(ORIENTATION, 1))
        except Exception:  # as above
            return 1


def read_metadata(image: Image.Image, file: BinaryIO) -> Metadata:
    """Read the metadata of an opened image; before loading it, which strips TIFF's orientation."""
    info = image.info
    exif = info.get("exif")
    is_exif_in_text = image.format == "PNG" and exif is None and _RAW_EXIF in info
    if is_exif_in_text:
        exif = _exif_from_text(info[_RAW_EXIF])
    if image.format == "TIFF":
        tags = image.getexif()
        for tag in _TIFF_STRUCTURE & set(tags):
            if tag != ORIENTATION:
                del tags[tag]
        tags.bigtiff = False  # an EXIF block is laid out as a classic TIFF file
        exif = _keep_text(tags).tobytes() if tags else None
    dpi = info.get("dpi")
    try:
        dpi = (float(dpi[0]), float(dpi[1])) if dpi else None
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        dpi = None
    segments = (
        bytes([0xFF, 0xE0 + int(name[3:])]) + (len(data) + 2).to_bytes(2) + data
        for name, data in getattr(image, "applist", [])
        if (name == "APP1" and data.startswith(b"http://ns.adobe.com/x")) or name == "APP13"
    )
    return Metadata(
        exif=exif_block(exif),
        icc_profile=info.get("icc_profile") or jp2_profile(image, file),
        dpi=dpi if dpi and all(0 < value < 65536 for value in dpi) else None,
        xmp=info.get("xmp"),
        comment=info.get("comment") if image.format in {"JPEG", "MPO"} else None,
        segments=b"".join(segments),
        chunks=tuple(png_chunks(file, _PNG_CHUNKS)) if image.format == "PNG" else (),
        is_exif_in_text=is_exif_in_text,
    )


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
    tags = metadata.exif_tags()
    exif = metadata.exif if tags is not None or format_name in _EXIF_VERBATIM else None
    icc_profile = None if _is_gray_profile_of_colour(metadata, mode) else metadata.icc_profile
    common = {"exif": exif, "icc_profile": icc_profile}
    subsampling = "4:4:4" if quality >= 90 else "4:2:0"
    dpi, xmp = metadata.dpi, metadata.xmp
    options: dict[str, Any] = {}
    if format_name == "PNG":
        options = {**common, "dpi": dpi, "pnginfo": _png_info(metadata)}
        if metadata.is_exif_in_text:  # it stays in the text
            del options["exif"]
    elif format_name == "JPEG":
        options = {**common, "dpi": dpi, "quality": quality, "subsampling": subsampling}
        options |= {"comment": metadata.comment, "progressive": storage.is_progressive}
        options |= {"extra": metadata.segments} if metadata.segments else {"xmp": xmp}
    elif format_name == "TIFF":
        keep = storage.compression in _TIFF_COMPRESSIONS
        options = {**common, "dpi": None if storage.format == "TIFF" else dpi}
        options["compression"] = storage.compression if keep else "tiff_adobe_deflate"
        tags = Image.Exif() if tags is None else tags
        if xmp and _XMP not in tags:
            tags[_XMP] = xmp
        if tags:
            options["exif"] = _keep_text(tags)
            if {_EXIF_FOLDER, _GPS_FOLDER} & set(tags):  # Pillow loses them in compressed files
                options["compression"] = "raw"
            if options["compression"] != "raw":  # Pillow would write arbitrary memory for it
                tags.pop(_PAGE_NUMBER, None)
    elif format_name == "WEBP":
        options = {**common, "xmp": xmp, "lossless": storage.is_lossless, "exact": True}
        options["quality"] = 75 if storage.is_lossless else quality  # effort, if lossless
    elif format_name == "AVIF":
        options = {**common, "xmp": xmp, "quality": quality}
        options["subsampling"] = "4:0:0" if storage.mode in {"1", "L"} else subsampling
    elif format_name == "BMP":
        options = {"dpi": dpi}
    elif format_name == "TGA":
        options = {"rle": storage.compression == "tga_rle"}
    return {key: value for key, value in options.items() if value is not None}


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
    return "; ".join(notes)


def _is_gray_profile_of_colour(metadata: Metadata, mode: str) -> bool:
    """Whether the colour profile is for gray, though RGB is written."""
    return mode.startswith("RGB") and (metadata.icc_profile or b"")[16:20] == b"GRAY"


def _exif_from_text(text: str) -> bytes | None:
    """The EXIF block as ImageMagick keeps it in PNG: a name, a length, hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) or None
    except ValueError:
        return None


def _keep_text(exif: Image.Exif) -> Image.Exif:
    """Turn non-ASCII text into bytes: Pillow reads it as Latin-1 and would write `?`."""
    for tag, value in exif.items():
        if isinstance(value, str) and not value.isascii():
            exif[tag] = value.encode("latin-1", "replace")
    return exif


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, data in metadata.chunks:
        info.add(name, data)
    if metadata.xmp and not any(data.startswith(_XMP_KEYWORD) for _, data in metadata.chunks):
        # Keyword, no compression, no language, no translated keyword, text.
        info.add(b"iTXt", _XMP_KEYWORD + b"\0" * 5 + metadata.xmp)
    return info
