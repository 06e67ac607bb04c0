"""Measure one case: first correctness and memory, then time.

Each provider's results are compared with torch eager's in the case's precision. Where ours are
wrong, no provider of the case gets a number; a wrong peer loses only its own.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from bounds import Flops
from registry import REFERENCE, Case, Norm
from safetensors.torch import load_file
from timing import Timing, alternate
from torch import Tensor
from worker import Worker, WorkerError

Status = Literal["ok", "wrong", "failed", "unavailable", "ungated"]
VITAL = ("ours", REFERENCE)


@dataclass(frozen=True)
class Entry:
    """What a provider reached in a case.

    Attributes:
        status: ok; wrong (results differ too much); failed (it raised or died); unavailable (it
            cannot run the case here); ungated (not timed, because ours or the reference did not
            pass).
        reason: of every status but ok.
        error: relative difference from torch eager's results in the case's norm; the worst tensor.
        timing: only with status ok.
        peak_bytes: memory of a call, if measured.
    """

    status: Status
    reason: str = ""
    error: float | None = None
    timing: Timing | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The results of a case: its operations, and what the providers reached."""

    case: Case
    flops: Flops
    entries: Mapping[str, Entry]

    @property
    def is_red(self) -> bool:
        """Whether a provider was wrong, or ours or the reference failed."""
        return any(
            entry.status == "wrong" or (entry.status == "failed" and name in VITAL)
            for name, entry in self.entries.items()
        )

    @property
    def ratios(self) -> dict[str, float]:
        """Our median time divided by each peer's, and by the "fastest" in the case's precision."""
        medians = {n: e.timing.median for n, e in self.entries.items() if e.timing}
        own = medians.pop("ours", None)
        if own is None or not medians:
            return {}
        ratios = {name: own / median for name, median in medians.items()}
        equal = [r for n, r in ratios.items() if self.case.computed_by(n) == self.case]
        return ratios | ({"fastest": max(equal)} if equal else {})

    @property
    def memory_ratio(self) -> float | None:
        """Our peak memory divided by torch eager's."""
        peaks = [self.entries[n].peak_bytes for n in VITAL if n in self.entries]
        if len(peaks) < 2 or not peaks[0] or not peaks[1]:
            return None
        return peaks[0] / peaks[1]


def measure(
    case: Case, providers: Sequence[str], device: torch.device, *, rounds: int, threads: int
) -> Outcome:
    """Check and time the case's providers; the reference always takes part."""
    names = [name for name in case.providers if name in (REFERENCE, *providers)]
    entries: dict[str, Entry] = {}
    flops, expected = Flops(), None
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        files = {name: Path(folder) / name for name in names}
        workers = {
            name: processes.enter_context(
                Worker(case, name, device=device, threads=threads, results=file)
            )
            for name, file in files.items()
        }
        for name in sorted(names, key=lambda name: name != REFERENCE):
            try:
                first = workers[name].first()
            except WorkerError as failure:
                entries[name] = Entry(failure.status, failure.reason)
                continue
            results = load_file(files[name])
            if name == REFERENCE:
                flops, expected = first.flops, results
            entries[name] = _check(case, name, results, expected)
            if entries[name].status == "ok":
                entries[name] = replace(entries[name], peak_bytes=first.peak_bytes)
        if any(name in entries and entries[name].status != "ok" for name in VITAL):
            reason = "ours or torch eager did not pass"
            entries = {
                name: Entry("ungated", reason, entry.error) if entry.status == "ok" else entry
                for name, entry in entries.items()
            }
        right = {name: workers[name].turn for name in names if entries[name].status == "ok"}
        timings = alternate(right, rounds=rounds)
        for name in right:
            entries[name] = replace(entries[name], timing=timings.get(name))
            if ended := workers[name].failure:
                entries[name] = Entry(ended.status, ended.reason)
    return Outcome(case, flops, {name: entries[name] for name in names})


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
        for tensor in (actual.double() - right, right)
    )
    error = difference / scale if scale else difference
    return error if math.isfinite(error) else math.inf


def _check(
    case: Case, name: str, results: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None
) -> Entry:
    if expected is None:
        return Entry("ok")  # nothing to compare with; the caller reports no number
    error, tolerance = (
        relative_error(results, expected, case.norm),
        case.computed_by(name).tolerance,
    )
    if error <= tolerance:
        return Entry("ok", error=error)
    return Entry("wrong", f"error {error:.2g}, allowed {tolerance:.2g}", error)
