"""What single shots' noise is like: its correlation, its growth, its tails and its strength."""

import pytest
import torch
from pictures import blobs
from torch import Tensor

from denoise_batch.training.noise_kind import CORRELATED, measure_noise, noise_root, noise_roots


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
        elif noise == "root of poisson":
            shot = torch.poisson(40 * clean.clamp_min(0), generator=generator)
            shot = (shot / 40 + 3 / 320).sqrt()
        elif noise in ("hot pixels", "impulses"):
            chance = torch.rand(clean.shape, generator=generator)
            is_lost = chance < (0.003 if noise == "hot pixels" else 0.1)
            normal = 0.05 * white[:, 2:-2, 2:-2] * (noise == "hot pixels")
            shot = torch.where(is_lost, 1.0, clean + normal)
        elif noise == "clipped":
            shot = (clean + 0.1 * white[:, 2:-2, 2:-2]).clamp(0, 0.45)
        elif noise == "coarse steps":
            shot = ((clean + 0.002 * white[:, 2:-2, 2:-2]) * 255).round() / 255
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


@pytest.mark.parametrize(
    ("noise", "is_normal"),
    [("white", True), ("8-bit", True), ("clipped", True), ("root of poisson", True),
     ("poisson", False), ("hot pixels", False), ("impulses", False), ("coarse steps", False)],
)  # fmt: skip
def test_normal_noise_of_one_strength_is_told_from_other(noise: str, is_normal: bool) -> None:
    assert measure_noise(shots(noise)).is_normal == is_normal


@pytest.mark.parametrize("shape", [(160, 160), (16, 40), (700, 600)], ids=str)
def test_the_root_gives_noise_like_the_shot_s(shape: tuple[int, int]) -> None:
    mixing = torch.tensor([[0.1, 0.0, 0.0], [0.02, 0.05, 0.0], [0.0, 0.03, 0.08]])
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(3, *shape, generator=generator)
    shot = blobs(max(shape), 1)[:, : shape[0], : shape[1]] + torch.einsum(
        "ij,jhw->ihw", mixing, white
    )
    root = noise_root(shot)
    tolerance = {"rtol": 0, "atol": 0.3e-2 if min(shape) < 100 else 0.8e-3}
    torch.testing.assert_close(root @ root.T, mixing @ mixing.T, **tolerance)


def test_gray_stored_as_rgb_has_one_noise() -> None:
    root = noise_root(shots("white", 1)[0].expand(3, -1, -1))
    drawn = root @ torch.randn(3, 1000)
    torch.testing.assert_close(drawn[0], drawn[2], atol=1e-4, rtol=0)
    assert drawn[0].std().item() == pytest.approx(0.1, rel=0.15)
    assert not noise_root(torch.full((3, 32, 32), 0.4)).any()


def test_shots_too_small_for_a_block_say_nothing() -> None:
    kind = measure_noise([torch.rand(1, 9, 9)])
    assert (kind.across, kind.down, kind.growth, kind.tail) == (0, 0, 1, 1)
    assert not kind.is_found
    assert not noise_root(torch.rand(3, 9, 9)).any()


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_clipping_is_not_taken_for_noise(share: float) -> None:
    """Where noise is clipped, its σ seems less, and neighbours unlike."""
    shot = shots("white", 1)[0]
    least = shot.flatten().sort().values[int(share * shot.numel())].item()
    clipped = shot.clamp_min(least)
    assert abs(measure_noise([clipped]).correlation) < 0.08
    assert noise_root(clipped).item() == pytest.approx(0.1, rel=0.1)


def test_pixels_without_meaning_hold_no_noise() -> None:
    shot, unknown = shots("blurred", 1)[0], torch.zeros(1, 160, 160, dtype=torch.bool)
    unknown[:, :, 40:] = True
    filled = torch.where(unknown, 0.5 + 0.1 * torch.randn(1, 160, 160), shot)
    assert abs(measure_noise([filled]).correlation) < 0.1
    assert measure_noise([filled], [unknown]).correlation > 0.25
    expected = noise_root(shot).item()
    assert noise_root(filled, unknown).item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("place", [0, 2])
def test_a_dye_stored_as_rgb_is_measured_in_its_channel(place: int) -> None:
    shot = torch.zeros(3, 160, 160)
    shot[place] = shots("white", 1)[0][0]
    kind = measure_noise([shot])
    assert kind.is_found
    assert kind.is_normal
    assert noise_root(shot).diagonal().tolist()[place] == pytest.approx(0.1, rel=0.1)


def test_a_shot_without_noise_takes_that_of_the_others() -> None:
    white, empty = shots("white", 1)[0], torch.full((1, 160, 160), 0.4)
    roots = noise_roots([white, empty, white[:, :9, :9]], [None] * 3)
    assert roots[1] == roots[2]
    torch.testing.assert_close(roots[0], roots[1])
    assert not noise_roots([empty], [None]).any()
