"""The mean squared error and its gradient in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from .conv import DTYPES
from .tiles import POINTWISE_BLOCK


@triton.jit(do_not_specialize=["numel"])
def mse_loss_kernel(
    input_ptr,  # (numel,)
    target_ptr,  # (numel,)
    grad_ptr,  # (numel,)
    sums_ptr,  # (programs,) float32
    numel,
    scale,  # 2/numel
    BLOCK: tl.constexpr,
):
    """A block's gradient and its share of the loss."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:  # without a mask the loads are 128 bits wide whatever numel is
        x = tl.load(input_ptr + offset).to(tl.float32)
        difference = x - tl.load(target_ptr + offset).to(tl.float32)
        tl.store(grad_ptr + offset, (difference * scale).to(grad_ptr.dtype.element_ty))
        tl.store(sums_ptr + tl.program_id(0), tl.sum(difference * difference, axis=0))
    else:
        mask = offset < numel
        x = tl.load(input_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        difference = x - tl.load(target_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_ptr + offset, (difference * scale).to(grad_ptr.dtype.element_ty), mask=mask)
        tl.store(sums_ptr + tl.program_id(0), tl.sum(difference * difference, axis=0))


def mse_loss(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Triton implementation of `reference.mse_loss`; sums are float32."""
    if input.dtype not in DTYPES or target.dtype not in DTYPES or not input.numel():
        raise NotCoveredError(f"{input.dtype} and {target.dtype}, {input.numel()} elements")
    # Both in one order of elements, the input's if that is channels-last.
    layout = torch.contiguous_format
    if input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    input, target = input.contiguous(memory_format=layout), target.contiguous(memory_format=layout)
    grad = torch.empty_like(input)
    numel = input.numel()
    programs = triton.cdiv(numel, POINTWISE_BLOCK)
    sums = input.new_empty(programs, dtype=torch.float32)
    mse_loss_kernel[(programs,)](
        input, target, grad, sums, numel, 2 / numel, BLOCK=POINTWISE_BLOCK, num_warps=4
    )
    return (sums.sum() / numel).to(input.dtype), grad
