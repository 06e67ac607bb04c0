"""Measure one case: first correctness, then time, then memory.

Each provider's first results are compared with torch eager's in the same precision. Where ours are
wrong, no provider of the case gets a number; a wrong peer loses only its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from memory import peak_bytes
from problem import Problem, Runner, UnavailableError, pose
from providers import PREPARE
from registry import Case, Norm
from timing import Timing, alternate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

REFERENCE = "eager"
Status = Literal["ok", "wrong", "failed", "unavailable", "ungated"]


@dataclass(frozen=True)
class Entry:
    """What a provider reached in a case.

    Attributes:
        status: ok; wrong (results differ too much); failed (it raised); unavailable (it cannot run
            the case here); ungated (not timed, because ours or the reference did not pass).
        reason: of every status but ok.
        error: relative difference from torch eager's results in the case's norm; the worst tensor.
        timing: only with status ok.
        peak_bytes: memory of a training step, if measured.
    """

    status: Status
    reason: str = ""
    error: float | None = None
    timing: Timing | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The results of a case.

    Attributes:
        case: the case.
        flops: floating-point operations of its products and convolutions; 0 if it has none.
        entries: by provider.
    """

    case: Case
    flops: int
    entries: Mapping[str, Entry]

    @property
    def is_red(self) -> bool:
        """Whether a provider was wrong, or ours or the reference failed."""
        vital = (self.entries.get(name) for name in ("ours", REFERENCE))
        return any(entry.status == "wrong" for entry in self.entries.values()) or any(
            entry is not None and entry.status == "failed" for entry in vital
        )

    @property
    def ratios(self) -> dict[str, float]:
        """Our median time divided by each peer's, and by the "fastest" peer's."""
        medians = {n: e.timing.median for n, e in self.entries.items() if e.timing}
        own = medians.pop("ours", None)
        if own is None or not medians:
            return {}
        ratios = {name: own / median for name, median in medians.items()}
        return ratios | {"fastest": max(ratios.values())}

    @property
    def memory_ratio(self) -> float | None:
        """Our peak memory divided by torch eager's."""
        peaks = [self.entries[n].peak_bytes for n in ("ours", REFERENCE) if n in self.entries]
        if len(peaks) < 2 or not peaks[0] or not peaks[1]:
            return None
        return peaks[0] / peaks[1]


def measure(
    case: Case,
    providers: Sequence[str],
    device: torch.device,
    *,
    rounds: int,
    threads: int,
    has_memory: bool,
) -> Outcome:
    """Check and time the case's providers; the reference always takes part."""
    torch.set_num_threads(threads)
    problem = pose(case, device)
    names = [n for n in case.providers if n in providers or n == REFERENCE]
    names.sort(key=lambda name: name != REFERENCE)
    runners: dict[str, Runner] = {}
    entries: dict[str, Entry] = {}
    expected: dict[str, Tensor] | None = None
    flops = 0
    entries[REFERENCE] = _first_run(REFERENCE, problem, None, runners)
    if REFERENCE in runners:
        results = runners[REFERENCE].results()
        expected = {name: value.detach().clone() for name, value in results.items()}
        runners[REFERENCE].prepare()
        with FlopCounterMode(display=False) as counter:
            runners[REFERENCE].run()
        flops = counter.get_total_flops()
    for name in names[1:]:
        entries[name] = _first_run(name, problem, expected, runners)
    if any(name in entries and entries[name].status != "ok" for name in ("ours", REFERENCE)):
        reason = "ours or torch eager did not pass"
        entries = {
            name: replace(entry, status="ungated", reason=reason) if entry.status == "ok" else entry
            for name, entry in entries.items()
        }
    right = {name: runners[name] for name in names if entries[name].status == "ok"}
    timings = alternate(right, device, rounds=rounds, threads=threads) if right else {}
    for name, timing in timings.items():
        peak = None
        if has_memory and case.mode == "train" and name in ("ours", REFERENCE):
            peak = peak_bytes(case, name, device=device, threads=threads)
        entries[name] = replace(entries[name], timing=timing, peak_bytes=peak)
    return Outcome(case, flops, {name: entries[name] for name in case.providers if name in entries})


def relative_error(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], norm: Norm
) -> float:
    """Return ‖actual − expected‖/‖expected‖ of the worst tensor.

    Infinite where names or shapes differ or a value is not finite.
    """
    if actual.keys() != expected.keys():
        return math.inf
    return max(_tensor_error(actual[name], expected[name], norm) for name in expected)


def _tensor_error(actual: Tensor, expected: Tensor, norm: Norm) -> float:
    if actual.shape != expected.shape:
        return math.inf
    right = expected.double()
    order = math.inf if norm == "max" else 2
    difference, scale = (
        torch.linalg.vector_norm(tensor, order).item()
        for tensor in (actual.to(expected.device).double() - right, right)
    )
    error = difference / scale if scale else difference
    return error if math.isfinite(error) else math.inf


def _first_run(
    name: str,
    problem: Problem,
    expected: Mapping[str, Tensor] | None,
    runners: dict[str, Runner],
) -> Entry:
    """Run the provider once and compare its results; add it to `runners` if they are right."""
    error: float | None = 0.0 if name == REFERENCE else None
    try:
        runner = PREPARE[name](problem)
        runner.prepare()
        runner.run()
        if expected is not None:
            error = relative_error(runner.results(), expected, problem.case.norm)
    except UnavailableError as reason:
        return Entry("unavailable", str(reason))
    except Exception as failure:  # compilers and runtimes raise anything; it goes into the table
        first_line = (str(failure).strip() or type(failure).__name__).partition("\n")[0]
        return Entry("failed", f"{type(failure).__name__}: {first_line}"[:200])
    tolerance = problem.case.tolerance
    if error is not None and not error <= tolerance:
        return Entry("wrong", f"error {error:.2g}, allowed {tolerance:.2g}", error)
    runners[name] = runner
    return Entry("ok", error=error)
