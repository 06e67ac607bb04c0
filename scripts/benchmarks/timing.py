"""Timing: medians over alternating rounds, and the speed of the machine's matrix product.

The providers of a case take turns in one process, so that a change of clock or a neighbour's load
meets all of them. A turn is one or more calls, after a pause in which the previous provider's
threads stop spinning and, for short calls, after an untimed call that warms the cache. On CUDA,
events time every call, after the L2 cache was overwritten. (torch.utils.benchmark.Timer takes no
turns, flushes no cache and cannot run the forward before each timed backward.)
"""

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from problem import Runner

TURN_S = 0.03
PAUSE_S = 0.005
MAX_CALLS = 50
CASE_S = 20.0
MIN_ROUNDS = 3
FLUSH_BYTES = 256 * 2**20

# (rows, inner, columns): one large product, and the shapes that convolutions turn into.
GEMMS = ((2048, 2048, 2048), (4096, 288, 32), (4096, 576, 64), (4096, 1152, 128), (4096, 1728, 192))
QUICK_GEMMS = ((256, 256, 256),)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20th and 80th percentile; and the number of timed calls."""

    median: float
    p20: float
    p80: float
    samples: int


def alternate(
    runners: Mapping[str, Runner], device: torch.device, *, rounds: int, threads: int
) -> dict[str, Timing]:
    """Time all runners in turns; each must have run before.

    Slow cases get fewer rounds, at least MIN_ROUNDS, to take about CASE_S.
    """
    call = _cuda_call if device.type == "cuda" else _host_call
    estimates = {name: min(call(runner) for _ in range(2)) for name, runner in runners.items()}
    calls = {name: _clamp(TURN_S / s, 1, MAX_CALLS) for name, s in estimates.items()}
    round_s = sum(calls[name] * seconds for name, seconds in estimates.items())
    rounds = min(rounds, _clamp(CASE_S / max(round_s, 1e-9), MIN_ROUNDS, rounds))
    names = list(runners)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                torch.set_num_threads(threads)  # a provider may have changed it
                time.sleep(PAUSE_S)
                if calls[name] > 1:
                    call(runners[name])
                samples[name] += [call(runners[name]) for _ in range(calls[name])]
    finally:
        gc.enable()
    return {name: summary(values) for name, values in samples.items()}


def summary(samples: Sequence[float]) -> Timing:
    """Return median and percentiles of the samples."""
    ordered, last = sorted(samples), len(samples) - 1
    p20, p80 = ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return Timing(statistics.median(ordered), p20, p80, len(ordered))


def gemm_rates(
    device: torch.device, dtypes: Mapping[str, torch.dtype], *, rounds: int, is_quick: bool
) -> dict[str, dict[str, float]]:
    """Return GFLOP/s of torch.mm by dtype and shape ("2048x2048x2048")."""
    rates: dict[str, dict[str, float]] = {}
    for name, dtype in dtypes.items():
        runners: dict[str, Runner] = {}
        flops: dict[str, int] = {}
        for m, k, n in QUICK_GEMMS if is_quick else GEMMS:
            left, right = (
                torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n))
            )
            product = torch.empty(m, n, device=device, dtype=dtype)
            shape = f"{m}x{k}x{n}"
            flops[shape] = 2 * m * k * n
            runners[shape] = Runner(partial(torch.mm, left, right, out=product), dict)
            runners[shape].run()
        timings = alternate(runners, device, rounds=rounds, threads=torch.get_num_threads())
        rates[name] = {s: flops[s] / timing.median / 1e9 for s, timing in timings.items()}
    return rates


def _host_call(runner: Runner) -> float:
    runner.prepare()
    started = time.perf_counter()
    runner.run()
    return time.perf_counter() - started


def _cuda_call(runner: Runner) -> float:
    runner.prepare()
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    # torch gives Event no types.
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    started.record()
    runner.run()
    ended.record()
    torch.cuda.synchronize()
    return float(started.elapsed_time(ended)) / 1e3


def _clamp(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))
