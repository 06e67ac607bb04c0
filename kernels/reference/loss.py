"""Mean squared error (report, II-E)."""

from torch import Tensor


def mse_loss_forward(input: Tensor, target: Tensor) -> Tensor:
    """Σ (x − y)² / n, n = N·C·H·W; a 0-d tensor."""
    return (input - target).square().mean()


def mse_loss_backward(input: Tensor, target: Tensor) -> Tensor:
    """dL/dx = 2·(x − y)/n."""
    return (input - target) * (2 / input.numel())
