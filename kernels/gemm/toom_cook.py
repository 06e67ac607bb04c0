"""The matrices of Winograd's F(4×4, 3×3), by polynomial multiplication in chosen points.

Toom (1963) and Cook (1966); Barabasz et al., "Error analysis and improving the accuracy of
Winograd convolution for deep neural networks" (2020), on the choice of the points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

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
