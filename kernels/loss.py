"""Losses: how far an output is from its target, and the gradient of that; none is a Block, since
each takes two tensors and more.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from .dispatch import ops_for
from .errors import ShapeError, StateError


class Loss(ABC):
    """Base: forward computes the loss together with its gradient, which backward hands out."""

    def __init__(self) -> None:
        self._saved: Tensor | None = None

    @abstractmethod
    def _loss(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss, 0-d; the gradient of `input`)."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a 0-d tensor.

        Raises:
            ShapeError: input and target differ in shape (torch would broadcast and only warn).
        """
        if input.shape != target.shape:
            raise ShapeError(
                f"{type(self).__name__}: input {tuple(input.shape)} and target "
                f"{tuple(target.shape)} differ"
            )
        loss, self._saved = self._loss(input, target)
        return loss

    def backward(self) -> Tensor:
        """Return the gradient of `input`.

        Raises:
            StateError: there was no forward before.
        """
        if self._saved is None:
            name = type(self).__name__
            raise StateError(f"{name}.backward: call forward first (each serves one backward)")
        grad_input, self._saved = self._saved, None
        return grad_input

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        """Return `forward(input, target)`."""
        return self.forward(input, target)


class MSELoss(Loss):
    """Σ (x − y)²/n over all n = N·C·H·W elements, the loss of Noise2Noise for zero-mean noise.

    Course paper, II-E. The gradient is 2·(x − y)/n.

    Args:
        known: share of the elements that count; the others are equal in input and target.
    """

    def __init__(self, known: float = 1.0) -> None:
        super().__init__()
        self._known = known

    def _loss(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad_input = ops_for(input.device).mse_loss(input, target)
        return (
            (loss, grad_input)
            if self._known == 1
            else (loss / self._known, grad_input / self._known)
        )


class LogMSELoss(Loss):
    """Mean over images of log(MSE/r + 0.1), r the error to expect at an image's noise level.

    The plain mean of squared errors is that of the noisiest images. Here every level counts alike,
    and an image that is far worse than expected (a drawing, say) does not outweigh the others. With
    s the level in units of 1/255, r = 9·10⁻⁶·(s + 0.3)^1.35, about what FFDNet reaches.

    Args:
        level: root mean square of each image's noise, (N,), for values in [0, 1].
        known: as for `MSELoss`.
    """

    def __init__(self, level: Tensor, known: float = 1.0) -> None:
        super().__init__()
        self._expected = 9e-6 * known * (255 * level + 0.3) ** 1.35

    def _loss(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (2/N)·(x − y)/(C·H·W)/(MSE + 0.1·r)."""
        difference = input - target
        least = 0.1 * self._expected.to(difference.dtype)
        error = difference.square().mean((1, 2, 3)) + least
        loss = (error / (10 * least)).log().mean()
        return loss, difference * (2 / difference.numel() / error).view(-1, 1, 1, 1)
