"""Noise models: they turn a clean tile into noisy versions of it.

Noise2Noise (Lehtinen et al., 2018) needs two independent draws of the same tile whose mean is the
clean tile. Gaussian, Poisson and subpixel noise satisfy this exactly; Bernoulli noise where a
target pixel is known (unknown ones do not count); camera noise nearly, as cameras clip and
quantise.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels import OptionError

from ..files.pixels import from_pil, to_pil
from ..metrics import luma
from .filters import block_means, enlargement, filtered, fine_variance, gaussian


class NoiseModel(ABC):
    """Draws noisy tiles from source tiles `factor` times as large in each direction."""

    factor: int = 1

    def clean(self, source: Tensor) -> Tensor:
        """Return the noise-free tile, (N, C, factor·H, factor·W) → (N, C, H, W); in [0, 1]."""
        return source

    @abstractmethod
    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return a noisy version of `clean(source)`, independent of every other draw."""

    def draw_target(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return a noisy version to use as target: unbiased, NaN where the pixel is unknown."""
        return self.draw(source, generator)

    def draw_with_level(self, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a noisy version and its level (N,), the root mean square of noisy − clean.

        White noise states its σ, which it had before clipping.
        """
        noisy = self.draw(source, generator)
        return noisy, rms(noisy - self.clean(source))


@dataclass(frozen=True)
class GaussianNoise(NoiseModel):
    """Additive white Gaussian noise, not clipped.

    Attributes:
        low_255: smallest standard deviation, in units of 1/255.
        high_255: largest standard deviation; each image draws its own between the two.
        exponent: of the uniform draw; above 1, weak noise is more frequent.
    """

    low_255: float
    high_255: float
    exponent: float = 1.0

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return source + σ·n; n is standard normal, σ = (low + (high − low)·uᵉ)/255 per image."""
        return self.draw_with_level(source, generator)[0]

    def draw_with_level(self, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a noisy version and its σ."""
        sigma = _sigma(self.low_255, self.high_255, self.exponent, source, generator)
        return _normal(source, generator).mul_(sigma).add_(source), sigma.flatten()


@dataclass(frozen=True)
class SubpixelNoise(NoiseModel):
    """Point sampling, the noise of the course paper's data: one random pixel of every K×K block.

    The clean tile is the mean of each block. Like one-sample-per-pixel rendering, the noise is
    white in space, equal across channels, zero in flat areas and proportional to local detail.

    Attributes:
        factor: side K of a block.
    """

    factor: int

    def clean(self, source: Tensor) -> Tensor:
        """Return the mean of every K×K block."""
        return self._blocks(source).mean((3, 5))

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random pixel of every block, the same pixel for all channels."""
        n, c, height, width = source.shape
        h, w = height // self.factor, width // self.factor
        shape = (2, n, h, w)
        offset = torch.randint(self.factor, shape, generator=generator, device=source.device)
        rows = offset[0] + self.factor * torch.arange(h, device=source.device).view(-1, 1)
        columns = offset[1] + self.factor * torch.arange(w, device=source.device)
        index = (rows * width + columns).view(n, 1, h * w).expand(n, c, h * w)
        return source.flatten(2).gather(2, index).view(n, c, h, w)

    def _blocks(self, source: Tensor) -> Tensor:
        n, c, height, width = source.shape
        k = self.factor
        return source.view(n, c, height // k, k, width // k, k)


@dataclass(frozen=True)
class PoissonNoise(NoiseModel):
    """Shot noise: a pixel of value x counts Poisson(peak·x) photons.

    Attributes:
        low: smallest peak, the photons at value 1; fewer photons mean more noise.
        high: largest peak; each image draws its own, log-uniformly.
    """

    low: float
    high: float

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return Poisson(peak·x)/peak, not clipped above."""
        peak = _log_uniform(self.low, self.high, source, generator)
        return torch.poisson(source.clamp_min(0) * peak, generator) / peak


@dataclass(frozen=True)
class BernoulliNoise(NoiseModel):
    """Lost pixels: each becomes 0 in all channels with some probability.

    Attributes:
        low: smallest probability.
        high: largest probability; each image draws its own, uniformly between the two.
    """

    low: float
    high: float

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return the source with lost pixels black."""
        return source.masked_fill(self._lost(source, generator), 0.0)

    def draw_target(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return the source with lost pixels unknown, as in the Noise2Noise paper."""
        return source.masked_fill(self._lost(source, generator), torch.nan)

    def _lost(self, source: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = source.shape
        share = _uniform((n, 1, 1, 1), source, generator) * (self.high - self.low) + self.low
        return _uniform((n, 1, height, width), source, generator) < share


@dataclass(frozen=True)
class CameraNoise(NoiseModel):
    """Camera noise: shot and read noise in linear light, 8 bits, and JPEG in half of the images.

    Foi et al., "Practical Poissonian-Gaussian noise modeling" (2008): the variance of linear light
    v is a·v + b. Each image draws a and b log-uniformly. In half of the images neighbouring pixels
    are slightly correlated, as after demosaicing; half are compressed as JPEG, quality 60 to 98.

    Attributes:
        strength: scale of the deviation; 1 covers daylight to high ISO (σ about 2 to 30 of 255).
    """

    strength: float = 1.0

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return simulated photographs of the source."""
        light = source.clamp(0, 1) ** 2.2
        shot = _log_uniform(1e-4, 1e-2, source, generator)
        read = _log_uniform(1e-6, 2e-4, source, generator)
        normal = _normal(source, generator)
        mixed = (normal + normal.roll(1, 2) + normal.roll(1, 3) + normal.roll((1, 1), (2, 3))) / 2
        is_mixed = _uniform((len(source), 1, 1, 1), source, generator) < 0.5
        deviation = self.strength * (shot * light + read).sqrt()
        light = light + deviation * torch.where(is_mixed, mixed, normal)
        image = torch.round(light.clamp(0, 1) ** (1 / 2.2) * 255) / 255
        choice = _uniform((len(source), 2), source, generator).tolist()
        tiles = [
            _through_jpeg(tile, round(60 + 38 * quality)) if is_jpeg < 0.5 else tile
            for tile, (is_jpeg, quality) in zip(_levels(image), choice, strict=True)
        ]
        return _from_levels(torch.stack(tiles), source)


@dataclass(frozen=True)
class PoissonGaussianNoise(NoiseModel):
    """Noise that grows with the signal, not clipped: variance a·x + b.

    Attributes:
        shot: smallest and largest a; each image draws its own, log-uniformly.
        read: smallest and largest b, drawn likewise.
    """

    shot: tuple[float, float] = (2e-4, 3e-2)
    read: tuple[float, float] = (1e-5, 1e-2)

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return source + √(a·source + b)·n; n is standard normal."""
        shot = _log_uniform(*self.shot, source, generator)
        read = _log_uniform(*self.read, source, generator)
        deviation = source.clamp(0, 1).mul_(shot).add_(read).sqrt_()
        return deviation.mul_(_normal(source, generator)).add_(source)


@dataclass(frozen=True)
class CorrelatedNoise(NoiseModel):
    """Coarse noise, not clipped, as in pictures that were developed, denoised in part or resized.

    White noise is blurred (σ 0.4 to 1.5 pixels); in half of the images chroma is up to three times
    as coarse as luma; in half the noise is enlarged by 1.1 to 4. Chroma is 0.5 to 2.5 times as
    strong as luma.

    Attributes:
        low_255: smallest standard deviation, in units of 1/255.
        high_255: largest standard deviation; each image draws its own between the two.
        exponent: of the uniform draw; above 1, weak noise is more frequent.
    """

    low_255: float = 0.0
    high_255: float = 50.0
    exponent: float = 1.5

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return the source plus coarse noise."""
        draw = _Draws(source, generator)
        blur, scale = draw.between(0.4, 1.5), draw.sometimes(0.5, draw.between(1.1, 4), 1.0)
        coarser, share = draw.sometimes(0.5, draw.between(1, 3), 1.0), draw.between(0.5, 2.5)

        def coarse(like: Tensor, deviation: Tensor) -> Tensor:
            return filtered(
                _normal(like, generator),
                lambda size: enlargement(size, scale) @ gaussian(size, deviation),
            )

        noise = coarse(source[:, :1], blur)
        if source.shape[1] == 3:
            chroma = _third_channel(coarse(source[:, :2], coarser * blur))
            noise = noise / _rms(noise) + share * chroma / _rms(chroma)
        sigma = _sigma(self.low_255, self.high_255, self.exponent, source, generator)
        return source + sigma * noise / _rms(noise)


@dataclass(frozen=True)
class RawNoise(NoiseModel):
    """The noise of a camera, taken along its path from the raw image to a finished one of 8 bits.

    Shot and read noise in linear light (variance a·v + b, Foi et al., 2008), white balance, Bayer
    mosaic and bilinear demosaicing, colour matrix, gamma, the camera's own denoising, chroma
    smoothing and subsampling, blur, sharpening of luma, enlarging, clipping and rounding; each
    image draws a, b and what it passes. Only the noise is filtered: the clean tile stays the
    reference.

    Attributes:
        strength: scale of the deviation.
    """

    strength: float = 1.0

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return simulated photographs; gray ones are the luma of colour photographs."""
        image = source.expand(-1, 3, -1, -1)
        difference = self._developed(image, generator) - image
        noisy = image + self._processed(difference, image, generator)
        noisy = luma(noisy) if source.shape[1] == 1 else noisy
        return _eight_bits(noisy)

    def _developed(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return the image after noise in linear light, mosaic, colour matrix and gamma."""
        draw, n = _Draws(image, generator), len(image)
        light = image.clamp(0, 1) ** 2.2
        red, blue = (draw.sometimes(0.8, draw.between(1.1, 2.4), 1.0) for _ in range(2))
        gain = torch.cat([red, torch.ones_like(red), blue], 1)
        shot = _log_uniform(5e-5, 2e-2, image, generator)
        read = _log_uniform(5e-7, 4e-4, image, generator)
        deviation = self.strength * (shot * gain * light + read * gain.square()).sqrt()
        noise = deviation * _normal(image, generator)
        is_mosaic = _uniform((n, 1, 1, 1), image, generator) < 0.75
        noise = torch.where(is_mosaic, _demosaiced(noise, draw), noise)
        # Off-diagonal entries of −0.5 to 0; every row sums to 1, so that white stays white.
        mixing = 0.5 * _uniform((n, 3, 3), image, generator)
        mixing = draw.sometimes(0.6, mixing[..., None], 0.0)[..., 0]
        matrix = torch.diag_embed(1 + mixing.sum(2)) - mixing
        noise = (matrix @ noise.flatten(2)).view_as(noise)
        developed: Tensor = (light + noise).clamp(0, 1) ** (1 / 2.2)
        return developed

    def _processed(self, noise: Tensor, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise (N, 3, H, W) after denoising, smoothing, sharpening and enlarging."""
        draw = _Draws(noise, generator)
        none = 1e-3  # a blur of this deviation is the identity
        blur = draw.sometimes(0.3, draw.between(0.4, 1.1), none)
        smoothing = draw.sometimes(0.5, draw.between(0.8, 3), none)
        radius, amount = draw.between(0.6, 1.4), draw.sometimes(0.4, draw.between(0.2, 1.2), 0.0)
        scale = draw.sometimes(0.25, draw.between(1.1, 2), 1.0)
        scale = draw.sometimes(0.2, draw.between(1.5, 4), scale)
        is_coarse = draw.between(0, 1) < 0.15
        step = torch.where(is_coarse, 2 + 2 * (draw.between(0, 1) < 0.5), 1)
        weight = torch.where(is_coarse, draw.between(0.3, 1), 1.0)
        weakened = draw.sometimes(0.75, draw.between(0.15, 1), 1.0)
        chroma_weight = torch.where(is_coarse, draw.between(1, 2.5), weakened)

        @cache
        def path(size: int) -> Tensor:
            return enlargement(size, scale) @ gaussian(size, blur)

        is_denoised, detail = draw.between(0, 1) < 0.7, fine_variance(image)
        most = draw.between(0.05, 1) * detail.mean((1, 2, 3), keepdim=True).clamp_min(1e-9)
        is_flat = most / (most + detail)
        least, decay = draw.between(0.1, 0.9), draw.between(0.3, 0.9)
        chroma_least, chroma_decay = least * draw.between(0, 1), draw.between(0.5, 1)
        y = noise.mean(1, keepdim=True)
        chroma = (noise - y)[:, ::2]
        y = _denoised_in_part(y, torch.where(is_denoised, least, 1.0), decay, is_flat)
        chroma = _denoised_in_part(
            chroma, torch.where(is_denoised, chroma_least, 1.0), chroma_decay, is_flat.sqrt()
        )
        plain = filtered(y, path)
        smooth = filtered(plain, lambda size: gaussian(size, radius))
        y = weight * (plain + amount * (plain - smooth))
        chroma = filtered(
            chroma, lambda size: path(size) @ gaussian(size, smoothing) @ block_means(size, step)
        )
        return y + chroma_weight * _third_channel(chroma)


@dataclass(frozen=True)
class JpegNoise(NoiseModel):
    """JPEG compression, the blocks beginning anywhere in the tile; 4:2:0 in three of four images.

    Attributes:
        low: smallest quality.
        high: largest quality; each image draws its own, uniformly between the two.
    """

    low: float = 60
    high: float = 100

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return the compressed source, of 8 bits."""
        draws = _uniform((len(source), 4), source, generator).tolist()
        height, width = source.shape[2:]
        tiles = []
        for tile, (quality, chroma, down, across) in zip(_levels(source), draws, strict=True):
            top, left = min(int(16 * down), height - 1), min(int(16 * across), width - 1)
            mirrored = torch.cat([tile[1 : top + 1].flip(0), tile])
            mirrored = torch.cat([mirrored[:, 1 : left + 1].flip(1), mirrored], 1)
            jpeg = _through_jpeg(
                mirrored,
                round(self.low + (self.high - self.low) * quality),
                SUBSAMPLINGS[int(len(SUBSAMPLINGS) * chroma)],
            )
            tiles.append(jpeg[top : top + height, left : left + width])
        return _from_levels(torch.stack(tiles), source)


class EightBits(NoiseModel):
    """Clipping to [0, 1] and rounding to 256 levels, as in a file of 8 bits."""

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return the source clipped and rounded."""
        return _eight_bits(source)


@dataclass(frozen=True)
class MixedNoise(NoiseModel):
    """Each image draws one of several models.

    Attributes:
        parts: (probability, model); what is left to 1 stays clean. No subpixel noise.
    """

    parts: tuple[tuple[float, NoiseModel], ...]

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return a noisy version of each image by the model that it drew; waits for the device."""
        noisy = source.clone()
        for model, rows in self._chosen(source, generator):
            noisy.index_copy_(0, rows, model.draw(source.index_select(0, rows), generator))
        return noisy

    def draw_with_level(self, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy versions and the levels that the models state; waits for the device."""
        noisy, level = source.clone(), source.new_zeros(len(source))
        for model, rows in self._chosen(source, generator):
            drawn, stated = model.draw_with_level(source.index_select(0, rows), generator)
            noisy.index_copy_(0, rows, drawn)
            level.index_copy_(0, rows, stated)
        return noisy, level

    def _chosen(
        self, source: Tensor, generator: torch.Generator
    ) -> list[tuple[NoiseModel, Tensor]]:
        """Return the models that were drawn, each with its images."""
        draws = _uniform((len(source),), source, generator).tolist()
        chosen, below = [], 0.0
        for probability, model in self.parts:
            rows = [i for i, draw in enumerate(draws) if below <= draw < below + probability]
            below += probability
            if rows:
                chosen.append((model, torch.tensor(rows, device=source.device)))
        return chosen


@dataclass(frozen=True)
class ChainedNoise(NoiseModel):
    """Several models in turn, each applied to the output of the one before.

    Attributes:
        models: at least one; only the first may be subpixel noise.
    """

    models: tuple[NoiseModel, ...]

    factor: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", self.models[0].factor)

    def clean(self, source: Tensor) -> Tensor:
        """Return the first model's clean tile."""
        return self.models[0].clean(source)

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Apply every model in turn."""
        for model in self.models:
            source = model.draw(source, generator)
        return source

    def draw_with_level(self, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply every model in turn; white noise that is only clipped and rounded states its σ."""
        first, *rest = self.models
        if isinstance(first, GaussianNoise) and all(isinstance(m, EightBits) for m in rest):
            noisy, level = first.draw_with_level(source, generator)
            for model in rest:
                noisy = model.draw(noisy, generator)
            return noisy, level
        return super().draw_with_level(source, generator)

    def draw_target(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Apply every model in turn; a pixel that one of them loses stays unknown.

        Later models see that pixel as it was before: a hole would bias its neighbours.
        """
        unknown: list[Tensor] = []
        for model in self.models:
            drawn = model.draw_target(source, generator)
            unknown.append(drawn.isnan())
            source = torch.where(unknown[-1], model.clean(source), drawn)
        return source.masked_fill(torch.stack(unknown).any(0), torch.nan)


OCTAVES = 0.7, 1.4, 2.8, 5.6  # standard deviations of Gaussian blurs, in pixels
SUBSAMPLINGS = (2, 2, 2, 2, 2, 2, 1, 0)  # as Pillow numbers 4:2:0, 4:2:2 and 4:4:4
WHITE = GaussianNoise(0, 75, 1.3)
# As few photons as 17 at white; `poisson-gaussian` by itself, which the suite scores, is weaker.
SIGNAL_DEPENDENT = PoissonGaussianNoise((2e-4, 6e-2))
# What a network for any picture should see; white noise most, which it learns most slowly (ADR 34).
REAL = MixedNoise(
    (
        (0.32, WHITE),
        (0.19, ChainedNoise((WHITE, EightBits()))),
        (0.03, ChainedNoise((WHITE, EightBits(), JpegNoise()))),
        (0.05, SIGNAL_DEPENDENT),
        (0.05, ChainedNoise((SIGNAL_DEPENDENT, EightBits()))),
        (0.20, ChainedNoise((RawNoise(), MixedNoise(((0.7, JpegNoise()),))))),
        (0.07, CameraNoise()),
        (0.07, ChainedNoise((CorrelatedNoise(), EightBits(), MixedNoise(((0.4, JpegNoise()),))))),
    )
)
NAMED: dict[str, NoiseModel] = {
    "real": REAL,
    "white": WHITE,
    "poisson-gaussian": PoissonGaussianNoise(),
    "correlated": CorrelatedNoise(),
    "raw": RawNoise(),
    "camera": CameraNoise(),
    "jpeg": JpegNoise(),
    "8bit": EightBits(),
}

SPELLINGS = (
    "real (a mixture for any picture), white (σ 0 to 75, mostly weak), "
    "gaussian:25 or gaussian:0-55 (σ in units of 1/255), poisson:30 or poisson:10-60 (photons at "
    "white), poisson-gaussian, correlated or correlated:25 (coarse, σ), raw or raw:0.5 (a camera's "
    "path from raw to 8 bits; strength), camera or camera:0.5 (a simpler one), jpeg or jpeg:60-90 "
    "(quality), 8bit (clipped and rounded), bernoulli:0.5 or bernoulli:0-0.7 (share of lost "
    "pixels), subpixel:8 (block side, 2 to 64 pixels), or several joined by +"
)


def parse_noise(text: str) -> NoiseModel:
    """Parse the value of `--noise`; see `SPELLINGS`.

    Raises:
        OptionError: an unknown spelling, or a value out of range.
    """
    models = tuple(_parse_one(part) for part in text.split("+"))
    if None in models or any(model and model.factor > 1 for model in models[1:]):
        raise OptionError(f"--noise {text!r}: use {SPELLINGS}; subpixel must come first")
    known = tuple(model for model in models if model)
    return known[0] if len(known) == 1 else ChainedNoise(known)


def _parse_one(text: str) -> NoiseModel | None:
    if text in NAMED:
        return NAMED[text]
    name, _, value = text.partition(":")
    if name == "subpixel" and value.isdecimal() and 2 <= int(value) <= 64:
        return SubpixelNoise(int(value))
    number = r"\d+(?:\.\d+)?"
    match = re.fullmatch(f"({number})(?:-({number}))?", value)
    if not match:
        return None
    low, high = float(match[1]), float(match[2] or match[1])
    models: dict[str, tuple[bool, Callable[[], NoiseModel]]] = {
        "gaussian": (high <= 255, lambda: GaussianNoise(low, high)),
        "correlated": (high <= 255, lambda: CorrelatedNoise(low, high, 1.0)),
        "poisson": (low > 0, lambda: PoissonNoise(low, high)),
        "bernoulli": (high < 1, lambda: BernoulliNoise(low, high)),
        "camera": (low == high, lambda: CameraNoise(low)),
        "raw": (low == high, lambda: RawNoise(low)),
        "jpeg": (low >= 1 and high <= 100, lambda: JpegNoise(low, high)),
    }
    is_valid, make = models.get(name, (False, None))
    return make() if make and is_valid and low <= high else None


def rms(tiles: Tensor) -> Tensor:
    """Return the root mean square of every tile (N, C, H, W): (N,)."""
    root: Tensor = torch.linalg.vector_norm(tiles, dim=(1, 2, 3)) / tiles[0].numel() ** 0.5
    return root


def _rms(tiles: Tensor) -> Tensor:
    """Return the root mean square of every tile as (N, 1, 1, 1), above 0."""
    return rms(tiles).clamp_min(1e-12).view(-1, 1, 1, 1)


class _Draws:
    """Values drawn for each image of `like`, (N, 1, 1, 1)."""

    def __init__(self, like: Tensor, generator: torch.Generator) -> None:
        self._like = like
        self._generator = generator

    def between(self, low: float, high: float) -> Tensor:
        """Draw uniformly."""
        uniform = _uniform((len(self._like), 1, 1, 1), self._like, self._generator)
        return low + (high - low) * uniform

    def sometimes(self, share: float, value: Tensor, otherwise: Tensor | float) -> Tensor:
        """Return the value for a share of the images."""
        return torch.where(self.between(0, 1) < share, value, otherwise)


def _third_channel(pair: Tensor) -> Tensor:
    """Put a green between red and blue (N, 2, H, W) such that the three sum to 0."""
    return torch.stack([pair[:, 0], -pair[:, 0] - pair[:, 1], pair[:, 1]], 1)


def _denoised_in_part(noise: Tensor, least: Tensor, decay: Tensor, is_flat: Tensor) -> Tensor:
    """Weaken noise as a camera's denoiser does: fine noise more than coarse, most in flat areas.

    Denoisers remove single octaves (wavelet shrinkage, or alike). Of the noise of four octaves they
    leave the parts 1 − (1 − l)·dᵇ, b = 0 the finest, here, and all of what is coarser.

    Args:
        noise: (N, C, H, W).
        least: l, what is left of the finest octave; 1 for all noise.
        decay: d, by octaves.
        is_flat: how much a pixel is removed from, in [0, 1].
    """
    rest, removed = noise, torch.zeros_like(noise)
    share = (1 - least) * is_flat
    for radius in OCTAVES:
        coarser = filtered(noise, partial(gaussian, sigma=torch.full_like(least, radius)))
        removed += share * (rest - coarser)
        rest, share = coarser, share * decay
    return noise - removed


def _demosaiced(noise: Tensor, draw: "_Draws") -> Tensor:
    """Keep one colour a pixel, as under a Bayer filter of any phase, and interpolate the others."""
    height, width = noise.shape[2:]
    rows = torch.arange(height, device=noise.device).view(-1, 1)
    columns = torch.arange(width, device=noise.device)
    down, across = (draw.between(0, 1) < 0.5 for _ in range(2))
    is_odd_row, is_odd_column = (rows % 2 == 1) ^ down, (columns % 2 == 1) ^ across
    is_red, is_blue = ~is_odd_row & ~is_odd_column, is_odd_row & is_odd_column
    mosaic = noise * torch.cat([is_red, is_odd_row ^ is_odd_column, is_blue], 1)
    green = mosaic[:, 1:2]
    green = green + (_beside(green, 2) + _beside(green, 3)) / 4
    others = mosaic[:, ::2]
    others = others + _beside(others, 2) / 2
    others = others + _beside(others, 3) / 2
    return torch.cat([others[:, :1], green, others[:, 1:]], 1)


def _beside(image: Tensor, dim: int) -> Tensor:
    """Return the sum of both neighbours of every pixel along a dimension, mirrored at the ends."""
    size = image.shape[dim]
    before = torch.cat([image.narrow(dim, 1, 1), image.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([image.narrow(dim, 1, size - 1), image.narrow(dim, size - 2, 1)], dim)
    return before + after


def _eight_bits(images: Tensor) -> Tensor:
    return images.clamp(0, 1).mul_(255).round_().div_(255)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


def _sigma(
    low_255: float, high_255: float, exponent: float, like: Tensor, generator: torch.Generator
) -> Tensor:
    """Return one σ per image of `like`, (N, 1, 1, 1), in the unit of the pixels."""
    uniform = _uniform((len(like), 1, 1, 1), like, generator) ** exponent
    return (low_255 + (high_255 - low_255) * uniform) / 255


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _log_uniform(low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return one log-uniform value per image of `like`: (N, 1, 1, 1)."""
    uniform = _uniform((len(like), 1, 1, 1), like, generator)
    return low * (high / low) ** uniform


def _levels(tiles: Tensor) -> Tensor:
    """Return tiles (N, C, H, W) as 8-bit levels (N, H, W, C) on the host."""
    levels = tiles.clamp(0, 1).mul_(255).round_().to("cpu", torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def _from_levels(levels: Tensor, like: Tensor) -> Tensor:
    """Return 8-bit levels (N, H, W, C) as tiles (N, C, H, W) of the type of `like`."""
    return levels.permute(0, 3, 1, 2).to(like.device, like.dtype).contiguous() / 255


def _through_jpeg(levels: Tensor, quality: int, subsampling: int = 2) -> Tensor:
    """Compress 8-bit levels (H, W, C), C = 1 or 3, as JPEG and decode them again."""
    before = to_pil(levels)
    file = io.BytesIO()
    before.save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as image:
        return from_pil(image.convert(before.mode))
