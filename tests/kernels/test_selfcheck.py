"""The self-check that denoise-doctor prints, here on the CPU: gemm against the specification."""

from dataclasses import replace

import pytest
import torch

from denoise_batch.kernels import selfcheck
from denoise_batch.kernels.dispatch import GEMM
from denoise_batch.kernels.gemm import conv
from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.kernels.kernel_check import KernelCheck, check_call, signature
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
