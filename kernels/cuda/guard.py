"""Limits what a network removes: the power of blocks, their factors, the factors' use."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from ..guard import BLOCK_PX
from .samples import BLOCK, MOST_BLOCKS, check_extent

BLOCKS = 32  # of a program, for their power and factors
SIDE = tl.constexpr(BLOCK_PX)


@triton.jit(do_not_specialize=["width", "columns"])
def residual_power_kernel(
    input_ptr,  # (N·rows·SIDE, width, C) float32
    output_ptr,  # as input
    power_ptr,  # (N·rows, columns) float32
    width,
    columns,
    C: tl.constexpr,
    ELEMENTS: tl.constexpr,  # SIDE·C, rounded up to a power of 2
    BLOCKS: tl.constexpr,
):
    """Mean squares of some blocks of a row of blocks."""
    band = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    element = tl.arange(0, ELEMENTS)
    mask = (block < columns)[:, None] & (element < SIDE * C)[None, :]
    inside = block[:, None] * (SIDE * C) + element[None, :]
    squares = tl.zeros((BLOCKS, ELEMENTS), dtype=tl.float32)
    for row in range(SIDE):
        at = (band * SIDE + row) * width * C
        before = tl.load(input_ptr + at + inside, mask=mask, other=0.0)
        residual = tl.load(output_ptr + at + inside, mask=mask, other=0.0) - before
        squares += residual * residual
    power = tl.sum(squares, axis=1) / (SIDE * SIDE * C)
    tl.store(power_ptr + band * columns + block, power, mask=block < columns)


@triton.jit(do_not_specialize=["rows", "columns"])
def residual_factor_kernel(
    power_ptr,  # (N·rows, columns) float32
    level_ptr,  # (N,) float32
    factor_ptr,  # as power
    rows,
    columns,
    most,
    BLOCKS: tl.constexpr,
):
    """Factors of some blocks of a row of blocks, by the power of 3×3."""
    band = tl.program_id(0)
    row = band % rows
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    total = tl.zeros((BLOCKS,), dtype=tl.float32)
    count = tl.zeros((BLOCKS,), dtype=tl.float32)
    for down in tl.static_range(-1, 2):
        for across in tl.static_range(-1, 2):
            beside = block + across
            is_there = (beside >= 0) & (beside < columns) & (block < columns)
            is_there &= (row + down >= 0) & (row + down < rows)
            at = (band + down).to(tl.int64) * columns
            total += tl.load(power_ptr + at + beside, mask=is_there, other=0.0)
            count += is_there.to(tl.float32)
    level = tl.load(level_ptr + band // rows)
    power = total / tl.maximum(count, 1.0)
    power = tl.maximum(power, 1e-12, propagate_nan=tl.PropagateNan.ALL)
    factor = tl.sqrt(most * level * level / power)
    factor = tl.minimum(factor, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(factor_ptr + band.to(tl.int64) * columns + block, factor, mask=block < columns)


@triton.jit
def between(position, extent):
    """(Block of a pixel, the nearest other one, that one's weight): linear between the centres."""
    block = position // SIDE
    offset = (position % SIDE + 0.5) / SIDE - 0.5
    other = tl.where(offset > 0.0, block + 1, block - 1)
    return block, tl.minimum(tl.maximum(other, 0), extent - 1), tl.abs(offset)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def limit_residual_kernel(
    input_ptr,  # (N, height, width, C) float32
    output_ptr,  # as input
    factor_ptr,  # (N, rows, columns) float32
    y_ptr,  # as input
    height,
    width,
    rows,
    columns,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """input + factor·(output − input) in a block of a row of pixels."""
    line = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < width * C
    row, other_row, down = between(line % height, rows)
    column, other_column, across = between(k // C, columns)
    factors = factor_ptr + (line // height).to(tl.int64) * rows * columns
    upper, lower = factors + row * columns, factors + other_row * columns
    here = tl.load(upper + column, mask=mask, other=0.0) * (1.0 - across)
    here += tl.load(upper + other_column, mask=mask, other=0.0) * across
    there = tl.load(lower + column, mask=mask, other=0.0) * (1.0 - across)
    there += tl.load(lower + other_column, mask=mask, other=0.0) * across
    at = line.to(tl.int64) * width * C
    before = tl.load(input_ptr + at + k, mask=mask, other=0.0)
    residual = tl.load(output_ptr + at + k, mask=mask, other=0.0) - before
    limited = before + residual * (here * (1.0 - down) + there * down)
    tl.store(y_ptr + at + k, limited, mask=mask)


def limit_residual(input: Tensor, output: Tensor, level: Tensor, most: float) -> Tensor:
    """Triton implementation of `guard.limit_residual`, in three launches."""
    if input.dtype != torch.float32 or output.dtype != torch.float32 or not input.numel():
        raise NotCoveredError(f"{input.dtype} and {output.dtype}, shape {tuple(input.shape)}")
    count, channels, height, width = input.shape
    if output.shape != input.shape or height % BLOCK_PX or width % BLOCK_PX:
        raise NotCoveredError(f"images {height}x{width}, or of different shapes")
    check_extent(count, height, width, channels)
    if width > MOST_BLOCKS * BLOCKS * BLOCK_PX:
        raise NotCoveredError(f"{width} columns: more than a launch has")
    before, after = (image.permute(0, 2, 3, 1).contiguous() for image in (input, output))
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    power, factor = (input.new_empty((count * rows, columns)) for _ in range(2))
    limited = torch.empty_like(before)
    bands = (count * rows, triton.cdiv(columns, BLOCKS))
    residual_power_kernel[bands](
        before,
        after,
        power,
        width,
        columns,
        C=channels,
        ELEMENTS=triton.next_power_of_2(BLOCK_PX * channels),
        BLOCKS=BLOCKS,
        num_warps=4,
    )
    level = level.float().contiguous()
    residual_factor_kernel[bands](
        power, level, factor, rows, columns, float(most), BLOCKS=BLOCKS, num_warps=1
    )
    limit_residual_kernel[(count * height, triton.cdiv(width * channels, BLOCK))](
        before,
        after,
        factor,
        limited,
        height,
        width,
        rows,
        columns,
        C=channels,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return limited.permute(0, 3, 1, 2)
