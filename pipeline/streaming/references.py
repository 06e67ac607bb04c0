"""The clean images of `--reference`, and the PSNR against them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import LOSSY_FORMATS, READABLE_SUFFIXES, output_format, read_pages
from ..files.pixels import DecodedImage, PagesOnDisk, outlines
from ..metrics import psnr_of_mse

_STRIP_SAMPLES = 1 << 20


def find_reference(folder: Path, name: str) -> Path | None:
    """Find the file in `folder` that mirrors `name`, with any image suffix."""
    exact = folder / name
    suffixes = sorted(READABLE_SUFFIXES)
    others = (exact.with_suffix(kind(s)) for kind in (str.lower, str.upper) for s in suffixes)
    return next((path for path in (exact, *others) if _is_file(path)), None)


def psnr_in_and_out(
    noisy: Sequence[DecodedImage],
    denoised: Sequence[Tensor],
    reference: Path,
    written: Path | None = None,
) -> tuple[float, float]:
    """Compute the PSNR in dB of a file before and after, over all its pages, as files hold them.

    The peak is that of the reference: 255 for 8 bits; for deeper integers 2ⁿ − 1, n the bits that
    its samples need; for floats 1 if they lie in [0, 1], beyond 0.5 too, else their range. Pixels
    without meaning do not count.

    Args:
        noisy: the pages as they were read.
        denoised: their new samples, (H, W, C).
        reference: the clean file.
        written: the file that they were written to; read again if its format is lossy.

    Raises:
        ImageError: the reference cannot be read or has another size or number of channels.
    """
    scratch = noisy.scratch if isinstance(noisy, PagesOnDisk) else None
    clean = read_pages(reference, lambda footprint: scratch)
    kinds = [[(p.size, _channels(p)) for p in outlines(pages)] for pages in (clean, noisy)]
    if kinds[0] != kinds[1]:
        sizes = f"{_size(outlines(clean))}, the image {_size(outlines(noisy))}"
        raise ImageError(f"{reference}: cannot be compared: the reference is {sizes}")
    if written is not None and output_format(written) in LOSSY_FORMATS:
        stored: Iterable[Tensor] = [page.stored(page.samples) for page in read_pages(written)]
    else:
        stored = (page.stored(new) for page, new in zip(noisy, denoised, strict=True))
    sums, count = [0.0, 0.0], 0
    scales = _scales(clean), _scales(noisy)
    for page, new, target in zip(noisy, stored, clean, strict=True):
        counted = torch.ones(page.size, dtype=torch.bool)
        for kept in (page.kept, target.kept):
            counted = counted if kept is None else counted & ~kept.mask
        old, clean_samples = page.stored(page.samples), target.stored(target.samples)
        is_alike = _kind(page.samples) == _kind(target.samples)
        low, span = scales[0][_kind(target.samples)]
        own_low, own_span = (low, span) if is_alike else scales[1][_kind(page.samples)]
        rows = max(1, _STRIP_SAMPLES // (new.shape[1] * new.shape[2]))
        for top in range(0, new.shape[0], rows):  # a whole page in float64 is large
            strip = slice(top, top + rows)
            wanted = (clean_samples[strip].double() - low) / span
            for index, values in enumerate((old[strip], new[strip])):
                errors = (values.double() - own_low) / own_span - wanted
                sums[index] += errors[counted[strip]].square_().mean(1).sum().item()
        count += int(counted.sum())
    before, after = (psnr_of_mse(total / max(count, 1)) for total in sums)
    return before, after


def _kind(samples: Tensor) -> str:
    if samples.is_floating_point():
        return "float"
    return "8-bit" if samples.dtype == torch.uint8 else "deep"


def _scales(pages: Sequence[DecodedImage]) -> dict[str, tuple[float, float]]:
    """Black and the distance to white of a file's samples, by kind."""
    scales = {"8-bit": (0.0, 255.0), "deep": (0.0, 255.0), "float": (0.0, 1.0)}
    for page in pages:
        kind, samples = _kind(page.samples), page.with_outliers(page.samples)
        if kind == "deep":
            most = float(samples.to(torch.int64).max())
            scales[kind] = 0.0, max(scales[kind][1], 2.0 ** math.ceil(math.log2(most + 1)) - 1)
        elif kind == "float":
            low, high = float(samples.min()), float(samples.max())
            is_unit = low >= 0 and 0.5 < high <= 1
            scale = page.value_range
            scales[kind] = (0.0, 1.0) if is_unit else (scale.offset, scale.span)
    return scales


def _channels(page: DecodedImage) -> int:
    return 3 if page.storage.mode.startswith("RGB") else page.samples.shape[2]


def _is_file(path: Path) -> bool:
    """Whether `path` is a file; False for names that are too long and locked folders."""
    try:
        return path.is_file()
    except OSError:
        return False


def _size(pages: Sequence[DecodedImage]) -> str:
    (height, width), channels = pages[0].size, _channels(pages[0])
    count = f"{len(pages)} pages of " if len(pages) > 1 else ""
    return f"{count}{width}x{height} {'gray' if channels == 1 else 'RGB'}"
