"""The tags of a TIFF file or an EXIF block, each with its own type and bytes.

Pillow gives and takes values, and converts them to the type that it expects of a tag; here a tag is
what the file says. TIFF 6.0 (Adobe, 1992), sections 2 and 8; BigTIFF with offsets of 8 bytes.
"""

import io
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from PIL.TiffImagePlugin import AppendingTiffWriter

from denoise_batch.kernels.errors import ImageError, StorageError

BYTE, ASCII, SHORT, LONG, UNDEFINED = 1, 2, 3, 4, 7  # types
_LONG8, _IFD, _IFD8 = 16, 13, 18
# Type → bytes of a value. 129 is the UTF-8 of EXIF 3.0.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {_LONG8: 8, 17: 8, _IFD8: 8, 129: 1}
_NUMBERS = {3: "H", 4: "I", 5: "II", 10: "ii", 11: "f", 12: "d"}
_RATIONALS = {5, 10}  # two words of 4 bytes
_ASCII, _SAMPLE_TYPES = 2, {6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
_POINTERS = {34665, 34853, 40965, 400}  # EXIF, GPS, interoperability, global parameters
_SUB_IFDS = 330  # pictures, never copied
_DEPTH = 3  # of directories in directories
_LEVELS = {280, 281, 340, 341}  # tags whose values libtiff checks, and fails
_RESOLUTION = {282: 5, 283: 5, 296: 3}  # tag → the type, of one value, that Pillow computes with
_COMPRESSION = 259
_CLASSIC_LIMIT, _NEARLY = 1 << 32, 1 << 24
_MOST_IN_MEMORY = 1 << 28  # of a copy; a larger one is a temporary file
_SEGMENTS = ((324, 325), (273, 279))  # tags: where tiles and strips are, and their sizes


@dataclass(frozen=True)
class Tag:
    """One tag.

    Attributes:
        code: its number.
        type: the type of its values, 1 to 18, or 129.
        data: the values, little-endian.
        directories: what the tag points to, if it points to directories.
    """

    code: int
    type: int
    data: bytes
    directories: tuple[tuple["Tag", ...], ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """The values of an unsigned integer type; () for other types."""
        letter = {1: "B", 3: "H", 4: "I", _IFD: "I", _LONG8: "Q", _IFD8: "Q"}.get(self.type)
        return (
            struct.unpack(f"<{len(self.data) // _SIZES[self.type]}{letter}", self.data)
            if letter
            else ()
        )


@dataclass(frozen=True)
class Directory:
    """The tags of one page, by code.

    Attributes:
        tags: what could be read.
        damaged: codes of the tags that could not.
        offset: where the directory begins in the file.
    """

    tags: dict[int, Tag]
    damaged: tuple[int, ...] = ()
    offset: int = 0

    def value(self, code: int, default: int = 0) -> int:
        """The first value of an integer tag."""
        return self.values(code, (default,))[0]

    def rational(self, code: int) -> float:
        """The first value of a tag of fractions or numbers; 0 without one."""
        tag = self.tags.get(code)
        if tag is None or tag.type not in _NUMBERS or not tag.data:
            return 0.0
        first, second = (*struct.unpack_from("<" + _NUMBERS[tag.type], tag.data), 1)[:2]
        return first / second if second else 0.0

    def said(self, code: int) -> str | tuple[float, ...] | None:
        """A tag's text, or its numbers of any type but fractions; None without them."""
        tag = self.tags.get(code)
        if tag is None or not tag.data:
            return None
        if tag.type == _ASCII:
            return tag.data.rstrip(b"\0").decode("utf-8", "replace")
        if letter := _SAMPLE_TYPES.get(tag.type):
            return struct.unpack(f"<{len(tag.data) // _SIZES[tag.type]}{letter}", tag.data)
        return tag.values or None

    def values(self, code: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of an integer tag."""
        tag = self.tags.get(code)
        return (tag.values if tag else ()) or default


def short(code: int, *values: int) -> Tag:
    """A tag of 16-bit integers."""
    return Tag(code, SHORT, struct.pack(f"<{len(values)}H", *values))


def long(code: int, *values: int) -> Tag:
    """A tag of 32-bit integers."""
    return Tag(code, LONG, struct.pack(f"<{len(values)}I", *values))


def rational(code: int, value: float) -> Tag:
    """A tag of one non-negative fraction."""
    denominator = 1 if value == int(value) else 10000
    return Tag(code, 5, struct.pack("<II", round(value * denominator), denominator))


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is TIFF or BigTIFF."""
    return head[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def read_directories(file: BinaryIO) -> Iterator[Directory]:
    """The directories of a TIFF file, page by page; a damaged chain ends early.

    Raises:
        ImageError: the file is not TIFF.
    """
    layout = _Layout.of(file)
    pointer, seen = layout.first, set[int]()
    while True:
        offset = layout.number(_at(file, pointer, layout.word))
        if not offset or offset in seen:
            return
        seen.add(offset)
        directory, pointer = _read(file, layout, offset, 0)
        yield directory
        if not pointer:
            return


def read_block(block: bytes | None) -> Directory | None:
    """The tags of an EXIF block, with or without its lead; None if it is damaged."""
    try:
        return next(read_directories(io.BytesIO((block or b"").removeprefix(b"Exif\0\0"))), None)
    except ImageError:
        return None


def write_block(tags: Sequence[Tag]) -> bytes:
    """An EXIF block, with its lead, that holds these tags."""
    layout = _Layout("<", is_big=False)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + layout.directory(tags, 8)


def with_text(block: bytes | None, code: int, text: str) -> bytes:
    """An EXIF block with a text in its first directory, instead of the one with this code.

    All other data stay where they are, since makers' notes point into them: the directory moves to
    the block's end.

    Raises:
        struct.error: the block is damaged.
    """
    data = text.encode() + b"\0"
    if not block:
        return write_block([Tag(code, ASCII, data)])
    start = 6 if block.startswith(b"Exif\0\0") else 0
    order = "<" if block[start : start + 2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", block, start + 4)
    (count,) = struct.unpack_from(f"{order}H", block, start + at)
    first = start + at + 2
    entries = [struct.unpack_from("12s", block, first + 12 * entry)[0] for entry in range(count)]
    (link,) = struct.unpack_from("4s", block, first + 12 * count)
    result = bytearray(block.ljust(len(block) + (len(block) - start) % 2, b"\0"))
    new = struct.pack(f"{order}HHII", code, ASCII, len(data), len(result) - start)
    result += data.ljust(len(data) + len(data) % 2, b"\0")
    codes = {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in entries} | {code: new}
    struct.pack_into(f"{order}I", result, start + 4, len(result) - start)
    result += struct.pack(f"{order}H", len(codes))
    return bytes(result + b"".join(codes[key] for key in sorted(codes)) + link)


class PageChain(AppendingTiffWriter):
    """Pillow's writer of several pages, which walks along all of them for each; this one does not.

    Args:
        file: open for reading and writing, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._link: int | None = None
        super().__init__(file)

    def end_page(self) -> int | None:
        """Join a page that was saved; return where the file points to it, None for the first."""
        self._link = self.whereToWriteNewIFDOffset
        self.newFrame()
        return self._link

    def skipIFDs(self) -> None:  # noqa: N802
        """Go to the end of the chain, from the last page but one."""
        if self._link is not None:
            self.f.seek(self._link)
        super().skipIFDs()


class BigTiffWriter:
    """Joins pages to a BigTIFF file, which may exceed 4 GB.

    Args:
        file: open for writing, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._layout = file, _Layout("<", is_big=True)
        self._pointer = self._layout.first
        file.write(b"II+\0" + struct.pack("<HHQ", self._layout.word, 0, 0))

    def add(self, page: BinaryIO) -> None:
        """Add the only page of a TIFF file."""
        tags = dict(next(read_directories(page)).tags)
        place, size = next(pair for pair in _SEGMENTS if pair[0] in tags)
        places = []
        for offset, count in zip(tags[place].values, tags[size].values, strict=True):
            places.append(self._file.seek(0, io.SEEK_END))
            self._file.write(_at(page, offset, count))
        tags[place] = Tag(place, _LONG8, struct.pack(f"<{len(places)}Q", *places))
        self._pointer = _put_directory(self._file, self._layout, self._pointer, [*tags.values()])


def exceeds_classic(file: BinaryIO) -> bool:
    """Whether a file has about the size that only BigTIFF can have."""
    return file.seek(0, io.SEEK_END) >= _CLASSIC_LIMIT - _NEARLY


def replace_last_directory(
    file: BinaryIO, tags_of: Callable[[Directory], Sequence[Tag]], link: int | None = None
) -> None:
    """Give the last page of a TIFF file other tags, behind its samples, which stay where they are.

    Page by page, since ImageJ and tifffile take a stack whose directories are all behind its
    samples for one without gaps.

    Args:
        file: open for reading and writing.
        tags_of: the page's new tags, also those that say where its samples are, from its old ones.
        link: where the file points to this page; None: it is sought from the first one.

    Raises:
        ImageError: the file would exceed 4 GB, which only BigTIFF holds.
    """
    layout = _Layout.of(file)
    pointer, offset = layout.first if link is None else link, 0
    while at := layout.number(_at(file, pointer, layout.word)):
        offset, last = at, pointer
        count = layout.number(_at(file, at, layout.head))
        pointer = at + layout.head + count * layout.entry
    _put_directory(file, layout, last, tags_of(_read(file, layout, offset, 0)[0]))


def _put_directory(file: BinaryIO, layout: "_Layout", pointer: int, tags: Sequence[Tag]) -> int:
    """Write a directory at the end of a file, and its position at `pointer`; the next pointer."""
    end = file.seek(0, io.SEEK_END)
    offset = end + -end % 8
    body = layout.directory(tags, offset)
    if not layout.is_big and offset + len(body) >= _CLASSIC_LIMIT:
        raise ImageError("exceeds 4 GB, the limit of TIFF; split it or choose another format")
    file.write(bytes(offset - end) + body)
    file.seek(pointer)
    file.write(layout.packed(offset))
    file.flush()
    return offset + layout.head + len(tags) * layout.entry


def without_odd_tags(file: BinaryIO, start: bytes) -> BinaryIO:
    """The file, or a copy without tags that would stop Pillow or libtiff.

    Args:
        file: at any position; it is moved to the beginning.
        start: what it begins with.

    Returns:
        To be closed if it is not the file.
    """
    if not is_tiff(start):
        return file
    pages = list(read_directories(file))
    file.seek(0)
    odd = {code for page in pages for code, tag in page.tags.items() if _is_odd(tag, page)}
    if not odd:
        return file
    is_small = file.seek(0, io.SEEK_END) <= _MOST_IN_MEMORY
    file.seek(0)
    try:
        copy: BinaryIO = io.BytesIO() if is_small else tempfile.TemporaryFile()  # noqa: SIM115
        shutil.copyfileobj(file, copy, 1 << 20)
    except OSError as error:
        raise StorageError(
            f"has tags that need a copy of it in {tempfile.gettempdir()}: {error.strerror}; make "
            "room there, or set TMPDIR"
        ) from error
    layout = _Layout.of(copy)
    pointer = layout.first
    for page in pages:
        kept = [tag for code, tag in page.tags.items() if code not in odd]
        pointer = _put_directory(copy, layout, pointer, kept)
    copy.seek(0)
    return copy


def _is_odd(tag: Tag, page: Directory) -> bool:
    """Whether a tag beside the samples would stop libtiff, or its type Pillow."""
    if tag.code in _LEVELS:
        return page.value(_COMPRESSION, 1) != 1
    kind = _RESOLUTION.get(tag.code)
    return kind is not None and (tag.type, len(tag.data)) != (kind, _SIZES[kind])


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


@dataclass(frozen=True)
class _Layout:
    """Byte order and widths of a classic or a big TIFF file."""

    order: str
    is_big: bool

    @classmethod
    def of(cls, file: BinaryIO) -> "_Layout":
        head = _at(file, 0, 4)
        if not is_tiff(head):
            raise ImageError("is not TIFF")
        return cls("<" if head[:2] == b"II" else ">", b"+" in head)

    @property
    def first(self) -> int:
        """Where the file points to its first directory."""
        return 8 if self.is_big else 4

    @property
    def word(self) -> int:
        """Bytes of an offset."""
        return 8 if self.is_big else 4

    @property
    def head(self) -> int:
        """Bytes of the number of tags."""
        return 8 if self.is_big else 2

    @property
    def entry(self) -> int:
        """Bytes of a tag."""
        return 20 if self.is_big else 12

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def packed(self, offset: int) -> bytes:
        return struct.pack(self.order + ("Q" if self.is_big else "I"), offset)

    def swapped(self, data: bytes, kind: int) -> bytes:
        """Little-endian values in the file's order, or the other way round."""
        unit = 4 if kind in _RATIONALS else _SIZES[kind]
        if self.order == "<" or unit == 1:
            return data
        whole = bytearray(len(data))
        for byte in range(unit):
            whole[byte::unit] = data[unit - 1 - byte :: unit]
        return bytes(whole)

    def directory(self, tags: Sequence[Tag], offset: int) -> bytes:
        """A directory that begins at this offset, with all that its tags point to."""
        at = offset + self.head + len(tags) * self.entry + self.word
        entries, rest = [], b""
        for tag in sorted(tags, key=lambda tag: tag.code):
            if tag.directories:
                offsets = []
                for directory in tag.directories:
                    offsets.append(at + len(rest))
                    rest += self.directory(directory, offsets[-1])
                kind = (
                    (_IFD8 if tag.type in {_IFD, _IFD8} else _LONG8)
                    if self.is_big
                    else (_IFD if tag.type in {_IFD, _IFD8} else LONG)
                )
                size = _SIZES[kind]
                tag = replace(
                    tag, type=kind, data=b"".join(o.to_bytes(size, "little") for o in offsets)
                )
            data = self.swapped(tag.data, tag.type)
            count = struct.pack(
                self.order + ("Q" if self.is_big else "I"), len(data) // _SIZES[tag.type]
            )
            value = data.ljust(self.word, b"\0")
            if len(data) > self.word:
                value = self.packed(at + len(rest))
                rest += data + bytes(-len(data) % 8)
            entries.append(struct.pack(self.order + "HH", tag.code, tag.type) + count + value)
        head = struct.pack(self.order + ("Q" if self.is_big else "H"), len(entries))
        return head + b"".join(entries) + bytes(self.word) + rest


def _read(file: BinaryIO, layout: _Layout, offset: int, depth: int) -> tuple[Directory, int]:
    """A directory, and where it points to the next; 0 if it ends before."""
    end = file.seek(0, io.SEEK_END)
    if offset >= end:
        return Directory({}, (0,), offset), 0
    count = layout.number(_at(file, offset, layout.head))
    entries = file.read(count * layout.entry) if count * layout.entry <= end else b""
    tags: dict[int, Tag] = {}
    damaged = []
    budget = end  # tags may overlap, but not hold more than the file
    for at in range(0, len(entries) - layout.entry + 1, layout.entry):
        code, kind = struct.unpack_from(layout.order + "HH", entries, at)
        number = layout.number(entries[at + 4 : at + 4 + layout.word])
        value = entries[at + 4 + layout.word : at + layout.entry]
        size = number * _SIZES.get(kind, 0)
        if size > layout.word:
            start = layout.number(value)
            budget -= size
            value = _at(file, start, size) if start + size <= end and budget >= 0 else b""
        if code in tags or not number:
            continue
        if not size or len(value) < size:
            damaged.append(code)
            continue
        tag = Tag(code, kind, layout.swapped(value[:size], kind))
        is_pointer = code in _POINTERS or kind in {_IFD, _IFD8}
        if is_pointer and code != _SUB_IFDS and depth < _DEPTH:
            inner = [_read(file, layout, start, depth + 1)[0] for start in tag.values[:8]]
            is_bad = [bool(directory.damaged) or not directory.tags for directory in inner]
            if code in _POINTERS or not any(is_bad):  # else of another use: kept as it is
                damaged += [code] * sum(is_bad)
                found = tuple(tuple(d.tags.values()) for d in inner if d.tags)
                tag = replace(tag, directories=found)
                if not found:
                    continue
        tags[code] = tag
    is_whole = len(entries) == count * layout.entry and count
    pointer = offset + layout.head + count * layout.entry if is_whole else 0
    return Directory(tags, tuple(damaged) if count else (0,), offset), pointer
