"""The device that a run asked for, or a clear error."""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from denoise_batch.kernels import DeviceError, OptionError


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a device that is there.

    `auto` takes CUDA, else Apple's MPS, else the CPU. A device asked for by name is never replaced
    by another.

    Raises:
        OptionError: not a device's name.
        DeviceError: the device is not there.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?", name):
        raise OptionError(f"--device {name!r}: choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        _check_cuda(name, int(index or 0))
    if kind == "mps" and not has_mps:
        raise DeviceError("--device mps: this machine has no Apple GPU; use --device cpu")
    return torch.device(name)


def describe_device(name: str) -> str:
    """A device in words: the GPU's name, or the processor and the threads that torch uses.

    Several ("cuda:0, cuda:1") are counted by their kind. What is no device of this machine, such as
    a cluster, has no other words than its name.
    """
    try:
        counts = Counter(_words(torch.device(one)) for one in name.split(", "))
    except (AssertionError, RuntimeError):  # torch's, for a name, and for a GPU that is not there
        return name
    return ", ".join(f"{n} × {words}" if n > 1 else words for words, n in counts.items())


def _words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """The processor's name, as well as the system knows it."""
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
        raise DeviceError(f"--device {name}: there are {count} CUDA devices, the first is cuda:0")


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside, torch takes algorithms that give the same bits every time, or raises.

    Raises:
        DeviceError: an operation has no such algorithm on this device.
    """
    before = torch.are_deterministic_algorithms_enabled()
    # torch swaps this module for an object with a property, which type checkers cannot see.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # ours is always written
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise DeviceError(f"--deterministic: {error}; leave the option out here") from error
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
