"""ReLU and Sigmoid; both keep their output, since their derivative follows from it."""

from torch import Tensor

from . import ops
from .block import Block


class ReLU(Block):
    """max(x, 0), elementwise (report, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        output = ops.relu_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """max(x, 0) in the place of x."""
        return input.clamp_min_(0)

    def backward(self, grad_output: Tensor) -> Tensor:
        """grad_output where the output was positive, 0 elsewhere."""
        return ops.relu_backward(grad_output, self._take_saved(grad_output))


class Sigmoid(Block):
    """1/(1 + e^−x), elementwise and without overflow (report, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape, values in [0, 1]."""
        output = ops.sigmoid_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """1/(1 + e^−x) in the place of x."""
        return ops.sigmoid_forward_(input)

    def backward(self, grad_output: Tensor) -> Tensor:
        """grad_output · σ · (1 − σ)."""
        return ops.sigmoid_backward(grad_output, self._take_saved(grad_output))
