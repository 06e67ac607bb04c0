"""Noise models: what turns a clean tile into noisy versions of itself.

Noise2Noise (Lehtinen et al., 2018) needs two independent draws of the same tile, with a mean that
is the clean tile; both models here have that (subpixel exactly, Gaussian before any clipping).
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from denoise_batch.kernels import OptionError


class NoiseModel(ABC):
    """Draws noisy tiles from source tiles `factor` times as large."""

    factor: int = 1

    @abstractmethod
    def clean(self, source: Tensor) -> Tensor:
        """The noise-free tile: (N, C, factor·H, factor·W) → (N, C, H, W), float in [0, 1]."""

    @abstractmethod
    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """One noisy version of `clean(source)`, independent of every other draw."""


@dataclass(frozen=True)
class GaussianNoise(NoiseModel):
    """Additive white Gaussian noise, not clipped.

    Attributes:
        low_255: smallest standard deviation, in units of 1/255.
        high_255: largest; each image draws its own uniformly between the two.
    """

    low_255: float
    high_255: float

    def clean(self, source: Tensor) -> Tensor:
        """The source itself."""
        return source

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Source + σ·n, n standard normal, σ uniform in [low, high]/255 for each image."""
        shape = (len(source), 1, 1, 1)
        uniform = torch.rand(shape, generator=generator, device=source.device)
        sigma = (self.low_255 + (self.high_255 - self.low_255) * uniform) / 255
        noise = torch.randn(source.shape, generator=generator, device=source.device)
        return source + sigma * noise


@dataclass(frozen=True)
class SubpixelNoise(NoiseModel):
    """Point sampling, the noise of the report's data: one random pixel of every K×K block.

    The clean tile is the blocks' mean. Like one-sample-per-pixel rendering: white in space, equal
    across channels, zero in flat areas, proportional to local detail.
    """

    factor: int

    def clean(self, source: Tensor) -> Tensor:
        """The mean of every K×K block."""
        return self._blocks(source).mean((3, 5))

    def draw(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """One random pixel of every block, the same pixel for all channels."""
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


def parse_noise(text: str) -> NoiseModel:
    """The model that `--noise` names: `gaussian:S`, `gaussian:A-B` (σ in 1/255), `subpixel:K`.

    Raises:
        OptionError: another spelling, or a value out of range.
    """
    name, _, value = text.partition(":")
    number = r"\d+(?:\.\d+)?"
    if name == "gaussian" and (match := re.fullmatch(f"({number})(?:-({number}))?", value)):
        low = float(match[1])
        high = float(match[2] or match[1])
        if low <= high <= 255:
            return GaussianNoise(low, high)
    if name == "subpixel" and re.fullmatch(r"\d+", value) and 2 <= int(value) <= 64:
        return SubpixelNoise(int(value))
    raise OptionError(
        f"--noise {text!r}: write gaussian:25, gaussian:0-55 (σ in units of 1/255, rising) "
        "or subpixel:8 (blocks of 2 to 64 pixels)"
    )
