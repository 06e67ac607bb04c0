"""Pointwise ops in fewer passes over memory than the specification's."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..geometry import IntPair

_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def sigmoid_forward(input: Tensor) -> Tensor:
    """1/(1 + e^−x), as stable as the specification's, in one pass instead of six."""
    return torch.sigmoid(input)


def sigmoid_forward_(input: Tensor) -> Tensor:
    """The same in the place of x."""
    return input.sigmoid_()


def sigmoid_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """dσ/dx = σ − σ², times grad_output: two passes."""
    return torch.addcmul(output, output, output, value=-1).mul_(grad_output)


def relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """grad_output where the ReLU's output is positive, otherwise 0.

    In integers, since torch.where takes 5 ms for 2.4 M elements on 2 Zen 4 cores, three integer
    operations 0.2 to 0.4: a number above 0 has the bits of an integer above 0, and −1 is all ones.
    At a NaN with a sign (∞ − ∞ on x86) it is 0, unlike the specification's: `output <= 0` instead
    takes a sixth longer in float32, half again in bfloat16 (150 000 elements, one EPYC core).
    """
    bits = _INTEGERS[output.dtype]
    mask = output.view(bits).clamp(0, 1).neg_()
    return mask.bitwise_and_(grad_output.view(bits)).view(output.dtype)


def upsample_nearest2d_forward(input: Tensor, scale_factor: IntPair) -> Tensor:
    """One copy out of a view that repeats rows and columns."""
    sh, sw = scale_factor
    n, c, height, width = input.shape
    pixels = input.permute(0, 2, 3, 1)[:, :, None, :, None]
    repeated = pixels.expand(n, height, sh, width, sw, c)
    return repeated.reshape(n, height * sh, width * sw, c).permute(0, 3, 1, 2)


def upsample_nearest2d_backward(grad_output: Tensor, scale_factor: IntPair) -> Tensor:
    """The sh·sw copies of every pixel, one after the other: faster than a sum over two axes."""
    sh, sw = scale_factor
    pixels = grad_output.permute(0, 2, 3, 1)
    copies = [pixels[:, row::sh, column::sw] for row in range(sh) for column in range(sw)]
    total = copies[0].clone()
    for copy in copies[1:]:
        total += copy
    return total.permute(0, 3, 1, 2)


def normalize(input: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In rows of values and of means as long: a channel at a time the loops would be 3 long."""
    n, c, height, width = input.shape
    output = POOL.alloc((n, height, width * c), input)
    shift, scale = (_per_channel(tuple(values), c, input).repeat(width) for values in (mean, std))
    torch.sub(input.permute(0, 2, 3, 1).reshape(n, height, width * c), shift, out=output)
    return output.div_(scale).view(n, height, width, c).permute(0, 3, 1, 2)


def _per_channel(values: tuple[float, ...], channels: int, like: Tensor) -> Tensor:
    return _uploaded(values, like.device, like.dtype).expand(channels)


@cache
def _uploaded(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Kept for good: on CUDA an upload waits, and a recorded graph reads it where it lies."""
    return torch.tensor(values, device=device, dtype=dtype)
