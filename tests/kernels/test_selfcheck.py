"""The self-check that denoise-doctor prints, here on the CPU: gemm against the specification."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from denoise_batch.kernels import kernel_check, selfcheck
from denoise_batch.kernels.dispatch import GEMM
from denoise_batch.kernels.errors import NotCoveredError
from denoise_batch.kernels.gemm import conv
from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.kernels.kernel_check import KernelCheck, check_call, example_inputs, signature
from denoise_batch.kernels.selfcheck import self_check


def gemm_checks() -> list[KernelCheck]:
    return [check for check in self_check(torch.device("cpu")) if check.implementation == "gemm"]


def test_every_gemm_op_passes() -> None:
    checks = {check.name: check for check in gemm_checks()}
    ops = ("conv2d", "conv_transpose2d", "upsample_nearest2d", "sigmoid")
    names = {f"{op}_{direction}" for op in ops for direction in ("forward", "backward")}
    names |= {"sigmoid_forward_", "normalize"}
    names -= {"upsample_nearest2d_backward"}  # the specification's
    assert checks.keys() == {f"{name} float32" for name in names}
    for check in checks.values():
        assert check.status == "ok", check
        assert check.implementation == "gemm"
        assert check.error is not None
        assert check.error <= check.tolerance


def test_a_wrong_op_fails_and_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    right = conv.conv2d_backward

    def wrong(*args: object, **kwargs: object) -> object:
        grad_input, grad_weight, grad_bias = right(*args, **kwargs)  # type: ignore[arg-type]
        return grad_input, grad_weight * 1.5, grad_bias

    monkeypatch.setattr(selfcheck, "GEMM", replace(GEMM, conv2d_backward=wrong))
    failed = [check for check in gemm_checks() if check.status != "ok"]
    assert [check.name for check in failed] == ["conv2d_backward float32"]
    for check in failed:
        assert check.error == pytest.approx(0.5, rel=0.05)
        assert check.reason.startswith("wrong results: error 0.5")


def test_an_op_that_raises_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        raise RuntimeError("no kernel image is available\nsecond line")

    monkeypatch.setattr(selfcheck, "GEMM", replace(GEMM, conv2d_forward=broken))
    (check,) = [c for c in gemm_checks() if c.name == "conv2d_forward float32"]
    assert (check.status, check.error) == ("failed", None)
    assert check.reason == "RuntimeError: no kernel image is available"


def test_one_op_that_breaks_a_device_leaves_every_other_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an illegal access every call on a GPU raises, those that copy too."""
    names, sticky = [check.name for check in gemm_checks()], "CUDA error: an illegal memory access"
    right = conv.conv2d_backward

    def breaking(*args: object, **kwargs: object) -> object:
        def broken(*args: object) -> object:
            raise RuntimeError(sticky)

        monkeypatch.setattr(kernel_check, "_as_float64", broken)
        return right(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_check, "_as_float64", kernel_check._as_float64)
    monkeypatch.setattr(selfcheck, "GEMM", replace(GEMM, conv2d_backward=breaking))
    checks = gemm_checks()
    assert [check.name for check in checks] == names
    assert [check.name for check in checks if check.status == "ok"] == ["conv2d_forward float32"]
    assert checks[-1].reason == f"cannot be checked: RuntimeError: {sticky}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotCoveredError("more than int32 counts"), "declined: more than int32 counts"),
        (MemoryError("full"), "MemoryError: full"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_an_op_that_declines_or_finds_no_memory_is_a_failed_row(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def declining(*args: object, **kwargs: object) -> object:
        raise error

    monkeypatch.setattr(selfcheck, "GEMM", replace(GEMM, conv2d_forward=declining))
    (check,) = [check for check in gemm_checks() if check.status != "ok"]
    assert (check.name, check.status) == ("conv2d_forward float32", "failed")
    assert check.reason == reason


@pytest.mark.parametrize("is_full", [False, True])
def test_triton_s_ops_have_their_rows_too(is_full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is full at the start, and where the kernels decline."""

    def load(device: torch.device) -> dict[str, Any]:
        if is_full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return dict.fromkeys(selfcheck.TRITON_OPS, declining)

    def declining(*args: object) -> object:
        raise NotCoveredError("no")

    monkeypatch.setattr(selfcheck, "load_kernels", load)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    device = torch.device("cuda", 0)
    examples = list(example_inputs(torch.device("cpu"), [torch.float32]))
    checks = [check() for check in selfcheck._check_triton(device, examples)]
    assert len(checks) == len(selfcheck.TRITON_OPS)
    assert {check.status for check in checks} == {"failed"}
    reason = "OutOfMemoryError: CUDA out of memory" if is_full else "declined: no"
    assert {check.reason for check in checks} == {reason}
    assert all(check.implementation == "triton" for check in checks)


def test_the_worst_of_several_geometries_is_reported() -> None:
    rows = [KernelCheck("op", "gemm", "ok", error, 1e-5) for error in (1e-7, 3e-6, 2e-6)]
    failed = KernelCheck("op", "gemm", "failed", None, 1e-5, "raised")
    assert max(rows, key=selfcheck.severity) is rows[1]
    assert max([*rows, failed], key=selfcheck.severity) is failed


def test_checks_do_not_depend_on_the_caller_s_numbers() -> None:
    nan = torch.full((1, 3, 9, 9), torch.nan), torch.full((4, 3, 3, 3), torch.nan), None
    op = conv.conv2d_forward
    check = check_call("conv2d_forward", "gemm", op, op, (*nan, ConvGeometry()), {})
    assert check.status == "ok"


def test_signatures_tell_kinds_of_calls_apart() -> None:
    def call(
        size: int = 9, channels: int = 3, dtype: torch.dtype = torch.float32, stride: int = 1
    ) -> object:
        weight = torch.zeros(4, channels, 3, 3, dtype=dtype)
        image = torch.zeros(1, channels, size, size, dtype=dtype)
        geometry = ConvGeometry((stride, stride))
        return signature("conv2d_forward", (image, weight, None, geometry), {"activation": "relu"})

    assert call() == call(size=11)
    assert len({call(), call(channels=5), call(dtype=torch.float16), call(stride=2)}) == 4
