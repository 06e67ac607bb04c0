"""Brightness of shots beside each other: found in spite of noise, and only where it can be."""

import pytest
import torch
from pictures import blobs
from torch import Tensor

from denoise_batch.training.alignment import find_shift
from denoise_batch.training.brightness import Brightness, find_brightness


def noisy(clean: Tensor, sigma: float, seed: int, kind: str = "white") -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    if kind == "blurred":
        noise = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False) * 5
    elif kind == "rows":
        noise = noise[:, :, :1].expand_as(noise)
    return clean + sigma * noise


def found(first: Tensor, other: Tensor) -> Brightness | None:
    return find_brightness(first, other, torch.zeros(first.shape[1:], dtype=torch.bool))


@pytest.mark.parametrize("kind", ["white", "blurred", "rows"])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2, 0.8])
def test_equal_shots_are_left_alone_however_noisy(kind: str, sigma: float) -> None:
    for size in (32, 64, 160):
        for seed in range(6):
            for clean in (blobs(size, seed), torch.full((1, size, size), 0.3)):
                shots = noisy(clean, sigma, seed, kind), noisy(clean, sigma, 90 + seed, kind)
                assert found(*shots) == Brightness(), (size, seed)


@pytest.mark.parametrize(
    ("gain", "offset"), [(2.0, 0.0), (0.5, 0.1), (1.0, 0.2), (0.9, -0.05), (200.0, -3.0)]
)
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_gain_and_offset_are_found_though_both_are_noisy(
    gain: float, offset: float, sigma: float
) -> None:
    clean = blobs(256)
    first, other = noisy(clean, sigma, 1), noisy(gain * clean + offset, gain * sigma, 2)
    brightness = found(first, other)
    assert brightness
    assert brightness.is_different
    assert brightness.gain == pytest.approx(gain, rel=0.03)
    darkest = clean.min().item()
    expected = gain * darkest + offset
    assert brightness.gain * darkest + brightness.offset == pytest.approx(expected, abs=0.03 * gain)
    assert brightness.off_line is not None
    assert brightness.off_line.float().mean() < 0.02


@pytest.mark.parametrize("black", [0.0, 0.1])
@pytest.mark.parametrize("sigma", [0.0, 0.02])
def test_few_bright_objects_on_an_even_ground_tell_the_brightness(
    black: float, sigma: float
) -> None:
    """As of nuclei: 0.9 % of the picture."""
    clean = torch.zeros(1, 512, 512)
    for at in range(16, 512, 128):
        clean[0, at : at + 24, (7 * at) % 448 : (7 * at) % 448 + 24] = 1
    first, other = noisy(clean, sigma, 1), noisy(0.5 * clean + black, sigma, 2)
    if sigma == 0:
        first, other = first.clamp_min(0), other.clamp_min(0)
    brightness = found(first, other)
    assert brightness
    assert brightness.gain == pytest.approx(0.5, rel=0.1)
    assert brightness.difference == pytest.approx(max(0.5 - black, black), rel=0.1)


def stars(seed: int, px: int = 256) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    where, strengths = torch.rand(60, 2, generator=chance), torch.rand(60, generator=chance)
    at = torch.arange(px)
    sky = torch.full((px, px), 0.02)
    for (down, across), strength in zip(px * where, strengths, strict=True):
        rows, columns = (torch.exp(-((at - middle) ** 2) / 4) for middle in (down, across))
        sky += strength * rows[:, None] * columns
    return sky[None]


def shot(sky: Tensor, exposure: float, seed: int) -> Tensor:
    """Photons and read noise, in units of 4000 photons."""
    chance = torch.Generator().manual_seed(seed)
    photons = torch.poisson(4000 * exposure * sky, chance)
    return (photons + 8 * torch.randn(sky.shape, generator=chance)) / 4000


def test_stars_tell_the_exposure_though_each_is_smaller_than_a_square() -> None:
    for seed in range(4):
        sky = stars(seed)
        assert found(shot(sky, 1, seed), shot(sky, 1, 50 + seed)) == Brightness()
        brightness = found(shot(sky, 1, seed), shot(sky, 0.5, 50 + seed))
        assert brightness
        assert brightness.gain == pytest.approx(0.5, rel=0.05)
        assert brightness.off_line is not None
        assert brightness.off_line.float().mean() < 0.02


def test_rays_in_one_shot_are_not_taken_for_another_scene() -> None:
    first, other = (noisy(torch.full((1, 256, 256), 0.3), 0.02, seed) for seed in (1, 2))
    first[0, 10::25, 10::25] = 20.0
    assert found(first, other) == found(other, first) == Brightness()


def test_what_is_saturated_lies_off_the_line() -> None:
    clean = blobs(256)
    first, other = noisy(clean, 0.03, 1), noisy(2 * clean, 0.03, 2).clamp_max(1.5)
    brightness = found(first, other)
    assert brightness
    assert brightness.is_different
    assert brightness.gain == pytest.approx(2, rel=0.05)
    assert brightness.off_line is not None
    is_white = clean[0] > 0.95
    assert brightness.off_line[is_white].float().mean() > 0.7
    assert brightness.off_line[clean[0] < 0.5].float().mean() < 0.1


def test_another_scene_and_a_dark_shot_have_nothing_in_common() -> None:
    for seed in range(4):
        first = noisy(blobs(256, seed), 0.05, seed)
        assert found(first, noisy(torch.zeros(1, 256, 256), 0.05, 50 + seed)) is None
        assert found(noisy(torch.zeros(1, 256, 256), 0.05, 50 + seed), first) == Brightness()
    scenes = [noisy(blobs(256, number), 0.05, number) for number in range(16)]
    others = [found(*pair) for pair in zip(scenes[:8], scenes[8:], strict=True)]
    assert others.count(None) >= 2, "by chance some are alike"
    assert not any(other.is_different for other in others if other), "none is made as bright"


def test_pixels_without_meaning_do_not_count() -> None:
    clean = blobs(160)
    other = clean.clone()
    unknown = torch.rand(160, 160, generator=torch.Generator().manual_seed(0)) < 0.1
    other[0, unknown] = 20.0
    assert find_brightness(clean, other, unknown) == Brightness()
    assert find_brightness(clean, other, torch.ones_like(unknown)) == Brightness()


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_shifts_are_found_between_unequal_exposures(gain: float) -> None:
    whole = blobs(240)
    first, other = noisy(whole[:, 40:200, 40:200], 0.1, 1), whole[:, 36:196, 43:203]
    shift = find_shift(first, noisy(gain * other, 0.1 * gain, 2))
    assert (shift.down, shift.right) == (4, -3)
    assert not shift.moved[0]
