"""Stein's unbiased risk estimate: a denoised image's mean squared error without the clean image.

For y = x + n with white Gaussian noise of variance σ² and any weakly differentiable denoiser f,

    E ‖f(y) − x‖² / N  =  E ‖f(y) − y‖² / N  −  σ²  +  2 σ² E div f(y) / N        (Stein, 1981)

The divergence, the sum of ∂f_i/∂y_i, is estimated with one random vector b of ±1 (Ramani, Blu and
Unser, "Monte-Carlo SURE", 2008): div f(y) ≈ bᵀ (f(y + εb) − f(y)) / ε. That is one more pass of the
network over a small image, and two over a few tiles of a large one.

σ must be known better than any estimate of the noise alone knows it: at σ = 50 an error of 0.25 %
is one of 0.5 dB. So it is taken from two witnesses (`estimate_mse`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of values in [0, 1], far below any noise worth removing: 0.01 reads too small a divergence.
EPSILON = 0.002
LEAST_PIXELS = 2**17  # the noise of smaller images is not known exactly enough
WHOLE_PIXELS = 2**20  # an image up to this size is probed as a whole
TILE_PX = 256  # of a larger one `TILES` squares are
TILES = 8
TILE_BORDER_PX = 16  # that knows too little of its surroundings to count
BLOCK_PX = 8
STRATA = 8

# Relative standard errors, chosen on Kodak (docs/adr/0013): of the variance by the patches'
# covariance, by number of channels and for so many pixels; and of "mean squared error = σ²·div".
PATCH_ERROR = {3: 0.006, 1: 0.05}
PATCH_ERROR_PIXELS = 768 * 512
OPTIMALITY_ERROR = 0.2

Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """How a denoiser answered to a small change, block by block; on the denoiser's device.

    Attributes:
        responses: [blocks] mean ∂output/∂input.
        spreads: [blocks] variance of the denoised samples, as 8 bit hold them.
        is_whole: the blocks cover the image; otherwise they are a sample of it.
        strength: of the network in the output, the rest of which is input.
    """

    responses: Tensor
    spreads: Tensor
    is_whole: bool
    strength: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """What SURE says of one image; squared values of the range [0, 1].

    Attributes:
        mse_in: mean squared noise of the input: σ².
        mse_out: mean squared error of the output.
    """

    mse_in: float
    mse_out: float


def probe_images(
    denoise: Denoise,
    noisy: Tensor,
    denoised: Tensor,
    insides: Sequence[tuple[slice, ...]] | None = None,
    strength: float = 1.0,
) -> list[Probe]:
    """Probe whole images: one more pass.

    Args:
        denoise: (N, C, H, W) → the same shape; what made `denoised`, with everything that the run
            adds to the network (blending, self-ensemble).
        noisy: (N, C, H, W), its input.
        denoised: (N, C, H, W), its output, neither rounded nor clamped.
        insides: rows and columns of each image that are no padding; None: all.
        strength: of the network in what `denoise` makes.
    """
    responses = _responses(denoise, noisy, denoised)
    probes = []
    for index in range(len(noisy)):
        rows, columns = insides[index] if insides else (slice(None), slice(None))
        inside = slice(index, index + 1), slice(None), rows, columns
        answers = block_means(responses[inside])[0]
        probes.append(Probe(answers, block_spreads(denoised[inside])[0], True, strength))
    return probes


def probe_tiles(denoise: Denoise, tiles: Tensor, strength: float = 1.0) -> Probe:
    """Probe tiles (N, C, H, W) of one large image, each as an image of its own: two passes."""
    denoised = denoise(tiles)
    responses = _responses(denoise, tiles, denoised)
    inner = [
        slice(TILE_BORDER_PX, -TILE_BORDER_PX) if extent > 4 * TILE_BORDER_PX else slice(None)
        for extent in tiles.shape[2:]
    ]
    responses, denoised = responses[:, :, *inner], denoised[:, :, *inner]
    spreads = block_spreads(denoised).flatten()
    return Probe(block_means(responses).flatten(), spreads, False, strength)


def tile_places(height: int, width: int) -> list[tuple[slice, slice]]:
    """Where the tiles of a large image lie: rows and columns of each, evenly spread."""
    tall, wide = min(TILE_PX, height), min(TILE_PX, width)
    rows = max(1, min(TILES, height // tall, round(math.sqrt(TILES * height / width))))
    columns = max(1, min(TILES // rows, width // wide))
    tops = [round((row + 0.5) / rows * (height - tall)) for row in range(rows)]
    lefts = [round((column + 0.5) / columns * (width - wide)) for column in range(columns)]
    return [(slice(y, y + tall), slice(x, x + wide)) for y in tops for x in lefts]


def divergence(probe: Probe, spreads: Tensor) -> float | None:
    """Mean ∂output/∂input over an image: 0 for a constant output, 1 for one that is its input.

    Denoisers pass more of textured parts. So the sample's blocks are sorted into strata by the
    spread of the denoised samples, and the strata weighted by their share of the whole image:
    a third of the plain mean's error (Kodak, four tiles of 128 px each).

    Args:
        probe: of the image.
        spreads: `block_spreads` of the whole denoised image; not used if the probe is whole.
    """
    if len(probe.responses) == 0:
        return None
    if probe.is_whole:
        return probe.responses.mean(dtype=torch.float64).item()
    shares = torch.linspace(0, 1, STRATA + 1, dtype=torch.float64)[1:-1]
    limits = torch.quantile(probe.spreads.double(), shares.to(probe.spreads.device))
    limits = torch.unique(limits)
    of_sample = torch.bucketize(probe.spreads.double(), limits)
    of_image = torch.bucketize(spreads.double(), limits)
    total, weight = 0.0, 0
    for stratum in range(len(limits) + 1):
        inside = probe.responses[of_sample == stratum]
        count = int((of_image == stratum).sum())
        if len(inside) and count:
            total += count * inside.mean(dtype=torch.float64).item()
            weight += count
    return total / weight if weight else None


def estimate_mse(
    residual_mse: float,
    divergence: float,
    white_sigma: float,
    channels: int,
    pixels: int,
    strength: float = 1.0,
) -> Estimate | None:
    """SURE, with σ² from two witnesses weighted by the inverse of their squared errors.

    The first is `white_sigma`, from the noisy image alone. The second is the denoiser: where f is
    the posterior mean, Tweedie's formula makes the mean squared error σ²·div f/N, hence
    E ‖f(y) − y‖²/N = σ² (1 − div f/N). The more a denoiser removes (small divergence), the more
    exact the second is, and the more exactly SURE needs σ. Of a mixture (1−s)·y + s·f(y) the second
    holds for f alone, whose residual and divergence follow from the mixture's.

    Args:
        residual_mse: mean (output − input)².
        divergence: mean ∂output/∂input.
        white_sigma: of the noise, in the unit of the image (1 = white).
        channels: 1 or 3.
        pixels: that `white_sigma` was estimated from.
        strength: s, above 0.

    Returns:
        None where the numbers cannot be those of a denoiser in white noise.
    """
    own = 1 - (1 - divergence) / strength
    own_residual = residual_mse / strength**2
    if not 0 < own < 0.9 or residual_mse <= 0 or white_sigma <= 0:
        return None
    by_patches = pixels / PATCH_ERROR_PIXELS / PATCH_ERROR[channels] ** 2
    by_residual = 1 / (OPTIMALITY_ERROR * own) ** 2
    variance = by_patches * white_sigma**2 + by_residual * own_residual / (1 - own)
    variance /= by_patches + by_residual
    # Outside a factor of three from σ²·div, one of the assumptions does not hold.
    own_mse = own_residual - variance + 2 * variance * own
    if not 1 / 3 < own_mse / (variance * own) < 3:
        return None
    return Estimate(variance, residual_mse - variance + 2 * variance * divergence)


def block_means(images: Tensor) -> Tensor:
    """(N, C, H, W) → [N, blocks]: the mean of every whole block of `BLOCK_PX`, all channels."""
    return _blocks(images).mean((1, 3, 5)).flatten(1)


def block_spreads(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] → [N, blocks]: variance inside each block, after 8-bit rounding."""
    blocks = _blocks(torch.round(images.float().clamp(0, 1) * 255))
    return blocks.var((3, 5), correction=0).mean(1).flatten(1)


def _responses(denoise: Denoise, input: Tensor, output: Tensor) -> Tensor:
    """b ⊙ (f(y + εb) − f(y)) / ε for a batch; the same b for all its images."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, input.shape[1:], generator=generator, dtype=torch.int8)
    signs = (2 * signs - 1).to(input.device, torch.float32)
    moved = denoise(input + EPSILON * signs)
    return signs * (moved.float() - output.float()) / EPSILON


def _blocks(images: Tensor) -> Tensor:
    """(N, C, rows, BLOCK_PX, columns, BLOCK_PX); what does not fill a block is left out."""
    n, channels, height, width = images.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    cut = images[:, :, : rows * BLOCK_PX, : columns * BLOCK_PX]
    return cut.reshape(n, channels, rows, BLOCK_PX, columns, BLOCK_PX)
