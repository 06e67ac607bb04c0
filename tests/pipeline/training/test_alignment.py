"""Shifts between shots: found as whole pixels, never where there is none, refused where several."""

import math
from itertools import product

import pytest
import torch
from pictures import blobs
from torch import Tensor

from denoise_batch.training.alignment import common_area, find_shift


def noise(like: Tensor, sigma: float, seed: int) -> Tensor:
    return sigma * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 6.0])
def test_aligned_shots_are_never_shifted_however_noisy(sigma: float) -> None:
    for seed in range(6):
        for size in (64, 100, 160):
            clean = blobs(size, seed)
            first, other = (
                clean + noise(clean, sigma, 2 * seed),
                clean + noise(clean, sigma, 99 + seed),
            )
            shift = find_shift(first, other)
            assert not shift, (seed, size, shift)
            assert shift.moved[0] == 0


def test_noise_alone_is_aligned() -> None:
    for seed in range(20):
        flat = torch.full((1, 96, 128), 0.5)
        shift = find_shift(flat + noise(flat, 0.1, seed), flat + noise(flat, 0.1, 500 + seed))
        assert not shift
        assert not shift.moved[0]
    assert not find_shift(flat, flat)


@pytest.mark.parametrize(
    ("offset", "sigma"),
    [
        ((0, 1), 0.0),
        ((1, 0), 0.03),
        *product([(-2, 3), (7, -5), (-12, -20)], [0.0, 0.05, 0.2, 0.4]),
    ],
)
def test_a_shift_is_found_to_the_pixel(offset: tuple[int, int], sigma: float) -> None:
    whole = blobs(240)
    first = whole[:, 40:200, 40:200]
    # What lies at row r of the first shot lies at row r + offset of the other.
    rows, columns = (slice(40 - shift, 200 - shift) for shift in offset)
    other = 0.9 * whole[:, rows, columns] + 0.02
    shift = find_shift(first + noise(first, sigma, 1), other + noise(other, sigma, 2))
    assert (shift.down, shift.right) == offset
    assert not shift.moved[0]
    areas = common_area([find_shift(first, first), shift], (160, 160))
    one, two = (
        shot[:, rows, columns] for shot, (rows, columns) in zip((first, other), areas, strict=True)
    )
    torch.testing.assert_close(0.9 * one + 0.02, two)


def test_half_a_pixel_is_no_shift_of_parts() -> None:
    whole = blobs(161)
    between = (whole[:, :, :-1] + whole[:, :, 1:]) / 2
    shift = find_shift(whole[:, :, :-1] + noise(between, 0.1, 1), between + noise(between, 0.1, 2))
    assert abs(shift.right) <= 1
    assert not shift.moved[0]


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_parts_that_move_differently_are_told(sigma: float) -> None:
    whole = blobs(280)
    first = whole[:, 20:260, 20:260]
    other = first.clone()
    other[:, :, :120] = whole[:, 20:260, 16:136]
    other[:, :, 120:] = whole[:, 20:260, 145:265]
    shift = find_shift(first + noise(first, sigma, 1), other + noise(other, sigma, 2))
    parts, of, pixels = shift.moved
    assert 4 <= parts <= of
    assert math.isclose(pixels, 9 if shift else 5, abs_tol=1.1)
