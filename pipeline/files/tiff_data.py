"""Whether the compressed samples of a TIFF page are whole, as far as they can tell.

libtiff stops as soon as it has the pixels of a strip: it reads no checksum behind them, and misses
that a damaged strip holds more. A changed byte of PackBits, or of samples that are not compressed,
cannot be told; one of Group 3 and 4, of LZW and of JPEG mostly.
"""

import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from denoise_batch.kernels.errors import ImageError

from .complaints import page_complaints
from .tiff_tags import Directory

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_NONE, _LZW, _DEFLATE, _YCBCR, _SEPARATE = 1, 5, {8, 32946}, 6, 2
_COMPLAINED_OF = {2, 3, 4, 7}  # fax and JPEG
_READ_BYTES = 1 << 16
_MOST_BYTES = 1 << 28  # of a strip that is decoded as a whole, beside the picture


def check_segments(file: BinaryIO, directory: Directory) -> None:
    """Check the strips or tiles of a page.

    Raises:
        ImageError: one lies beyond the end of the file, or is damaged.
    """
    offsets = directory.values(_TILE_OFFSETS) or directory.values(_STRIP_OFFSETS)
    sizes = directory.values(_TILE_BYTES) or directory.values(_STRIP_BYTES)
    compression = directory.value(_COMPRESSION, _NONE)
    if compression in _COMPLAINED_OF and isinstance(
        name := getattr(file, "name", None), str | Path
    ):
        for complaint in page_complaints(str(name), directory.offset):
            raise ImageError(f"is damaged ({complaint}); copy it again from its source")
    end = file.seek(0, 2)
    is_plain = directory.value(_FILL_ORDER, 1) == 1
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=False)):
        if offset + size > end and compression != _NONE:
            raise ImageError("is truncated (samples beyond its end); copy it again from its source")
        if not size or not is_plain:  # no data: GDAL's sparse files
            continue
        file.seek(offset)
        if compression in _DEFLATE:
            _check_deflate(file, size, _segment_bytes(directory, number), number)
        elif compression == _LZW:
            expected = _segment_bytes(directory, number)
            if max(expected, default=0) <= _MOST_BYTES:
                _check_lzw(file.read(size), expected, number)


def _check_deflate(file: BinaryIO, size: int, expected: set[int], number: int) -> None:
    inflator, found = zlib.decompressobj(), 0
    while size > 0 and not inflator.eof:
        data = file.read(min(size, _READ_BYTES))
        size -= len(data)
        try:
            found += len(inflator.decompress(data))
        except zlib.error as error:
            raise _damaged(number, str(error)) from error
    if not inflator.eof and expected and found > max(expected):  # no checksum came
        raise _damaged(number, f"{found} bytes instead of {max(expected)}")


def _check_lzw(data: bytes, expected: set[int], number: int) -> None:
    """Compare what a strip decodes to with what it should; needs imagecodecs, else nothing."""
    with suppress(ImportError):
        import imagecodecs

        try:
            found = len(imagecodecs.lzw_decode(data))
        except Exception as error:  # ImcdError, whose name is private
            raise _damaged(number, str(error)) from error
        if expected and found not in expected:
            raise _damaged(number, f"{found} bytes instead of {max(expected)}")


def _segment_bytes(directory: Directory, number: int) -> set[int]:
    """How many bytes a strip or tile may decode to; the last strip may be padded."""
    if directory.value(_PHOTOMETRIC) == _YCBCR:  # subsampled
        return set()
    width, height = directory.value(_WIDTH), directory.value(_HEIGHT)
    is_separate = directory.value(_PLANAR, 1) == _SEPARATE
    samples = 1 if is_separate else directory.value(_SAMPLES, 1)
    bits = directory.value(_BITS, 1) * samples
    if tile_width := directory.value(_TILE_WIDTH):
        return {(tile_width * bits + 7) // 8 * directory.value(_TILE_HEIGHT)}
    rows = min(directory.value(_ROWS, height), height) or height
    strips = -(-height // rows)
    last = min(rows, height - number % strips * rows)
    return {(width * bits + 7) // 8 * count for count in (rows, last)}


def _damaged(number: int, why: str) -> ImageError:
    return ImageError(
        f"is damaged (strip or tile {number + 1}: {why}); copy it again from its source"
    )
