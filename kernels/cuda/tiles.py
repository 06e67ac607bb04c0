"""The launch table: op and shape class → tile, warps, pipeline stages. Chosen on paper, committed.

No autotuning: it needs a GPU, makes the first image slow, and lets results depend on timing. Every
row is compiled in CI for sm_80, 86, 89, 90 and 100 and holds no spill and no more shared memory
than the smallest of them has (99 KiB). No row was timed on a GPU yet; scripts/gpu-check would.

Shape classes: `half` is bfloat16 or float16, on tensor cores; float32 runs on the ordinary cores
("ieee"), where a smaller tile holds as much work. Columns are output channels.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import ConvGeometry, IntPair

# Positions of a convolution's tile, for few and for at least LARGE of them: two tiles for each SM
# of an A100 or H100, about.
ROWS = (64, 128)
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


class _Trial(threading.local):
    """What the self-check asks of this thread's tiles."""

    rows = 0


_TRIAL = _Trial()


@contextmanager
def trial(rows: int) -> Iterator[None]:
    """Inside, small problems get the tiles of calls with `rows`, and sums in several parts."""
    before, _TRIAL.rows = _TRIAL.rows, rows
    try:
        yield
    finally:
        _TRIAL.rows = before


def rows_for(positions: int) -> int:
    """Positions of a tile, for a convolution of so many."""
    return ROWS[positions >= LARGE]


def rows_of_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The same for a call of an op: which of its kernels the call launches."""
    count = _POSITIONS.get(name)
    return rows_for(count(*args, **kwargs) if count else 0)


def is_shuffle(kernel: IntPair, geometry: ConvGeometry, small: IntPair, large: IntPair) -> bool:
    """Whether a transposed convolution's kernels tile its output: nothing cut off or added."""
    sizes = zip(small, geometry.stride, large, strict=True)
    is_exact = kernel == geometry.stride and geometry.padding == (0, 0)
    return is_exact and all(s * stride == extent for s, stride, extent in sizes)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: str | None = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    *rest: Any,
    **more: Any,
) -> int:
    seen = [n * up // unshuffle for n, up in zip(input.shape[2:], upsample, strict=True)]
    return len(input) * math.prod(geometry.conv2d_output_size(seen, weight.shape[2:]))


def _conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    *rest: Any,
    **more: Any,
) -> int:
    return _transposed(grad_output, _pair(input.shape), weight, geometry)


def _conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    *rest: Any,
    **more: Any,
) -> int:
    size = geometry.conv_transpose2d_output_size(input.shape[2:], weight.shape[2:])
    return _transposed(input, size, weight, geometry)


def _conv_transpose2d_backward(grad_output: Tensor, input: Tensor, *rest: Any, **more: Any) -> int:
    return len(input) * math.prod(input.shape[2:])


def _transposed(small: Tensor, large: IntPair, weight: Tensor, geometry: ConvGeometry) -> int:
    size, kernel, stride = _pair(small.shape), _pair(weight.shape), geometry.stride
    if is_shuffle(kernel, geometry, size, large):
        return len(small) * math.prod(size)
    extents = zip(large, stride, strict=True)
    return len(small) * math.prod(-(-extent // step) * step for extent, step in extents)


def _pair(shape: Sequence[int]) -> IntPair:
    return shape[2], shape[3]


_POSITIONS: Mapping[str, Callable[..., int]] = {
    "conv2d_forward": _conv2d,
    "conv2d_fused": _conv2d,
    "conv2d_image": _conv2d,
    "conv2d_backward": _conv2d_backward,
    "conv_transpose2d_forward": _conv_transpose2d,
    "conv_transpose2d_fused": _conv_transpose2d,
    "conv_transpose2d_backward": _conv_transpose2d_backward,
}


def conv_tile(
    dtype: torch.dtype,
    positions: int,
    depth: int,
    columns: int,
    *,
    is_flat: bool = False,
    has_planes: bool = False,
) -> Tile:
    """For an implicit GEMM of positions × depth × columns.

    Args:
        dtype: of the operands.
        positions: of the output.
        depth: channels of one tap, or all taps' if `is_flat`.
        columns: of the output.
        is_flat: taps and channels are one axis, so that every element has an address of its own:
            with 64 of them a row the registers spill.
        has_planes: constant channels follow those of the image; 32 of a row spill.
    """
    tile = _CONV[dtype != torch.float32, _column_class(columns)]
    k = min(16 if has_planes else 32 if is_flat else tile.k, max(16, _power_of_2(depth)))
    # A depth of 48 is three steps of 16 or one of 64, a quarter of it zeros; 96 is three of 32.
    while k > 16 and depth % k and depth // k >= 1 and _waste(depth, k) > 0.35:
        k //= 2
    m = min(tile.m, _TRIAL.rows or rows_for(positions))
    n = min(tile.n, max(16, _power_of_2(columns)))
    warps = tile.num_warps if m * n >= 128 * 128 or dtype == torch.float32 else 4
    return Tile(m, n, k, warps, tile.num_stages)


def weight_grad_tile(dtype: torch.dtype, columns: int) -> Tile:
    """For dW, rows (tap, channel of the larger image) × columns, over pixels."""
    return _WEIGHT_GRAD[dtype != torch.float32, _column_class(columns)]


def splits(rows: int, columns: int, positions: int, tile: Tile) -> int:
    """Parts that the pixels of a weight gradient are summed in."""
    programs = -(-rows // tile.m) * -(-columns // tile.n)
    most = max(positions // (tile.k if _TRIAL.rows else 8 * tile.k), 1)
    return max(min(-(-SPLIT_PROGRAMS // programs), most), 1)


def _column_class(columns: int) -> int:
    return next((limit for limit in (16, 32, 64) if columns <= limit), 128)


def _power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _waste(depth: int, k: int) -> float:
    steps = -(-depth // k)
    return 1 - depth / (steps * k)
