"""Noise that grows with the signal: found in a file, and denoised behind a curve."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from denoise_batch import Denoiser
from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_pages
from denoise_batch.files.photons import PhotonCurve, find_photons
from denoise_batch.files.pixels import from_pil, to_pil
from denoise_batch.files.ranges import UNIT, ValueRange

BLACK, WHITE, PHOTONS = 1100.0, 4100.0, 40.0


def scene(size: int = 256) -> Tensor:
    """(size, size, 1) in [0, 1]: discs and slopes, mostly dark."""
    y, x = torch.meshgrid(torch.arange(size) / 64, torch.arange(size) / 64, indexing="ij")
    picture = 0.15 + 0.1 * torch.sin(2 * x + y)
    for down, across, radius, bright in ((1, 1, 0.6, 0.5), (2.8, 2.6, 0.9, 0.8), (1, 3, 0.4, 0.3)):
        picture = torch.where((y - down) ** 2 + (x - across) ** 2 < radius**2, bright, picture)
    return picture[..., None]


def shoot(picture: Tensor, seed: int = 0, read: float = 20.0) -> Tensor:
    """Counts of a camera, uint16."""
    generator = torch.Generator().manual_seed(seed)
    light = torch.poisson(picture * PHOTONS, generator) / PHOTONS
    counts = (
        BLACK + (WHITE - BLACK) * light + read * torch.randn(picture.shape, generator=generator)
    )
    return counts.round().clamp(0, 65535).to(torch.int32).to(torch.uint16)


def psnr(counts: Tensor, picture: Tensor) -> float:
    error = (counts.to(torch.float64) - BLACK) / (WHITE - BLACK) - picture
    return -10 * error.square().mean().log10().item()


def nothing(picture: Tensor) -> list[Tensor]:
    return [torch.zeros(picture.shape[:2], dtype=torch.bool)]


@pytest.mark.parametrize("zero", [-0.3, -0.01, 0.0, 0.02])
@pytest.mark.parametrize("gain", [1e-4, 0.02, 0.5])
def test_the_curve_has_an_inverse_and_keeps_black_and_white(gain: float, zero: float) -> None:
    curve = PhotonCurve(gain, zero)
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(curve.encoded(ends), ends, atol=1e-6, rtol=0)
    shares = torch.linspace(-0.5, 1.5, 4001)
    values = curve.encoded(shares)
    assert (values.diff() > 0).all()
    torch.testing.assert_close(curve.decoded(values), shares, atol=2e-5, rtol=0)


def test_noise_is_even_behind_the_curve() -> None:
    shares = torch.linspace(0.15, 1, 20).view(-1, 1).expand(-1, 20_000)
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * shares + 0.01**2).sqrt() * torch.randn(shares.shape, generator=generator)
    curve = PhotonCurve(0.02, -(0.01**2) / 0.02)
    sigma = curve.encoded(shares + noise).std(1)
    assert sigma.max() / sigma.min() < 1.1


@pytest.mark.parametrize("photons", [20.0, 200.0])
def test_the_mean_behind_the_curve_stands_for_the_mean(photons: float) -> None:
    shares = torch.linspace(0, 1, 21).view(-1, 1).expand(-1, 50_000)
    counts = torch.poisson(shares * photons, torch.Generator().manual_seed(0)) / photons
    curve = PhotonCurve(1 / photons, 0.0)
    noisy = curve.encoded(counts)
    means = noisy.mean(1, keepdim=True).expand_as(noisy)
    found = (curve.decoded(means) + curve.lift(means, noisy)).mean(1)
    torch.testing.assert_close(found, counts.mean(1), atol=0.08 / photons, rtol=0)
    # The less is removed, the less is put back.
    hardly = noisy + 0.01 * (means - noisy)
    assert curve.lift(hardly, noisy).mean() < 0.05 * curve.lift(means, noisy).mean()


def test_gain_and_zero_are_found() -> None:
    counts = shoot(scene(512)).to(torch.float32)
    scale = ValueRange(BLACK, WHITE - BLACK)
    curve = find_photons([counts], nothing(counts), scale)
    assert curve is not None
    assert curve.gain == pytest.approx(1 / PHOTONS, rel=0.2)
    reading = (20 / (WHITE - BLACK)) ** 2
    assert curve.zero == pytest.approx(-reading * PHOTONS, abs=0.015)


def test_other_noise_takes_no_curve() -> None:
    picture = scene(512)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    others = {
        "none": picture,
        "even": picture + 0.1 * noise,
        "slowly growing": picture + (0.003 * picture + 0.05**2).sqrt() * noise,
        "falling": picture + (0.02 * (1 - picture)).sqrt() * noise,
        "weak": picture + (1e-5 * picture).sqrt() * noise,
        "of a grid": picture + 0.3 * picture * torch.rand(512, 1, 1),
    }
    for name, image in others.items():
        assert find_photons([image], nothing(image), UNIT) is None, name
    small = shoot(scene(96)).to(torch.float32)
    assert find_photons([small], nothing(small), ValueRange(BLACK, WHITE - BLACK)) is None


def test_pixels_without_meaning_say_nothing() -> None:
    counts = shoot(scene(512)).to(torch.float32)
    counts[:, 200:300] = torch.rand(512, 100, 1) * 60000
    hidden = nothing(counts)
    hidden[0][:, 200:300] = True
    curve = find_photons([counts], hidden, ValueRange(BLACK, WHITE - BLACK))
    assert curve is not None
    assert curve.gain == pytest.approx(1 / PHOTONS, rel=0.2)


def test_samples_that_do_not_change_come_back_bit_for_bit(tmp_path: Path) -> None:
    counts = shoot(scene())
    to_pil(counts).save(tmp_path / "shot.tif")
    (page,) = read_pages(tmp_path / "shot.tif")
    assert isinstance(page.value_range.curve, PhotonCurve)
    unit = page.value_range.to_unit(page.samples)
    back = page.value_range.from_unit(unit, page.samples)
    assert torch.equal(back.to(torch.int32), counts.to(torch.int32))


def test_a_stack_of_counts_is_denoised_well_and_keeps_its_brightness(tmp_path: Path) -> None:
    picture = scene()
    shots = [shoot(picture, seed) for seed in range(3)]
    first, *rest = map(to_pil, shots)
    first.save(tmp_path / "stack.tif", save_all=True, append_images=rest)
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]) == 0
    with Image.open(tmp_path / "out" / "stack.tif") as file:
        for number, shot in enumerate(shots):
            file.seek(number)
            denoised = from_pil(file)
            assert psnr(denoised, picture) > psnr(shot, picture) + 11
            is_bright = picture > 0.75
            means = [x.to(torch.float64)[is_bright].mean().item() for x in (denoised, shot)]
            assert means[0] == pytest.approx(means[1], abs=0.004 * (WHITE - BLACK))
    alone = from_pil(Denoiser(device="cpu")(to_pil(shots[0])))
    assert psnr(alone, picture) > psnr(shots[0], picture) + 11


def test_a_clean_page_of_a_noisy_stack_keeps_its_brightness(tmp_path: Path) -> None:
    """Where no noise is removed, nothing is put back for it."""
    picture = scene()
    clean = (BLACK + (WHITE - BLACK) * picture).round().to(torch.int32).to(torch.uint16)
    pages = [to_pil(shoot(picture, seed)) for seed in range(16)]
    pages.insert(1, to_pil(clean))
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    read = read_pages(tmp_path / "stack.tif")
    assert isinstance(read[1].value_range.curve, PhotonCurve)
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]) == 0
    with Image.open(tmp_path / "out" / "stack.tif") as file:
        file.seek(1)
        assert psnr(from_pil(file), picture) > 48


@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
def test_the_mean_stays_at_every_strength(strength: float) -> None:
    picture = scene()
    shot = shoot(picture)
    denoised = from_pil(Denoiser(device="cpu", strength=strength)(to_pil(shot)))
    means = [x.to(torch.float64).mean().item() for x in (denoised, shot)]
    assert means[0] == pytest.approx(means[1], abs=0.003 * (WHITE - BLACK))
