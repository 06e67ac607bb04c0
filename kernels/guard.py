"""Limits what a network takes away from an image, by the level of its noise: the specification."""

import torch
from torch import Tensor

BLOCK_PX = 8  # divides every tile, so that tiles are guarded as the whole image is


def limit_residual(input: Tensor, output: Tensor, level: Tensor, most: float) -> Tensor:
    """Return the output, with output − input scaled down where it is stronger than the noise.

    Its mean square is taken over windows of 3×3 blocks and may be `most`·level².

    Args:
        input: (N, C, H, W), multiples of `BLOCK_PX`.
        output: the same shape.
        level: root mean square of the noise, (N,).
        most: largest power of what is removed, relative to the noise's.
    """
    residual = output - input
    n, channels, height, width = residual.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    blocks = residual.square().reshape(n, channels, rows, BLOCK_PX, columns, BLOCK_PX)
    power = _smooth(_smooth(blocks.mean((1, 3, 5)), 1), 2)
    allowed = most * level.to(power.dtype).square().view(-1, 1, 1)
    scale = (allowed / power.clamp_min(1e-12)).sqrt().clamp_max(1)
    scale = _stretched(_stretched(scale, 1), 2)
    return torch.addcmul(input, residual, scale[:, None])


def _smooth(blocks: Tensor, dim: int) -> Tensor:
    """The mean of each block and its neighbours along a dimension; of two at the edges."""
    size = blocks.shape[dim]
    total, count = blocks.clone(), blocks.new_ones(size)
    for here, there in ((1, 0), (0, 1)):
        total.narrow(dim, here, size - 1).add_(blocks.narrow(dim, there, size - 1))
        count.narrow(0, here, size - 1).add_(1)
    return total / count.view([-1 if axis == dim else 1 for axis in range(blocks.ndim)])


def _stretched(blocks: Tensor, dim: int) -> Tensor:
    """Blocks to pixels along a dimension, linearly between the blocks' centres."""
    size = blocks.shape[dim]
    before = torch.cat([blocks.narrow(dim, 0, 1), blocks.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([blocks.narrow(dim, 1, size - 1), blocks.narrow(dim, size - 1, 1)], dim)
    offset = (torch.arange(BLOCK_PX, device=blocks.device) + 0.5) / BLOCK_PX - 0.5
    offset = offset.to(blocks.dtype).view([-1] + [1] * (blocks.ndim - 1 - dim))
    here, before, after = (x.unsqueeze(dim + 1) for x in (blocks, before, after))
    pixels = here * (1 - offset.abs()) + before * (-offset).clamp_min(0)
    return (pixels + after * offset.clamp_min(0)).flatten(dim, dim + 1)
