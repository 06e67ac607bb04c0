"""Image files: read into tensors, and written back as they were stored.

`read_pages` gives the decoded pages of a file, with alpha, metadata, mode and depth kept aside,
in memory or on disk;
`write_pages` stores new samples in the same way, completely or not at all. The output's suffix
names its format (`output_format`). `output_suffix` gives the suffix of a source's output: its own,
or `.png` for formats that cannot be written or cannot hold a denoised photograph (GIF, QOI, PCX,
SGI, Sun raster, and unknown suffixes).
"""

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from denoise_batch.kernels.errors import ImageError, ShapeError, is_out_of_memory

from . import phones, pnm, raw, render, sixteen_bit, tiff
from .atomic import Attributes, atomic_file, make_folder
from .complaints import collected_complaints
from .extras import EXTRAS, READ
from .footprint import Footprint
from .kinds import (
    HEAD_BYTES,
    RAW,
    READ_WITH_EXTRAS,
    begun_format,
    kind_of_name,
    kind_to_read,
    refusal,
    unknown_kind,
)
from .metadata import (
    ORIENTATION,
    PACKED_BITS,
    WHITE_IS_ZERO,
    Metadata,
    PngWriter,
    StorageFormat,
    holds_orientation,
    lost_metadata,
    png_head,
    read_metadata,
    save_options,
    set_tiff_tags,
    upright,
)
from .payloads import complete_jpeg, jpeg_structure, left_out, read_jpeg
from .pixels import (
    EXTRA_SAMPLES_NOTE,
    DecodedImage,
    PagesOnDisk,
    as_written,
    decode,
    encode,
    outlines,
    pnm_bytes,
    prepare,
    rescaled,
    target_mode,
    with_note,
)
from .ranges import BITS_8, Declared
from .scratch import Scratch
from .sniff import (
    PNG_MAGIC,
    FileHead,
    jpeg_kind,
    pnm_maximum,
    refuse_unsupported,
    rewound,
    set_avif_code_points,
    significant_bits,
    sniff,
    sniff_tiff,
    widened,
    without_avif_exif,
    without_bad_chunks,
)
from .tiff_data import check_segments
from .tiff_tags import BigTiffWriter, PageChain, exceeds_classic, is_tiff, without_odd_tags

T = TypeVar("T")

# Pillow's name of a format → the suffixes it is written for, and the modes that it holds.
_FORMATS = {
    "PNG": (".png", "1 L LA RGB RGBA I;16 " + " ".join(sixteen_bit.PNG_MODES)),
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB"),
    "WEBP": (".webp", "RGB RGBA"),
    "TIFF": (
        ".tif .tiff",
        " ".join(["1 L LA RGB RGBA L;2 L;4 I;12 I;16 F", *sixteen_bit.TIFF_MODES]),
    ),
    "BMP": (".bmp .dib", "1 L RGB"),
    "PPM": (".ppm .pgm .pbm .pnm .pfm", "1 L RGB I;12 I;16 F " + " ".join(pnm.MODES)),
    "PAM": (".pam", " ".join(pnm.PAM_MODES)),
    "TGA": (".tga", "L LA RGB RGBA"),
    "JPEG2000": (".jp2 .j2k .j2c .jpc .jpf .jpx", "L LA RGB RGBA I;16"),
    "AVIF": (".avif", "L RGB RGBA"),
    "HEIF": (".heic .heif .hif", phones.MODES["HEIF"]),
    "JXL": (".jxl", phones.MODES["JXL"]),
    "OPENEXR": (".exr", " ".join(render.MODES)),
}
_FORMAT_OF = {suffix: name for name, (row, _) in _FORMATS.items() for suffix in row.split()}
_MODES_OF = {name: modes.split() for name, (_, modes) in _FORMATS.items()}

LOSSY_FORMATS = frozenset({"JPEG", "WEBP", "AVIF", "HEIF", "JXL"})
_WITH_EXTRAS = {extra.format for extra in EXTRAS.values()}
_MISSING = _WITH_EXTRAS - {extra.format for extra in READ.values()}
WRITABLE_SUFFIXES: frozenset[str] = frozenset(
    suffix for suffix, name in _FORMAT_OF.items() if name not in _MISSING
)
READABLE_SUFFIXES: frozenset[str] = (
    WRITABLE_SUFFIXES | READ_WITH_EXTRAS | {".gif", ".qoi", ".pcx", ".sgi", ".ras"}
)

# Only these are opened, whatever a file is called: those above, and those that become PNG.
_READABLE_FORMATS = (*(_FORMATS.keys() - {"PAM", *_WITH_EXTRAS}), "GIF", "QOI", "PCX", "SGI", "SUN")
# What Pillow raises for a file, or a kind of TIFF, that it does not know.
_UNKNOWN = (UnidentifiedImageError, SyntaxError, KeyError, TypeError, ValueError, AssertionError)
_LOSSLESS_FORMATS = {"PNG", "TIFF", "BMP", "PPM", "PAM", "TGA", "GIF", "QOI", "PCX", "SGI", "SUN"}
_MOST_PX = {"JPEG": 65_500, "WEBP": 16_383, "TGA": 65_535, "AVIF": 65_536}  # a side
_JPEG_2000_CODESTREAMS = {".j2k", ".j2c", ".jpc"}
_SAMPLES_PER_PIXEL, _PHOTOMETRIC = 277, 262  # TIFF tags

# Size of Pillow's memory blocks: so large that glibc maps each block of a large image and unmaps
# it again. Blocks of 16 MiB, the default, stay in the heap of the thread that decoded: 400 MB a
# thread for 100 megapixels.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]  # documented, but untyped


def read_image(path: Path, value_range: tuple[float, float] | None = None) -> DecodedImage:
    """Read a file of one page; orientation is kept as metadata, pixels are not rotated.

    Args:
        path: the file.
        value_range: as for `read_pages`.

    Raises:
        ImageError: as for `read_pages`, or the file has several pages.
    """
    pages = read_pages(path, value_range=value_range)
    if len(pages) > 1:
        raise ImageError(f"{path}: has {len(pages)} pages; split it into files of one page")
    return pages[0]


def read_pages(
    path: Path,
    on_size: Callable[[Footprint], Scratch | None] = lambda footprint: None,
    value_range: tuple[float, float] | None = None,
) -> Sequence[DecodedImage]:
    """Read all pages of a file, prepared for a network; pixels are not rotated.

    Args:
        path: the file.
        on_size: called, before anything is decoded, with what the file takes; returns where the
            pages of a file of several are to be, None for in memory.
        value_range: black and white of samples above 8 bits; None: as declared, or estimated.

    Raises:
        ImageError: the file is missing, damaged, truncated, too large, or of a kind that could
            not be written back without loss; one line with the file's name.
    """
    with as_image_error(path, "read"), suppress_warnings(), collected_complaints() as complaints:
        with _stored(path) as (stored, start, kind):
            try:
                pages: Sequence[DecodedImage]
                if kind:
                    pages, note = _read_with_extra(kind, path, stored, on_size), ""
                else:
                    pages, note = _mended(
                        path, stored, start, lambda file: _read_pages(path, file, start, on_size)
                    )
            except Exception as error:
                if complaints and not isinstance(error, MemoryError):
                    raise _complained(complaints) from error
                raise
        if complaints:
            raise _complained(complaints)
        pages = prepare(pages, value_range)
        if note:
            note = "; ".join(filter(None, (outlines(pages)[0].note, note)))
            pages = with_note(pages, note)
        return pages


def read_head(path: Path) -> Footprint:
    """Return what a file takes; nothing is decoded.

    Raises:
        ImageError: `read_pages` would raise it, as far as the file's head tells.
    """
    found: list[Footprint] = []

    def stop(footprint: Footprint) -> Scratch | None:
        found.append(footprint)
        raise _HeadIsReadError

    with suppress(_HeadIsReadError):
        read_pages(path, stop)
    return found[0]


class _HeadIsReadError(ImageError):
    """Ends the reading of a file before anything is decoded."""


@contextmanager
def _stored(path: Path) -> Iterator[tuple[BinaryIO, bytes, str]]:
    """A file of a kind that is read, what it begins with, and the kind if an extra reads it."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ImageError(f"is {kind}; give an image file")
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
        if not start:
            raise ImageError("is empty (0 bytes); copy it again from its source")
        yield file, start, kind_to_read(path, start)


def _mended(
    path: Path, stored: BinaryIO, start: bytes, read: Callable[[BinaryIO], T]
) -> tuple[T, str]:
    """What `read` makes of a file, without damaged metadata that would stop it; a note on these.

    Raises:
        ImageError: the file is of a kind that is not known, and its name or head tells which.
    """
    file, note = without_bad_chunks(stored) if start.startswith(PNG_MAGIC) else (stored, "")
    try:
        try:
            return read(file), note
        except (UnidentifiedImageError, ValueError):
            bare = without_avif_exif(file, start)
            if bare is None:
                raise
            return read(bare), "damaged EXIF block dropped"
    except UnidentifiedImageError as error:
        if kind := jpeg_kind(start) or unknown_kind(path, start, _READABLE_FORMATS):
            raise ImageError(refusal(kind)) from error
        if name := begun_format(start, _READABLE_FORMATS):
            raise ImageError(
                f"is a damaged {name} file that cannot be opened; copy it again from its source"
            ) from error
        raise


def _read_with_extra(
    kind: str, path: Path, file: BinaryIO, on_size: Callable[[Footprint], object]
) -> tuple[DecodedImage, ...]:
    """Read a file of a kind of `extras.READ`."""
    if kind == RAW:
        page = raw.read(path, file, on_size)
    elif kind == "OpenEXR":
        page = render.read(path, on_size)
    else:
        page = phones.read(kind, file, on_size)
    return (_with_companions(page, 0, tiff.Layout((0,)), ()),)


def _complained(complaints: Sequence[str]) -> ImageError:
    more = f" and {len(complaints) - 1} more" if len(complaints) > 1 else ""
    return ImageError(f"is damaged ({complaints[0]}{more}); copy it again from its source")


def _read_pages(
    path: Path, file: BinaryIO, start: bytes, on_size: Callable[[Footprint], Scratch | None]
) -> Sequence[DecodedImage]:
    """Read all pages of an open file; `start` are its first bytes."""
    if pnm.is_read_here(start):
        on_size(pnm.footprint(file))
        notes = left_out(file, "PPM", None, pnm.end_of_first(start))
        return (replace(pnm.read(file, start), note="; ".join(notes)),)
    with _opened(path, file, start) as (image, head, layout):
        _refuse_unsupported(image, file, head)
        scratch = on_size(head.footprint)
        format_name = "TIFF" if image is None else image.format or ""
        # Whose pages and tags say all: the whole file would be mapped into memory.
        jpeg = None if format_name == "TIFF" else jpeg_structure(file)
        if jpeg and jpeg.end is None and (whole := complete_jpeg(file, jpeg)) is not None:
            (page,) = _read_pages(path, whole, start, lambda footprint: None)
            said = "its end mark is missing, its pixels are all there; the output has one"
            return (replace(page, note="; ".join(filter(None, (said, page.note)))),)
        end = pnm.end_of_first(start) if format_name == "PPM" else None
        notes = [] if format_name == "TIFF" else left_out(file, format_name, jpeg, end)
        samples, damage = read_jpeg(file, jpeg) if jpeg else (None, "")
        notes.append(damage)
        if jpeg and image is not None and image.size != jpeg.size:
            samples = None
        if head.is_beyond_pillow:
            decoded = sixteen_bit.read(image, file, head)
        else:
            numbers = range(len(head.frames))
            decoded = (_read_page(image, file, head, number, samples) for number in numbers)
        pages = (
            _with_companions(page, number, layout, notes) for number, page in enumerate(decoded)
        )
        return tuple(pages) if scratch is None else PagesOnDisk(scratch, pages)


@contextmanager
def _opened(
    path: Path, file: BinaryIO, start: bytes
) -> Iterator[tuple[Any, FileHead, tiff.Layout]]:
    """A file of which nothing is decoded yet: as Pillow opened it, its head, and its pages' roles.

    The first is None for TIFF that Pillow cannot open.
    """
    layout = tiff.layout(file) if start[:2] in {b"II", b"MM"} else tiff.Layout((0,))
    formats = _formats_for(path, file)
    file.seek(0)
    source = without_odd_tags(file, start)
    with nullcontext() if source is file else source:
        try:
            context: Any = Image.open(source, formats=formats)
        except _UNKNOWN:
            if not is_tiff(start):
                raise
            context = nullcontext()
        with context as image:
            head = sniff_tiff(file, layout) if image is None else sniff(image, file, layout)
            yield image, head, layout


def _refuse_unsupported(image: Any, file: BinaryIO, head: FileHead) -> None:
    """Refuse, before anything is decoded, what would lose bits, samples or pages."""
    if not head.is_beyond_pillow:
        for frame, bits in zip(head.frames, head.bits, strict=True):
            if image.tell() != frame:
                image.seek(frame)
            refuse_unsupported(image, bits)
        if image.tell() != head.frames[0]:
            image.seek(head.frames[0])
    elif head.planes > 1:
        raise ImageError("is a stack of such samples in one page; save each plane as a page")
    else:
        sixteen_bit.refuse_unsupported(image, file, head)


def _with_companions(
    page: DecodedImage, number: int, layout: tiff.Layout, notes: Sequence[str]
) -> DecodedImage:
    """A page with its masks, without copies of the noisy picture, and with notes on them."""
    if 0 in page.size:
        raise ImageError("is damaged (a page without pixels); copy it again from its source")
    metadata, said = page.metadata.without_copies()
    if layout.planes > 1 and number > 0:
        return replace(page, metadata=metadata.with_description(None))
    if layout.description is not None:
        metadata = metadata.with_description(layout.description)
    frame = layout.frames[number]
    said = [page.note, *said, *layout.notes.get(frame, ()), *(() if number else notes)]
    note = "; ".join(dict.fromkeys(filter(None, said)))
    return replace(page, metadata=metadata, masks=layout.masks.get(frame, ()), note=note)


def _formats_for(path: Path, file: BinaryIO) -> tuple[str, ...]:
    """Formats that a file may have: TGA, which begins like anything, by its name or its end."""
    with rewound(file):
        file.seek(-min(18, file.seek(0, os.SEEK_END)), os.SEEK_END)
        if path.suffix.lower() == ".tga" or file.read().startswith(b"TRUEVISION-XFILE"):
            return _READABLE_FORMATS
    return tuple(name for name in _READABLE_FORMATS if name != "TGA")


def _read_page(
    image: Image.Image, file: BinaryIO, head: FileHead, page: int, samples: Tensor | None
) -> DecodedImage:
    """Read a page of which nothing is decoded yet, or its samples alone."""
    bits = head.bits[page]
    if head.planes > 1:
        image = _plane(file, page, head)
    elif image.tell() != head.frames[page]:
        image.seek(head.frames[page])
    directory = head.directories[page] if head.directories else None
    metadata, tags = read_metadata(image, file, directory), getattr(image, "tag_v2", {})
    orientation = directory.value(ORIENTATION) if directory else None
    notes = []
    if directory:
        with rewound(file):
            check_segments(file, directory)
        # Pillow would retype the tags, and trip over those that are not of the type it expects.
        image.info.pop("xmp", None)
        image.info["icc_profile"] = metadata.icc_profile
        for code in set(tags) & metadata.described:
            if code != ORIENTATION:
                del tags[code]
        if directory.damaged:
            codes = ", ".join(map(str, directory.damaged))
            notes.append(f"damaged tags dropped: {codes}")
    if tags and tags.get(_SAMPLES_PER_PIXEL, 1) > len(image.getbands()):
        notes.append(EXTRA_SAMPLES_NOTE)
    maximum = pnm_maximum(image) or (4095 if bits == 12 and tags else None)
    if note := widened(image, bits):
        notes.append(note)
    if samples is None:
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
    profiles = [name for name, data in getattr(image, "applist", ()) if data[:11] == b"ICC_PROFILE"]
    if metadata.icc_profile == b"":
        notes.append("colour profile dropped: it is in another file")
        metadata = replace(metadata, icc_profile=None)
    if profiles and not image.info.get("icc_profile"):
        notes.append("colour profile dropped: it is damaged")
    stored: Image.Image = image
    if orientation and ORIENTATION not in image.getexif():
        # Pillow turns TIFF files upright on loading, and no other format: turn them back.
        image.getexif()[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
        stored = ImageOps.exif_transpose(image)
    is_white_zero = tags.get(_PHOTOMETRIC) == WHITE_IS_ZERO
    alpha, mode = None, image.mode
    if samples is None:
        bits_wide = 12 if bits == 12 and tags else 16
        samples, alpha, mode = decode(stored, bits=bits_wide, white_is_zero=is_white_zero)
    if directory and mode == "L" and (packed := f"L;{bits}") in PACKED_BITS:
        mode, maximum = packed, (1 << bits) - 1
    if directory:
        declared = Declared.of_tags(directory.said)
        if not samples.is_floating_point() and mode in {"1", "L", "L;2", "L;4", "I;12", "I;16"}:
            peak = 255 if samples.dtype == torch.uint8 else maximum or 65535
            factor = peak // ((1 << bits) - 1)
            declared = declared.of_samples(factor, peak if is_white_zero else None)
    else:
        declared = Declared(bits=significant_bits(image, file))
    compression = image.info.get("compression")
    storage = StorageFormat(
        format=image.format or "",
        mode=mode,
        compression=compression if isinstance(compression, str) else None,
        is_lossless=head.is_lossless_webp,
        is_progressive="progressive" in image.info,
        photometric=WHITE_IS_ZERO if is_white_zero else None,
        maximum=maximum,
    )
    if maximum and samples.dtype == torch.uint16 and not tags:
        samples = rescaled(samples, 65535, maximum)  # Pillow has scaled them up
    note = "; ".join(notes)
    return DecodedImage(samples, alpha, BITS_8, storage, metadata, note, declared=declared)


def _plane(file: BinaryIO, number: int, head: FileHead) -> Image.Image:
    """A TIFF file whose only page is followed by the other planes, opened at one of these."""
    file.seek(0)
    image: Any = Image.open(file, formats=["TIFF"])
    distance = number * head.plane_bytes
    image.tile = [tile._replace(offset=tile.offset + distance) for tile in image.tile]
    return image  # type: ignore[no-any-return]


def write_pages(
    path: Path,
    pages: Sequence[DecodedImage],
    samples: Sequence[Tensor],
    *,
    quality: int = 95,
    png_level: int = 2,
    source: Path | None = None,
    times: bool = False,
    software: str | None = None,
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
        png_level: 0 to 9, zlib's, for PNG: the same pixels in more or fewer bytes.
        source: the file that they come from; the output gets its permissions.
        times: the output also gets its time.
        software: what the output says made it, where its format has EXIF.
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
        sketches = outlines(pages)
        most_px = _MOST_PX.get(format_name)
        for page in sketches:
            if most_px is not None and max(page.size) > most_px:
                raise ImageError(
                    f"{format_name} holds at most {most_px} pixels a side, not {max(page.size)}; "
                    "write a .png or .tif file"
                )
        make_folder(path.parent)
        modes = [
            target_mode(page.storage.mode, format_name, _MODES_OF[format_name]) for page in sketches
        ]

        def adapted() -> Iterator[tuple[DecodedImage, Tensor, str]]:
            for page, new, mode in zip(pages, samples, modes, strict=True):
                if software is not None:
                    page = replace(page, metadata=page.metadata.with_software(software))
                yield *as_written(page, page.stored(new), format_name, mode), mode

        output = _Output(path, format_name, quality, png_level, source)
        attributes = None if source is None else Attributes.of(source, times=times)
        with atomic_file(path, on_written, attributes) as file:
            if format_name != "TIFF":
                return [output.write_one(file, *next(adapted()))]
            try:
                losses = output.write_tiff(file, adapted(), sketches, modes)
            except (ImageError, struct.error):
                if len(pages) == 1 or not exceeds_classic(file):
                    raise
                file.seek(0)
                file.truncate()
                losses = output.write_tiff(file, adapted(), sketches, modes, is_big=True)
        return losses


@dataclass(frozen=True)
class _Output:
    """What pages are written to, and how; arguments as of `write_pages`."""

    path: Path
    format_name: str
    quality: int
    png_level: int
    source: Path | None

    def write_one(self, file: BinaryIO, page: DecodedImage, stored: Tensor, mode: str) -> str:
        """Write a file of one page, not TIFF, and return what it lost."""
        name, metadata = self.format_name, page.metadata.with_thumbnail(None)
        if (name == "PPM" and mode in pnm.MODES) or name == "PAM":
            pnm.write(file, name, page, stored)
        elif name == "OPENEXR":
            metadata = page.metadata
            render.write(file, page, stored, mode)
        elif name in phones.FORMATS:
            metadata = phones.write(file, name, page, stored, mode, self.quality)
        elif sixteen_bit.is_written_here(name, [page], [mode]):
            sixteen_bit.write_png(file, replace(page, metadata=metadata), stored, self.png_level)
        elif name == "PPM" and page.storage.maximum and mode != "1":
            file.write(pnm_bytes(page, stored))
        else:
            target: Any = file
            image, metadata, options = self._encoded(page, stored, mode)
            if self.path.suffix.lower() in _JPEG_2000_CODESTREAMS:
                options["no_jp2"] = True
            if name == "PNG":
                options["compress_level"] = self.png_level
                target = PngWriter(file, png_head(page.metadata, image.mode))
            image.save(target, format=name, **options)
            if name == "AVIF" and page.metadata.cicp:
                set_avif_code_points(file, page.metadata.cicp)
        return self._lost(page, metadata, mode)

    def write_tiff(
        self,
        file: BinaryIO,
        pages: Iterator[tuple[DecodedImage, Tensor, str]],
        sketches: Sequence[DecodedImage],
        modes: Sequence[str],
        *,
        is_big: bool = False,
    ) -> list[str]:
        """Write a TIFF file page by page, and return what each page lost.

        Args:
            file: open for reading and writing, empty.
            pages: with their new samples and modes, one after the other.
            sketches: outlines of the pages.
            modes: of all pages.
            is_big: write BigTIFF, which holds more than 4 GB.
        """
        losses = []
        if sixteen_bit.is_written_here("TIFF", sketches, modes):

            def both() -> Iterator[tuple[DecodedImage, Tensor]]:
                for page, stored, mode in pages:
                    metadata = page.metadata.with_thumbnail(None)
                    losses.append(self._lost(page, metadata, mode))
                    yield replace(page, metadata=metadata), stored

            size = sum(map(_stored_bytes, sketches))
            sixteen_bit.write_tiff(file, both(), len(sketches), size, is_big=is_big)
        elif is_big:
            big = BigTiffWriter(file)
            for page, stored, mode in pages:
                one = io.BytesIO()
                image, metadata, options = self._encoded(page, stored, mode)
                image.save(one, format="TIFF", **options)
                set_tiff_tags(one, metadata, page.storage, mode, page.size[1])
                big.add(one)
                losses.append(self._lost(page, metadata, mode))
        else:
            with _page_writer(file, len(sketches)) as target:
                for page, stored, mode in pages:
                    image, metadata, options = self._encoded(page, stored, mode)
                    image.save(target, format="TIFF", **options)
                    link = target.end_page() if len(sketches) > 1 else None
                    set_tiff_tags(file, metadata, page.storage, mode, page.size[1], link)
                    if len(sketches) > 1:
                        target.setup()  # the next page follows the tags
                    losses.append(self._lost(page, metadata, mode))
        if any(page.masks for page in sketches):
            tiff.add_masks(file, [page.masks for page in sketches])
        return losses

    def _encoded(
        self, page: DecodedImage, stored: Tensor, mode: str
    ) -> tuple[Image.Image, Metadata, dict[str, Any]]:
        """A page for Pillow, its metadata, and the options to save it with."""
        image = encode(page, stored, mode)
        if not holds_orientation(self.format_name):
            image = upright(image, page.metadata)
        metadata = page.metadata.with_thumbnail(image)
        options = save_options(self.format_name, metadata, page.storage, self.quality, image.mode)
        return image, metadata, options

    def _lost(self, page: DecodedImage, written: Metadata, mode: str) -> str:
        """What a page lost that a user should know of."""
        lost = [lost_metadata(page.metadata, self.format_name, mode)]
        if page.metadata.has_thumbnail and not written.has_thumbnail:
            lost.append("EXIF thumbnail dropped: there is no room for the new picture's")
        lost += _lost_with_format(page, self.format_name, self.source)
        return "; ".join(filter(None, lost))


def _stored_bytes(page: DecodedImage) -> int:
    """Bytes of a page's samples as they are stored, without alpha."""
    height, width, channels = page.samples.shape
    channels = 3 if page.storage.mode.startswith("RGB") else channels
    return height * width * channels * page.samples.element_size()


def _lost_with_format(page: DecodedImage, format_name: str, source: Path | None) -> list[str]:
    """What a page loses because its output has another format than its file."""
    notes = []
    if page.masks and format_name != "TIFF":
        count = f"{len(page.masks)} masks" if len(page.masks) > 1 else "1 mask"
        notes.append(f"{count} dropped: {format_name} cannot hold it")
    is_lossless = page.storage.is_lossless or page.storage.format in _LOSSLESS_FORMATS
    is_named_so = source is not None and _FORMAT_OF.get(source.suffix.lower()) == format_name
    is_changed = page.storage.format != format_name
    if is_lossless and is_named_so and is_changed and format_name in LOSSY_FORMATS:
        notes.append(
            f"its name says {format_name}, it holds {page.storage.format}, which is lossless; the "
            f"output is lossy {format_name}"
        )
    return notes


def _page_writer(file: BinaryIO, pages: int) -> AbstractContextManager[Any]:
    """The file itself, or a writer that chains the pages of a TIFF file."""
    return nullcontext(file) if pages == 1 else PageChain(file)


def output_suffix(path: Path) -> str:
    """The suffix of a source's output: its own, as spelled, if it can be written; else `.png`.

    Camera RAW becomes TIFF.
    """
    if kind_of_name(path) == RAW:
        return ".tif"
    return path.suffix if path.suffix.lower() in WRITABLE_SUFFIXES else ".png"


def output_format(path: Path) -> str:
    """Pillow's name of the format that a path's suffix stands for.

    Raises:
        ImageError: this suffix cannot be written.
    """
    try:
        name = _FORMAT_OF[path.suffix.lower()]
    except KeyError as error:
        raise ImageError(f"suffix {path.suffix!r} cannot be written; use .png or .tif") from error
    for extra in EXTRAS.values():
        if extra.format == name in _MISSING:
            raise ImageError(
                f"{path.suffix} needs the extra: pip install 'denoise-batch[{extra.name}]'"
            )
    return name


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
        if str(error).startswith(f"{path}: "):
            raise
        raise type(error)(f"{path}: {error}") from error.__cause__
    except Exception as error:
        raise ImageError(f"{path}: {_reason(error, action)}") from error


def _reason(error: Exception, action: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a format that can be read; check the file or leave it out"
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels ({text}); split it into smaller images"
    if is_out_of_memory(error):
        return f"cannot be {action}: too little memory; split it into smaller images"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be {action}: {os.strerror(error.errno)}; check the path and its permissions"
    if action == "read":
        return f"is damaged or truncated ({text}); copy it again from its source"
    return f"cannot be {action}: {text}; choose another format or folder"
