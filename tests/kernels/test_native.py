"""The native library against float64 autograd, for every instruction set that the machine has.

Libraries are compiled once, beside the sources; without a compiler these tests are skipped.
"""

import ctypes
import math
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_bugs import BUGS, HUGE_TESTS, PARITY, Bug
from strategies import Geometry, conv_geometries, conv_transpose_geometries
from tolerances import autograd
from torch import Tensor
from torch.nn import functional

from denoise_batch.kernels import reference
from denoise_batch.kernels.buffer_pool import POOL
from denoise_batch.kernels.dispatch import NATIVE_OPS, native_table, ops_for
from denoise_batch.kernels.errors import NotCoveredError, UnavailableError
from denoise_batch.kernels.geometry import ConvGeometry, pixel_unshuffle
from denoise_batch.kernels.native import build, library
from denoise_batch.kernels.native.ops import NativeOps

OUTPUT_ERROR, GRADIENT_ERROR = 1e-5, 3e-5  # of each tensor's largest element

INSTRUCTION_SETS = [name for name in build.instruction_sets() if library.is_supported(name)]
# A library with a sanitizer or a bug in it, and what it is for: the tests' own child process.
SANITIZED = os.environ.get("DENOISE_BATCH_TEST_LIBRARY")
if SANITIZED:
    INSTRUCTION_SETS = [os.environ["DENOISE_BATCH_TEST_INSTRUCTION_SET"]]


@cache
def native(instruction_set: str) -> NativeOps:
    path = Path(SANITIZED or build.FOLDER / build.file_name(instruction_set))
    if not SANITIZED and not build.is_current(path):
        try:
            build.compile_library(path, instruction_set)
        except build.CompilerError as error:
            pytest.skip(str(error))
    return NativeOps(instruction_set, library.open_library(path))


@pytest.fixture(params=INSTRUCTION_SETS or [None])
def ops(request: pytest.FixtureRequest) -> NativeOps:
    if request.param is None:
        pytest.skip("no native kernels for this processor")
    return native(request.param)


each_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)


def assert_near(actual: Tensor, expected: Tensor, what: str, allowed: float) -> None:
    """Same shape, and errors small beside the largest element, or 1, which terms are around."""
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape, what
    scale = max(float(expected.abs().max()), 1.0)
    error = float((actual.double() - expected).abs().max()) / scale
    assert error <= allowed, f"{what}: {error:.1e}"


GUARD = 64  # elements, which keeps an output aligned as it would be


@contextmanager
def guarded() -> Iterator[None]:
    """Outputs begin as NaN, as what is not written stays, between elements that must stay so."""
    buffers: list[Tensor] = []

    def alloc(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        buffers.append(torch.full((math.prod(shape) + 2 * GUARD,), torch.nan))
        return buffers[-1][GUARD:-GUARD].view(*shape)

    with mock.patch.object(POOL, "alloc", alloc):
        yield
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all(), "written before an output"
        assert buffer[-GUARD:].isnan().all(), "written behind an output"


def assert_op(ops: NativeOps, name: str, case: Geometry, activation: str | None = None) -> None:
    """Forward and all gradients, against autograd in float64."""
    shape = case.weight(torch.float32).shape
    fan_in = case.in_channels // case.groups * shape[2] * shape[3]
    input, weight = case.input(torch.float32), case.weight(torch.float32) / fan_in**0.5
    bias = torch.randn(case.out_channels) if case.bias else None
    parameters = [t.double() for t in (input, weight, bias) if t is not None]
    oracle = partial(getattr(functional, name), **case.options)
    expected, gradients = autograd(oracle, *parameters)
    with guarded():
        output = getattr(ops, f"{name}_forward")(input, weight, bias, case.geometry, activation)
    assert_near(output, expected.relu() if activation else expected, "output", OUTPUT_ERROR)
    grad = torch.randn_like(output)
    residual = torch.randn_like(input)
    with guarded():
        ours = getattr(ops, f"{name}_backward")(
            grad, input, weight, case.geometry, output if activation else None, True, residual
        )
    # Our own mask: within rounding of 0, the oracle's may differ.
    theirs = gradients((grad * (output > 0) if activation else grad).double())
    theirs = theirs[0] + residual.double(), *theirs[1:]
    for what, actual, wanted in zip(("input", "weight", "bias"), ours, theirs, strict=False):
        assert_near(actual, wanted, f"grad_{what}", GRADIENT_ERROR)


def conv(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int | tuple[int, int] = 3,
    *,
    batch: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    output_padding: tuple[int, int] | None = None,
    groups: int = 1,
) -> Geometry:
    """A transposed convolution if there is an output_padding."""
    kernel_size = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Geometry(
        batch, *channels, size, kernel_size, stride, padding, dilation, output_padding, True, groups
    )


SAME, TWICE, NONE = (1, 1), (2, 2), (0, 0)
FIXED = {
    "one-pixel": conv((32, 32), (1, 1), padding=SAME),
    "two-pixels": conv((12, 32), (2, 1), padding=SAME, batch=3),
    "column": conv((32, 32), (192, 1), padding=SAME),
    "row": conv((32, 16), (1, 1300), padding=SAME),
    "one-channel": conv((1, 1), (9, 14), padding=SAME),
    "primes": conv((13, 17), (23, 29), padding=SAME, batch=2),
    "257-channels": conv((257, 33), (7, 9), padding=SAME),
    "to-257-channels": conv((33, 257), (8, 5), padding=SAME),
    "unpadded": conv((32, 48), (19, 26)),
    "padding-2": conv((24, 16), (6, 9), padding=TWICE),
    "padding-3": conv((16, 24), (6, 7), padding=(3, 0)),
    "stem": conv((12, 32), (31, 33), padding=SAME),
    "head": conv((32, 12), (31, 33), padding=SAME),
    "wide": conv((64, 64), (48, 52), padding=SAME, batch=2),
    "1x1": conv((40, 24), (13, 11), 1, batch=2),
    "down": conv((32, 64), (12, 22), 2, stride=TWICE, batch=2),
    "down-odd": conv((32, 64), (13, 23), 2, stride=TWICE),
    "tconv-1": conv((3, 24), (40, 36), 4, stride=TWICE, batch=2),
    "tconv-2": conv((24, 48), (19, 17), stride=TWICE, batch=2),
    "strided-padded": conv((24, 48), (20, 17), stride=TWICE, padding=SAME),
    "dilated": conv((8, 9), (15, 12), padding=TWICE, dilation=TWICE),
    "column-down": conv((3, 24), (192, 1), (4, 1), stride=TWICE),
    "one-pixel-1x1": conv((257, 1), (1, 1), 1),
    "2-groups": conv((32, 48), (9, 11), padding=SAME, groups=2, batch=2),
    "depthwise": conv((19, 19), (14, 9), padding=SAME, groups=19, batch=2),
    "multiplier": conv((5, 15), (12, 7), 4, stride=TWICE, padding=SAME, groups=5),
    "5x3-dilated": conv((5, 6), (21, 20), (5, 3), stride=(3, 1), dilation=(1, 3), padding=(2, 1)),
}
TRANSPOSED = {
    "one-pixel": conv((48, 24), (1, 1), stride=TWICE, output_padding=NONE),
    "up": conv((64, 32), (11, 6), 2, stride=TWICE, output_padding=NONE, batch=2),
    "tconv-3": conv((48, 24), (9, 8), stride=TWICE, output_padding=NONE, batch=2),
    "tconv-4": conv((24, 3), (19, 17), 4, stride=TWICE, output_padding=NONE, batch=2),
    "output-padding": conv((16, 5), (7, 9), stride=TWICE, padding=SAME, output_padding=(1, 0)),
    "gaps": conv((4, 5), (5, 6), 2, stride=(3, 4), padding=(1, 0), output_padding=(2, 3)),
    "stride-1": conv((24, 16), (9, 7), padding=SAME, output_padding=NONE),
    "stride-1-unpadded": conv((24, 16), (9, 7), output_padding=NONE),
    "dilated": conv((3, 4), (6, 5), stride=(2, 3), dilation=(3, 2), output_padding=(2, 1)),
    "257-channels": conv((257, 3), (5, 4), 4, stride=TWICE, padding=SAME, output_padding=NONE),
    "column": conv((24, 3), (192, 1), 4, stride=TWICE, output_padding=NONE),
    "2-groups": conv(
        (32, 48), (7, 9), 4, stride=TWICE, padding=SAME, output_padding=NONE, groups=2
    ),
    "depthwise": conv((19, 19), (8, 5), stride=(1, 2), output_padding=(0, 1), groups=19, batch=2),
}


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", list(FIXED))
def test_convolution_matches_float64(ops: NativeOps, name: str, activation: str | None) -> None:
    assert_op(ops, "conv2d", FIXED[name], activation)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", list(TRANSPOSED))
def test_transposed_matches_float64(ops: NativeOps, name: str, activation: str | None) -> None:
    assert_op(ops, "conv_transpose2d", TRANSPOSED[name], activation)


def test_any_number_of_channels_matches_float64(ops: NativeOps) -> None:
    """From parts of a vector to one more than whole panels, on tiny and odd images."""
    sizes = (1, 1), (5, 3), (1, 7), (9, 2)
    for channels in range(1, 258):
        other, size = channels * 7 % 257 + 1, sizes[channels % 4]
        assert_op(ops, "conv2d", conv((channels, other), size, padding=SAME))
        assert_op(ops, "conv2d", conv((channels, 3), (3, 5), 2, stride=TWICE))
        up = conv((3, channels), size, 2, stride=TWICE, output_padding=NONE)
        assert_op(ops, "conv_transpose2d", up)


def widened(draw: st.DrawFn, case: Geometry) -> Geometry:
    """The drawn geometry with other channels: of parts of vectors, of several."""
    channels = st.sampled_from((1, 2, 3, 7, 8, 15, 16, 17, 31, 48, 65))
    return replace(
        case,
        in_channels=case.groups * draw(channels),
        out_channels=case.groups * draw(channels),
    )


@each_instruction_set
@given(data=st.data())
def test_any_convolution_matches_float64(instruction_set: str, data: st.DataObject) -> None:
    case = data.draw(st.composite(lambda draw: widened(draw, draw(conv_geometries())))())
    assert_op(native(instruction_set), "conv2d", case)


@each_instruction_set
@given(data=st.data())
def test_any_transposed_matches_float64(instruction_set: str, data: st.DataObject) -> None:
    draws = st.composite(lambda draw: widened(draw, draw(conv_transpose_geometries())))
    assert_op(native(instruction_set), "conv_transpose2d", data.draw(draws()))


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize(
    ("out_channels", "kernel_size", "options"),
    [
        (32, 3, {}),
        (12, 3, {"shuffle": 2}),
        (32, 3, {"unshuffle": 2}),
        (5, 4, {"upsample": (2, 3)}),
        (12, 5, {"unshuffle": 2, "shuffle": 2}),
    ],
)
def test_fused_ends_match_float64(
    ops: NativeOps,
    out_channels: int,
    kernel_size: int,
    options: dict[str, Any],
    activation: str | None,
) -> None:
    image = channels_last(2, 12, 18, 22)
    channels = 12 * options.get("unshuffle", 1) ** 2
    weight = torch.randn(out_channels, channels, kernel_size, kernel_size) / channels**0.5 / 3
    bias, geometry = torch.randn(out_channels), ConvGeometry(padding=(1, 2))
    arguments = image, weight, bias
    double = [value.double() for value in arguments]
    expected = ops_reference(*double, geometry, activation, **options)
    residual = torch.randn(expected.shape)  # of other strides than the output
    with guarded():
        output = ops.conv2d_fused(*arguments, geometry, activation, **options, residual=residual)
    assert_near(output, expected + residual.double(), "output", OUTPUT_ERROR)
    assert_near(
        ops.conv2d_fused(*arguments, geometry, activation, **options),
        expected,
        "bare",
        OUTPUT_ERROR,
    )


def ops_reference(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    geometry: ConvGeometry,
    activation: str | None,
    *,
    upsample: tuple[int, int] = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
) -> Tensor:
    image = functional.interpolate(image, scale_factor=upsample)
    image = functional.pixel_unshuffle(image, unshuffle)
    output = functional.conv2d(image, weight, bias, padding=geometry.padding)
    functions: dict[str | None, Callable[[Tensor], Tensor]] = {
        None: lambda x: x,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
    }
    return functional.pixel_shuffle(functions[activation](output), shuffle)


@pytest.mark.parametrize(
    "shape", [(1, 32, 33, 70), (2, 12, 9, 300), (1, 64, 130, 37), (1, 8, 1, 1), (1, 16, 5, 1500)]
)
@pytest.mark.parametrize("hidden", [16, 33])
def test_residual_pair_matches_float64(ops: NativeOps, shape: tuple[int, ...], hidden: int) -> None:
    image, channels = channels_last(*shape), shape[1]
    first = torch.randn(hidden, channels, 3, 3) / (9 * channels) ** 0.5, torch.randn(hidden)
    second = torch.randn(channels, hidden, 3, 3) / (9 * hidden) ** 0.5, torch.randn(channels)
    with guarded():
        output = ops.residual_pair(image, *first, *second)
    x, w1, b1, w2, b2 = (value.double() for value in (image, *first, *second))
    middle = functional.conv2d(x, w1, b1, padding=1).relu()
    expected = x + functional.conv2d(middle, w2, b2, padding=1)
    assert_near(output, expected, "output", OUTPUT_ERROR)


def test_maps_larger_than_the_caches(ops: NativeOps) -> None:
    """Their stores go past the caches."""
    image, weight = channels_last(1, 16, 321, 340), torch.randn(64, 16, 3, 3) / 12
    square = ConvGeometry(padding=SAME)
    expected = functional.conv2d(image.double(), weight.double(), padding=1)
    output = ops.conv2d_forward(image, weight, None, square)
    assert_near(output, expected, "output", OUTPUT_ERROR)
    down = torch.randn(16, 64, 2, 2) / 16
    expected = functional.conv_transpose2d(image.double(), down.double(), stride=2)
    output = ops.conv_transpose2d_forward(image, down, None, ConvGeometry(TWICE))
    assert_near(output, expected, "transposed", OUTPUT_ERROR)
    wide = channels_last(1, 64, 321, 340)
    second = torch.randn(16, 64, 3, 3) / 24
    hidden = functional.conv2d(wide.double(), second.double(), padding=1).relu()
    expected = wide.double() + functional.conv2d(hidden, weight.double(), padding=1)
    assert_near(ops.residual_pair(wide, second, None, weight, None), expected, "pair", OUTPUT_ERROR)


def test_pixels_move_exactly_and_the_loss_is_right(ops: NativeOps) -> None:
    image = torch.randn(2, 3, 8, 12)
    cropped = channels_last(2, 3, 10, 14)[:, :, 1:-1, 1:-1]
    for layout in (image, channels_last(2, 3, 8, 12), cropped, image[:1].expand(4, 3, 8, 12)):
        small = ops.pixel_unshuffle(layout, 2)
        assert torch.equal(small, pixel_unshuffle(layout, 2))
        assert torch.equal(ops.pixel_shuffle(small, 2), layout)
        assert torch.equal(ops.pixel_shuffle(small, 2, layout), layout + layout)
        loss, grad = ops.mse_loss(layout, layout.flip(3))
        expected = reference.mse_loss(layout.double(), layout.flip(3).double())
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=0)
        assert_near(grad, expected[1], "grad", OUTPUT_ERROR)
        assert grad.stride(1) == layout.stride(1)
        means, deviations = (0.1, 0.2, 0.3), (0.5,)
        ours = ops.normalize(layout, means, deviations)
        assert_near(
            ours, reference.normalize(layout.double(), means, deviations), "z", OUTPUT_ERROR
        )


def test_nan_and_infinity_are_not_lost(ops: NativeOps) -> None:
    image = channels_last(1, 16, 12, 12)
    image[0, 3, 5, 5] = torch.nan
    weight = torch.randn(16, 16, 3, 3)
    output = ops.conv2d_forward(image, weight, None, ConvGeometry(padding=SAME), "relu")
    assert output[0, :, 4:7, 4:7].isnan().all()
    assert output[0, :, :, :4].isfinite().all()
    ends = torch.tensor([-torch.inf, -200.0, 0.0, 200.0, torch.inf, torch.nan])
    torch.testing.assert_close(ops.sigmoid_forward(ends), ends.sigmoid(), equal_nan=True)


def test_what_is_not_float32_or_empty_is_declined(ops: NativeOps) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        image, weight = torch.ones(1, 3, 8, 8, dtype=dtype), torch.ones(4, 3, 3, 3, dtype=dtype)
        with pytest.raises(NotCoveredError):
            ops.conv2d_forward(image, weight, None, ConvGeometry())
    none, one, weight = torch.ones(0, 4, 8, 8), torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)
    pointwise = ops.sigmoid_forward, ops.sigmoid_forward_, partial(ops.normalize, mean=[0], std=[1])
    calls: list[Callable[[], object]] = [
        *(partial(op, none) for op in pointwise),
        partial(ops.mse_loss, none, none),
        partial(ops.pixel_shuffle, none, 2),
        partial(ops.pixel_unshuffle, none, 2),
        partial(ops.residual_pair, none, weight, None, weight, None),
        partial(ops.conv2d_fused, one, weight[:0], None, ConvGeometry()),
    ]
    for name in ("conv2d", "conv_transpose2d"):
        forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
        calls.append(partial(forward, none, weight, None, ConvGeometry()))
        calls.append(partial(backward, none, none, weight, ConvGeometry()))
    for call in calls:
        with pytest.raises(NotCoveredError, match="an empty tensor"):
            call()


def everything(ops: NativeOps) -> list[Tensor]:
    """Results of every kernel on problems of several jobs."""
    generator = torch.Generator().manual_seed(0)
    image, big = (
        torch.randn(2, channels, 70, 66, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for channels in (16, 24)
    )
    results: list[Any] = []
    cases = [(3, ConvGeometry(padding=SAME)), (4, ConvGeometry(TWICE)), (1, ConvGeometry())]
    for kernel, geometry in cases:
        weight = torch.randn(16, 24, kernel, kernel, generator=generator)
        small = ops.conv2d_forward(big, weight, None, geometry, "relu")
        results += [small, *ops.conv2d_backward(small, big, weight, geometry, small)]
        large = ops.conv_transpose2d_forward(image, weight, None, geometry)
        results += [large, *ops.conv_transpose2d_backward(large, image, weight, geometry)]
    square = torch.randn(16, 16, 3, 3, generator=generator)
    results.append(ops.residual_pair(image, square, None, square, None))
    results += ops.mse_loss(image, image.flip(2))
    return results


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads(
    ops: NativeOps, threads: Callable[[int], None]
) -> None:
    threads(1)
    expected = everything(ops)
    for count in (2, 3, 4, 2):
        threads(count)
        assert all(map(torch.equal, everything(ops), expected))


def test_callers_at_the_same_time_get_their_own_results(
    ops: NativeOps, threads: Callable[[int], None]
) -> None:
    threads(3)
    expected = everything(ops)
    with ThreadPoolExecutor(4) as callers:
        for results in callers.map(lambda _: everything(ops), range(12)):
            assert all(map(torch.equal, results, expected))


def test_an_image_has_the_same_bits_whatever_its_batch(ops: NativeOps) -> None:
    images = channels_last(5, 24, 21, 19)
    for kernel, geometry in ((3, ConvGeometry(padding=SAME)), (4, ConvGeometry(TWICE))):
        weight = torch.randn(17, 24, kernel, kernel)
        together = ops.conv2d_forward(images, weight, None, geometry)
        alone = ops.conv2d_forward(images[3:4], weight, None, geometry)
        assert torch.equal(together[3:4], alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_computes_with_threads_of_its_own(ops: NativeOps) -> None:
    code = f"""
import os, torch
from denoise_batch.kernels.native import build, library
from denoise_batch.kernels.native import ops as native_ops
from denoise_batch.kernels.native.ops import NativeOps
from denoise_batch.kernels.geometry import ConvGeometry, pixel_unshuffle
torch.set_num_threads(3)
path = build.FOLDER / build.file_name({ops.instruction_set!r})
ops = NativeOps({ops.instruction_set!r}, library.open_library(path))
# Channels-last, so that torch has nothing to copy: its OpenMP does not survive a fork.
x = torch.randn(2, 64, 64, 16).permute(0, 3, 1, 2)
w = torch.randn(16, 16, 3, 3)
y = ops.conv2d_forward(x, w, None, ConvGeometry(padding=(1, 1)))
for _ in range(20):
    child = os.fork()
    if child == 0:
        z = ops.conv2d_forward(x, w, None, ConvGeometry(padding=(1, 1)))
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(z, y) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


class Broken:
    """The kernels but one, which is wrong."""

    def __init__(self, ops: NativeOps, name: str) -> None:
        self._ops, self._name = ops, name

    def __getattr__(self, name: str) -> Any:
        op = getattr(self._ops, name)
        if name != self._name:
            return op

        def wrong(*args: Any, **kwargs: Any) -> Any:
            result = op(*args, **kwargs)
            first = result[0] if isinstance(result, tuple | list) else result
            first.mul_(1.001)
            return result

        return wrong


@pytest.mark.parametrize("name", [n for n in NATIVE_OPS if n != "sigmoid_forward_"])
def test_a_wrong_kernel_is_disabled_with_one_line(
    ops: NativeOps, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = native_table(Broken(ops, name), is_checked=True)  # type: ignore[arg-type]
    assert list(table.disabled) == [name]
    assert len(caplog.records) == 1
    assert f"native kernel {name} is disabled (wrong results: error 0.00" in caplog.text
    forced = native_table(Broken(ops, name), is_checked=False)  # type: ignore[arg-type]
    assert not forced.disabled


def test_the_table_falls_back_to_gemm_for_what_is_declined(ops: NativeOps) -> None:
    table = native_table(ops, is_checked=True)
    assert not table.disabled
    image, weight = torch.randn(1, 3, 8, 8).double(), torch.randn(4, 3, 3, 3).double()
    output = table.conv2d_forward(image, weight, None, ConvGeometry())
    torch.testing.assert_close(output, functional.conv2d(image, weight))


def test_without_a_library_gemm_computes_and_says_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DENOISE_BATCH_KERNELS", raising=False)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    if not INSTRUCTION_SETS:
        pytest.skip("no native kernels for this processor")
    ops_for.cache_clear()
    try:
        assert ops_for(torch.device("cpu")).implementation == "gemm"
    finally:
        ops_for.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "was not compiled: install a C++ compiler (apt install g++" in caplog.text


def test_a_stale_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch, ops: NativeOps) -> None:
    monkeypatch.setattr(library, "source_hash", lambda: "of other sources")
    with pytest.raises(UnavailableError, match="is stale: run python"):
        library.open_library(build.FOLDER / build.file_name(ops.instruction_set))


RING = 1031 * mmap.PAGESIZE // 4  # elements; no power of two, so that no overflow meets its alias
HUGE = (1 << 31) + RING


@pytest.fixture
def ring() -> Iterator[Callable[..., Tensor]]:
    """Makes tensors beyond 2³¹ elements of 4 MB of memory: these elements again and again.

    What is written last is what is read, so that only the last elements of an output count.
    """
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    access, made = mmap.PROT_READ | mmap.PROT_WRITE, []

    def make(*shape: int) -> Tensor:
        parts = -(-math.prod(shape) // RING)
        file = os.memfd_create("ring")
        os.truncate(file, RING * 4)
        start = library.mmap(None, parts * RING * 4, access, mmap.MAP_SHARED, file, 0)
        made.append((start, parts * RING * 4))
        for part in range(parts):
            at = start + part * RING * 4
            fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
            assert library.mmap(at, RING * 4, access, fixed, file, 0) == at, ctypes.get_errno()
        os.close(file)
        values = (ctypes.c_float * math.prod(shape)).from_address(start)
        tensor = torch.frombuffer(values, dtype=torch.float32)
        tensor[:RING] = torch.randn(RING)
        return tensor.view(*shape)

    def alloc(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return make(*shape) if math.prod(shape) > 1 << 30 else torch.empty(*shape)

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the last elements are written last
    with mock.patch.object(POOL, "alloc", alloc):
        yield make
    torch.set_num_threads(before)
    for start, size in made:
        library.munmap(start, size)


huge = pytest.mark.skipif(sys.platform != "linux", reason="Linux maps memory again and again")


@pytest.mark.slow
@huge
def test_winograd_beyond_2_to_the_31(ops: NativeOps, ring: Callable[..., Tensor]) -> None:
    """The bottom of the second image, beside that of a small one."""
    wide, narrow, width, tail = 512, 16, 64, 12
    height = -(-HUGE // (2 * wide * width) // 4) * 4
    image = ring(2, height, width, wide).permute(0, 3, 1, 2)
    bottom = image[1:, :, -tail:].clone(memory_format=torch.channels_last)
    same = ConvGeometry(padding=SAME)
    weight = torch.randn(narrow, wide, 3, 3) / 70
    back = torch.randn(wide, narrow, 3, 3) / 12

    output = ops.conv2d_forward(image, weight, None, same)
    expected = ops.conv2d_forward(bottom, weight, None, same)
    assert torch.equal(output[1:, :, -4:], expected[:, :, -4:])

    grad = channels_last(2, narrow, height, width).zero_()
    grad[1, :, -4:] = torch.randn(narrow, 4, width)
    ours = ops.conv2d_backward(grad, image, weight, same)
    theirs = ops.conv2d_backward(grad[1:, :, -tail:], bottom, weight, same)
    assert torch.equal(ours[0][1:, :, -4:], theirs[0][:, :, -4:])
    assert_near(ours[1], theirs[1].double(), "grad_weight", GRADIENT_ERROR)

    output = ops.residual_pair(image, weight, None, back, None)
    expected = ops.residual_pair(bottom, weight, None, back, None)
    assert torch.equal(output[1:, :, -4:], expected[:, :, -4:])


@pytest.mark.slow
@huge
def test_direct_beyond_2_to_the_31(ops: NativeOps, ring: Callable[..., Tensor]) -> None:
    side, stride = math.isqrt(HUGE // 4) + 1, 4621
    image = ring(1, side, side, 4).permute(0, 3, 1, 2)
    at = torch.cat([torch.arange(0, side - 1, stride) + tap for tap in (0, 1)]).sort().values
    seen = image[:, :, at][..., at]  # the few pixels that such a stride meets
    far, near = ConvGeometry((stride, stride)), ConvGeometry(TWICE)
    weight = torch.randn(5, 4, 2, 2)
    output = ops.conv2d_forward(image, weight, None, far)
    assert torch.equal(output, ops.conv2d_forward(seen, weight, None, near))
    grad = torch.randn_like(output)
    _, *ours = ops.conv2d_backward(grad, image, weight, far, needs_input_grad=False)
    _, *theirs = ops.conv2d_backward(grad, seen, weight, near, needs_input_grad=False)
    assert_near(ours[0], theirs[0].double(), "grad_weight", GRADIENT_ERROR)

    up, width, tail = ConvGeometry((8, 8)), 64, 16
    for channels in (4, 5):  # all phases of an output at once, and one after the other
        height = -(-HUGE // (64 * width * channels))
        small = ring(1, height, width, 16).permute(0, 3, 1, 2)
        weight = torch.randn(16, channels, 8, 8)
        output = ops.conv_transpose2d_forward(small, weight, None, up)
        assert output.numel() > 1 << 31
        bottom = small[:, :, -1:].clone(memory_format=torch.channels_last)
        expected = ops.conv_transpose2d_forward(bottom, weight, None, up)
        assert torch.equal(output[:, :, -8:], expected)
        grad = output[:, :, -tail:].clone(memory_format=torch.channels_last)
        ours, *_ = ops.conv_transpose2d_backward(output, small, weight, up)
        theirs, *_ = ops.conv_transpose2d_backward(grad, small[:, :, -2:], weight, up)
        assert torch.equal(ours[:, :, -1:], theirs[:, :, -1:])

    image = channels_last(1, 2, -(-HUGE // 480_000), 480)
    output = ops.conv2d_forward(image, torch.ones(1000, 2, 1, 1), None, ConvGeometry())
    assert output.numel() > 1 << 31
    assert torch.equal(output[0, 0, -1, -100:], image[0, :, -1, -100:].sum(0))


@pytest.mark.slow
@huge
def test_pixels_beyond_2_to_the_31(ops: NativeOps, ring: Callable[..., Tensor]) -> None:
    width, channels, tail = 128, 16, 8
    height = -(-HUGE // (2 * width * channels) // 4) * 4
    image = ring(2, height, width, channels).permute(0, 3, 1, 2)
    bottom = image[1:, :, -tail:].clone(memory_format=torch.channels_last)
    means, deviations = [0.1] * channels, [0.5] * channels
    for op in (
        lambda x: ops.pixel_unshuffle(x, 2),
        lambda x: ops.pixel_shuffle(x, 2, None),
        lambda x: ops.normalize(x, means, deviations),
    ):
        assert torch.equal(op(image)[1:, :, -4:], op(bottom)[:, :, -4:])

    library, count = ops._library, image.numel()
    other, result = ring(count), ring(count)
    flat = image.permute(0, 2, 3, 1).flatten()
    library.denoise_sigmoid(flat.data_ptr(), count, result.data_ptr())
    assert_near(result[-1000:], flat[-1000:].double().sigmoid(), "sigmoid", OUTPUT_ERROR)
    loss = library.denoise_mse(flat.data_ptr(), other.data_ptr(), count, result.data_ptr())
    difference = (flat[:RING] - other[:RING]).double()
    assert loss == pytest.approx(difference.square().mean().item(), rel=1e-3)
    expected = (flat[-1000:] - other[-1000:]).double() * 2
    assert_near(result[-1000:] * count, expected, "loss", GRADIENT_ERROR)
    sums = torch.empty(channels)
    library.denoise_relu_backward(
        *(flat.data_ptr(), other.data_ptr(), count // channels, channels),
        *(result.data_ptr(), sums.data_ptr()),
    )
    assert torch.equal(result[-1000:], torch.where(other[-1000:] <= 0, 0, flat[-1000:]))


# torch stays at one thread: its OpenMP, which no sanitizer knows, does not get on with one.
THREADED = """
import sys, torch
from concurrent.futures import ThreadPoolExecutor
from test_native import everything, native, INSTRUCTION_SETS
torch.set_num_threads(1)
ops = native(INSTRUCTION_SETS[0])
ops._begin = lambda *tensors: None
expected = everything(ops)
for threads in (2, 3, 4, 3):
    ops._library.denoise_threads(threads)
    assert all(map(torch.equal, everything(ops), expected))
with ThreadPoolExecutor(3) as callers:
    for results in callers.map(lambda _: everything(ops), range(9)):
        assert all(map(torch.equal, results, expected))
"""
SANITIZERS = {
    # kind: (runtime libraries, options of the environment, arguments of Python)
    "address,undefined": (
        ("libasan.so", "libubsan.so"),
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"},
        [
            *("-m", "pytest", "-n0", "-qs", "-p", "no:cacheprovider", __file__),
            *("-k", "(float64 or threads or callers or exactly or nan) and not forked"),
        ],
    ),
    "thread": (("libtsan.so",), {"TSAN_OPTIONS": "report_signal_unsafe=0"}, ["-c", THREADED]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SANITIZERS))
def test_sanitizers_find_nothing(kind: str, tmp_path: Path) -> None:
    """These tests once more, in a process whose library checks every access."""
    if not INSTRUCTION_SETS:
        pytest.skip("no native kernels for this processor")
    runtimes, options, arguments = SANITIZERS[kind]
    target = tmp_path / "sanitized.so"
    flags = [f"-fsanitize={kind}", "-O1", "-g", "-fno-omit-frame-pointer"]
    try:
        build.compile_library(target, INSTRUCTION_SETS[-1], flags)
    except build.CompilerError as error:
        pytest.skip(str(error))
    result = child(target, INSTRUCTION_SETS[-1], arguments, runtimes, options)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    assert "Sanitizer" not in output, output[-4000:]


def child(
    path: Path,
    instruction_set: str,
    arguments: list[str],
    runtimes: Sequence[str] = (),
    options: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python with the library at `path` in these tests, after a sanitizer's runtimes."""
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        **(options or {}),
        "DENOISE_BATCH_TEST_LIBRARY": str(path),
        "DENOISE_BATCH_TEST_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": os.pathsep.join(
            [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    if runtimes:
        names = [f"-print-file-name={name}" for name in runtimes]
        paths = [subprocess.check_output(["g++", name], text=True).strip() for name in names]
        environment["LD_PRELOAD"] = " ".join(paths)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1200,
        check=False,
    )


def compiled(folder: Path, bug: Bug | None, instruction_set: str, flags: list[str]) -> Path:
    """The library with the bug in it, which says that it is of the sources as they are."""
    sources = folder / "sources"
    shutil.copytree(build.FOLDER, sources, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if bug is not None:
        text = (sources / bug.source).read_text()
        assert bug.right in text, f"{bug.source} changed: renew this bug"
        (sources / bug.source).write_text(text.replace(bug.right, bug.wrong))
    target, mark = folder / "libdenoise.so", build.source_hash()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FOLDER", sources)
        patch.setattr(build, "source_hash", lambda: mark)
        build.compile_library(target, instruction_set, flags)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *BUGS])
def test_a_bug_is_caught(name: str | None, tmp_path: Path) -> None:
    """And without one the same tests pass. `-s` prints what caught it."""
    bug = None if name is None else BUGS[name]
    instruction_set = "avx2" if bug and bug.is_in_avx2 else (INSTRUCTION_SETS or [""])[0]
    if instruction_set not in INSTRUCTION_SETS:
        pytest.skip("no native kernels for this processor")
    if bug and bug.is_in_avx512 and instruction_set != "avx512":
        pytest.skip("no AVX-512")
    if not any(build.compilers()):
        pytest.skip("no compiler")
    tests = PARITY if bug is None else bug.tests
    if tests == "thread":
        runtimes, options, arguments = SANITIZERS[tests]
        library = compiled(tmp_path, bug, instruction_set, ["-O1", "-g", "-fsanitize=thread"])
        result = child(library, instruction_set, arguments, runtimes, options)
    else:
        library = compiled(tmp_path, bug, instruction_set, ["-O1"])
        marks = "slow" if HUGE_TESTS in tests else "not slow"
        arguments = ["-m", "pytest", "-n0", "-qx", "-p", "no:cacheprovider", "-p", "no:randomly"]
        arguments += ["-m", marks, "-k", tests, __file__]
        result = child(library, instruction_set, arguments)
    output = result.stdout + result.stderr
    signs = [line for line in output.splitlines() if "FAILED" in line or "WARNING: Thread" in line]
    seen = signs or [line for line in output.splitlines() if "Error" in line] or ["nothing"]
    print(f"{name}: exit {result.returncode}, {seen[0].strip()[:120]}")
    if bug is None:
        assert result.returncode == 0, output[-3000:]
    else:  # but no usage error, and not "no tests"
        assert result.returncode not in (0, 2, 4, 5), output[-3000:]


@pytest.mark.parametrize(
    "options", [(0.1,), (0.1, 0.9), (0.1, 0.9, True, 0.01), (0.1, 0, False, 0.5)]
)
def test_sgd_moves_all_parameters_as_the_reference(
    ops: NativeOps, options: tuple[float, ...]
) -> None:
    sizes = [(1,), (17,), (3, 5, 3, 3), (70_001,)]
    has_momentum = len(options) > 1 and options[1] > 0
    ours = [[torch.randn(s) for s in sizes] for _ in range(2 + has_momentum)] + [[]]
    expected = [[t.double() for t in tensors] for tensors in ours]
    for _ in range(2):
        ops.sgd_step(*ours[:2], ours[2], *options)
        reference.sgd_step(*expected[:2], expected[2], *options)
    for actual, wanted in zip(ours, expected, strict=True):
        for one, other in zip(actual, wanted, strict=True):
            assert_near(one, other, "sgd", 1e-6)


def test_a_step_of_sgd_is_seen_by_the_layers(ops: NativeOps) -> None:
    """The packed copies of a weight, kept while it does not change, are of no use after a step."""
    image, weight, gradient = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3), torch.ones(1)
    square = ConvGeometry(padding=(1, 1))
    for _ in range(3):
        for _ in range(3):
            output = ops.conv2d_forward(image, weight, None, square)
        expected = functional.conv2d(image.double(), weight.double(), padding=1)
        assert_near(output, expected, "output", OUTPUT_ERROR)
        ops.sgd_step([weight], [gradient.expand_as(weight).contiguous()], [], 0.1)


def test_orthogonalize_matches_the_reference(ops: NativeOps) -> None:
    """Of the U-Net's shapes, tall and wide, and far from a vector's width."""
    shapes = [
        (192, 1728),
        (64, 126),
        (12, 576),
        (100, 7),
        (65, 130),
        (3, 3),
        (1, 5),
        (5, 1),
        (192, 1728),
    ]
    matrices = [torch.randn(shape) * 10.0**index for index, shape in enumerate(shapes)]
    matrices[0] = matrices[0].T.contiguous().T
    expected = reference.orthogonalize([matrix.double() for matrix in matrices], 5)
    for actual, wanted in zip(ops.orthogonalize(matrices, 5), expected, strict=True):
        assert_near(actual, wanted, str(tuple(actual.shape)), OUTPUT_ERROR)
    zero = torch.zeros(3, 4)
    assert torch.equal(ops.orthogonalize([zero], 5)[0], zero)


def test_numbers_too_small_for_full_precision_count_as_zero_here_alone(ops: NativeOps) -> None:
    """Momentum of units without gradient gets there; on some processors steps took three times."""
    matrices = [torch.randn(64, 48) for _ in range(4)]
    zeros = [matrix.clone() for matrix in matrices]
    for matrix, zero in zip(matrices, zeros, strict=True):
        matrix[:20] = 1e-42 * torch.randn(20, 48)
        zero[:20] = 0
    found, wanted = ops.orthogonalize(matrices, 5), ops.orthogonalize(zeros, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    # torch, on this thread, goes on as it was.
    assert (torch.full((64,), 1e-40) * 0.5).min() > 0
