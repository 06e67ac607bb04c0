"""Weight initialisation, bit for bit torch's: the same seed gives the same weights."""

import math

import torch
from torch import Tensor


def kaiming_uniform_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a convolution's weight from U(−b, b), b = √3 · gain / √fan_in with gain = √(1/3).

    torch's default for every convolution: He et al., "Delving deep into rectifiers" (2015), with
    the leaky slope a = √5, so that b is 1/√fan_in.

    Args:
        weight: (out_channels, in_channels, kh, kw), or (in, out, kh, kw) of a transposed one;
            torch counts shape[1]·kh·kw as the fan-in of both.
        generator: source of randomness; torch's global one by default.
    """
    gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
    bound = math.sqrt(3.0) * (gain / math.sqrt(fan_in(weight)))
    return weight.uniform_(-bound, bound, generator=generator)


def kaiming_normal_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a weight from N(0, 2/fan_in), which keeps the deviation through a ReLU (He et al.)."""
    return weight.normal_(0.0, math.sqrt(2.0 / fan_in(weight)), generator=generator)


def bias_uniform_(bias: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a bias from U(−1/√fan_in, 1/√fan_in) of its weight."""
    bound = 1 / math.sqrt(fan_in(weight))
    return bias.uniform_(-bound, bound, generator=generator)


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs that torch counts per output: shape[1]·kh·kw."""
    return weight[0].numel()
