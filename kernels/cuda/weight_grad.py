"""dW = windows(L)ᵀ · S in two deterministic steps: sums over parts of the pixels, and their sum.

Rows are (tap, channel of L), columns channels of S, and the depth is pixels, which are split over
enough programs to fill a GPU. Each writes its own float32 part; a second kernel adds the parts in
one fixed order and writes the gradient in the parameter's layout. No atomics: the same bits come
out every time, on every GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import ConvGeometry, IntPair
from .conv_forward import check_extents
from .epilogue import as_position
from .tiles import splits, weight_grad_tile

SUM_BLOCK = 256


@triton.jit(do_not_specialize=["positions", "part", "height", "width", "out_height", "out_width"])
def weight_grad_kernel(
    large_ptr,  # (N, height, width, CL) NHWC
    small_ptr,  # (N, out_height, out_width, CS) NHWC
    parts_ptr,  # (splits, KH, KW, CL, CS) float32
    positions,  # N·out_height·out_width
    part,  # positions of one program
    height,
    width,
    out_height,
    out_width,
    CL: tl.constexpr,
    CS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of (tap, channel) × columns over one part of the positions."""
    ROWS: tl.constexpr = KH * KW * CL
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < ROWS
    channel = m % CL
    tap_h = m // CL // KW
    tap_w = m // CL % KW
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < CS
    start = tl.program_id(2) * part
    end = tl.minimum(start + part, positions)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        mask_k = k < end
        image, oh, ow = as_position(k, out_height, out_width)
        y = (oh * STRIDE_H - PAD_H)[:, None] + tap_h[None, :]
        x = (ow * STRIDE_W - PAD_W)[:, None] + tap_w[None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = (y * width + x) * CL + channel[None, :]
        a = tl.load(
            (large_ptr + image * (height * width * CL))[:, None] + source,
            mask=inside & mask_k[:, None] & mask_m[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_M]
        b = tl.load(
            (small_ptr + k.to(tl.int64) * CS)[:, None] + n[None, :],
            mask=mask_k[:, None] & mask_n[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    target = tl.program_id(2).to(tl.int64) * (ROWS * CS)
    target += m[:, None] * CS + n[None, :]
    tl.store(parts_ptr + target, acc, mask=mask_m[:, None] & mask_n[None, :])


@triton.jit(do_not_specialize=["parts"])
def sum_parts_kernel(
    parts_ptr,  # (parts, TAPS, CL, CS) float32
    grad_ptr,  # (TAPS, CL, CS)
    parts,
    NUMEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The parts' sum, in their order."""
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < NUMEL
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    source = parts_ptr + offset
    for _ in range(parts):
        total += tl.load(source, mask=mask, other=0.0)
        source += NUMEL
    tl.store(grad_ptr + offset, total, mask=mask)


def weight_grad(large: Tensor, small: Tensor, kernel: IntPair, geometry: ConvGeometry) -> Tensor:
    """windows(large)ᵀ · small as (S, L, kh, kw) float32, summed in float32; packed in memory.

    Args:
        large: (N, H, W, L) contiguous.
        small: (N, oh, ow, S) contiguous.
        kernel: kh, kw.
        geometry: stride and padding of the windows.
    """
    stride, padding = geometry.stride, geometry.padding
    batch, height, width, large_channels = large.shape
    _, out_height, out_width, small_channels = small.shape
    positions = batch * out_height * out_width
    rows = kernel[0] * kernel[1] * large_channels
    tile = weight_grad_tile(large.dtype, small_channels)
    wanted = splits(rows, small_channels, positions, tile)
    part = triton.cdiv(triton.cdiv(positions, wanted), tile.k) * tile.k
    check_extents(large, small, positions + part)
    count = triton.cdiv(positions, part)
    parts = large.new_empty((count, rows, small_channels), dtype=torch.float32)
    grid = (triton.cdiv(rows, tile.m), triton.cdiv(small_channels, tile.n), count)
    weight_grad_kernel[grid](
        large,
        small,
        parts,
        positions,
        part,
        height,
        width,
        out_height,
        out_width,
        CL=large_channels,
        CS=small_channels,
        KH=kernel[0],
        KW=kernel[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        PAD_H=padding[0],
        PAD_W=padding[1],
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    grad = large.new_empty((*kernel, large_channels, small_channels), dtype=torch.float32)
    sum_parts_kernel[(triton.cdiv(grad.numel(), SUM_BLOCK),)](
        parts,
        grad,
        count,
        NUMEL=grad.numel(),
        BLOCK=SUM_BLOCK,
    )
    return grad.permute(3, 2, 0, 1)
