"""What single shots' noise is like: its correlation between neighbours, and its growth."""

import pytest
import torch
from pictures import blobs
from torch import Tensor

from denoise_batch.training.noise_kind import CORRELATED, measure_noise


def shots(noise: str, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        clean = blobs(160, number)
        white = torch.randn(1, 164, 164, generator=generator)
        if noise == "white":
            shot = clean + 0.1 * white[:, 2:-2, 2:-2]
        elif noise == "poisson":
            shot = torch.poisson(40 * clean.clamp_min(0), generator=generator) / 40
            shot += 0.02 * white[:, 2:-2, 2:-2]
        elif noise == "8-bit":
            shot = ((clean + 0.02 * white[:, 2:-2, 2:-2]) * 255).round() / 255
        elif noise == "blurred":
            wide = (white[:, 1:-1] + white[:, 2:] + white[:, :-2])[:, 1:-1]
            shot = clean + 0.05 * (wide[:, :, 1:-1] + wide[:, :, 2:] + wide[:, :, :-2])[:, :, 1:-1]
        elif noise == "slightly":
            wide = white[:, 2:-2]
            shot = clean + 0.1 * (wide[:, :, 2:-2] + 0.3 * (wide[:, :, 1:-3] + wide[:, :, 3:-1]))
        else:  # rows
            shot = clean + 0.02 * white[:, 2:-2, 2:-2] + 0.1 * white[:, 2:-2, :1]
        found.append(shot)
    return found


@pytest.mark.parametrize("noise", ["white", "poisson", "8-bit"])
def test_noise_of_single_pixels_is_seen_as_such(noise: str) -> None:
    kind = measure_noise(shots(noise))
    assert abs(kind.across) < 0.08
    assert abs(kind.down) < 0.08


def test_a_blur_correlates_neighbours_both_ways() -> None:
    kind = measure_noise(shots("blurred"))
    assert kind.across > 0.28
    assert kind.down > 0.28


def test_one_direction_suffices() -> None:
    """Neighbours of weights 0.3 1 0.3 correlate by 0.6/1.18."""
    kind = measure_noise(shots("slightly"))
    assert 0.35 < kind.across < 0.65
    assert abs(kind.down) < 0.1
    assert kind.correlation == kind.across > CORRELATED


def test_noise_that_grows_with_the_light_is_told_from_noise_that_does_not() -> None:
    assert measure_noise(shots("poisson")).growth > 1.3
    assert 0.9 < measure_noise(shots("white")).growth < 1.1


def test_shots_too_small_for_a_block_say_nothing() -> None:
    kind = measure_noise([torch.rand(1, 9, 9)])
    assert (kind.across, kind.down, kind.growth) == (0, 0, 1)
