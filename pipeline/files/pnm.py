"""Portable maps that Pillow does not read, or narrows: colour PFM, 16-bit PPM, and PAM.

Plain PPM (P3, in words) is written as P6.

Netpbm's formats: https://netpbm.sourceforge.net/doc/ (ppm, pam) and Debevec's PFM.
"""

import os
import re
import sys
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .footprint import Footprint, PageSize
from .metadata import Metadata, StorageFormat
from .pixels import DecodedImage
from .ranges import BITS_8
from .scratch import memory

MODES = ["RGB;16", "RGB;F32"]
PAM_MODES = ["L", "LA", "RGB", "RGBA", "I;16", "LA;16", "RGB;16", "RGBA;16"]
_BANDS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_TUPLE_TYPES = {"L": "GRAYSCALE", "LA": "GRAYSCALE_ALPHA", "RGB": "RGB", "RGBA": "RGB_ALPHA"}
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(
    rb"(P3|P6|PF)" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)" + _SPACE + rb"(-?[\d.eE+-]+)\s"
)
_ANY_HEADER = re.compile(
    rb"(P[4-6fF])" + _SPACE + rb"(\d+)" + _SPACE + rb"(\d+)(?:" + _SPACE + rb"(-?[\d.eE+-]+)\s)?"
)
_PAM_HEADER = re.compile(rb"P7\s.*?ENDHDR[^\n]*\n", re.DOTALL)


def is_read_here(start: bytes) -> bool:
    """Whether a file that begins so is one of these."""
    if start.startswith((b"P3", b"P6")):
        header = _HEADER.match(start)
        return header is not None and header[4].isdigit() and 255 < int(header[4]) < 65536
    return re.match(rb"P7\s|PF\s", start) is not None


def end_of_first(start: bytes) -> int | None:
    """Where the first picture of a file ends that begins so; None if its samples are words."""
    if pam := _PAM_HEADER.match(start):
        width, height, channels, peak = _pam_extents(pam[0])
        return pam.end() + width * height * channels * (1 if peak < 256 else 2)
    header = _ANY_HEADER.match(start)
    if header is None:
        return None
    kind, width, height = header[1], int(header[2]), int(header[3])
    if kind == b"P4":
        return header.end(3) + 1 + (width + 7) // 8 * height
    if header[4] is None:
        return None
    channels = 3 if kind in {b"P6", b"PF"} else 1
    size = 4 if kind in {b"Pf", b"PF"} else 1 if float(header[4]) < 256 else 2
    return header.end() + width * height * channels * size


def footprint(file: BinaryIO) -> Footprint:
    """What a file takes: its samples are not compressed, and may be floats or have alpha."""
    size = file.seek(0, os.SEEK_END)
    return Footprint([PageSize(size // 4, 4, 1, has_holes=True)], "PPM")


def read(file: BinaryIO, start: bytes) -> DecodedImage:
    """Read a file.

    Raises:
        ImageError: it is truncated, or of a kind that is not supported.
    """
    pam = _PAM_HEADER.match(start)
    plain = _HEADER.match(start)
    if pam:
        width, height, channels, peak = _pam_extents(pam[0])
        end, is_float, is_swapped = pam.end(), False, sys.byteorder == "little"
    elif plain:
        width, height, channels = int(plain[2]), int(plain[3]), 3
        is_float = plain[1] == b"PF"
        peak = 0 if is_float else int(plain[4])
        end = plain.end()
        is_little = is_float and float(plain[4]) < 0
        is_swapped = is_little != (sys.byteorder == "little")
    else:
        raise ImageError("has no header of a portable map; copy it again from its source")
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62):
        raise Image.DecompressionBombError(f"{width} x {height}")
    if channels not in _BANDS or width < 1 or height < 1:
        raise ImageError(f"has {channels} bands; one to four are supported: split it")
    if not is_float and not 255 <= peak < 65536:
        raise ImageError(
            f"has samples of 0 to {peak}; 255 to 65535 are supported: convert it to PNG or TIFF"
        )
    dtype = torch.float32 if is_float else torch.uint8 if peak == 255 else torch.uint16
    file.seek(end)
    count = width * height * channels
    if plain and plain[1] == b"P3":
        samples = _of_words(file.read(), count, peak).reshape(height, width, channels)
    else:
        data = bytearray(file.read(count * dtype.itemsize))
        if len(data) < count * dtype.itemsize:
            raise ImageError("is truncated; copy it again from its source")
        samples = torch.frombuffer(data, dtype=dtype).reshape(height, width, channels)
        samples = _swapped(samples) if is_swapped and dtype.itemsize > 1 else samples
    if is_float:  # from bottom to top
        samples = samples.flip(0)
    has_alpha = channels in (2, 4)
    alpha = _part(samples, channels - 1, channels) if has_alpha else None
    colours = _part(samples, 0, channels - 1) if has_alpha else samples.contiguous()
    kind = ";F32" if is_float else ";16" if peak > 255 else ""
    mode = {"L;16": "I;16"}.get(_BANDS[channels] + kind, _BANDS[channels] + kind)
    maximum = peak if 255 < peak < 65535 else None
    storage = StorageFormat("PAM" if pam else "PPM", mode, maximum=maximum)
    return DecodedImage(colours, alpha, BITS_8, storage, Metadata())


def write(file: BinaryIO, format_name: str, page: DecodedImage, samples: Tensor) -> None:
    """Write colour of 16 bits or in floats as PPM or PFM, and anything as PAM.

    Args:
        file: open for writing.
        format_name: PPM or PAM.
        page: what was read: its alpha.
        samples: (H, W, C), new.
    """
    parts = [samples] if page.alpha is None else [samples, page.alpha]
    if samples.dtype == torch.uint16:  # torch 2.4 joins no uint16
        stored = torch.cat([part.view(torch.int16) for part in parts], 2).view(torch.uint16)
    else:
        stored = torch.cat(parts, 2)
    height, width, channels = stored.shape
    peak = page.storage.maximum or (255 if stored.dtype == torch.uint8 else 65535)
    if format_name == "PAM":
        file.write(
            f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL {peak}\n"
            f"TUPLTYPE {_TUPLE_TYPES[_BANDS[channels]]}\nENDHDR\n".encode()
        )
    elif stored.is_floating_point():
        stored = stored.flip(0)
        file.write(f"PF\n{width} {height}\n{-1 if sys.byteorder == 'little' else 1}.0\n".encode())
    else:
        file.write(f"P6\n{width} {height}\n{peak}\n".encode())
    if stored.dtype == torch.uint16 and sys.byteorder == "little":
        stored = _swapped(stored)
    stored = stored.contiguous()
    file.write(memory(stored))


def _of_words(text: bytes, count: int, peak: int) -> Tensor:
    """The first samples of a plain map, of 16 bits."""
    words = re.sub(rb"#[^\n]*", b"", text).split()[:count]
    if len(words) < count:
        raise ImageError("is truncated; copy it again from its source")
    try:
        samples = torch.tensor([int(word) for word in words], dtype=torch.int32)
    except (ValueError, RuntimeError) as error:
        raise ImageError("is damaged (not all samples are numbers); copy it again") from error
    if bool(((samples < 0) | (samples > peak)).any()):
        raise ImageError(f"is damaged (samples beyond {peak}); copy it again from its source")
    return samples.to(torch.uint16)


def _pam_extents(header: bytes) -> tuple[int, int, int, int]:
    """Width, height, channels and the largest sample of a PAM file; 0 for what it does not say."""
    fields = dict(line.split(maxsplit=1) for line in _lines(header) if b" " in line)
    width, height, channels, peak = (
        int(fields.get(name, 0)) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
    )
    return width, height, channels, peak


def _lines(header: bytes) -> list[bytes]:
    return [line.strip() for line in header.splitlines() if not line.startswith(b"#")]


def _part(samples: Tensor, start: int, end: int) -> Tensor:
    return samples[:, :, start:end].contiguous()


def _swapped(samples: Tensor) -> Tensor:
    """The samples with their bytes in the other order."""
    size = samples.element_size()
    parts = samples.contiguous().view(torch.uint8).reshape(-1, size).flip(1)
    return parts.reshape(-1).view(samples.dtype).reshape(samples.shape)
