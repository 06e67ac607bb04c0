"""Tiles with a halo make the same image as no tiles, for every architecture."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import UNIT
from denoise_batch.models import ARCHITECTURES, Network, find_weights, load_weights
from denoise_batch.streaming.denoiser import BatchDenoiser, Output
from denoise_batch.streaming.guard import limit_residual
from denoise_batch.streaming.tiling import automatic_grid, fixed_grid

names = pytest.mark.parametrize("name", list(ARCHITECTURES))
sides = st.integers(1, 90)
GUARD_PX = 16  # that `limit_residual` sees beyond an aligned block


def page(height: int, width: int, channels: int = 3) -> DecodedImage:
    """Float samples, so that nothing is rounded."""
    mode = "RGB" if channels == 3 else "F"
    samples = torch.rand(height, width, channels)
    return DecodedImage(samples, None, UNIT, StorageFormat("TIFF", mode), Metadata())


def network_of(name: str) -> Network:
    return Network(name, 0.4, 0.2, torch.Generator().manual_seed(0)).eval()


def whole(network: Network, image: Tensor, level: Tensor | None = None) -> Tensor:
    """The network's output for one image (N, C, H, W), as a whole."""
    rows, columns = (slice(network.margin, network.margin + extent) for extent in image.shape[2:])
    return network.forward_padded(network.pad(image), level)[:, :, rows, columns]


def restless(network: Network) -> Network:
    """With weights as large as a trained network's, so that every pixel changes, some too much."""
    for parameter in network.layers.parameters():
        parameter.normal_(0, max(parameter[0].numel(), 4) ** -0.5)
    return network


def denoised(denoiser: BatchDenoiser, picture: DecodedImage) -> Tensor:
    (output,) = denoiser.denoise([picture])
    assert not isinstance(output, Exception)
    samples, is_finite, _ = output.wait()
    assert is_finite
    return samples


@names
def test_nothing_beyond_the_halo_reaches_an_aligned_block(name: str) -> None:
    spec = ARCHITECTURES[name]
    network = network_of(name).train().to(dtype=torch.float64)
    network.set_level(torch.tensor([0.1]))
    guard = GUARD_PX if spec.takes_level else 0
    side = 2 * (spec.halo + spec.multiple) + 5 * spec.multiple
    side -= side % spec.multiple
    start = side // 2 // spec.multiple * spec.multiple
    stop = start + spec.multiple
    grad = torch.zeros_like(network.layers(torch.rand(1, 3, side, side, dtype=torch.float64)))
    grad[:, :, start:stop, start:stop] = 1
    reach = network.layers.backward(grad).abs().sum((0, 1))
    # Winograd's transforms leave rounding errors everywhere in a block.
    touched = (reach > 1e-12 * reach.max()).nonzero()
    reach = spec.halo - guard
    assert int(touched.min()) >= start - reach
    assert int(touched.max()) < stop + reach
    # … and the halo is no more than the next multiple.
    assert int(touched.min()) < start - reach + spec.multiple


def test_nothing_beyond_its_reach_moves_the_guard_of_an_aligned_block() -> None:
    image, output = torch.rand(2, 2, 3, 96, 96, dtype=torch.float64)
    level = torch.tensor([0.1, 0.2], dtype=torch.float64)
    expected = limit_residual(image, output, level)
    start, stop = 48 - GUARD_PX, 64 + GUARD_PX
    output[:, :, :start] = output[:, :, :, :start] = 9
    output[:, :, stop:] = output[:, :, :, stop:] = 9
    inside = (..., slice(48, 64), slice(48, 64))
    assert torch.equal(limit_residual(image, output, level)[inside], expected[inside])
    output[:, :, start:stop, start:stop] += 1
    assert not torch.equal(limit_residual(image, output, level)[inside], expected[inside])


@pytest.mark.parametrize("name", ["tconv", "upsample"])
@given(height=sides, width=sides, channels=st.sampled_from([1, 3]), tile=st.integers(8, 60))
@settings(max_examples=15)
def test_tiled_equals_whole(name: str, height: int, width: int, channels: int, tile: int) -> None:
    network, picture = network_of(name), page(height, width, channels)
    expected = whole(network, picture.to_unit()[None])[0].permute(1, 2, 0)
    tiled = BatchDenoiser(network, torch.device("cpu"), memory=1, tile_px=tile)
    torch.testing.assert_close(denoised(tiled, picture), expected, atol=1e-5, rtol=0)
    automatic = BatchDenoiser(
        network, torch.device("cpu"), memory=2000 * network.spec.bytes_per_pixel
    )
    torch.testing.assert_close(denoised(automatic, picture), expected, atol=1e-5, rtol=0)


@given(height=st.integers(1, 330), width=st.integers(1, 330))
@settings(max_examples=2)
def test_tiled_equals_whole_for_the_default_weights(height: int, width: int) -> None:
    network, picture = load_weights(find_weights(None)).network, page(height, width)
    expected = whole(network, picture.to_unit()[None])[0].permute(1, 2, 0)
    tiled = BatchDenoiser(network, torch.device("cpu"), memory=1, tile_px=100)
    torch.testing.assert_close(denoised(tiled, picture), expected, atol=1e-5, rtol=0)


@given(
    height=st.integers(1, 330),
    width=st.integers(1, 330),
    channels=st.sampled_from([1, 3]),
    level=st.sampled_from([None, 0.0, 0.1]),
)
@settings(max_examples=6)
def test_tiles_are_told_the_level_of_their_image(
    height: int, width: int, channels: int, level: float | None
) -> None:
    network, picture = restless(network_of("unet-level")), page(height, width, channels)
    options: dict[str, Any] = {"memory": 1 << 40, "level": level, "level_factor": 1.5}
    (whole,) = BatchDenoiser(network, torch.device("cpu"), tile_px=0, **options).denoise([picture])
    tiled = BatchDenoiser(network, torch.device("cpu"), tile_px=100, **options)
    (cut,) = tiled.denoise([picture])
    assert isinstance(whole, Output)
    assert isinstance(cut, Output)
    torch.testing.assert_close(cut.wait()[0], whole.wait()[0], atol=1e-5, rtol=0)
    assert whole.level is not None
    assert cut.level is not None
    if level is None:
        estimate = network.estimate_level(network.pad(picture.to_unit()[None]))
        assert estimate is not None
        level = 1.5 * float(estimate)
    assert float(whole.level) == pytest.approx(level, rel=1e-5)
    assert float(cut.level) == pytest.approx(level, rel=1e-5)


@names
def test_the_ensemble_is_the_mean_of_eight_and_the_same_in_tiles(name: str) -> None:
    network, picture = network_of(name), page(64, 80)
    image = picture.to_unit()[None]
    level = network.estimate_level(network.pad(image))
    versions = []
    for turns in range(4):
        for is_mirrored in (False, True):
            view = torch.rot90(image, turns, (2, 3))
            output = whole(network, view.flip(3) if is_mirrored else view, level)
            output = output.flip(3) if is_mirrored else output
            versions.append(torch.rot90(output, -turns, (2, 3)))
    expected = torch.stack(versions).mean(0)[0].permute(1, 2, 0)
    for tile_px in (None, 16):
        denoiser = BatchDenoiser(
            network, torch.device("cpu"), memory=1 << 30, tta=True, tile_px=tile_px
        )
        torch.testing.assert_close(denoised(denoiser, picture), expected, atol=1e-5, rtol=0)


@names
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    most=st.integers(1, 200_000),
    tile=st.integers(1, 300),
)
def test_cores_cover_everything_once_within_the_limit(
    name: str, height: int, width: int, most: int, tile: int
) -> None:
    spec = ARCHITECTURES[name]
    height, width = height * spec.multiple, width * spec.multiple
    grids = [fixed_grid(height, width, tile, spec)]
    if automatic := automatic_grid(height, width, most, spec):
        assert automatic.most_pixels <= most
        grids.append(automatic)
    for grid in grids:
        for spans, size in ((grid.rows, height), (grid.columns, width)):
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert spans[-1].stop == size
            for span in spans:
                assert span.start % spec.multiple == 0
                assert span.read_start == max(0, span.start - spec.halo)
                assert span.read_stop == min(size, span.stop + spec.halo)


def test_an_image_that_fits_is_one_tile() -> None:
    grid = automatic_grid(1600, 1600, 1600 * 1600, ARCHITECTURES["unet"])
    assert grid is not None
    assert len(grid) == 1
