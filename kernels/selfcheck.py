"""The self-check of denoise-doctor: every op of a device, on the shipped networks' layers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from .cuda.tiles import ROWS, trial
from .dispatch import GEMM, GEMM_ON_GPU, NATIVE_OPS, REFERENCE, load_kernels, load_native
from .errors import NotCoveredError, UnavailableError, UncheckableError
from .kernel_check import (
    TOLERANCES,
    KernelCheck,
    Op,
    Status,
    check_call,
    example_inputs,
    failed_check,
    in_words,
)

Call = tuple[Any, ...]
Example = tuple[str, torch.dtype, list[Call]]

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
    """Check every op that has a faster implementation on `device`, in the device's precisions.

    Whatever one op does to a device, all the others have a row: after an illegal access every later
    call on it raises.
    """
    return [check() for check in planned_checks(device)]


def planned_checks(device: torch.device | str) -> list[Callable[[], KernelCheck]]:
    """The checks of `self_check`, to be called in any order; on CUDA most calls compile kernels."""
    device = torch.device(device)
    dtypes = (torch.float32,) if device.type == "cpu" else DTYPES
    examples = list(example_inputs(device, dtypes))  # made while the device still works
    checks = _check_triton(device, examples) if device.type == "cuda" else []
    if device.type == "cpu":
        checks += _check_native(examples)
    portable = GEMM if device.type == "cpu" else GEMM_ON_GPU
    for name, _, calls in examples:
        gemm, reference = getattr(portable, name), getattr(REFERENCE, name)
        if gemm is not reference:
            checks.append(partial(_worst, name, "gemm", gemm, reference, calls))
    return checks


def severity(check: KernelCheck) -> tuple[bool, float]:
    """Order checks: failures last, then by error."""
    return check.status != "ok", math.inf if check.error is None else check.error


def _check_native(examples: Sequence[Example]) -> list[Callable[[], KernelCheck]]:
    try:
        native = load_native()
    except UnavailableError as error:
        tolerance = TOLERANCES[torch.float32]
        missing = KernelCheck("native", "native", "unavailable", None, tolerance, str(error))
        return [lambda: missing]
    return [
        partial(_worst, name, "native", getattr(native, name), getattr(REFERENCE, name), calls)
        for name, _, calls in examples
        if name in NATIVE_OPS
    ]


def _check_triton(
    device: torch.device, examples: Sequence[Example]
) -> list[Callable[[], KernelCheck]]:
    status: Status = "unavailable"
    reason = ""
    kernels: Mapping[str, Op] = {}
    try:
        kernels = load_kernels(device)
    except UnavailableError as error:
        reason = str(error)
    except Exception as error:  # a full device's
        status, reason = "failed", in_words(error)
    checks: list[Callable[[], KernelCheck]] = []
    for name, dtype, calls in examples:
        if name in kernels:
            checks.append(partial(_worse_tile, device, name, kernels[name], calls))
        elif name in TRITON_OPS:
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            tolerance = TOLERANCES[dtype]
            checks.append(partial(KernelCheck, label, "triton", status, None, tolerance, reason))
    return checks


def _worse_tile(device: torch.device, name: str, kernel: Op, calls: Sequence[Call]) -> KernelCheck:
    """The worse of both tiles."""
    gemm = getattr(GEMM, name)
    tried = [_worst(name, "triton", kernel, gemm, calls, device, rows) for rows in ROWS]
    return max(tried, key=severity)


def _worst(
    name: str,
    implementation: str,
    kernel: Op,
    expected_op: Op,
    calls: Sequence[Call],
    device: torch.device | None = None,
    rows: int = 0,
) -> KernelCheck:
    """The worst of several calls, on a CUDA device with tiles of `rows`."""
    checks = []
    for call in calls:
        try:
            with nullcontext() if device is None else _tile_on(device, rows):
                checks.append(check_call(name, implementation, kernel, expected_op, call, {}))
            continue
        except NotCoveredError as declined:
            reason = f"declined: {declined}"
        except UncheckableError as error:
            reason = f"cannot be checked: {in_words(error.__cause__ or error)}"
        except Exception as error:  # out of memory; an earlier kernel's failure
            reason = in_words(error)
        checks.append(failed_check(name, implementation, call, reason))
    return max(checks, key=severity)


@contextmanager
def _tile_on(device: torch.device, rows: int) -> Iterator[None]:
    with torch.cuda.device(device), trial(rows):
        yield
