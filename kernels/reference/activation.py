"""ReLU and Sigmoid (report, II-D)."""

import torch
from torch import Tensor


def relu_forward(input: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    return input.clamp_min(0)


def relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """0 where the output is 0, grad_output elsewhere (torch's choices at exactly 0 and at NaN)."""
    return torch.where(output <= 0, 0, grad_output)


def sigmoid_forward(input: Tensor) -> Tensor:
    """1/(1 + e^−x), from e^−|x| ≤ 1 so that no finite x overflows."""
    exp = input.abs().neg_().exp_()
    return torch.where(input >= 0, 1, exp) / (1 + exp)


def sigmoid_forward_(input: Tensor) -> Tensor:
    """The same in the place of x."""
    return input.copy_(sigmoid_forward(input))


def sigmoid_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """dσ/dx = σ·(1 − σ), from the saved output."""
    return grad_output * output * (1 - output)
