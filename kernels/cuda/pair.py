"""Two layers of Architecture 1 in one launch: the layer between them never leaves the chip.

A row is one position of the middle map, which is 1/4 of the image a side. The encoder computes, for
each of the second convolution's 9 taps, the first convolution's pixel that the tap reads, straight
from the image, and multiplies it on; each such pixel is computed 9/4 times. The decoder computes,
for a block of 4 × 4 output pixels, the 3 × 3 pixels of the layer before that reach it, and
multiplies each by the part of the last kernel that lands in the block.

Weights come padded by zeros to powers of two (24 → 32, 48 → 64), so nothing is masked but pixels.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from .conv import check_covered, new_image, nhwc
from .conv_forward import check_extents
from .epilogue import activate, as_position
from .packed_weights import kept
from .tiles import PAIR

OUTER, INNER = 32, 64  # channels of the outer and the middle map, padded


@triton.jit(do_not_specialize=["positions", "height", "width", "rows", "columns"])
def encoder_kernel(
    x_ptr,  # (N, height, width, 3) NHWC
    w1_ptr,  # (64, OUTER): row (tap row, tap column, channel), 48 of them, then zeros
    b1_ptr,  # (OUTER,)
    w2_ptr,  # (9, OUTER, INNER)
    b2_ptr,  # (INNER,)
    z_ptr,  # (N, rows, columns, CHANNELS) NHWC
    positions,
    height,
    width,
    rows,
    columns,
    CHANNELS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A tile of positions of the middle map."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    image, r, c = as_position(m, rows, columns)
    k = tl.arange(0, 64)
    outer = tl.arange(0, OUTER)
    inner = tl.arange(0, INNER)
    # The 4 × 4 × 3 window of a pixel of the first layer: 4 runs of 12.
    window = k // 12 * (width * 3) + k % 12
    corner = (4 * r * width + 4 * c) * 3
    source = x_ptr + image * (height * width * 3) + corner
    w1 = tl.load(w1_ptr + k[:, None] * OUTER + outer[None, :])  # [64, OUTER]
    b1 = tl.load(b1_ptr + outer).to(tl.float32)
    acc = tl.zeros((BLOCK_M, INNER), dtype=tl.float32)
    for tap in range(9):
        step = (tap // 3 * 2 * width + tap % 3 * 2) * 3
        a = tl.load(
            (source + step)[:, None] + window[None, :],
            mask=mask_m[:, None] & (k < 48)[None, :],
            other=0.0,
        )  # [BLOCK_M, 64]
        hidden = activate(tl.dot(a, w1, input_precision="ieee") + b1[None, :], 1)
        w2 = tl.load(w2_ptr + tap * (OUTER * INNER) + outer[:, None] * INNER + inner[None, :])
        acc = tl.dot(hidden.to(w2_ptr.dtype.element_ty), w2, acc, input_precision="ieee")
    acc = activate(acc + tl.load(b2_ptr + inner).to(tl.float32)[None, :], 1)
    target = (z_ptr + m.to(tl.int64) * CHANNELS)[:, None] + inner[None, :]
    mask = mask_m[:, None] & (inner < CHANNELS)[None, :]
    tl.store(target, acc.to(z_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["positions", "rows", "columns"])
def decoder_kernel(
    z_ptr,  # (N, rows, columns, CHANNELS) NHWC
    w1_ptr,  # (9, INNER, OUTER)
    b1_ptr,  # (OUTER,)
    w2_ptr,  # (9, OUTER, 64): part (I, J) of the last kernel, by (a, b, channel) of the block
    b2_ptr,  # (64,)
    y_ptr,  # (N, 4·rows + 4, 4·columns + 4, 3) NHWC
    positions,  # N·(rows + 1)·(columns + 1) blocks of 4 × 4 output pixels
    rows,
    columns,
    CHANNELS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A tile of blocks of 4 × 4 output pixels."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    image, r, c = as_position(m, rows + 1, columns + 1)
    outer = tl.arange(0, OUTER)
    inner = tl.arange(0, INNER)
    q = tl.arange(0, 64)
    z_image = z_ptr + image * (rows * columns * CHANNELS)
    b1 = tl.load(b1_ptr + outer).to(tl.float32)
    acc = tl.zeros((BLOCK_M, 64), dtype=tl.float32)
    for part in range(9):
        # Pixel (2r − 1 + I, 2c − 1 + J) of the layer between. An even row has the taps 0 and 2,
        # from the position there and the one before, an odd row tap 1 alone.
        i = part // 3
        j = part % 3
        taps_h = tl.where(i == 1, 2, 1)
        taps_w = tl.where(j == 1, 2, 1)
        hidden = tl.zeros((BLOCK_M, OUTER), dtype=tl.float32)
        for tap in range(taps_h * taps_w):
            tap_h = tap // taps_w
            tap_w = tap % taps_w
            y = r - tl.where(i == 1, tap_h, tl.where(i == 0, 1, 0))
            x = c - tl.where(j == 1, tap_w, tl.where(j == 0, 1, 0))
            kernel_h = tl.where(i == 1, 2 * tap_h, 1)
            kernel_w = tl.where(j == 1, 2 * tap_w, 1)
            inside = mask_m & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            z = tl.load(
                (z_image + (y * columns + x) * CHANNELS)[:, None] + inner[None, :],
                mask=inside[:, None] & (inner < CHANNELS)[None, :],
                other=0.0,
            )  # [BLOCK_M, INNER]
            w1 = tl.load(
                w1_ptr
                + (kernel_h * 3 + kernel_w) * (INNER * OUTER)
                + inner[:, None] * OUTER
                + outer[None, :]
            )
            hidden = tl.dot(z, w1, hidden, input_precision="ieee")
        hidden = activate(hidden + b1[None, :], 1)
        # Outside of the layer there is nothing, not even its bias.
        exists = (2 * r - 1 + i >= 0) & (2 * r - 1 + i <= 2 * rows)
        exists = exists & (2 * c - 1 + j >= 0) & (2 * c - 1 + j <= 2 * columns)
        hidden = tl.where(exists[:, None], hidden, 0.0).to(w2_ptr.dtype.element_ty)
        w2 = tl.load(w2_ptr + part * (OUTER * 64) + outer[:, None] * 64 + q[None, :])
        acc = tl.dot(hidden, w2, acc, input_precision="ieee")
    acc = activate(acc + tl.load(b2_ptr + q).to(tl.float32)[None, :], 2)
    width = 4 * columns + 4
    corner = image * ((4 * rows + 4) * width * 3) + (4 * r * width + 4 * c) * 3
    within = q // 12 * (width * 3) + q % 12
    mask = mask_m[:, None] & (q < 48)[None, :]
    target = y_ptr + corner[:, None] + within[None, :]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=mask)


def tconv_encoder(
    input: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """As `gemm.fused.tconv_encoder`."""
    inner = _inner_channels(input, weight1, weight2)
    x = nhwc(input)
    batch, height, width, _ = x.shape
    rows, columns = ((extent - 4) // 2 // 2 for extent in (height, width))
    output = new_image(input, inner, (rows, columns))
    positions = batch * rows * columns
    check_extents(x, output, positions)
    tile = PAIR[input.dtype != torch.float32]
    encoder_kernel[(triton.cdiv(positions, tile.m),)](
        x,
        # (C₁, 3, 4, 4) → (row, column, channel) × C₁
        _padded(weight1, input.dtype, (64, OUTER), lambda w: w.permute(2, 3, 1, 0).flatten(0, 2)),
        _padded(bias1, torch.float32, (OUTER,)),
        _padded(
            weight2, input.dtype, (9, OUTER, INNER), lambda w: w.permute(2, 3, 1, 0).flatten(0, 1)
        ),
        _padded(bias2, torch.float32, (INNER,)),
        output,
        positions,
        height,
        width,
        rows,
        columns,
        CHANNELS=inner,
        OUTER=OUTER,
        INNER=INNER,
        BLOCK_M=tile.m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return output.permute(0, 3, 1, 2)


def tconv_decoder(
    input: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """As `gemm.fused.tconv_decoder`."""
    inner = _inner_channels(input, weight2, weight1)
    z = nhwc(input)
    batch, rows, columns, _ = z.shape
    output = new_image(input, 3, (4 * rows + 4, 4 * columns + 4))
    positions = batch * (rows + 1) * (columns + 1)
    check_extents(z, output, positions)
    tile = PAIR[input.dtype != torch.float32]
    decoder_kernel[(triton.cdiv(positions, tile.m),)](
        z,
        _padded(
            weight1, input.dtype, (9, INNER, OUTER), lambda w: w.permute(2, 3, 0, 1).flatten(0, 1)
        ),
        _padded(bias1, torch.float32, (OUTER,)),
        _padded(weight2, input.dtype, (9, OUTER, 64), _by_block),
        _padded(bias2, torch.float32, (64,), lambda b: b.repeat(16)),
        output,
        positions,
        rows,
        columns,
        CHANNELS=inner,
        OUTER=OUTER,
        INNER=INNER,
        BLOCK_M=tile.m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return output.permute(0, 3, 1, 2)


def _by_block(weight: Tensor) -> Tensor:
    """(C₁, 3, 4, 4) → (9, C₁, 48): what pixel (I, J) adds to (a, b, channel) of its block.

    Output row 4r + a takes row 2r − 1 + I by kernel row a + 2 − 2I, if there is one.
    """
    parts = weight.new_zeros(3, 3, len(weight), 4, 4, 3)
    for i in range(3):
        for j in range(3):
            kernel = weight[:, :, _kernel_rows(i), _kernel_rows(j)].permute(0, 2, 3, 1)
            parts[i, j, :, _block_rows(i), _block_rows(j)] = kernel
    return parts.view(9, len(weight), 48)


def _kernel_rows(i: int) -> slice:
    """Kernel rows of part i: 2 and 3, all, 0 and 1."""
    return slice(max(2 - 2 * i, 0), min(6 - 2 * i, 4))


def _block_rows(i: int) -> slice:
    """The block's rows that they land in: 0 and 1, all, 2 and 3."""
    return slice(max(2 * i - 2, 0), min(2 * i + 2, 4))


def _inner_channels(input: Tensor, outer_weight: Tensor, inner_weight: Tensor) -> int:
    """C₂ of the weights (C₁, 3, 4, 4) and (C₂, C₁, 3, 3).

    Raises:
        NotCoveredError: shapes or precisions that the kernels are not made for.
    """
    check_covered(input, outer_weight)
    outer, inner = len(outer_weight), len(inner_weight)
    shapes = tuple(outer_weight.shape), tuple(inner_weight.shape)
    if shapes != ((outer, 3, 4, 4), (inner, outer, 3, 3)) or outer > OUTER or inner > INNER:
        raise NotCoveredError(f"weights of {shapes}")
    return inner


def _padded(
    values: Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    arrange: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """The arranged values, followed by zeros in every dimension; kept for the next call."""

    def make() -> Tensor:
        padded = values.new_zeros(shape, dtype=dtype)
        arranged = arrange(values)
        padded[tuple(slice(extent) for extent in arranged.shape)] = arranged
        return padded

    return kept(values, (dtype, shape), make)
