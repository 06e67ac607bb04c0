"""The clean images of `--reference`, and the PSNR against them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import READABLE_SUFFIXES, read_pages
from ..files.pixels import DecodedImage
from ..metrics import psnr_of_mse

_STRIP_SAMPLES = 1 << 20


def find_reference(folder: Path, name: str) -> Path | None:
    """Find the file in `folder` that mirrors `name`, with any image suffix."""
    exact = folder / name
    suffixes = sorted(READABLE_SUFFIXES)
    others = (exact.with_suffix(kind(s)) for kind in (str.lower, str.upper) for s in suffixes)
    return next((path for path in (exact, *others) if _is_file(path)), None)


def psnr_in_and_out(
    noisy: Sequence[DecodedImage], denoised: Sequence[Tensor], reference: Path
) -> tuple[float, float]:
    """Compute the PSNR in dB of a file before and after, over all its pages.

    Values are clamped and rounded to 8 bits, as most files would hold them. Float images, which
    have no range of their own, are measured in that of the reference.

    Args:
        noisy: the pages as they were read.
        denoised: their new samples, (H, W, C).
        reference: the clean file.

    Raises:
        ImageError: the reference cannot be read or has another size or number of channels.
    """
    clean = read_pages(reference)
    if [p.samples.shape for p in clean] != [p.samples.shape for p in noisy]:
        sizes = f"{_size(clean)}, the image {_size(noisy)}"
        raise ImageError(f"{reference}: cannot be compared: the reference is {sizes}")
    before, after, count = 0.0, 0.0, 0
    for page, samples, target in zip(noisy, denoised, clean, strict=True):
        rows = max(1, _STRIP_SAMPLES // (samples.shape[1] * samples.shape[2]))
        for top in range(0, samples.shape[0], rows):  # a whole page in float32 is large
            strip = slice(top, top + rows)
            wanted = to_8_bit(target.value_range.to_unit(target.samples[strip]))
            are_float = page.samples.is_floating_point() and target.samples.is_floating_point()
            scale = target.value_range if are_float else page.value_range
            for index, values in enumerate((page.samples[strip], samples[strip])):
                error = to_8_bit(scale.to_unit(values)).sub_(wanted)
                total = float(error.square_().sum(dtype=torch.float64))
                before, after = (before + total, after) if index == 0 else (before, after + total)
        count += samples.numel()
    return psnr_of_mse(before / count), psnr_of_mse(after / count)


def to_8_bit(image: Tensor) -> Tensor:
    """Round to the values that an 8-bit file can hold, still in [0, 1]."""
    return torch.round(image.clamp(0, 1) * 255) / 255


def _is_file(path: Path) -> bool:
    """Whether `path` is a file; False for names that are too long and locked folders."""
    try:
        return path.is_file()
    except OSError:
        return False


def _size(pages: Sequence[DecodedImage]) -> str:
    height, width, channels = pages[0].samples.shape
    count = f"{len(pages)} pages of " if len(pages) > 1 else ""
    return f"{count}{width}x{height} {'gray' if channels == 1 else 'RGB'}"
