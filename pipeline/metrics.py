"""How close two images are."""

import math

from torch import Tensor


def mse(image: Tensor, reference: Tensor) -> float:
    """Mean squared error over all elements, in float64."""
    return (image.double() - reference.double()).square().mean().item()


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio −10·log10(MSE) in dB, for values in [0, 1]; ∞ when equal."""
    return psnr_of_mse(mse(image, reference))


def psnr_of_mse(value: float) -> float:
    """−10·log10(value), ∞ for 0."""
    return math.inf if value == 0 else -10 * math.log10(value)
