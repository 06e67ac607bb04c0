"""The device of a run: which one, how much memory there is, and copies to and from it.

Copies are asynchronous on CUDA: an upload packs its tensors into pinned memory and copies it on a
stream of its own; downloads have another. Copies overlap the computation, which waits on the device
and never on the host. Torch rounds pinned blocks up to powers of two, so that a large copy takes
several, of which little is left over. On other devices tensors are passed on as they are, or
copied at once.
"""

import logging
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import DeviceError, OptionError
from denoise_batch.kernels.errors import first_line, is_out_of_memory

logger = logging.getLogger("denoise_batch.device")

MIB = 1 << 20
SYSTEM = Path("/")  # holds proc and sys; another folder in tests
# Upper bounds where memory abounds: more makes nothing faster.
_MOST_ON_CPU = 1200 * MIB
_MOST_IN_FLIGHT_ON_CPU = 1024 * MIB
_IN_FLIGHT_PER_CORE = 64 * MIB  # more would only be read sooner than it is needed
_MOST_IN_FLIGHT = 4096 * MIB
_LEAST = 128 * MIB
APPLE_GPU = "Apple GPU"  # torch does not tell its model
_CACHE = ("inactive_file", "active_file")


def resolve_device(name: str) -> torch.device:
    """Return the available device that `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu` names.

    `auto` picks the first of CUDA, XPU, MPS and CPU that is available and computes. A named device
    is never replaced by another one.

    Raises:
        OptionError: `name` is not a device name.
        DeviceError: the device is not available, or computes nothing: full, busy, unsupported.
    """
    has_mps, has_xpu = torch.backends.mps.is_available(), torch.xpu.is_available()
    if name == "auto":
        is_there = {"cuda": torch.cuda.is_available(), "xpu": has_xpu, "mps": has_mps}
        for kind in [kind for kind, is_available in is_there.items() if is_available]:
            try:
                return _tried(torch.device(kind))
            except DeviceError as error:
                logger.warning("%s; --device auto takes the next one", error)
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:(0|[1-9][0-9]{0,3}))?", name):
        raise OptionError(f"--device {name!r}: choose auto, cpu, cuda, cuda:N, mps or xpu")
    if kind == "cuda":
        _check_cuda(name, int(index or 0))
    if kind == "mps" and not has_mps:
        raise DeviceError("--device mps: this machine has no Apple GPU; use --device cpu")
    if kind == "xpu" and not has_xpu:
        raise DeviceError(f"--device {name}: PyTorch finds no Intel GPU; use --device cpu")
    return torch.device(name) if kind == "cpu" else _tried(torch.device(name))


def _tried(device: torch.device) -> torch.device:
    """Return the device once it has computed something: that it is listed does not say it can.

    Raises:
        DeviceError: it did not.
    """
    with device_failures(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of several lines, about what is then an error
        try:
            if torch.ones(2, device=device).add_(1).sum().item() == 4:
                return device
            reason = "1 + 1 is not 2"
        except (AssertionError, NotImplementedError) as error:  # torch was built without it
            reason = first_line(error)
    raise DeviceError(f"--device {device}: it does not compute ({reason}); use --device cpu")


@contextmanager
def device_failures(device: torch.device | str, kept: str = "") -> Iterator[None]:
    """Turn what a device's driver, its libraries and its memory raise inside into one line.

    Args:
        device: where the work inside computes.
        kept: what is not lost by it, for the user.

    Raises:
        DeviceError: it failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        if not (problem := _device_problem(error)):
            raise
        reason = f"--device {device}: {problem[0]} ({first_line(error)})"
        raise DeviceError("; ".join(filter(None, (reason, kept, problem[1])))) from error


def _device_problem(error: BaseException) -> tuple[str, str] | None:
    """(What a device's error means, how to mend it); None for an error of another kind."""
    is_deferred = isinstance(error, torch.cuda.DeferredCudaCallError)  # no RuntimeError
    if is_deferred and error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if is_out_of_memory(error):
        mend = "end what else uses it, ask for less at once, or choose another --device"
        return "out of memory", mend
    if re.search(r"no kernel image|invalid device function|unsupported toolchain", text):
        built_for = ", ".join(torch.cuda.get_arch_list()) or "no GPU"
        mend = f"install one that has (this one: {built_for}), or use --device cpu"
        return "this PyTorch has no code for this GPU", mend
    if re.search(r"busy or unavailable|device\(s\) are busy|exclusive", text):
        return "another process holds it", "wait for it, or choose another --device"
    is_runtime_s = isinstance(error, getattr(torch, "AcceleratorError", ()))  # since torch 2.8
    if is_deferred or is_runtime_s or _DRIVER.search(text):
        return "it failed", "look at it with nvidia-smi, or use --device cpu"
    return None


_DRIVER = re.compile(
    r"(CUDA|HIP|XPU|MPS|NCCL|cuDNN|MIOpen|cuFFT|CUDA driver|nvrtc|CUDA-capable) ?(error|device)"
    r"|(CUBLAS|CUDNN|CUFFT|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS)_STATUS|Triton Error|MPS backend"
    r"|UR_RESULT_ERROR|NVIDIA driver",
    re.IGNORECASE,
)


def precision_on(name: str, device: torch.device) -> str:
    """Resolve "auto": bf16 on GPUs with tensor cores for it, else fp16 on those with some, or fp32.

    Raises:
        OptionError: low precision on a processor.
    """
    if name == "auto":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        if (7, 0) <= capability < (8, 0):  # V100, T4
            logger.warning(
                "fp16 on %s, which has no bf16; where it overflows, float32 computes again "
                "(--precision fp32 always does)",
                device,
            )
            return "fp16"
        return "bf16" if capability >= (8, 0) else "fp32"
    if name != "fp32" and device.type == "cpu":
        raise OptionError(
            f"--precision {name} on a processor: float32 is both faster and exact there; "
            "use --precision fp32, or a GPU (--device)"
        )
    return name


def torch_dtype(precision: str) -> torch.dtype | None:
    """Return the compute dtype of a precision; None for "fp32", the dtype of the parameters."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def describe_device(name: str) -> str:
    """Describe a device: the GPU's model, or the processor's and torch's number of threads.

    Equal devices in a list ("cuda:0, cuda:1") are counted: "2 × NVIDIA H100". The name of anything
    that is not a device of this machine, such as a cluster, is returned unchanged.
    """
    try:
        counts = Counter(_words(torch.device(one)) for one in name.split(", "))
    # From torch: not a device, or a missing GPU, or one that fails.
    except (AssertionError, RuntimeError, torch.cuda.DeferredCudaCallError):
        return name
    return ", ".join(f"{n} × {words}" if n > 1 else words for words, n in counts.items())


def _words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    if device.type == "mps":
        return APPLE_GPU
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """Return the processor's model name, or its architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _check_cuda(name: str, index: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        reason = (
            "this PyTorch was built without CUDA; install a CUDA build of torch"
            if torch.version.cuda is None
            else "PyTorch finds no usable NVIDIA GPU; check the driver with nvidia-smi"
        )
        raise DeviceError(f"--device {name}: {reason}, or use --device cpu")
    if index >= count:
        raise DeviceError(f"--device {name}: there are {count} CUDA devices, counted from cuda:0")


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Make torch use bit-reproducible algorithms inside the context.

    Raises:
        DeviceError: an operation has no deterministic algorithm on this device.
    """
    before = torch.are_deterministic_algorithms_enabled()
    # torch swaps this module for an object with a property, which type checkers cannot see.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    # cuBLAS reads it when it creates its first handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # our code never reads unwritten memory
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise DeviceError(f"--deterministic: {error}; leave the option out here") from error
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_flight_bytes(device: torch.device) -> int:
    """Bytes of host memory that decoded and denoised files may take together."""
    most = _MOST_IN_FLIGHT
    if device.type == "cpu":
        most = min(_MOST_IN_FLIGHT_ON_CPU, cores() * _IN_FLIGHT_PER_CORE)
    return max(_LEAST, min(most, available_host_bytes() // 4))


def compute_bytes(device: torch.device) -> int:
    """Bytes that one pass of the network may take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(_LEAST, (free + cached) * 6 // 10)
    return max(_LEAST, min(_MOST_ON_CPU, available_host_bytes() // 4))


def available_host_bytes() -> int:
    """Memory that this process may still take, or half of the machine's if no system tells."""
    free = free_host_bytes()
    if free is not None:
        return free
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if _HAS_SYSCONF else 0
    return pages or 4096 * MIB


def free_host_bytes() -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    The least of what the machine has free, of what every control group above the process still
    allows (Docker, Kubernetes, Slurm, systemd), and of the process's own limits (`ulimit -v`).
    """
    found = [*_machine_bytes(), *_cgroup_bytes(), *_process_bytes()]
    return max(0, min(found)) if found else None


def _machine_bytes() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (SYSTEM / "proc/meminfo").read_text().splitlines()
        entry = next(line for line in lines if line.startswith("MemAvailable"))
        yield int(entry.split()[1]) * 1024


def _process_bytes() -> Iterator[int]:
    """Bytes that the limits of address space and data leave."""
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError, ValueError, IndexError):
        pages = [int(word) for word in (SYSTEM / "proc/self/statm").read_text().split()]
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                yield limit - used * resource.getpagesize()


def _cgroup_bytes() -> Iterator[int]:
    """Bytes that each control group with a memory limit (version 2, then 1) still allows."""
    try:
        lines = (SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # a group's name need not be text
        lines = []
    groups = [line.split(":", 2)[1:] for line in lines if line.count(":") >= 2]
    cgroups = SYSTEM / "sys/fs/cgroup"
    for top, limits, used, names in (
        (
            cgroups,
            ("memory.max", "memory.high"),
            "memory.current",
            [name for kind, name in groups if not kind],
        ),
        (
            cgroups / "memory",
            ("memory.limit_in_bytes",),
            "memory.usage_in_bytes",
            [name for kind, name in groups if "memory" in kind.split(",")],
        ),
    ):
        # Inside a container the group's own name may not exist: its root is mounted here.
        own = top.joinpath(*Path(names[0] if names else "").parts[1:])
        for folder in (own, *own.parents)[: len(own.parts) - len(top.parts) + 1]:
            allowed = [*map(_number, (folder / limit for limit in limits))]
            said = _statistics(folder)
            # Of version 1: the least limit above, which may be out of a container's sight.
            allowed.append(said.get("hierarchical_memory_limit"))
            current = _number(folder / used)
            if current is not None:
                # The page cache counts as used, and is given up when asked.
                cache = sum(said.get("total_" + kind, said.get(kind, 0)) for kind in _CACHE)
                yield from (most - current + cache for most in allowed if most is not None)


def _number(file: Path) -> int | None:
    """What a file of a control group says; None if there is none, or no limit ("max")."""
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _statistics(group: Path) -> dict[str, int]:
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return {}


_HAS_SYSCONF = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names


_ALIGNMENT = 16  # bytes; every tensor of a block starts at a multiple


def pinned_sizes(size: int) -> list[int]:
    """Sizes of the blocks for `size` bytes of pinned memory: one up to a mebibyte, else at most 4.

    What torch rounds them up to is then at most an eighth more than they hold.
    """
    sizes, left = [], size
    while left > MIB and (1 << (left - 1).bit_length()) - left > size // 8:
        sizes.append(1 << (left.bit_length() - 1))
        left -= sizes[-1]
    return [*sizes, left]


class Split:
    """A tensor that arrives in several pinned blocks, which are given back once it is whole.

    Args:
        blocks: its bytes.
        like: a tensor of its type and shape.
    """

    def __init__(self, blocks: Sequence[Tensor], like: Tensor) -> None:
        self._blocks = blocks
        self._dtype, self._shape = like.dtype, like.shape
        self._whole: Tensor | None = None
        self._lock = threading.Lock()

    def whole(self) -> Tensor:
        """Return the tensor, after the copies; every time the same one."""
        with self._lock:
            if self._whole is None:
                joined = torch.cat(list(self._blocks))
                self._whole, self._blocks = joined.view(self._dtype).view(self._shape), ()
            return self._whole


@dataclass(frozen=True)
class Download:
    """Tensors that are being copied to the host.

    Attributes:
        tensors: on the host; do not read them before `wait`.
        event: on CUDA, recorded after the copies.
    """

    tensors: tuple[Tensor | Split, ...]
    event: Any = None

    def arrive(self) -> None:
        """Wait for the copies."""
        if self.event is not None:
            self.event.synchronize()

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the copies and return the tensors; any thread may call this, repeatedly."""
        self.arrive()
        return tuple(x.whole() if isinstance(x, Split) else x for x in self.tensors)


class Transfer:
    """Copies between the host and one device.

    Args:
        device: to copy to and from.
        is_packed: pack uploads; by default on CUDA only.
    """

    def __init__(self, device: torch.device, *, is_packed: bool | None = None) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._is_packed = self._is_cuda if is_packed is None else is_packed
        self._up = _stream(device)
        self._down = _stream(device)

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copy tensors to the device; work that is queued there after this call may read them."""
        if not self._is_packed:
            return [tensor.to(self.device) for tensor in tensors]
        blocks, places = self._packed(tensors)
        with self._on(self._up):
            there = self._sent(blocks)
        if self._up is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._up)
            there.record_stream(current)
        return [
            there[start : start + size].view(tensor.dtype).view(tensor.shape)
            for tensor, (start, size) in zip(tensors, places, strict=True)
        ]

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Start copying to the host what is queued on the device so far."""
        if self._down is None:
            return Download(tuple(tensor.to("cpu").contiguous() for tensor in tensors))
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        event = _event(is_timed=False)
        arrived = []
        with self._on(self._down):
            for tensor in tensors:
                arrived.append(self._received(tensor))
                tensor.record_stream(self._down)
            event.record(self._down)
        return Download(tuple(arrived), event)

    def mark(self) -> "Mark":
        """Mark this moment of the computation, to measure time between marks."""
        if not self._is_cuda:
            return Mark(time.perf_counter())
        event = _event(is_timed=True)
        event.record(torch.cuda.current_stream(self.device))
        return Mark(0.0, event)

    def _sent(self, blocks: Sequence[Tensor]) -> Tensor:
        """The blocks' bytes as one tensor on the device."""
        if len(blocks) == 1:
            return blocks[0].to(self.device, non_blocking=True)
        there = torch.empty(sum(map(len, blocks)), dtype=torch.uint8, device=self.device)
        parts = torch.split(there, [len(block) for block in blocks])
        for part, block in zip(parts, blocks, strict=True):
            part.copy_(block, non_blocking=True)
        return there

    def _received(self, tensor: Tensor) -> Tensor | Split:
        """A tensor on its way to pinned memory."""
        sizes = pinned_sizes(tensor.numel() * tensor.element_size())
        if len(sizes) == 1:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return host.copy_(tensor, non_blocking=True)
        blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
        parts = torch.split(tensor.contiguous().view(-1).view(torch.uint8), sizes)
        for block, part in zip(blocks, parts, strict=True):
            block.copy_(part, non_blocking=True)
        return Split(blocks, tensor)

    def _packed(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Pack all bytes into pinned blocks; return these and each tensor's (start, size)."""
        places, total = [], 0
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            places.append((total, size))
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
        sizes = pinned_sizes(total) if self._is_cuda else [total]
        # The caching allocator hands a pinned block out again only when its copies are done.
        blocks = [torch.empty(n, dtype=torch.uint8, pin_memory=self._is_cuda) for n in sizes]
        begins = [0, *accumulate(sizes)]
        for tensor, (start, size) in zip(tensors, places, strict=True):
            content = tensor.contiguous().view(-1).view(torch.uint8)
            for block, begin in zip(blocks, begins, strict=False):
                first, last = max(start, begin), min(start + size, begin + len(block))
                if first < last:
                    block[first - begin : last - begin] = content[first - start : last - start]
        return blocks, places

    def _on(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream) if stream is not None else nullcontext()


@dataclass(frozen=True)
class Mark:
    """A moment of the computation; on CUDA the device's, known once it has passed."""

    host_seconds: float
    event: Any = None

    def seconds_until(self, later: "Mark") -> float:
        """Seconds between two marks that have both passed."""
        if self.event is None:
            return later.host_seconds - self.host_seconds
        return float(self.event.elapsed_time(later.event)) / 1000


def _stream(device: torch.device) -> Any:
    # torch does not type its streams and events.
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _event(*, is_timed: bool) -> Any:
    # Blocking: who waits for it sleeps, and leaves its core to the decoders.
    return torch.cuda.Event(enable_timing=is_timed, blocking=True)  # type: ignore[no-untyped-call]
