"""ReLU and Sigmoid against torch, up to infinities and NaN."""

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import images
from tolerances import assert_block_parity, assert_parity, autograd, each_dtype
from torch import Tensor, nn

from denoise_batch.kernels import Block, ReLU, Sigmoid, reference

IMPLEMENTATIONS = {"reference": reference}

each_implementation = pytest.mark.parametrize(
    "ops", list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS)
)
each_block = pytest.mark.parametrize(
    ("block", "module"),
    [(ReLU(), nn.ReLU()), (Sigmoid(), nn.Sigmoid())],
    ids=["relu", "sigmoid"],
)
INF, NAN = float("inf"), float("nan")


@each_dtype
@pytest.mark.parametrize("name", ["relu", "sigmoid"])
@each_implementation
@given(input=images(), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_op_and_its_gradient_match_autograd(
    ops: ModuleType, name: str, dtype: torch.dtype, input: Tensor, scale: float
) -> None:
    input = (scale * input).to(dtype)
    expected, gradients = autograd(getattr(torch, name), input)
    output = getattr(ops, f"{name}_forward")(input)
    assert_parity(output, expected)
    grad_output = torch.randn_like(output)
    grad_input = getattr(ops, f"{name}_backward")(grad_output, output)
    assert_parity(grad_input, gradients(grad_output)[0], "grad_input", floor=1e-3)


@each_dtype
@each_block
def test_block_matches_torch_nn(block: Block, module: nn.Module, dtype: torch.dtype) -> None:
    assert_block_parity(block, module, torch.randn(2, 3, 7, 5, dtype=dtype) * 4)


@each_block
def test_any_number_of_dimensions_is_welcome(block: Block, module: nn.Module) -> None:
    for shape in ((), (5,), (2, 3), (1, 1, 1, 1, 2)):
        assert_block_parity(block, module, torch.randn(shape, dtype=torch.float64))


@each_block
def test_the_input_is_not_changed(block: Block, module: nn.Module) -> None:
    input = torch.randn(1, 2, 5, 5)
    before = input.clone()
    grad_output = torch.ones_like(input)
    block(input)
    block.backward(grad_output)
    assert torch.equal(input, before)
    assert torch.equal(grad_output, torch.ones_like(input))


@each_dtype
def test_sigmoid_at_the_ends_of_the_range_is_torchs(dtype: torch.dtype) -> None:
    values = [-1e4, 1e4, -1e2, 1e2, -INF, INF, NAN, 0.0, -0.0, -745.0, -88.8, 88.8, 1e-300, 17.0]
    input = torch.tensor(values, dtype=dtype)
    expected, gradients = autograd(torch.sigmoid, input)
    block = Sigmoid()
    output = block(input)
    assert_close_at_the_ends(output, expected)
    assert output.isfinite().logical_or(input.isnan()).all()
    grad_input = block.backward(torch.ones_like(input))
    assert_close_at_the_ends(grad_input, gradients(torch.ones_like(input))[0])


def assert_close_at_the_ends(actual: Tensor, expected: Tensor) -> None:
    """Relative to each element: σ(−100) = 4e-44 counts too, down to the smallest normal number."""
    smallest = torch.finfo(expected.dtype).tiny
    rtol = 8 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=smallest, equal_nan=True)


@each_dtype
def test_sigmoid_is_symmetric(dtype: torch.dtype) -> None:
    input = torch.linspace(-50, 50, 1001, dtype=dtype)
    assert_parity(Sigmoid()(input) + Sigmoid()(-input), torch.ones_like(input))


@each_dtype
def test_relu_keeps_nan_and_infinity(dtype: torch.dtype) -> None:
    output = ReLU()(torch.tensor([NAN, INF, -INF, -1.0, 2.0], dtype=dtype))
    expected = torch.tensor([NAN, INF, 0.0, 0.0, 2.0], dtype=dtype)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@each_dtype
def test_relu_has_gradient_0_at_0(dtype: torch.dtype) -> None:
    block = ReLU()
    block(torch.tensor([0.0, -0.0, 1e-30, -1e-30], dtype=dtype))
    grad_input = block.backward(torch.full((4,), 7.0, dtype=dtype))
    assert grad_input.tolist() == [0, 0, 7, 0]


def test_relu_gives_no_gradient_where_it_was_off_even_if_the_gradient_is_not_finite() -> None:
    block = ReLU()
    block(torch.tensor([-1.0, -1.0, 1.0]))
    assert block.backward(torch.tensor([NAN, INF, INF])).tolist() == [0, 0, INF]


def test_relu_passes_the_gradient_at_nan_as_torch_does() -> None:
    input = torch.tensor([NAN])
    _, gradients = autograd(torch.relu, input)
    block = ReLU()
    block(input)
    assert torch.equal(block.backward(torch.ones(1)), gradients(torch.ones(1))[0])
