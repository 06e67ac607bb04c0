"""The losses against torch."""

from types import ModuleType
from typing import Any

import pytest
import torch
from gradcheck import gradcheck
from hypothesis import given
from strategies import images
from tolerances import assert_parity, autograd, each_dtype
from torch import Tensor
from torch.nn import functional

from denoise_batch.kernels import (
    LogMSELoss,
    MSELoss,
    ShapeError,
    StateError,
    reference,
)
from denoise_batch.kernels.loss import Loss

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


LEVEL = torch.tensor([0.0, 2.0, 25.0, 75.0], dtype=torch.float64) / 255


def log_twin(input: Tensor, target: Tensor) -> Tensor:
    level = LEVEL.to(input.dtype)
    reference = 9e-6 * (255 * level + 0.3).pow(1.35)
    error = (input - target).pow(2).flatten(1).mean(1)
    return torch.log(error / reference + 0.1).mean()


LOSSES = {
    "log": (lambda dtype: LogMSELoss(LEVEL.to(dtype)), log_twin),
}


def close_images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    target = torch.rand(4, 3, 6, 5, dtype=dtype)
    return target + 0.05 * torch.randn_like(target), target


@each_dtype
@pytest.mark.parametrize("name", list(LOSSES))
def test_other_losses_and_their_gradients_match_autograd(name: str, dtype: torch.dtype) -> None:
    make, twin = LOSSES[name]
    input, target = close_images(dtype)
    expected, gradients = autograd(lambda image: twin(image, target), input)
    loss: Loss = make(dtype)
    assert_parity(loss(input, target), expected)
    assert_parity(loss.backward(), *gradients(torch.ones_like(expected)), "grad_input")


@pytest.mark.parametrize("name", list(LOSSES))
def test_other_losses_pass_gradcheck(name: str) -> None:
    input, target = close_images(torch.float64)
    loss: Loss = LOSSES[name][0](torch.float64)
    gradcheck(lambda: loss(input, target), lambda grad: [loss.backward() * grad], [input])


def test_in_the_log_loss_weak_noise_counts_like_strong() -> None:
    level = torch.tensor([2.0, 50.0]) / 255
    reference = 9e-6 * (255 * level + 0.3) ** 1.35
    target = torch.rand(2, 3, 8, 8)
    output = target + reference.sqrt().view(-1, 1, 1, 1)
    loss = LogMSELoss(level)
    assert loss(output, target) == pytest.approx(torch.log(torch.tensor(1.1)).item(), rel=1e-4)
    gradient = loss.backward()
    shares = (gradient * (output - target)).sum((1, 2, 3))
    torch.testing.assert_close(shares[0], shares[1])


def test_a_perfect_image_has_a_finite_log_loss_and_no_gradient() -> None:
    image = torch.rand(4, 3, 4, 4)
    loss = LogMSELoss(LEVEL.float())
    assert loss(image, image) == pytest.approx(torch.log(torch.tensor(0.1)).item(), rel=1e-5)
    assert not loss.backward().any()


@pytest.mark.parametrize(
    "kind", [MSELoss, lambda known=1.0: LogMSELoss(LEVEL[:1], known)], ids=["mse", "log"]
)
def test_the_known_elements_alone_count(kind: Any) -> None:
    """Elsewhere the target is the input."""
    input, target = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64)
    target[:, :, 2:] = input[:, :, 2:]
    loss, part = kind(0.25), kind()
    expected = part(input[:, :, :2], target[:, :, :2])
    torch.testing.assert_close(loss(input, target), expected)
    grad_input = loss.backward()
    torch.testing.assert_close(grad_input[:, :, :2], part.backward())
    assert not grad_input[:, :, 2:].any()
