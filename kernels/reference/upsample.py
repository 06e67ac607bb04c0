"""Nearest-neighbour upsampling by whole factors (report, II-C)."""

from torch import Tensor

from ..shapes import IntPair


def upsample_nearest2d_forward(input: Tensor, *, scale_factor: IntPair) -> Tensor:
    """Repeat every pixel sh times down and sw times across: (N, C, H, W) → (N, C, H·sh, W·sw)."""
    sh, sw = scale_factor
    return input.repeat_interleave(sh, dim=2).repeat_interleave(sw, dim=3)


def upsample_nearest2d_backward(grad_output: Tensor, *, scale_factor: IntPair) -> Tensor:
    """Each input pixel gets the sum of the gradients of its copies."""
    sh, sw = scale_factor
    n, c, oh, ow = grad_output.shape
    return grad_output.reshape(n, c, oh // sh, sh, ow // sw, sw).sum((3, 5))
