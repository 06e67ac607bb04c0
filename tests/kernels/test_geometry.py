"""The arithmetic of output sizes against torch, on the meta device: no numbers, only shapes."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Pair
from torch.nn import functional

from denoise_batch.kernels import ShapeError
from denoise_batch.kernels.geometry import ConvGeometry, check_nchw, pair


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def torch_size(function: partial[torch.Tensor], size: Pair, kernel_size: Pair) -> Pair | None:
    """What torch makes of a one-channel image; None where it refuses."""
    input = torch.empty(1, 1, *size, device="meta")
    try:
        output = function(input, torch.empty(1, 1, *kernel_size, device="meta"))
    except RuntimeError:
        return None
    return output.shape[2], output.shape[3]


@given(pairs(1, 40), pairs(1, 7), pairs(1, 5), pairs(0, 4), pairs(1, 3))
def test_conv2d_output_size_is_torchs_and_refuses_what_torch_refuses(
    size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    conv = partial(functional.conv2d, stride=stride, padding=padding, dilation=dilation)
    expected = torch_size(conv, size, kernel_size)
    geometry = ConvGeometry(stride, padding, dilation)
    if expected is None:
        with pytest.raises(ShapeError, match=f"{size[0]}x{size[1]}"):
            geometry.conv2d_output_size(size, kernel_size)
    else:
        assert geometry.conv2d_output_size(size, kernel_size) == expected


@given(pairs(1, 20), pairs(1, 7), pairs(1, 5), pairs(0, 4), pairs(0, 4), pairs(1, 3))
def test_conv_transpose2d_output_size_is_torchs_and_refuses_what_torch_refuses(
    size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, output_padding: Pair, dilation: Pair
) -> None:
    conv = partial(
        functional.conv_transpose2d,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    expected = torch_size(conv, size, kernel_size)
    geometry = ConvGeometry(stride, padding, dilation, output_padding)
    ambiguous = any(
        o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)
    )
    if expected is None or ambiguous or min(expected) < 1:
        with pytest.raises(ShapeError, match="padding"):
            geometry.conv_transpose2d_output_size(size, kernel_size)
    else:
        assert geometry.conv_transpose2d_output_size(size, kernel_size) == expected


def test_pair_reads_one_integer_or_two() -> None:
    assert pair(3, "stride", minimum=1) == (3, 3)
    assert pair((1, 2), "stride", minimum=1) == (1, 2)
    assert pair([2, 1], "stride", minimum=1) == (2, 1)
    assert pair(0, "padding", minimum=0) == (0, 0)


@pytest.mark.parametrize(
    "value", [0, (1, 0), (), (1,), (1, 2, 3), (1, 2.0), "12"], ids=lambda value: repr(value)
)
def test_pair_refuses_anything_else_by_name(value: object) -> None:
    with pytest.raises(ShapeError, match="stride="):
        pair(value, "stride", minimum=1)


@pytest.mark.parametrize(
    ("shape", "named"),
    [((3, 8, 8), "3, 8, 8"), ((2, 4, 8, 8), "4 channels"), ((2, 3, 8, 0), "2, 3, 8, 0")],
    ids=["three-dimensions", "wrong-channels", "no-columns"],
)
def test_check_nchw_names_the_offending_shape(shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ShapeError, match=f"what.*{named}"):
        check_nchw(shape, 3, "what")


def test_check_nchw_lets_any_number_of_channels_and_an_empty_batch_pass() -> None:
    check_nchw((0, 5, 1, 1), None, "input")
    check_nchw((2, 3, 1, 1), 3, "input")
