r"""The window grid: a layout in which a kernel's whole neighbourhood is one contiguous run.

With an image X[n, y, x, c] (padded by zeros), kernel kh × kw and stride sh × sw, the grid is

    V[n, y, x, i, c] = X[n, y·sh + i, x, c]          y: output row, x: padded input column, i < kh

so that the window of output (n, y, x) is the run of kw·kh·C elements that starts at V[n, y, x·sw],
ordered (j, i, c). Only rows are repeated: V is kh/sh times the image, im2col kh·kw/(sh·sw) times.

Windows of neighbours overlap, which no BLAS accepts as one matrix (its rows must not be longer
than their distance). Every φ-th output, φ = ⌈kw/sw⌉, is far enough: the matrix of phase r < φ

    A_r[q, :] = window of the flat output φ·q + r,    row distance φ·sw·kh·C ≥ kw·kh·C

is a plain strided operand, and φ GEMMs of one φ-th of the rows do the work of one over im2col.

The flat output runs over whole rows of V, so each row has a few positions too many ("garbage",
never emitted). Right and left padding share their zeros: for 3 × 3 that is one position per row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..shapes import IntPair
from . import scratch

# Bytes of V per chunk: half of an L2 of 1 MB, the rest is for the product and the weights.
import os
GRID_BYTES = int(os.environ.get('GB','2048')) * 1024
# On other devices a chunk only bounds the memory.
GRID_BYTES_DEVICE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Chunk:
    """Output rows [y0, y1) of images [n0, n1): whole images, or rows of a single one."""

    n0: int
    n1: int
    y0: int
    y1: int


@dataclass(frozen=True)
class Grid:
    """Windows of an NHWC image.

    Attributes:
        batch: number of images.
        size: height and width of the image.
        channels: its channels.
        kernel: kh, kw.
        stride: sh, sw.
        offset: zero rows above and columns left of the image; negative: rows and columns skipped.
        output: rows and columns of windows; beyond the image are zeros.
    """

    batch: int
    size: IntPair
    channels: int
    kernel: IntPair
    stride: IntPair
    offset: IntPair
    output: IntPair

    @cached_property
    def depth(self) -> int:
        """Elements of a window, kw·kh·C."""
        return self.kernel[0] * self.kernel[1] * self.channels

    @cached_property
    def phases(self) -> int:
        """φ = ⌈kw/sw⌉."""
        return -(-self.kernel[1] // self.stride[1])

    @cached_property
    def columns(self) -> tuple[int, int, int]:
        """First image column, its column in V, and how many columns are copied."""
        left = max(self.offset[1], 0)
        first = max(-self.offset[1], 0)
        reach = (self.output[1] - 1) * self.stride[1] + self.kernel[1] - left
        return first, left, max(min(self.size[1] - first, reach), 0)

    @cached_property
    def pitch(self) -> int:
        """Positions per row of the flat output, garbage included."""
        _, left, width = self.columns
        reach = (self.output[1] - 1) * self.stride[1] + self.kernel[1]
        # What a window reads beyond the row's end are the next row's zeros on the left.
        return max(-(-max(left + width, reach - left) // self.stride[1]), self.output[1])

    @cached_property
    def step(self) -> int:
        """Elements of V from one position to the next."""
        return self.stride[1] * self.kernel[0] * self.channels

    def chunks(self, like: Tensor, itemsize: int, limit: int | None = None) -> list[Chunk]:
        """The output cut into pieces whose V has about GRID_BYTES."""
        if limit is None:
            limit = GRID_BYTES if like.device.type == "cpu" else GRID_BYTES_DEVICE
        rows = max(limit // (self.pitch * self.step * itemsize), 1)
        oh = self.output[0]
        if rows >= oh:
            # Equal shares: a short last chunk would leave the other thread waiting.
            pieces = -(-self.batch // (rows // oh))
            images = -(-self.batch // pieces) if pieces else 1
            return [
                Chunk(n, min(n + images, self.batch), 0, oh) for n in range(0, self.batch, images)
            ]
        rows = -(-oh // -(-oh // rows))
        return [
            Chunk(n, n + 1, y, min(y + rows, oh))
            for n in range(self.batch)
            for y in range(0, oh, rows)
        ]

    def positions(self, chunk: Chunk) -> int:
        """Flat outputs of a chunk, garbage included."""
        return (chunk.n1 - chunk.n0) * (chunk.y1 - chunk.y0) * self.pitch

    def is_image(self, image: Tensor, dtype: torch.dtype) -> bool:
        """Whether V is the image itself (1 × 1 kernels), so that nothing is copied."""
        plain = self.kernel == self.stride == (1, 1) and self.offset == (0, 0)
        return plain and self.output == self.size and image.dtype == dtype and image.is_contiguous()


class Windows:
    """The grids of one image, chunk by chunk, in this thread's scratch."""

    def __init__(self, image: Tensor, grid: Grid, dtype: torch.dtype, largest: Chunk) -> None:
        self.image, self.grid = image, grid
        self.direct = grid.is_image(image, dtype)
        if self.direct:
            return
        numel = self._numel(grid.positions(largest))
        self.flat = scratch.take("grid", numel, image, dtype)
        # Padding columns stay zero for all chunks: they stand at the same place in every row.
        line = grid.pitch * grid.step
        rows = self.flat[: numel // line * line].view(
            -1, grid.pitch * grid.stride[1], line_depth(grid)
        )
        _, left, width = grid.columns
        rows[:, :left].zero_()
        rows[:, left + width :].zero_()

    def _numel(self, positions: int) -> int:
        """Elements of V with what the last windows read beyond its end."""
        grid = self.grid
        whole = -(-positions // grid.phases) * grid.phases
        return (whole - 1) * grid.step + max(grid.depth, grid.step)

    def matrices(self, chunk: Chunk) -> Iterator[Tensor]:
        """A_r of every phase, (⌈positions/φ⌉, kw·kh·C); valid until the next chunk."""
        grid = self.grid
        if self.direct:
            yield self.image[chunk.n0 : chunk.n1, chunk.y0 : chunk.y1].reshape(-1, grid.channels)
            return
        self._fill(chunk)
        shape = (-(-grid.positions(chunk) // grid.phases), grid.depth)
        for phase in range(grid.phases):
            yield self.flat.as_strided(
                shape,
                (grid.phases * grid.step, 1),
                self.flat.storage_offset() + phase * grid.step,
            )

    def _fill(self, chunk: Chunk) -> None:
        grid, image = self.grid, self.image
        (kh, _), (sh, sw), channels = grid.kernel, grid.stride, grid.channels
        first, left, width = grid.columns
        rows, positions = chunk.y1 - chunk.y0, grid.positions(chunk)
        used = positions * grid.step
        self.flat[used : self._numel(positions)].zero_()
        shape = (chunk.n1 - chunk.n0, rows, grid.pitch * sw, kh, channels)
        target = self.flat[:used].view(shape)[:, :, left : left + width]
        source = image[chunk.n0 : chunk.n1, :, first : first + width]
        for tap in range(kh):
            shift = tap - grid.offset[0]  # image row = output row · sh + shift
            low = min(max(chunk.y0, -(shift // sh)), chunk.y1)
            high = max(min(chunk.y1, (grid.size[0] - 1 - shift) // sh + 1), low)
            if low > chunk.y0:
                target[:, : low - chunk.y0, :, tap].zero_()
            if high < chunk.y1:
                target[:, high - chunk.y0 :, :, tap].zero_()
            if high > low:
                lines = source[:, low * sh + shift : (high - 1) * sh + shift + 1 : sh]
                target[:, low - chunk.y0 : high - chunk.y0, :, tap].copy_(lines)


def line_depth(grid: Grid) -> int:
    """Elements of V per column, kh·C."""
    return grid.kernel[0] * grid.channels
