"""What a file carries beside its picture: further pictures, films, a maker's trailer.

An output holds the denoised picture alone. Here is what a note says of the rest, and where a JPEG
file's picture ends. Sources: JPEG (ITU-T T.81), MPF (CIPA DC-007), Google's Ultra HDR and Motion
Photo formats.
"""

import io
import math
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .complaints import MOST_EXTRANEOUS, extraneous_bytes, jpeg_complaints
from .scratch import memory
from .sniff import rewound

_MARKER = re.compile(rb"\xff[^\x00\x01\xff]", re.DOTALL)  # 0: a byte 255 of a scan; 1: temporary


@dataclass(frozen=True)
class JpegStructure:
    """Where a JPEG file's picture ends.

    Attributes:
        end: position after its end mark; None if there is none.
        segments: marker and data of the application segments before the picture.
        is_every_scan_there: as far as scans and restart marks tell, no pixel is missing.
        size: (width, height).
        sampling: of each component, across and down.
        names: of the components, numbers.
    """

    end: int | None
    segments: tuple[tuple[int, bytes], ...]
    is_every_scan_there: bool
    size: tuple[int, int] = (0, 0)
    sampling: tuple[tuple[int, int], ...] = ()
    names: tuple[int, ...] = ()

    @property
    def is_ycbcr(self) -> bool:
        """Whether libjpeg takes the picture for YCbCr (jdapimin.c)."""
        if len(self.names) != 3:
            return False
        for marker, body in self.segments:
            if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
                return True
        for marker, body in self.segments:
            if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
                return body[11] == 1
        return self.names == (1, 2, 3)


def jpeg_structure(file: BinaryIO) -> JpegStructure | None:
    """Walk a JPEG file's markers; None if the file is damaged before the picture."""
    with rewound(file), _bytes_of(file) as data:
        return _walk(data)


def complete_jpeg(file: BinaryIO, end: JpegStructure) -> BinaryIO | None:
    """A JPEG file that lacks only its end mark, with that mark; None if pixels are missing.

    Whatever is appended to an incomplete scan is decoded as pixels: two files with different ends
    give the same picture only if all pixels are there.
    """
    if not end.is_every_scan_there:
        return None
    with rewound(file):
        file.seek(0)
        data = file.read().removesuffix(b"\xff")
    whole = data + b"\xff\xd9"
    if jpeg_complaints(whole, end.size, end.sampling)[0]:
        return None
    pictures = []
    for filling in (b"", b"\x55" * 64, b"\xaa" * 64):
        try:
            with Image.open(io.BytesIO(data + filling + b"\xff\xd9"), formats=["JPEG"]) as image:
                image.load()
                pictures.append(image.tobytes())
        except Exception:  # Pillow raises almost anything
            return None
    return io.BytesIO(whole) if pictures[0] == pictures[1] == pictures[2] else None


# How a box of JPEG 2000 that Pillow does not read begins.
_JP2_METADATA = {
    b"uuid\xbe\x7a\xcf\xcb\x97\xa9\x42\xe8": "XMP",
    b"uuid\xb1\x4b\xf8\xbd\x08\x3d\x4b\x43": "georeference",
    b"uuidJpgTiffExif": "EXIF",
    b"uuid\x33\xc7\xa4\xd2\xb8\x1d\x47\x23": "IPTC",
    b"xml <": "XML",
    b"res \0\0\0\x12res": "resolution",
}


def read_jpeg(file: BinaryIO, jpeg: JpegStructure) -> tuple[Tensor | None, str]:
    """Decode a JPEG file's pixels, and listen to what libjpeg complains about.

    Returns:
        the samples (H, W, C), uint8, of gray and YCbCr files that it says nothing of, None of
        others: Pillow reads those; and a note, if all that is wrong is padding behind the pixels.

    Raises:
        ImageError: pixels are damaged or missing.
    """
    (width, height), bands = jpeg.size, len(jpeg.sampling)
    samples = None
    if bands == 1 or jpeg.is_ycbcr:
        samples = torch.empty((height, width, bands), dtype=torch.uint8)
    with rewound(file), _bytes_of(file) as data:
        target = None if samples is None else memory(samples)
        complaints, is_whole = jpeg_complaints(data, jpeg.size, jpeg.sampling, target)
        for complaint in complaints:
            count = extraneous_bytes(complaint)
            end = (jpeg.end or len(data)) - 2
            is_padding = count is not None and not data[end - count : end].strip(b"\0\xff")
            if count is None or (count > MOST_EXTRANEOUS and not is_padding):
                raise ImageError(f"is damaged ({complaint}); copy it again from its source")
            if count > MOST_EXTRANEOUS:
                said = f"its pixels end {count} bytes before its end mark; check the last of them"
                return None, said
    return samples if is_whole else None, ""


def left_out(
    file: BinaryIO, format_name: str, jpeg: JpegStructure | None, end: int | None = None
) -> list[str]:
    """What of a file's contents its output does not hold, for the user.

    Args:
        file: open; its position stays.
        format_name: Pillow's name of its format.
        jpeg: if it is a JPEG file.
        end: where the picture of another file ends, if that is known.
    """
    with rewound(file), _bytes_of(file) as data:
        if jpeg is not None:
            found = _beside_jpeg(data, jpeg)
        elif format_name == "PNG":
            found = _beside_png(data)
        elif format_name == "WEBP":
            size = 8 + int.from_bytes(data[4:8], "little")
            found = _trailer(data[size + size % 2 :])
        elif format_name == "AVIF":
            head = data[: 1 << 16]
            found = ["gain map"] * (b"tmap" in head) + ["film"] * (data.find(b"mpvd") >= 0)
            found += ["HDR metadata (mDCV, cLLI)"] * (b"mdcv" in head or b"clli" in head)
            found += ["depth map"] * (b"aux:depth" in head or b"auxid:2" in head)
            found += ["crop (clean aperture)"] * (b"clap" in head)
        elif format_name == "JPEG2000":
            found = [name for key, name in _JP2_METADATA.items() if key in data[: 1 << 16]]
        else:
            found = [] if end is None else _trailer(data[end:])
    return [f"{', '.join(found)} dropped: only the picture is kept"] if found else []


@contextmanager
def _bytes_of(file: BinaryIO) -> Iterator["mmap.mmap | bytes"]:
    """The bytes of a file, mapped where possible."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        file.seek(0)
        yield file.read()
        return
    with mapped:
        yield mapped


def _walk(data: "mmap.mmap | bytes") -> JpegStructure | None:
    """Go from marker to marker, to the end mark of the first picture."""
    if data[:2] != b"\xff\xd8":
        return None
    segments: list[tuple[int, bytes]] = []
    scans = _Scans()
    at = 2
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            return scans.structure(None, segments, is_whole=scans.are_complete())
        at = found.start()
        marker = data[at + 1]
        if marker == 0xD9:
            return scans.structure(at + 2, segments, is_whole=True)
        if 0xD0 <= marker <= 0xD7:
            scans.restarts += 1
        if 0xD0 <= marker <= 0xD8:  # without data
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + size]
        if size < 2 or len(body) < size - 2:
            return scans.structure(None, segments, is_whole=False)
        if 0xE0 <= marker <= 0xEF:
            segments.append((marker, body))
        elif marker == 0xDD and len(body) >= 2:
            scans.interval = int.from_bytes(body[:2])
        elif marker == 0xDA:
            scans.begin(body)
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            scans.frame(body)
        at += 2 + size


class _Scans:
    """Which coefficients the scans of a picture have brought."""

    def __init__(self) -> None:
        self.restarts = self.interval = 0
        self._size = 0, 0
        self._sampling: dict[int, tuple[int, int]] = {}  # by component, in order
        self._left: set[tuple[int, int]] = set()  # component, coefficient
        self._units = 0  # of the last scan

    def frame(self, body: bytes) -> None:
        """Read a frame header: precision, height, width, and each component's sampling."""
        self._size = int.from_bytes(body[3:5]), int.from_bytes(body[1:3])
        parts = [body[at : at + 3] for at in range(6, 6 + 3 * body[5], 3)]
        self._sampling = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts}
        self._left = {(name, index) for name in self._sampling for index in range(64)}

    def begin(self, body: bytes) -> None:
        """Read a scan header: its components, their coefficients, and how exact they are."""
        names = list(body[1 : 1 + 2 * body[0] : 2])
        first, last, exact = body[1 + 2 * body[0]], body[2 + 2 * body[0]], body[3 + 2 * body[0]]
        if not exact & 15:
            self._left -= {(name, index) for name in names for index in range(first, last + 1)}
        self.restarts = 0
        (width, height), ceil = self._size, math.ceil
        across = max((h for h, _ in self._sampling.values()), default=1)
        down = max((v for _, v in self._sampling.values()), default=1)
        if len(names) == 1:
            h, v = self._sampling.get(names[0], (1, 1))
            self._units = ceil(ceil(width * h / across) / 8) * ceil(ceil(height * v / down) / 8)
        else:
            self._units = ceil(width / (8 * across)) * ceil(height / (8 * down))

    def structure(
        self, end: int | None, segments: list[tuple[int, bytes]], *, is_whole: bool
    ) -> JpegStructure:
        """Return what the walk has found."""
        names, sampling = tuple(self._sampling), tuple(self._sampling.values())
        return JpegStructure(end, tuple(segments), is_whole, self._size, sampling, names)

    def are_complete(self) -> bool:
        """Whether every coefficient came, and every restart mark of the last scan."""
        marks = -(-self._units // self.interval) - 1 if self.interval else 0
        return bool(self._sampling) and not self._left and self.restarts >= marks


def _beside_jpeg(data: "mmap.mmap | bytes", jpeg: JpegStructure) -> list[str]:
    """What a JPEG file holds beside its picture."""
    trailer = b"" if jpeg.end is None else data[jpeg.end :]
    found, pictures = [], 1
    texts = b""
    for marker, body in jpeg.segments:
        if marker == 0xE0 and (
            body[:5] == b"JFXX\0" or (body[:5] == b"JFIF\0" and b"\0" not in body[12:14])
        ):
            found.append("JFIF thumbnail")
        elif marker == 0xE1:
            texts += body
        elif marker == 0xE2 and body[:4] == b"MPF\0":
            pictures = _multi_pictures(body[4:])
        elif marker == 0xE2 and body[:5] == b"FPXR\0":
            found.append("FlashPix data")
        elif marker == 0xEB:
            found.append("content credentials (JUMBF)" if b"jumb" in body[:40] else "JPEG XT data")
    has_gain_map = any(
        mark in part
        for mark in (b"hdr-gain-map/", b"iso:ts:21496", b"HDRGainMap", b"hdrgainmap")
        for part in (texts, trailer)
    ) and (pictures > 1 or b"\xff\xd8\xff" in trailer)
    if has_gain_map:
        found.append("gain map (HDR)")
    if pictures - has_gain_map > 1:
        found.append(f"{pictures - 1 - has_gain_map} more of a multi-picture JPEG")
    if b"SEFT" in trailer[-16:]:
        found.append("Samsung's trailer")
    if b"ftyp" in trailer:
        found.append("film of a Motion Photo")
    is_explained = has_gain_map or pictures > 1 or b"ftyp" in trailer or b"SEFT" in trailer[-16:]
    found += [] if is_explained else _trailer(trailer)
    return list(dict.fromkeys(found))


def _multi_pictures(block: bytes) -> int:
    """How many pictures an MPF index names; 1 if it is damaged."""
    order = "<" if block[:2] == b"II" else ">"
    with suppress(struct.error):
        (at,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHII", block, entry)
            if tag == 0xB001:
                return int(value)
    return 1


def _trailer(rest: bytes) -> list[str]:
    """Name bytes that follow a picture; padding is nothing."""
    count = len(rest.strip(b"\0\xff \r\n"))
    return [f"{count} bytes after the end of the picture"] if count else []


def _beside_png(data: "mmap.mmap | bytes") -> list[str]:
    """What a PNG file holds beside its picture."""
    found, at = [], 8
    names = {b"caBX": "content credentials (JUMBF)", b"mkBT": "Fireworks layers",
             b"gdAT": "gain map (HDR)"}  # fmt: skip
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        at += size + 12
        if name in names:
            found.append(names[name])
        if name == b"IEND":
            return list(dict.fromkeys(found + _trailer(data[at:])))
    return found
