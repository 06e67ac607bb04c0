"""Padded: any size goes in, the same comes out, and backward is the adjoint of forward."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Pair
from tolerances import assert_block_parity, assert_parity, each_dtype
from torch import Tensor, nn
from torch.nn import functional

from denoise_batch.kernels import Block, Conv2d, ReflectPadded, Sequential, ShapeError

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
multiples = st.integers(1, 8)
minimums = st.integers(1, 20)
margins = st.integers(0, 12)


class Recorder(Block):
    """The identity; remembers what it saw."""

    def forward(self, input: Tensor) -> Tensor:
        self.seen = input
        return input

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> Tensor:
        return grad_output


class TorchPadded(nn.Module):
    """torch's reflection around a module, cropped again."""

    def __init__(self, body: nn.Module, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.body = body
        self.padding = padding

    def forward(self, input: Tensor) -> Tensor:
        left, _, top, _ = self.padding
        inside = self.body(functional.pad(input, self.padding, mode="reflect"))
        return inside[:, :, top : top + input.shape[2], left : left + input.shape[3]]


def torch_padding(padded: ReflectPadded, size: Pair) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) for functional.pad."""
    margin = padded.margin
    bottom, right = (padded.padded_size(extent) - extent - margin for extent in size)
    return margin, right, margin, bottom


@given(sizes, multiples, minimums, margins)
def test_an_identity_inside_returns_the_image_bit_for_bit(
    size: Pair, multiple: int, minimum: int, margin: int
) -> None:
    image = torch.randn(2, 3, *size)
    padded = ReflectPadded(Sequential(), multiple, minimum, margin)
    assert torch.equal(padded(image), image)


@given(sizes, multiples, minimums, margins)
def test_the_body_sees_a_size_that_it_likes(
    size: Pair, multiple: int, minimum: int, margin: int
) -> None:
    recorder = Recorder()
    padded = ReflectPadded(recorder, multiple, minimum, margin)
    padded(torch.randn(1, 1, *size))
    for inside, extent in zip(recorder.seen.shape[2:], size, strict=True):
        assert inside == padded.padded_size(extent)
        assert inside % multiple == 0
        assert inside >= max(minimum, extent + 2 * margin)
        assert inside - multiple < max(minimum, extent + 2 * margin), "no larger than needed"


@given(sizes, multiples, minimums, st.integers(0, 8))
def test_the_body_sees_torchs_reflection_where_torch_has_one(
    size: Pair, multiple: int, minimum: int, margin: int
) -> None:
    recorder = Recorder()
    padded = ReflectPadded(recorder, multiple, minimum, margin)
    left, right, top, bottom = torch_padding(padded, size)
    assume(max(left, right) < size[1] and max(top, bottom) < size[0])
    image = torch.randn(2, 2, *size)
    padded(image)
    expected = functional.pad(image, (left, right, top, bottom), mode="reflect")
    assert torch.equal(recorder.seen, expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [([7], [7] * 8), ([1, 2], [2, 1, 2, 1, 2, 1, 2, 1]), ([1, 2, 3], [2, 3, 2, 1, 2, 3, 2, 1, 2])],
    ids=["size1", "size2", "size3"],
)
def test_reflection_goes_to_and_fro_beyond_the_image(row: list[int], expected: list[int]) -> None:
    recorder = Recorder()
    ReflectPadded(recorder, 1, minimum=8, margin=3)(torch.tensor([[[row]]]))
    assert recorder.seen[0, 0, 0].tolist() == expected


@given(sizes, multiples, minimums, margins)
def test_backward_is_the_adjoint_of_forward(
    size: Pair, multiple: int, minimum: int, margin: int
) -> None:
    body = Conv2d(2, 3, 3, padding=1, bias=False)
    padded = ReflectPadded(body, multiple, minimum, margin).to(dtype=torch.float64)
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    output = padded(image)
    grad_output = torch.randn_like(output)
    grad_input = padded.backward(grad_output)
    assert grad_input.shape == image.shape
    assert_parity((image * grad_input).sum(), (output * grad_output).sum(), "product", floor=1.0)


@each_dtype
@pytest.mark.parametrize(
    ("size", "multiple", "minimum", "margin"),
    [
        ((9, 7), 4, 1, 0),
        ((9, 7), 1, 1, 3),
        ((8, 11), 5, 12, 2),
        ((8, 8), 4, 8, 0),
        ((5, 8), 4, 1, 0),
        ((8, 5), 4, 1, 0),
    ],
    ids=["multiple", "margin", "all", "nothing-to-pad", "rows-only", "columns-only"],
)
def test_block_matches_torchs_reflection_and_autograd(
    size: Pair, multiple: int, minimum: int, margin: int, dtype: torch.dtype
) -> None:
    block = ReflectPadded(Conv2d(2, 3, 3, padding=1), multiple, minimum, margin)
    module = TorchPadded(nn.Conv2d(2, 3, 3, padding=1), torch_padding(block, size))
    assert_block_parity(block, module, torch.randn(3, 2, *size, dtype=dtype))


def test_parameters_of_the_body_appear_under_its_name() -> None:
    names = [name for name, _ in ReflectPadded(Conv2d(1, 1, 1), 2).named_parameters()]
    assert names == ["body.weight", "body.bias"]


@pytest.mark.parametrize(
    ("multiple", "minimum", "margin"),
    [(0, 1, 0), (1, 0, 0), (1, 1, -1)],
    ids=["multiple0", "minimum0", "margin-negative"],
)
def test_impossible_arguments_are_refused_by_value(
    multiple: int, minimum: int, margin: int
) -> None:
    named = f"multiple={multiple}, minimum={minimum}, margin={margin}"
    with pytest.raises(ShapeError, match=named):
        ReflectPadded(Sequential(), multiple, minimum, margin)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 0, 8)], ids=["unbatched", "empty"])
def test_an_input_that_is_no_image_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="Padded input"):
        ReflectPadded(Sequential(), 2)(torch.zeros(shape))


@pytest.mark.parametrize("margin", [0, 2])
def test_a_body_that_changes_the_size_is_refused(margin: int) -> None:
    with pytest.raises(ShapeError, match="size"):
        ReflectPadded(Conv2d(1, 1, 3), multiple=4, margin=margin)(torch.zeros(1, 1, 8, 8))
