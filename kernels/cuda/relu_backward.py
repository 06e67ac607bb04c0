"""dZ = dY where Y > 0, with its sums over each channel: ReLU's and the bias's gradient at once.

One pass over dY (and Y). Each program sums its rows in float32; torch adds the programs' sums, in a
fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .conv_forward import check_extents
from .tiles import POINTWISE_BLOCK


@triton.jit(do_not_specialize=["rows"])
def relu_backward_bias_grad_kernel(
    grad_ptr,  # (rows, C) contiguous
    output_ptr,  # as grad; the ReLU's output
    masked_ptr,  # as grad; dZ
    sums_ptr,  # (programs, C) float32
    rows,
    C: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Some rows of some channels."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    offset = row.to(tl.int64)[:, None] * C + channel[None, :]
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
    if HAS_MASK:
        output = tl.load(output_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        # Of an output that is NaN the gradient passes, as in the specification.
        grad = tl.where(output <= 0.0, 0.0, grad.to(tl.float32)).to(grad_ptr.dtype.element_ty)
        tl.store(masked_ptr + offset, grad, mask=mask)
    sums = tl.sum(grad.to(tl.float32), axis=0)
    target = sums_ptr + tl.program_id(0).to(tl.int64) * C + channel
    tl.store(target, sums, mask=channel < C)


def relu_backward_bias_grad(grad: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
    """(dZ, Σ dZ over all but the channels), the sums in float32.

    Args:
        grad: (N, H, W, C) contiguous.
        output: the ReLU's output, laid out as grad; or None: then dZ is grad itself.
    """
    channels = grad.shape[3]
    rows = grad.numel() // channels
    check_extents(grad, grad, rows)
    block_c = min(triton.next_power_of_2(channels), 64)
    block_r = POINTWISE_BLOCK // block_c
    programs = triton.cdiv(rows, block_r)
    masked = grad if output is None else torch.empty_like(grad)
    sums = grad.new_empty((programs, channels), dtype=torch.float32)
    relu_backward_bias_grad_kernel[(programs, triton.cdiv(channels, block_c))](
        grad,
        grad if output is None else output,
        masked,
        sums,
        rows,
        C=channels,
        HAS_MASK=output is not None,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return masked, sums.sum(0)
