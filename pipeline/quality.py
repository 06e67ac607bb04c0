"""Measure image quality before and after: against a reference, or estimated by SURE."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .files.pixels import DecodedImage
from .metrics import psnr_of_mse
from .noise_level import EXACT, SHOWN, Effort, NoiseLevel, noise_level, wavelet_sigma, window_slices

# Step of the probe, in values of [0, 1]: far below any noise worth removing. At 0.01 the divergence
# comes out too small.
EPSILON = 0.002
MIN_PIXELS = 2**17  # smaller images do not show their noise exactly enough
WHOLE_PIXELS = 2**20  # images up to this size are probed whole, larger ones in tiles
TILE_PX = 256
TILES = 8
TILE_BORDER_PX = 16  # ignored: its surroundings are missing
BLOCK_PX = 8
STRATA = 8

# Relative standard errors, chosen on Kodak (docs/design/adr/0013).
PATCH_ERROR = {3: 0.006, 1: 0.05}  # of σ² from the patches' covariance, by channels …
PATCH_ERROR_PIXELS = 768 * 512  # … for this many pixels
OPTIMALITY_ERROR = 0.2  # of "mean squared error = σ²·div"

Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """How a denoiser responds to a small change, block by block; on the denoiser's device.

    Attributes:
        responses: [blocks] mean ∂output/∂input.
        spreads: [blocks] variance of the denoised samples, rounded to 8 bits.
        is_whole: the blocks cover the image; otherwise they are a sample of it.
        strength: share of the network in the output; the rest is the input.
    """

    responses: Tensor
    spreads: Tensor
    is_whole: bool
    strength: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """SURE of one image, for values in [0, 1].

    Attributes:
        mse_in: mean squared error of the input: σ².
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
    """Probe whole images, in one more pass.

    Args:
        denoise: (N, C, H, W) → the same shape; what made `denoised`, with everything that the run
            adds to the network (blending, self-ensemble).
        noisy: (N, C, H, W), its input.
        denoised: (N, C, H, W), its output, neither rounded nor clamped.
        insides: rows and columns of each image without its padding; None for no padding.
        strength: share of the network in the output of `denoise`.
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
    """Probe tiles (N, C, H, W) of one large image, each as its own image, in two passes."""
    denoised = denoise(tiles)
    responses = _responses(denoise, tiles, denoised)
    inner = [
        slice(TILE_BORDER_PX, -TILE_BORDER_PX) if extent > 4 * TILE_BORDER_PX else slice(None)
        for extent in tiles.shape[2:]
    ]
    responses, denoised = responses[:, :, *inner], denoised[:, :, *inner]
    spreads = block_spreads(denoised).flatten()
    return Probe(block_means(responses).flatten(), spreads, False, strength)


def tile_slices(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles to probe, spread evenly over a large image."""
    tall, wide = min(TILE_PX, height), min(TILE_PX, width)
    rows = max(1, min(TILES, height // tall, round(math.sqrt(TILES * height / width))))
    columns = max(1, min(TILES // rows, width // wide))
    tops = [round((row + 0.5) / rows * (height - tall)) for row in range(rows)]
    lefts = [round((column + 0.5) / columns * (width - wide)) for column in range(columns)]
    return [(slice(y, y + tall), slice(x, x + wide)) for y in tops for x in lefts]


def divergence(probe: Probe, spreads: Tensor) -> float | None:
    """Mean ∂output/∂input over an image: 0 for a constant output, 1 for the identity.

    Denoisers pass more of textured parts. So a sample's blocks are sorted into strata by the
    variance of the denoised samples, and the strata weighted by their share of the whole image:
    a third of the plain mean's error (Kodak, four tiles of 128 px each).

    Args:
        probe: the image's probe.
        spreads: `block_spreads` of the whole denoised image; not used if the probe is whole.

    Returns:
        None without blocks to go by.
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
    """SURE, with σ² from two estimates weighted by the inverse of their squared errors.

    The first is `white_sigma`, from the noisy image alone. The second comes from the denoiser: if f
    is the posterior mean, Tweedie's formula makes the mean squared error σ²·div f/N, hence
    E ‖f(y) − y‖²/N = σ² (1 − div f/N). The more a denoiser removes (small divergence), the more
    exact the second is, and the more exactly SURE needs σ. For a mixture (1−s)·y + s·f(y) the
    second holds for f alone, whose residual and divergence follow from the mixture's.

    Args:
        residual_mse: mean (output − input)².
        divergence: mean ∂output/∂input.
        white_sigma: σ of the noise, for values in [0, 1].
        channels: 1 or 3.
        pixels: how many `white_sigma` was estimated from.
        strength: s, above 0.

    Returns:
        None if a denoiser in white noise cannot give these numbers.
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
    """(N, C, H, W) → [N, blocks]: the mean of each block of `BLOCK_PX`, over all channels."""
    return _blocks(images).mean((1, 3, 5)).flatten(1)


def block_spreads(images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] → [N, blocks]: variance in each block, after rounding to 8 bits."""
    blocks = _blocks(torch.round(images.float().clamp(0, 1) * 255))
    return blocks.var((3, 5), correction=0).mean(1).flatten(1)


def _responses(denoise: Denoise, input: Tensor, output: Tensor) -> Tensor:
    """b ⊙ (f(y + εb) − f(y)) / ε for a batch, with the same b for all its images."""
    # On the device: an upload would wait for what is queued there.
    device, shape = input.device, input.shape[1:]
    generator = torch.Generator(device).manual_seed(0)
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device=device)
    signs = (2 * signs - 1).to(torch.float32)
    moved = denoise(input + EPSILON * signs)
    return signs * (moved.float() - output.float()) / EPSILON


def _blocks(images: Tensor) -> Tensor:
    """(N, C, rows, BLOCK_PX, columns, BLOCK_PX); incomplete blocks at the edges are left out."""
    n, channels, height, width = images.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    cut = images[:, :, : rows * BLOCK_PX, : columns * BLOCK_PX]
    return cut.reshape(n, channels, rows, BLOCK_PX, columns, BLOCK_PX)


Basis = Literal["reference", "estimate"]

# Beyond these the estimate would be off by decibels (docs/design/adr/0013, docs/reports.md).
MIN_SIGMA_255 = 7.5  # weaker noise cannot be told from texture exactly enough
MAX_CLIPPED = 0.01  # share of black or white samples, whose noise is biased: 0.5 dB from here up
MAX_HIDDEN = 0.02  # share of pixels without meaning, whose fill has no noise: 0.1 dB from here up
SMOOTH_RATIO = 1.5  # of the network's estimate and the others, from which on noise is not white
TOO_SMALL = "too small to estimate"
NOT_WHITE = "the noise is not white, which an estimate needs"
LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"}  # formats that may be
_STRIP_ROWS = 256  # a multiple of the probe's blocks; a whole page in float32 is large


@dataclass(frozen=True)
class Quality:
    """Noise and error of one image, before and after.

    Attributes:
        sigma_in_255: σ of the input's noise, estimated from the input, in units of 1/255; None
            if it was not estimated.
        sigma_out_255: the same for the output, where fine texture adds a little; at most the
            input's.
        psnr_in: dB of the input, by `basis`.
        psnr_out: dB of the output, by `basis`.
        basis: "reference" if compared with a clean image, "estimate" if by SURE, which assumes
            white Gaussian noise; None without a PSNR.
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
        """dB gained from input to output; None without a PSNR or if both are ∞."""
        if self.psnr_in is None or self.psnr_out is None:
            return None
        gain = self.psnr_out - self.psnr_in
        return None if math.isnan(gain) else gain


@dataclass(frozen=True)
class Noise:
    """The noise of an input, judged before the network runs.

    Attributes:
        level: how strong it is, by estimators for white noise.
        sigma_255: how strong it is, in units of 1/255, by the estimate that suits it best.
        reason: why the error cannot be estimated, whatever the network gives; "" if it can.
    """

    level: NoiseLevel
    sigma_255: float
    reason: str = ""


def assess(page: DecodedImage, *, probe: bool) -> Noise:
    """Assess the noise of a page before the network runs.

    Args:
        page: as decoded.
        probe: whether its error is to be estimated.
    """
    level = _level(page, SHOWN)
    reason = _obstacle(page, level) if probe else ""
    if probe and not reason:
        level = _level(page, EXACT)
    return Noise(level, level.sigma_255, reason)


def measure(
    pages: Sequence[DecodedImage],
    samples: Sequence[Tensor],
    noises: Sequence[Noise],
    probes: Sequence[Probe | None],
    psnr: tuple[float, float] | None,
    levels: Sequence[float] = (),
) -> Quality:
    """Estimate a file's noise and, without a reference, its error.

    Args:
        pages: its pages.
        samples: their denoised samples: (H, W, C) as the file stores them, on the CPU.
        noises: their noise, by `assess`; empty if nothing is to be estimated.
        probes: their probes, if there are any.
        psnr: against a reference, before and after.
        levels: of the pages' noise by the network's estimate, for values in [0, 1], if it makes
            one. It stands for σ where the noise is not white, which the other estimators need.
    """
    sigmas: tuple[float | None, float | None] = None, None
    if noises:
        left = [
            wavelet_sigma(_windows(page, after, SHOWN), _step(page)) * 255
            for page, after in zip(pages, samples, strict=True)
        ]
        if levels:
            is_asked = any(noise.reason for noise in noises) or any(probes)
            pairs = zip(noises, levels, strict=True)
            noises = [_as_learned(noise, 255 * level, is_asked) for noise, level in pairs]
        # The two have different estimators, but what is left of noise is not more than it was.
        left = [min(noise.sigma_255, sigma) for noise, sigma in zip(noises, left, strict=True)]
        sigmas = _mean([noise.sigma_255 for noise in noises]), _mean(left)
    if psnr is not None:
        return Quality(*sigmas, *psnr, "reference")
    reason = next((noise.reason for noise in noises if noise.reason), "")
    if reason or not noises or not probes or any(probe is None for probe in probes):
        return Quality(*sigmas, reason=reason)
    estimates: list[Estimate] = []
    for page, after, probe, noise in zip(pages, samples, probes, noises, strict=True):
        assert probe is not None  # checked above, for all
        estimate = _estimate(page, after, probe, noise.level)
        if isinstance(estimate, str):
            return Quality(*sigmas, reason=estimate)
        estimates.append(estimate)
    mse_in, mse_out = _mean([e.mse_in for e in estimates]), _mean([e.mse_out for e in estimates])
    return Quality(*sigmas, psnr_of_mse(mse_in), psnr_of_mse(mse_out), "estimate")


def _as_learned(noise: Noise, level_255: float, is_asked: bool) -> Noise:
    """The noise, as strong as the network says where it is not white.

    Smooth noise hides from the other estimators, and may do so from both alike. `is_asked`: the
    error is to be estimated, or the reason why not.
    """
    if noise.level.is_white and level_255 < SMOOTH_RATIO * noise.sigma_255:
        return noise
    is_weak = level_255 < MIN_SIGMA_255 and noise.reason
    reason = NOT_WHITE if is_asked and not is_weak else noise.reason
    return replace(noise, sigma_255=level_255, reason=reason)


def _obstacle(page: DecodedImage, level: NoiseLevel) -> str:
    """Why a page's error cannot be estimated from this noise; "" if it can."""
    height, width = page.size
    if level.white_255 is None or height * width < MIN_PIXELS:
        return TOO_SMALL
    if level.sigma_255 < MIN_SIGMA_255:
        return f"too little noise to estimate it (σ̂ {level.sigma_255:.1f})"
    if not level.is_white:
        return NOT_WHITE
    hidden = 0.0 if page.kept is None else page.kept.mask.float().mean().item()
    if hidden > MAX_HIDDEN:
        return f"too much of the picture is hidden ({hidden:.0%})"
    clipped = 0
    for top in range(0, height, _STRIP_ROWS):
        noisy = page.value_range.to_unit(page.samples[top : top + _STRIP_ROWS])
        clipped += int(((noisy <= 0) | (noisy >= 1)).sum())
    share = clipped / page.samples.numel()
    if share > MAX_CLIPPED:
        return f"too much of the noise is clipped at black or white ({share:.0%})"
    return ""


def _estimate(page: DecodedImage, after: Tensor, probe: Probe, level: NoiseLevel) -> Estimate | str:
    """SURE of one page without an `_obstacle`, or why there is none."""
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
    seen = min(height * width, EXACT.pixels)
    sigma = level.white_255 / 255
    mean = residual / after.numel()
    estimate = estimate_mse(mean, response, sigma, channels, seen, probe.strength)
    return estimate or "the estimate contradicts itself: not white noise, or hardly denoised"


def _level(page: DecodedImage, effort: Effort) -> NoiseLevel:
    is_lossless = page.storage.format not in LOSSY
    windows = _windows(page, page.samples, effort)
    return noise_level(windows, effort.stride, step=_step(page), is_lossless=is_lossless)


def _step(page: DecodedImage) -> float:
    """The distance of neighbouring samples in [0, 1]; 0 for floats and where it is not one."""
    if page.samples.is_floating_point() or page.value_range.curve:
        return 0.0
    if page.samples.dtype == torch.uint8:
        return 1 / (page.storage.maximum or 255)
    return 1 / page.value_range.span


def _windows(page: DecodedImage, samples: Tensor, effort: Effort) -> Tensor:
    """A page's samples in windows spread over it, (N, C, H, W) in [0, 1]."""
    height, width = samples.shape[:2]
    places = window_slices(height, width, effort.pixels)
    windows = torch.stack([samples[rows, columns] for rows, columns in places])
    return page.value_range.to_unit(windows).permute(0, 3, 1, 2).contiguous()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
