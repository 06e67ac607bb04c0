"""How good one image is, before and after: against a reference, or estimated without one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..files.picture import Picture
from ..metrics import psnr_of_mse
from ..noise_level import MOST_PIXELS, NoiseLevel, noise_level, wavelet_sigma, window_places
from ..sure import LEAST_PIXELS, Estimate, Probe, block_spreads, divergence, estimate_mse

Basis = Literal["reference", "estimate"]

# Beyond these the estimate would be off by decibels (docs/adr/0013, docs/reports.md).
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


def assess(page: Picture, *, is_probing: bool) -> Noise:
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
    pictures: Sequence[Picture],
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


def _why_not(page: Picture, level: NoiseLevel) -> str:
    """Why a page's error cannot be estimated from this noise, or nothing."""
    height, width = page.layout.size
    if level.white_255 is None or height * width < LEAST_PIXELS:
        return TOO_SMALL
    if level.sigma_255 < LEAST_SIGMA_255:
        return f"too little noise to estimate it (σ̂ {level.sigma_255:.1f})"
    if not level.is_white:
        return "the noise is not white, which an estimate needs"
    clipped = 0
    for top in range(0, height, _STRIP_ROWS):
        noisy = page.layout.scale.to_unit(page.samples[top : top + _STRIP_ROWS])
        clipped += int(((noisy <= 0) | (noisy >= 1)).sum())
    share = clipped / page.samples.numel()
    if share > MOST_CLIPPED:
        return f"too much of the noise is clipped at black or white ({share:.0%})"
    return ""


def _estimate(page: Picture, after: Tensor, probe: Probe, level: NoiseLevel) -> Estimate | str:
    """SURE of one page that `_why_not` let pass, or why there is none."""
    height, width, channels = after.shape
    residual, spreads = 0.0, []
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        noisy = page.layout.scale.to_unit(page.samples[rows])
        denoised = page.layout.scale.to_unit(after[rows])
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


def _windows(page: Picture, samples: Tensor) -> list[Tensor]:
    """Parts of a page's samples as (C, H, W) in [0, 1]."""
    return [
        page.layout.scale.to_unit(samples[rows, columns]).permute(2, 0, 1).contiguous()
        for rows, columns in window_places(*samples.shape[:2])
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
