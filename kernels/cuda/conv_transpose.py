"""L = conv_transpose(S): transposed convolution, and a convolution's data gradient, by phase.

Of the stride's s × s phases, each has the output positions (s·i + p, s·j + q) and only the taps
that reach them, ⌈k/s⌉² or fewer: no zeros are inserted, none multiplied, and every output is
written once. A program is one tile of one phase; the rest is the implicit GEMM of `conv_forward`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..geometry import ConvGeometry, IntPair
from .conv_forward import check_extents
from .epilogue import ACTIVATIONS, activate, as_position
from .tiles import conv_tile


@triton.jit(do_not_specialize=["batch", "height", "width", "out_height", "out_width"])
def conv_transpose_kernel(
    x_ptr,  # (batch, height, width, CI) NHWC, the smaller image
    w_ptr,  # (KH, KW, CO, CI) by its strides
    bias_ptr,  # (CO,)
    residual_ptr,  # as y
    y_ptr,  # (batch, out_height, out_width, CO) NHWC
    batch,
    height,
    width,
    out_height,
    out_width,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    W_K: tl.constexpr,
    W_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one phase's positions × columns."""
    phase_h = tl.program_id(2) // STRIDE_W
    phase_w = tl.program_id(2) % STRIDE_W
    rows = (out_height + STRIDE_H - 1) // STRIDE_H
    columns = (out_width + STRIDE_W - 1) // STRIDE_W
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image, i, j = as_position(m, rows, columns)
    oh = phase_h + STRIDE_H * i
    ow = phase_w + STRIDE_W * j
    mask_m = (m < batch * rows * columns) & (oh < out_height) & (ow < out_width)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < CO
    # Taps first, first + stride, … reach this phase, from input rows i + base, i + base − 1, …
    first_h = (phase_h + PAD_H) % STRIDE_H
    first_w = (phase_w + PAD_W) % STRIDE_W
    taps_h = (KH - first_h + STRIDE_H - 1) // STRIDE_H
    taps_w = (KW - first_w + STRIDE_W - 1) // STRIDE_W
    base_h = i + (phase_h + PAD_H) // STRIDE_H
    base_w = j + (phase_w + PAD_W) // STRIDE_W
    x_image = x_ptr + image * (height * width * CI)
    STEPS: tl.constexpr = (CI + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(taps_h * taps_w * STEPS):
        tap = step // STEPS
        channel = step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        mask_k = channel < CI
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        y = base_h - tap_h
        x = base_w - tap_w
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m
        a = tl.load(
            x_image[:, None] + ((y * width + x) * CI)[:, None] + channel[None, :],
            mask=inside[:, None] & mask_k[None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        kernel_tap = (first_h + STRIDE_H * tap_h) * KW + first_w + STRIDE_W * tap_w
        b = tl.load(
            w_ptr + kernel_tap * (CI * CO) + (channel * W_K)[:, None] + (n * W_N)[None, :],
            mask=mask_k[:, None] & mask_n[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    target = image * (out_height * out_width * CO) + (oh * out_width + ow) * CO
    target = target[:, None] + n[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + target, acc.to(y_ptr.dtype.element_ty), mask=mask)


def conv_transpose(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: ConvGeometry,
    *,
    kernel: IntPair,
    weight_strides: IntPair,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> None:
    """Fill `output` with act(conv_transpose(small) + bias) + residual.

    Args:
        small: (N, h, w, C) contiguous.
        weight: packed, in small's dtype.
        bias: one value for each column, or None.
        output: (N, H, W, C') contiguous.
        geometry: stride, and padding that is cut off at the top and left.
        kernel: kh, kw.
        weight_strides: of weight, along the channels summed over and along the columns.
        activation: None, "relu" or "sigmoid".
        residual: as output, or None.
    """
    stride, padding = geometry.stride, geometry.padding
    batch, height, width, channels = small.shape
    _, out_height, out_width, columns = output.shape
    rows, across = triton.cdiv(out_height, stride[0]), triton.cdiv(out_width, stride[1])
    positions = batch * rows * across
    tile = conv_tile(small.dtype, positions * stride[0] * stride[1], channels, columns)
    check_extents(small, output, positions)
    grid = (
        triton.cdiv(positions, tile.m),
        triton.cdiv(columns, tile.n),
        stride[0] * stride[1],
    )
    conv_transpose_kernel[grid](
        small,
        weight,
        small if bias is None else bias,
        small if residual is None else residual,
        output,
        batch,
        height,
        width,
        out_height,
        out_width,
        CI=channels,
        CO=columns,
        KH=kernel[0],
        KW=kernel[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        PAD_H=padding[0],
        PAD_W=padding[1],
        W_K=weight_strides[0],
        W_N=weight_strides[1],
        ACTIVATION=ACTIVATIONS[activation],
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
