"""The clean images that outputs are compared with."""

from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import READABLE_SUFFIXES, read_image
from ..metrics import psnr


def find_reference(folder: Path, name: str) -> Path | None:
    """The file in `folder` that mirrors `name`, whatever image suffix it has."""
    exact = folder / name
    if exact.is_file():
        return exact
    candidates = (exact.with_suffix(suffix) for suffix in sorted(READABLE_SUFFIXES))
    return next((path for path in candidates if path.is_file()), None)


def psnr_in_and_out(noisy: Tensor, denoised: Tensor, reference: Path) -> tuple[float, float]:
    """PSNR in dB of both images, each (C, H, W) in [0, 1], against the reference file.

    The images are clamped and rounded to 8 bit, as a file would hold them.

    Raises:
        ImageError: the reference cannot be read or has another size or number of channels.
    """
    clean = read_image(reference).pixels
    if clean.shape != noisy.shape:
        sizes = f"{_size(clean)}, the image {_size(noisy)}"
        raise ImageError(f"{reference}: cannot be compared: the reference is {sizes}")
    clean = to_8_bit(clean)
    return psnr(to_8_bit(noisy), clean), psnr(to_8_bit(denoised), clean)


def to_8_bit(image: Tensor) -> Tensor:
    """The nearest values that an 8-bit file can hold, still in [0, 1]."""
    return torch.round(image.clamp(0, 1) * 255) / 255


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} {'gray' if channels == 1 else 'RGB'}"
