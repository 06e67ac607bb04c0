"""Which implementation computes: one table of ops for each device, made when it is first used.

    ops_for(input.device).conv2d_forward(input, weight, bias, geometry)

Every op is a pure function of tensors; `reference` says what it computes. The environment variable
DENOISE_BATCH_KERNELS, read when a table is made, chooses the implementation:

    auto       the default: on CUDA the Triton kernels and on a processor the native ones that pass
               their self-check, else gemm
    triton     on CUDA the Triton kernels without self-check; their errors are raised
    native     on a processor the native kernels without self-check; an error if there are none
    gemm       torch's matrix products, on any device
    reference  the specification, to compare with
"""

import importlib.util
import logging
import os
import subprocess
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from . import geometry, guard, reference, samples
from .cuda.tiles import rows_of_call, trial
from .errors import (
    DenoiseBatchError,
    DeviceError,
    NotCoveredError,
    OptionError,
    UnavailableError,
    UncheckableError,
    first_line,
    is_out_of_memory,
)
from .gemm import conv, fused, optim, pointwise
from .kernel_check import Op, check_call, example_inputs, kind_in_words, signature
from .native.library import load_library
from .native.ops import NativeOps

logger = logging.getLogger("denoise_batch.kernels")

Gradients = tuple[Tensor | None, Tensor, Tensor]

CHOICES = ("auto", "triton", "native", "gemm", "reference")
NATIVE_OPS = (
    "conv2d_forward",
    "conv2d_backward",
    "conv_transpose2d_forward",
    "conv_transpose2d_backward",
    "conv2d_fused",
    "conv_transpose2d_fused",
    "residual_pair",
    "sigmoid_forward",
    "sigmoid_forward_",
    "mse_loss",
    "normalize",
    "pixel_unshuffle",
    "pixel_shuffle",
    "sgd_step",
    "orthogonalize",
)
GEMM_IN_WORDS = "torch matrix products"
COMPILING = (
    "Triton compiles the kernels, which takes a while: once for a model of GPU, if its cache is "
    "kept (TRITON_CACHE_DIR)"
)
COMPILED_IN_WORDS = "compiled in"
_WORDS = {
    "native": "native kernels",
    "triton": "Triton kernels",
    "gemm": GEMM_IN_WORDS,
    "reference": "the reference implementation",
}
MOST_NAMED = 6  # kernels that are off, in a line
_MEND = "update the C++ compiler and reinstall"
# Ampere: bfloat16 on tensor cores, asynchronous copies, 99 KiB of shared memory and more.
MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Ops:
    """Every op that has more than one implementation, as one device computes it.

    Attributes:
        implementation: "reference", "gemm", "triton" or "native".
        detail: which variant of it, or why it is not a faster one; for the user.
        disabled: why kernels were disabled: native ones by op, Triton's by op, precision and
            weight.
        compiled: what was compiled so far.
    """

    implementation: str
    conv2d_forward: Callable[..., Tensor]
    conv2d_backward: Callable[..., Gradients]
    conv_transpose2d_forward: Callable[..., Tensor]
    conv_transpose2d_backward: Callable[..., Gradients]
    sigmoid_forward: Callable[[Tensor], Tensor]
    sigmoid_forward_: Callable[[Tensor], Tensor]
    sigmoid_backward: Callable[[Tensor, Tensor], Tensor]
    upsample_nearest2d_forward: Callable[..., Tensor]
    upsample_nearest2d_backward: Callable[..., Tensor]
    normalize: Callable[..., Tensor] = reference.normalize
    pixel_unshuffle: Callable[[Tensor, int], Tensor] = geometry.pixel_unshuffle
    pixel_shuffle: Callable[[Tensor, int], Tensor] = geometry.pixel_shuffle
    mse_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = reference.mse_loss
    sgd_step: Callable[..., list[Tensor]] = reference.sgd_step
    orthogonalize: Callable[..., list[Tensor]] = reference.orthogonalize
    residual_pair: Callable[..., Tensor] = fused.residual_pair
    conv2d_fused: Callable[..., Tensor] = fused.conv2d_fused
    conv_transpose2d_fused: Callable[..., Tensor] = fused.conv_transpose2d_fused
    conv2d_image: Callable[..., Tensor] = fused.conv2d_image
    unit_padded: Callable[..., Tensor] = samples.unit_padded
    stored_samples: Callable[..., tuple[Tensor, Tensor]] = samples.stored_samples
    limit_residual: Callable[..., Tensor] = guard.limit_residual
    detail: str = ""
    disabled: Mapping[str, str] = field(default_factory=dict)
    compiled: "Compilations | None" = None

    @property
    def in_words(self) -> str:
        """What computes, in one line, and why nothing faster does; for logs and reports."""
        detail = self.detail or (self.compiled.in_words if self.compiled else "")
        words = _WORDS[self.implementation] + (f" ({detail})" if detail else "")
        if not self.disabled:
            return words
        names, reason = list(self.disabled), next(iter(self.disabled.values()))
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        off = ", ".join(names[:MOST_NAMED]) + more
        return f"{words}, and {GEMM_IN_WORDS} for {off} ({reason})"

    @property
    def has_fused_kernels(self) -> bool:
        """Whether a convolution and its neighbours are one launch in inference."""
        return self.implementation in ("triton", "native") and "conv2d_fused" not in self.disabled

    @property
    def has_fused_upsample(self) -> bool:
        """Whether such a launch upsamples what it reads, at no cost."""
        return self.implementation == "triton"

    @property
    def has_fused_ends(self) -> bool:
        """Whether a network's first and last launch do what stands between them and images."""
        return self.conv2d_image is not fused.conv2d_image

    @property
    def has_sample_kernels(self) -> bool:
        """Whether a file's samples become padded values, and these samples, in one launch each."""
        return self.unit_padded is not samples.unit_padded

    @property
    def has_residual_pair(self) -> bool:
        """Whether a residual body of two convolutions is one call."""
        return self.implementation == "native" and "residual_pair" not in self.disabled


REFERENCE = Ops(
    "reference",
    reference.conv2d_forward,
    reference.conv2d_backward,
    reference.conv_transpose2d_forward,
    reference.conv_transpose2d_backward,
    reference.sigmoid_forward,
    reference.sigmoid_forward_,
    reference.sigmoid_backward,
    reference.upsample_nearest2d_forward,
    reference.upsample_nearest2d_backward,
)
GEMM = Ops(
    "gemm",
    conv.conv2d_forward,
    conv.conv2d_backward,
    conv.conv_transpose2d_forward,
    conv.conv_transpose2d_backward,
    torch.sigmoid,
    torch.sigmoid_,
    torch.ops.aten.sigmoid_backward,
    pointwise.upsample_nearest2d_forward,
    reference.upsample_nearest2d_backward,
    normalize=pointwise.normalize,
)
# Where each operation is a launch.
GEMM_ON_GPU = replace(GEMM, orthogonalize=optim.orthogonalize)


class Compilations:
    """What Triton compiles in this process: the log says so once, since the first run waits for it.

    Attributes:
        count: of kernels.
        seconds: that they took together.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def listen(self) -> "Compilations":
        """Be told of compilations, where this version of Triton tells; return this object."""
        compiler = getattr(importlib.import_module("triton"), "knobs", None)
        if compiler is not None:
            compiler.compilation.listener = self
        return self

    def __call__(self, *, times: Any, cache_hit: bool, **rest: Any) -> None:
        """Triton's compilation listener; `times` are in microseconds."""
        if cache_hit:
            return
        if not self.count:
            logger.warning(COMPILING)
        self.count += 1
        self.seconds += times.total / 1e6

    @property
    def in_words(self) -> str:
        """How many, and how long it took; "" if none."""
        return f"{self.count} {COMPILED_IN_WORDS} {self.seconds:.0f} s" if self.count else ""


COMPILATIONS = Compilations()


@cache
def ops_for(device: torch.device) -> Ops:
    """The ops for tensors on `device`; decided once for each device.

    Raises:
        OptionError: DENOISE_BATCH_KERNELS is none of the choices.
        DeviceError: it asks for kernels that there are not for this device.
    """
    if device.type == "cuda" and device.index is None:  # one table, whose faults all may read
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return ops_for(torch.device("cuda", index))
    choice, gemm = chosen_kernels(), portable(device)
    if choice in ("reference", "gemm"):
        forced = REFERENCE if choice == "reference" else gemm
        return replace(forced, detail=f"DENOISE_BATCH_KERNELS={choice}")
    try:
        if may_have_kernels(device):
            kernels = load_kernels(device)
            return TritonKernels(device, kernels, is_checked=choice != "triton").ops
        if device.type == "cpu":
            return native_table(load_native(), is_checked=choice != "native")
    except UnavailableError as reason:
        if choice == ("native" if device.type == "cpu" else "triton"):
            raise DeviceError(f"DENOISE_BATCH_KERNELS={choice}: {reason}; unset it") from reason
        kind = "native" if device.type == "cpu" else "Triton"
        logger.warning(
            f"{GEMM_IN_WORDS} compute, which are slower: no %s kernels: %s", kind, reason
        )
        return replace(gemm, detail=f"no {kind} kernels: {reason}")
    return gemm


def portable(device: torch.device) -> Ops:
    """gemm's ops for a device."""
    return GEMM if device.type == "cpu" else GEMM_ON_GPU


def chosen_kernels() -> str:
    """Read DENOISE_BATCH_KERNELS.

    Raises:
        OptionError: none of the choices.
    """
    choice = os.environ.get("DENOISE_BATCH_KERNELS", "auto")
    if choice not in CHOICES:
        raise OptionError(
            f"DENOISE_BATCH_KERNELS={choice!r}: choose auto, triton, native, gemm or reference"
        )
    return choice


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def may_have_kernels(device: torch.device) -> bool:
    """Whether there are Triton kernels for this kind of device."""
    return device.type == "cuda" or (device.type == "cpu" and is_interpreted())


def load_kernels(device: torch.device) -> Mapping[str, Op]:
    """The Triton kernels' launchers by the names of their ops; imports triton and tries one.

    Raises:
        UnavailableError: triton is missing or does not work here, or the GPU is too old.
    """
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("triton is not installed (pip install 'denoise-batch[gpu]')")
    if not is_interpreted():
        capability = torch.cuda.get_device_capability(device)
        if capability < MINIMUM_CAPABILITY:
            need, found = (".".join(map(str, c)) for c in (MINIMUM_CAPABILITY, capability))
            raise UnavailableError(f"compute capability {found}, the kernels need {need}")
    try:
        kernels = launchers()
        if not is_interpreted():
            COMPILATIONS.listen()
            image = torch.zeros(4, device=device)
            with torch.cuda.device(device):
                kernels["mse_loss"](image, image)
    except Exception as error:  # whatever an import, a compiler or a file system raises
        if is_out_of_memory(error):
            raise
        raise UnavailableError(_why_triton_fails(error)) from error
    return kernels


def _why_triton_fails(error: Exception) -> str:
    """What Triton lacks here, and how to mend it: it compiles C and CUDA at the first use."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, ImportError):
        return f"triton cannot be imported ({reason}); install it again"
    if isinstance(error, subprocess.CalledProcessError | FileNotFoundError) or (
        "compiler" in str(error)
    ):
        mend = "it needs a C compiler and Python's headers (apt install gcc python3-dev)"
        return f"triton cannot compile ({reason}); {mend}"
    if isinstance(error, OSError) or "home directory" in str(error):
        return f"triton cannot keep what it compiles ({reason}); set TRITON_CACHE_DIR to a folder"
    return f"triton does not work here ({reason})"


def launchers() -> Mapping[str, Op]:
    """All of them, whatever the device can do."""
    from .cuda import conv, loss
    from .cuda import guard as limits
    from .cuda import samples as pages

    return {
        "conv2d_forward": conv.conv2d_forward,
        "conv2d_backward": conv.conv2d_backward,
        "conv_transpose2d_forward": conv.conv_transpose2d_forward,
        "conv_transpose2d_backward": conv.conv_transpose2d_backward,
        "conv2d_fused": conv.conv2d_fused,
        "conv_transpose2d_fused": conv.conv_transpose2d_fused,
        "conv2d_image": conv.conv2d_image,
        "unit_padded": pages.unit_padded,
        "stored_samples": pages.stored_samples,
        "limit_residual": limits.limit_residual,
        "mse_loss": loss.mse_loss,
    }


def load_native() -> NativeOps:
    """The native kernels for this processor.

    Raises:
        UnavailableError: there are none; the message says how to get them.
    """
    return NativeOps(*load_library())


def native_table(native: NativeOps, *, is_checked: bool) -> Ops:
    """gemm's ops, with a native kernel in place of every op that has one.

    Unless `is_checked` is False, every kernel first computes a few small problems beside gemm; one
    that raises or disagrees stays disabled; the log names them in one line. gemm also does what a
    kernel declines.
    """
    disabled: dict[str, str] = {}
    ops: dict[str, Any] = {}
    examples = example_inputs(torch.device("cpu"), [torch.float32])
    for name, calls in ((name, calls) for name, _, calls in examples if name in NATIVE_OPS):
        kernel, gemm = getattr(native, name), getattr(GEMM, name)
        checks = [check_call(name, "native", kernel, gemm, call, {}) for call in calls * is_checked]
        reason = next((check.reason for check in checks if check.status != "ok"), None)
        if reason is None:
            ops[name] = partial(_kernel_or_gemm, kernel, gemm)
        else:
            disabled[name] = f"{reason}: {_MEND}"
    if disabled:
        logger.warning(
            "native kernel%s %s disabled (%s); torch's matrix products do the work",
            "s" * (len(disabled) > 1),
            f"{', '.join(disabled)} {'are' if len(disabled) > 1 else 'is'}",
            next(iter(disabled.values())),
        )
    if not ops:
        reason = f"native kernels are disabled: {next(iter(disabled.values()))}"
        return replace(GEMM, detail=reason)
    table = replace(GEMM, implementation="native", detail=native.instruction_set, **ops)
    return replace(table, disabled=disabled)


def _kernel_or_gemm(kernel: Op, gemm: Op, *args: Any, **kwargs: Any) -> Any:
    try:
        return kernel(*args, **kwargs)
    except NotCoveredError:
        return gemm(*args, **kwargs)


class TritonKernels:
    """Triton kernels that prove themselves before they compute, with gemm to fall back on.

    A kernel is checked on its first call of a kind (same op, precision, channels, kernel, stride
    and tile, whatever else the image's size): it runs on a small seeded problem of that kind, with
    that tile, beside gemm, see `kernel_check`. A kind that it declines is gemm's from then on. A
    kind in which it raises or disagrees is disabled for the rest of the process, with one line in
    the log, and gemm does its work. Where gemm raises too, the call is at fault and the kernel
    stays.

    Args:
        device: where the tensors are.
        kernels: by the names of the ops that they compute.
        is_checked: False runs them without check and raises their errors.

    Attributes:
        ops: gemm's, with a kernel in place of every op that has one.
        disabled: why kernels were disabled, by kind of call, in words.
    """

    def __init__(
        self, device: torch.device, kernels: Mapping[str, Op], *, is_checked: bool = True
    ) -> None:
        self.device = device
        self.is_checked = is_checked
        self.disabled: dict[str, str] = {}
        self._is_on: dict[Hashable, bool] = {}
        ops: dict[str, Any] = {
            name: partial(self._call, name, kernel, getattr(GEMM, name))
            for name, kernel in kernels.items()
        }
        gemm = portable(device)
        table = replace(gemm, implementation="triton", disabled=self.disabled, **ops)
        self.ops = replace(table, compiled=COMPILATIONS)

    def _call(self, name: str, kernel: Op, gemm: Op, *args: Any, **kwargs: Any) -> Any:
        try:
            # Triton launches on the current device, which need not be the tensors'.
            with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
                if not self.is_checked or self._may_run(name, kernel, gemm, args, kwargs):
                    return kernel(*args, **kwargs)
        except NotCoveredError:
            pass
        except DenoiseBatchError:
            raise
        except Exception as error:  # whatever a compiler or a driver raises
            if is_out_of_memory(error):
                raise
            if not self.is_checked:
                raise DeviceError(
                    f"Triton kernel {name} failed on {self.device}: {error}"
                ) from error
            # First: if it raises too, a good kernel stays enabled.
            result = gemm(*args, **kwargs)
            self._disable(name, args, kwargs, f"{type(error).__name__}: {first_line(error)}")
            return result
        return gemm(*args, **kwargs)

    def _may_run(
        self, name: str, kernel: Op, gemm: Op, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether the kernel is on for calls of this kind: it is checked at the first one."""
        try:
            rows = rows_of_call(name, args, kwargs)
        except Exception:  # whatever a wrong call raises
            return False  # gemm says what is wrong
        kind = (rows, *signature(name, args, kwargs))
        if kind not in self._is_on:
            try:
                with trial(rows):
                    check = check_call(name, "triton", kernel, gemm, args, kwargs)
            except NotCoveredError:
                self._is_on[kind] = False
                return False
            except UncheckableError:
                return False  # gemm says what is wrong; right calls of this kind may follow
            if check.status != "ok":
                self._disable(name, args, kwargs, check.reason)
                return False
            self._is_on[kind] = True
        return self._is_on[kind]

    def _disable(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
    ) -> None:
        """Leave calls of this kind to gemm, and say so; once for calls of the same words."""
        self._is_on[rows_of_call(name, args, kwargs), *signature(name, args, kwargs)] = False
        words = kind_in_words(name, args, kwargs)
        if words in self.disabled:
            return
        self.disabled[words] = reason
        logger.warning(
            "Triton kernel %s is disabled on %s (%s); torch's matrix products do its work",
            words,
            self.device,
            reason,
        )
