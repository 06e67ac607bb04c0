"""What the machine can do at most, measured, and what a case needs at least.

A processor's bounds are float32 multiply-adds in registers and the memory's bandwidth, measured by
`peaks.cpp`, which the compiler and flags of the native kernels compile; a GPU's is torch.mm. What
convolutions need is what Winograd's F(4×4, 3×3) leaves of those with a 3×3 kernel and stride 1 (36
multiplications for 16 outputs instead of 144; Lavin and Gray, "Fast algorithms for convolutional
neural networks", 2016), and all multiplications of the others.
"""

import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from problem import Runner
from registry import DTYPES
from timing import alternate, turn
from torch.utils import flop_counter

from denoise_batch.kernels.native import build
from denoise_batch.kernels.native.library import is_supported

SOURCE = Path(__file__).with_name("peaks.cpp")
# Multiply-adds a register (some 20 ms), and MiB of each of triad's maps.
STEPS, MAP_MIB = 10_000_000, 128
QUICK_STEPS, QUICK_MAP_MIB = 100_000, 1
# (rows, inner, columns): one large product, and the shapes that convolutions turn into.
GEMMS = ((2048, 2048, 2048), (4096, 288, 32), (4096, 576, 64), (4096, 1152, 128), (4096, 1728, 192))
QUICK_GEMMS = ((256, 256, 256),)
aten = torch.ops.aten


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at most; empty or None where it is not known.

    Attributes:
        fma: of a processor, GFLOP/s of float32 multiply-adds by instruction set.
        bandwidth: of a processor's memory, GB/s.
        gemm: of a GPU, GFLOP/s of torch.mm by dtype and shape ("2048x2048x2048").
    """

    fma: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    gemm: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def bound_s(self, dtype: str, flops: "Flops") -> float | None:
        """Return the seconds that the arithmetic takes at the peak; None if either is unknown."""
        if self.fma and dtype == "float32" and flops.winograd:
            return flops.winograd / max(self.fma.values()) / 1e9
        if dtype in self.gemm and flops.direct:
            return flops.direct / max(self.gemm[dtype].values()) / 1e9
        return None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a call's products and convolutions; 0 if it has none.

    Attributes:
        direct: as defined.
        winograd: what F(4×4, 3×3) leaves of them.
    """

    direct: int = 0
    winograd: int = 0


def measure_peaks(
    device: torch.device, dtypes: Sequence[str], *, rounds: int, threads: int, is_quick: bool
) -> Peaks:
    """Measure the machine; without a compiler, a processor's peaks stay unknown."""
    if device.type == "cuda":
        return Peaks(gemm={name: _gemm_rates(device, name, rounds, is_quick) for name in dtypes})
    sizes = (QUICK_STEPS, QUICK_MAP_MIB) if is_quick else (STEPS, MAP_MIB)
    found = {
        name: rates
        for name in build.instruction_sets()
        if is_supported(name) and (rates := _processor_rates(name, (threads, *sizes)))
    }
    bandwidth = max((memory for _, memory in found.values()), default=None)
    return Peaks({name: fma for name, (fma, _) in found.items()}, bandwidth)


def _processor_rates(instruction_set: str, arguments: Sequence[int]) -> tuple[float, float] | None:
    flags = [*build.FLAGS, *build.INSTRUCTION_SETS[instruction_set], *build.LINK_FLAGS]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "peaks")
        for compiler in build.compilers():
            try:
                for command in (
                    [*compiler, *flags, str(SOURCE), "-o", program],
                    [program, *map(str, arguments)],
                ):
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            fma, memory = map(float, done.stdout.split())
            return fma, memory
    return None


def _gemm_rates(device: torch.device, dtype: str, rounds: int, is_quick: bool) -> dict[str, float]:
    turns, flops = {}, {}
    for m, k, n in QUICK_GEMMS if is_quick else GEMMS:
        left, right = (
            torch.randn(shape, device=device).to(DTYPES[dtype]) for shape in ((m, k), (k, n))
        )
        product = torch.empty(m, n, device=device, dtype=DTYPES[dtype])
        runner = Runner(partial(torch.mm, left, right, out=product), dict)
        turns[f"{m}x{k}x{n}"] = partial(turn, runner, device)
        flops[f"{m}x{k}x{n}"] = 2 * m * k * n
    timings = alternate(turns, rounds=rounds)
    return {s: flops[s] / timings[s].median / 1e9 for s in flops}


def count_flops(runner: Runner) -> Flops:
    """Run a torch provider once more, and count."""
    return Flops(_count(runner, {}), _count(runner, _WINOGRAD))


def _count(runner: Runner, formulas: Mapping[Any, Any]) -> int:
    runner.prepare()
    with flop_counter.FlopCounterMode(display=False, custom_mapping=dict(formulas)) as counter:
        runner.run()
    return int(counter.get_total_flops())


def _conv(*arguments: Any, out_shape: Any) -> int:
    """(input, weight, bias, stride, padding, dilation, transposed, …), with shapes for tensors."""
    direct = unwrap(flop_counter.conv_flop)(*arguments, out_shape=out_shape)
    return int(direct * _winograd_share(out_shape, *arguments[1:7]))


def _conv_backward(grad_output: Any, *arguments: Any, out_shape: Any) -> int:
    """Both gradients are convolutions of the same kind, with as many tiles."""
    direct = unwrap(flop_counter.conv_backward_flop)(grad_output, *arguments, out_shape=out_shape)
    return int(direct * _winograd_share(grad_output, *arguments[1:7]))


_WINOGRAD = {aten.convolution: _conv, aten.convolution_backward: _conv_backward}


def _winograd_share(
    output: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: Sequence[int],
    padding: object,
    dilation: Sequence[int],
    transposed: bool,
) -> float:
    if transposed or [*weight[2:]] != [3, 3] or {*stride, *dilation} != {1}:
        return 1
    height, width = output[2:]
    return 36 * math.ceil(height / 4) * math.ceil(width / 4) / (9 * height * width)
