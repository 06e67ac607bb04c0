"""Time: alternating rounds, medians, and what the machine's GEMM reaches.

All providers of a case take turns inside one process, so that a change of clock or a neighbour's
load meets all of them. A turn is one or more calls, after a pause in which the previous provider's
threads stop spinning and, for short calls, after one untimed call that brings the provider's own
data back into cache. On CUDA every call is timed by events, after the L2 cache was overwritten.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from problem import Runner

TURN_S = 0.03
PAUSE_S = 0.005
MAX_CALLS = 50
CASE_S = 20.0
MIN_ROUNDS = 3
FLUSH_BYTES = 256 * 2**20

# (rows, inner, columns): one large product, and those whose operands stay in cache, of the shape
# that a convolution of an image's rows turns into.
GEMMS = ((2048, 2048, 2048), (4096, 288, 32), (4096, 576, 64), (4096, 1152, 128), (4096, 1728, 192))
QUICK_GEMMS = ((256, 256, 256),)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 20th and 80th percentile, and how many calls were timed."""

    median: float
    p20: float
    p80: float
    samples: int


def alternate(
    runners: Mapping[str, Runner], device: torch.device, *, rounds: int, threads: int
) -> dict[str, Timing]:
    """Time all runners, in turns; each must have run before.

    Slow cases get fewer rounds, so that one takes about CASE_S, but MIN_ROUNDS at least.
    """
    call = _cuda_call if device.type == "cuda" else _host_call
    estimates = {name: _estimate(runner, call) for name, runner in runners.items()}
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
                torch.set_num_threads(threads)  # whatever the one before did
                time.sleep(PAUSE_S)
                if calls[name] > 1:
                    call(runners[name])
                samples[name] += [call(runners[name]) for _ in range(calls[name])]
    finally:
        gc.enable()
    return {name: summary(values) for name, values in samples.items()}


def summary(samples: Sequence[float]) -> Timing:
    """Median and percentiles of the samples."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(
        statistics.median(ordered),
        ordered[round(0.2 * last)],
        ordered[round(0.8 * last)],
        len(ordered),
    )


def gemm_rates(
    device: torch.device, dtypes: Mapping[str, torch.dtype], *, rounds: int, is_quick: bool
) -> dict[str, dict[str, float]]:
    """GFLOP/s of torch's matrix product, by precision and shape ("2048x2048x2048")."""
    rates: dict[str, dict[str, float]] = {}
    for name, dtype in dtypes.items():
        runners: dict[str, Runner] = {}
        flops: dict[str, int] = {}
        for m, k, n in QUICK_GEMMS if is_quick else GEMMS:
            shape = f"{m}x{k}x{n}"
            flops[shape] = 2 * m * k * n
            runners[shape] = _product(m, k, n, device, dtype)
            runners[shape].run()
        timings = alternate(runners, device, rounds=rounds, threads=torch.get_num_threads())
        rates[name] = {s: flops[s] / timing.median / 1e9 for s, timing in timings.items()}
    return rates


def _product(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> Runner:
    left = torch.randn(m, k, device=device).to(dtype)
    right = torch.randn(k, n, device=device).to(dtype)
    product = torch.empty(m, n, device=device, dtype=dtype)

    def run() -> None:
        torch.mm(left, right, out=product)

    return Runner(run, lambda: {"product": product})


def _estimate(runner: Runner, call: Callable[[Runner], float]) -> float:
    """About how long a call takes: the faster of two."""
    return min(call(runner) for _ in range(2))


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
