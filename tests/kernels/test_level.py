"""The blocks of a network that is told the noise level, and of its estimator, against torch."""

import pytest
import torch
from gradcheck import gradcheck_block
from tolerances import assert_parity, autograd, each_dtype
from torch import Tensor
from torch.nn import functional

from denoise_batch.kernels import (
    AppendLevel,
    Block,
    ConfidentMean,
    LevelGate,
    ShapeError,
    StateError,
)
from denoise_batch.kernels.level import LevelBlock

LEVELS = (0.0, 3 / 255, 60 / 255)


def told(block: LevelBlock, dtype: torch.dtype = torch.float64) -> LevelBlock:
    block.level = torch.tensor(LEVELS, dtype=dtype)
    return block


def append_twin(input: Tensor) -> Tensor:
    scaled = torch.tensor(LEVELS, dtype=input.dtype).view(-1, 1, 1, 1) * 255 / 50
    planes = torch.cat([scaled, scaled.sqrt()], 1).expand(-1, -1, *input.shape[2:])
    return torch.cat([input, planes], 1)


def gate_twin(input: Tensor) -> Tensor:
    level = 255 * torch.tensor(LEVELS, dtype=input.dtype).view(-1, 1, 1, 1)
    return input * level / (level + 1)


def mean_twin(input: Tensor) -> Tensor:
    value = functional.softplus(input[:, :1])
    confidence = input[:, 1:].clamp(-6, 6).exp()
    return (value * confidence).sum((2, 3), keepdim=True) / confidence.sum((2, 3), keepdim=True)


CASES = {
    "append": (AppendLevel, append_twin, 12),
    "gate": (LevelGate, gate_twin, 3),
    "mean": (ConfidentMean, mean_twin, 2),
}
each_case = pytest.mark.parametrize("name", list(CASES))


def case(name: str, dtype: torch.dtype) -> tuple[Block, Tensor]:
    make, _, channels = CASES[name]
    block = make()
    if isinstance(block, LevelBlock):
        told(block, dtype)
    return block, 4 * torch.randn(3, channels, 5, 7, dtype=dtype)


@each_dtype
@each_case
def test_output_and_gradient_match_autograd(name: str, dtype: torch.dtype) -> None:
    block, input = case(name, dtype)
    expected, gradients = autograd(CASES[name][1], input)
    assert_parity(block(input), expected)
    grad_output = torch.randn_like(expected)
    assert_parity(block.backward(grad_output), *gradients(grad_output), "grad_input")
    block(input)
    assert block.backward(grad_output, needs_input_grad=False) is None


@each_case
def test_blocks_pass_gradcheck(name: str) -> None:
    block, input = case(name, torch.float64)
    gradcheck_block(block, input / 4)


@each_case
def test_inference_gives_what_training_gives(name: str) -> None:
    block, input = case(name, torch.float32)
    expected = block(input)
    assert torch.equal(block.eval()(input.contiguous(memory_format=torch.channels_last)), expected)


def test_at_level_0_the_gate_lets_nothing_pass() -> None:
    input, residual = torch.randn(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    gate = told(LevelGate(), torch.float32)
    for is_training in (True, False):
        output = gate.train(is_training).forward_plus(input, residual)
        assert torch.equal(output[0], residual[0])
        torch.testing.assert_close(output, residual + gate_twin(input))


def test_in_mixed_precision_the_sum_keeps_the_image_s_precision() -> None:
    gate, image = told(LevelGate(), torch.float32).eval(), torch.rand(3, 3, 4, 4)
    output = gate.forward_plus(torch.ones(3, 3, 4, 4, dtype=torch.bfloat16), image)
    assert output.dtype == torch.float32
    assert torch.equal(output[0], image[0])


def test_the_sums_of_parts_are_those_of_the_whole() -> None:
    mean, cells = ConfidentMean().eval(), torch.randn(2, 2, 6, 8)
    none = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    parts = mean.sums(cells[:, :, :4], none[:, :, :4]) + mean.sums(cells[:, :, 4:], none[:, :, 4:])
    torch.testing.assert_close(parts, mean.sums(cells, none))
    torch.testing.assert_close((parts[:, 0] / parts[:, 1]).view(2, 1, 1, 1), mean(cells))


def test_cells_that_are_left_out_add_only_their_confidence() -> None:
    mean, cells = ConfidentMean().eval(), torch.randn(2, 2, 6, 8)
    is_left_out = torch.arange(8).expand(2, 1, 6, 8) >= 5
    sums = mean.sums(cells, is_left_out)
    inside, outside = cells[..., :5], cells[..., 5:]
    torch.testing.assert_close((sums[:, 0] / sums[:, 1]).view(2, 1, 1, 1), mean(inside))
    torch.testing.assert_close(sums[:, 2], outside[:, 1].clamp(-6, 6).exp().sum((1, 2)))


def test_a_confident_cell_decides_but_no_more_than_the_limit() -> None:
    cells = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    cells[0, 0] = torch.tensor([[5.0, 1.0]])
    cells[0, 1] = torch.tensor([[1e6, -1e6]])  # e^12 to 1
    expected = functional.softplus(cells[0, 0])
    weight = torch.tensor([[12.0, 0.0]]).double().softmax(1)
    torch.testing.assert_close(ConfidentMean()(cells)[0, 0], (weight * expected).sum().view(1, 1))


@pytest.mark.parametrize("make", [AppendLevel, LevelGate])
def test_a_level_is_needed_for_each_image(make: type[LevelBlock]) -> None:
    block = make()
    with pytest.raises(StateError, match="level"):
        block(torch.rand(2, 3, 4, 4))
    block.level = torch.zeros(3)
    with pytest.raises(ShapeError, match="2 images"):
        block(torch.rand(2, 3, 4, 4))
