"""Estimate how noisy an image is from the image alone: σ of its noise in units of 1/255.

Two estimators, because they fail differently (docs/design/adr/0013):

* wavelet: the median of the finest diagonal wavelet coefficients (Donoho and Johnstone, "Ideal
  spatial adaptation by wavelet shrinkage", 1994), taken in the flat parts of the image. It sees
  any noise that reaches the highest frequencies, including that of a JPEG file, and some texture.
* white: the floor of the covariance of small patches (Chen, Zhu and Heng, "An efficient
  statistical method for image noise level estimation", ICCV 2015). It is within 3 % for white
  Gaussian noise in colour, which estimating the mean squared error needs; far too low for other
  noise.

On white noise the two agree. If they do not, the noise is not white, or there is none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW_PX = 64
BLOCK = 16  # side, in wavelet coefficients, of the blocks that the flat ones are chosen from
FLAT_SHARE = 0.05  # of the blocks, which are taken as flat …
FLAT_COEFFICIENTS = 6000  # … or as many as have these: a median of them is off by 1.5 %
WEAK_255 = 7.5  # up to this the wavelet estimate may be texture alone
MAX_CLIPPED = 0.02  # share of black or white samples up to which a block is used
PATCH_PX = {3: 5, 1: 9}  # channels → side of a patch: 75 and 81 samples
NORMAL_MAD = 0.6744897501960817  # median of |n|, n standard normal
MIN_PATCHES = 1000  # fewer say nothing about a covariance of 75 dimensions
_BAND_ROWS = 32  # a multiple of every stride in use; so many times as many of narrow windows
_BAND_COLUMNS = 512
_TOGETHER = 8  # windows, whose bands stay in the L2 cache


@dataclass(frozen=True)
class Effort:
    """How much of an image is looked at.

    Attributes:
        pixels: at most; a larger image is sampled in windows.
        stride: between the patches of the white estimate.
    """

    pixels: int
    stride: int


# On Kodak in colour, σ 15 to 50, σ² is 0.3 to 0.5 % off (root mean square), as with every patch.
EXACT = Effort(2**19, 2)
SHOWN = Effort(2**17, 4)  # 2 to 3 % off


@dataclass(frozen=True)
class NoiseLevel:
    """σ of an image's noise by both estimators, in units of 1/255.

    Attributes:
        wavelet_255: the wavelet estimate; 0 below 2×2 pixels.
        white_255: the estimate for white noise; None if the image is too small.
        is_exact: the image is in colour and its file lossless: weak white noise is seen exactly.
    """

    wavelet_255: float
    white_255: float | None
    is_exact: bool = False

    @property
    def is_white(self) -> bool:
        """Whether the estimators agree as they do for white noise of σ ≥ 5 on photographs.

        The ratio white/wavelet is then 0.57 to 1.6 on Kodak; for noise that went through JPEG, 0.1.
        """
        if self.white_255 is None or self.wavelet_255 == 0:
            return False
        return 0.5 < self.white_255 / self.wavelet_255 < 1.7

    @property
    def sigma_255(self) -> float:
        """The best single estimate: the smaller of two that agree, else the wavelet's.

        Texture can only raise an estimate, so the smaller one is closer. Of weak noise the wavelet
        coefficients of a photograph are mostly texture (2 levels on clean Kodak), the patches not.
        """
        is_texture = self.is_exact and self.wavelet_255 < WEAK_255
        if self.white_255 is not None and (self.is_white or is_texture):
            return min(self.white_255, self.wavelet_255)
        return self.wavelet_255


def noise_level(
    windows: Tensor, stride: int = EXACT.stride, *, step: float = 0.0, is_lossless: bool = False
) -> NoiseLevel:
    """Make both estimates.

    Args:
        windows: an image, or its parts at `window_slices`: (N, C, H, W), C = 1 or 3, contiguous
            float32 on the CPU, values in [0, 1] (not clamped).
        stride: between the patches of the white estimate.
        step: between neighbouring values of integer samples, whose rounding is no noise.
        is_lossless: the file keeps every sample.
    """
    white = white_sigma(windows, stride)
    if white is not None:
        white = math.sqrt(max(0.0, white**2 - step**2 / 12)) * 255
    is_exact = is_lossless and windows.shape[1] == 3
    return NoiseLevel(wavelet_sigma(windows, step) * 255, white, is_exact)


def window_slices(height: int, width: int, most: int) -> list[tuple[slice, slice]]:
    """Rows and columns of windows spread evenly over an image, at most so many pixels in all.

    A small image is one window.
    """
    if height * width <= most:
        return [(slice(0, height), slice(0, width))]
    tall, wide = min(WINDOW_PX, height), min(WINDOW_PX, width)
    count = most // (tall * wide)
    rows = max(1, min(height // tall, count, round(math.sqrt(count * height / width))))
    columns = max(1, min(width // wide, count // rows))
    return [
        (slice(top, top + tall), slice(left, left + wide))
        for top in _starts(height, tall, rows)
        for left in _starts(width, wide, columns)
    ]


def wavelet_sigma(windows: Tensor, step: float = 0.0) -> float:
    """Median |HH| / 0.6745 over the blocks whose low-pass band varies least.

    For white noise, a block's low-pass band says nothing about its HH band, so choosing by the one
    does not bias the other. Without the choice, texture counts as noise (at σ = 10 up to 42 % on
    Kodak). Blocks with clipped samples hide noise and are used only if there are no others.

    Args:
        windows: as for `noise_level`.
        step: between neighbouring values of integer samples. Their coefficients have steps of half
            of it, so the median is interpolated, and the variance of rounding, step²/12, taken off.
    """
    channels, *size = windows.shape[1:]
    side = min(BLOCK, *(extent // 2 for extent in size))
    if side == 0:
        return 0.0
    flatness, coefficients = [], []
    for some in torch.split(windows, _TOGETHER):
        bands = _haar(some)
        low, high, clipped = (_blocks(band, side) for band in bands)  # [blocks, C · side²]
        spread = _blocks_spread(low, channels)
        flatness.append(spread + 1e3 * (clipped.mean(1) > MAX_CLIPPED))
        coefficients.append(high)
    flat, values = torch.cat(flatness), torch.cat(coefficients)
    count = max(FLAT_SHARE * len(flat), min(len(flat), FLAT_COEFFICIENTS / values.shape[1]), 1)
    sizes = values[flat.argsort()[: math.ceil(count)]].abs().flatten()
    median = sizes.median().item()
    if median < 8 * step:
        median = _interpolated_median(sizes, step / 2)
    return math.sqrt(max(0.0, (median / NORMAL_MAD) ** 2 - step**2 / 12))


def _interpolated_median(sizes: Tensor, step: float) -> float:
    """Median of magnitudes that were rounded to multiples of a step, as if they had not been."""
    counts = torch.bincount((sizes / step).round().long())
    sums, half = counts.cumsum(0), len(sizes) / 2
    place = int((sums < half).sum())
    before, inside = int(sums[place] - counts[place]), int(counts[place])
    start, width = (place - 0.5, 1.0) if place else (0.0, 0.5)
    return step * (start + width * (half - before) / inside)


def _haar(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low-pass and diagonal band of one orthonormal Haar step, and a mask of clipped samples."""
    height, width = (extent // 2 * 2 for extent in images.shape[2:])
    images = images[..., :height, :width]
    a, b = images[..., ::2, ::2], images[..., ::2, 1::2]
    c, d = images[..., 1::2, ::2], images[..., 1::2, 1::2]
    ends = torch.maximum(torch.maximum(a, b), torch.maximum(c, d)) >= 1
    ends |= torch.minimum(torch.minimum(a, b), torch.minimum(c, d)) <= 0
    return (a + b + c + d) / 2, (a - b - c + d) / 2, ends.to(images.dtype)


def _blocks(bands: Tensor, side: int) -> Tensor:
    """(N, C, h, w) → [blocks, C · side²]; incomplete blocks at the edges are left out."""
    n, channels, height, width = bands.shape
    rows, columns = height // side, width // side
    cut = bands[..., : rows * side, : columns * side]
    tiled = cut.reshape(n, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return tiled.reshape(n * rows * columns, channels * side * side)


def _blocks_spread(blocks: Tensor, channels: int) -> Tensor:
    """Variance inside each block, averaged over the channels."""
    spread: Tensor = blocks.reshape(len(blocks), channels, -1).var(2, correction=0).mean(1)
    return spread


def white_sigma(windows: Tensor, stride: int) -> float | None:
    """√ of the mean of the patch covariance's smallest eigenvalues; None for too few patches.

    Noise alone gives equal eigenvalues; the image raises the largest ones and skews the mean. The
    largest set whose mean does not exceed its median is taken as noise (Chen et al., Algorithm 1).
    """
    channels, height, width = windows.shape[1:]
    side = PATCH_PX[channels]
    size = channels * side * side
    count, total = 0, torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    if min(height, width) < side:
        return None
    # A few rows at a time: all patches at once are many times the image.
    band_rows = _BAND_ROWS * max(1, _BAND_COLUMNS // width)
    for some in torch.split(windows, _TOGETHER):
        near_zero = some - 0.5  # where float32 sums are most exact
        for top in range(0, height - side + 1, band_rows):
            band = near_zero[:, :, top : top + band_rows + side - 1]
            patches = band.unfold(2, side, stride).unfold(3, side, stride)
            rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
            count += len(rows)
            total += rows.sum(0).double()
            products += (rows.T @ rows).double()
    if count < MIN_PATCHES:
        return None
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    values = torch.linalg.eigvalsh(covariance).clamp_min(0).tolist()  # ascending
    for count in range(len(values), 0, -1):
        level = sum(values[:count]) / count
        median = (values[(count - 1) // 2] + values[count // 2]) / 2
        if level <= median:
            return math.sqrt(level)
    return math.sqrt(values[0])


def _starts(extent: int, side: int, count: int) -> list[int]:
    """The starts of `count` windows of `side`, each centred in an equal share of the extent."""
    share = extent / count
    return [min(extent - side, max(0, round((i + 0.5) * share - side / 2))) for i in range(count)]
