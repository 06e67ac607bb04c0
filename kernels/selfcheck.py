"""The self-check of denoise-doctor: every op of a device, on the shipped networks' layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .cuda.tiles import ROWS, trial
from .dispatch import GEMM, GEMM_ON_GPU, NATIVE_OPS, REFERENCE, load_kernels, load_native
from .errors import UnavailableError
from .kernel_check import TOLERANCES, KernelCheck, Op, check_call, example_inputs

Call = tuple[Any, ...]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON_OPS = (
    "conv2d_forward",
    "conv2d_backward",
    "conv_transpose2d_forward",
    "conv_transpose2d_backward",
    "conv2d_fused",
    "conv_transpose2d_fused",
    "conv2d_image",
    "unit_padded",
    "stored_samples",
    "limit_residual",
    "mse_loss",
)


def self_check(device: torch.device | str) -> list[KernelCheck]:
    """Check every op that has a faster implementation on `device`, in the device's precisions."""
    device = torch.device(device)
    dtypes = (torch.float32,) if device.type == "cpu" else DTYPES
    checks = _check_triton(device) if device.type == "cuda" else []
    if device.type == "cpu":
        checks += _check_native(device)
    portable = GEMM if device.type == "cpu" else GEMM_ON_GPU
    for name, _, calls in example_inputs(device, dtypes):
        gemm, reference = getattr(portable, name), getattr(REFERENCE, name)
        if gemm is not reference:
            checks.append(_worst(name, "gemm", gemm, reference, calls))
    return checks


def severity(check: KernelCheck) -> tuple[bool, float]:
    """Order checks: failures last, then by error."""
    return check.status != "ok", math.inf if check.error is None else check.error


def _check_native(device: torch.device) -> list[KernelCheck]:
    try:
        native = load_native()
    except UnavailableError as error:
        tolerance = TOLERANCES[torch.float32]
        return [KernelCheck("native", "native", "unavailable", None, tolerance, str(error))]
    return [
        _worst(name, "native", getattr(native, name), getattr(REFERENCE, name), calls)
        for name, _, calls in example_inputs(device, [torch.float32])
        if name in NATIVE_OPS
    ]


def _check_triton(device: torch.device) -> list[KernelCheck]:
    reason = ""
    kernels: Mapping[str, Op] = {}
    try:
        kernels = load_kernels(device)
    except UnavailableError as error:
        reason = str(error)
    checks = []
    for name, dtype, calls in example_inputs(device, DTYPES):
        tried: list[KernelCheck] = []
        if name in kernels:
            for rows in ROWS:  # the worse of both tiles
                with torch.cuda.device(device), trial(rows):
                    tried.append(_worst(name, "triton", kernels[name], getattr(GEMM, name), calls))
            checks.append(max(tried, key=severity))
        elif name in TRITON_OPS:
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            tolerance = TOLERANCES[dtype]
            checks.append(KernelCheck(label, "triton", "unavailable", None, tolerance, reason))
    return checks


def _worst(
    name: str, implementation: str, kernel: Op, expected_op: Op, calls: Sequence[Call]
) -> KernelCheck:
    """The worst of several calls."""
    checks = [check_call(name, implementation, kernel, expected_op, call, {}) for call in calls]
    return max(checks, key=severity)
