r"""Winograd's F(4×4, 3×3): 36 products per input and output channel for 16 outputs, not 144.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). With an input tile d
(6 × 6, overlapping its neighbours by 2), kernel g (3 × 3) and output tile y (4 × 4)

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

A chunk of T tiles has the layout (i, j, tile, channel) at every stage, so that Bᵀ · B is one GEMM
over i and one batched GEMM over j (matrices of 6 × 6 times 6 × T·C: bound by the cache, not by
arithmetic), and the products are 36 of (T × C)·(C × C'), one `bmm`.

The adjoint gives the kernel's gradient: dM = A dY Aᵀ, dU_ξ = V_ξᵀ · dM_ξ, dg = Gᵀ dU G.

For float32 and float64 alone: the transforms subtract larger numbers than they return, which costs
float32 a digit (3e-6 of the largest output instead of 3e-7) and would cost bfloat16 its last ones.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..geometry import ConvGeometry, IntPair
from .products import Chunk, write

TILE, REACH = 4, 6  # sides of an output tile and of the input that it needs

# Where the polynomials are evaluated, besides ∞. The largest error of 192 channels against float64,
# over the largest output, is 3e-6 with these and 1e-5 with Lavin's 0, ±1, ±2.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@dataclass(frozen=True)
class Transforms:
    """Bᵀ (6 × 6), G⊗G (36 × 9) and Aᵀ (4 × 6)."""

    input: Tensor
    kernel: Tensor
    output: Tensor


@cache
def transforms(dtype: torch.dtype, device: torch.device) -> Transforms:
    """The three matrices; constants, shared by all calls."""
    with torch.inference_mode(False):
        bt, g, at = (torch.tensor(rows, dtype=torch.float64) for rows in _toom_cook())
        return Transforms(*(m.to(device, dtype) for m in (bt, torch.kron(g, g), at)))


def _toom_cook() -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Bᵀ, G and Aᵀ of `_POINTS` p: powers p^j, over ∏(p − q) in G; Bᵀ holds ∏(x − q), q ≠ p."""
    bt, g, at = [], [], [[p**i for p in _POINTS] + [float(i == 3)] for i in range(TILE)]
    for p in _POINTS:
        others = [q for q in _POINTS if q != p]
        bt.append([*_polynomial(others), 0.0])
        g.append([p**j / math.prod(p - q for q in others) for j in range(3)])
    return [*bt, _polynomial(_POINTS)], [*g, [0.0, 0.0, 1.0]], at


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Coefficients of ∏(x − root), the constant first."""
    coefficients = [1.0]
    for root in roots:
        shifted, scaled = [0.0, *coefficients], [*coefficients, 0.0]
        coefficients = [a - root * b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


# Bytes of V per chunk. 1, 2, 4 MiB: 0.92, 0.92, 1.05 of torch's convolution's time (64 channels).
CHUNK_BYTES = 2 * 1024 * 1024

# With fewer, the transforms outweigh what the products save.
MIN_CHANNELS = 24


def applies(weight: Tensor, geometry: ConvGeometry, output: IntPair, compute: torch.dtype) -> bool:
    """Whether this is a 3 × 3 convolution, in an exact enough dtype, that gains by Winograd."""
    if weight.shape[2:] != (3, 3) or geometry.stride != (1, 1):
        return False
    if compute not in (torch.float32, torch.float64) or min(weight.shape[:2]) < MIN_CHANNELS:
        return False
    tiles = _tiles(output)
    return tiles[0] * tiles[1] * TILE * TILE <= 1.35 * output[0] * output[1]


def conv_forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    *,
    padding: IntPair,
    relu: bool = False,
) -> None:
    """Output = weight ∗ image (+ bias, then max(0, ·)).

    Args:
        image: (N, H, W, C).
        weight: (C', C, 3, 3).
        bias: (C',) or None.
        output: (N, oh, ow, C'), written.
        padding: zeros above and left; what is missing below and right is zero too.
        relu: whether negative results become 0.
    """
    matrices = transforms(weight.dtype, weight.device)
    kernels = torch.mm(matrices.kernel, weight.reshape(-1, 9).T)
    kernels = kernels.view(36, *weight.shape[:2]).transpose(1, 2)
    _run(image, kernels, bias, output, padding, relu)


def conv_transpose(small: Tensor, weight: Tensor, output: Tensor, *, padding: IntPair) -> None:
    """Output = the adjoint of `conv_forward` on `small`: its kernel is flipped and transposed."""
    matrices = transforms(weight.dtype, weight.device)
    kernels = torch.mm(matrices.kernel.flip(1), weight.reshape(-1, 9).T)
    kernels = kernels.view(36, *weight.shape[:2])
    _run(small, kernels, None, output, (2 - padding[0], 2 - padding[1]), False)


def weight_grad(image: Tensor, small: Tensor, *, padding: IntPair) -> Tensor:
    """dW (C', C, 3, 3) of small = conv_forward(image): (N, H, W, C) and (N, oh, ow, C')."""
    channels, width = image.shape[3], small.shape[3]
    matrices = transforms(image.dtype, image.device)
    total = image.new_zeros(36, width, channels)
    groups = _group_by_size(_chunks(small, max(channels, width)))
    for (images, rows), chunks in groups.items():
        size = (images, rows, _tiles(small.shape[1:3])[1])
        inputs = _Gather("input", image, size, padding, REACH)
        transform = _TwoSided(matrices.input, inputs.tiles, "transformed")
        grads = _Gather("output", small, size, (0, 0), TILE)
        adjoint = _TwoSided(matrices.output.T, grads.tiles, "products")
        products = adjoint.result.flatten(0, 1).transpose(1, 2)
        for chunk in chunks:
            inputs.load(chunk)
            transform.run()
            grads.load(chunk)
            adjoint.run()
            total.baddbmm_(products, transform.result.flatten(0, 1))
    kernels = total.view(36, -1).T @ matrices.kernel
    return kernels.view(width, channels, 3, 3)


def _run(
    image: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    output: Tensor,
    padding: IntPair,
    relu: bool,
) -> None:
    channels, width = kernels.shape[1:]
    matrices = transforms(image.dtype, image.device)
    for (images, rows), chunks in _group_by_size(_chunks(output, max(channels, width))).items():
        size = (images, rows, _tiles(output.shape[1:3])[1])
        inputs = _Gather("input", image, size, padding, REACH)
        transform = _TwoSided(matrices.input, inputs.tiles, "transformed")
        transformed = transform.result.flatten(0, 1)
        numel = 36 * transformed.shape[1] * width
        flat = POOL.scratch("products", numel, image, image.dtype)
        products = flat.view(36, -1, width)
        inverse = _TwoSided(matrices.output, flat.view(6, 6, -1, width), "output tiles")
        results = inverse.result
        scatter = _Scatter(results, output, size, relu)
        for chunk in chunks:
            inputs.load(chunk)
            transform.run()
            torch.bmm(transformed, kernels, out=products)
            inverse.run()
            if bias is not None:
                results += bias
            scatter.store(chunk)


def _tiles(size: Sequence[int]) -> IntPair:
    return -(-size[0] // TILE), -(-size[1] // TILE)


def _chunks(output: Tensor, channels: int) -> Iterator[Chunk]:
    """Rows of tiles [y0, y1) of images [n0, n1); several images only if whole."""
    batch = len(output)
    down, across = _tiles(output.shape[1:3])
    lines = max(CHUNK_BYTES // (36 * across * channels * output.element_size()), 1)
    if lines >= down:
        pieces = -(-batch // (lines // down))
        images = -(-batch // pieces)
        for n in range(0, batch, images):
            yield Chunk(n, min(n + images, batch), 0, down)
        return
    lines = -(-down // -(-down // lines))
    for n in range(batch):
        for y in range(0, down, lines):
            yield Chunk(n, n + 1, y, min(y + lines, down))


def _group_by_size(chunks: Iterator[Chunk]) -> dict[IntPair, list[Chunk]]:
    """Chunks by (images, rows of tiles): one set of views serves all of a group."""
    groups: dict[IntPair, list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault((chunk.n1 - chunk.n0, chunk.y1 - chunk.y0), []).append(chunk)
    return groups


class _TwoSided:
    """result (p, q, …) = Σ_ij matrix[p, i] · matrix[q, j] · source (i, j, …), with fixed memory.

    MKL spreads a batch over threads but runs one 6 × 6 by 6 × n product on a single one; torch
    takes transposed operands as they are but copies a transposed result (1.9 times as long).
    """

    def __init__(self, matrix: Tensor, source: Tensor, name: str) -> None:
        after, before = matrix.shape
        numel = source[0, 0].numel()
        half = POOL.scratch("half", before * after * numel, source, source.dtype)
        result = POOL.scratch(name, after * after * numel, source, source.dtype)
        self.half = half.view(before, after, numel)
        self.flat = result.view(after, after, numel)
        self.result = result.view(after, after, *source.shape[2:])
        self.operands = (
            (matrix.expand(before, after, before), source.flatten(2).transpose(0, 1)),
            (matrix.expand(after, after, before), self.half.transpose(0, 1)),
        )

    def run(self) -> None:
        """Compute the result from what the source now holds."""
        torch.bmm(*self.operands[0], out=self.half)
        torch.bmm(*self.operands[1], out=self.flat)


class _Gather:
    """Overlapping tiles of an image: (i, j, T, c) = image[n, 4·ty + i − top, 4·tx + j − left, c].

    The chunk is first copied with its surroundings into a strip padded by zeros, in cache.
    """

    def __init__(
        self, name: str, image: Tensor, size: tuple[int, int, int], padding: IntPair, reach: int
    ) -> None:
        images, rows, across = size
        channels = image.shape[3]
        self.image, self.padding = image, padding
        height, width = rows * TILE + reach - TILE, across * TILE + reach - TILE
        shape = (images, height, width, channels)
        strip = POOL.scratch(
            "strip " + name, images * height * width * channels, image, image.dtype
        )
        self.strip = strip.view(shape)
        # Columns of the image, and where they stand; the rest of the strip stays zero.
        self.first, left = max(-padding[1], 0), max(padding[1], 0)
        self.width = max(min(width - left, image.shape[2] - self.first), 0)
        self.strip[:, :, :left].zero_()
        self.strip[:, :, left + self.width :].zero_()
        self.inside = self.strip[:, :, left : left + self.width]
        flat = POOL.scratch(
            name + " tiles", reach * reach * images * rows * across * channels, image, image.dtype
        )
        self.tiles = flat.view(reach, reach, images * rows * across, channels)
        n, y, x, c = self.strip.stride()
        lattice = (reach, reach, images, rows, across, channels)
        self.source = self.strip.as_strided(
            lattice, (y, x, n, TILE * y, TILE * x, c), self.strip.storage_offset()
        )
        self.target = flat.view(lattice)

    def load(self, chunk: Chunk) -> None:
        """Fill the tiles."""
        image, height = self.image, self.strip.shape[1]
        top = chunk.y0 * TILE - self.padding[0]
        low = min(max(-top, 0), height)
        high = max(min(image.shape[1] - top, height), low)
        if low > 0:
            self.inside[:, :low].zero_()
        if high < height:
            self.inside[:, high:].zero_()
        if high > low:
            lines = image[chunk.n0 : chunk.n1, top + low : top + high]
            self.inside[:, low:high].copy_(lines[:, :, self.first : self.first + self.width])
        self.target.copy_(self.source)


class _Scatter:
    """output[n, 4·ty + i, 4·tx + j, c] = results (i, j, T, c), cropped to the output."""

    def __init__(
        self, results: Tensor, output: Tensor, size: tuple[int, int, int], relu: bool
    ) -> None:
        images, rows, across = size
        self.output, self.relu = output, relu
        self.whole = (images, rows * TILE, across * TILE, output.shape[3])
        tiles = results.view(TILE, TILE, *size, output.shape[3])
        self.tiles = tiles.permute(2, 3, 0, 4, 1, 5)

    def store(self, chunk: Chunk) -> None:
        """Write the results of a chunk."""
        target = self.output[chunk.n0 : chunk.n1, chunk.y0 * TILE : chunk.y1 * TILE]
        if target.shape == self.whole:
            n, y, x, c = target.stride()
            strides = (n, TILE * y, y, TILE * x, x, c)
            lattice = target.as_strided(self.tiles.shape, strides, target.storage_offset())
            write(self.tiles, lattice, self.relu)
            return
        joined = POOL.scratch("joined", self.tiles.numel(), self.tiles, self.tiles.dtype)
        joined.view(self.tiles.shape).copy_(self.tiles)
        cropped = joined.view(self.whole)[:, : target.shape[1], : target.shape[2]]
        write(cropped, target, self.relu)
