"""PixelShuffle and PixelUnshuffle against torch; each undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import images
from tolerances import assert_block_parity, each_dtype
from torch import Tensor, nn

from denoise_batch.kernels import PixelShuffle, PixelUnshuffle, ShapeError


@each_dtype
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_unshuffle_matches_torch_nn(factor: int, dtype: torch.dtype) -> None:
    input = torch.randn(2, 3, 4 * factor, 5 * factor, dtype=dtype)
    assert_block_parity(PixelUnshuffle(factor), nn.PixelUnshuffle(factor), input)


@each_dtype
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffle_matches_torch_nn(factor: int, dtype: torch.dtype) -> None:
    input = torch.randn(2, 3 * factor**2, 4, 5, dtype=dtype)
    assert_block_parity(PixelShuffle(factor), nn.PixelShuffle(factor), input)


@given(image=images(), factor=st.integers(1, 4))
def test_each_undoes_the_other(image: Tensor, factor: int) -> None:
    image = image.repeat(1, factor**2, factor, factor)
    assert torch.equal(PixelShuffle(factor)(PixelUnshuffle(factor)(image)), image)
    assert torch.equal(PixelUnshuffle(factor)(PixelShuffle(factor)(image)), image)


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (1, 3, 4, 5), (3, 4, 4)], ids=str)
def test_a_size_that_does_not_divide_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        nn.PixelUnshuffle(2)(torch.zeros(1, 3, 5, 4))
    with pytest.raises(ShapeError, match="PixelUnshuffle"):
        PixelUnshuffle(2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 6, 4, 4), (4, 4, 4)], ids=str)
def test_channels_that_do_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="PixelShuffle"):
        PixelShuffle(2)(torch.zeros(shape))


@pytest.mark.parametrize("kind", [PixelShuffle, PixelUnshuffle])
@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_below_1_is_refused_by_value(kind: type, factor: int) -> None:
    with pytest.raises(ShapeError, match=f"factor={factor}"):
        kind(factor)
