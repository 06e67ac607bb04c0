"""Standardize against the formula and autograd."""

import pytest
import torch
from hypothesis import given
from strategies import images
from tolerances import Function, assert_block_parity, assert_parity, each_dtype
from torch import Tensor

from denoise_batch.kernels import Normalize, ShapeError

CASES = {
    "one-value": (0.45, 0.25),
    "integers": (0, 2),
    "one-a-channel": ((0.4, 0.5, -0.6), (0.1, 0.2, 30.0)),
    "one-mean-three-std": (0.5, [0.1, 0.2, 0.3]),
    "three-means-one-std": ([0.4, 0.5, 0.6], 0.25),
}
each_case = pytest.mark.parametrize(("mean", "std"), list(CASES.values()), ids=list(CASES))


def formula(mean: object, std: object, input: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(value, dtype=input.dtype).broadcast_to(3)[:, None, None]
        for value in (mean, std)
    )
    return (input - mean) / std


@each_dtype
@each_case
def test_block_matches_the_formula(mean: object, std: object, dtype: torch.dtype) -> None:
    input = torch.rand(2, 3, 5, 7, dtype=dtype)
    oracle = Function(lambda image: formula(mean, std, image))
    assert_block_parity(Normalize(mean, std), oracle, input)


@given(input=images())
def test_own_mean_and_deviation_give_mean_0_and_deviation_1(input: Tensor) -> None:
    input = torch.cat((input, 1 - input), dim=3)
    std, mean = torch.std_mean(input, dim=(0, 2, 3))
    output = Normalize(mean.tolist(), std.tolist())(input)
    new_std, new_mean = torch.std_mean(output, dim=(0, 2, 3))
    assert_parity(new_mean, torch.zeros_like(mean), "mean", floor=1 / std.min().item())
    assert_parity(new_std, torch.ones_like(std), "std")


def test_the_input_is_not_changed() -> None:
    input = torch.ones(1, 3, 2, 2)
    block = Normalize(0.5, 0.25)
    block(input)
    block.backward(input)
    assert (input == 1).all()


def test_there_are_no_parameters() -> None:
    assert Normalize(0.5, 0.25).parameters() == []


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.5, 0.0),
        (0.5, -1.0),
        (0.5, float("nan")),
        ((0.5, 0.5), (1.0, 0.0)),
        ((0.1, 0.2), (1.0, 1.0, 1.0)),
        ((), 1.0),
    ],
    ids=["std0", "std-negative", "std-nan", "one-std0", "lengths-differ", "no-mean"],
)
def test_a_contradiction_is_refused_by_value(mean: object, std: object) -> None:
    with pytest.raises(ShapeError, match="std="):
        Normalize(mean, std)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.4, 0.5, 0.6), 0.25),
        ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)),
        (0.5, (0.1, 0.2, 0.3)),
    ],
    ids=["three-means", "three-of-both", "three-std"],
)
def test_another_number_of_channels_is_refused(mean: object, std: object, channels: int) -> None:
    with pytest.raises(ShapeError, match=f"{channels} channels.*expected 3"):
        Normalize(mean, std)(torch.zeros(1, channels, 2, 2))
