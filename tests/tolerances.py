"""How close is close: one table, one comparison, one way to hold a block against torch.

The error of a tensor is max|actual − expected| / max|expected|: small elements beside large ones
carry the rounding of the large ones.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from denoise_batch.kernels import Block

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}

each_dtype = pytest.mark.parametrize(
    "dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def assert_parity(
    actual: Tensor, expected: Tensor, what: str = "output", *, floor: float = 0.0
) -> None:
    """Same shape, dtype and, within the dtype's tolerance, same values.

    Args:
        actual: ours.
        expected: the oracle's; finite.
        what: named in the failure.
        floor: the error is relative to at least this. For sums that may cancel, the size of
            their terms; with 0, an expected zero must be met exactly.
    """
    assert expected.isfinite().all(), f"{what}: the oracle is not finite"
    scale = max(expected.abs().max().item() if expected.numel() else 0.0, floor)
    torch.testing.assert_close(
        actual,
        expected,
        rtol=0,
        atol=TOLERANCES[expected.dtype] * scale,
        msg=lambda message: f"{what} ({scale=:.3g}): {message}",
    )


def autograd(
    function: Callable[..., Tensor], *tensors: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """torch's output of `function(*tensors)`, and what maps grad_output to their gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return output.detach(), lambda grad: torch.autograd.grad(output, leaves, grad)


def assert_block_parity(
    block: Block, module: nn.Module, input: Tensor, *, floor: float = 0.0
) -> None:
    """`block` and torch's `module`, given the same parameters, have the same output and gradients.

    The names of the parameters must agree too.
    """
    module.to(input.dtype).load_state_dict(block.to(dtype=input.dtype).state_dict())
    module.zero_grad()
    block.zero_grad()
    leaf = input.detach().clone().requires_grad_()
    expected = module(leaf)
    output = block(input)
    assert_parity(output, expected.detach(), "output", floor=floor)
    grad_output = torch.randn_like(output)
    expected.backward(grad_output)
    assert_parity(block.backward(grad_output), leaf.grad, "grad_input", floor=floor)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    for name, parameter in module.named_parameters():
        assert_parity(gradients[name], parameter.grad, f"gradient of {name}", floor=floor)


class Function(nn.Module):
    """A function without parameters, as the oracle of a block without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input)
