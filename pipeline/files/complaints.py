"""What libtiff and libjpeg complain about while a file is read: collected, instead of printed.

libtiff prints to the process's standard error, whatever Python does with its own, and Pillow goes
on with the pixels that it got. Its messages are caught here, for the thread that reads the file.
libjpeg's are lost in Pillow; libtiff passes them on if it reads the picture as part of a TIFF file.
"""

import ctypes
import io
import logging
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from threading import Lock, local
from typing import Any

from PIL import Image

# What libtiff says of tags, which decode no pixel.
_OF_TAGS = ("TIFFReadDirectory", "TIFFFetch", "TIFFReadCustomDirectory", "_TIFFVSetField")
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_HANDLER_R = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
)
_READ = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_SEEK = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_SIZE = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
_LENGTH = 500
_OF_JPEG_DATA = ("Corrupt JPEG data", "Premature end of JPEG")  # libjpeg also warns of side data
_PHOTOMETRICS = {1: 1, 3: 6, 4: 5}  # bands of a JPEG file → TIFF's interpretation
# libtiff's JPEGCOLORMODE_RGB, as a field and its value.
_AS_RGB = ctypes.c_uint32(65538), ctypes.c_int(1)

MOST_EXTRANEOUS = 16  # bytes behind the pixels that some encoders write; damage leaves more

_thread = local()
_printing = Lock()


@contextmanager
def collected_complaints() -> Iterator[list[str]]:
    """Collect what libtiff, called by this thread, complains about, except on tags."""
    _install()
    complaints: list[str] = []
    outer, _thread.complaints = getattr(_thread, "complaints", None), complaints
    try:
        yield complaints
    finally:
        _thread.complaints = outer


@contextmanager
def printed_complaints(*marks: str) -> Iterator[list[str]]:
    """Collect the lines that a library prints, by one of these marks; others are passed on.

    Standard output and error belong to the process: one thread at a time.
    """
    complaints: list[str] = []
    output = io.StringIO()
    with _printing, tempfile.TemporaryFile() as errors:
        saved = os.dup(2)
        os.dup2(errors.fileno(), 2)
        try:
            with redirect_stdout(output):
                yield complaints
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            errors.seek(0)
            printed = [(sys.stdout, output.getvalue())]
            printed.append((sys.stderr, errors.read().decode("utf-8", "replace")))
            for stream, text in printed:
                for line in text.splitlines(keepends=True):
                    if any(mark in line for mark in marks):
                        complaints.append(line.strip())
                    else:
                        stream.write(line)


def page_complaints(path: str, offset: int) -> list[str]:
    """What libtiff warns of in a page; [] where its library cannot be reached.

    Pillow switches warnings off for good, and Group 3 and JPEG say nothing else of damage. So the
    page is decoded once more, with a handler of its own.

    Args:
        path: the TIFF file.
        offset: of the page's directory.
    """

    def opened(library: ctypes.CDLL, options: int) -> Any:
        tiff = library.TIFFOpenExt(os.fsencode(path), b"r", options)
        if tiff and library.TIFFSetSubDirectory(tiff, offset):
            return tiff
        return None

    return [text for text in _decoded(opened)[0] if not _is_slight(text)]


def jpeg_complaints(
    data: Any,
    size: tuple[int, int],
    sampling: Sequence[tuple[int, int]],
    target: memoryview | None = None,
) -> tuple[list[str], bool]:
    """What libjpeg warns of in a JPEG file's pixels; nothing where its library cannot be reached.

    Args:
        data: the file, of which bytes can be taken.
        size: (width, height).
        sampling: of each component, across and down.
        target: where its pixels are to be, gray or converted from YCbCr to RGB.

    Returns:
        the warnings, and whether the target holds the pixels, as Pillow would have them.
    """
    if len(sampling) not in _PHOTOMETRICS:
        return [], False
    head = _tiff_head(len(data), size, sampling)
    total, at = len(head) + len(data), 0

    def read(_: int, target: int, count: int) -> int:
        nonlocal at
        part = head[at : at + count]
        start = max(0, at - len(head))
        part += bytes(data[start : start + count - len(part)])
        ctypes.memmove(target, part, len(part))
        at += len(part)
        return len(part)

    def seek(_: int, offset: int, whence: int) -> int:
        nonlocal at
        at = (offset + (0, at, total)[whence]) % (1 << 64)  # an unsigned number
        return at

    # libtiff calls these until the file is closed.
    calls = [
        _READ(read), _READ(lambda *_: 0), _SEEK(seek), _CLOSE(lambda _: 0), _SIZE(lambda _: total)
    ]  # fmt: skip

    def opened(library: ctypes.CDLL, options: int) -> Any:
        return library.TIFFClientOpenExt(b"", b"r", None, *calls, None, None, options)

    found, is_whole = _decoded(opened, target)
    return [text for text in found if text.startswith(_OF_JPEG_DATA)], is_whole and not found


def extraneous_bytes(complaint: str) -> int | None:
    """How many bytes a complaint of libjpeg finds behind the pixels; None of other complaints."""
    found = re.search(r"(\d+) extraneous bytes before marker", complaint)
    return int(found[1]) if found else None


def _is_slight(complaint: str) -> bool:
    """Whether a complaint is of a JPEG's coding, or of a few bytes behind its pixels."""
    if "JPEG" not in complaint:
        return False
    return not complaint.startswith(_OF_JPEG_DATA) or (
        (extraneous_bytes(complaint) or MOST_EXTRANEOUS + 1) <= MOST_EXTRANEOUS
    )


def _tiff_head(count: int, size: tuple[int, int], sampling: Sequence[tuple[int, int]]) -> bytes:
    """A TIFF file whose only strip is a JPEG file of `count` bytes, up to this."""
    (width, height), bands = size, len(sampling)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, 8), (259, 3, 1, 7),
        (262, 3, 1, _PHOTOMETRICS[bands]), (273, 4, 1, 0), (277, 3, 1, bands), (278, 4, 1, height),
        (279, 4, 1, count),
    ]  # fmt: skip
    if bands == 3:
        across, down = sampling[0]
        tags.append((530, 3, 2, across | down << 16))
    bits_at = 8 + 2 + 12 * len(tags) + 4
    tags[2] = (258, 3, bands, bits_at if bands > 1 else 8)
    tags[5] = (273, 4, 1, bits_at + 8)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + bytes(4) + struct.pack("<4H", 8, 8, 8, 8)


def _decoded(
    opened: Callable[[ctypes.CDLL, int], Any], target: memoryview | None = None
) -> tuple[list[str], bool]:
    """What libtiff and libjpeg say, except on tags, while a page is decoded.

    Args:
        opened: opens a TIFF file at the page, with libtiff's options; None if it cannot.
        target: for the pixels of a page of one part, which JPEG is converted to RGB for.

    Returns:
        the messages, and whether the target was filled.
    """
    found: list[str] = []
    library = _install()

    def on_message(_: int, __: int, module: bytes, pattern: bytes, arguments: int) -> int:
        if not _is_of_tags(module):
            found.append(_text(pattern, arguments))
        return 1

    if library is None:
        return found, False
    handler, options = _HANDLER_R(on_message), library.TIFFOpenOptionsAlloc()
    library.TIFFOpenOptionsSetErrorHandlerExtR(options, handler, None)
    library.TIFFOpenOptionsSetWarningHandlerExtR(options, handler, None)
    tiff = opened(library, options)
    library.TIFFOpenOptionsFree(options)
    if not tiff:
        return found, False
    if target is not None:
        library.TIFFSetField(tiff, *_AS_RGB)
    kind, parts = ("Tile", "Tiles") if library.TIFFIsTiled(tiff) else ("Strip", "Strips")
    size = getattr(library, f"TIFF{kind}Size")(tiff)
    is_asked = target is not None and 0 < len(target) == size
    part = (ctypes.c_char * max(1, size)).from_buffer(target if is_asked else bytearray(size or 1))
    read = [
        getattr(library, f"TIFFReadEncoded{kind}")(tiff, number, part, -1)
        for number in range(getattr(library, f"TIFFNumberOf{parts}")(tiff))
    ]
    library.TIFFClose(tiff)
    return found, is_asked and read == [size]


@cache
def _install() -> ctypes.CDLL | None:
    """Once: catch libtiff's errors; the library, if it can be reached."""
    # tifffile raises what is wrong with samples, and logs what is odd in tags; Python would print
    # that if nobody listened.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        # The core of Pillow; its names include those of what it is linked with.
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]  # untyped
        library.TIFFSetErrorHandler.argtypes = [_HANDLER]
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(_handler)
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        for name, result, arguments in (
            ("OpenOptionsAlloc", pointer, []),
            ("OpenOptionsFree", None, [pointer]),
            ("OpenOptionsSetErrorHandlerExtR", None, [pointer, _HANDLER_R, pointer]),
            ("OpenOptionsSetWarningHandlerExtR", None, [pointer, _HANDLER_R, pointer]),
            ("OpenExt", pointer, [ctypes.c_char_p, ctypes.c_char_p, pointer]),
            ("Close", None, [pointer]),
            ("SetSubDirectory", ctypes.c_int, [pointer, ctypes.c_uint64]),
            (
                "ClientOpenExt",
                pointer,
                [
                    ctypes.c_char_p,
                    ctypes.c_char_p,
                    pointer,
                    _READ,
                    _READ,
                    _SEEK,
                    _CLOSE,
                    _SIZE,
                    pointer,
                    pointer,
                    pointer,
                ],
            ),
            ("SetField", ctypes.c_int, [pointer, number]),  # and a value, by the field
            ("IsTiled", ctypes.c_int, [pointer]),
            ("StripSize", ctypes.c_int64, [pointer]),
            ("TileSize", ctypes.c_int64, [pointer]),
            ("NumberOfStrips", number, [pointer]),
            ("NumberOfTiles", number, [pointer]),
            ("ReadEncodedStrip", ctypes.c_int64, [pointer, number, pointer, ctypes.c_int64]),
            ("ReadEncodedTile", ctypes.c_int64, [pointer, number, pointer, ctypes.c_int64]),
        ):
            function = getattr(library, f"TIFF{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # linked statically, without names, or an old libtiff
        return None
    return library


def _is_of_tags(module: bytes | None) -> bool:
    return (module or b"").decode("utf-8", "replace").startswith(_OF_TAGS)


def _text(pattern: bytes, arguments: int) -> str:
    """A message from printf's format and a va_list, which is a pointer on all platforms."""
    text = ctypes.create_string_buffer(_LENGTH)
    ctypes.CDLL(None).vsnprintf(text, ctypes.c_size_t(_LENGTH), pattern, ctypes.c_void_p(arguments))
    return text.value.decode("utf-8", "replace")


def _on_error(module: bytes | None, pattern: bytes, arguments: int) -> None:
    """libtiff's error handler for the process."""
    complaints = getattr(_thread, "complaints", None)
    if complaints is not None and not _is_of_tags(module):
        complaints.append(_text(pattern, arguments))


_handler = _HANDLER(_on_error)  # lives as long as libtiff may call it
