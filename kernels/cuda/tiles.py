"""The launch table: op and shape class → tile, warps, pipeline stages. Chosen on paper, committed.

No autotuning: it needs a GPU, makes the first image slow, and lets results depend on timing. Every
row is compiled in CI for sm_80, 86, 89, 90 and 100 and holds no spill and no more shared memory
than the smallest of them has (99 KiB). No row was timed on a GPU yet; scripts/gpu-check would.

Shape classes: `half` is bfloat16 or float16, on tensor cores; float32 runs on the ordinary cores
("ieee"), where a smaller tile holds as much work. Columns are output channels.
"""

from typing import NamedTuple

import torch

# Tiles of 128 positions for at least this many of them: two for each SM of an A100 or H100, about.
LARGE = 128 * 2 * 128
# Programs that a weight gradient's pixels are split over: fixed, so that its sums are the same
# whatever the GPU.
SPLIT_PROGRAMS = 264
# Elements of one program of the pointwise kernels.
POINTWISE_BLOCK = 2048


class Tile(NamedTuple):
    """A program's part of a product: BLOCK_M rows × BLOCK_N columns, BLOCK_K of depth a step."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


# (half?, columns at most) → tile
_CONV = {
    (True, 16): Tile(128, 16, 64, 4, 3),
    (True, 32): Tile(128, 32, 64, 4, 3),
    (True, 64): Tile(128, 64, 64, 4, 3),
    (True, 128): Tile(128, 128, 32, 8, 3),
    (False, 16): Tile(64, 16, 32, 4, 2),
    (False, 32): Tile(64, 32, 32, 4, 2),
    (False, 64): Tile(64, 64, 32, 8, 2),
    (False, 128): Tile(64, 64, 32, 8, 2),
}
_WEIGHT_GRAD = {
    (True, 16): Tile(64, 16, 64, 4, 3),
    (True, 32): Tile(64, 32, 64, 4, 3),
    (True, 64): Tile(64, 64, 64, 4, 3),
    (True, 128): Tile(64, 64, 64, 4, 3),
    (False, 16): Tile(32, 16, 32, 4, 2),
    (False, 32): Tile(32, 32, 32, 4, 2),
    (False, 64): Tile(64, 64, 32, 8, 2),
    (False, 128): Tile(64, 64, 32, 8, 2),
}


def conv_tile(
    dtype: torch.dtype, positions: int, depth: int, columns: int, *, is_flat: bool = False
) -> Tile:
    """For an implicit GEMM of positions × depth × columns.

    Args:
        dtype: of the operands.
        positions: of the output.
        depth: channels of one tap, or all taps' if `is_flat`.
        columns: of the output.
        is_flat: taps and channels are one axis, so that every element has an address of its own:
            with 64 of them a row the registers spill.
    """
    tile = _CONV[dtype != torch.float32, _column_class(columns)]
    k = min(32 if is_flat else tile.k, max(16, _power_of_2(depth)))
    # A depth of 48 is three steps of 16 or one of 64, a quarter of it zeros; 96 is three of 32.
    while k > 16 and depth % k and depth // k >= 1 and _waste(depth, k) > 0.35:
        k //= 2
    m = tile.m if positions >= LARGE else min(tile.m, 64)
    n = min(tile.n, max(16, _power_of_2(columns)))
    warps = tile.num_warps if m * n >= 128 * 128 or dtype == torch.float32 else 4
    return Tile(m, n, k, warps, tile.num_stages)


def weight_grad_tile(dtype: torch.dtype, columns: int) -> Tile:
    """For dW, rows (tap, channel of the larger image) × columns, over pixels."""
    return _WEIGHT_GRAD[dtype != torch.float32, _column_class(columns)]


def splits(rows: int, columns: int, positions: int, tile: Tile) -> int:
    """Parts that the pixels of a weight gradient are summed in."""
    programs = -(-rows // tile.m) * -(-columns // tile.n)
    most = max(positions // (8 * tile.k), 1)
    return max(min(-(-SPLIT_PROGRAMS // programs), most), 1)


def _column_class(columns: int) -> int:
    return next((limit for limit in (16, 32, 64) if columns <= limit), 128)


def _power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _waste(depth: int, k: int) -> float:
    steps = -(-depth // k)
    return 1 - depth / (steps * k)
