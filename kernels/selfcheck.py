"""The self-check of denoise-doctor: every op of a device, on the shipped networks' layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .dispatch import GEMM, REFERENCE, load_kernels
from .errors import UnavailableError
from .geometry import ConvGeometry
from .kernel_check import SMALL_PROBLEM_FOR, TOLERANCES, KernelCheck, Op, check_call

Call = tuple[Any, ...]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON_OPS = (
    "conv2d_forward",
    "conv2d_backward",
    "conv_transpose2d_forward",
    "conv_transpose2d_backward",
    "conv2d_fused",
    "conv_transpose2d_fused",
    "mse_loss",
)


def self_check(device: torch.device | str) -> list[KernelCheck]:
    """Check every op that has a faster implementation on `device`, in every precision."""
    device = torch.device(device)
    checks = _check_triton(device) if device.type == "cuda" else []
    for name, _, calls in example_inputs(device):
        gemm, reference = getattr(GEMM, name), getattr(REFERENCE, name)
        if gemm is not reference:
            checks.append(_worst(name, "gemm", gemm, reference, calls))
    return checks


def example_inputs(device: torch.device) -> Iterator[tuple[str, torch.dtype, list[Call]]]:
    """(op, precision, calls) for every op: the geometries of the shipped networks' layers.

    Only shapes and precisions count; `check_call` draws the numbers.
    """
    square = ConvGeometry(padding=(1, 1))
    stride = ConvGeometry(stride=(2, 2))
    strided = ConvGeometry(stride=(2, 2), padding=(1, 1))
    plain = [(12, 32, 3, square), (32, 64, 2, stride), (3, 24, 4, stride), (24, 48, 3, strided)]
    transposed = [(64, 32, 2, stride), (48, 24, 3, stride), (24, 3, 4, stride)]
    for dtype in DTYPES:
        new = torch.empty(0, device=device, dtype=dtype).new_empty
        calls: dict[str, list[Call]] = {name: [] for name in SMALL_PROBLEM_FOR}
        for into, out, kernel, geometry in plain:
            weight, image = new(out, into, kernel, kernel), new(1, into, 1, 1)
            grad, bias = new(1, out, 1, 1), new(out)
            calls["conv2d_forward"].append((image, weight, bias, geometry, "relu"))
            calls["conv2d_backward"].append((grad, image, weight, geometry, grad))
        for into, out, kernel, geometry in transposed:
            weight, image = new(into, out, kernel, kernel), new(1, into, 1, 1)
            grad, bias = new(1, out, 1, 1), new(out)
            calls["conv_transpose2d_forward"].append((image, weight, bias, geometry, "relu"))
            calls["conv_transpose2d_backward"].append((grad, image, weight, geometry, grad))
        image, wide = new(1, 3, 1, 1), new(1, 32, 1, 1)
        none = (1, 1)  # no upsampling
        calls["conv2d_fused"] = [
            # unet's stem, head and bodies; upsample's last layer.
            (image, new(32, 12, 3, 3), new(32), square, None, none, 2),
            (wide, new(12, 32, 3, 3), new(12), square, None, none, 1, 2),
            (wide, new(32, 32, 3, 3), new(32), square, None, none, 1, 1, wide),
            (new(1, 24, 1, 1), new(3, 24, 3, 3), new(3), square, "sigmoid", (2, 2)),
        ]
        calls["conv_transpose2d_fused"] = [
            (new(1, 64, 1, 1), new(64, 32, 2, 2), new(32), stride, None, wide),
            (new(1, 48, 1, 1), new(48, 32, 3, 3), new(32), stride, None, wide),
        ]
        for name in ("upsample_nearest2d_forward", "upsample_nearest2d_backward"):
            calls[name] = [(image, (2, 2))]
        calls["sigmoid_forward"] = [(image,)]
        calls["sigmoid_backward"] = [(image, image)]
        calls["mse_loss"] = [(image, image)]
        for name, chosen in calls.items():
            yield name, dtype, chosen


def severity(check: KernelCheck) -> tuple[bool, float]:
    """Order checks: failures last, then by error."""
    return check.status != "ok", math.inf if check.error is None else check.error


def _check_triton(device: torch.device) -> list[KernelCheck]:
    reason = ""
    kernels: Mapping[str, Op] = {}
    try:
        kernels = load_kernels(device)
    except UnavailableError as error:
        reason = str(error)
    checks = []
    for name, dtype, calls in example_inputs(device):
        if name in kernels:
            with torch.cuda.device(device):
                checks.append(_worst(name, "triton", kernels[name], getattr(GEMM, name), calls))
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
