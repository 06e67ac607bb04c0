"""The tables that a run prints and the JSON that it writes.

The JSON document, version 1:

- `version`: 1. Fields may be added within a version, never renamed.
- `date` (ISO 8601, UTC), `commit` (short hash, with "+" if files had changed, or "unknown"),
  `device`, `cpu`, `cores`, `threads`, `rounds`, `quick`, `versions` (python, torch, triton and the
  installed peers).
- `gemm`: dtype → "MxKxN" → GFLOP/s of torch.mm, measured in the same run.
- `cases`: a list of
  - `name`, `mode`, `subject`, `shape`, `dtype`, `tolerance`, `norm` (max or euclidean), `gflop`
    (of one call; null if none), `targets` (peer → largest allowed ratio), `red` (whether a result
    was wrong),
  - `ratios`: peer → our median / its median; "fastest" for the fastest peer,
  - `memory_ratio`: our peak memory / torch eager's, or null,
  - `providers`: name → `status` (ok, wrong, failed, unavailable, ungated), `reason`, `error`
    (relative difference from torch eager's results in that norm), `median_ms`, `p20_ms`, `p80_ms`,
    `samples`, `gflops`, `gemm_fraction` (of the fastest product in `gemm`), `peak_mb` (MiB); null
    where there is none.
"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measure import Entry, Outcome
from registry import MEMORY_TARGET, MODES, PROVIDERS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

VERSION = 1
TITLES = {
    "train": "Training step of a network: forward, loss, backward, SGD with momentum",
    "infer": "Inference",
    "forward": "Forward of a block in training",
    "backward": "Backward of a block",
    "step": "Step of an optimiser (the unet's parameters)",
}


@dataclass(frozen=True)
class Run:
    """The conditions that all cases of a run share."""

    device: torch.device
    threads: int
    rounds: int
    is_quick: bool
    gemm: Mapping[str, Mapping[str, float]]

    def peak(self, dtype: str) -> float:
        """Return the fastest matrix product in that dtype, GFLOP/s."""
        return max(self.gemm[dtype].values())


def document(run: Run, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the JSON document that the module's docstring describes."""
    return {
        "version": VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_name(run.device),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": run.threads,
        "rounds": run.rounds,
        "quick": run.is_quick,
        "versions": versions(),
        "gemm": {dtype: dict(rates) for dtype, rates in run.gemm.items()},
        "cases": [_case_document(run, outcome) for outcome in outcomes],
    }


def print_report(console: Console, run: Run, outcomes: Sequence[Outcome]) -> None:
    """Print the machine, then one table per mode."""
    shown = ", ".join(f"{name} {version}" for name, version in versions().items())
    console.print(f"{device_name(run.device)}, {run.threads} threads, {shown}")
    for dtype, rates in run.gemm.items():
        shown = ", ".join(f"{shape} {rate:.0f}" for shape, rate in rates.items())
        console.print(f"GEMM {dtype}, GFLOP/s: {shown}")
    for mode in MODES:
        rows = [outcome for outcome in outcomes if outcome.case.mode == mode]
        if rows:
            console.print(_table(TITLES[mode], run, rows))
    console.print(
        "Each provider: median [×ratio ours/peer]; p20–p80; GFLOP/s and share of the fastest GEMM. "
        "Green meets the target (or, without one, is no slower), red misses it."
    )


def _table(title: str, run: Run, outcomes: Sequence[Outcome]) -> Table:
    shown = [name for name in PROVIDERS if any(name in o.entries for o in outcomes)]
    has_targets = any(o.case.targets for o in outcomes)
    has_memory = any(o.memory_ratio is not None for o in outcomes)
    table = Table(title=title, show_lines=True, title_justify="left")
    table.add_column("case", overflow="fold")
    if has_targets:
        table.add_column("target", no_wrap=True)
    for name in shown:
        table.add_column(name, overflow="fold")
    if has_memory:
        table.add_column("peak memory", no_wrap=True)
    for outcome in outcomes:
        case = outcome.case
        cells = [f"{case.subject}\n{'×'.join(map(str, case.shape))}\n[dim]{case.dtype}[/dim]"]
        if has_targets:
            cells.append(_targets_cell(outcome))
        cells += [_provider_cell(run, outcome, name) for name in shown]
        if has_memory:
            cells.append(_memory_cell(outcome))
        table.add_row(*cells)
    return table


def _provider_cell(run: Run, outcome: Outcome, name: str) -> str:
    entry = outcome.entries.get(name)
    if entry is None:
        return "[dim]–[/dim]"
    if entry.timing is None:
        colour = "dim" if entry.status in ("unavailable", "ungated") else "red"
        return f"[{colour}]{entry.status}: {escape(entry.reason)}[/{colour}]"
    timing = entry.timing
    first = f"{_milliseconds(timing.median)} ms"
    if name in outcome.ratios:
        first += " " + _coloured_ratio(outcome.ratios[name], outcome.case.targets.get(name))
    lines = [first, f"{_milliseconds(timing.p20)}–{_milliseconds(timing.p80)}"]
    gflops = _gflops(outcome, entry)
    if gflops:
        lines.append(f"{gflops:.0f} GF/s {gflops / run.peak(outcome.case.dtype):.0%}")
    return lines[0] + "".join(f"\n[dim]{line}[/dim]" for line in lines[1:])


def _targets_cell(outcome: Outcome) -> str:
    lines = []
    for peer, target in outcome.case.targets.items():
        ratio = outcome.ratios.get(peer)
        reached = "–" if ratio is None else _coloured_ratio(ratio, target)
        lines.append(f"{peer} ≤ {target:g}: {reached}")
    return "\n".join(lines)


def _memory_cell(outcome: Outcome) -> str:
    lines = [
        f"{name} {entry.peak_bytes / 2**20:.0f} MiB"
        for name, entry in outcome.entries.items()
        if entry.peak_bytes
    ]
    if outcome.memory_ratio is not None:
        lines.append(f"≤ {MEMORY_TARGET:g}: {_coloured_ratio(outcome.memory_ratio, MEMORY_TARGET)}")
    return "\n".join(lines)


def _coloured_ratio(ratio: float, target: float | None) -> str:
    if ratio <= (target or 1.0):
        return f"[green]×{ratio:.2f}[/green]"
    colour = "yellow" if target is None else "red"
    return f"[{colour}]×{ratio:.2f}[/{colour}]"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _gflops(outcome: Outcome, entry: Entry) -> float | None:
    if not outcome.flops or entry.timing is None:
        return None
    return outcome.flops / entry.timing.median / 1e9


def _case_document(run: Run, outcome: Outcome) -> dict[str, Any]:
    case = outcome.case
    return {
        "name": case.name,
        "mode": case.mode,
        "subject": case.subject,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "tolerance": case.tolerance,
        "norm": case.norm,
        "gflop": outcome.flops / 1e9 if outcome.flops else None,
        "targets": dict(case.targets),
        "red": outcome.is_red,
        "ratios": outcome.ratios,
        "memory_ratio": outcome.memory_ratio,
        "providers": {n: _entry_document(run, outcome, e) for n, e in outcome.entries.items()},
    }


def _entry_document(run: Run, outcome: Outcome, entry: Entry) -> dict[str, Any]:
    timing = entry.timing
    gflops = _gflops(outcome, entry)
    error = entry.error
    return {
        "status": entry.status,
        "reason": entry.reason or None,
        "error": error if error is None or error < float("inf") else None,
        "median_ms": timing.median * 1e3 if timing else None,
        "p20_ms": timing.p20 * 1e3 if timing else None,
        "p80_ms": timing.p80 * 1e3 if timing else None,
        "samples": timing.samples if timing else None,
        "gflops": gflops,
        "gemm_fraction": gflops / run.peak(outcome.case.dtype) if gflops else None,
        "peak_mb": entry.peak_bytes / 2**20 if entry.peak_bytes else None,
    }


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("denoise-batch", "torch", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if importlib.util.find_spec("triton"):
        # Its distributions have various names: triton, pytorch-triton, …
        with suppress(ImportError, AttributeError):
            found["triton"] = str(importlib.import_module("triton").__version__)
    return found


def commit() -> str:
    """Return the short hash of the working tree's commit, with "+" if files had changed."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
