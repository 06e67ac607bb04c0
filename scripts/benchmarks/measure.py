"""One case: the gate first, then the clock, then memory.

The gate compares what every provider's first run came to with torch eager's, in the same
precision. Where ours is red the case has no number at all; a red peer loses its own.
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
    """One provider's part in a case.

    Attributes:
        status: ok · wrong: the gate is red · failed: it raised · unavailable: it cannot take part
            here · ungated: right or wrong, ours or the reference is not, so nothing was timed.
        reason: of every status but ok.
        error: relative difference to torch eager's results, in the case's norm; the worst tensor's.
        timing: of status ok alone.
        peak_bytes: memory of a training step, where that was measured.
    """

    status: Status
    reason: str = ""
    error: float | None = None
    timing: Timing | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        case: the case.
        flops: floating-point operations of its matrix products and convolutions, 0 for none.
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
        """Median time of ours over each peer's, and over the "fastest" of them."""
        medians = {n: e.timing.median for n, e in self.entries.items() if e.timing}
        own = medians.pop("ours", None)
        if own is None or not medians:
            return {}
        ratios = {name: own / median for name, median in medians.items()}
        return ratios | {"fastest": max(ratios.values())}

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory of ours over torch eager's."""
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
    """Gate and time the case's providers; the reference always takes part."""
    torch.set_num_threads(threads)
    problem = pose(case, device)
    taking_part = [n for n in case.providers if n in providers or n == REFERENCE]
    runners: dict[str, Runner] = {}
    entries: dict[str, Entry] = {}
    flops, expected = _reference(problem, runners, entries)
    for name in taking_part:
        if name != REFERENCE:
            entries[name] = _gate(name, problem, expected, runners)
    if any(name in entries and entries[name].status != "ok" for name in ("ours", REFERENCE)):
        entries = {name: _ungated(entry) for name, entry in entries.items()}
    right = {name: runners[name] for name in taking_part if entries[name].status == "ok"}
    timings = alternate(right, device, rounds=rounds, threads=threads) if right else {}
    for name, timing in timings.items():
        entries[name] = replace(entries[name], timing=timing)
    if has_memory and case.mode == "train":
        for name in ("ours", REFERENCE):
            if name in timings:
                peak = peak_bytes(case, name, device=device, threads=threads)
                entries[name] = replace(entries[name], peak_bytes=peak)
    return Outcome(case, flops, {name: entries[name] for name in taking_part})


def relative_error(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], norm: Norm
) -> float:
    """‖actual − expected‖/‖expected‖ of the worst tensor.

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


def _reference(
    problem: Problem, runners: dict[str, Runner], entries: dict[str, Entry]
) -> tuple[int, dict[str, Tensor] | None]:
    """Run torch eager once, counting operations; (operations, its results if it has any)."""
    try:
        runner = PREPARE[REFERENCE](problem)
        runner.prepare()
        with FlopCounterMode(display=False) as counter:
            runner.run()
    except Exception as error:  # whatever torch raises is this provider's failure alone
        entries[REFERENCE] = _failed(error)
        return 0, None
    runners[REFERENCE] = runner
    entries[REFERENCE] = Entry("ok", error=0.0)
    results = {name: value.detach().clone() for name, value in runner.results().items()}
    return counter.get_total_flops(), results


def _gate(
    name: str,
    problem: Problem,
    expected: Mapping[str, Tensor] | None,
    runners: dict[str, Runner],
) -> Entry:
    """Run the provider once and compare; on success it stands in `runners`."""
    if expected is None:
        return _ungated(Entry("ok"))
    try:
        runner = PREPARE[name](problem)
        runner.prepare()
        runner.run()
        error = relative_error(runner.results(), expected, problem.case.norm)
    except UnavailableError as reason:
        return Entry("unavailable", str(reason))
    except Exception as problem_found:  # a compiler's or a runtime's own: it ends in the table
        return _failed(problem_found)
    tolerance = problem.case.tolerance
    if not error <= tolerance:
        return Entry("wrong", f"error {error:.2g}, allowed {tolerance:.2g}", error)
    runners[name] = runner
    return Entry("ok", error=error)


def _ungated(entry: Entry) -> Entry:
    """What was right is not timed either."""
    if entry.status != "ok":
        return entry
    return replace(entry, status="ungated", reason="ours or torch eager did not pass")


def _failed(error: Exception) -> Entry:
    first_line = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return Entry("failed", f"{type(error).__name__}: {first_line}"[:200])
