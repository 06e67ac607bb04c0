"""What an image file says beside its pixels: read from one file, written to another."""

from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import Image, ImageOps, PngImagePlugin

from .pixels import Layout
from .probe import jp2_profile, png_chunks

# Tags that describe how a TIFF file stores its samples; the writer sets its own.
_TIFF_STRUCTURE = {
    *range(254, 260), 262, 266, 273, *range(277, 282), 284, 317, *range(320, 326), 330,
    *range(338, 342), 347, *range(512, 522), *range(529, 533), 34675,
}  # fmt: skip
_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"}
ORIENTATION = 274
_NESTED_TAGS = {0x8769, 0x8825}  # EXIF, GPS
_PNG_CHUNKS = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt", b"iTXt"}
_XMP_KEY = b"XML:com.adobe.xmp"
_XMP_TAG = 700
_WITH_METADATA = {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"}  # EXIF, and with it orientation, and ICC


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
    """

    exif: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    comment: bytes | None = None
    segments: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    def with_exif(self, data: bytes) -> "Metadata":
        """The same with another EXIF block."""
        return replace(self, exif=exif_block(data))


def read_metadata(image: Image.Image, file: BinaryIO) -> Metadata:
    """Taken before the pixels are decoded: loading a TIFF file strips its orientation."""
    info = image.info
    exif = info.get("exif")
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
    )


def exif_block(data: bytes | None) -> bytes | None:
    """The block with the lead that Pillow wants."""
    return data if not data or data.startswith(b"Exif\0\0") else b"Exif\0\0" + data


def save_options(name: str, metadata: Metadata, layout: Layout, quality: int) -> dict[str, Any]:
    """What Pillow's `save` needs, for the format of this name, to write the metadata back.

    Args:
        name: Pillow's name of the format.
        metadata: what the source said beside its pixels.
        layout: how the source stored its samples.
        quality: 1 to 100, of lossy formats.
    """
    common = {"exif": metadata.exif, "icc_profile": metadata.icc_profile}
    subsampling = "4:4:4" if quality >= 90 else "4:2:0"
    dpi, xmp = metadata.dpi, metadata.xmp
    options: dict[str, Any] = {}
    if name == "PNG":
        options = {**common, "dpi": dpi, "pnginfo": _png_info(metadata)}
    elif name == "JPEG":
        options = {**common, "dpi": dpi, "quality": quality, "subsampling": subsampling}
        options |= {"comment": metadata.comment, "progressive": layout.is_progressive}
        options |= {"extra": metadata.segments} if metadata.segments else {"xmp": xmp}
    elif name == "TIFF":
        keep = layout.compression in _TIFF_COMPRESSIONS
        options = {**common, "dpi": None if layout.format == "TIFF" else dpi}
        options["compression"] = layout.compression if keep else "tiff_adobe_deflate"
        tags = Image.Exif()
        if metadata.exif:
            tags.load(metadata.exif)
        if xmp and _XMP_TAG not in tags:
            tags[_XMP_TAG] = xmp
        if tags:
            options["exif"] = _text_kept(tags)
            if _NESTED_TAGS & set(tags):  # lost by Pillow in compressed files
                options["compression"] = "raw"
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
    if name in _WITH_METADATA or metadata.exif is None:
        return image
    tags = Image.Exif()
    tags.load(metadata.exif)
    if ORIENTATION not in tags:
        return image
    image.getexif()[ORIENTATION] = tags[ORIENTATION]
    return ImageOps.exif_transpose(image)


def dropped(metadata: Metadata, name: str) -> str:
    """What a user must know that the format of this name does not keep, or nothing."""
    is_dropped = metadata.icc_profile is not None and name not in _WITH_METADATA
    return f"its colour profile is dropped, which {name} does not hold" if is_dropped else ""


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
