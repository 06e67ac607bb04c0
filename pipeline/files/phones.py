"""HEIF (HEIC) and JPEG XL, as phones and their programs write them: the extra `phones`.

pillow-heif gives more than 8 bits, Pillow's plug-in for JPEG XL does not: its head is read here.
"""

import io
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .footprint import Footprint, PageSize
from .metadata import ORIENTATION, Metadata, StorageFormat, exif_block, upright
from .pixels import DecodedImage, decode, encode
from .ranges import BITS_8, Declared
from .scratch import memory
from .sniff import boxes

FORMATS = {"HEIF", "JXL"}
MODES = {"HEIF": "L RGB RGBA I;16 RGB;16 RGBA;16", "JXL": "L LA RGB RGBA I;16 F"}

# Two threads that encoded HEIF at once ended the process (a segmentation fault in libheif). Its
# encoder has threads of its own.
_ENCODING = threading.Lock()
_SRGB = {(1, 13), (1, 2), (2, 2)}  # primaries and transfer: sRGB, or not said
_GAIN_MAP = "gainmap"  # in what Apple and Samsung call it
_SRGB_NAMES = (b"sRGB", b"RGB_D65_SRG", b"Gra_D65", "sRGB".encode("utf-16-be"))


def read(kind: str, file: BinaryIO, on_size: Callable[[Footprint], object]) -> DecodedImage:
    """Read the primary picture of a file, upright.

    Args:
        kind: "HEIF" or "JPEG XL".
        file: the file.
        on_size: called with what the file takes, before it is decoded.

    Raises:
        ImageError: it is a film, or has samples that cannot be read without loss.
    """
    return _read_heif(file, on_size) if kind == "HEIF" else _read_jxl(file, on_size)


def write(
    file: BinaryIO, format_name: str, page: DecodedImage, samples: Tensor, mode: str, quality: int
) -> Metadata:
    """Write a page upright, with EXIF, XMP and, in HEIF, colour profile.

    Args:
        file: open for writing.
        format_name: HEIF or JXL.
        page: the source.
        samples: as `page.stored` returned them.
        mode: one of `MODES`.
        quality: 1 to 100; JPEG XL is lossless at 100, and if its source is.

    Returns:
        The metadata that was written.

    Raises:
        ImageError: the format cannot hold the samples.
    """
    if mode.endswith(";16") and format_name == "HEIF":
        return _write_deep_heif(file, page, samples, mode, quality)
    image = upright(encode(page, samples, mode), page.metadata)
    metadata = _upright(page.metadata).with_thumbnail(image)
    options: dict[str, Any] = {"exif": metadata.exif, "xmp": metadata.xmp, "quality": quality}
    if format_name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
        options |= _heif_options(metadata, page.storage)
    else:
        import pillow_jxl  # noqa: F401 (registers itself)

        is_deep = mode in {"I;16", "F"}
        options["lossless"] = is_deep or page.storage.is_lossless or quality == 100
    given = {name: value for name, value in options.items() if value is not None}
    with _ENCODING if format_name == "HEIF" else nullcontext():
        image.save(file, format_name, **given)
    return metadata


def profile_is_srgb(profile: bytes) -> bool:
    """Whether a colour profile says that it is sRGB, so that nothing is lost without it."""
    return any(name in profile for name in _SRGB_NAMES)


def _read_heif(file: BinaryIO, on_size: Callable[[Footprint], object]) -> DecodedImage:
    import pillow_heif

    _check_whole(file)
    file.seek(8)
    if file.read(4) in {b"hevc", b"hevx", b"msf1"}:
        raise ImageError("is a HEIF sequence; films are not supported; save its frames as files")
    file.seek(0)
    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=False)
    image = heif[heif.primary_index]
    info: dict[str, Any] = dict(image.info)
    pillow_heif.set_orientation(info)  # the pixels are upright
    (width, height), mode = image.size, image.mode
    deep = {"I;16": 1, "RGB;16": 3, "RGBA;16": 4}.get(mode)
    _check_size(width, height)
    bands = deep or len(mode)
    on_size(Footprint([PageSize(width * height, bands, 2 if deep else 1, bands % 2 == 0)], "HEIF"))
    bits = int(info["bit_depth"])
    nclx = info.get("nclx_profile") or {}
    code_points = (nclx.get("color_primaries", 2), nclx.get("transfer_characteristics", 2))
    metadata = Metadata(
        exif=exif_block(info.get("exif")),
        icc_profile=info.get("icc_profile"),
        xmp=info.get("xmp"),
        cicp=None if code_points in _SRGB or info.get("icc_profile") else code_points,
    )
    kinds = info.get("aux") or {}
    left = ["gain map"] * any(_GAIN_MAP in name for name in kinds)
    left += ["depth map"] * bool(info.get("depth_images"))
    more = len(heif) - 1
    left += [f"{more} further picture{'s' * (more > 1)}"] * (more > 0)
    note = f"{', '.join(left)} dropped: only the picture is kept" if left else ""
    chroma = int(info.get("chroma", 420))
    if deep is None:
        if ";" in mode:
            raise ImageError(f"has {bits}-bit samples in mode {mode}; convert it to PNG or TIFF")
        samples, alpha, stored = decode(image.to_pillow())
        storage = StorageFormat("HEIF", stored, chroma=chroma)
        return DecodedImage(samples, alpha, BITS_8, storage, metadata, note)
    whole = torch.frombuffer(bytearray(image.data), dtype=torch.int16).view(height, width, deep)
    alpha = whole[:, :, 3:].contiguous().view(torch.uint16) if deep == 4 else None
    samples = whole[:, :, : min(deep, 3)].contiguous().view(torch.uint16)
    storage = StorageFormat("HEIF", mode, chroma=chroma)
    return DecodedImage(
        samples, alpha, BITS_8, storage, metadata, note, declared=Declared(bits=bits)
    )


def _write_deep_heif(
    file: BinaryIO, page: DecodedImage, samples: Tensor, mode: str, quality: int
) -> Metadata:
    import pillow_heif

    if page.storage.format != "HEIF":
        raise ImageError("HEIF holds at most 12 bits, not 16; write a .png or .tif file")
    parts = [samples.view(torch.int16)]
    if page.alpha is not None:
        parts.append(page.alpha.view(torch.int16))
    whole = torch.cat(parts, 2).contiguous()
    metadata = page.metadata.with_thumbnail(None)
    height, width = page.size
    options = _heif_options(metadata, page.storage)
    options |= {"exif": metadata.exif, "xmp": metadata.xmp, "quality": quality}
    options["bit_depth"] = 12 if (page.declared.bits or 10) > 10 else 10
    given = {name: value for name, value in options.items() if value is not None}
    data = bytes(memory(whole))
    with _ENCODING:
        pillow_heif.encode(mode.replace("I;", "L;"), (width, height), data, file, **given)
    return metadata


def _heif_options(metadata: Metadata, storage: StorageFormat) -> dict[str, Any]:
    """Colour: 4:2:0 unless the source has more, since not every reader takes the rest."""
    import pillow_heif

    options: dict[str, Any] = {"icc_profile": metadata.icc_profile, "chroma": storage.chroma}
    if "x265" in pillow_heif.libheif_info()["encoders"]:
        options["enc_params"] = {"preset": "medium"}  # half the time of "slow", at 70 dB 1 dB less
    if metadata.cicp:
        primaries, transfer = metadata.cicp
        options |= {"color_primaries": primaries, "transfer_characteristics": transfer}
        options |= {"matrix_coefficients": 9 if primaries == 9 else 6, "full_range_flag": 1}
    return options


def _read_jxl(file: BinaryIO, on_size: Callable[[Footprint], object]) -> DecodedImage:
    import pillow_jxl  # noqa: F401 (registers itself)

    file.seek(4)
    if file.read(4) == b"JXL ":
        _check_whole(file)
    bits, is_float, is_animated, is_lossless = _jxl_head(file)
    if is_animated:
        raise ImageError("is an animation, which is not supported; save each frame as a file")
    file.seek(0)
    xmp = next(boxes(file, b"xml "), None)
    file.seek(0)
    with Image.open(file, formats=["JXL"]) as image:
        _check_size(image.width, image.height)
        if bits > 8 and image.mode not in {"I;16", "F"}:
            raise ImageError(
                f"has {bits}-bit {'float ' * is_float}colour, of which its reader would keep 8 "
                "bits; convert it to 16-bit PNG or TIFF"
            )
        bands, pixels = len(image.getbands()), image.width * image.height
        has_holes = bands % 2 == 0 or is_float
        on_size(Footprint([PageSize(pixels, bands, max(1, bits // 8), has_holes)], "JXL"))
        image.load()
        metadata = Metadata(
            exif=exif_block(image.info.get("exif")),
            icc_profile=image.info.get("icc_profile"),
            xmp=xmp,
        )
        is_jpeg = next(boxes(file, b"jbrd"), None) is not None
        packed = {box[:4] for box in boxes(file, b"brob")} & {b"Exif", b"xml "}
        packed -= {b"Exif"} if is_jpeg else set()  # which has its own
        if not is_jpeg:  # whose pixels are not turned
            metadata = _upright(metadata)
        samples, alpha, mode = decode(image)
    if metadata.icc_profile and profile_is_srgb(metadata.icc_profile):
        metadata = replace(metadata, icc_profile=None)  # made up by the reader
    storage = StorageFormat("JXL", mode, is_lossless=is_lossless and not is_jpeg)
    note = "EXIF or XMP dropped: it is compressed, which its reader does not know" if packed else ""
    return DecodedImage(samples, alpha, BITS_8, storage, metadata, note)


def _check_whole(file: BinaryIO) -> None:
    """Check that no box goes beyond the file's end: decoders make up what is missing."""
    end, at = file.seek(0, io.SEEK_END), 0
    while at < end:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4])
        size = int.from_bytes(head[8:]) if size == 1 else size or end - at
        if size < 8 or at + size > end:
            raise ImageError("is damaged or truncated; copy it again from its source")
        at += size


def _check_size(width: int, height: int) -> None:
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62):
        raise Image.DecompressionBombError(f"{width} x {height}")


def _upright(metadata: Metadata) -> Metadata:
    """The same for upright pixels: an orientation in the EXIF block becomes 1, in its place."""
    exif = metadata.exif
    if exif is None or metadata.orientation() == 1:
        return metadata
    block = bytearray(exif)
    order = "<" if block[6:8] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", block, 10)
    (count,) = struct.unpack_from(f"{order}H", block, 6 + at)
    for entry in range(8 + at, 8 + at + 12 * count, 12):
        if struct.unpack_from(f"{order}H", block, entry)[0] == ORIENTATION:
            struct.pack_into(f"{order}H", block, entry + 8, 1)
    return replace(metadata, exif=bytes(block), tags=())


def _jxl_head(file: BinaryIO) -> tuple[int, bool, bool, bool]:
    """Bits of a sample, whether they are floats, moving pictures, and stored as they are.

    ISO/IEC 18181-1, headers of size and image; 18181-2, boxes.
    """
    file.seek(0)
    start = file.read(2)
    if start != b"\xff\x0a":
        whole = next(boxes(file, b"jxlc"), b"")
        part = next(boxes(file, b"jxlp"), b"")
        start = (whole or part[4:])[:64]
    else:
        start += file.read(62)
    bits = _Bits(start[2:])
    bits.size()
    if bits.take(1):  # all as usual
        return 8, False, False, False
    is_animated = False
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            bits.size()
        has_preview = bits.take(1)
        is_animated = bool(bits.take(1))
        if has_preview or is_animated:
            return 8, False, is_animated, False
    is_float = bool(bits.take(1))
    depth = (
        bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
        if is_float
        else bits.one_of((8, 0), (10, 0), (12, 0), (1, 6))
    )
    if is_float:
        bits.take(4)
    bits.take(1)  # 16-bit buffers suffice
    extra = bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))
    is_plain = extra == 0 or (extra == 1 and bits.take(1) == 1)  # usual alpha
    return depth, is_float, is_animated, is_plain and bits.take(1) == 0  # not as XYB


class _Bits:
    """The fields of a JPEG XL header, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def one_of(self, *choices: tuple[int, int]) -> int:
        """A number that two bits choose: an offset, and bits to add."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)

    def size(self) -> None:
        """Pass over height and width."""
        lengths = (1, 9), (1, 13), (1, 18), (1, 30)
        is_small = self.take(1)
        self.take(5) if is_small else self.one_of(*lengths)
        if self.take(3) == 0:  # no ratio
            self.take(5) if is_small else self.one_of(*lengths)
