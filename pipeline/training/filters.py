"""Separable filters as matrices, one for each image of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor


def filtered(images: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Apply a separable filter to every column and row: A·X·Bᵀ.

    Args:
        images: (N, C, H, W).
        matrix: extent → (N, 1, extent, extent), one filter for each image.
    """
    height, width = images.shape[2:]
    rows = matrix(height)[:, 0]
    columns = (rows if width == height else matrix(width)[:, 0]).transpose(1, 2)
    # One channel at a time: a product with all of them would first copy the filters for each.
    return torch.stack([rows @ channel @ columns for channel in images.unbind(1)], 1)


def gaussian(size: int, sigma: Tensor) -> Tensor:
    """Return Gaussian filters (N, 1, size, size) of the deviations (N, 1, 1, 1) in pixels."""
    at = torch.arange(size, device=sigma.device)
    distance = ((at.view(-1, 1) - at) / sigma).square()
    weights = torch.exp(-0.5 * distance.clamp_max(60))  # denormal numbers are slow
    return weights / weights.sum(3, keepdim=True)


def enlargement(size: int, scale: Tensor) -> Tensor:
    """Return bilinear enlargements of the first pixels by factors (N, 1, 1, 1) to `size` pixels."""
    at = torch.arange(size, device=scale.device)
    place = ((at.view(-1, 1) + 0.5) / scale - 0.5).clamp(0, size - 1)
    return (1 - (place - at).abs()).clamp_min(0)


def block_means(size: int, step: Tensor) -> Tensor:
    """Return means of `step` pixels (N, 1, 1, 1), enlarged again."""
    at = torch.arange(size, device=step.device)
    means = (at.view(-1, 1) == at // step) / step.to(torch.float32)
    return enlargement(size, step) @ means


def fine_variance(images: Tensor) -> Tensor:
    """Return the local variance of what is finer than 1.5 pixels, (N, C, H, W) → (N, 1, H, W)."""
    around = torch.full((len(images), 1, 1, 1), 1.5, device=images.device)
    y = images.mean(1, keepdim=True)
    fine = y - filtered(y, lambda size: gaussian(size, around))
    return filtered(fine.square_(), lambda size: gaussian(size, around))
