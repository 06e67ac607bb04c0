"""Does an implementation of an op give the specification's results on this machine?

`check_call` asks it for one call, on a small problem of the same kind: `switch` trusts a Triton
kernel only after that. `self_check` asks it for every op of a device: what denoise-doctor prints.
Problems stand in `probes`; expected results are computed on the host, in float64, from the very
numbers that the implementation was given.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import NotCoveredError, UnavailableError, UncheckableError
from .probes import SHRINK, WEIGHTS, Arguments, example_inputs

Op = Callable[..., Any]
Status = Literal["ok", "failed", "unavailable"]

# Largest difference relative to the largest expected element. Each result rounds once (2⁻⁹ for
# bfloat16, 2⁻¹² for float16), its sum is float32.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class KernelCheck:
    """What checking one op came to.

    Attributes:
        name: the op and the precision, as in "conv2d_forward bfloat16".
        implementation: "triton" (held against gemm) or "gemm" (held against reference).
        status: ok · failed: wrong results, or it raised · unavailable: there is none here.
        error: largest difference relative to the largest expected element, the worst tensor's;
            None if there was no result.
        tolerance: what `error` may be.
        reason: of every status but ok.
    """

    name: str
    implementation: str
    status: Status
    error: float | None
    tolerance: float
    reason: str = ""


def self_check(device: torch.device | str) -> list[KernelCheck]:
    """Check every op that has a faster implementation on `device`, in every precision."""
    from . import reference as plain_activation
    from . import reference as plain_conv
    from . import reference as plain_upsample
    from .gemm import conv
    from .gemm import pointwise as activation
    from .gemm import pointwise as upsample

    device = torch.device(device)
    gemm = _functions(conv, activation, upsample)
    reference = _functions(plain_conv, plain_activation, plain_upsample)
    checks = _check_triton(device) if device.type == "cuda" else []
    for name, dtype, calls in example_inputs(device):
        if name in gemm and name in reference:
            checks.append(_check_all(name, "gemm", gemm[name], reference[name], dtype, calls))
    return checks


def check_call(
    name: str,
    implementation: str,
    kernel: Op,
    portable: Op,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> KernelCheck:
    """Hold `kernel` against `portable` on a small problem of the kind of `kernel(*args)`.

    Exceptions of `kernel` make the check fail, but out of memory is nobody's fault and is raised.

    Raises:
        NotCoveredError: `kernel` declines calls of this kind.
        UncheckableError: `portable` raises too, or the call is none that a problem can be made of.
    """
    shrink = SHRINK[name]
    try:
        small_args, small_kwargs = shrink(*args, **kwargs)
        expected = _results(portable, _converted(small_args), _converted(small_kwargs))
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:  # whatever a wrong call comes to
        raise UncheckableError(name) from cause
    dtype = _first(small_args).dtype
    tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
    label = f"{name} {str(dtype).removeprefix('torch.')}"
    try:
        actual = _results(kernel, small_args, small_kwargs)
        error = _error(actual, expected)
    except (NotCoveredError, torch.OutOfMemoryError):
        raise
    except Exception as failure:  # whatever a compiler or a driver raises is the kernel's failure
        lines = str(failure).strip().splitlines() or [""]
        reason = f"{type(failure).__name__}: {lines[0]}"[:200]
        return KernelCheck(label, implementation, "failed", None, tolerance, reason)
    if error <= tolerance:
        return KernelCheck(label, implementation, "ok", error, tolerance)
    reason = f"wrong results: error {error:.2g}, allowed {tolerance:.2g}"
    return KernelCheck(label, implementation, "failed", error, tolerance, reason)


def signature(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What kind of call it is: equal for calls that one check speaks for."""
    dtypes = tuple(_dtype(value) for value in args)
    if name not in WEIGHTS:
        return dtypes
    shapes = tuple(args[i].shape for i in WEIGHTS[name])
    return dtypes, shapes, tuple(_trait(value) for value in kwargs.values())


def _dtype(value: Tensor | Sequence[Tensor] | None) -> torch.dtype | None:
    """A tensor's; of a list its first's; None without any."""
    if value is None or isinstance(value, Tensor):
        return None if value is None else value.dtype
    return value[0].dtype if value else None


def _trait(value: Any) -> Hashable:
    return value.dtype if isinstance(value, Tensor) else value


def _check_triton(device: torch.device) -> list[KernelCheck]:
    from . import reference as loss
    from .gemm import conv, fused

    portable = _functions(conv, fused, loss)
    reason = ""
    kernels: Mapping[str, Op] = {}
    try:
        from .cuda.load import load

        kernels = load(device)
    except UnavailableError as error:
        reason = str(error)
    checks = []
    for name, dtype, calls in example_inputs(device):
        if name in kernels and name in portable:
            with torch.cuda.device(device):
                checks.append(
                    _check_all(name, "triton", kernels[name], portable[name], dtype, calls)
                )
        elif name in portable:
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            checks.append(
                KernelCheck(label, "triton", "unavailable", None, TOLERANCES[dtype], reason)
            )
    return checks


def _check_all(
    name: str,
    implementation: str,
    kernel: Op,
    portable: Op,
    dtype: torch.dtype,
    calls: Sequence[Arguments],
) -> KernelCheck:
    """The worst of several calls."""
    checks = [
        check_call(name, implementation, kernel, portable, args, kwargs) for args, kwargs in calls
    ]
    return max(checks, key=severity)


def severity(check: KernelCheck) -> tuple[bool, float]:
    """Orders checks: failures last, then by error."""
    return check.status != "ok", math.inf if check.error is None else check.error


def _functions(*modules: Any) -> dict[str, Op]:
    return {
        name: getattr(module, name)
        for module in modules
        for name in SHRINK
        if hasattr(module, name)
    }


def _first(args: tuple[Any, ...]) -> Tensor:
    first = args[0]
    tensor: Tensor = first if isinstance(first, Tensor) else first[0]
    return tensor


def _converted(value: Any) -> Any:
    """The same structure with every tensor as a float64 copy on the host."""
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float64, copy=True)
    if isinstance(value, dict):
        return {name: _converted(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_converted(item) for item in value)
    return value


def _results(op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The op's tensors; those it was given if it works in place."""
    output = op(*args, **kwargs)
    return list(_tensors(args if output is None else output))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    worst = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        scale = theirs.abs().max().clamp_min(1e-30)
        error = ((ours.to("cpu", torch.float64) - theirs).abs().max() / scale).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
