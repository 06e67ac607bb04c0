"""Samples for which Pillow has no mode: through tifffile and imagecodecs.

Colour of 16 bits, gray with alpha of 16 bits, floats of 16 and 64 bits, colour in floats, and TIFF
bands whose photometric interpretation Pillow does not expect. Both packages come with the extra
`scientific` and bring numpy; without them such a file is an `ImageError`.
"""

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .metadata import (
    WHITE_IS_ZERO,
    Metadata,
    StorageFormat,
    png_head,
    read_metadata,
    save_options,
    set_tiff_tags,
    tiff_metadata,
)
from .pixels import EXTRA_SAMPLES_NOTE, DecodedImage
from .ranges import BITS_8, Declared
from .sniff import FileHead, png_chunks, rewound, significant_bits
from .tiff_data import check_segments
from .tiff_tags import PageChain

_RGB, _MIN_IS_BLACK = 2, 1  # photometric interpretations
_PHOTOMETRICS = {
    3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab",
    32803: "raw sensor (CFA)", 32844: "LogLuv", 32845: "LogLuv", 34892: "raw sensor",
}  # fmt: skip
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of an extra sample
# numpy's type → how a mode spells it; gray has Pillow's own modes.
_KINDS = {"u1": "", "u2": ";16", "f2": ";F16", "f4": ";F32", "f8": ";F64"}
_BANDS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_COLOURS = {"LA", "RGB", "RGBA"}
_PILLOW_MODES = {"L;16": "I;16", "L;F32": "F"}
_COMPRESSIONS = {5: "tiff_lzw", 8: "tiff_adobe_deflate", 1: "raw", 32773: "packbits",
                 34925: "lzma", 50000: "zstd"}  # fmt: skip
_CODECS = {"tiff_lzw": "lzw", "packbits": "packbits", "raw": None, "lzma": "lzma", "zstd": "zstd"}
_FLOAT16_LIMIT = 65504.0
_BIG_TIFF_BYTES = (1 << 32) - (1 << 26)  # from here up, tags and all may not fit

TIFF_MODES = [f"{bands}{kind}" for bands in _BANDS.values() for kind in _KINDS.values() if kind]
PNG_MODES = ["LA;16", "RGB;16", "RGBA;16"]


def read(image: Image.Image | None, file: BinaryIO, head: FileHead) -> Iterator[DecodedImage]:
    """Read the pages of a PNG or TIFF file, one after the other.

    Args:
        image: opened by Pillow, not loaded; None for TIFF that it cannot open.
        file: the file.
        head: what it says.

    Raises:
        ImageError: a page is damaged.
    """
    if image is not None and image.format == "PNG":
        yield _read_png(image, file)
    else:
        yield from _read_tiff(file, head)


def refuse_unsupported(image: Image.Image | None, file: BinaryIO, head: FileHead) -> None:
    """Refuse, before decoding, a file that `read` cannot read; arguments as there.

    Raises:
        ImageError: the extra is missing, or a page is of a kind that is not supported.
    """
    if not (find_spec("imagecodecs") and find_spec("tifffile")):
        raise ImageError(
            f"has {_described(head)}, of which Pillow would keep 8 bits or nothing; install the "
            "extra: pip install 'denoise-batch[scientific]'"
        )
    if image is not None and image.format == "PNG":
        return
    import tifffile

    with rewound(file):
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            for frame in head.frames:
                where = f"page {frame + 1} " if len(head.frames) > 1 else ""
                _refuse(tiff.pages[frame].aspage(), where)


def is_written_here(format_name: str, pages: Sequence[DecodedImage], modes: Sequence[str]) -> bool:
    """Whether Pillow cannot write these pages, in these modes."""
    if any(mode in TIFF_MODES for mode in modes):
        return True
    # Bands of 8 bits: Pillow has their samples, but not their photometric interpretation.
    photometrics = {page.storage.photometric for page in pages if page.storage.mode in _COLOURS}
    return format_name == "TIFF" and photometrics != {None} and bool(photometrics)


def write_png(file: BinaryIO, page: DecodedImage, samples: Tensor, level: int) -> None:
    """Write a page with all that its source said.

    Args:
        file: open for writing, empty.
        page: the source.
        samples: its new ones.
        level: zlib's, 0 to 9.

    Raises:
        ImageError: the extra is missing.
    """
    _require_extra()
    file.write(_png(page, samples, level))


def write_tiff(
    file: BinaryIO,
    pages: Iterable[tuple[DecodedImage, Tensor]],
    count: int,
    size: int,
    *,
    is_big: bool = False,
) -> None:
    """Write pages with all that their sources said.

    Args:
        file: open for reading and writing, empty.
        pages: each with its new samples, one after the other.
        count: number of pages.
        size: bytes of all these samples.
        is_big: write BigTIFF, however many bytes these are.

    Raises:
        ImageError: the extra is missing.
    """
    _require_extra()
    is_big = is_big or size * 4 // 3 > _BIG_TIFF_BYTES
    if count == 1:
        for page, samples in pages:
            _write_page(file, page, samples, is_big)
            _set_tags(file, page)
        return
    with PageChain(file) as target:
        for page, samples in pages:
            one = io.BytesIO()
            _write_page(one, page, samples, is_big)
            target.write(one.getbuffer())
            link = target.end_page()
            _set_tags(file, page, link)
            target.setup()  # the next page follows the tags


def _require_extra() -> None:
    if not (find_spec("imagecodecs") and find_spec("tifffile")):
        raise ImageError("needs the extra: pip install 'denoise-batch[scientific]'")


def _described(head: FileHead) -> str:
    """The kind of samples, for a message."""
    if not head.directories:
        return "16-bit colour"
    page = head.directories[0]
    is_float = page.value(339, 1) == 3
    return (
        f"{page.value(277, 1)} samples of {head.bits[0]}-bit {'float' if is_float else 'integers'}"
    )


def _read_png(image: Image.Image, file: BinaryIO) -> DecodedImage:
    import imagecodecs

    metadata = read_metadata(image, file)
    late = dict(png_chunks(file, lambda name: name == b"eXIf"))  # it may follow the pixels
    if late:
        metadata = metadata.with_exif(late[b"eXIf"])
    with rewound(file):
        file.seek(0)
        array = imagecodecs.png_decode(file.read())
    return _page(array, "PNG", metadata, Declared(bits=significant_bits(image, file)))


def _read_tiff(file: BinaryIO, head: FileHead) -> Iterator[DecodedImage]:
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        for number, directory in zip(head.frames, head.directories, strict=True):
            page = tiff.pages[number].aspage()
            check_segments(file, directory)
            array = page.asarray(maxworkers=1)
            kind, size = array.dtype.kind, array.dtype.itemsize
            planes = page.samplesperpixel
            if page.planarconfig == 2 and planes > 1:
                array = array.reshape(planes, page.imagelength, page.imagewidth).transpose(1, 2, 0)
            array = array.reshape(page.imagelength, page.imagewidth, planes)
            photometric, extra, note = int(page.photometric), _ALPHA, ""
            colours = 3 if photometric == _RGB else 1
            declared = Declared.of_tags(directory.said)
            if photometric == WHITE_IS_ZERO and kind == "u" and planes < 3:  # as Pillow does
                array[:, :, :colours] = ~array[:, :, :colours]
                declared = declared.of_samples(1, 255 if size == 1 else 65535)
            if page.extrasamples:
                extra = int(page.extrasamples[0])
            if extra == _PREMULTIPLIED and planes > colours and kind == "u":
                array, extra = _unpremultiplied(array, colours), _ALPHA
            if colours == 3 and planes > 3:
                kept = 3 if extra == 0 else 4
                array, note = array[:, :, :kept], EXTRA_SAMPLES_NOTE if planes > kept else ""
            elif planes in (2, 4) and extra != _ALPHA:
                note = "the last sample of each pixel is kept as it is: it is not denoised"
            yield _page(
                array, "TIFF", tiff_metadata(directory), declared, note,
                compression=_COMPRESSIONS.get(int(page.compression)),
                photometric=photometric, extra_sample=extra,
            )  # fmt: skip


def _refuse(page: Any, where: str) -> None:
    """Refuse a TIFF page of a kind that is not supported, and name it."""
    kind = page.dtype.kind + str(page.dtype.itemsize) if page.dtype is not None else ""
    if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62):
        raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength}")
    name = _PHOTOMETRICS.get(int(page.photometric))
    if name:
        raise ImageError(
            f"{where}has {page.bitspersample}-bit {name} samples; convert it to 16-bit RGB or gray"
        )
    if page.samplesperpixel > 4 and page.photometric != _RGB:
        raise ImageError(
            f"{where}has {page.samplesperpixel} bands; one to four are supported: split it into "
            "files of three bands or one"
        )
    if page.imagedepth > 1:
        raise ImageError(f"{where}is a volume of {page.imagedepth} slices; write them as pages")
    if kind not in _KINDS or page.bitspersample != int(kind[1:]) * 8:
        types = {"i": "signed", "u": "unsigned", "f": "float", "c": "complex", "b": "unsigned"}
        raise ImageError(
            f"{where}has {page.bitspersample}-bit {types.get(kind[:1], 'unknown')} samples; "
            "convert it to 8 or 16 bits unsigned, or to 32-bit float"
        )


def _page(
    array: Any,
    format_name: str,
    metadata: Metadata,
    declared: Declared,
    note: str = "",
    **storage: Any,
) -> DecodedImage:
    """A page from numpy's (H, W, 1 to 4), in either byte order."""
    kind = array.dtype.kind + str(array.dtype.itemsize)
    mode = _BANDS[array.shape[2]] + _KINDS[kind]
    memory = "f4" if kind == "f2" else kind
    samples = torch.from_numpy(array.astype("=" + memory, copy=True))
    has_alpha = array.shape[2] in (2, 4)
    alpha = samples[:, :, -1:].contiguous() if has_alpha else None
    colours = samples[:, :, :-1].contiguous() if has_alpha else samples.contiguous()
    stored = StorageFormat(format_name, _PILLOW_MODES.get(mode, mode), **storage)
    return DecodedImage(colours, alpha, BITS_8, stored, metadata, note, declared=declared)


def _unpremultiplied(array: Any, colours: int) -> Any:
    """(H, W, …) with colours divided by the alpha behind them, as Pillow divides 8 bits."""
    peak = 255 if array.dtype.itemsize == 1 else 65535
    alpha = array[:, :, colours : colours + 1].astype("int64")
    divisor = alpha.clip(1)
    divided = (array[:, :, :colours].astype("int64") * peak + divisor // 2) // divisor
    straight = array.copy()
    straight[:, :, :colours] = divided.clip(0, peak)
    return straight


def _png(page: DecodedImage, samples: Tensor, level: int) -> bytes:
    import imagecodecs

    encoded = imagecodecs.png_encode(_with_alpha(page, samples).numpy(), level=level)
    small = io.BytesIO()
    mode = page.storage.mode
    options = save_options("PNG", page.metadata, page.storage, 100, mode)
    gray_or_colour = "L" if mode.startswith("L") else "RGB"
    Image.new(gray_or_colour, (1, 1)).save(small, "PNG", **options)
    header_end = 33  # signature and IHDR
    chunks = small.getvalue()[header_end:]
    chunks = chunks[: _start_of(chunks, b"IDAT")]
    return (
        bytes(encoded[:header_end])
        + png_head(page.metadata, mode)
        + chunks
        + bytes(encoded[header_end:])
    )


def _start_of(chunks: bytes, wanted: bytes) -> int:
    """Where the first chunk of a name begins."""
    at = 0
    while chunks[at + 4 : at + 8] != wanted:
        at += 12 + int(struct.unpack_from(">I", chunks, at)[0])
    return at


def _set_tags(file: BinaryIO, page: DecodedImage, link: int | None = None) -> None:
    mode, width = page.storage.mode, page.size[1]
    set_tiff_tags(file, page.metadata, page.storage, mode, width, link)


def _write_page(file: BinaryIO, page: DecodedImage, samples: Tensor, is_big: bool) -> None:
    import tifffile

    stored = _with_alpha(page, samples)
    if page.storage.mode.endswith(";F16"):
        limited = stored.clamp(-_FLOAT16_LIMIT, _FLOAT16_LIMIT)
        stored = torch.where(stored.isinf(), stored, limited).to(torch.float16)
    array = stored.numpy()
    channels = array.shape[2]
    photometric = page.storage.photometric
    if photometric is None or page.storage.format != "TIFF":
        photometric = _RGB if channels > 2 else _MIN_IS_BLACK
    extra = channels - (3 if photometric == _RGB else 1)
    kinds = [0] * (extra - 1) + [page.storage.extra_sample] if extra else None
    with tifffile.TiffWriter(file, bigtiff=is_big, byteorder="<") as tiff:
        tiff.write(
            array if channels > 1 else array[:, :, 0],
            photometric={WHITE_IS_ZERO: "miniswhite", _MIN_IS_BLACK: "minisblack"}.get(
                photometric, "rgb"
            ),
            planarconfig="contig" if channels > 1 else None,
            extrasamples=[0, 0] if channels == 3 and extra else kinds,
            compression=_CODECS.get(page.storage.compression or "", "zlib"),  # or Deflate
            maxworkers=1,
            metadata=None,
            software=False,
        )


def _with_alpha(page: DecodedImage, samples: Tensor) -> Tensor:
    """(H, W, 1 to 4): the samples, with the page's alpha if it has one."""
    if page.alpha is None:
        return samples.contiguous()
    if samples.dtype != torch.uint16:
        return torch.cat([samples, page.alpha], 2)
    parts = [part.view(torch.int16) for part in (samples, page.alpha)]  # torch 2.4 joins no uint16
    return torch.cat(parts, 2).view(torch.uint16)
