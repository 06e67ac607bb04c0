"""Muon: momentum whose matrices are made orthogonal before they move the parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .errors import OptionError
from .optim import AdamW

# Of the quintic iteration x ← a·x + b·x³ + c·x⁵ on singular values (Jordan et al., 2024).
_QUINTIC = (3.4445, -4.775, 2.0315)
_LEAST_NORM = 1e-7


class Muon(AdamW):
    """Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).

    m ← m + (1 − momentum)·(g − m);  u = m, or g + momentum·(m − g) with `nesterov`;
    p ← p·(1 − lr·weight_decay) − lr · 0.2·√max(rows, columns) · orthogonalized(u).

    As torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (Liu et al., "Muon is scalable for LLM
    training", 2025), which gives updates the size of AdamW's, so that one learning rate suits both;
    here in the parameters' own precision, not in bfloat16. A weight (C, …) counts as a matrix of C
    rows; parameters of one dimension (biases) are moved by AdamW.

    Args:
        parameters: tensors whose `.grad` a backward fills; one without a gradient is left alone.
        lr: learning rate, ≥ 0; may be changed between steps.
        momentum: in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: decoupled, ≥ 0.
        ns_steps: of the iteration that orthogonalises, ≥ 1.

    Raises:
        OptionError: an argument out of range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(parameters, lr, weight_decay=weight_decay)
        if not 0 <= momentum < 1:
            raise OptionError(f"momentum={momentum}: must be at least 0 and below 1")
        if ns_steps < 1:
            raise OptionError(f"ns_steps={ns_steps}: must be at least 1")
        self.momentum = momentum
        self.nesterov = nesterov
        self.ns_steps = ns_steps

    def _move(self, indices: list[int], parameters: list[Tensor], grads: list[Tensor]) -> None:
        moving = list(zip(indices, parameters, grads, strict=True))
        if vectors := [entry for entry in moving if entry[1].ndim < 2]:
            super()._move(*map(list, zip(*vectors, strict=True)))
        for index, parameter, grad in moving:
            if parameter.ndim >= 2:
                self._move_matrix(index, parameter, grad)

    def _move_matrix(self, index: int, parameter: Tensor, grad: Tensor) -> None:
        (mean,) = self._states("momentum", [index])
        mean.lerp_(grad, 1 - self.momentum)
        update = (grad.lerp(mean, self.momentum) if self.nesterov else mean).flatten(1)
        scale = 0.2 * max(update.shape) ** 0.5
        update = orthogonalized(update, self.ns_steps)
        parameter.mul_(1 - self.lr * self.weight_decay)
        parameter.add_(update.view_as(parameter), alpha=-self.lr * scale)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """(R, C) with its singular vectors, and singular values of about 1 (0.7 to 1.2 in 5 steps).

    Newton-Schulz: every step applies an odd quintic to the singular values of X, scaled to a
    Frobenius norm of 1. That is a polynomial in X·Xᵀ times X, so all steps but the last product
    are made on the small square X·Xᵀ: two fifths of the multiplications for a 3×3 convolution.
    """
    a, b, c = _QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / wide.norm().clamp_min(_LEAST_NORM)
    gram = wide @ wide.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    result: Tensor = product @ wide
    return result.T if is_tall else result
