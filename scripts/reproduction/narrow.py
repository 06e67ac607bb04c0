"""The product's U-Net in other widths, for the plot of quality against cost."""

import torch

from denoise_batch.kernels import (
    Block,
    Conv2d,
    ConvTranspose2d,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Residual,
    Sequential,
    UNetLevel,
)
from denoise_batch.kernels.init import kaiming_normal_


def unet(width: int, generator: torch.Generator) -> Block:
    """`pipeline.networks`' U-Net with `width`, 2, 4 and 6 times `width` channels (there: 32).

    Residual: it takes and gives images in [0, 1]; sides are multiples of 16.
    """

    def body(channels: int) -> Block:
        first = Conv2d(channels, channels, 3, padding=1, generator=generator)
        kaiming_normal_(first.weight, generator)
        second = Conv2d(channels, channels, 3, padding=1, generator=generator)
        second.weight.mul_(0.1)
        return Residual(Sequential(first, ReLU(), second))

    def level(channels: int, inner_channels: int, inner: Block) -> Block:
        down = Conv2d(channels, inner_channels, 2, stride=2, generator=generator)
        up = ConvTranspose2d(inner_channels, channels, 2, stride=2, generator=generator)
        return UNetLevel(body(channels), down, inner, up, body(channels))

    bottom = Sequential(body(6 * width), body(6 * width))
    inner = level(2 * width, 4 * width, level(4 * width, 6 * width, bottom))
    stem = Conv2d(12, width, 3, padding=1, generator=generator)
    head = Conv2d(width, 12, 3, padding=1, generator=generator)
    head.weight.mul_(0.1)
    levels = level(width, 2 * width, inner)
    return Residual(Sequential(PixelUnshuffle(2), stem, levels, head, PixelShuffle(2)))
