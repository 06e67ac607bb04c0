"""gemm/ against reference/: every kind of layer and any geometry, every dtype, layout and option.

The reference runs in float64 on the very numbers that gemm/ was given, so that what is measured is
gemm's own rounding.
"""

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Geometry, conv_geometries, conv_transpose_geometries
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from denoise_batch.kernels import reference
from denoise_batch.kernels.gemm import conv as gemm
from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.models import Network

# Relative to the largest element. bfloat16 keeps 8 bits (2⁻⁹ = 2e-3 a rounding): operands are
# given rounded, each sum is float32, each result rounds once.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-3,
}
each_dtype = pytest.mark.parametrize(
    "dtype", list(TOLERANCES), ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def plain(
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int | None = None,
) -> Geometry:
    square = (kernel, kernel), (stride, stride), (padding, padding), (1, 1)
    extra = None if output_padding is None else (output_padding, output_padding)
    return Geometry(batch, *channels, size, *square, extra, True)


# The shipped networks' layers, and the corners of the arithmetic.
CASES = {
    "k3-s1-p1": plain(3, (32, 40), (12, 16), 3, 1, 1),
    "k3-s1": plain(2, (32, 32), (26, 14), 3, 1, 0),
    "k3-s1-p2": plain(1, (32, 32), (22, 30), 3, 1, 2),
    "k3-s1-p1-large": plain(1, (16, 8), (301, 211), 3, 1, 1),
    "k1": plain(3, (17, 5), (11, 13), 1),
    "k2-s2": plain(2, (6, 10), (14, 22), 2, 2),
    "k4-s2-three-in": plain(3, (3, 24), (32, 30), 4, 2),
    "k4-s2-p1-three-in": plain(2, (3, 24), (31, 33), 4, 2, 1),
    "k3-s2": plain(2, (24, 48), (15, 15), 3, 2),
    "k3-s2-p1": plain(2, (24, 48), (16, 13), 3, 2, 1),
    "transposed-k2-s2": plain(2, (10, 6), (7, 11), 2, 2, 0, 0),
    "transposed-k3-s2": plain(3, (48, 24), (7, 9), 3, 2, 0, 0),
    "transposed-k4-s2-three-out": plain(3, (24, 3), (15, 13), 4, 2, 0, 0),
    "transposed-k4-s2-p1-three-out": plain(2, (24, 3), (8, 9), 4, 2, 1, 0),
    "transposed-k3-s1": plain(2, (32, 24), (16, 17), 3, 1, 1, 0),
    "dilation2": replace(plain(2, (5, 6), (14, 15), 3, 2, 1), dilation=(2, 2)),
    "depthwise": replace(plain(2, (6, 6), (14, 15), 3, 1, 1), groups=6),
    "transposed-groups": replace(plain(2, (6, 4), (7, 5), 3, 2, 1, 1), groups=2),
    "one-pixel": plain(1, (2, 3), (1, 1), 3, 1, 1),
}
each_case = pytest.mark.parametrize("geometry", list(CASES.values()), ids=list(CASES))


def op(module: Any, geometry: Geometry, direction: str) -> Any:
    name = "conv2d" if geometry.output_padding is None else "conv_transpose2d"
    return getattr(module, f"{name}_{direction}")


def operands(geometry: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    weight = geometry.weight(torch.float32)
    weight /= weight[0].numel() ** 0.5  # outputs of order 1
    bias = torch.randn(geometry.out_channels).to(dtype) if geometry.bias else None
    return geometry.input(torch.float32).to(dtype), weight.to(dtype), bias


def double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    assert actual.dtype == dtype, what
    assert actual.shape == expected.shape, what
    if not expected.numel():
        return
    # Sums of a single term may be small; their rounding is that of terms of order 1.
    scale = max(expected.abs().max().item(), 1.0)
    error = (actual.double() - expected).abs().max().item() / scale
    assert error <= TOLERANCES[dtype], f"{what}: {error:.2e}"


def check(geometry: Geometry, dtype: torch.dtype, activation: str | None) -> None:
    """Forward and all gradients against the reference."""
    input, weight, bias = operands(geometry, dtype)
    x, w, b = double(input, weight, bias)
    expected = op(reference, geometry, "forward")(x, w, b, geometry=geometry.geometry)
    if activation == "relu":
        expected = expected.clamp_min(0)
    output = op(gemm, geometry, "forward")(
        input, weight, bias, activation=activation, geometry=geometry.geometry
    )
    assert_near(output, expected, dtype, "output")
    assert output.is_contiguous(memory_format=torch.channels_last)

    grad_output = torch.randn_like(expected).to(dtype)
    saved = output if activation == "relu" else None
    grad = grad_output.double() if saved is None else grad_output.double() * (saved > 0)
    expected_gradients = op(reference, geometry, "backward")(grad, x, w, geometry=geometry.geometry)
    gradients = op(gemm, geometry, "backward")(
        grad_output, input, weight, output=saved, geometry=geometry.geometry
    )
    names = ("grad_input", "grad_weight", "grad_bias")
    for name, ours, theirs in zip(names, gradients, expected_gradients, strict=True):
        assert_near(ours, theirs, dtype, name)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


@each_dtype
@each_case
@pytest.mark.parametrize("activation", [None, "relu"], ids=["plain", "relu"])
def test_layers_match_the_reference(
    geometry: Geometry, dtype: torch.dtype, activation: str | None
) -> None:
    check(geometry, dtype, activation)


@each_dtype
@given(
    geometry=st.one_of(conv_geometries(), conv_transpose_geometries()),
    groups=st.integers(1, 3),
    relu=st.booleans(),
)
def test_any_geometry_matches_the_reference(
    dtype: torch.dtype, geometry: Geometry, groups: int, relu: bool
) -> None:
    channels = geometry.in_channels * groups, geometry.out_channels * groups
    grouped = replace(geometry, in_channels=channels[0], out_channels=channels[1], groups=groups)
    check(grouped, dtype, "relu" if relu else None)


@each_case
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 1 << 30], ids=["rows", "some", "whole"])
def test_the_size_of_chunks_makes_no_difference(
    geometry: Geometry, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "CHUNK_BYTES", chunk_bytes)
    check(geometry, torch.float32, "relu")


def test_relu_backward_is_exact_at_the_corners() -> None:
    """Gradients vanish at 0 and −0 even where they are infinite, and pass unchanged above."""
    tiny = torch.finfo(torch.float32).tiny / 2  # denormal
    output = torch.tensor([0.0, -0.0, tiny, 1.0]).view(1, 1, 2, 2)
    grad_output = torch.tensor([torch.inf, torch.inf, 3.0, -4.0]).view(1, 1, 2, 2)
    input = torch.randn(1, 1, 2, 2)
    gradients = gemm.conv2d_backward(
        grad_output, input, torch.ones(1, 1, 1, 1), ConvGeometry(), output
    )
    assert gradients[0].flatten().tolist() == [0.0, 0.0, 3.0, -4.0]
    assert gradients[2].item() == -1.0


@each_case
def test_a_first_layer_needs_no_grad_input(geometry: Geometry) -> None:
    input, weight, bias = operands(geometry, torch.float32)
    output = op(gemm, geometry, "forward")(input, weight, bias, geometry=geometry.geometry)
    backward = op(gemm, geometry, "backward")
    grad_output = torch.randn_like(output)
    full = backward(grad_output, input, weight, geometry=geometry.geometry)
    short = backward(grad_output, input, weight, needs_input_grad=False, geometry=geometry.geometry)
    assert short[0] is None
    assert torch.equal(short[1], full[1])
    assert torch.equal(short[2], full[2])


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "broadcast")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """`values`, or other ones of the same shape, with the strides of `layout`."""
    match layout:
        case "contiguous":
            return values.contiguous()
        case "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        case "transposed":
            return values.transpose(2, 3).contiguous().transpose(2, 3)
        case "sliced":
            return values.repeat_interleave(2, dim=3)[..., ::2]
        case _:
            return values[:, :, :1, :1].expand_as(values)


@each_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_make_no_difference(geometry: Geometry, layout: str) -> None:
    values, weight, bias = operands(geometry, torch.float32)
    input = laid_out(values, layout)
    forward, backward = op(gemm, geometry, "forward"), op(gemm, geometry, "backward")
    output = forward(input, weight, bias, geometry=geometry.geometry)
    expected = forward(input.contiguous(), weight, bias, geometry=geometry.geometry)
    assert_near(output, expected.double(), torch.float32, "output")
    grad_output = laid_out(torch.randn_like(output), layout)
    ours = backward(grad_output, input, weight, output=output, geometry=geometry.geometry)
    plain_strides = backward(
        grad_output.contiguous(),
        input.contiguous(),
        weight,
        output=output,
        geometry=geometry.geometry,
    )
    for actual, wanted in zip(ours, plain_strides, strict=True):
        assert_near(actual, wanted.double(), torch.float32, "gradient")


@each_case
def test_operands_are_left_alone_and_results_are_fresh(geometry: Geometry) -> None:
    """A second call with other numbers changes neither the first one's operands nor its results."""
    forward, backward = op(gemm, geometry, "forward"), op(gemm, geometry, "backward")

    def both(seed: int) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(seed)
        given = [*operands(geometry, torch.float32)]
        output = forward(*given, activation="relu", geometry=geometry.geometry)
        given.append(torch.randn_like(output))
        gradients = backward(
            given[3], given[0], given[1], output=output, geometry=geometry.geometry
        )
        return given, [output, *gradients]

    given, results = both(1)
    torch.manual_seed(1)
    for operand, original in zip(given, operands(geometry, torch.float32), strict=False):
        assert torch.equal(operand, original)
    copies = [tensor.clone() for tensor in (*given, *results)]
    both(2)
    for tensor, copy in zip((*given, *results), copies, strict=True):
        assert torch.equal(tensor, copy)
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*given, *results)}
    assert len(storages) == len(given) + len(results)


def test_two_threads_do_not_share_scratch_memory() -> None:
    cases = [CASES[name] for name in ("k3-s1-p1-large", "k3-s1-p1", "transposed-k3-s2")]
    given = [operands(geometry, torch.float32) for geometry in cases]

    def outputs() -> list[Tensor]:
        return [
            op(gemm, geometry, "forward")(*tensors, geometry=geometry.geometry)
            for geometry, tensors in zip(cases, given, strict=True)
        ]

    expected = outputs()
    seen: dict[int, list[list[Tensor]]] = {}

    def repeat(thread: int) -> None:
        torch.set_num_threads(1)
        seen[thread] = [outputs() for _ in range(6)]

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    for round in (*seen[0], *seen[1]):
        assert all(map(torch.equal, round, expected))


def test_inference_mode_and_training_share_scratch_memory() -> None:
    geometry = CASES["k3-s1-p1"]
    tensors = operands(geometry, torch.float32)
    forward = op(gemm, geometry, "forward")
    result: list[Tensor] = []

    def fresh_thread() -> None:
        with torch.inference_mode():
            result.append(forward(*tensors, geometry=geometry.geometry))
        result.append(forward(*tensors, geometry=geometry.geometry))

    thread = threading.Thread(target=fresh_thread)
    thread.start()
    thread.join()
    assert torch.equal(*result)


@pytest.mark.parametrize("name", ["k1", "k3-s1-p1", "k3-s2", "transposed-k3-s2"])
def test_an_empty_batch_has_zero_gradients(name: str) -> None:
    geometry = CASES[name]
    input, weight, bias = operands(geometry, torch.float32)
    output = op(gemm, geometry, "forward")(input[:0], weight, bias, geometry=geometry.geometry)
    assert len(output) == 0
    gradients = op(gemm, geometry, "backward")(
        output, input[:0], weight, geometry=geometry.geometry
    )
    assert gradients[0].shape == input[:0].shape
    assert not gradients[1].any()
    assert not gradients[2].any()


def test_float16_sums_do_not_overflow() -> None:
    """4096 terms of 64² are beyond float16's 65504 before the weights bring them back."""
    input = torch.full((1, 64, 8, 8), 64.0, dtype=torch.float16)
    weight = torch.full((2, 64, 1, 1), 64.0, dtype=torch.float16)
    weight[:, 32:] *= -1
    output = gemm.conv2d_forward(input, weight, None, ConvGeometry())
    assert not output.any()


class Launches(TorchDispatchMode):
    """Counts what a device would be told to do: torch's ops, without views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func):
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("unet", 240), ("tconv", 80), ("upsample", 90)])
def test_a_device_has_few_launches(name: str, most: int) -> None:
    """On a GPU each launch takes longer than a small product: a megapixel is a few chunks."""
    with torch.device("meta"):
        network, image = Network(name).eval(), torch.empty(1, 3, 1024, 1024)
    with Launches() as launches:
        network(image)
    assert launches.count.total() <= most, launches.count
    with torch.device("meta"):
        small = torch.empty(1, 3, 64, 64)
    with Launches() as fewest:
        network(small)
    assert launches.count.total() <= 1.3 * fewest.count.total()


def test_the_memory_of_windows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 megapixels of 32 channels: all windows together would take 18 GB."""
    sizes: list[int] = []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not func.is_view:
                sizes.append(result.numel() * result.element_size())
            return result

    image = torch.empty(1, 32, 4096, 4096, device="meta")
    with Allocations():
        weight = torch.empty(32, 32, 3, 3, device="meta")
        output = gemm.conv2d_forward(image, weight, None, ConvGeometry(padding=(1, 1)))
    whole = output.numel() * output.element_size()
    assert max(sizes) <= 1.01 * whole
