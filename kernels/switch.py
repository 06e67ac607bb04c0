"""Which implementation does a call's work: a Triton kernel that has proven itself, or `gemm/`.

A kernel proves itself on its first call of a kind (same op, precision, channels, kernel and stride,
whatever the image's size): it is run on a small seeded problem of that kind beside `gemm/`, see
`selfcheck`. A kind that it declines is `gemm/`'s from then on. One that raises or disagrees is
switched off for the rest of the process, with one line in the log that names it, and `gemm/` does
its work. Where `gemm/` raises as well the call is at fault, and no kernel. Ops, devices and kernels
are all given from outside, so tests can simulate a failing kernel without a GPU.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from .errors import (
    DenoiseBatchError,
    DeviceError,
    NotCoveredError,
    UnavailableError,
    UncheckableError,
)
from .selfcheck import check_call, signature

P = ParamSpec("P")
R = TypeVar("R")
Op = Callable[..., Any]
Choice = Literal["auto", "triton"]

logger = logging.getLogger("denoise_batch.kernels")


class KernelDispatcher:
    """Decides for every call.

    Args:
        choice: "auto", or "triton" for kernels without self-check and without a way out.
        load: the kernels of a device by the ops' names; called once a device.
        is_for_kernels: whether tensors of this device are the kernels' business at all.

    Attributes:
        off: why kernels were switched off, by op.
    """

    def __init__(
        self,
        choice: Choice,
        load: Callable[[torch.device], Mapping[str, Op]],
        is_for_kernels: Callable[[torch.device], bool] = lambda device: device.type == "cuda",
    ) -> None:
        self.choice = choice
        self.off: dict[str, str] = {}
        self._load = load
        self._is_for_kernels = is_for_kernels
        self._kernels: dict[torch.device, Mapping[str, Op]] = {}
        self._passed: dict[Hashable, bool] = {}

    def op(self, portable: Callable[P, R]) -> Callable[P, R]:
        """`portable` as an op: the same function, done by a kernel of its name where one may."""
        name = portable.__name__

        @functools.wraps(portable)
        def switched(*args: P.args, **kwargs: P.kwargs) -> R:
            device = _first_tensor(args).device
            if not self._is_for_kernels(device):
                return portable(*args, **kwargs)
            result: R = self._call(name, portable, device, args, kwargs)
            return result

        return switched

    def kernel(self, name: str, device: torch.device) -> Op | None:
        """The kernel that may do the work of op `name`, if any.

        Raises:
            DeviceError: "triton" was asked for and there is none for this device.
        """
        if name in self.off or not self._is_for_kernels(device):
            return None
        if device not in self._kernels:
            try:
                self._kernels[device] = self._load(device)
            except UnavailableError as reason:
                if self.choice == "triton":
                    raise DeviceError(
                        f"DENOISE_BATCH_KERNELS=triton: {reason}; unset it"
                    ) from reason
                self._kernels[device] = {}
        return self._kernels[device].get(name)

    def _call(
        self, name: str, portable: Op, device: torch.device, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        kernel = self.kernel(name, device)
        if kernel is None:
            return portable(*args, **kwargs)
        try:
            # Triton launches on the current device, which need not be the tensors'.
            with torch.cuda.device_of(_first_tensor(args)):  # type: ignore[no-untyped-call]
                if self._has_passed(name, kernel, portable, device, args, kwargs):
                    return kernel(*args, **kwargs)
        except NotCoveredError:
            pass
        except (DenoiseBatchError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a compiler's or a driver's own: gemm/ can do without them
            if self.choice == "triton":
                raise DeviceError(f"Triton kernel {name} failed on {device}: {error}") from error
            # First: if it raises too, a good kernel stays on.
            result = portable(*args, **kwargs)
            self._turn_off(name, device, f"{type(error).__name__}: {_first_line(error)}")
            return result
        return portable(*args, **kwargs)

    def _has_passed(
        self,
        name: str,
        kernel: Op,
        portable: Op,
        device: torch.device,
        args: Any,
        kwargs: dict[str, Any],
    ) -> bool:
        if self.choice == "triton":
            return True
        key = (name, device, signature(name, args, kwargs))
        if key not in self._passed:
            try:
                check = check_call(name, "triton", kernel, portable, args, kwargs)
            except NotCoveredError:
                self._passed[key] = False
                return False
            except UncheckableError:
                return False  # `gemm/` says what is wrong; right calls of this kind may follow
            if check.status != "ok":
                self._turn_off(name, device, check.reason)
                return False
            self._passed[key] = True
        return self._passed[key]

    def _turn_off(self, name: str, device: torch.device, reason: str) -> None:
        self.off[name] = reason
        logger.warning(
            "Triton kernel %s is switched off on %s (%s); torch's matrix products do its work",
            name,
            device,
            reason,
        )


def _first_tensor(args: Any) -> Tensor:
    """The tensor whose device decides: the first, or the first of a list."""
    first = args[0]
    tensor: Tensor = first if isinstance(first, Tensor) else first[0]
    return tensor


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
