"""How good an image is, before and after: against a reference, or estimated by SURE."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .files.pixels import DecodedImage
from .metrics import psnr_of_mse
from .noise_level import MOST_PIXELS, NoiseLevel, noise_level, wavelet_sigma, window_places

# Of values in [0, 1], far below any noise worth removing: 0.01 reads too small a divergence.
EPSILON = 0.002
LEAST_PIXELS = 2**17  # the noise of smaller images is not known exactly enough
WHOLE_PIXELS = 2**20  # an image up to this size is probed as a whole
TILE_PX = 256  # of a larger one `TILES` squares are
TILES = 8
TILE_BORDER_PX = 16  # that knows too little of its surroundings to count
BLOCK_PX = 8
STRATA = 8

# Relative standard errors, chosen on Kodak (docs/design/adr/0013): of the variance by the patches'
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


Basis = Literal["reference", "estimate"]

# Beyond these the estimate would be off by decibels (docs/design/adr/0013, docs/reports.md).
LEAST_SIGMA_255 = 7.5  # less noise cannot be told from texture exactly enough
MOST_CLIPPED = 0.03  # share of samples at black or white, whose noise is biased
TOO_SMALL = "too small to estimate"
SHOWN_STRIDE = 3  # where σ is only shown, a ninth of the patches will do
_STRIP_ROWS = 256  # a multiple of the probe's blocks; a whole page in float32 is large


@dataclass(frozen=True)
class Quality:
    """What is known of one image's noise and error.

    Attributes:
        sigma_in_255: σ of the input's noise, estimated from the input, in units of 1/255; None
            where it was not estimated.
        sigma_out_255: of the output, likewise; there fine texture counts a little.
        psnr_in: dB of the input, by `basis`.
        psnr_out: dB of the output, by `basis`.
        basis: "reference": compared with a clean image. "estimate": by SURE, which assumes white
            Gaussian noise. None: there is no PSNR.
        reason: why there is no PSNR.
    """

    sigma_in_255: float | None
    sigma_out_255: float | None
    psnr_in: float | None = None
    psnr_out: float | None = None
    basis: Basis | None = None
    reason: str = ""

    @property
    def gain(self) -> float | None:
        """dB that the output is better than the input; None without a PSNR or if both are ∞."""
        if self.psnr_in is None or self.psnr_out is None:
            return None
        gain = self.psnr_out - self.psnr_in
        return None if math.isnan(gain) else gain


@dataclass(frozen=True)
class Noise:
    """What an input alone tells of its noise.

    Attributes:
        level: how strong it is.
        reason: why no error can be estimated, whatever the network answers; empty where it can.
    """

    level: NoiseLevel
    reason: str = ""


def assess(page: DecodedImage, *, is_probing: bool) -> Noise:
    """Look at a page before the network does.

    Args:
        page: as it was decoded.
        is_probing: whether its error shall be estimated.
    """
    level = noise_level(_windows(page, page.samples), SHOWN_STRIDE)
    if not is_probing:
        return Noise(level)
    reason = _why_not(page, level)
    return Noise(level, reason) if reason else Noise(noise_level(_windows(page, page.samples)))


def measure(
    pictures: Sequence[DecodedImage],
    samples: Sequence[Tensor],
    noises: Sequence[Noise],
    probes: Sequence[Probe | None],
    psnr: tuple[float, float] | None,
) -> Quality:
    """Estimate a file's noise and, where there is no reference, its error.

    Args:
        pictures: its pages.
        samples: of the pages, denoised: (H, W, C) as the file stores them, on the host.
        noises: of the pages, by `assess`; empty where nothing shall be estimated.
        probes: of the pages; None or missing where there is none.
        psnr: against a reference, before and after.
    """
    sigmas: tuple[float | None, float | None] = None, None
    if noises:
        left = [
            wavelet_sigma(_windows(page, after)) * 255
            for page, after in zip(pictures, samples, strict=True)
        ]
        sigmas = _mean([noise.level.sigma_255 for noise in noises]), _mean(left)
    if psnr is not None:
        return Quality(*sigmas, *psnr, "reference")
    if reason := next((noise.reason for noise in noises if noise.reason), ""):
        return Quality(*sigmas, reason=reason)
    if not noises or not probes or any(probe is None for probe in probes):
        return Quality(*sigmas)
    estimates: list[Estimate] = []
    for page, after, probe, noise in zip(pictures, samples, probes, noises, strict=True):
        assert probe is not None  # checked above, for all
        estimate = _estimate(page, after, probe, noise.level)
        if isinstance(estimate, str):
            return Quality(*sigmas, reason=estimate)
        estimates.append(estimate)
    before, after_ = _mean([e.mse_in for e in estimates]), _mean([e.mse_out for e in estimates])
    return Quality(*sigmas, psnr_of_mse(before), psnr_of_mse(after_), "estimate")


def _why_not(page: DecodedImage, level: NoiseLevel) -> str:
    """Why a page's error cannot be estimated from this noise, or nothing."""
    height, width = page.size
    if level.white_255 is None or height * width < LEAST_PIXELS:
        return TOO_SMALL
    if level.sigma_255 < LEAST_SIGMA_255:
        return f"too little noise to estimate it (σ̂ {level.sigma_255:.1f})"
    if not level.is_white:
        return "the noise is not white, which an estimate needs"
    clipped = 0
    for top in range(0, height, _STRIP_ROWS):
        noisy = page.value_range.to_unit(page.samples[top : top + _STRIP_ROWS])
        clipped += int(((noisy <= 0) | (noisy >= 1)).sum())
    share = clipped / page.samples.numel()
    if share > MOST_CLIPPED:
        return f"too much of the noise is clipped at black or white ({share:.0%})"
    return ""


def _estimate(page: DecodedImage, after: Tensor, probe: Probe, level: NoiseLevel) -> Estimate | str:
    """SURE of one page that `_why_not` let pass, or why there is none."""
    height, width, channels = after.shape
    residual, spreads = 0.0, []
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        noisy = page.value_range.to_unit(page.samples[rows])
        denoised = page.value_range.to_unit(after[rows])
        residual += float((denoised - noisy).square_().sum(dtype=torch.float64))
        if not probe.is_whole:
            spreads.append(block_spreads(denoised.permute(2, 0, 1)[None])[0])
    response = divergence(probe, torch.cat(spreads) if spreads else probe.spreads)
    if response is None or level.white_255 is None:
        return TOO_SMALL
    seen = min(height * width, MOST_PIXELS)
    sigma = level.white_255 / 255
    mean = residual / after.numel()
    estimate = estimate_mse(mean, response, sigma, channels, seen, probe.strength)
    return estimate or "the estimate contradicts itself: not white noise, or hardly denoised"


def _windows(page: DecodedImage, samples: Tensor) -> list[Tensor]:
    """Parts of a page's samples as (C, H, W) in [0, 1]."""
    return [
        page.value_range.to_unit(samples[rows, columns]).permute(2, 0, 1).contiguous()
        for rows, columns in window_places(*samples.shape[:2])
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
