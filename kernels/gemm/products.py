"""The three GEMM loops over a window grid, and the weights arranged for them.

With windows A (positions × kw·kh·C) of the larger image and the smaller image S (positions × C'):

    conv_forward      S  = A · B          convolution; gradient of a transposed one's input
    conv_transpose    fold(S · Bᵀ)        the adjoint, as convolutions: one per phase of the stride
    weight_grad       dB = Aᵀ · S

Images are views (N, H, W, C) of any strides; arithmetic is in `compute` with float32 accumulation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..geometry import ConvGeometry, IntPair

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
class ChunkLayout:
    """How a chunk's grid is laid out; one set of views serves all chunks of one layout.

    Attributes:
        images: images of a chunk.
        rows: output rows of a chunk.
        inside: for each kernel row, the output rows [low, high) that it finds inside the image.
    """

    images: int
    rows: int
    inside: tuple[IntPair, ...]


def group_by_layout(grid: Grid, chunks: list[Chunk]) -> dict[ChunkLayout, list[Chunk]]:
    """The chunks by layout."""
    groups: dict[ChunkLayout, list[Chunk]] = {}
    stride, (height, _) = grid.stride[0], grid.size
    for chunk in chunks:
        inside = []
        for tap in range(grid.kernel[0]):
            shift = tap - grid.offset[0]  # image row = output row · stride + shift
            low = min(max(chunk.y0, -(shift // stride)), chunk.y1)
            high = max(min(chunk.y1, (height - 1 - shift) // stride + 1), low)
            inside.append((low - chunk.y0, high - chunk.y0))
        layout = ChunkLayout(chunk.n1 - chunk.n0, chunk.y1 - chunk.y0, tuple(inside))
        groups.setdefault(layout, []).append(chunk)
    return groups


class Windows:
    """The grids of an image's chunks of one layout, one after the other in the same memory.

    Attributes:
        positions: flat outputs of a chunk, garbage included.
        rows: of each A_r, ⌈positions/φ⌉.
        matrices: A_r of every phase, (rows, kw·kh·C), once a chunk is loaded.
    """

    def __init__(self, image: Tensor, grid: Grid, dtype: torch.dtype, layout: ChunkLayout) -> None:
        self.image, self.grid, self.layout = image, grid, layout
        self.positions = layout.images * layout.rows * grid.pitch
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
                row = (
                    (chunk.y0 + self.layout.inside[tap][0]) * grid.stride[0] + tap - grid.offset[0]
                )
                strides = (n, y * grid.stride[0], x, c)
                target.copy_(image.as_strided(target.shape, strides, start + row * y))

    def _lay_out(self, dtype: torch.dtype) -> None:
        grid, layout = self.grid, self.layout
        width = grid.pitch * grid.stride[1]
        used = self.positions * grid.step
        # With what the last windows read beyond the grid's end.
        numel = (self.rows * grid.phases - 1) * grid.step + max(grid.depth, grid.step)
        flat = POOL.scratch("grid", numel, self.image, dtype)
        flat[used:].zero_()
        values = flat[:used].view(layout.images, layout.rows, width, grid.kernel[0], grid.channels)
        _, left, count = grid.columns
        values[:, :, :left].zero_()
        values[:, :, left + count :].zero_()
        for tap, (low, high) in enumerate(layout.inside):
            target = values[:, :, left : left + count, tap]
            target[:, :low].zero_()
            target[:, high:].zero_()
            self.targets.append(target[:, low:high] if high > low and count else None)
        strides = (grid.phases * grid.step, 1)
        self.matrices = [
            flat.as_strided((self.rows, grid.depth), strides, phase * grid.step)
            for phase in range(grid.phases)
        ]


# What writes one chunk of a product to the output, and what makes it for a layout's product.
WriteChunk = Callable[[Chunk], None]
Writer = Callable[[Tensor], WriteChunk]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of the GEMMs: the tensor's own, but float32 for float16 on the CPU.

    float16 GEMMs have no hardware behind them there, and overflow where float32 does not.
    """
    if tensor.dtype == torch.float16 and tensor.device.type == "cpu":
        return torch.float32
    return tensor.dtype


def conv_forward(
    image: Tensor, matrix: Tensor, bias: Tensor | None, grid: Grid, writer: Writer
) -> None:
    """A · matrix + bias, chunk by chunk.

    Args:
        image: (N, H, W, C).
        matrix: (kw·kh·C, M), in the compute dtype.
        bias: (M,) in the compute dtype, or None.
        grid: the windows.
        writer: takes the product (n, y, pitch, M) of chunks of one layout, of which only the first
            grid.output[1] columns count, and returns what writes it to the output for each chunk.
    """
    dtype, width = matrix.dtype, matrix.shape[1]
    for layout, chunks in group_by_layout(grid, grid.chunks(image, dtype.itemsize)).items():
        windows = Windows(image, grid, dtype, layout)
        rows = windows.rows
        product = POOL.scratch("product", rows * grid.phases * width, image, dtype)
        by_phase = product.view(rows, grid.phases, width).unbind(1)
        counted = product[: windows.positions * width]
        write_chunk = writer(counted.view(layout.images, layout.rows, grid.pitch, width))
        for chunk in chunks:
            windows.load(chunk)
            for operand, result in zip(windows.matrices, by_phase, strict=True):
                if bias is None:
                    torch.mm(operand, matrix, out=result)
                else:
                    torch.addmm(bias, operand, matrix, out=result)
            write_chunk(chunk)


def weight_grad(image: Tensor, small: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """dB = Aᵀ · S, (kw·kh·C, C').

    Chunks are summed in float32 (float64 for float64). In bfloat16 the sum over a chunk is float32
    too, but torch's GEMM rounds it to bfloat16 on the CPU: an error of 2⁻⁹ of each chunk's part.

    Args:
        image: (N, H, W, C), windowed by `grid`.
        small: (N, oh, ow, C').
        grid: the windows.
        dtype: of the GEMMs.
    """
    channels = small.shape[3]
    total = torch.zeros(
        grid.depth,
        channels,
        dtype=torch.promote_types(dtype, torch.float32),
        device=image.device,
    )
    for layout, chunks in group_by_layout(grid, grid.chunks(image, dtype.itemsize)).items():
        windows = Windows(image, grid, dtype, layout)
        padded = POOL.scratch("small", windows.rows * grid.phases * channels, image, dtype)
        padded.zero_()
        shape = (layout.images, layout.rows, grid.pitch, channels)
        values = padded[: windows.positions * channels].view(shape)[:, :, : grid.output[1]]
        by_phase = padded.view(windows.rows, grid.phases, channels).unbind(1)
        for chunk in chunks:
            windows.load(chunk)
            values.copy_(small[chunk.n0 : chunk.n1, chunk.y0 : chunk.y1])
            for operand, grads in zip(windows.matrices, by_phase, strict=True):
                if total.dtype == dtype:
                    total.addmm_(operand.T, grads)
                else:
                    total += torch.mm(operand.T, grads)
    return total


@dataclass(frozen=True)
class _Axis:
    """One axis of the output: index + padding = stride·a + phase, a ≥ first."""

    phases: tuple[int, ...]
    taps: int
    first: int
    count: int


def _axis(kernel: int, stride: int, padding: int, size: int, phases: tuple[int, ...]) -> _Axis:
    firsts = [-((phase - padding) // stride) for phase in phases]
    lasts = [(size - 1 + padding - phase) // stride for phase in phases]
    first = min(firsts)
    taps = max(-(-(kernel - phase) // stride) for phase in phases)
    return _Axis(phases, taps, first, max(lasts) + 1 - first)


def conv_transpose(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: ConvGeometry,
    *,
    relu: bool = False,
) -> None:
    """Every pixel of `small` adds its weighted kernel: output = crop(fold(small · W)) + bias.

    Output rows of one remainder r modulo the stride depend on the kernel rows r, r + sh, … alone:
    they are a stride-1 convolution with those rows, flipped. All columns of such a row come from
    one product, with sw·C columns, that lies in memory as the output row does.

    Args:
        small: (N, h, w, C').
        weight: (C', C, kh, kw), in the compute dtype.
        bias: (C,) or None.
        output: (N, H, W, C), written.
        geometry: stride, and padding that is cut off.
        relu: whether negative results become 0.
    """
    (sh, sw), padding, (_, _, kh, kw) = geometry.stride, geometry.padding, weight.shape
    size = (output.shape[1], output.shape[2])
    across = _axis(kw, sw, padding[1], size[1], tuple(range(sw)))
    groups = [tuple(range(sh))] if kh % sh == 0 else [(phase,) for phase in range(sh)]
    for group in groups:
        down = _axis(kh, sh, padding[0], size[0], group)
        if down.count < 1:
            continue
        if down.taps < 1:
            _fill_bias(output[:, sh * down.first + group[0] - padding[0] :: sh], bias, relu)
            continue
        _write_rows(small, weight, bias, output, down, across, geometry, relu)


def _write_rows(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    down: _Axis,
    across: _Axis,
    geometry: ConvGeometry,
    relu: bool,
) -> None:
    """The output rows of the phases in `down`."""
    (sh, sw), padding, channels = geometry.stride, geometry.padding, weight.shape[1]
    lines = len(down.phases)
    matrix = _phase_matrix(weight, geometry.stride, down, across.taps)
    grid = Grid(
        batch=small.shape[0],
        size=(small.shape[1], small.shape[2]),
        channels=small.shape[3],
        kernel=(down.taps, across.taps),
        stride=(1, 1),
        offset=(down.taps - 1 - down.first, across.taps - 1 - across.first),
        output=(down.count, across.count),
    )
    size = (output.shape[1], output.shape[2])
    skip = padding[1] - sw * across.first  # columns of the product cut off at the left

    def writer(product: Tensor) -> WriteChunk:
        columns = product.view(*product.shape[:3], lines, sw * channels)

        def write_chunk(chunk: Chunk) -> None:
            for line, phase in enumerate(down.phases):
                # Output row of grid row y: sh·(first + y) + phase − padding.
                start = sh * down.first + phase - padding[0]
                low = max(chunk.y0, -(start // sh))
                high = min(chunk.y1, (size[0] - 1 - start) // sh + 1)
                if high <= low:
                    continue
                source = columns[:, low - chunk.y0 : high - chunk.y0, :, line]
                first, last = start + low * sh, start + (high - 1) * sh
                target = output[chunk.n0 : chunk.n1, first : last + 1 : sh]
                for values, place in _column_runs(source, target, skip, sw, channels):
                    write(values, place, relu)

        return write_chunk

    repeated = None if bias is None else bias.repeat(lines * sw)
    conv_forward(small, matrix, repeated, grid, writer)


def _column_runs(
    source: Tensor, target: Tensor, skip: int, sw: int, channels: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(n, y, b, sw·C) against the output's (n, y, X, C): X = sw·b + s − skip, in few copies."""
    width = target.shape[2]
    if source.stride(2) == sw * channels:
        merged = source.reshape(*source.shape[:2], -1, channels)
        yield merged[:, :, skip : skip + width], target
    elif skip == 0 and width % sw == 0 and target.stride()[2:] == (channels, 1):
        # Rows may be apart (::sh), but a row is one run: sw·C elements at a time, not C.
        yield source[:, :, : width // sw], target.view(*target.shape[:2], -1, sw * channels)
    else:
        for phase in range(sw):
            start = phase - skip
            low = -(start // sw) if start < 0 else 0
            values = source[:, :, low:, phase * channels : (phase + 1) * channels]
            place = target[:, :, start + low * sw :: sw]
            yield values[:, :, : place.shape[2]], place


def _phase_matrix(weight: Tensor, stride: IntPair, down: _Axis, taps_across: int) -> Tensor:
    """(kw'·kh'·C', r·sw·C): B[(j, i, c'), (r, s, c)] = W[c', c, sh·(m−1−i) + r, sw·(M−1−j) + s]."""
    (sh, sw), (small, channels, kh, kw) = stride, weight.shape
    padded = weight.new_zeros(small, channels, down.taps * sh, taps_across * sw)
    padded[:, :, :kh, :kw] = weight[:, :, : down.taps * sh]
    taps = padded.view(small, channels, down.taps, sh, taps_across, sw).flip(2, 4)
    taps = taps[:, :, :, down.phases[0] : down.phases[-1] + 1]
    lines = len(down.phases)
    return taps.permute(4, 2, 0, 3, 5, 1).reshape(-1, lines * sw * channels)


def _fill_bias(target: Tensor, bias: Tensor | None, relu: bool) -> None:
    """Output rows that no kernel row reaches."""
    if bias is None:
        target.zero_()
    else:
        target.copy_(bias.relu() if relu else bias)


def write(values: Tensor, target: Tensor, relu: bool) -> None:
    """Target = values, or max(values, 0), while `values` is in cache."""
    if relu and values.dtype == target.dtype:
        torch.clamp_min(values, 0, out=target)
    elif relu:
        target.copy_(values.clamp_min_(0))
    else:
        target.copy_(values)
