"""NearestUpsample2d and UpsampleConv2d against torch."""

import copy
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Pair, images
from tolerances import Function, assert_block_parity, assert_parity, autograd, each_dtype
from torch import Tensor, nn
from torch.nn import functional

from denoise_batch.kernels import (
    NearestUpsample2d,
    ReLU,
    Sequential,
    ShapeError,
    StateError,
    UpsampleConv2d,
    reference,
)

IMPLEMENTATIONS = {"reference": reference}

each_implementation = pytest.mark.parametrize(
    "ops", list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS)
)
# Said once by torch, of its own speed.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

factors = st.tuples(st.integers(1, 4), st.integers(1, 4))


@each_dtype
@each_implementation
@given(input=images(), scale_factor=factors)
def test_op_and_its_gradient_match_autograd(
    ops: ModuleType, dtype: torch.dtype, input: Tensor, scale_factor: Pair
) -> None:
    input = input.to(dtype)
    expected, gradients = autograd(
        lambda image: functional.interpolate(image, scale_factor=scale_factor), input
    )
    output = ops.upsample_nearest2d_forward(input, scale_factor)
    assert torch.equal(output, expected)
    grad_output = torch.randn_like(output)
    grad_input = ops.upsample_nearest2d_backward(grad_output, scale_factor)
    assert_parity(grad_input, gradients(grad_output)[0], "grad_input", floor=1.0)


@each_dtype
@pytest.mark.parametrize("scale_factor", [1, 2, 3, (2, 3)], ids=str)
def test_block_matches_torch_nn(scale_factor: int | Pair, dtype: torch.dtype) -> None:
    input = torch.randn(2, 3, 5, 7, dtype=dtype)
    module = nn.Upsample(scale_factor=scale_factor)
    assert_block_parity(NearestUpsample2d(scale_factor), module, input)


@each_dtype
@pytest.mark.parametrize(
    ("scale_factor", "arguments"),
    {
        "report-2-48to24-k3-pad1": (2, (48, 24, 3, 1, 1)),
        "scale2x3-k2x3-s2": ((2, 3), (3, 2, (2, 3), (2, 1))),
        "scale3-dilation2-no-bias": (3, (2, 3, 3, 1, 2, 2, 1, False)),
        "scale3x1-k4x2-pad1x0": ((3, 1), (3, 2, (4, 2), 1, (1, 0))),
        "no-bias": (2, (2, 3, 3, 1, 1, 1, 1, False)),
        "padding-beyond-the-kernel": (2, (2, 3, 2, 1, 2)),
        "groups": (2, (4, 6, 3, 1, 1, 1, 2)),
        "same-of-an-even-kernel": (2, (2, 3, 4, 1, "same")),
        "same-of-an-odd-kernel": (2, (2, 3, 3, 1, "same")),
        "reflected": (2, (2, 3, 3, 1, 1, 1, 1, True, "reflect")),
    }.values(),
    ids=[
        "report-2-48to24-k3-pad1",
        "scale2x3-k2x3-s2",
        "scale3-dilation2-no-bias",
        "scale3x1-k4x2-pad1x0",
        "no-bias",
        "padding-beyond-the-kernel",
        "groups",
        "same-of-an-even-kernel",
        "same-of-an-odd-kernel",
        "reflected",
    ],
)
def test_upsample_conv2d_matches_torch_nn(
    scale_factor: int | Pair, arguments: tuple, dtype: torch.dtype
) -> None:
    block = UpsampleConv2d(scale_factor, *arguments)
    module = nn.Sequential(nn.Upsample(scale_factor=scale_factor), nn.Conv2d(*arguments))
    assert_block_parity(block, module, torch.randn(2, arguments[0], 7, 5, dtype=dtype))


@given(
    scale=factors,
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
)
def test_any_geometry_is_upsampling_then_convolution(
    scale: Pair, kernel: Pair, padding: Pair, size: Pair
) -> None:
    size = tuple(max(extent, k) for extent, k in zip(size, kernel, strict=True))
    block = UpsampleConv2d(scale, 2, 3, kernel, 1, padding)
    is_merged = all(p < k for p, k in zip(padding, kernel, strict=True))
    assert (block.merged is not None) == is_merged
    module = nn.Sequential(nn.Upsample(scale_factor=scale), nn.Conv2d(2, 3, kernel, 1, padding))
    assert_block_parity(block, module, torch.randn(2, 2, *size, dtype=torch.float64))


def test_merged_it_is_the_convolution_that_learns() -> None:
    block = Sequential(UpsampleConv2d(2, 2, 3, 3, padding=1), ReLU())
    assert [name for name, _ in block.named_parameters()] == ["0.1.weight", "0.1.bias"]
    announced: list[Tensor] = []
    block.register_grad_ready_hook(announced.append)
    twin = copy.deepcopy(block)
    twin.register_grad_ready_hook(None)
    output = block(torch.randn(1, 2, 4, 4))
    block.backward(torch.ones_like(output))
    assert [id(value) for value in announced] == [id(value) for value in block.parameters()]
    assert all(value.grad is not None for value in block.parameters())
    assert all(value.grad is None for value in twin.parameters())
    block(torch.randn(1, 2, 4, 4))
    block.eval()
    with pytest.raises(StateError, match="call forward in training mode first"):
        block.backward(torch.ones_like(output))
    block(torch.randn(1, 2, 4, 4))  # keeps nothing
    with pytest.raises(StateError):
        block.backward(torch.ones_like(output))


def test_merged_in_mixed_precision() -> None:
    block = UpsampleConv2d(2, 24, 8, 3, padding=1)
    input = torch.randn(2, 24, 9, 7)
    expected = block(input)
    output = block.set_compute_dtype(torch.bfloat16)(input)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    block.backward(torch.ones_like(output))
    assert block.conv.weight.grad is not None
    assert block.conv.weight.grad.dtype == torch.float32


def test_factor_1_is_the_identity() -> None:
    input = torch.randn(1, 2, 3, 5)
    assert torch.equal(NearestUpsample2d(1)(input), input)
    assert_block_parity(NearestUpsample2d(1), Function(lambda image: image * 1), input)


@pytest.mark.parametrize("scale_factor", [0, -1, (2, 0), (1, 2, 3), (2, 1.5)], ids=str)
def test_a_factor_that_is_no_whole_number_is_refused(scale_factor: object) -> None:
    with pytest.raises(ShapeError, match="scale_factor="):
        NearestUpsample2d(scale_factor)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 0, 8)], ids=["unbatched", "empty"])
def test_an_input_that_is_no_image_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="NearestUpsample2d input"):
        NearestUpsample2d(2)(torch.zeros(shape))
