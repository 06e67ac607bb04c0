"""Padding and Conv2d's padding modes against torch: values, gradients, adjoint, refusals."""

from typing import Any

import pytest
import torch
from gradcheck import gradcheck_block
from hypothesis import given
from hypothesis import strategies as st
from strategies import Pair
from tolerances import assert_block_parity, assert_parity, autograd, each_dtype
from torch import Tensor, nn
from torch.nn import functional

from denoise_batch.kernels import Block, Conv2d, ReLU, Residual, Sequential, ShapeError
from denoise_batch.kernels.padding import PADDING_MODES, Padding, PaddingMode

# Said once by torch, of its own speed.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
MODES = {"zeros": "constant"}  # of functional.pad, where it is another word
TERM = 1.0

each_mode = pytest.mark.parametrize("mode", PADDING_MODES)
sides = st.tuples(st.integers(0, 6), st.integers(0, 6))


def torch_pad(image: Tensor, padding: Padding) -> Tensor:
    both = (*padding.columns, *padding.rows)
    return functional.pad(image, both, mode=MODES.get(padding.mode, padding.mode))


@each_mode
@given(rows=sides, columns=sides, size=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_padding_and_its_gradient_are_torchs_and_so_is_what_is_refused(
    mode: PaddingMode, rows: Pair, columns: Pair, size: Pair
) -> None:
    padding, image = Padding(rows, columns, mode), torch.randn(2, 3, *size, dtype=torch.float64)
    try:
        expected, gradients = autograd(lambda x: torch_pad(x, padding), image)
    except RuntimeError:
        with pytest.raises(ShapeError, match=f"{mode}.*not {size[0]}x{size[1]}"):
            padding.check(size)
        return
    padding.check(size)
    assert torch.equal(padding.pad(image), expected)
    assert padding.size(size) == expected.shape[2:]
    grad = torch.randn_like(expected)
    assert_parity(padding.fold(grad), gradients(grad)[0], "grad", floor=TERM)


def test_reflection_goes_to_and_fro_beyond_what_torch_pads() -> None:
    row = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    padded = Padding((1, 0), (5, 4), "reflect").pad(row)
    assert padded[0, 0].tolist() == [[2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3]] * 2
    grad = Padding((1, 0), (5, 4), "reflect").fold(torch.ones_like(padded))
    assert grad.flatten().tolist() == [6, 12, 6]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
@given(data=st.data())
def test_conv2d_pads_as_torch_does_over_the_grid(mode: str, data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    groups = data.draw(st.sampled_from((1, 2)))
    options: dict[str, Any] = {
        "padding": data.draw(st.sampled_from(("same", "valid", 0, 1, (3, 2), (0, 4)))),
        "dilation": data.draw(st.sampled_from((1, 2))),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": mode,
    }
    if options["padding"] != "same":
        options["stride"] = data.draw(st.sampled_from((1, 2, (1, 3))))
    arguments = (2 * groups, 3 * groups, kernel)
    block, module = Conv2d(*arguments, **options), nn.Conv2d(*arguments, **options)
    batch = data.draw(st.sampled_from(((2,), ())))
    size = data.draw(st.tuples(st.integers(9, 13), st.integers(9, 13)))
    image = torch.randn(*batch, 2 * groups, *size, dtype=torch.float64)
    assert_block_parity(block, module, image, floor=TERM)


@each_dtype
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batch", "one-image"])
@pytest.mark.parametrize(
    ("kernel", "options"),
    {
        "same-even": ((4, 2), {"padding": "same", "dilation": (1, 3)}),
        "same-odd-is-padding": (3, {"padding": "same"}),
        "reflect-same-even": (4, {"padding": "same", "padding_mode": "reflect"}),
        "reflect-strided": (3, {"padding": 2, "stride": 2, "padding_mode": "reflect"}),
        "reflect-to-the-edge": (3, {"padding": (6, 8), "padding_mode": "reflect"}),
        "circular-once-around": (3, {"padding": (7, 9), "padding_mode": "circular"}),
        "replicate-far": (3, {"padding": (20, 0), "padding_mode": "replicate"}),
        "replicate-valid": (3, {"padding": "valid", "padding_mode": "replicate"}),
        "circular-depthwise": (3, {"padding": 1, "groups": 4, "padding_mode": "circular"}),
    }.values(),
    ids=[
        "same-even",
        "same-odd-is-padding",
        "reflect-same-even",
        "reflect-strided",
        "reflect-to-the-edge",
        "circular-once-around",
        "replicate-far",
        "replicate-valid",
        "circular-depthwise",
    ],
)
def test_conv2d_pads_as_torch_does(
    kernel: int | Pair, options: dict[str, Any], batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    block, module = Conv2d(4, 8, kernel, **options), nn.Conv2d(4, 8, kernel, **options)
    assert_block_parity(block, module, torch.randn(*batch, 4, 7, 9, dtype=dtype))


def test_one_pixel_can_be_replicated_and_wrapped() -> None:
    for mode in ("replicate", "circular"):
        options: dict[str, Any] = {"padding": 1, "padding_mode": mode}
        block, module = Conv2d(2, 3, 3, **options), nn.Conv2d(2, 3, 3, **options)
        assert_block_parity(block, module, torch.randn(1, 2, 1, 1, dtype=torch.float64))


@each_mode
def test_gradients_are_those_of_central_differences(mode: PaddingMode) -> None:
    for batch in ((2,), ()):
        block = Conv2d(4, 6, (3, 4), padding="same", groups=2, padding_mode=mode)
        gradcheck_block(block, torch.randn(*batch, 4, 5, 6, dtype=torch.float64))


@each_mode
def test_a_sum_around_a_padded_convolution_has_the_right_gradients(mode: PaddingMode) -> None:
    body = Sequential(
        Conv2d(3, 4, 3, padding=2, padding_mode=mode),
        ReLU(),
        Conv2d(4, 3, 2, padding="valid"),
        Conv2d(3, 3, 2, padding="valid", padding_mode=mode),
    )
    block: Block = Residual(body)
    convolutions = [
        nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2),
        nn.Conv2d(3, 3, 2),
    ]

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*convolutions)

        def forward(self, input: Tensor) -> Tensor:
            return input + self.body(input)

    for shape in ((2, 3, 6, 7), (3, 6, 7)):
        assert_block_parity(block, Sum(), torch.randn(*shape, dtype=torch.float64))
    block.eval()
    for image in (torch.randn(2, 3, 6, 7), torch.randn(3, 6, 7)):
        module = Sum().to(torch.float32)
        module.load_state_dict(block.to(dtype=torch.float32).state_dict())
        assert_parity(block(image), module(image).detach())


@each_mode
def test_without_grad_input_there_is_none(mode: PaddingMode) -> None:
    block = Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    output = block(torch.randn(2, 3, 6, 7))
    assert block.backward(output, needs_input_grad=False) is None
    assert block.weight.grad is not None
