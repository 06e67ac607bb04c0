"""σ from the image alone, on pictures whose noise is known."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from denoise_batch.files.images import read_pages
from denoise_batch.files.pixels import from_pil, to_pil
from denoise_batch.noise_level import EXACT, SHOWN, Effort, NoiseLevel, noise_level, window_slices

CLEAN = Path(__file__).parents[2] / "docs" / "samples" / "clean"


def noisy(name: str, sigma_255: float, *, is_gray: bool = False) -> Tensor:
    image = read_pages(CLEAN / f"{name}.png")[0].to_unit()
    image = image[:1] if is_gray else image
    generator = torch.Generator().manual_seed(1)
    return image + sigma_255 / 255 * torch.randn(image.shape, generator=generator)


@pytest.mark.parametrize("sigma", [10, 25, 50])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_white_noise_in_colour_is_read_within_five_percent(name: str, sigma: int) -> None:
    level = noise_level(noisy(name, sigma)[None])
    assert level.is_white
    assert level.sigma_255 == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("sigma", [25, 50])
@pytest.mark.parametrize("name", ["brick", "camera", "chelsea"])
def test_white_noise_in_gray_is_read_within_ten_percent(name: str, sigma: int) -> None:
    level = noise_level(noisy(name, sigma, is_gray=True)[None])
    assert level.sigma_255 == pytest.approx(sigma, rel=0.1)


def _read(image: Tensor, effort: Effort) -> NoiseLevel:
    places = window_slices(*image.shape[1:], effort.pixels)
    windows = torch.stack([image[:, rows, columns] for rows, columns in places])
    return noise_level(windows, effort.stride, is_lossless=True)


@pytest.mark.parametrize("sigma", [2, 5, 10, 25, 50])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_what_is_shown_is_near_what_is_exact(name: str, sigma: float) -> None:
    clean = read_pages(CLEAN / f"{name}.png")[0].to_unit().repeat(1, 3, 3)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    image = clean + sigma / 255 * noise
    exact, shown = (_read(image, effort) for effort in (EXACT, SHOWN))
    assert shown.sigma_255 == pytest.approx(exact.sigma_255, rel=0.05, abs=0.3)
    assert shown.is_white == exact.is_white or sigma < 10  # below, texture decides


def test_scaling_an_image_scales_both_estimates() -> None:
    image = noisy("chelsea", 20)
    # Clipping is judged by the range [0, 1]: stay inside it.
    image = 0.25 + 0.5 * image.clamp(0.1, 0.9)
    whole, half = noise_level(image[None]), noise_level(0.5 * image[None])
    assert half.wavelet_255 == pytest.approx(whole.wavelet_255 / 2, rel=1e-4)
    assert half.white_255 == pytest.approx((whole.white_255 or 0) / 2, rel=5e-3)


def test_noise_that_went_through_jpeg_is_not_white_but_is_seen() -> None:
    samples = (noisy("chelsea", 25).clamp(0, 1) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    to_pil(samples.permute(1, 2, 0)).save(file, "JPEG", quality=85)
    with Image.open(file) as opened:
        pixels = from_pil(opened).permute(2, 0, 1).float() / 255
    level = noise_level(pixels[None].contiguous())
    assert not level.is_white
    assert 10 < level.sigma_255 < 30


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 1, 7), (3, 5, 5), (1, 16, 16)])
def test_tiny_images_have_a_wavelet_estimate_at_most(shape: tuple[int, ...]) -> None:
    level = noise_level(torch.rand(1, *shape))
    assert level.white_255 is None
    assert level.wavelet_255 >= 0


def test_a_flat_image_has_no_noise() -> None:
    level = noise_level(torch.full((1, 3, 64, 64), 0.5))
    assert level.sigma_255 == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("effort", [EXACT, SHOWN])
@pytest.mark.parametrize(
    "size", [(1, 1), (512, 768), (3000, 4000), (100_000, 6), (10, 1_000_000), (20_000, 5_000)]
)
def test_windows_lie_in_the_image_and_are_bounded(size: tuple[int, int], effort: Effort) -> None:
    height, width = size
    places = window_slices(height, width, effort.pixels)
    seen = sum((y.stop - y.start) * (x.stop - x.start) for y, x in places)
    assert 0 < seen <= effort.pixels
    for rows, columns in places:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width


@pytest.mark.parametrize("sigma", [2.0, 3.0, 5.0, 7.5])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_weak_noise_of_8_bits_is_neither_stepped_nor_far_too_high(name: str, sigma: float) -> None:
    levels = noisy(name, sigma).clamp(0, 1).mul(255).round()
    level = noise_level(levels[None] / 255, step=1 / 255, is_lossless=True)
    assert level.sigma_255 == pytest.approx(sigma, rel=0.3)


def test_the_wavelet_estimate_of_integers_has_no_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 256, 256, generator=generator)
    for sigma in (0.6, 0.9, 1.3, 2.0, 3.1):
        levels = (128 + sigma * noise).round()
        found = noise_level(levels[None] / 255, 3, step=1 / 255)
        assert found.wavelet_255 == pytest.approx(sigma, rel=0.08)
        assert found.white_255 == pytest.approx(sigma, rel=0.08)
