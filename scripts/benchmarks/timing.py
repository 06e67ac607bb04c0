"""Timing: providers take turns, so that a change of clock or a neighbour's load meets all of them.

A turn is some calls, after a pause in which the previous provider's threads fall asleep and an
untimed call that warms caches and threads. On CUDA, events time every call, after the L2 cache was
overwritten. (torch.utils.benchmark.Timer takes no turns, flushes no cache and cannot run the
forward before each timed backward.)
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from problem import Runner

TURN_S = 0.03
PAUSE_S = 0.05
MIN_CALLS, MAX_CALLS = 3, 50
CASE_S = 30.0
MIN_ROUNDS = 4
FLUSH_BYTES = 256 * 2**20

Turn = Callable[[int], Sequence[float]]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20th and 80th percentile; and the number of timed calls."""

    median: float
    p20: float
    p80: float
    samples: int


def alternate(turns: Mapping[str, Turn], *, rounds: int) -> dict[str, Timing]:
    """Time all in turns, each round beginning with the next one.

    A turn makes the given number of calls and returns the seconds of each, or none if it failed:
    then it gets no further turn and no timing. Slow cases get fewer rounds, at least MIN_ROUNDS, to
    take about CASE_S.
    """
    estimates = {name: seconds[0] for name, turn in turns.items() if (seconds := turn(1))}
    calls = {n: _clamp(TURN_S / s, MIN_CALLS, MAX_CALLS) for n, s in estimates.items()}
    round_s = sum((1 + calls[name]) * seconds for name, seconds in estimates.items())
    rounds = min(rounds, _clamp(CASE_S / max(round_s, 1e-9), MIN_ROUNDS, rounds))
    names = list(estimates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if name not in samples:
                continue
            time.sleep(PAUSE_S)
            if seconds := turns[name](calls[name]):
                samples[name] += seconds
            else:
                del samples[name]
    return {name: summary(values) for name, values in samples.items()}


def summary(samples: Sequence[float]) -> Timing:
    """Return median and percentiles of the samples."""
    ordered, last = sorted(samples), len(samples) - 1
    p20, p80 = ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return Timing(statistics.median(ordered), p20, p80, len(ordered))


def use_device(device: torch.device) -> None:
    """Make a GPU the current one, whose events, memory and statistics torch means by default."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def turn(runner: Runner, device: torch.device, calls: int) -> list[float]:
    """Make an untimed call, then `calls` timed ones; return their seconds."""
    call = _cuda_call if device.type == "cuda" else _host_call
    call(runner)
    return [call(runner) for _ in range(calls)]


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
