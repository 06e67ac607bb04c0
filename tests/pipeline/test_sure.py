"""Stein's estimate: of linear denoisers, whose divergence is known, and of the shipped network."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoise_batch.files.images import read_pages
from denoise_batch.metrics import mse
from denoise_batch.models import find_weights, load_weights
from denoise_batch.noise_level import noise_level
from denoise_batch.quality import (
    BLOCK_PX,
    TILE_PX,
    Probe,
    block_spreads,
    divergence,
    estimate_mse,
    probe_images,
    probe_tiles,
    tile_slices,
)

CLEAN = Path(__file__).parents[2] / "docs" / "samples" / "clean"


def test_the_divergence_of_a_linear_denoiser_is_its_trace() -> None:
    noisy = torch.rand(2, 3, 64, 64)
    scales = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1)
    probes = probe_images(lambda y: scales * y, noisy, scales * noisy)
    found = [divergence(probe, probe.spreads) for probe in probes]
    assert found == pytest.approx([0.2, 0.7], rel=1e-4)


def test_the_divergence_of_a_blur_is_its_middle_weight() -> None:
    def blur(images: Tensor) -> Tensor:
        rows = (images.roll(1, 2) + images + images.roll(-1, 2)) / 3
        return (rows.roll(1, 3) + rows + rows.roll(-1, 3)) / 3

    noisy = torch.rand(1, 3, 512, 512)
    (probe,) = probe_images(blur, noisy, blur(noisy))
    assert divergence(probe, probe.spreads) == pytest.approx(1 / 9, rel=0.02)


def test_padding_does_not_count() -> None:
    noisy = torch.rand(1, 3, 32, 32)
    mask = torch.zeros(32, 32)
    mask[8:24, 8:16] = 1  # the image; around it is padding, which is not changed at all
    inside = (slice(8, 24), slice(8, 16))
    (probe,) = probe_images(lambda y: 0.5 * y * mask, noisy, 0.5 * noisy * mask, [inside])
    assert len(probe.responses) == 2
    assert divergence(probe, probe.spreads) == pytest.approx(0.5, rel=1e-4)


def test_strata_mend_a_sample_that_is_not_like_the_image() -> None:
    # Blocks of spread s answer with s; the sample holds far too many of the large ones.
    sample = torch.linspace(0, 1, 800).sqrt()
    image = torch.linspace(0, 1, 5000)
    found = divergence(Probe(sample, sample, False), image)
    assert found == pytest.approx(0.5, abs=0.03)
    assert float(sample.mean()) > 0.65


def test_nothing_to_go_by_is_none() -> None:
    nothing = torch.zeros(0)
    assert divergence(Probe(nothing, nothing, False), torch.zeros(9)) is None
    for bad in ((0.01, 0.0), (0.01, -0.2), (0.01, 0.95), (0.0, 0.1), (math.nan, 0.1)):
        assert estimate_mse(*bad, 0.1, 3, 1 << 19) is None


def test_an_ideal_linear_denoiser_is_estimated_exactly() -> None:
    # x ~ N(0, s²), y = x + n: f = s²/(s² + σ²)·y has MSE = σ²·a, the divergence a.
    s, sigma = 0.1, 0.1
    x = s * torch.randn(3, 700, 700)
    y = x + sigma * torch.randn(x.shape)
    a = s**2 / (s**2 + sigma**2)
    estimate = estimate_mse(mse(a * y, y), a, sigma, 3, 1 << 19)
    assert estimate is not None
    assert estimate.mse_in == pytest.approx(sigma**2, rel=0.01)
    assert estimate.mse_out == pytest.approx(mse(a * y, x), rel=0.02)


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.5, 0.2])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixture_with_the_input_has_the_same_noise(channels: int, strength: float) -> None:
    """The witness of the network holds for its own output, not for a mixture with the input."""
    s, sigma = 0.1, 0.1
    x = s * torch.randn(channels, 700, 700)
    y = x + sigma * torch.randn(x.shape)
    a = 1 - strength + strength * s**2 / (s**2 + sigma**2)
    (probe,) = probe_images(lambda image: a * image, y[None], a * y[None], strength=strength)
    answer = divergence(probe, probe.spreads)
    assert answer is not None
    estimate = estimate_mse(mse(a * y, y), answer, sigma, channels, 1 << 19, probe.strength)
    assert estimate is not None
    assert estimate.mse_in == pytest.approx(sigma**2, rel=0.01)
    assert estimate.mse_out == pytest.approx(mse(a * y, x), rel=0.02)


@pytest.mark.parametrize(("name", "sigma"), [("astronaut", 15), ("chelsea", 25), ("coffee", 25)])
def test_the_shipped_network_is_estimated_within_a_decibel(name: str, sigma: int) -> None:
    """The target, 0.5 dB on Kodak, is measured by scripts/data/score_estimates.py.

    These pictures are smaller than any that denoise-batch gives an estimate for: the rocket's is
    off by more than 2 dB at this size.
    """
    clean = read_pages(CLEAN / f"{name}.png")[0].to_unit()
    generator = torch.Generator().manual_seed(3)
    noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=generator)
    network = load_weights(find_weights(None)).network
    denoised = network(noisy[None]).clone()
    (probe,) = probe_images(network, noisy[None], denoised)
    answer = divergence(probe, probe.spreads)
    white = noise_level(noisy[None]).white_255
    assert answer is not None
    assert white is not None
    pixels = noisy.shape[1] * noisy.shape[2]
    estimate = estimate_mse(mse(denoised[0], noisy), answer, white / 255, 3, pixels)
    assert estimate is not None
    assert 10 * math.log10(estimate.mse_out / mse(denoised[0], clean)) == pytest.approx(0, abs=1)


@pytest.mark.parametrize("size", [(1025, 1025), (3000, 4000), (40, 60_000), (60_000, 40)])
def test_tiles_lie_in_the_image(size: tuple[int, int]) -> None:
    height, width = size
    places = tile_slices(height, width)
    assert 1 <= len(places) <= 8
    for rows, columns in places:
        assert 0 <= rows.start < rows.stop <= height
        assert rows.stop - rows.start == min(height, TILE_PX)
        assert 0 <= columns.start < columns.stop <= width


def test_tiles_give_the_same_answer_as_the_whole_image() -> None:
    tiles = torch.rand(2, 3, 96, 96)
    probe = probe_tiles(lambda y: 0.3 * y, tiles)
    assert not probe.is_whole
    assert len(probe.responses) == 2 * (64 // BLOCK_PX) ** 2
    spreads = block_spreads(0.3 * tiles).flatten()
    assert divergence(probe, spreads) == pytest.approx(0.3, rel=1e-4)
