"""MSELoss against torch."""

from types import ModuleType

import pytest
import torch
from gradcheck import gradcheck
from hypothesis import given
from strategies import images
from tolerances import assert_parity, autograd, each_dtype
from torch import Tensor
from torch.nn import functional

from denoise_batch.kernels import MSELoss, ShapeError, StateError, reference

IMPLEMENTATIONS = {"reference": reference}

each_implementation = pytest.mark.parametrize(
    "ops", list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS)
)


@each_dtype
@each_implementation
@given(input=images())
def test_op_and_its_gradient_match_autograd(
    ops: ModuleType, dtype: torch.dtype, input: Tensor
) -> None:
    input, target = input.to(dtype), torch.randn(input.shape, dtype=dtype)
    expected, gradients = autograd(lambda image: functional.mse_loss(image, target), input)
    loss, grad_input = ops.mse_loss(input, target)
    assert_parity(loss, expected)
    assert_parity(grad_input, *gradients(torch.ones_like(expected)), "grad_input")


@each_dtype
def test_loss_and_its_gradient_match_torch_on_a_mini_batch(dtype: torch.dtype) -> None:
    input, target = torch.rand(2, 16, 3, 32, 32, dtype=dtype)
    expected, gradients = autograd(lambda image: functional.mse_loss(image, target), input)
    loss = MSELoss()
    assert_parity(loss(input, target), expected)
    assert_parity(loss.backward(), gradients(torch.ones_like(expected))[0], "grad_input")


def test_loss_passes_gradcheck() -> None:
    input, target = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    loss = MSELoss()
    gradcheck(
        lambda: loss(input, target), lambda grad_output: [loss.backward() * grad_output], [input]
    )


def test_loss_of_equal_images_is_zero_with_zero_gradient() -> None:
    image = torch.rand(1, 3, 4, 4)
    loss = MSELoss()
    assert loss(image, image) == 0
    assert not loss.backward().any()


@each_dtype
def test_of_an_empty_batch_the_loss_is_nan_as_in_torch(dtype: torch.dtype) -> None:
    empty = torch.empty(0, 3, 4, 4, dtype=dtype)
    expected, gradients = autograd(lambda image: functional.mse_loss(image, empty), empty)
    loss = MSELoss()
    torch.testing.assert_close(loss(empty, empty), expected, equal_nan=True)
    torch.testing.assert_close(loss.backward(), gradients(torch.ones_like(expected))[0])


def test_loss_is_a_scalar_tensor_and_leaves_its_operands_alone() -> None:
    input, target = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    loss = MSELoss()
    value = loss.forward(input, target)
    loss.backward()
    assert value.shape == ()
    assert (input == 1).all()
    assert (target == 0).all()


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 4), (2, 1, 4, 4), (3, 4, 4), ()], ids=["batch", "channels", "3d", "scalar"]
)
def test_shapes_that_torch_would_broadcast_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\)") as caught:
        MSELoss()(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_backward_without_forward_is_refused() -> None:
    with pytest.raises(StateError, match=r"MSELoss\.backward.*forward"):
        MSELoss().backward()


def test_one_forward_serves_one_backward() -> None:
    loss = MSELoss()
    loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    loss.backward()
    with pytest.raises(StateError):
        loss.backward()
