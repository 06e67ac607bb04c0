"""Steps of optimisers where launches are what costs: on a GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import LEAST_NORM, QUINTIC

# Squares up to this size are one batch, padded to the largest of them.
_ONE_BATCH = 256


def orthogonalize(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """`reference.orthogonalize` in a few launches, whatever the number of shapes.

    All steps work on the squares Xᵀ·X or X·Xᵀ, which zeros around them do not change: squares of
    all sizes are one batch. With F = aI + H, H = bG + cG²: P ← F·P and G ← F·G·F are three products
    with their sums.
    """
    classes: dict[int, dict[torch.Size, list[int]]] = {}
    for index, matrix in enumerate(matrices):
        size = max(_ONE_BATCH, 1 << (min(matrix.shape) - 1).bit_length())
        classes.setdefault(size, {}).setdefault(matrix.shape, []).append(index)
    results: dict[int, Tensor] = {}
    for shapes in classes.values():
        batches = [torch.stack([matrices[i] for i in alike]) for alike in shapes.values()]
        done = _orthogonalize(batches, steps)
        for alike, batch in zip(shapes.values(), done, strict=True):
            results.update(zip(alike, batch.unbind(), strict=True))
    return [results[index] for index in range(len(results))]


def _orthogonalize(batches: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Batches (N, R, C) of any shapes, together."""
    a, b, c = QUINTIC
    dtype = torch.promote_types(batches[0].dtype, torch.float32)
    sides = [min(batch.shape[1:]) for batch in batches]
    gram = batches[0].new_zeros((sum(map(len, batches)), max(sides), max(sides)), dtype=dtype)
    places: list[slice] = []
    for batch, side in zip(batches, sides, strict=True):
        start = places[-1].stop if places else 0
        places.append(slice(start, start + len(batch)))
        wide, tall = (batch, batch.mT) if side == batch.shape[1] else (batch.mT, batch)
        torch.bmm(wide.to(dtype), tall.to(dtype), out=gram[places[-1], :side, :side])
    squares = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(LEAST_NORM**2).view(-1, 1, 1)
    gram.div_(squares)
    product = torch.eye(max(sides), dtype=dtype, device=gram.device).expand_as(gram)
    for step in range(steps):
        higher = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = torch.baddbmm(product, higher, product, beta=a)
        if step + 1 < steps:
            half = torch.baddbmm(gram, higher, gram, beta=a)
            gram = torch.baddbmm(half, half, higher, beta=a)
    product = product.div_(squares.sqrt())
    results = []
    for batch, side, place in zip(batches, sides, places, strict=True):
        factor, values = product[place, :side, :side], batch.to(dtype)
        result = factor @ values if side == batch.shape[1] else values @ factor
        results.append(result.to(batch.dtype))
    return results
