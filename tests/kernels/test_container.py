"""Blocks made of blocks: the same gradients as torch, fusion that changes nothing, no waste."""

import pytest
import torch
from gradcheck import gradcheck_block
from tolerances import assert_block_parity, each_dtype
from torch import Tensor, nn

from denoise_batch.kernels import (
    Block,
    Conv2d,
    ConvTranspose2d,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Skip,
    Standardize,
)


class TorchSkip(nn.Module):
    """The oracle of Skip, with the same names of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 2, stride=2)
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.decoder = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        encoded = self.encoder(input)
        return self.decoder(encoded + self.up(self.inner(self.down(encoded))))


class TorchResidual(nn.Module):
    """The oracle of Residual."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        return input + self.body(input)


def skip() -> Skip:
    return Skip(
        Conv2d(4, 4, 3, padding=1),
        Conv2d(4, 6, 2, stride=2),
        Sequential(Conv2d(6, 6, 3, padding=1), ReLU()),
        ConvTranspose2d(6, 4, 2, stride=2),
        Conv2d(4, 4, 3, padding=1),
    )


def residual() -> Residual:
    return Residual(Sequential(Conv2d(4, 4, 3, padding=1), ReLU(), Conv2d(4, 4, 3, padding=1)))


@each_dtype
def test_skip_agrees_with_torch(dtype: torch.dtype) -> None:
    assert_block_parity(skip(), TorchSkip(), torch.randn(3, 4, 6, 10, dtype=dtype))


@each_dtype
def test_residual_agrees_with_torch(dtype: torch.dtype) -> None:
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    assert_block_parity(residual(), TorchResidual(body), torch.randn(3, 4, 5, 7, dtype=dtype))


def test_levels_nest() -> None:
    def identity() -> Block:
        return Sequential()

    inner = Skip(identity(), Conv2d(2, 2, 2, stride=2), identity(),
                 ConvTranspose2d(2, 2, 2, stride=2), identity())  # fmt: skip
    outer = Skip(identity(), Conv2d(2, 2, 2, stride=2), inner,
                 ConvTranspose2d(2, 2, 2, stride=2), identity())  # fmt: skip
    names = [name for name, _ in outer.named_parameters()]
    assert "inner.down.weight" in names
    gradcheck_block(outer, torch.randn(2, 2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("make", [skip, residual])
def test_inference_gives_what_training_gives_and_leaves_the_input_alone(make: object) -> None:
    block = make()  # type: ignore[operator]
    image = torch.randn(2, 4, 8, 8)
    copy = image.clone()
    expected = block(image)
    block.forget()
    assert torch.equal(block.eval()(image), expected)
    assert torch.equal(image, copy)


def test_a_relu_behind_a_convolution_is_taken_along_with_the_same_result() -> None:
    conv, relu, image = Conv2d(3, 5, 3), ReLU(), torch.randn(2, 3, 7, 7)
    grad = torch.randn(2, 5, 5, 5)
    together = Sequential(conv, relu)
    output = together(image)
    grad_input = together.backward(grad)
    grads = [parameter.grad for parameter in conv.parameters()]
    conv.zero_grad()
    assert torch.equal(output, relu(conv(image)))
    assert torch.equal(grad_input, conv.backward(relu.backward(grad)))
    for parameter, expected in zip(conv.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, expected)


def test_two_relus_in_a_row_and_one_in_front_still_work() -> None:
    block = Sequential(ReLU(), Conv2d(3, 3, 1), ReLU(), ReLU(), Sigmoid())
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.ReLU(), nn.Sigmoid())
    assert_block_parity(block, module, torch.randn(2, 3, 4, 4))


NESTED = {
    "sequential": lambda: Sequential(Standardize(0.5, 0.2), Conv2d(4, 4, 3, padding=1), ReLU()),
    "skip": skip,
    "residual": residual,
    "no-parameters": lambda: Sequential(ReLU(), Sigmoid()),
    "nothing": Sequential,
}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_backward_parameters_gives_the_parameters_the_same_gradients(make: object) -> None:
    block = make()  # type: ignore[operator]
    image, grad = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    block(image)
    block.backward(grad)
    expected = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    block(image)
    block.backward_parameters(grad)
    for parameter, gradient in zip(block.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert all(part._saved is None for part in _tree(block)), "nothing is kept any longer"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_keeps_parameters_and_gradients_in_float32(dtype: torch.dtype) -> None:
    block, image, grad = skip(), torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    exact = block(image)
    block.backward(grad)
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    block.compute_in(dtype)
    output = block(image)
    block.backward(grad)
    assert output.dtype == dtype
    assert (output.float() - exact).norm() / exact.norm() < 0.02
    for parameter, expected in zip(block.parameters(), gradients, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected).norm() / expected.norm() < 0.03
    assert torch.equal(block.compute_in(None)(image), exact)


def _tree(block: Block) -> list[Block]:
    return [block, *(part for _, child in block.named_children() for part in _tree(child))]
