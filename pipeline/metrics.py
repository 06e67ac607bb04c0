"""PSNR and SSIM of images, and the luma that gray images are scored by."""

import math
from functools import cache

import torch
from torch import Tensor

from denoise_batch.kernels import ShapeError
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.geometry import ConvGeometry

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def mse(image: Tensor, reference: Tensor) -> float:
    """Return the mean squared error over all elements, in float64; on the host, as MPS has none."""
    return (image.cpu().double() - reference.cpu().double()).square().mean().item()


def psnr(image: Tensor, reference: Tensor) -> float:
    """Return the peak signal-to-noise ratio −10·log10(MSE) in dB, for values in [0, 1]."""
    return psnr_of_mse(mse(image, reference))


def psnr_of_mse(value: float) -> float:
    """Return −10·log10(value) in dB; ∞ for 0."""
    return math.inf if value == 0 else -10 * math.log10(value)


def psnrs_of_tiles(images: Tensor, references: Tensor, at_once: int) -> tuple[float, float]:
    """Return the PSNR of one MSE over all tiles, and the mean of the tiles' PSNRs, each ≤ 100 dB.

    Args:
        images: tiles (N, C, H, W) in [0, 1].
        references: clean tiles of the same shape; NaN where a pixel is unknown.
        at_once: tiles converted to float64 at once, on the host as in `mse`.
    """
    sums, counts = [], []
    parts = zip(torch.split(images, at_once), torch.split(references, at_once), strict=True)
    for image, reference in parts:
        wanted = reference.cpu().double()
        is_unknown = wanted.isnan()
        errors = (image.cpu().double() - wanted).square_().masked_fill_(is_unknown, 0.0)
        sums.append(errors.sum((1, 2, 3)))
        counts.append((~is_unknown).sum((1, 2, 3)))
    total, known = torch.cat(sums), torch.cat(counts)
    own = (total / known)[known > 0].clamp_min(1e-10)
    whole = total.sum().item() / max(int(known.sum()), 1)
    return psnr_of_mse(max(whole, 1e-10)), (-10 * own.log10()).mean().item()


def ssim(image: Tensor, reference: Tensor) -> float:
    """Return the structural similarity of two images (C, H, W) in [0, 1], averaged over channels.

    Wang et al., "Image quality assessment" (2004): Gaussian window of 11×11 with σ = 1.5,
    K₁ = 0.01, K₂ = 0.03, evaluated where the whole window fits.

    Raises:
        ShapeError: the shapes differ, or a side is below 11 pixels.
    """
    if image.shape != reference.shape or min(image.shape[1:]) < SSIM_WINDOW:
        raise ShapeError(
            f"SSIM of {tuple(image.shape)} and {tuple(reference.shape)}: needs equal shapes of at "
            f"least {SSIM_WINDOW} pixels a side"
        )
    x, y = image.double()[:, None], reference.double()[:, None]
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return similarity.mean().item()


def luma(images: Tensor) -> Tensor:
    """Return the ITU-R BT.601 luma (…, 1, H, W) of RGB images (…, 3, H, W)."""
    return (images * _luma_weights(images.device)).sum(-3, keepdim=True)


@cache
def _luma_weights(device: torch.device) -> Tensor:
    """Return (3, 1, 1) on the device; cached, because uploading would wait for it."""
    return torch.tensor([0.299, 0.587, 0.114], device=device).view(3, 1, 1)


def _blur(image: Tensor) -> Tensor:
    """Return the Gaussian-weighted mean of every whole window of (C, 1, H, W)."""
    offsets = torch.arange(SSIM_WINDOW, dtype=image.dtype, device=image.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    for weight in (window.view(1, 1, -1, 1), window.view(1, 1, 1, -1)):
        image = ops_for(image.device).conv2d_forward(image, weight, None, ConvGeometry())
    return image
