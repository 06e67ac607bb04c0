"""The host's side of the kernels: the launch table, packed weights, which devices have kernels."""

import contextlib
import importlib.util
import math
from typing import Any

import pytest
import torch
from launches import Operations
from triton_children.cases import DECLINED, LIMIT

from denoise_batch.kernels import SGD, AdamW, Muon, dispatch, weight_cache
from denoise_batch.kernels.cuda import packed_weights as packing
from denoise_batch.kernels.cuda import tiles as config
from denoise_batch.kernels.cuda.tiles import Tile
from denoise_batch.kernels.dispatch import load_kernels
from denoise_batch.kernels.errors import NotCoveredError, UnavailableError
from denoise_batch.kernels.geometry import ConvGeometry

SMALLEST_SHARED = 101376  # bytes, of sm_86 and sm_89
DTYPES = (torch.float32, torch.bfloat16)


def tiles() -> list[tuple[Tile, int]]:
    """Every tile that any layer could get, with its elements' size."""
    found = []
    for dtype in DTYPES:
        for columns in (1, 3, 12, 24, 32, 48, 64, 128, 192, 768):
            for depth in (1, 3, 12, 14, 16, 24, 32, 48, 64, 96, 128, 192):
                for positions in (1, 4096, 1 << 24):
                    tile = config.conv_tile(dtype, positions, depth, columns)
                    found.append((tile, dtype.itemsize))
            found.append((config.weight_grad_tile(dtype, columns), dtype.itemsize))
    return found


def test_every_tile_is_one_that_tensor_cores_and_shared_memory_take() -> None:
    for tile, itemsize in tiles():
        assert all(value & (value - 1) == 0 for value in tile[:4]), tile
        assert min(tile.m, tile.n, tile.k) >= 16, tile
        staged = (tile.m + tile.n) * tile.k * itemsize * tile.num_stages
        assert staged <= SMALLEST_SHARED, tile


def test_little_of_a_depth_is_padding() -> None:
    for depth in (24, 32, 48, 64, 96, 128, 192):
        k = config.conv_tile(torch.bfloat16, 1 << 20, depth, 64).k
        assert depth / (math.ceil(depth / k) * k) >= 0.75, (depth, k)


@pytest.mark.parametrize("positions", [1, 500, 36_864, 10_000_000])
def test_the_parts_of_a_weight_gradient_depend_on_the_shape_alone(positions: int) -> None:
    tile = config.weight_grad_tile(torch.bfloat16, 64)
    parts = config.splits(576, 64, positions, tile)
    assert 1 <= parts <= config.SPLIT_PROGRAMS
    assert parts == 1 or positions / parts >= 4 * tile.k


def test_packing_puts_a_pixel_s_channels_together() -> None:
    weight = torch.arange(8.0 * 3 * 2 * 5).view(8, 3, 2, 5)
    packed = packing.packed(weight, torch.float64)
    assert packed.shape == (2, 5, 3, 8)
    assert packed.is_contiguous()
    assert packed[1, 4, 2, 7] == weight[7, 2, 1, 4]
    shuffled = packing.packed(weight, torch.float64, shuffle=2)
    # Column (i·2 + j)·2 + c is torch's channel c·4 + i·2 + j.
    assert shuffled[0, 0, 0].tolist() == weight[[0, 4, 1, 5, 2, 6, 3, 7], 0, 0, 0].tolist()


def test_a_packed_weight_is_kept_until_the_weight_changes() -> None:
    weight = torch.randn(4, 3, 2, 2)
    first = packing.packed(weight, torch.float32)
    assert packing.packed(weight, torch.float32) is first
    assert packing.packed(weight, torch.bfloat16) is not first
    weight += 1
    second = packing.packed(weight, torch.float32)
    torch.testing.assert_close(second, first + 1)
    weight.data = torch.zeros(4, 3, 2, 2)  # as Block.to moves a parameter
    assert not packing.packed(weight, torch.float32).any()


@pytest.mark.parametrize("kind", [SGD, AdamW, Muon])
def test_a_weight_that_an_optimiser_moved_is_packed_again(kind: type) -> None:
    weight = torch.randn(4, 3, 2, 2)
    before = packing.packed(weight, torch.float32)
    weight.grad = torch.ones_like(weight)
    kind([weight], 0.1).step()
    after = packing.packed(weight, torch.float32)
    assert not torch.equal(before, after)
    assert torch.equal(after[1, 0, 2], weight[:, 2, 1, 0])


def test_a_step_casts_all_weights_in_one_launch_into_the_copies_that_are_kept() -> None:
    weights = [torch.randn(4, 3, 2, 2), torch.randn(4), torch.randn(5, 4, 3, 3)]
    copies = [weight_cache.cast(weight, torch.bfloat16) for weight in weights]
    packed = [packing.packed(copy, torch.bfloat16) for copy in copies if copy.ndim == 4]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = AdamW(weights, 0.1)
    with Operations("cpu") as operations:
        optimizer.step()
    assert operations.counts["_foreach_copy_"] == 1
    optimizer.step()  # a dispatch mode hides in-place changes from versions
    for weight, copy in zip(weights, copies, strict=True):
        assert weight_cache.cast(weight, torch.bfloat16) is copy
        assert torch.equal(copy, weight.bfloat16())
    again = packing.packed(copies[0], torch.bfloat16)
    assert not torch.equal(again, packed[0])
    assert torch.equal(again[1, 0, 2], copies[0][:, 2, 1, 0])
    weights[0].zero_()
    assert not weight_cache.cast(weights[0], torch.bfloat16).any()


def test_a_weight_that_lies_packed_in_memory_is_packed_by_a_view() -> None:
    weight = torch.randn(2, 2, 3, 8).permute(3, 2, 0, 1)
    packed = packing.packed(weight, torch.float32)
    assert packed.data_ptr() == weight.data_ptr()
    assert torch.equal(packed[1, 0, 2], weight[:, 2, 1, 0])
    plain = packing.packed(weight.contiguous(), torch.float32, shuffle=2)
    assert torch.equal(packing.packed(weight, torch.float32, shuffle=2), plain)


def test_weights_made_in_inference_mode_are_packed_every_time() -> None:
    with torch.inference_mode():
        weight = torch.zeros(4, 3, 2, 2)
        assert not packing.packed(weight, torch.float32).any()
        weight += 1
        assert packing.packed(weight, torch.float32).all()


SQUARE, HALVED = ConvGeometry(padding=(1, 1)), ConvGeometry(stride=(2, 2))
PADDED, TWO = ConvGeometry(stride=(2, 2), padding=(1, 1)), (2, 2)


@pytest.mark.parametrize("side", [60, 127, 128, 180, 181, 182, 256, 361, 362, 512])
def test_the_tile_of_a_call_is_the_one_that_it_launches(side: int, launches: list[Any]) -> None:
    """The self-check speaks for the tile that `rows_of_call` names."""
    new = torch.empty(0, dtype=torch.bfloat16, device="meta").new_empty
    image, grad, half = (new(1, 32, s, s) for s in (side, side, side // 2))
    weight, down, up3 = new(32, 32, 3, 3), new(32, 32, 2, 2), new(32, 32, 3, 3)
    large = HALVED.conv_transpose2d_output_size((side, side), (3, 3))
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("conv2d_forward", (image, weight, None, SQUARE), {}),
        ("conv2d_forward", (image, weight, None, PADDED, "relu"), {}),
        ("conv2d_fused", (image, weight, None, SQUARE, None, TWO), {}),
        ("conv2d_fused", (image, new(32, 128, 3, 3), None, SQUARE), {"unshuffle": 2}),
        ("conv2d_fused", (image, new(12, 32, 3, 3), None, SQUARE), {"shuffle": 2}),
        ("conv2d_backward", (grad, image, weight, SQUARE), {}),
        ("conv2d_backward", (half, image, down, HALVED), {}),
        ("conv_transpose2d_forward", (image, up3, None, HALVED), {}),
        ("conv_transpose2d_fused", (image, down, None, HALVED), {}),
        ("conv_transpose2d_backward", (new(1, 32, *large), image, up3, HALVED), {}),
    ]
    for name, args, kwargs in calls:
        launches.clear()
        dispatch.launchers()[name](*args, **kwargs)
        (product,) = (each for each in launches if each.kernel.startswith("conv_"))
        assert product.options["BLOCK_M"] == config.rows_of_call(name, args, kwargs), name


def test_a_trial_has_the_tile_of_large_images_and_sums_in_parts(launches: list[Any]) -> None:
    image, weight = torch.empty(2, 32, 13, 11), torch.empty(32, 32, 3, 3)
    image, weight = image.bfloat16(), weight.bfloat16()
    for rows in config.ROWS:
        launches.clear()
        with config.trial(rows):
            dispatch.launchers()["conv2d_backward"](image, image, weight, SQUARE)
        product, parts = (
            next(each for each in launches if each.kernel == name)
            for name in ("conv_transpose_kernel", "weight_grad_kernel")
        )
        assert product.options["BLOCK_M"] == rows
        assert parts.grid[2] > 1
    launches.clear()
    dispatch.launchers()["conv2d_forward"](image, weight, None, SQUARE)
    assert launches[0].options["BLOCK_M"] == 64


BEYOND = [  # (input, channels of the output): the most that is taken, and the least that is not
    ((1, 16, 1, 2**27 - 1), (1, 16, 1, 2**27), 1),  # elements of an input image
    ((1, 1, 1, 2**27 - 1), (1, 1, 1, 2**27), 16),  # elements of an output image
    ((LIMIT - 2049, 1, 1, 1), (LIMIT - 2048, 1, 1, 1), 1),  # positions, with a tile beyond them
]


@pytest.mark.parametrize(("most", "beyond", "columns"), BEYOND, ids=["input", "output", "batch"])
def test_what_int32_does_not_count_is_declined(
    most: tuple[int, ...], beyond: tuple[int, ...], columns: int, launches: list[Any]
) -> None:
    ops, one = dispatch.launchers(), ConvGeometry()
    for shape in (most, beyond):
        image = torch.empty(shape, dtype=torch.float16, device="meta")
        forward = image.new_empty((columns, shape[1], 1, 1))
        transposed = image.new_empty((shape[1], columns, 1, 1))
        for name, weight in (("conv2d", forward), ("conv_transpose2d", transposed)):
            declined = pytest.raises(NotCoveredError, match="more than int32 counts")
            with declined if shape is beyond else contextlib.nullcontext():
                ops[f"{name}_forward"](image, weight, None, one)


@pytest.mark.parametrize("name", list(DECLINED))
def test_pages_that_int32_or_a_launch_does_not_count_are_declined(
    name: str, launches: list[Any]
) -> None:
    op, most, beyond = DECLINED[name]
    kernel = dispatch.launchers()[op]
    kernel(*most())
    assert launches
    for launch in launches:
        assert launch.grid[0] <= LIMIT
        assert launch.grid[1] <= 65535
    with pytest.raises(NotCoveredError, match="more than"):
        kernel(*beyond())


def test_without_triton_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"denoise-batch\[gpu\]"):
        load_kernels(torch.device("cuda"))


def test_an_older_gpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    capability: Any = lambda device: (7, 5)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    with pytest.raises(UnavailableError, match=r"compute capability 7\.5, the kernels need 8\.0"):
        load_kernels(torch.device("cuda"))
