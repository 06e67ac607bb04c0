"""One step of an optimiser for all parameters, in place (report, II-F)."""

import math
from collections.abc import Sequence

from torch import Tensor


def sgd_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """g = grad + weight_decay·p;  v ← momentum·v + g;  p ← p − lr·(g + momentum·v or v).

    Args:
        parameters: moved.
        grads: shaped as the parameters; left as they are.
        velocities: moved; zeros before the first step. Empty without momentum: then p ← p − lr·g.
        lr: learning rate.
        momentum: 0 without velocities.
        nesterov: look ahead, along g + momentum·v.
        weight_decay: L2 penalty.
    """
    for index, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
        step = grad.add(parameter, alpha=weight_decay) if weight_decay else grad
        if velocities:
            velocity = velocities[index].mul_(momentum).add_(step)
            step = step.add(velocity, alpha=momentum) if nesterov else velocity
        parameter.sub_(step, alpha=lr)


def adam_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    is_decoupled: bool,
) -> None:
    """m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  p ← p − lr·m̂/(√v̂ + eps).

    m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).

    Args:
        parameters: moved.
        grads: shaped as the parameters; left as they are.
        means: m, moved; zeros before the first step.
        squares: v, likewise.
        steps: t of every parameter, 1 at its first step.
        lr: learning rate.
        betas: (β₁, β₂).
        eps: added to the root.
        weight_decay: of the gradient, g = grad + weight_decay·p …
        is_decoupled: … or of the parameter, p ← p·(1 − lr·weight_decay) before (AdamW).
    """
    beta1, beta2 = betas
    rows = zip(parameters, grads, means, squares, steps, strict=True)
    for parameter, grad, mean, square, step in rows:
        if is_decoupled:
            parameter.mul_(1 - lr * weight_decay)
        elif weight_decay:
            grad = grad.add(parameter, alpha=weight_decay)
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
        parameter.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))
