"""What libtiff complains about while a file is read: collected, instead of printed.

It prints to the process's standard error, whatever Python does with its own, and Pillow goes on
with the pixels that it got. Its messages are caught here, for the thread that reads the file.
"""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import local

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
_LENGTH = 500

_thread = local()


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


def fax_complaints(path: str, offset: int) -> list[str]:
    """What libtiff warns of in a page of Group 3 or 4; [] where its library cannot be reached.

    Pillow switches warnings off for good, and Group 3 says nothing else of a line of a wrong
    length. So the page is decoded once more, with a handler of its own.

    Args:
        path: the TIFF file.
        offset: of the page's directory.
    """
    found: list[str] = []
    library = _install()

    def on_message(_: int, __: int, module: bytes, pattern: bytes, arguments: int) -> int:
        if not _is_of_tags(module):
            found.append(_text(pattern, arguments))
        return 1

    if library is None:
        return found
    handler, options = _HANDLER_R(on_message), library.TIFFOpenOptionsAlloc()
    library.TIFFOpenOptionsSetErrorHandlerExtR(options, handler, None)
    library.TIFFOpenOptionsSetWarningHandlerExtR(options, handler, None)
    tiff = library.TIFFOpenExt(os.fsencode(path), b"r", options)
    library.TIFFOpenOptionsFree(options)
    if tiff:
        if library.TIFFSetSubDirectory(tiff, offset) and not library.TIFFIsTiled(tiff):
            strip = ctypes.create_string_buffer(max(1, library.TIFFStripSize(tiff)))
            for number in range(library.TIFFNumberOfStrips(tiff)):
                library.TIFFReadEncodedStrip(tiff, number, strip, -1)
        library.TIFFClose(tiff)
    return found


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
            ("IsTiled", ctypes.c_int, [pointer]),
            ("StripSize", ctypes.c_int64, [pointer]),
            ("NumberOfStrips", number, [pointer]),
            ("ReadEncodedStrip", ctypes.c_int64, [pointer, number, pointer, ctypes.c_int64]),
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
