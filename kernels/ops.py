"""The only switchboard: which implementation does an op's work. No arithmetic here.

Blocks call `ops.conv2d_forward(...)` and never a twin directly. Every op is a pure function of
tensors; shapes, meaning and equations are documented at its specification in `reference/`.

The environment variable DENOISE_BATCH_KERNELS chooses the implementation, once, on import: `gemm`
(the default, fast on any device) or `reference` (the specification, to compare with).
"""

import os

from .errors import OptionError
from .reference.activation import relu_backward, relu_forward
from .reference.loss import mse_loss_backward, mse_loss_forward
from .reference.shuffle import pixel_shuffle, pixel_unshuffle

KERNELS = os.environ.get("DENOISE_BATCH_KERNELS", "gemm")

if KERNELS == "gemm":
    from .gemm.activation import sigmoid_backward, sigmoid_forward, sigmoid_forward_
    from .gemm.conv import (
        conv2d_backward,
        conv2d_forward,
        conv_transpose2d_backward,
        conv_transpose2d_forward,
    )
    from .gemm.upsample import upsample_nearest2d_backward, upsample_nearest2d_forward
elif KERNELS == "reference":
    from .reference.activation import sigmoid_backward, sigmoid_forward, sigmoid_forward_
    from .reference.conv import (
        conv2d_backward,
        conv2d_forward,
        conv_transpose2d_backward,
        conv_transpose2d_forward,
    )
    from .reference.upsample import upsample_nearest2d_backward, upsample_nearest2d_forward
else:
    raise OptionError(f"DENOISE_BATCH_KERNELS={KERNELS!r}: choose gemm or reference")

__all__ = [
    "KERNELS",
    "conv2d_backward",
    "conv2d_forward",
    "conv_transpose2d_backward",
    "conv_transpose2d_forward",
    "mse_loss_backward",
    "mse_loss_forward",
    "pixel_shuffle",
    "pixel_unshuffle",
    "relu_backward",
    "relu_forward",
    "sigmoid_backward",
    "sigmoid_forward",
    "sigmoid_forward_",
    "upsample_nearest2d_backward",
    "upsample_nearest2d_forward",
]
