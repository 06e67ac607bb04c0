"""One image file ↔ tensors, with alpha, metadata, mode and depth kept aside for the way back.

Read: `read_pages` (`read_image` for files of one page). Write: `write_pages` and `write_image`,
whole or not at all. The format written is the one that the output's suffix names (`output_format`);
`output_suffix` says which suffix a source's output takes: its own, or `.png` for formats that
cannot be written or cannot hold a denoised photograph (GIF, QOI, PCX, SGI, Sun raster, and suffixes
unknown to us).
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError

from . import sixteen_bit as deep
from .atomic import atomic_file
from .decoded_image import DecodedImage
from .metadata import ORIENTATION, read_metadata, save_options, upright
from .metadata import dropped as dropped_of
from .pixels import NO_ALPHA, StorageFormat, decode, encode, target_mode
from .sniff import is_lossless_webp, refuse_unsupported, sample_bits


class Muted:
    """Ignores Pillow's warnings while any thread decodes or encodes.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._filters.__exit__(None, None, None)


PILLOW_WARNINGS = Muted()


# Pillow's name of a format → the suffixes it is written for, and the modes that it holds.
_FORMATS = {
    "PNG": (".png", "1 L LA RGB RGBA I;16 RGB;16 RGBA;16"),
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB"),
    "WEBP": (".webp", "RGB RGBA"),
    "TIFF": (".tif .tiff", "1 L LA RGB RGBA I;16 F RGB;16 RGBA;16"),
    "BMP": (".bmp .dib", "1 L RGB"),
    "PPM": (".ppm .pgm .pbm .pnm .pfm", "1 L RGB I;16 F"),
    "TGA": (".tga", "L LA RGB RGBA"),
    "JPEG2000": (".jp2 .j2k .j2c .jpc .jpf .jpx", "L LA RGB RGBA I;16"),
    "AVIF": (".avif", "L RGB RGBA"),
}
_FORMAT_OF = {suffix: name for name, (row, _) in _FORMATS.items() for suffix in row.split()}

WRITABLE_SUFFIXES: frozenset[str] = frozenset(_FORMAT_OF)
READABLE_SUFFIXES: frozenset[str] = WRITABLE_SUFFIXES | {".gif", ".qoi", ".pcx", ".sgi", ".ras"}

# Of Pillow's memory: large enough that glibc maps every block of a large image and unmaps it again.
# Its own 16 MiB stay in the heap of the thread that decoded, 400 MB a thread for 100 megapixels.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]  # a documented knob, untyped

# Never opened, whatever a file is called: EPS runs Ghostscript, WMF and EMF the system's renderer.
_REFUSED_FORMATS = {"EPS", "WMF", "EMF"}


def read_image(path: Path) -> DecodedImage:
    """Read one file of one page; orientation is kept as metadata, pixels are not rotated.

    Raises:
        ImageError: as of `read_pages`, or the file has several pages.
    """
    pages = read_pages(path)
    if len(pages) > 1:
        raise ImageError(f"{path}: has {len(pages)} pages; split it into files of one page")
    return pages[0]


def read_pages(
    path: Path, on_size: Callable[[int], None] = lambda sample_bytes: None
) -> tuple[DecodedImage, ...]:
    """Read all pages of one file; orientation is kept as metadata, pixels are not rotated.

    Args:
        path: the file.
        on_size: told, before anything is decoded, how many bytes the samples of all pages take.

    Raises:
        ImageError: the file is missing, damaged, truncated, too large, or of a kind that could
            not be written back without loss; one line with the file's name.
    """
    with as_image_error(path, "read"), PILLOW_WARNINGS:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise ImageError(f"is {kind}; give an image file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageError("is empty (0 bytes); copy it again from its source")
            file.seek(0)
            with Image.open(file, formats=_known_formats()) as image:
                frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                on_size(_bytes_of_samples(image, file, frames))
                if deep.is_deep(image, file):
                    return deep.read(image, file, frames)
                pages = []
                for frame in range(frames):
                    if frames > 1:
                        image.seek(frame)
                    pages.append(_read(image, file))
                return tuple(pages)


def write_image(path: Path, picture: DecodedImage, pixels: Tensor, *, quality: int = 95) -> None:
    """Write `pixels` as `picture` was stored, in the format that the path's suffix names.

    Args:
        path: the output; an existing file is replaced.
        picture: what `read_image` returned: mode, depth, alpha and metadata.
        pixels: (C, H, W) of the picture's shape, float, any device; rounded and clamped.
        quality: 1 to 100, for JPEG, AVIF and lossy WebP.

    Raises:
        ImageError: as of `write_pages`, or a pixel is not finite.
        ShapeError: the shape is not the picture's.
    """
    values = pixels.detach().to("cpu", torch.float32)
    low, high = values.aminmax()
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        message = "the result holds NaN or infinite values, nothing was written"
        raise ImageError(f"{path}: {message}")
    rows = values.permute(1, 2, 0)
    if rows.shape != picture.samples.shape:
        raise ShapeError(f"pixels {tuple(rows.shape)} are not {tuple(picture.samples.shape)}")
    samples = picture.layout.scale.from_unit(rows, picture.samples)
    write_pages(path, [picture], [samples], quality=quality)


def write_pages(
    path: Path,
    pictures: Sequence[DecodedImage],
    samples: Sequence[Tensor],
    *,
    quality: int = 95,
    on_written: Callable[[Path], None] = lambda unfinished: None,
) -> None:
    """Write every page's `samples` as its picture was stored, in the format of the path's suffix.

    Parents are made. The file appears under its name complete or not at all: it is written as
    a temporary file in the same folder, flushed to disk, then renamed.

    Args:
        path: the output; an existing file is replaced.
        pictures: what `read_pages` returned: mode, depth, alpha and metadata.
        samples: for each, (H, W, C) on the CPU, of its samples' shape and type.
        quality: 1 to 100, for JPEG, AVIF and lossy WebP.
        on_written: called with the flushed file's temporary name, just before it gets its own.

    Raises:
        ImageError: the folder cannot be written, or the format cannot hold the pictures.
        ShapeError: a shape is not its picture's.
    """
    with as_image_error(path, "written"), PILLOW_WARNINGS:
        name = output_format(path)
        modes = _FORMATS[name][1].split()
        if len(pictures) > 1 and name != "TIFF":
            raise ImageError(f"{name} holds one page, not {len(pictures)}; write a .tif file")
        path.parent.mkdir(parents=True, exist_ok=True)
        pages = list(zip(pictures, samples, strict=True))
        targets = {target_mode(picture.layout, name, modes) for picture in pictures}
        with atomic_file(path, on_written) as file:
            if targets <= {"RGB;16", "RGBA;16"}:
                deep.write(file, name, pages)
                return
            with _page_writer(file, len(pages)) as target:
                for picture, stored in pages:
                    image = encode(stored, picture.alpha, picture.layout, name, modes)
                    image = upright(image, picture.metadata, name)
                    options = save_options(
                        name, picture.metadata, picture.layout, quality, image.mode
                    )
                    if path.suffix.lower() in {".j2k", ".j2c", ".jpc"}:
                        options["no_jp2"] = True
                    image.save(target, format=name, **options)
                    if len(pages) > 1:
                        target.newFrame()


def dropped(picture: DecodedImage, name: str) -> str:
    """What a user must know that the format of this name does not keep, or nothing."""
    mode = target_mode(picture.layout, name, _FORMATS[name][1].split())
    return dropped_of(picture.metadata, name, mode)


def output_suffix(path: Path) -> str:
    """The suffix of a source's output: its own spelling where it can be written, else `.png`."""
    return path.suffix if path.suffix.lower() in WRITABLE_SUFFIXES else ".png"


def output_format(path: Path) -> str:
    """Pillow's name of the format that a path's suffix asks for.

    Raises:
        ImageError: no format that we write has this suffix.
    """
    try:
        return _FORMAT_OF[path.suffix.lower()]
    except KeyError as error:
        raise ImageError(f"suffix {path.suffix!r} cannot be written; use .png or .tif") from error


def _bytes_of_samples(image: Image.Image, file: BinaryIO, frames: int) -> int:
    """Of all pages, whose sizes may differ."""
    total = 0
    for frame in range(frames):
        if frames > 1:
            image.seek(frame)
        depth = max(1, sample_bits(image, file) // 8)
        total += image.width * image.height * max(1, len(image.getbands()) * depth)
    if frames > 1:
        image.seek(0)
    return total


def _read(image: Image.Image, file: BinaryIO) -> DecodedImage:
    refuse_unsupported(image, file)
    metadata, tags = read_metadata(image, file), getattr(image, "tag_v2", {})
    bits, white_is_zero = sample_bits(image, file), tags.get(262) == 0
    orientation = image.getexif().get(ORIENTATION) if tags else None
    notes = []
    if tags and tags.get(277, 1) > len(image.getbands()):
        notes.append(NO_ALPHA)
    image.load()
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int):
        # Pillow brings the samples to 8 bits, and this not.
        image.info["transparency"] = key * 255 // ((1 << bits) - 1)
    if image.format == "PNG" and "exif" in image.info:  # eXIf may follow the pixels
        metadata = metadata.with_exif(image.info["exif"])
    if image.mode == "CMYK":
        notes.append("CMYK is written as RGB")
        metadata = replace(metadata, icc_profile=None)
    if image.format == "MPO":
        notes.append("only the first picture of a multi-picture JPEG is kept")
    stored: Image.Image = image
    if orientation and ORIENTATION not in image.getexif():
        # Pillow turns TIFF files upright on loading, and no other format: turn them back.
        image.getexif()[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
        stored = ImageOps.exif_transpose(image)
    decoded = decode(stored, bits=12 if bits == 12 and tags else 16, white_is_zero=white_is_zero)
    compression = image.info.get("compression")
    layout = StorageFormat(
        format=image.format or "",
        mode=decoded.mode,
        size=(stored.height, stored.width),
        scale=decoded.scale,
        compression=compression if isinstance(compression, str) else None,
        is_lossless=image.format == "WEBP" and is_lossless_webp(file),
        is_progressive="progressive" in image.info,
        note="; ".join(notes),
    )
    return DecodedImage(decoded.samples, decoded.alpha, layout, metadata)


def _page_writer(file: BinaryIO, pages: int) -> AbstractContextManager[Any]:
    """The file itself, or what chains the pages of a TIFF file into it."""
    return nullcontext(file) if pages == 1 else TiffImagePlugin.AppendingTiffWriter(file)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


@contextmanager
def as_image_error(path: Path, done: str) -> Iterator[None]:
    """Give every failure on a file one line: the file, what, why, how to mend.

    Pillow's decoders let almost any exception through on damaged files, so all are caught here.
    """
    try:
        yield
    except ShapeError:
        raise
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        raise ImageError(f"{path}: {_reason(error, done)}") from error


def _reason(error: Exception, done: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow knows; check the file or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels ({text}); split it into smaller images"
    if isinstance(error, MemoryError):
        return f"cannot be {done}: too little memory; split it into smaller images"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be {done}: {os.strerror(error.errno)}; check the path and its permissions"
    if done == "read":
        return f"is damaged or truncated ({text}); copy it again from its source"
    return f"cannot be {done}: {text}; choose another format or folder"
