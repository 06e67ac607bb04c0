"""Space to depth and back, in torch's order of channels: c·r² + row·r + column; channels-last."""

from torch import Tensor


def pixel_unshuffle(input: Tensor, factor: int) -> Tensor:
    """(N, C, H·r, W·r) → (N, C·r², H, W)."""
    n, c, height, width = input.shape
    h, w = height // factor, width // factor
    blocks = input.reshape(n, c, h, factor, w, factor).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, h, w, c * factor**2).permute(0, 3, 1, 2)


def pixel_shuffle(input: Tensor, factor: int) -> Tensor:
    """(N, C·r², H, W) → (N, C, H·r, W·r)."""
    n, channels, h, w = input.shape
    c = channels // factor**2
    blocks = input.reshape(n, c, factor, factor, h, w).permute(0, 4, 2, 5, 3, 1)
    return blocks.reshape(n, h * factor, w * factor, c).permute(0, 3, 1, 2)
