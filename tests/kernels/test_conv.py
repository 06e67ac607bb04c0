"""Conv2d and ConvTranspose2d against torch: forward, every gradient, and the adjoint identity.

Another implementation of the ops joins by a line in IMPLEMENTATIONS.
"""

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Geometry, Pair, conv_geometries, conv_transpose_geometries
from tolerances import assert_block_parity, assert_parity, autograd, each_dtype
from torch import nn
from torch.nn import functional

from denoise_batch.kernels import Conv2d, ConvTranspose2d, reference
from denoise_batch.kernels.gemm import conv as gemm
from denoise_batch.kernels.geometry import ConvGeometry

IMPLEMENTATIONS = {"reference": reference, "gemm": gemm}

# Operands are normal numbers, so the terms of every sum are of order 1.
TERM = 1.0

each_implementation = pytest.mark.parametrize(
    "ops", list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS)
)


def case(
    in_channels: int, out_channels: int, kernel_size: int | Pair, *, size: Pair, **options: Any
) -> tuple[dict[str, Any], Pair]:
    """Keywords of the block and of its torch.nn module; height and width of the input."""
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    return {**channels, "kernel_size": kernel_size, **options}, size


# The layers of the course paper's Table I, then the corners of the arithmetic.
CONVOLUTIONS = {
    "table1-3to24-k4-s2": case(3, 24, 4, stride=2, size=(32, 32)),
    "table1-24to48-k3-s2": case(24, 48, 3, stride=2, size=(15, 15)),
    "same-k3-pad1": case(8, 6, 3, padding=1, size=(17, 13)),
    "k1-is-a-matrix-product": case(5, 7, 1, size=(9, 11)),
    "no-bias": case(2, 3, 3, bias=False, size=(7, 5)),
    "dilation2-pad2": case(3, 2, 3, padding=2, dilation=2, size=(9, 8)),
    "pair-arguments": case(
        2, 3, (2, 5), stride=(3, 1), padding=(0, 2), dilation=(2, 1), size=(11, 7)
    ),
    "stride-beyond-kernel": case(2, 2, 2, stride=5, size=(13, 19)),
    "one-output-pixel": case(4, 5, (7, 5), size=(7, 5)),
    "one-input-pixel": case(4, 5, 3, padding=1, size=(1, 1)),
    # On a square image with one differing pair, swapped axes give arrays of the right size.
    "only-kernel-differs": case(2, 3, (2, 3), padding=1, size=(8, 8)),
    "only-stride-differs": case(2, 3, 3, stride=(1, 2), padding=1, size=(8, 8)),
    "only-padding-differs": case(2, 3, 3, padding=(0, 2), size=(8, 8)),
    "only-dilation-differs": case(2, 3, 3, padding=2, dilation=(2, 1), size=(8, 8)),
}
TRANSPOSED = {
    "table1-48to24-k3-s2": case(48, 24, 3, stride=2, size=(7, 7)),
    "table1-24to3-k4-s2": case(24, 3, 4, stride=2, size=(15, 15)),
    "doubling-k4-s2-pad1": case(3, 4, 4, stride=2, padding=1, size=(8, 5)),
    "output-padding1": case(3, 2, 3, stride=2, padding=1, output_padding=(1, 0), size=(6, 7)),
    "output-padding-beyond-stamps": case(
        2, 2, 1, stride=5, padding=1, output_padding=(4, 3), size=(1, 2)
    ),
    "output-padding-under-dilation": case(2, 3, 3, output_padding=1, dilation=2, size=(4, 5)),
    "pair-arguments": case(
        2,
        3,
        (2, 5),
        stride=(3, 2),
        padding=(0, 2),
        output_padding=(2, 1),
        dilation=(2, 1),
        size=(3, 5),
    ),
    "no-bias": case(2, 3, 3, bias=False, size=(7, 5)),
    "one-input-pixel": case(4, 5, (3, 2), size=(1, 1)),
    "only-kernel-differs": case(2, 3, (2, 3), padding=1, size=(6, 6)),
    "only-stride-differs": case(2, 3, 3, stride=(1, 2), padding=1, size=(6, 6)),
    "only-padding-differs": case(2, 3, 3, padding=(0, 2), size=(6, 6)),
    "only-output-padding-differs": case(2, 3, 3, stride=2, output_padding=(0, 1), size=(6, 6)),
    "only-dilation-differs": case(2, 3, 3, padding=2, dilation=(2, 1), size=(6, 6)),
}


def by_name(cases: dict[str, tuple[dict[str, Any], Pair]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("arguments", "size"), list(cases.values()), ids=list(cases))


@each_dtype
@each_implementation
@given(geometry=conv_geometries())
def test_conv2d_op_and_its_gradients_match_autograd(
    ops: ModuleType, dtype: torch.dtype, geometry: Geometry
) -> None:
    input, weight = geometry.input(dtype), geometry.weight(dtype)
    bias = torch.randn(geometry.out_channels, dtype=dtype) * geometry.bias
    expected, gradients = autograd(
        partial(functional.conv2d, **geometry.options), input, weight, bias
    )
    output = ops.conv2d_forward(input, weight, bias if geometry.bias else None, geometry.geometry)
    assert_parity(output, expected, floor=TERM)
    grad_output = torch.randn_like(expected)
    ours = ops.conv2d_backward(grad_output, input, weight, geometry.geometry)
    assert_gradients(ours, gradients(grad_output))


@each_dtype
@each_implementation
@given(geometry=conv_transpose_geometries())
def test_conv_transpose2d_op_and_its_gradients_match_autograd(
    ops: ModuleType, dtype: torch.dtype, geometry: Geometry
) -> None:
    input, weight = geometry.input(dtype), geometry.weight(dtype)
    bias = torch.randn(geometry.out_channels, dtype=dtype) * geometry.bias
    expected, gradients = autograd(
        partial(functional.conv_transpose2d, **geometry.options), input, weight, bias
    )
    output = ops.conv_transpose2d_forward(
        input, weight, bias if geometry.bias else None, geometry.geometry
    )
    assert_parity(output, expected, floor=TERM)
    grad_output = torch.randn_like(expected)
    ours = ops.conv_transpose2d_backward(grad_output, input, weight, geometry.geometry)
    assert_gradients(ours, gradients(grad_output))


def assert_gradients(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    names = ("grad_input", "grad_weight", "grad_bias")
    for name, ours, oracle in zip(names, actual, expected, strict=True):
        assert_parity(ours, oracle, name, floor=TERM)


@each_dtype
@each_implementation
@given(geometry=st.one_of(conv_geometries(), conv_transpose_geometries()))
def test_fused_relu_is_relu_and_masks_the_gradient(
    ops: ModuleType, dtype: torch.dtype, geometry: Geometry
) -> None:
    name = "conv2d" if geometry.output_padding is None else "conv_transpose2d"
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    input, weight = geometry.input(dtype), geometry.weight(dtype)
    bias = torch.randn(geometry.out_channels, dtype=dtype)
    oracle = partial(getattr(functional, name), **geometry.options)
    expected, gradients = autograd(oracle, input, weight, bias)
    output = forward(input, weight, bias, geometry=geometry.geometry, activation="relu")
    assert_parity(output, expected.relu(), floor=TERM)
    grad_output = torch.randn_like(expected)
    ours = backward(grad_output, input, weight, geometry=geometry.geometry, output=output)
    # Our own mask: within rounding of 0, torch's output may be on where ours is off.
    assert_gradients(ours, gradients(grad_output * (output > 0)))


# Images of 0.7 to 2.8 megabytes: more than an implementation works on at once.
LARGE = {
    "conv-k3-s1": Geometry(2, 24, 16, (151, 97), (3, 3), (1, 1), (1, 1), (1, 1), None, True),
    "conv-k4-s2": Geometry(2, 24, 16, (151, 97), (4, 4), (2, 2), (0, 0), (1, 1), None, True),
    "transposed-k3-s1": Geometry(
        2, 24, 16, (151, 97), (3, 3), (1, 1), (0, 0), (1, 1), (0, 0), True
    ),
    "transposed-k4-s2": Geometry(2, 24, 16, (76, 97), (4, 4), (2, 2), (1, 1), (1, 1), (1, 1), True),
}


@each_dtype
@each_implementation
@pytest.mark.parametrize("geometry", list(LARGE.values()), ids=list(LARGE))
def test_large_images_match_autograd(
    ops: ModuleType, dtype: torch.dtype, geometry: Geometry
) -> None:
    name = "conv2d" if geometry.output_padding is None else "conv_transpose2d"
    input, weight = geometry.input(dtype), geometry.weight(dtype)
    bias = torch.randn(16, dtype=dtype)
    oracle = partial(getattr(functional, name), **geometry.options)
    expected, gradients = autograd(oracle, input, weight, bias)
    output = getattr(ops, f"{name}_forward")(input, weight, bias, geometry.geometry)
    assert_parity(output, expected)
    grad_output = torch.randn_like(expected)
    ours = getattr(ops, f"{name}_backward")(grad_output, input, weight, geometry.geometry)
    assert_gradients(ours, gradients(grad_output))


GROUPED = {
    "conv-2-groups": Geometry(2, 4, 6, (7, 5), (3, 2), (2, 1), (1, 0), (1, 2), None, True, 2),
    "conv-depthwise": Geometry(2, 5, 5, (7, 8), (3, 3), (1, 1), (1, 1), (1, 1), None, True, 5),
    "conv-multiplier": Geometry(1, 3, 12, (7, 8), (3, 3), (2, 2), (1, 1), (1, 1), None, True, 3),
    "transposed-2-groups": Geometry(
        2, 4, 6, (7, 5), (3, 2), (2, 3), (1, 0), (1, 2), (1, 2), True, 2
    ),
    "transposed-depthwise": Geometry(
        2, 5, 5, (7, 8), (4, 4), (2, 2), (1, 1), (1, 1), (0, 0), True, 5
    ),
}


@each_dtype
@pytest.mark.parametrize("geometry", list(GROUPED.values()), ids=list(GROUPED))
def test_groups_match_autograd(dtype: torch.dtype, geometry: Geometry) -> None:
    name = "conv2d" if geometry.output_padding is None else "conv_transpose2d"
    input, weight = geometry.input(dtype), geometry.weight(dtype)
    bias = torch.randn(geometry.out_channels, dtype=dtype)
    oracle = partial(getattr(functional, name), **geometry.options)
    expected, gradients = autograd(oracle, input, weight, bias)
    output = getattr(reference, f"{name}_forward")(input, weight, bias, geometry.geometry)
    assert_parity(output, expected, floor=TERM)
    grad_output = torch.randn_like(expected)
    ours = getattr(reference, f"{name}_backward")(grad_output, input, weight, geometry.geometry)
    assert_gradients(ours, gradients(grad_output))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_fused_relu_keeps_nan_and_passes_its_gradient_as_torch_does(
    implementation: str, name: str
) -> None:
    ops = IMPLEMENTATIONS[implementation]
    geometry = ConvGeometry()
    input, weight = torch.tensor([-1.0, 1.0, float("nan")]).view(1, 1, 1, 3), torch.ones(1, 1, 1, 1)
    output = getattr(ops, f"{name}_forward")(input, weight, None, geometry, "relu")
    assert output[..., :2].flatten().tolist() == [0, 1]
    assert output[..., 2].isnan()
    backward = getattr(ops, f"{name}_backward")
    grad_input, _, _ = backward(torch.ones_like(output), input, weight, geometry, output)
    assert grad_input.flatten().tolist() == [0, 1, 1]


@each_implementation
@given(geometry=st.one_of(conv_geometries(), conv_transpose_geometries()))
def test_without_grad_input_the_other_gradients_are_the_same(
    ops: ModuleType, geometry: Geometry
) -> None:
    name = "conv2d" if geometry.output_padding is None else "conv_transpose2d"
    input, weight = geometry.input(torch.float64), geometry.weight(torch.float64)
    output = getattr(ops, f"{name}_forward")(input, weight, None, geometry.geometry)
    backward = partial(getattr(ops, f"{name}_backward"), geometry=geometry.geometry)
    grad_output = torch.randn_like(output)
    _, *expected = backward(grad_output, input, weight)
    nothing, *gradients = backward(grad_output, input, weight, needs_input_grad=False)
    assert nothing is None
    for ours, full in zip(gradients, expected, strict=True):
        assert_parity(ours, full, floor=TERM)


@each_dtype
@by_name(CONVOLUTIONS)
def test_conv2d_block_matches_torch_nn(
    arguments: dict[str, Any], size: Pair, dtype: torch.dtype
) -> None:
    input = torch.randn(3, arguments["in_channels"], *size, dtype=dtype)
    assert_block_parity(Conv2d(**arguments), nn.Conv2d(**arguments), input)


@each_dtype
@by_name(TRANSPOSED)
def test_conv_transpose2d_block_matches_torch_nn(
    arguments: dict[str, Any], size: Pair, dtype: torch.dtype
) -> None:
    input = torch.randn(3, arguments["in_channels"], *size, dtype=dtype)
    assert_block_parity(ConvTranspose2d(**arguments), nn.ConvTranspose2d(**arguments), input)


@given(geometry=conv_geometries())
def test_conv2d_block_matches_torch_nn_over_the_grid(geometry: Geometry) -> None:
    block, module = Conv2d(**geometry.arguments), nn.Conv2d(**geometry.arguments)
    assert_block_parity(block, module, geometry.input(torch.float64), floor=TERM)


@given(geometry=conv_transpose_geometries())
def test_conv_transpose2d_block_matches_torch_nn_over_the_grid(geometry: Geometry) -> None:
    block, module = ConvTranspose2d(**geometry.arguments), nn.ConvTranspose2d(**geometry.arguments)
    assert_block_parity(block, module, geometry.input(torch.float64), floor=TERM)


@each_implementation
@given(geometry=conv_geometries())
def test_transposed_convolution_is_the_adjoint_of_convolution(
    ops: ModuleType, geometry: Geometry
) -> None:
    """⟨conv(x), y⟩ = ⟨x, conv_transpose(y)⟩ with one and the same weight."""
    input, weight = geometry.input(torch.float64), geometry.weight(torch.float64)
    output = ops.conv2d_forward(input, weight, None, geometry.geometry)
    other = torch.randn_like(output)
    # The rows and columns that the stride leaves over at the bottom and right.
    rest = tuple(
        (n + 2 * p - d * (k - 1) - 1) % s
        for n, k, s, p, d in zip(
            geometry.size,
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            strict=True,
        )
    )
    adjoint = replace(geometry.geometry, output_padding=rest)
    back = ops.conv_transpose2d_forward(other, weight, None, adjoint)
    assert back.shape == input.shape
    assert_parity((input * back).sum(), (output * other).sum(), "product", floor=TERM)


@each_implementation
@given(geometry=conv_geometries(bias=False))
def test_conv2d_is_linear_in_its_input(ops: ModuleType, geometry: Geometry) -> None:
    weight = geometry.weight(torch.float64)
    conv = partial(ops.conv2d_forward, weight=weight, bias=None, geometry=geometry.geometry)
    x, y = geometry.input(torch.float64), geometry.input(torch.float64)
    assert_parity(conv(2.5 * x - 0.7 * y), 2.5 * conv(x) - 0.7 * conv(y), floor=TERM)


@given(geometry=conv_geometries())
def test_conv2d_output_has_the_size_that_shapes_promises(geometry: Geometry) -> None:
    output = Conv2d(**geometry.arguments)(geometry.input(torch.float32))
    extent = geometry.geometry.conv2d_output_size(geometry.size, geometry.kernel_size)
    assert output.shape == (geometry.batch, geometry.out_channels, *extent)


@given(geometry=conv_transpose_geometries())
def test_conv_transpose2d_output_has_the_size_that_shapes_promises(geometry: Geometry) -> None:
    output = ConvTranspose2d(**geometry.arguments)(geometry.input(torch.float32))
    extent = geometry.geometry.conv_transpose2d_output_size(geometry.size, geometry.kernel_size)
    assert output.shape == (geometry.batch, geometry.out_channels, *extent)


@each_implementation
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_ops_leave_their_operands_alone(ops: ModuleType, name: str) -> None:
    geometry = ConvGeometry(stride=(2, 2), padding=(1, 1), output_padding=(1, 1))
    operands = input, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(3, 3, 3, 3), torch.ones(3)
    before = [operand.clone() for operand in operands]
    output = getattr(ops, f"{name}_forward")(input, weight, bias, geometry)
    grad_output = torch.ones_like(output)
    getattr(ops, f"{name}_backward")(grad_output, input, weight, geometry)
    for operand, original in zip((*operands, grad_output), (*before, 1), strict=True):
        assert (operand == original).all()


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "broadcast"])
@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d], ids=["conv", "conv-transpose"])
def test_memory_layout_makes_no_difference(kind: type, layout: str) -> None:
    block = kind(4, 5, 3, stride=2, padding=1)
    input = laid_out(torch.randn(2, 4, 9, 9), layout)
    grad_output = laid_out(torch.randn(*block(input).shape), layout)
    grad_input = block.backward(grad_output)
    gradients = [parameter.grad for parameter in block.parameters()]
    output = block(input)
    block.zero_grad()
    assert_parity(output, block(input.contiguous()))
    assert_parity(grad_input, block.backward(grad_output.contiguous()), "grad_input")
    for parameter, grad in zip(block.parameters(), gradients, strict=True):
        assert_parity(grad, parameter.grad, "parameter")


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    match layout:
        case "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        case "transposed":
            return values.transpose(2, 3)
        case "sliced":
            return values.repeat_interleave(2, dim=3)[..., ::2]
        case _:
            return values[:, :, :1, :1].expand_as(values)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d], ids=["conv", "conv-transpose"])
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(kind: type) -> None:
    block = kind(3, 4, 3)
    output = block(torch.empty(0, 3, 8, 8))
    assert output.shape[:2] == (0, 4)
    assert block.backward(output).shape == (0, 3, 8, 8)
    assert not any(parameter.grad.any() for parameter in block.parameters())
