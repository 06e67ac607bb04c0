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

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..shapes import IntPair
from . import scratch

# Bytes of V per chunk, about 6000 positions of 32 bfloat16 channels: shorter GEMMs are slower.
GRID_BYTES = 1536 * 1024
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

    def is_image(self, image: Tensor, dtype: torch.dtype) -> bool:
        """Whether V is the image itself (1 × 1 kernels), so that nothing is copied."""
        plain = self.kernel == self.stride == (1, 1) and self.offset == (0, 0)
        return plain and self.output == self.size and image.dtype == dtype and image.is_contiguous()


@dataclass(frozen=True)
class Kind:
    """Chunks whose grids are laid out alike, so that one set of views serves all of them.

    Attributes:
        images: images of a chunk.
        rows: output rows of a chunk.
        inside: for each kernel row, the output rows [low, high) that it finds inside the image.
    """

    images: int
    rows: int
    inside: tuple[IntPair, ...]


def kinds(grid: Grid, chunks: list[Chunk]) -> dict[Kind, list[Chunk]]:
    """The chunks by kind."""
    by_kind: dict[Kind, list[Chunk]] = {}
    stride, (height, _) = grid.stride[0], grid.size
    for chunk in chunks:
        inside = []
        for tap in range(grid.kernel[0]):
            shift = tap - grid.offset[0]  # image row = output row · stride + shift
            low = min(max(chunk.y0, -(shift // stride)), chunk.y1)
            high = max(min(chunk.y1, (height - 1 - shift) // stride + 1), low)
            inside.append((low - chunk.y0, high - chunk.y0))
        kind = Kind(chunk.n1 - chunk.n0, chunk.y1 - chunk.y0, tuple(inside))
        by_kind.setdefault(kind, []).append(chunk)
    return by_kind


class Windows:
    """The grids of an image's chunks of one kind, one after the other in the same scratch memory.

    Attributes:
        positions: flat outputs of a chunk, garbage included.
        rows: of each A_r, ⌈positions/φ⌉.
        matrices: A_r of every phase, (rows, kw·kh·C), once a chunk is loaded.
    """

    def __init__(self, image: Tensor, grid: Grid, dtype: torch.dtype, kind: Kind) -> None:
        self.image, self.grid, self.kind = image, grid, kind
        self.positions = kind.images * kind.rows * grid.pitch
        self.rows = -(-self.positions // grid.phases)
        self.matrices: list[Tensor] = []
        self.targets: list[Tensor | None] = []
        self.direct = grid.is_image(image, dtype)
        if not self.direct:
            self._lay_out(dtype)

    def load(self, chunk: Chunk) -> None:
        """Fill the grid."""
        image, grid = self.image, self.grid
        if self.direct:
            lines = image[chunk.n0 : chunk.n1, chunk.y0 : chunk.y1]
            self.matrices = [lines.view(-1, grid.channels)]
            return
        n, y, x, c = image.stride()
        start = image.storage_offset() + chunk.n0 * n + grid.columns[0] * x
        for tap, target in enumerate(self.targets):
            if target is not None:
                row = (chunk.y0 + self.kind.inside[tap][0]) * grid.stride[0] + tap - grid.offset[0]
                strides = (n, y * grid.stride[0], x, c)
                target.copy_(image.as_strided(target.shape, strides, start + row * y))

    def _lay_out(self, dtype: torch.dtype) -> None:
        grid, kind = self.grid, self.kind
        width = grid.pitch * grid.stride[1]
        used = self.positions * grid.step
        # With what the last windows read beyond the grid's end.
        numel = (self.rows * grid.phases - 1) * grid.step + max(grid.depth, grid.step)
        flat = scratch.take("grid", numel, self.image, dtype)
        flat[used:].zero_()
        values = flat[:used].view(kind.images, kind.rows, width, grid.kernel[0], grid.channels)
        _, left, count = grid.columns
        values[:, :, :left].zero_()
        values[:, :, left + count :].zero_()
        for tap, (low, high) in enumerate(kind.inside):
            target = values[:, :, left : left + count, tap]
            target[:, :low].zero_()
            target[:, high:].zero_()
            self.targets.append(target[:, low:high] if high > low and count else None)
        strides = (grid.phases * grid.step, 1)
        self.matrices = [
            flat.as_strided((self.rows, grid.depth), strides, phase * grid.step)
            for phase in range(grid.phases)
        ]
