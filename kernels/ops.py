"""The only switchboard: which implementation does an op's work. No arithmetic here.

Blocks call `ops.conv2d_forward(...)` and never a twin directly. Every op is a pure function of
tensors (an optimiser's step works in place); shapes, meaning and equations are documented at its
specification in `reference/`.

The environment variable DENOISE_BATCH_KERNELS chooses the implementation, once, on import:

    auto       the default: on CUDA the Triton kernels that pass their self-check, else gemm
    triton     on CUDA the Triton kernels, come what may: no self-check, their errors are raised
    gemm       torch's matrix products, fast on any device
    reference  the specification, to compare with
"""

import os

import torch

from .errors import OptionError
from .gemm.fused import conv2d_fused, conv_transpose2d_fused
from .reference import (
    mse_loss,
    pixel_shuffle,
    pixel_unshuffle,
    relu_backward,
    relu_forward,
)

KERNELS = os.environ.get("DENOISE_BATCH_KERNELS", "auto")

if KERNELS == "reference":
    from .reference import (
        conv2d_backward,
        conv2d_forward,
        conv_transpose2d_backward,
        conv_transpose2d_forward,
        sigmoid_backward,
        sigmoid_forward,
        sigmoid_forward_,
        upsample_nearest2d_backward,
        upsample_nearest2d_forward,
    )
elif KERNELS in ("auto", "gemm", "triton"):
    from .gemm.conv import (
        conv2d_backward,
        conv2d_forward,
        conv_transpose2d_backward,
        conv_transpose2d_forward,
    )
    from .gemm.pointwise import (
        sigmoid_backward,
        sigmoid_forward,
        sigmoid_forward_,
        upsample_nearest2d_backward,
        upsample_nearest2d_forward,
    )
else:
    raise OptionError(f"DENOISE_BATCH_KERNELS={KERNELS!r}: choose auto, triton, gemm or reference")

if KERNELS not in ("reference", "gemm"):
    from .cuda.load import is_for_kernels, load
    from .switch import KernelDispatcher

    SWITCH = KernelDispatcher("triton" if KERNELS == "triton" else "auto", load, is_for_kernels)
    conv2d_forward = SWITCH.op(conv2d_forward)
    conv2d_backward = SWITCH.op(conv2d_backward)
    conv_transpose2d_forward = SWITCH.op(conv_transpose2d_forward)
    conv_transpose2d_backward = SWITCH.op(conv_transpose2d_backward)
    mse_loss = SWITCH.op(mse_loss)
    conv2d_fused = SWITCH.op(conv2d_fused)
    conv_transpose2d_fused = SWITCH.op(conv_transpose2d_fused)


def has_fused_kernels(device: torch.device) -> bool:
    """Whether inference on `device` goes through `fusion`, whose launches take along neighbours."""
    if KERNELS in ("reference", "gemm"):
        return False
    return SWITCH.kernel("conv2d_fused", device) is not None


__all__ = [
    "KERNELS",
    "conv2d_backward",
    "conv2d_forward",
    "conv2d_fused",
    "conv_transpose2d_backward",
    "conv_transpose2d_forward",
    "conv_transpose2d_fused",
    "has_fused_kernels",
    "mse_loss",
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
