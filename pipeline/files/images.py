"""Image files: read into tensors, and written back as they were stored.

`read_pages` gives the decoded pages of a file, with alpha, metadata, mode and depth kept aside;
`write_pages` stores new samples in the same way, completely or not at all. The output's suffix
names its format (`output_format`). `output_suffix` gives the suffix of a source's output: its own,
or `.png` for formats that cannot be written or cannot hold a denoised photograph (GIF, QOI, PCX,
SGI, Sun raster, and unknown suffixes).
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError

from . import sixteen_bit
from .atomic import atomic_file
from .metadata import (
    ORIENTATION,
    StorageFormat,
    holds_orientation,
    lost_metadata,
    read_metadata,
    save_options,
    upright,
)
from .pixels import (
    EXTRA_SAMPLES_NOTE,
    DecodedImage,
    decode,
    encode,
    pnm_bytes,
    prepare,
    rescaled,
    set_12_bits,
    target_mode,
)
from .ranges import BITS_8, Declared
from .sniff import FileHead, pnm_maximum, refuse_unsupported, significant_bits, sniff

# Pillow's name of a format → the suffixes it is written for, and the modes that it holds.
_FORMATS = {
    "PNG": (".png", "1 L LA RGB RGBA I;16 RGB;16 RGBA;16"),
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB"),
    "WEBP": (".webp", "RGB RGBA"),
    "TIFF": (".tif .tiff", "1 L LA RGB RGBA I;12 I;16 F RGB;16 RGBA;16"),
    "BMP": (".bmp .dib", "1 L RGB"),
    "PPM": (".ppm .pgm .pbm .pnm .pfm", "1 L RGB I;12 I;16 F"),
    "TGA": (".tga", "L LA RGB RGBA"),
    "JPEG2000": (".jp2 .j2k .j2c .jpc .jpf .jpx", "L LA RGB RGBA I;16"),
    "AVIF": (".avif", "L RGB RGBA"),
}
_FORMAT_OF = {suffix: name for name, (row, _) in _FORMATS.items() for suffix in row.split()}
_MODES_OF = {name: modes.split() for name, (_, modes) in _FORMATS.items()}

LOSSY_FORMATS = frozenset({"JPEG", "WEBP", "AVIF"})
WRITABLE_SUFFIXES: frozenset[str] = frozenset(_FORMAT_OF)
READABLE_SUFFIXES: frozenset[str] = WRITABLE_SUFFIXES | {".gif", ".qoi", ".pcx", ".sgi", ".ras"}

# Never opened, whatever a file is called: EPS runs Ghostscript, WMF and EMF the system's renderer.
_REFUSED_FORMATS = {"EPS", "WMF", "EMF"}
_JPEG_2000_CODESTREAMS = {".j2k", ".j2c", ".jpc"}
_SAMPLES_PER_PIXEL, _PHOTOMETRIC = 277, 262  # TIFF tags
_WHITE_IS_ZERO = 0

# Size of Pillow's memory blocks: so large that glibc maps each block of a large image and unmaps
# it again. Blocks of 16 MiB, the default, stay in the heap of the thread that decoded: 400 MB a
# thread for 100 megapixels.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]  # documented, but untyped


def read_image(path: Path) -> DecodedImage:
    """Read a file of one page; orientation is kept as metadata, pixels are not rotated.

    Raises:
        ImageError: as for `read_pages`, or the file has several pages.
    """
    pages = read_pages(path)
    if len(pages) > 1:
        raise ImageError(f"{path}: has {len(pages)} pages; split it into files of one page")
    return pages[0]


def read_pages(
    path: Path,
    on_size: Callable[[int], None] = lambda sample_bytes: None,
    value_range: tuple[float, float] | None = None,
) -> tuple[DecodedImage, ...]:
    """Read all pages of a file, prepared for a network; pixels are not rotated.

    Args:
        path: the file.
        on_size: called, before anything is decoded, with the bytes that the samples of all pages
            take.
        value_range: black and white of samples above 8 bits; None: as declared, or estimated.

    Raises:
        ImageError: the file is missing, damaged, truncated, too large, or of a kind that could
            not be written back without loss; one line with the file's name.
    """
    with as_image_error(path, "read"), suppress_warnings():
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise ImageError(f"is {kind}; give an image file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageError("is empty (0 bytes); copy it again from its source")
            file.seek(0)
            with Image.open(file, formats=_known_formats()) as image:
                head = sniff(image, file)
                on_size(head.sample_bytes)
                if head.is_16_bit_colour:
                    pages = sixteen_bit.read(image, file, head.pages)
                else:
                    numbers = range(head.pages)
                    pages = tuple(_read_page(image, file, head, number) for number in numbers)
                return prepare(pages, value_range)


def _read_page(image: Image.Image, file: BinaryIO, head: FileHead, page: int) -> DecodedImage:
    if head.pages > 1:
        image.seek(page)
    bits = head.bits[page]
    refuse_unsupported(image, bits)
    metadata, tags = read_metadata(image, file), getattr(image, "tag_v2", {})
    orientation = image.getexif().get(ORIENTATION) if tags else None
    notes = []
    if tags and tags.get(_SAMPLES_PER_PIXEL, 1) > len(image.getbands()):
        notes.append(EXTRA_SAMPLES_NOTE)
    maximum = pnm_maximum(image) or (4095 if bits == 12 and tags else None)
    image.load()
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int):
        # Pillow scales the samples to 8 bits, but not the transparent level.
        image.info["transparency"] = key * 255 // ((1 << bits) - 1)
    if image.format == "PNG" and "exif" in image.info:  # eXIf may follow the pixels
        metadata = metadata.with_exif(image.info["exif"])
    if image.mode == "CMYK":
        notes.append("CMYK is written as RGB")
        metadata = replace(metadata, icc_profile=None)
    if image.format == "MPO":
        notes.append("only the first image of a multi-picture JPEG is kept")
    stored: Image.Image = image
    if orientation and ORIENTATION not in image.getexif():
        # Pillow turns TIFF files upright on loading, and no other format: turn them back.
        image.getexif()[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
        stored = ImageOps.exif_transpose(image)
    samples, alpha, mode = decode(
        stored,
        bits=12 if bits == 12 and tags else 16,
        white_is_zero=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
    )
    declared = Declared.of_tags(tags.get) if tags else Declared(bits=significant_bits(image, file))
    compression = image.info.get("compression")
    storage = StorageFormat(
        format=image.format or "",
        mode=mode,
        compression=compression if isinstance(compression, str) else None,
        is_lossless=head.is_lossless_webp,
        is_progressive="progressive" in image.info,
        maximum=maximum,
    )
    if maximum and samples.dtype == torch.uint16 and not tags:
        samples = rescaled(samples, 65535, maximum)  # Pillow has scaled them up
        mode = "I;12" if maximum == 4095 else mode
    note = "; ".join(notes)
    return DecodedImage(samples, alpha, BITS_8, storage, metadata, note, declared)


def write_pages(
    path: Path,
    pages: Sequence[DecodedImage],
    samples: Sequence[Tensor],
    *,
    quality: int = 95,
    on_written: Callable[[Path], None] = lambda unfinished: None,
) -> list[str]:
    """Write each page's new `samples` as the page was stored, in the format of the path's suffix.

    Parent folders are made. The file appears under its name complete or not at all: it is written
    as a temporary file in the same folder, flushed to disk, then renamed.

    Args:
        path: the output; an existing file is replaced.
        pages: what `read_pages` returned: mode, depth, alpha and metadata.
        samples: (H, W, C) for each page, on the CPU, of the shape and type of its own.
        quality: 1 to 100, for JPEG, AVIF and lossy WebP.
        on_written: called with the flushed file's temporary name, just before it is renamed.

    Returns:
        For each page, the metadata that was lost and a user should know of; "" if none.

    Raises:
        ImageError: the folder cannot be written, or the format cannot hold the pages.
        ShapeError: a shape is not its page's.
    """
    with as_image_error(path, "written"), suppress_warnings():
        format_name = output_format(path)
        if len(pages) > 1 and format_name != "TIFF":
            raise ImageError(f"{format_name} holds one page, not {len(pages)}; write a .tif file")
        path.parent.mkdir(parents=True, exist_ok=True)
        modes = [
            target_mode(page.storage.mode, format_name, _MODES_OF[format_name]) for page in pages
        ]
        samples = [page.stored(new) for page, new in zip(pages, samples, strict=True)]
        with atomic_file(path, on_written) as file:
            if set(modes) <= {"RGB;16", "RGBA;16"}:
                sixteen_bit.write(file, format_name, list(zip(pages, samples, strict=True)))
            else:
                with _page_writer(file, len(pages)) as target:
                    for page, stored, mode in zip(pages, samples, modes, strict=True):
                        if format_name == "PPM" and page.storage.maximum and mode != "1":
                            file.write(pnm_bytes(page, stored))
                            continue
                        image = encode(page, stored, mode)
                        if not holds_orientation(format_name):
                            image = upright(image, page.metadata)
                        options = save_options(
                            format_name, page.metadata, page.storage, quality, image.mode
                        )
                        if path.suffix.lower() in _JPEG_2000_CODESTREAMS:
                            options["no_jp2"] = True
                        image.save(target, format=format_name, **options)
                        if len(pages) > 1:
                            target.newFrame()
                if "I;12" in modes and format_name == "TIFF":
                    file.flush()
                    pairs = zip(pages, modes, strict=True)
                    set_12_bits(file, [p.size[1] if mode == "I;12" else None for p, mode in pairs])
        return [
            lost_metadata(page.metadata, format_name, mode)
            for page, mode in zip(pages, modes, strict=True)
        ]


def _page_writer(file: BinaryIO, pages: int) -> AbstractContextManager[Any]:
    """The file itself, or Pillow's writer that chains the pages of a TIFF file."""
    return nullcontext(file) if pages == 1 else TiffImagePlugin.AppendingTiffWriter(file)


def output_suffix(path: Path) -> str:
    """The suffix of a source's output: its own, as spelled, if it can be written; else `.png`."""
    return path.suffix if path.suffix.lower() in WRITABLE_SUFFIXES else ".png"


def output_format(path: Path) -> str:
    """Pillow's name of the format that a path's suffix stands for.

    Raises:
        ImageError: this suffix cannot be written.
    """
    try:
        return _FORMAT_OF[path.suffix.lower()]
    except KeyError as error:
        raise ImageError(f"suffix {path.suffix!r} cannot be written; use .png or .tif") from error


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


_lock = Lock()
_users = 0  # calls that suppress warnings now
_filters = ExitStack()  # restores the filters after the last of them


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings while any thread decodes or encodes.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap.
    """
    global _users
    with _lock:
        if _users == 0:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\b")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _filters.close()


@contextmanager
def as_image_error(path: Path, action: str) -> Iterator[None]:
    """Turn every failure on a file into one line: the file, what, why, how to mend.

    Pillow's decoders let almost any exception through on damaged files, so all are caught here.

    Args:
        path: the file.
        action: what was tried: "read" or "written".
    """
    try:
        yield
    except ShapeError:
        raise
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        raise ImageError(f"{path}: {_reason(error, action)}") from error


def _reason(error: Exception, action: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a format that can be read; check the file or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels ({text}); split it into smaller images"
    if isinstance(error, MemoryError):
        return f"cannot be {action}: too little memory; split it into smaller images"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be {action}: {os.strerror(error.errno)}; check the path and its permissions"
    if action == "read":
        return f"is damaged or truncated ({text}); copy it again from its source"
    return f"cannot be {action}: {text}; choose another format or folder"
