"""What an image file says beside its pixels: read from one file, written to another."""

from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import Image, ImageOps, PngImagePlugin

from .pixels import StorageFormat
from .sniff import jp2_profile, png_chunks

# Tags that describe how a TIFF file stores its samples; the writer sets its own.
_TIFF_STRUCTURE = {
    *range(254, 260), 262, 266, 273, *range(277, 282), 284, 317, *range(320, 326), 330,
    *range(332, 335), 336, *range(338, 342), 347, *range(512, 522), *range(529, 533), 34675,
}  # fmt: skip
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"}
ORIENTATION = 274
_NESTED_TAGS = {0x8769, 0x8825}  # EXIF, GPS
_PAGE_NUMBER = 297
_RAW_EXIF = "Raw profile type exif"
_PNG_CHUNKS = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt", b"iTXt"}
_XMP_KEY = b"XML:com.adobe.xmp"
_XMP_TAG = 700
_WITH_METADATA = {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"}  # EXIF, and with it orientation, and ICC
_EXIF_AS_IT_IS = {"PNG", "JPEG", "WEBP"}  # a block that cannot be read does no harm there


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        exif: the EXIF block as it is, led by b"Exif\\0\\0"; of a TIFF file, its descriptive tags.
        icc_profile: the colour profile.
        dpi: horizontal and vertical resolution in pixels per inch.
        xmp: the XMP packet.
        comment: the JPEG comment.
        segments: XMP and Photoshop/IPTC segments of a JPEG file, verbatim.
        chunks: text and colour chunks of a PNG file, verbatim.
        is_exif_in_text: the EXIF block is from one of these text chunks.
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
        """What the EXIF block says: nothing where there is none, None where it is damaged."""
        tags, tried = Image.Exif(), Image.Exif()
        try:
            if self.exif:
                tags.load(self.exif)
                tried.load(self.exif)
                tried.tobytes()  # values are read when they are asked for
        except Exception:  # Pillow raises almost anything; the picture needs no EXIF
            return None
        return tags

    def orientation(self) -> int:
        """How the picture is to be turned, 1 to 8; 1 also where the EXIF block cannot be read."""
        tags = Image.Exif()
        try:
            tags.load(self.exif or b"")
            return int(tags.get(ORIENTATION, 1))
        except Exception:  # as above
            return 1


def read_metadata(image: Image.Image, file: BinaryIO) -> Metadata:
    """Taken before the pixels are decoded: loading a TIFF file strips its orientation."""
    info = image.info
    exif = info.get("exif")
    is_exif_in_text = image.format == "PNG" and exif is None and _RAW_EXIF in info
    if is_exif_in_text:
        exif = _exif_in_text(info[_RAW_EXIF])
    if image.format == "TIFF":
        tags = image.getexif()
        for tag in _TIFF_STRUCTURE & set(tags):
            if tag != ORIENTATION:
                del tags[tag]
        tags.bigtiff = False  # an EXIF block is laid out as a classic TIFF file
        exif = _text_kept(tags).tobytes() if tags else None
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
    """The block with the lead that Pillow wants."""
    return data if not data or data.startswith(b"Exif\0\0") else b"Exif\0\0" + data


def save_options(
    name: str, metadata: Metadata, layout: StorageFormat, quality: int, mode: str
) -> dict[str, Any]:
    """What Pillow's `save` needs, for the format of this name, to write the metadata back.

    Args:
        name: Pillow's name of the format.
        metadata: what the source said beside its pixels.
        layout: how the source stored its samples.
        quality: 1 to 100, of lossy formats.
        mode: the mode that is written.
    """
    tags = metadata.exif_tags()
    exif = metadata.exif if tags is not None or name in _EXIF_AS_IT_IS else None
    icc_profile = None if _is_profile_of_gray_only(metadata, mode) else metadata.icc_profile
    common = {"exif": exif, "icc_profile": icc_profile}
    subsampling = "4:4:4" if quality >= 90 else "4:2:0"
    dpi, xmp = metadata.dpi, metadata.xmp
    options: dict[str, Any] = {}
    if name == "PNG":
        options = {**common, "dpi": dpi, "pnginfo": _png_info(metadata)}
        if metadata.is_exif_in_text:  # where it stays
            del options["exif"]
    elif name == "JPEG":
        options = {**common, "dpi": dpi, "quality": quality, "subsampling": subsampling}
        options |= {"comment": metadata.comment, "progressive": layout.is_progressive}
        options |= {"extra": metadata.segments} if metadata.segments else {"xmp": xmp}
    elif name == "TIFF":
        keep = layout.compression in _TIFF_COMPRESSIONS
        options = {**common, "dpi": None if layout.format == "TIFF" else dpi}
        options["compression"] = layout.compression if keep else "tiff_adobe_deflate"
        tags = Image.Exif() if tags is None else tags
        if xmp and _XMP_TAG not in tags:
            tags[_XMP_TAG] = xmp
        if tags:
            options["exif"] = _text_kept(tags)
            if _NESTED_TAGS & set(tags):  # lost by Pillow in compressed files
                options["compression"] = "raw"
            if options["compression"] != "raw":  # Pillow would write what lies in memory
                tags.pop(_PAGE_NUMBER, None)
    elif name == "WEBP":
        options = {**common, "xmp": xmp, "lossless": layout.is_lossless, "exact": True}
        options["quality"] = 75 if layout.is_lossless else quality  # of lossless: the effort
    elif name == "AVIF":
        options = {**common, "xmp": xmp, "quality": quality}
        options["subsampling"] = "4:0:0" if layout.mode in {"1", "L"} else subsampling
    elif name == "BMP":
        options = {"dpi": dpi}
    elif name == "TGA":
        options = {"rle": layout.compression == "tga_rle"}
    return {key: value for key, value in options.items() if value is not None}


def upright(image: Image.Image, metadata: Metadata, name: str) -> Image.Image:
    """The image as it is to be looked at, where the format of this name has no orientation."""
    return image if name in _WITH_METADATA else turned(image, metadata)


def turned(image: Image.Image, metadata: Metadata) -> Image.Image:
    """The image as it is to be looked at."""
    orientation = metadata.orientation()
    if orientation == 1:
        return image
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def dropped(metadata: Metadata, name: str, mode: str) -> str:
    """What a user must know that the format of this name does not keep, or nothing.

    Args:
        metadata: what the source said beside its pixels.
        name: Pillow's name of the format.
        mode: the mode that is written.
    """
    notes = []
    if metadata.icc_profile is not None and name not in _WITH_METADATA:
        notes.append(f"its colour profile is dropped, which {name} does not hold")
    elif _is_profile_of_gray_only(metadata, mode):
        notes.append("its colour profile is dropped, which is of gray, and RGB is written")
    if name not in _EXIF_AS_IT_IS and metadata.exif_tags() is None:
        notes.append("its damaged EXIF block is dropped")
    return "; ".join(notes)


def _is_profile_of_gray_only(metadata: Metadata, mode: str) -> bool:
    """Whether a colour profile says nothing of the pixels that are written."""
    return mode.startswith("RGB") and (metadata.icc_profile or b"")[16:20] == b"GRAY"


def _exif_in_text(text: str) -> bytes | None:
    """The EXIF block as ImageMagick keeps it in PNG: a name, a length, hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) or None
    except ValueError:
        return None


def _text_kept(exif: Image.Exif) -> Image.Exif:
    """Texts that are not ASCII as bytes; Pillow reads them as Latin-1 and would write `?`."""
    for tag, value in exif.items():
        if isinstance(value, str) and not value.isascii():
            exif[tag] = value.encode("latin-1", "replace")
    return exif


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, data in metadata.chunks:
        info.add(name, data)
    if metadata.xmp and not any(data.startswith(_XMP_KEY) for _, data in metadata.chunks):
        # Keyword, no compression, no language, no translated keyword, text.
        info.add(b"iTXt", _XMP_KEY + b"\0" * 5 + metadata.xmp)
    return info
