"""The noise level on its way to the network, and the guard that goes by it."""

import pytest
import torch
from torch.nn import functional

from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import BITS_8, DecodedImage
from denoise_batch.models import Network
from denoise_batch.streaming.denoiser import BatchDenoiser, Forward, Output
from denoise_batch.streaming.guard import MOST, limit_residual

LEVEL = torch.tensor([0.04])


def page(height: int, width: int) -> DecodedImage:
    samples = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return DecodedImage(samples, None, BITS_8, StorageFormat("PNG", "RGB"), Metadata())


def network() -> Network:
    made = Network("unet-level", 0.4, 0.2, torch.Generator().manual_seed(0)).eval()
    for parameter in made.layers.parameters():
        parameter.normal_(0, max(parameter[0].numel(), 4) ** -0.5)
    return made


def test_a_residual_as_strong_as_the_noise_passes() -> None:
    image = torch.rand(1, 3, 64, 80)
    output = image - LEVEL * torch.randn_like(image)
    torch.testing.assert_close(limit_residual(image, output, LEVEL), output)


def test_a_residual_stronger_than_the_noise_is_scaled_down_to_it() -> None:
    image = torch.rand(1, 3, 64, 80)
    output = image - 5 * LEVEL * torch.randn_like(image)
    residual = limit_residual(image, output, LEVEL) - image
    power = residual.square().mean()
    assert power == pytest.approx(MOST * float(LEVEL) ** 2, rel=0.1)
    # Only its strength changes.
    ratio = residual / (output - image)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=0.05, rtol=0)


def test_only_where_it_is_too_strong() -> None:
    image = torch.rand(1, 3, 128, 128)
    residual = 0.5 * LEVEL * torch.randn_like(image)
    residual[..., :32] *= 20  # a drawing's lines
    limited = limit_residual(image, image + residual, LEVEL)
    torch.testing.assert_close(limited[..., 64:], (image + residual)[..., 64:])
    power = (limited - image)[..., :16].square().mean()
    assert power < 1.2 * MOST * float(LEVEL) ** 2


def test_it_is_what_torch_s_pooling_and_interpolation_give() -> None:
    image, output = torch.rand(2, 2, 3, 48, 80, dtype=torch.float64)
    level = torch.tensor([0.1, 0.2], dtype=torch.float64)
    power = functional.avg_pool2d((output - image).square().mean(1, keepdim=True), 8)
    power = functional.avg_pool2d(power, 3, 1, 1, count_include_pad=False)
    scale = (MOST * level.square().view(-1, 1, 1, 1) / power).sqrt().clamp_max(1)
    scale = functional.interpolate(scale, scale_factor=8, mode="bilinear", align_corners=False)
    expected = image + scale * (output - image)
    torch.testing.assert_close(limit_residual(image, output, level), expected)
    for size in ((8, 8), (8, 24), (16, 8)):  # a block or two
        corner = (..., slice(size[0]), slice(size[1]))
        assert limit_residual(image[corner], output[corner], level).shape[2:] == size


def test_every_image_has_its_own_level() -> None:
    image = torch.rand(2, 3, 32, 32)
    output = image + 0.1
    limited = limit_residual(image, output, torch.tensor([0.0, 1.0]))
    assert torch.equal(limited[0], image[0])
    torch.testing.assert_close(limited[1], output[1])


def test_the_guard_works_on_what_the_denoiser_makes() -> None:
    made = network()
    image = torch.rand(1, 3, 64, 64)
    raw = made.forward_padded(image, LEVEL)
    guarded = Forward(made)(image, LEVEL)
    assert (raw - image).square().mean() > 2 * MOST * LEVEL**2  # these weights do harm
    torch.testing.assert_close(guarded, limit_residual(image, raw, LEVEL))
    half = Forward(made, strength=0.5)(image, LEVEL)
    torch.testing.assert_close(half, image.lerp(guarded, 0.5))


def test_images_of_a_batch_are_told_their_own_levels() -> None:
    denoiser = BatchDenoiser(network(), torch.device("cpu"), memory=1 << 40)
    pages = [page(48, 64), page(48, 60), page(45, 64)]
    together = list(denoiser.denoise(pages))
    levels = []
    for image, output in zip(pages, together, strict=True):
        (alone,) = denoiser.denoise([image])
        assert isinstance(output, Output)
        assert isinstance(alone, Output)
        assert torch.equal(output.wait()[0], alone.wait()[0])
        assert output.level is not None
        assert alone.level is not None
        levels.append(float(output.level))
        assert float(alone.level) == pytest.approx(levels[-1], rel=1e-6)
    assert len(set(levels)) == 3


def test_a_given_level_needs_no_estimator() -> None:
    made = network()
    made.estimator = None
    for tile_px in (None, 64):
        denoiser = BatchDenoiser(
            made, torch.device("cpu"), memory=1 << 40, level=0.0, tile_px=tile_px
        )
        image = page(80, 96)
        (output,) = denoiser.denoise([image])
        assert isinstance(output, Output)
        assert torch.equal(output.wait()[0], image.samples)  # level 0 is the identity
        assert float(output.level or 0) == 0


def test_a_network_that_takes_no_level_is_told_none() -> None:
    blind = Network("unet", 0.4, 0.2, torch.Generator().manual_seed(0)).eval()
    for tile_px in (None, 64):
        denoiser = BatchDenoiser(
            blind, torch.device("cpu"), memory=1 << 40, level=0.3, tile_px=tile_px
        )
        (output,) = denoiser.denoise([page(80, 96)])
        assert isinstance(output, Output)
        assert output.level is None


def test_the_probe_is_of_the_network_told_the_same_level() -> None:
    """A large page is probed by tiles of it, whose own estimates would differ."""
    made, seen = network(), []
    forward = Network.forward_padded
    with pytest.MonkeyPatch.context() as patch:

        def watched(
            self: Network, padded: torch.Tensor, level: torch.Tensor | None = None
        ) -> torch.Tensor:
            assert level is not None
            seen.extend(level.tolist())
            return forward(self, padded, level)

        patch.setattr(Network, "forward_padded", watched)
        denoiser = BatchDenoiser(made, torch.device("cpu"), memory=1 << 40, probe=True)
        (output,) = denoiser.denoise([page(384, 400)])
        assert isinstance(output, Output)
        assert output.probe is not None
        tiled = BatchDenoiser(made, torch.device("cpu"), memory=1 << 40, probe=True, tile_px=256)
        (cut,) = tiled.denoise([page(384, 400)])
        assert isinstance(cut, Output)
        assert cut.probe is not None
    assert len({round(level, 6) for level in seen}) == 2  # one a page
