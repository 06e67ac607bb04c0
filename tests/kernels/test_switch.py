"""The run-time switch with simulated kernels: the ones that fail, and the ones that hold."""

import functools
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import DeviceError, OptionError, ShapeError, ops
from denoise_batch.kernels.errors import NotCoveredError, UnavailableError
from denoise_batch.kernels.gemm.conv import (
    conv2d_backward,
    conv2d_forward,
    conv_transpose2d_forward,
)
from denoise_batch.kernels.gemm.fused import conv2d_fused
from denoise_batch.kernels.reference import mse_loss
from denoise_batch.kernels.switch import KernelDispatcher, Op

OPTIONS: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


class Kernel:
    """A stand-in for a Triton kernel: counts its calls and does the work in its own way."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        self.sizes.append(tuple(first.shape))
        return self.work(*args, **kwargs)


def switch(kernels: Mapping[str, Op], choice: Any = "auto") -> KernelDispatcher:
    """A switch for which the CPU is a CUDA device with these kernels."""
    return KernelDispatcher(choice, lambda device: kernels, lambda device: True)


def layer(channels: int = 4, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, channels, size, size), torch.randn(5, channels, 3, 3), torch.randn(5)


def raises(error: Exception) -> Callable[..., Any]:
    def work(*args: Any, **kwargs: Any) -> Any:
        raise error

    return work


def test_a_kernel_that_agrees_does_the_work_after_one_check_a_kind() -> None:
    kernel = Kernel(conv2d_forward)
    op = switch({"conv2d_forward": kernel}).op(conv2d_forward)
    args = layer()
    assert torch.equal(op(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))
    assert kernel.sizes == [(2, 4, 13, 11), (1, 4, 40, 40)]  # the check, then the call
    op(*layer(size=24), **OPTIONS)
    assert len(kernel.sizes) == 3  # other sizes need no other check …
    op(*layer(channels=6), **OPTIONS)
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
def test_a_failing_kernel_is_switched_off_with_one_line_and_the_job_goes_on(
    work: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, other = Kernel(work), Kernel(mse_loss)
    off = switch({"conv2d_forward": kernel, "mse_loss": other})
    op, loss = off.op(conv2d_forward), off.op(mse_loss)
    for _ in range(3):
        args = layer()
        assert torch.equal(op(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))
    assert len(kernel.sizes) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    line = caplog.records[0].getMessage()
    assert "\n" not in line
    assert line.startswith("Triton kernel conv2d_forward is switched off on cpu (")
    assert reason in line
    assert off.off["conv2d_forward"].startswith(reason)
    loss(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
    assert len(other.sizes) == 2  # the other kernels stay on


def test_a_kernel_that_fails_after_its_check_is_switched_off_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(input) == 1:
            raise RuntimeError("invalid device function")
        return conv2d_forward(input, *args, **kwargs)

    kernel = Kernel(work)
    op = switch({"conv2d_forward": kernel}).op(conv2d_forward)
    args = layer()
    for _ in range(2):
        assert torch.equal(op(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))
    assert len(kernel.sizes) == 2
    assert len(caplog.records) == 1


def test_backward_is_checked_in_every_gradient() -> None:
    def work(*args: Any, **kwargs: Any) -> Any:
        grad_input, grad_weight, grad_bias = conv2d_backward(*args, **kwargs)
        return grad_input, grad_weight, grad_bias + 0.01 * grad_bias.abs().max()

    off = switch({"conv2d_backward": Kernel(work)})
    input, weight, _ = layer()
    grad, output = torch.randn(1, 5, 40, 40), torch.rand(1, 5, 40, 40)
    options = OPTIONS | {"output": output, "needs_input_grad": False}
    ours = off.op(conv2d_backward)(grad, input, weight, **options)
    expected = conv2d_backward(grad, input, weight, **options)
    assert list(off.off) == ["conv2d_backward"]
    assert ours[0] is None
    assert torch.equal(ours[2], expected[2])


def test_out_of_memory_is_no_fault_of_a_kernel() -> None:
    kernel = Kernel(raises(torch.OutOfMemoryError("CUDA out of memory")))
    off = switch({"conv2d_forward": kernel})
    with pytest.raises(torch.OutOfMemoryError):
        off.op(conv2d_forward)(*layer(), **OPTIONS)
    assert not off.off


def test_errors_of_the_caller_are_raised() -> None:
    off = switch({"conv2d_forward": Kernel(raises(ShapeError("too small")))})
    off.op(conv2d_forward)(*layer(), **OPTIONS)  # fails the check first: switched off …
    assert list(off.off) == ["conv2d_forward"]
    forced = switch({"conv2d_forward": Kernel(raises(ShapeError("too small")))}, "triton")
    with pytest.raises(ShapeError, match="too small"):
        forced.op(conv2d_forward)(*layer(), **OPTIONS)


FUSED: dict[str, Any] = OPTIONS | {"activation": None, "residual": None}
FUSED |= {"upsample": (1, 1), "unshuffle": 1, "shuffle": 1}


def test_a_call_that_gemm_refuses_in_the_check_too_is_no_fault_of_a_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Kernel(conv2d_fused)
    chosen = switch({"conv2d_fused": kernel})
    op, (image, weight, bias) = chosen.op(conv2d_fused), layer()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        op(layer(channels=5)[0], weight, bias, **FUSED)
    with pytest.raises(ValueError, match="zip"):  # no small problem can be made of it
        op(image[0, 0, 0], weight, bias, **FUSED)
    assert not chosen.off
    assert not caplog.records
    assert not kernel.sizes
    op(image, weight, bias, **FUSED)  # of the same kind, which is still to be judged
    assert kernel.sizes[-1] == image.shape


def test_a_call_that_both_refuse_after_the_check_is_no_fault_of_a_kernel() -> None:
    kernel = Kernel(conv2d_fused)
    chosen = switch({"conv2d_fused": kernel})
    op, (image, weight, bias) = chosen.op(conv2d_fused), layer()
    op(image, weight, bias, **FUSED)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        op(layer(channels=5)[0], weight, bias, **FUSED)
    assert not chosen.off


def test_a_call_whose_small_problem_cannot_be_is_gemm_s() -> None:
    """All of the small image would be cut off; of the image itself something is left."""
    chosen = switch({"conv_transpose2d_forward": Kernel(conv_transpose2d_forward)})
    args = torch.randn(1, 4, 40, 40), torch.randn(4, 5, 3, 3), None
    options = OPTIONS | {"padding": (8, 8), "output_padding": (0, 0)}
    ours = chosen.op(conv_transpose2d_forward)(*args, **options)
    assert torch.equal(ours, conv_transpose2d_forward(*args, **options))
    assert not chosen.off


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_what_a_kernel_declines_goes_to_gemm_and_the_kernel_stays_on(choice: str) -> None:
    def work(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.dtype == torch.float64:
            raise NotCoveredError("float64")
        return conv2d_forward(input, *args, **kwargs)

    kernel = Kernel(work)
    chosen = switch({"conv2d_forward": kernel}, choice)
    op, args = chosen.op(conv2d_forward), layer()
    double = [tensor.double() for tensor in args]
    assert torch.equal(op(*double, **OPTIONS), conv2d_forward(*double, **OPTIONS))
    assert not chosen.off
    op(*args, **OPTIONS)
    assert kernel.sizes[-1] == args[0].shape


def test_a_kind_of_call_that_a_kernel_declines_is_checked_once() -> None:
    declining, reference = Kernel(raises(NotCoveredError("dilation"))), Kernel(conv2d_forward)

    @functools.wraps(conv2d_forward)
    def portable(*args: Any, **kwargs: Any) -> Any:
        return reference(*args, **kwargs)

    op, args = switch({"conv2d_forward": declining}).op(portable), layer()
    for _ in range(5):
        op(*args, **OPTIONS)
    assert len(declining.sizes) == 1
    assert reference.sizes.count((1, 4, 40, 40)) == 5
    assert len(reference.sizes) <= 5 + 1
    op(*layer(channels=6), **OPTIONS)
    assert len(declining.sizes) == 2  # another kind


def test_another_precision_of_any_argument_is_another_kind_of_call() -> None:
    def work(input: Tensor, target: Tensor) -> Any:
        if target.dtype == torch.float64:
            raise NotCoveredError("float64")
        return mse_loss(input, target)

    kernel = Kernel(work)
    op, image = switch({"mse_loss": kernel}).op(mse_loss), torch.rand(1, 3, 4, 4)
    op(image, image.double())
    op(image, image)
    assert kernel.sizes[-1] == image.shape


def test_forced_kernels_run_unchecked_and_their_errors_are_raised() -> None:
    kernel = Kernel(lambda *a, **k: conv2d_forward(*a, **k) + 1)
    forced = switch({"conv2d_forward": kernel}, "triton")
    args = layer()
    assert not torch.equal(
        forced.op(conv2d_forward)(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS)
    )
    assert len(kernel.sizes) == 1
    failing = switch({"conv2d_forward": Kernel(raises(RuntimeError("no such sm")))}, "triton")
    with pytest.raises(DeviceError, match="conv2d_forward failed on cpu: no such sm"):
        failing.op(conv2d_forward)(*args, **OPTIONS)


def test_a_device_without_kernels_uses_gemm_unless_they_are_forced() -> None:
    def load(device: torch.device) -> Mapping[str, Op]:
        raise UnavailableError("compute capability 7.5, the kernels need 8.0")

    args = layer()
    op = KernelDispatcher("auto", load, lambda device: True).op(conv2d_forward)
    assert torch.equal(op(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))
    forced = KernelDispatcher("triton", load, lambda device: True).op(conv2d_forward)
    with pytest.raises(DeviceError, match=r"compute capability 7\.5"):
        forced(*args, **OPTIONS)


def test_tensors_of_other_devices_are_none_of_the_switch_s_business() -> None:
    kernel = Kernel(raises(AssertionError()))
    op = KernelDispatcher("triton", lambda device: {"conv2d_forward": kernel}).op(conv2d_forward)
    args = layer()
    assert torch.equal(op(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))


def ops_chosen_by(choice: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """kernels/ops.py as it comes out of an import with DENOISE_BATCH_KERNELS=choice."""
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", choice)
    name = "denoise_batch.kernels.ops_again"
    spec = importlib.util.spec_from_file_location(name, ops.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("choice", ["reference", "gemm"])
def test_the_environment_forces_a_path(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ops_chosen_by(choice, monkeypatch)
    module = {"reference": "reference", "gemm": "gemm.conv"}[choice]
    assert chosen.conv2d_forward.__module__ == f"denoise_batch.kernels.{module}"
    assert not hasattr(chosen, "SWITCH")


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_the_environment_chooses_how_the_switch_decides(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ops_chosen_by(choice, monkeypatch)
    assert chosen.SWITCH.choice == choice
    args = layer()
    assert torch.equal(chosen.conv2d_forward(*args, **OPTIONS), conv2d_forward(*args, **OPTIONS))


def test_an_unknown_choice_is_an_error_that_names_the_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OptionError, match="='cudnn': choose auto, triton, gemm or reference"):
        ops_chosen_by("cudnn", monkeypatch)


def test_importing_the_blocks_and_running_them_on_a_cpu_never_imports_triton() -> None:
    code = (
        "import sys, torch, denoise_batch.kernels as k;"
        "k.Conv2d(3, 4, 3)(torch.rand(1, 3, 8, 8));"
        "found = {n for n in sys.modules if n.split('.')[0] == 'triton'};"
        "assert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
