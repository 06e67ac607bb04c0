"""PSNR on values that can be worked out by hand."""

import math

import pytest
import torch

from denoise_batch.pipeline.metrics import mse, psnr


def test_psnr_of_a_constant_error() -> None:
    clean = torch.rand(3, 8, 8)
    assert psnr(clean + 0.1, clean) == pytest.approx(20.0, abs=1e-4)


def test_equal_images_are_infinitely_close() -> None:
    image = torch.rand(3, 8, 8)
    assert psnr(image, image.clone()) == math.inf


def test_mse_counts_all_elements_alike() -> None:
    assert mse(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)) == 0.25
