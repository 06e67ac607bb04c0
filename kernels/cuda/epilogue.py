"""What the kernels share: positions of a flat index, and activations."""

import triton
import triton.language as tl

ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2}


@triton.jit
def as_position(m, height, width):
    """Flat m → (image as int64, row, column)."""
    row = m // width
    return (row // height).to(tl.int64), row % height, m % width


@triton.jit
def activate(acc, ACTIVATION: tl.constexpr):
    """ACTIVATIONS by number, in float32; e^−x may be infinite, the quotient is 0 then."""
    if ACTIVATION == 1:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 2:
        acc = 1.0 / (1.0 + tl.exp(-acc))
    return acc
