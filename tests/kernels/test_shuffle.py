"""PixelShuffle and PixelUnshuffle: torch's order of channels, and one undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_block_parity
from torch import nn

from denoise_batch.kernels import PixelShuffle, PixelUnshuffle, ShapeError


@given(
    factor=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_both_agree_with_torch_and_undo_each_other(
    factor: int, channels: int, height: int, width: int
) -> None:
    large = torch.randn(2, channels, height * factor, width * factor)
    small = PixelUnshuffle(factor)(large)
    assert torch.equal(PixelShuffle(factor)(small), large)
    assert_block_parity(PixelUnshuffle(factor), nn.PixelUnshuffle(factor), large)
    assert_block_parity(PixelShuffle(factor), nn.PixelShuffle(factor), small)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="not a multiple of 2"):
        PixelUnshuffle(2)(torch.zeros(1, 3, 4, 5))
    with pytest.raises(ShapeError, match="not a multiple of 4"):
        PixelShuffle(2)(torch.zeros(1, 6, 4, 4))
    with pytest.raises(ShapeError, match="at least 1"):
        PixelShuffle(0)
    with pytest.raises(ShapeError, match="at least 1"):
        PixelUnshuffle(0)
