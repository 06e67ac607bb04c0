"""A CUDA driver that compiles and launches nothing: the real launchers run on meta tensors.

Every launch is specialised as on a GPU (alignment, 32- or 64-bit integers) and compiled for the
chip that is pretended, down to machine code, whose registers, spills, shared memory and
instructions are read with the tools that Triton ships. What the real driver would refuse is an
error here too.
Not for a process with TRITON_INTERPRET=1.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import compiler
from triton.runtime.driver import driver

# Shared memory that one program may have, in bytes: 163, 99 and 227 KiB.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Binary:
    """What the machine code of one compiled kernel says.

    Attributes:
        kernel: its name.
        registers: of a thread.
        spills: bytes of local memory of a thread.
        shared: bytes that it asks for at launch.
        tensor_core: matrix instructions; this and the following are None if not disassembled.
        scalar_fma: float32 multiply-adds of the ordinary cores.
        wide_loads: 128-bit loads, direct or asynchronous.
        loads: all loads from global memory.
        wide_stores: 128-bit stores.
    """

    kernel: str
    registers: int
    spills: int
    shared: int
    tensor_core: int | None = None
    scalar_fma: int | None = None
    wide_loads: int | None = None
    loads: int | None = None
    wide_stores: int | None = None


@dataclass(frozen=True)
class Launch:
    """One launch: its grid, and the kernel that was compiled for it."""

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    binary: Binary


def read_binary(kernel: str, cubin: bytes, shared: int, *, is_disassembled: bool) -> Binary:
    """What it uses, and its instructions if wanted: they take as long as compiling."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name) if is_disassembled else ""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    if not is_disassembled:
        return Binary(kernel, registers, stack + local, shared)
    names = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.M)
    heads = [name.partition(".")[0] for name in names]

    def count(*wanted: str) -> int:
        return sum(head in wanted for head in heads)

    def wide(*wanted: str) -> int:
        return sum(n.partition(".")[0] in wanted and ".128" in n for n in names)

    matrix = sum(head.startswith("UTC") and head.endswith("MMA") for head in heads)
    return Binary(
        kernel,
        registers,
        stack + local,
        shared,
        count("HMMA", "HGMMA") + matrix,
        count("FFMA", "FFMA2"),
        wide("LDG", "LDGSTS"),
        count("LDG", "LDGSTS"),
        wide("STG"),
    )


def _tool(name: str, *arguments: str) -> str:
    result = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return result.stdout


class _Utils:
    """What the driver knows of a chip, and how it loads a binary."""

    def __init__(self, arch: int, is_disassembled: bool) -> None:
        self.arch = arch
        self.is_disassembled = is_disassembled
        self.binaries: dict[int, Binary] = {}

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED[self.arch],
            "multiprocessor_count": 108,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(
        self, name: str, cubin: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        binary = read_binary(name, cubin, shared, is_disassembled=self.is_disassembled)
        handle = len(self.binaries) + 1
        self.binaries[handle] = binary
        return handle, handle, binary.registers, binary.spills, 1024


class _Driver(DriverBase):  # type: ignore[misc]
    """As triton.backends.nvidia's, for one pretended chip."""

    def __init__(self, arch: int, is_disassembled: bool) -> None:
        self.arch = arch
        self.utils = _Utils(arch, is_disassembled)
        self.launches: list[Launch] = []
        launches, binaries = self.launches, self.utils.binaries

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                self.name, self.metadata = source.fn.__name__, metadata

            def __call__(
                self, x: int, y: int, z: int, stream: int, handle: int, *rest: Any
            ) -> None:
                assert x < 2**31, f"{self.name}: a grid of {x, y, z}"
                assert max(y, z) < 2**16, f"{self.name}: a grid of {x, y, z}"
                if x * y * z:
                    launches.append(
                        Launch(self.name, (x, y, z), self.metadata.num_warps, binaries[handle])
                    )

        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 2 * self.arch + self.utils.is_disassembled  # one cache of loaded kernels each

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError("nothing here can be timed")

    def get_device_interface(self) -> Any:
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self) -> Any:
        raise NotImplementedError

    def clear_cache(self, cache: Any) -> None:
        raise NotImplementedError


@lru_cache
def _driver(arch: int, is_disassembled: bool) -> _Driver:
    """One each: compiled kernels keep the driver that they were loaded by."""
    return _Driver(arch, is_disassembled)


@contextlib.contextmanager
def dry_run(arch: int, *, is_disassembled: bool) -> Iterator[list[Launch]]:
    """Inside, launches are compiled for sm_<arch> and listed."""
    compiler.max_shared_mem.cache_clear()
    pretended, active = _driver(arch, is_disassembled), driver._active
    pretended.launches.clear()
    driver.set_active(pretended)
    try:
        yield pretended.launches
    finally:
        driver._active = active
