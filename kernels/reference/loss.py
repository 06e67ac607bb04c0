"""Mean squared error (report, II-E)."""

from torch import Tensor


def mse_loss(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L = Σ (x − y)²/n, n = N·C·H·W, and dL/dx = 2·(x − y)/n, from one difference.

    Args:
        input: any shape.
        target: the same shape.

    Returns:
        The loss, a 0-d tensor, and its gradient, shaped as input; of no elements the loss is NaN.
    """
    difference = input - target
    return difference.square().mean(), difference.mul_(2 / max(input.numel(), 1))
