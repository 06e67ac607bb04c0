"""Blocks made of blocks: the same gradients as torch, fusion that changes nothing, no waste."""

import pytest
import torch
from gradcheck import gradcheck_block
from tolerances import assert_block_parity
from torch import nn

from denoise_batch.kernels import (
    Block,
    Conv2d,
    ConvTranspose2d,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    UNetLevel,
)


def skip() -> UNetLevel:
    return UNetLevel(
        Conv2d(4, 4, 3, padding=1),
        Conv2d(4, 6, 2, stride=2),
        Sequential(Conv2d(6, 6, 3, padding=1), ReLU()),
        ConvTranspose2d(6, 4, 2, stride=2),
        Conv2d(4, 4, 3, padding=1),
    )


def residual() -> Residual:
    return Residual(Sequential(Conv2d(4, 4, 3, padding=1), ReLU(), Conv2d(4, 4, 3, padding=1)))


def test_levels_nest() -> None:
    def identity() -> Block:
        return Sequential()

    inner = UNetLevel(identity(), Conv2d(2, 2, 2, stride=2), identity(),
                 ConvTranspose2d(2, 2, 2, stride=2), identity())  # fmt: skip
    outer = UNetLevel(identity(), Conv2d(2, 2, 2, stride=2), inner,
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
    block.clear_saved()
    assert torch.equal(block.eval()(image), expected)
    assert torch.equal(image, copy)


def test_two_relus_in_a_row_and_one_in_front_still_work() -> None:
    block = Sequential(ReLU(), Conv2d(3, 3, 1), ReLU(), ReLU(), Sigmoid())
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.ReLU(), nn.Sigmoid())
    assert_block_parity(block, module, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_keeps_parameters_and_gradients_in_float32(dtype: torch.dtype) -> None:
    block, image, grad = skip(), torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    exact = block(image)
    block.backward(grad)
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    block.set_compute_dtype(dtype)
    output = block(image)
    block.backward(grad)
    assert output.dtype == dtype
    assert (output.float() - exact).norm() / exact.norm() < 0.02
    for parameter, expected in zip(block.parameters(), gradients, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected).norm() / expected.norm() < 0.03
    assert torch.equal(block.set_compute_dtype(None)(image), exact)
