"""PSNR on values that can be worked out by hand."""

import math

import pytest
import torch

from denoise_batch.metrics import mse, psnr, psnrs_of_tiles


def test_psnr_of_a_constant_error() -> None:
    clean = torch.rand(3, 8, 8)
    assert psnr(clean + 0.1, clean) == pytest.approx(20.0, abs=1e-4)


def test_equal_images_are_infinitely_close() -> None:
    image = torch.rand(3, 8, 8)
    assert psnr(image, image.clone()) == math.inf


def test_mse_counts_all_elements_alike() -> None:
    assert mse(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)) == 0.25


def test_values_of_a_device_without_float64_are_compared_on_the_host() -> None:
    class OnDevice(torch.Tensor):
        def double(self) -> torch.Tensor:  # type: ignore[override]  # as MPS does
            pytest.fail("float64 on the device")

        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)

    image, reference = (torch.full((2, 3, 4, 4), value) for value in (0.1, 0.0))
    assert mse(image.as_subclass(OnDevice), reference.as_subclass(OnDevice)) == pytest.approx(0.01)
    psnrs = psnrs_of_tiles(image.as_subclass(OnDevice), reference.as_subclass(OnDevice), 1)
    assert psnrs == pytest.approx((20.0, 20.0), abs=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 7, 100])
def test_tiles_in_pieces_have_the_psnr_of_all(at_once: int) -> None:
    clean = torch.rand(7, 3, 8, 8)
    noisy = clean + 0.1 * torch.randn(clean.shape) * torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
    own = [min(psnr(a, b), 100.0) for a, b in zip(noisy, clean, strict=True)]
    expected = (psnr(noisy, clean), sum(own) / 7)
    assert psnrs_of_tiles(noisy, clean, at_once) == pytest.approx(expected, abs=1e-9)


def test_unknown_pixels_do_not_count() -> None:
    images, references = torch.rand(2, 4, 3, 8, 8)
    expected = psnrs_of_tiles(images[:3, :, :4], references[:3, :, :4], 2)
    references[:, :, 4:] = torch.nan
    references[3] = torch.nan
    assert psnrs_of_tiles(images, references, 2) == pytest.approx(expected)
    images[0, 0, 0, 0] = torch.nan
    assert math.isnan(psnrs_of_tiles(images, references, 2)[0]), "a diverged network is no best one"
