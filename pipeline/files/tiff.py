"""The directories of a TIFF file: which hold pictures, masks, copies, or a whole stack of planes.

Pillow reads and writes the pictures. Masks go along byte for byte. Copies (thumbnails, levels of a
pyramid) are left out: they show the noise. TIFF 6.0 (1992); BigTIFF; TIFF/EP (ISO 12234-2).
"""

import io
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from denoise_batch.kernels.errors import ImageError

from .kinds import RAW, refusal

NEW_SUBFILE_TYPE, IMAGE_DESCRIPTION = 254, 270  # tags
_SUBFILE_TYPE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 255, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 277, 279, 324, 325
_PLANAR, _SUB_IFDS, _DEPTH, _CFA_PATTERN, _UIC2, _DNG_VERSION = 284, 330, 32997, 33422, 33629, 50706
_LAYERS = 37724  # ImageSourceData of Photoshop
_REDUCED, _MASK, _DEPTH_MAP = 1, 4, 8  # bits of NewSubfileType
_OLD_REDUCED = 2  # a SubfileType
_PHOTOMETRIC_MASK, _CFA, _LINEAR_RAW = 4, 32803, 34892
_NO_COMPRESSION, _DEFLATE = 1, {8, 32946}
_STRUCT = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q",
           17: "q", 18: "Q"}  # fmt: skip
_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # of what has a byte order; a rational has two  # fmt: skip
_RATIONALS = {5, 10}
_MOST_DIRECTORIES, _MOST_TAGS, _MOST_BYTES = 1 << 20, 4096, 1 << 26


@dataclass(frozen=True)
class RawPage:
    """A page as it is stored, to be stored so again.

    Attributes:
        order: "<" or ">".
        tags: tag → type, values as bytes in this order; without those that say where the data is.
        segments: the data of each strip or tile.
        is_tiled: whether they are tiles.
    """

    order: str
    tags: Mapping[int, tuple[int, bytes]]
    segments: tuple[bytes, ...]
    is_tiled: bool


@dataclass(frozen=True)
class Layout:
    """What the pages of a TIFF file are.

    Attributes:
        frames: numbers of the pages that hold pictures, as Pillow counts.
        planes: of a stack that has one page; else 1.
        plane_bytes: distance between two of its planes.
        masks: frame → the masks that follow it.
        notes: frame → what is left out, for the user.
        description: the first page's, if it must change because planes become pages.
    """

    frames: tuple[int, ...]
    planes: int = 1
    plane_bytes: int = 0
    masks: Mapping[int, tuple[RawPage, ...]] = field(default_factory=dict)
    notes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    description: str | None = None


class _Directory:
    """One image file directory, with the directories below it."""

    def __init__(self, file: BinaryIO, order: str, is_big: bool, at: int) -> None:
        self.file, self.order, self.at = file, order, at
        count_format, entry, self._room = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
        file.seek(at)
        (count,) = self._unpack(count_format, file)
        if count > _MOST_TAGS:
            raise ValueError("too many tags")
        self._where: dict[int, tuple[int, int, int]] = {}  # tag → type, count, position
        size = struct.calcsize(order + entry) + self._room
        start = file.tell()
        data = file.read(count * size)
        for number in range(count):
            tag, kind, many = struct.unpack_from(order + entry, data, number * size)
            unit = _UNIT_BYTES.get(kind, 0) * (2 if kind in _RATIONALS else 1)
            position = start + (number + 1) * size - self._room
            if unit * many > self._room:
                (position,) = struct.unpack_from(
                    order + ("Q" if is_big else "I"), data, position - start
                )
            if unit:
                self._where.setdefault(tag, (kind, many, position))
        file.seek(start + count * size)
        pointer = file.read(self._room)
        full = len(pointer) == self._room
        self.next = struct.unpack(order + ("Q" if is_big else "I"), pointer)[0] if full else 0
        self.children: list[_Directory] = []

    def _unpack(self, layout: str, file: BinaryIO) -> tuple[Any, ...]:
        return struct.unpack(self.order + layout, file.read(struct.calcsize(self.order + layout)))

    @property
    def tags(self) -> list[int]:
        return sorted(self._where)

    def raw(self, tag: int) -> tuple[int, bytes]:
        """Type and bytes of a tag."""
        kind, many, position = self._where[tag]
        size = many * _UNIT_BYTES[kind] * (2 if kind in _RATIONALS else 1)
        if size > _MOST_BYTES:
            raise ValueError("too large")
        self.file.seek(position)
        return kind, self.file.read(size)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Integers of a tag; none if it is missing or damaged."""
        if tag not in self._where:
            return ()
        with suppress(struct.error, ValueError, KeyError):
            kind, data = self.raw(tag)
            return struct.unpack(
                f"{self.order}{len(data) // _UNIT_BYTES[kind]}{_STRUCT[kind]}", data
            )
        return ()

    def number(self, tag: int, default: int = 0) -> int:
        """The first integer of a tag."""
        return int(next(iter(self.numbers(tag)), default))

    def text(self, tag: int) -> str:
        """A tag as text."""
        if tag not in self._where:
            return ""
        with suppress(ValueError):
            return self.raw(tag)[1].rstrip(b"\0").decode("utf-8", "replace")
        return ""

    @property
    def size(self) -> tuple[int, int]:
        return self.number(_WIDTH), self.number(_LENGTH)

    @property
    def is_mask(self) -> bool:
        flags = self.number(NEW_SUBFILE_TYPE)
        return bool(flags & (_MASK | _DEPTH_MAP)) or (
            self.number(_PHOTOMETRIC, -1) == _PHOTOMETRIC_MASK
        )

    @property
    def is_reduced(self) -> bool:
        return bool(self.number(NEW_SUBFILE_TYPE) & _REDUCED) or (
            self.number(_SUBFILE_TYPE) == _OLD_REDUCED
        )

    @property
    def is_raw(self) -> bool:
        return (
            self.number(_PHOTOMETRIC) in {_CFA, _LINEAR_RAW}
            or _DNG_VERSION in self._where
            or _CFA_PATTERN in self._where
        )

    def page(self) -> RawPage:
        """The whole page, to be copied."""
        is_tiled = _TILE_OFFSETS in self._where
        at, sizes = (_TILE_OFFSETS, _TILE_BYTES) if is_tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
        segments = []
        for offset, size in zip(self.numbers(at), self.numbers(sizes), strict=True):
            self.file.seek(offset)
            segments.append(self.file.read(size))
            if len(segments[-1]) < size:
                raise ImageError("is truncated (in a mask); copy it again from its source")
        tags = {tag: self.raw(tag) for tag in self.tags if tag not in {at, sizes, _SUB_IFDS}}
        return RawPage(self.order, tags, tuple(segments), is_tiled)


def layout(file: BinaryIO) -> Layout:
    """Read what the pages of a TIFF file are; the file's position is moved.

    Raises:
        ImageError: camera RAW, a picture behind its thumbnail, or a stack that lacks planes.
    """
    try:
        directories = _directories(file)
    except (struct.error, ValueError, OSError):
        return Layout((0,))  # Pillow will say what is wrong
    below = [child for directory in directories for child in directory.children]
    if any(directory.is_raw for directory in (*directories, *below)):
        raise ImageError(refusal(RAW))
    pictures = [d for d in directories if not (d.is_mask or d.is_reduced)]
    if not pictures:  # flagged by mistake, or nothing but copies: then these are the pictures
        pictures = [d for d in directories if not d.is_mask] or directories[:1]
    for directory in directories:
        width, height = directory.size
        larger = [c.size for c in directory.children if math.prod(c.size) > width * height]
        if larger:
            raise ImageError(
                f"is a thumbnail of {width}×{height} with the picture ({larger[0][0]}×"
                f"{larger[0][1]}) in a sub-directory; save the picture as a plain TIFF file"
            )
        if directory.number(_DEPTH, 1) > 1:
            raise ImageError(
                f"is a volume of {directory.number(_DEPTH)} slices in one page; save each slice as "
                "a page"
            )
    frames: list[int] = []
    masks: dict[int, list[RawPage]] = {}
    dropped: dict[int, list[str]] = {}
    owner, is_of_copy = directories.index(pictures[0]), False
    are_pictures = set(map(id, pictures))
    for number, directory in enumerate(directories):
        if id(directory) in are_pictures:
            owner, is_of_copy = number, False
            frames.append(number)
            others = directory.children
        else:
            is_of_copy |= directory.is_reduced
            others = [directory, *directory.children]
        size = directories[owner].size
        for other in others:
            is_copy = other.is_reduced or (is_of_copy and other.size != size)
            if other.is_mask and not is_copy:
                masks.setdefault(owner, []).append(other.page())
                continue
            is_copy |= math.prod(other.size) < math.prod(size)
            kind = "reduced copies (overviews or thumbnails)" if is_copy else "sub-images"
            dropped.setdefault(owner, []).append(kind)
    notes = {
        number: tuple(f"{kinds.count(kind)} {kind} dropped" for kind in dict.fromkeys(kinds))
        for number, kinds in dropped.items()
    }
    for number in frames:
        if _LAYERS in directories[number].tags:
            note = "Photoshop's layers dropped: they show the noisy picture"
            notes[number] = (*notes.get(number, ()), note)
    planes, plane_bytes, description = 1, 0, None
    if len(directories) == 1:
        planes, plane_bytes, description, note = _stack(directories[0], file)
    else:
        promised, source = _promised(directories[0])
        note = _of_stale_promise(source, promised, len(frames)) if promised > len(frames) else ""
    if note:
        notes[frames[0]] = (*notes.get(frames[0], ()), note)
    return Layout(
        tuple(frames),
        planes,
        plane_bytes,
        {number: tuple(pages) for number, pages in masks.items()},
        notes,
        description,
    )


def add_masks(file: BinaryIO, masks: Sequence[Sequence[RawPage]]) -> None:
    """Add pages to a TIFF file that was just written, each picture's behind it.

    Args:
        file: open for reading and writing; it has as many pages as `masks` has items.
        masks: of each page.

    Raises:
        ImageError: a classic TIFF file would exceed 4 GiB.
    """
    order, is_big, first = _header(file)
    offset = order + ("Q" if is_big else "I")
    links: list[int] = []  # where the position of the next directory stands
    at, starts = first, []
    for _ in masks:
        directory = _Directory(file, order, is_big, at)
        starts.append(at)
        links.append(_link(file, order, is_big, at))
        at = directory.next
    chain: list[tuple[int, int]] = []  # position of a directory, and of its link
    for start, link, pages in zip(starts, links, masks, strict=True):
        chain.append((start, link))
        chain += [_append(file, page, order, is_big) for page in pages]
    end = file.seek(0, io.SEEK_END)
    if not is_big and end >= 1 << 32:
        raise ImageError("exceeds the 4 GiB of a TIFF file; leave out its masks")
    for (_, link), (following, _) in zip(chain, [*chain[1:], (0, 0)], strict=True):
        file.seek(link)
        file.write(struct.pack(offset, following))
    file.seek(0, io.SEEK_END)


def _header(file: BinaryIO) -> tuple[str, bool, int]:
    """Byte order, whether it is BigTIFF, and where the first directory is."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}[head[:2]] if head[:2] in {b"II", b"MM"} else ""
    if not order:
        raise ValueError("not TIFF")
    magic = struct.unpack_from(order + "H", head, 2)[0]
    if magic == 43:
        return order, True, struct.unpack_from(order + "Q", head, 8)[0]
    return order, False, struct.unpack_from(order + "I", head, 4)[0]


def _directories(file: BinaryIO) -> list[_Directory]:
    """The directories of a file in their order; damage ends the list."""
    order, is_big, at = _header(file)
    found: list[_Directory] = []
    seen: set[int] = set()
    while at and at not in seen and len(found) < _MOST_DIRECTORIES:
        seen.add(at)
        try:
            directory = _Directory(file, order, is_big, at)
        except (struct.error, ValueError):
            break
        directory.children = [
            child
            for place in directory.numbers(_SUB_IFDS)[:64]
            if (child := _below(file, order, is_big, place)) is not None
        ]
        found.append(directory)
        at = directory.next
    if not found:
        raise ValueError("no directory")
    return found


def _below(file: BinaryIO, order: str, is_big: bool, at: int) -> _Directory | None:
    with suppress(struct.error, ValueError):
        child = _Directory(file, order, is_big, at)
        return child if all(child.size) else None
    return None


def _stack(directory: _Directory, file: BinaryIO) -> tuple[int, int, str | None, str]:
    """Planes behind the only page, their distance, its new description, and a note.

    ImageJ writes one directory for stacks above 4 GB, tifffile for truncated series, MetaMorph
    always: the planes follow each other without gaps.

    Raises:
        ImageError: the file holds some of the planes, but not all.
    """
    width, height = directory.size
    samples = directory.number(_SAMPLES, 1)
    bits = sum(directory.numbers(_BITS)) or samples
    is_planar = directory.number(_PLANAR, 1) == 2 and samples > 1
    row = -(-width * bits // 8) if not is_planar else samples * -(-width * bits // samples // 8)
    plane_bytes, description = row * height, None
    planes, source = _promised(directory)
    if source == "tifffile":
        said = json.loads(directory.text(IMAGE_DESCRIPTION))
        if said.pop("truncated", None):
            description = json.dumps(said)
    if planes <= 1 or not plane_bytes:
        return 1, 0, None, ""
    offsets, sizes = directory.numbers(_STRIP_OFFSETS), directory.numbers(_STRIP_BYTES)
    end = file.seek(0, io.SEEK_END)
    is_whole = (
        directory.number(_COMPRESSION, 1) == _NO_COMPRESSION
        and bool(offsets)
        and all(b - a == n for a, b, n in zip(offsets, offsets[1:], sizes, strict=False))
    )
    held = max(1, (end - offsets[0]) // plane_bytes) if is_whole else 1
    if held >= planes:
        return planes, plane_bytes, description, ""
    if held == 1:
        return 1, 0, None, _of_stale_promise(source, planes, 1)
    raise ImageError(
        f"promises {planes} planes ({source}), but ends after {held}; copy it again from its source"
    )


def _promised(directory: _Directory) -> tuple[int, str]:
    """How many planes a file's first directory says it holds, and whose description that is."""
    text = directory.text(IMAGE_DESCRIPTION)
    if text.startswith("ImageJ="):
        match = re.search(r"^images=(\d+)", text, re.MULTILINE)
        return int(match[1]) if match else 1, "ImageJ"
    if text.startswith('{"shape"'):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            pixels = math.prod(directory.size) * directory.number(_SAMPLES, 1)
            return math.prod(json.loads(text)["shape"]) // max(1, pixels), "tifffile"
    if _UIC2 in directory.tags:
        return directory._where[_UIC2][1], "MetaMorph"
    return 1, ""


def _of_stale_promise(source: str, promised: int, held: int) -> str:
    holds = "one" if held == 1 else str(held)
    return f"its {source} description promises {promised} planes; it holds {holds}"


def _link(file: BinaryIO, order: str, is_big: bool, at: int) -> int:
    """Where a directory says which one follows."""
    file.seek(at)
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), file.read(8 if is_big else 2))
    return at + (8 + 20 * int(count) if is_big else 2 + 12 * int(count))


def _append(file: BinaryIO, page: RawPage, order: str, is_big: bool) -> tuple[int, int]:
    """Write a page at the end of a file; return where its directory is, and the link in it."""
    offset, room = order + ("Q" if is_big else "I"), 8 if is_big else 4
    file.seek(0, io.SEEK_END)
    places = []
    if page.order != order:
        page = _swapped(page, order)
    for data in page.segments:
        places.append(file.tell())
        file.write(data)
    tags = dict(page.tags)
    where, sizes = (_TILE_OFFSETS, _TILE_BYTES) if page.is_tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    letter, lengths = offset[1:], [len(data) for data in page.segments]
    tags[where] = (16 if is_big else 4, struct.pack(order + letter * len(places), *places))
    tags[sizes] = (16 if is_big else 4, struct.pack(order + letter * len(lengths), *lengths))
    entries = b""
    for tag in sorted(tags):
        kind, data = tags[tag]
        if kind == 16 and not is_big:  # classic TIFF has no integers of 8 bytes
            values = struct.unpack(f"{order}{len(data) // 8}Q", data)
            kind, data = 4, struct.pack(f"{order}{len(values)}I", *values)
        count = len(data) // (_UNIT_BYTES[kind] * (2 if kind in _RATIONALS else 1))
        if len(data) > room:
            value = struct.pack(offset, file.tell() + file.tell() % 2)
            file.write(b"\0" * (file.tell() % 2) + data)
        else:
            value = data.ljust(room, b"\0")
        entries += struct.pack(order + ("HHQ" if is_big else "HHI"), tag, kind, count) + value
    file.write(b"\0" * (file.tell() % 2))
    at = file.tell()
    file.write(struct.pack(order + ("Q" if is_big else "H"), len(tags)) + entries)
    link = file.tell()
    file.write(b"\0" * room)
    return at, link


def _swapped(page: RawPage, order: str) -> RawPage:
    """A page in the other byte order: tags, and samples of several bytes.

    Raises:
        ImageError: the samples' compression is not known here.
    """
    tags = {tag: (kind, _swap(data, _UNIT_BYTES[kind])) for tag, (kind, data) in page.tags.items()}
    unit, compression = _first_short(page, _BITS) // 8, _first_short(page, _COMPRESSION)
    if unit <= 1:
        return RawPage(order, tags, page.segments, page.is_tiled)
    if compression not in {_NO_COMPRESSION, *_DEFLATE}:
        raise ImageError("has a mask of 16 bits in another byte order; save it uncompressed")
    segments = []
    for data in page.segments:  # differences, too, are swapped as a whole
        if compression == _NO_COMPRESSION:
            segments.append(_swap(data, unit))
        else:
            segments.append(zlib.compress(_swap(zlib.decompress(data), unit)))
    return RawPage(order, tags, tuple(segments), page.is_tiled)


def _first_short(page: RawPage, tag: int) -> int:
    """The first value of a tag of 16-bit integers; 1 without it."""
    data = page.tags[tag][1] if tag in page.tags else struct.pack(page.order + "H", 1)
    return int(struct.unpack_from(page.order + "H", data)[0])


def _swap(data: bytes, unit: int) -> bytes:
    """Values of `unit` bytes in the other byte order."""
    whole = bytearray(data)
    for byte in range(unit):
        whole[byte::unit] = data[unit - 1 - byte :: unit]
    return bytes(whole)
