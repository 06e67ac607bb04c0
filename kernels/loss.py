"""The mean squared error, the loss of Noise2Noise for zero-mean noise (course paper, II-E)."""

from torch import Tensor

from .dispatch import ops_for
from .errors import ShapeError, StateError


class MSELoss:
    """Σ (x − y)²/n over all n = N·C·H·W elements; not a Block, since it takes two tensors.

    The gradient is computed together with the loss, in one pass over both images.
    """

    def __init__(self) -> None:
        self._saved: Tensor | None = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss as a 0-d tensor.

        Raises:
            ShapeError: input and target differ in shape (torch would broadcast and only warn).
        """
        if input.shape != target.shape:
            raise ShapeError(
                f"MSELoss: input {tuple(input.shape)} and target {tuple(target.shape)} differ"
            )
        loss, self._saved = ops_for(input.device).mse_loss(input, target)
        return loss

    def backward(self) -> Tensor:
        """Return the gradient of `input`: 2·(x − y)/n.

        Raises:
            StateError: there was no forward before.
        """
        if self._saved is None:
            raise StateError("MSELoss.backward: call forward first (each serves one backward)")
        grad_input, self._saved = self._saved, None
        return grad_input

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        """Return `forward(input, target)`."""
        return self.forward(input, target)
