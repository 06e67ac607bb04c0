"""Noise models: they turn a clean tile into noisy versions of it.

Noise2Noise (Lehtinen et al., 2018) needs two independent draws of the same tile whose mean is the
clean tile. Gaussian, Poisson and subpixel noise satisfy this exactly; Bernoulli noise where a
target pixel is known (unknown ones do not count); camera noise nearly, as cameras clip and
quantise.
"""

import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels import OptionError

from ..files.pixels import from_pil, to_pil


class NoiseModel(ABC):
    """Draws noisy tiles from source tiles `factor` times as large in each direction."""

    factor: int = 1

    @abstractmethod
    def clean(self, source: Tensor) -> Tensor:
        """Return the noise-free tile: (N, C, factor·H, factor·W) → (N, C, H, W), in [0, 1]."""

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
        high_255: largest standard deviation; each image draws its own, uniformly between the two.
    """

    low_255: float
    high_255: float

    def clean(self, source: Tensor) -> Tensor:
        """Return the source itself."""
        return source

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return source + σ·n; n is standard normal, σ uniform in [low, high]/255 per image."""
        return self.draw_with_level(source, generator)[0]

    def draw_with_level(self, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a noisy version and its σ."""
        shape = (len(source), 1, 1, 1)
        uniform = torch.rand(shape, generator=generator, device=source.device)
        sigma = (self.low_255 + (self.high_255 - self.low_255) * uniform) / 255
        noise = torch.randn(source.shape, generator=generator, device=source.device)
        return source + sigma * noise, sigma.flatten()


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

    def clean(self, source: Tensor) -> Tensor:
        """Return the source itself."""
        return source

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

    def clean(self, source: Tensor) -> Tensor:
        """Return the source itself."""
        return source

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

    def clean(self, source: Tensor) -> Tensor:
        """Return the source itself."""
        return source

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return simulated photographs of the source."""
        light = source.clamp(0, 1) ** 2.2
        shot = _log_uniform(1e-4, 1e-2, source, generator)
        read = _log_uniform(1e-6, 2e-4, source, generator)
        normal = torch.randn(source.shape, generator=generator, device=source.device)
        mixed = (normal + normal.roll(1, 2) + normal.roll(1, 3) + normal.roll((1, 1), (2, 3))) / 2
        is_mixed = _uniform((len(source), 1, 1, 1), source, generator) < 0.5
        deviation = self.strength * (shot * light + read).sqrt()
        light = light + deviation * torch.where(is_mixed, mixed, normal)
        image = torch.round(light.clamp(0, 1) ** (1 / 2.2) * 255) / 255
        choice = _uniform((len(source), 2), source, generator).tolist()
        tiles = [
            _through_jpeg(tile, round(60 + 38 * quality)) if is_jpeg < 0.5 else tile
            for tile, (is_jpeg, quality) in zip(image, choice, strict=True)
        ]
        return torch.stack(tiles)


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


SPELLINGS = (
    "gaussian:25 or gaussian:0-55 (σ in units of 1/255), poisson:30 or poisson:10-60 (photons at "
    "white), bernoulli:0.5 or bernoulli:0-0.7 (share of lost pixels), subpixel:8 (block side, 2 to "
    "64 pixels), camera or camera:0.5 (strength), or several joined by +"
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
    name, _, value = text.partition(":")
    number = r"\d+(?:\.\d+)?"
    match = re.fullmatch(f"({number})(?:-({number}))?", value)
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (1.0, 1.0)
    is_range = bool(match and low <= high)
    if name == "gaussian" and is_range and high <= 255:
        return GaussianNoise(low, high)
    if name == "poisson" and is_range and low > 0:
        return PoissonNoise(low, high)
    if name == "bernoulli" and is_range and high < 1:
        return BernoulliNoise(low, high)
    if name == "camera" and (text == "camera" or (is_range and low == high)):
        return CameraNoise(low)
    if name == "subpixel" and value.isdecimal() and 2 <= int(value) <= 64:
        return SubpixelNoise(int(value))
    return None


def rms(tiles: Tensor) -> Tensor:
    """Return the root mean square of every tile (N, C, H, W): (N,)."""
    return tiles.square().mean((1, 2, 3)).sqrt()


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _log_uniform(low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return one log-uniform value per image of `like`: (N, 1, 1, 1)."""
    uniform = _uniform((len(like), 1, 1, 1), like, generator)
    return low * (high / low) ** uniform


def _through_jpeg(tile: Tensor, quality: int) -> Tensor:
    """Compress a tile (C, H, W), C = 1 or 3, as JPEG and decode it again."""
    before = to_pil((tile * 255).round().to("cpu", torch.uint8).permute(1, 2, 0))
    file = io.BytesIO()
    before.save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        after = from_pil(image.convert(before.mode))
    return after.permute(2, 0, 1).to(tile.device, tile.dtype) / 255
