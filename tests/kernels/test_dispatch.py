"""The table of ops with simulated Triton kernels: the ones that fail, and the ones that hold."""

import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import Conv2d, DeviceError, OptionError, Sequential, ShapeError, dispatch
from denoise_batch.kernels.cuda.tiles import conv_tile
from denoise_batch.kernels.dispatch import GEMM, REFERENCE, Op, Ops, TritonKernels, ops_for
from denoise_batch.kernels.errors import NotCoveredError, UnavailableError
from denoise_batch.kernels.gemm.conv import (
    conv2d_backward,
    conv2d_forward,
    conv_transpose2d_forward,
)
from denoise_batch.kernels.gemm.fused import conv2d_fused
from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.kernels.reference import mse_loss
from denoise_batch.models import Network

CPU = torch.device("cpu")
GEOMETRY = ConvGeometry(padding=(1, 1))


class Kernel:
    """A stand-in for a Triton kernel: counts its calls and does the work in its own way."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(tuple(args[0].shape))
        return self.work(*args, **kwargs)


def table(kernels: Mapping[str, Op], *, is_checked: bool = True) -> Ops:
    """The ops of a CPU that is a CUDA device with these kernels."""
    return TritonKernels(CPU, kernels, is_checked=is_checked).ops


def layer(channels: int = 4, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, channels, size, size), torch.randn(5, channels, 3, 3), torch.randn(5)


def raises(error: Exception) -> Callable[..., Any]:
    def work(*args: Any, **kwargs: Any) -> Any:
        raise error

    return work


def test_a_kernel_that_agrees_does_the_work_after_one_check_a_kind() -> None:
    kernel = Kernel(conv2d_forward)
    op = table({"conv2d_forward": kernel}).conv2d_forward
    args = layer()
    assert torch.equal(op(*args, GEOMETRY), conv2d_forward(*args, GEOMETRY))
    assert kernel.sizes == [(2, 4, 13, 11), (1, 4, 40, 40)]  # the check, then the call
    op(*layer(size=24), GEOMETRY)
    assert len(kernel.sizes) == 3  # other sizes need no other check …
    op(*layer(channels=6), GEOMETRY)
    assert len(kernel.sizes) == 5  # … other channels do


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda *a, **k: conv2d_forward(*a, **k) * 1.001, "wrong results: error 0.00"),
        (lambda *a, **k: conv2d_forward(*a, **k)[:, :, 1:], "wrong results: error inf"),
        (lambda *a, **k: conv2d_forward(*a, **k) * torch.nan, "wrong results: error inf"),
        (raises(RuntimeError("out of resource: shared memory\nmore")), "RuntimeError: out of res"),
    ],
    ids=["inaccurate", "wrong-shape", "not-finite", "raises"],
)
def test_a_failing_kernel_is_disabled_with_one_line_and_the_job_goes_on(
    work: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, other = Kernel(work), Kernel(mse_loss)
    ops = table({"conv2d_forward": kernel, "mse_loss": other})
    op, loss = ops.conv2d_forward, ops.mse_loss
    for _ in range(3):
        args = layer()
        assert torch.equal(op(*args, GEOMETRY), conv2d_forward(*args, GEOMETRY))
    assert len(kernel.sizes) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    kind = "conv2d_forward float32 5×4×3×3"
    words = f"Triton kernels, and torch matrix products for {kind} ({reason}"
    assert ops.in_words.startswith(words)
    line = caplog.records[0].getMessage()
    assert "\n" not in line
    assert line.startswith(f"Triton kernel {kind} is disabled on cpu (")
    assert reason in line
    assert ops.disabled[kind].startswith(reason)
    loss(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert len(other.sizes) == 2  # the other kernels stay on


def test_a_kernel_that_fails_after_its_check_is_disabled_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(input) == 1:
            raise RuntimeError("invalid device function")
        return conv2d_forward(input, *args, **kwargs)

    kernel = Kernel(work)
    op = table({"conv2d_forward": kernel}).conv2d_forward
    args = layer()
    for _ in range(2):
        assert torch.equal(op(*args, GEOMETRY), conv2d_forward(*args, GEOMETRY))
    assert len(kernel.sizes) == 2
    assert len(caplog.records) == 1


def test_backward_is_checked_in_every_gradient() -> None:
    def work(*args: Any, **kwargs: Any) -> Any:
        grad_input, grad_weight, grad_bias = conv2d_backward(*args, **kwargs)
        return grad_input, grad_weight, grad_bias + 0.01 * grad_bias.abs().max()

    ops = table({"conv2d_backward": Kernel(work)})
    input, weight, _ = layer()
    grad, output = torch.randn(1, 5, 40, 40), torch.rand(1, 5, 40, 40)
    ours = ops.conv2d_backward(grad, input, weight, GEOMETRY, output, False)
    expected = conv2d_backward(grad, input, weight, GEOMETRY, output, False)
    assert list(ops.disabled) == ["conv2d_backward float32 5×4×3×3"]
    assert ours[0] is None
    assert torch.equal(ours[2], expected[2])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["torch", "triton"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_out_of_memory_is_no_fault_of_a_kernel(error: Exception, is_first: bool) -> None:
    def work(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if is_first or input.shape[2] == 40:
            raise error
        return conv2d_forward(input, *args, **kwargs)

    ops = table({"conv2d_forward": Kernel(work)})
    with pytest.raises(type(error), match="out of memory"):
        ops.conv2d_forward(*layer(), GEOMETRY)
    assert not ops.disabled


def drops_the_last_row_of_large_tiles(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A bug of the tile of large images alone: of each 128 positions the last stays 0."""
    output = conv2d_forward(input, *args, **kwargs).contiguous()
    positions = len(output) * output.shape[2] * output.shape[3]
    rows = conv_tile(torch.bfloat16, positions, 4, 64).m
    if rows == 128:
        flat = output.permute(1, 0, 2, 3).flatten(1)
        flat[:, 127::128] = 0
        output = flat.view(output.shape[1], len(output), *output.shape[2:]).permute(1, 0, 2, 3)
    return output


def test_the_check_runs_the_tile_that_the_call_uses(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(drops_the_last_row_of_large_tiles)
    ops = table({"conv2d_forward": kernel})
    for size in (200, 40):  # 40 000 positions, and 1 600
        args = layer(size=size)
        output = ops.conv2d_forward(*args, GEOMETRY)
        torch.testing.assert_close(output, conv2d_forward(*args, GEOMETRY))
    # Large images' kind is off, small ones' is on.
    assert kernel.sizes == [(2, 4, 13, 11), (2, 4, 13, 11), (1, 4, 40, 40)]
    assert len(caplog.records) == 1
    assert "wrong results" in ops.disabled["conv2d_forward float32 5×4×3×3"]


def test_a_kind_that_is_off_leaves_the_op_s_other_kinds_on() -> None:
    def work(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if weight.shape[1] == 4:
            raise RuntimeError("no such instruction")
        return conv2d_forward(input, weight, *args, **kwargs)

    kernel = Kernel(work)
    ops = table({"conv2d_forward": kernel})
    for channels in (4, 6, 4, 6):
        ops.conv2d_forward(*layer(channels), GEOMETRY)
    assert list(ops.disabled) == ["conv2d_forward float32 5×4×3×3"]
    assert kernel.sizes[-1] == (1, 6, 40, 40)
    assert ops.has_fused_kernels


def test_kernels_launch_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on torch's current device, which need not be theirs."""
    inside: list[Tensor] = []
    checked: list[bool] = []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        inside.append(tensor)
        yield
        inside.pop()

    def work(*args: Any, **kwargs: Any) -> Tensor:
        checked.append(len(inside) == 1 and inside[0].device == args[0].device)
        return conv2d_forward(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    table({"conv2d_forward": work}).conv2d_forward(*layer(), GEOMETRY)
    assert checked == [True, True]  # in the check, and then
    assert not inside


def test_the_log_says_once_that_kernels_are_compiled_and_the_end_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    compilations = dispatch.Compilations().listen()
    monkeypatch.setattr(dispatch, "COMPILATIONS", compilations)
    ops = table({"conv2d_forward": Kernel(conv2d_forward)})
    listener = triton.knobs.compilation.listener
    times = SimpleNamespace(total=1_500_000)  # µs
    more = {"src": None, "metadata": {}, "metadata_group": {}}
    listener(times=times, cache_hit=True, **more)
    assert ops.in_words == "Triton kernels"
    assert not caplog.records
    for _ in range(4):
        listener(times=times, cache_hit=False, **more)
    assert ops.in_words == "Triton kernels (4 compiled in 6 s)"
    (record,) = caplog.records
    assert "compiles" in record.getMessage()
    assert "TRITON_CACHE_DIR" in record.getMessage()


def test_another_device_s_kernels_stay_on() -> None:
    broken, right = Kernel(raises(RuntimeError("no"))), Kernel(conv2d_forward)
    first, second = table({"conv2d_forward": broken}), table({"conv2d_forward": right})
    for ops in (first, second):
        ops.conv2d_forward(*layer(), GEOMETRY)
    assert first.disabled
    assert not second.disabled


def test_many_kinds_that_are_off_are_counted() -> None:
    ops = table({"conv2d_forward": Kernel(raises(RuntimeError("no")))})
    for channels in range(1, 10):
        ops.conv2d_forward(*layer(channels), GEOMETRY)
    assert len(ops.disabled) == 9
    assert "5×6×3×3 and 3 more (RuntimeError: no)" in ops.in_words


def test_the_loss_is_checked_in_whole_blocks_and_in_a_part_of_one() -> None:
    """2048 elements are a block: what is only wrong in whole ones must show."""

    def work(input: Tensor, target: Tensor) -> Any:
        loss, grad = mse_loss(input, target)
        if input.numel() >= 2048:
            grad = grad.clone(memory_format=torch.preserve_format)
            grad[0] *= 2
        return loss, grad

    ops = table({"mse_loss": Kernel(work)})
    ops.mse_loss(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert list(ops.disabled) == ["mse_loss float32"]


def test_errors_of_the_caller_are_raised() -> None:
    ops = table({"conv2d_forward": Kernel(raises(ShapeError("too small")))})
    ops.conv2d_forward(*layer(), GEOMETRY)  # fails the check first: disabled
    assert list(ops.disabled) == ["conv2d_forward float32 5×4×3×3"]
    forced = table({"conv2d_forward": Kernel(raises(ShapeError("too small")))}, is_checked=False)
    with pytest.raises(ShapeError, match="too small"):
        forced.conv2d_forward(*layer(), GEOMETRY)


def test_a_call_that_gemm_refuses_in_the_check_too_is_no_fault_of_a_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Kernel(conv2d_fused)
    chosen = table({"conv2d_fused": kernel})
    op, (image, weight, bias) = chosen.conv2d_fused, layer()
    with pytest.raises(RuntimeError, match="Expected size"):
        op(layer(channels=5)[0], weight, bias, GEOMETRY)
    with pytest.raises(ValueError, match="zip"):  # no small problem can be made of it
        op(image[0, 0, 0], weight, bias, GEOMETRY)
    assert not chosen.disabled
    assert not caplog.records
    assert not kernel.sizes
    op(image, weight, bias, GEOMETRY)  # of the same kind, which is still to be judged
    assert kernel.sizes[-1] == image.shape


def test_a_call_that_both_refuse_after_the_check_is_no_fault_of_a_kernel() -> None:
    kernel = Kernel(conv2d_fused)
    chosen = table({"conv2d_fused": kernel})
    op, (image, weight, bias) = chosen.conv2d_fused, layer()
    op(image, weight, bias, GEOMETRY)
    with pytest.raises(RuntimeError, match="Expected size"):
        op(layer(channels=5)[0], weight, bias, GEOMETRY)
    assert not chosen.disabled


def test_a_call_whose_small_problem_cannot_be_is_gemm_s() -> None:
    """All of the small image would be cut off; of the image itself something is left."""
    chosen = table({"conv_transpose2d_forward": Kernel(conv_transpose2d_forward)})
    args = torch.randn(1, 4, 40, 40), torch.randn(4, 5, 3, 3), None
    geometry = ConvGeometry(padding=(8, 8))
    ours = chosen.conv_transpose2d_forward(*args, geometry)
    assert torch.equal(ours, conv_transpose2d_forward(*args, geometry))
    assert not chosen.disabled


@pytest.mark.parametrize("is_checked", [True, False], ids=["auto", "triton"])
def test_what_a_kernel_declines_goes_to_gemm_and_the_kernel_stays_on(is_checked: bool) -> None:
    def work(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.dtype == torch.float64:
            raise NotCoveredError("float64")
        return conv2d_forward(input, *args, **kwargs)

    kernel = Kernel(work)
    chosen = table({"conv2d_forward": kernel}, is_checked=is_checked)
    op, args = chosen.conv2d_forward, layer()
    double = [tensor.double() for tensor in args]
    assert torch.equal(op(*double, GEOMETRY), conv2d_forward(*double, GEOMETRY))
    assert not chosen.disabled
    op(*args, GEOMETRY)
    assert kernel.sizes[-1] == args[0].shape


def test_a_kind_of_call_that_a_kernel_declines_is_checked_once() -> None:
    declining = Kernel(raises(NotCoveredError("dilation")))
    op, args = table({"conv2d_forward": declining}).conv2d_forward, layer()
    for _ in range(5):
        assert torch.equal(op(*args, GEOMETRY), conv2d_forward(*args, GEOMETRY))
    assert len(declining.sizes) == 1
    op(*layer(channels=6), GEOMETRY)
    assert len(declining.sizes) == 2  # another kind


def test_another_precision_of_any_argument_is_another_kind_of_call() -> None:
    def work(input: Tensor, target: Tensor) -> Any:
        if target.dtype == torch.float64:
            raise NotCoveredError("float64")
        return mse_loss(input, target)

    kernel = Kernel(work)
    op, image = table({"mse_loss": kernel}).mse_loss, torch.rand(1, 3, 4, 4)
    op(image, image.double())
    op(image, image)
    assert kernel.sizes[-1] == image.shape


def test_forced_kernels_run_unchecked_and_their_errors_are_raised() -> None:
    kernel = Kernel(lambda *a, **k: conv2d_forward(*a, **k) + 1)
    forced = table({"conv2d_forward": kernel}, is_checked=False)
    args = layer()
    assert not torch.equal(forced.conv2d_forward(*args, GEOMETRY), conv2d_forward(*args, GEOMETRY))
    assert len(kernel.sizes) == 1
    failing = table(
        {"conv2d_forward": Kernel(raises(RuntimeError("no such sm")))}, is_checked=False
    )
    with pytest.raises(DeviceError, match="conv2d_forward failed on cpu: no such sm"):
        failing.conv2d_forward(*args, GEOMETRY)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets DENOISE_BATCH_KERNELS for tables that are made from now on."""

    def set_choice(choice: str) -> None:
        monkeypatch.setenv("DENOISE_BATCH_KERNELS", choice)
        ops_for.cache_clear()

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield set_choice
    ops_for.cache_clear()


def no_kernels(device: torch.device) -> Mapping[str, Op]:
    raise UnavailableError("compute capability 7.5, the kernels need 8.0")


@pytest.mark.parametrize("choice", ["auto", "gemm", "reference"])
def test_a_device_without_kernels_uses_gemm_unless_they_are_forced(
    choice: str, choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "load_kernels", no_kernels)
    choose(choice)
    ops = ops_for(torch.device("cuda"))
    assert ops.conv2d_forward is (REFERENCE if choice == "reference" else GEMM).conv2d_forward
    assert (
        ops.in_words
        == {
            "auto": "torch matrix products (no Triton kernels: compute capability 7.5, the kernels "
            "need 8.0)",
            "gemm": "torch matrix products (DENOISE_BATCH_KERNELS=gemm)",
            "reference": "the reference implementation (DENOISE_BATCH_KERNELS=reference)",
        }[choice]
    )
    choose("triton")
    with pytest.raises(DeviceError, match=r"DENOISE_BATCH_KERNELS=triton: .* 7\.5"):
        ops_for(torch.device("cuda"))


FAULTS = {
    "import": (
        ImportError("libtriton.so: undefined symbol: x\nmore"),
        "cannot be imported",
        "again",
    ),
    "compiler": (
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        "cannot compile",
        "apt install gcc",
    ),
    "headers": (
        subprocess.CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x/cuda_utils.c"]),
        "cannot compile",
        "python3-dev",
    ),
    "no-gcc": (FileNotFoundError(2, "No such file", "/opt/gcc"), "cannot compile", "gcc"),
    "read-only": (
        OSError(30, "Read-only file system", "/root/.triton"),
        "cannot keep what it compiles",
        "TRITON_CACHE_DIR",
    ),
    "denied": (
        PermissionError(13, "Permission denied", "/home/x/.triton"),
        "/home/x/.triton",
        "TRITON_CACHE_DIR",
    ),
    "other": (AssertionError("libcuda.so cannot found!"), "does not work here", "libcuda"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_triton_that_does_not_work_is_one_line_and_gemm(
    name: str,
    choose: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("triton")
    error, says, mend = FAULTS[name]
    find: Callable[..., Any] = raises(error)
    if name != "import":
        find = lambda: {"mse_loss": raises(error)}  # noqa: E731
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "launchers", find)
    choose("auto")
    ops = ops_for(torch.device("cuda"))
    assert ops.implementation == "gemm"
    (record,) = caplog.records
    for line in (record.getMessage(), ops.in_words):
        assert "\n" not in line
        assert says in line
        assert mend in line
    choose("triton")
    with pytest.raises(DeviceError, match="DENOISE_BATCH_KERNELS=triton"):
        ops_for(torch.device("cuda"))


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_a_device_with_kernels_uses_them(
    choice: str, choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Kernel(lambda *a, **k: conv2d_forward(*a, **k) + 1)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: {"conv2d_forward": wrong})
    choose(choice)
    ops = ops_for(torch.device("cuda", 0))
    assert ops.implementation == "triton"
    args = layer()
    output = ops.conv2d_forward(*args, GEOMETRY)
    is_gemm = torch.equal(output, conv2d_forward(*args, GEOMETRY))
    assert is_gemm == (choice == "auto")  # which checks; "triton" does not
    assert ops.has_fused_kernels
    assert ops_for(torch.device("cuda", 0)) is ops_for(torch.device("cuda")) is ops
    assert ("conv2d_forward" in ops_for(torch.device("cuda")).in_words) == (choice == "auto")
    assert ops_for(CPU).implementation in ("native", "gemm")


def test_only_cuda_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    names = ("cuda", "cpu", "mps")
    assert [dispatch.may_have_kernels(torch.device(name)) for name in names] == [True, False, False]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.may_have_kernels(CPU)


def test_an_unknown_choice_is_an_error_that_names_the_choices(
    choose: Callable[[str], None],
) -> None:
    choose("cudnn")
    for use in (lambda: ops_for(CPU), lambda: Sequential(Conv2d(3, 3, 1)).to("cpu")):
        with pytest.raises(
            OptionError, match="='cudnn': choose auto, triton, native, gemm or reference"
        ):
            use()


def test_a_network_asks_about_the_gpu_once(
    choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def may_have_kernels(device: torch.device) -> bool:
        asked.append(device)
        return False

    monkeypatch.setattr(dispatch, "may_have_kernels", may_have_kernels)
    choose("auto")
    network = Network("unet").eval().to("cpu")
    network(torch.rand(1, 3, 20, 30))
    network(torch.rand(1, 3, 30, 20))
    assert asked == [CPU]


def test_importing_the_blocks_and_running_them_on_a_cpu_never_imports_triton() -> None:
    code = (
        "import sys, torch, denoise_batch.kernels as k;"
        "k.Conv2d(3, 4, 3)(torch.rand(1, 3, 8, 8));"
        "found = {n for n in sys.modules if n.split('.')[0] == 'triton'};"
        "assert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
