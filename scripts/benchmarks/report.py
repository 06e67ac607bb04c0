"""The tables that a run prints and the JSON that it writes.

The JSON document, version 2:

- `version`: 2. Fields may be added within a version, never renamed.
- `date` (ISO 8601, UTC), `commit` (short hash, with "+" if files had changed, or "unknown"),
  `device`, `cpu`, `cores`, `threads`, `rounds`, `quick`, `versions` (python, torch, triton and the
  installed peers).
- `peaks`, measured before the cases: `fma` (instruction set → GFLOP/s of float32 multiply-adds in
  registers) and `bandwidth` (GB/s) of a processor, {} and null without a compiler; `gemm` (dtype →
  "MxKxN" → GFLOP/s of torch.mm) of a GPU.
- `cases`: a list of
  - `name`, `mode`, `subject`, `shape`, `dtype`, `tolerance`, `norm` (max or euclidean), `gflop` (of
    a call as defined; null if none), `winograd_gflop` (what F(4×4, 3×3) leaves of it), `bound_ms`
    (on a processor `winograd_gflop` at the peak of `fma`, on a GPU `gflop` at that of `gemm`; or
    null), `targets` (peer → largest wanted ratio), `red` (whether a result was wrong),
  - `ratios`: peer → our median / its median; "fastest" for the fastest peer in `dtype`,
  - `memory_ratio`: our peak memory / torch eager's, or null,
  - `providers`: name → `status` (ok, wrong, failed, unavailable, ungated), `reason`, `error`
    (relative difference from torch eager's results in that norm), `median_ms`, `p20_ms`, `p80_ms`,
    `samples`, `gflops` (`gflop` over the median), `bound_fraction` (`bound_ms` over the median; not
    of those that compute in another dtype), `peak_mb` (MiB); null where there is none.
"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from bounds import Peaks
from measure import Entry, Outcome
from registry import MEMORY_TARGET, MODES
from rich.console import Console
from rich.markup import escape
from rich.table import Table

VERSION = 2
NONE = "–"
TITLES = {
    "train": "Training step of a network: forward, loss, backward, SGD with momentum",
    "infer": "Inference",
    "forward+backward": "Forward and backward of three blocks",
    "forward": "Forward of a layer in training",
    "backward": "Backward of a layer",
    "step": "Step of an optimiser (the unet's parameters)",
}


@dataclass(frozen=True)
class Run:
    """The conditions that all cases of a run share."""

    device: torch.device
    threads: int
    rounds: int
    is_quick: bool
    peaks: Peaks


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
        "peaks": asdict(run.peaks),
        "cases": [_case_document(run, outcome) for outcome in outcomes],
    }


def print_report(console: Console, document: Mapping[str, Any]) -> None:
    """Print the machine, then one table per mode."""
    found = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    console.print(f"{document['device']}, {document['threads']} threads, {found}")
    peaks = document["peaks"]
    for what, rates in [
        ("multiply-adds, float32", peaks["fma"]),
        *((f"torch.mm, {dtype}", rates) for dtype, rates in peaks["gemm"].items()),
    ]:
        shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        console.print(f"Peak GFLOP/s of {what}: {shown or NONE}")
    console.print(f"Memory, GB/s: {NONE if peaks['bandwidth'] is None else peaks['bandwidth']}")
    for mode in MODES:
        cases = [case for case in document["cases"] if case["mode"] == mode]
        if cases:
            console.print(_table(TITLES[mode], cases))
    console.print(
        "ours/peer below 1: ours is faster. Green meets the target (without one, 1), red misses "
        "it. of bound: what the arithmetic takes at the peak, on a processor after Winograd's "
        "F(4×4, 3×3), over the median."
    )


def _table(title: str, cases: Sequence[Mapping[str, Any]]) -> Table:
    headings = ("ms", "p20–p80", "ours/peer", "GFLOP/s", "of bound", "peak MiB")
    table = Table("case", "provider", title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for case in cases:
        table.add_section()
        name = f"{case['subject']} {'×'.join(map(str, case['shape']))} {case['dtype']}"
        if case["gflop"]:
            bound = f"{case['bound_ms']:.3g} ms" if case["bound_ms"] else NONE
            name += f"\n[dim]bound {bound}[/]"
        for provider, entry in case["providers"].items():
            if entry["median_ms"] is None:
                provider += f" [dim]{entry['status']}: {escape(entry['reason'] or '')}[/]"
                cells = []
            else:
                ratio, target = case["ratios"].get(provider), case["targets"].get(provider)
                memory = entry["peak_mb"] and f"{entry['peak_mb']:.0f}"
                if memory and provider == "ours" and case["memory_ratio"]:
                    memory += " " + _coloured(case["memory_ratio"], MEMORY_TARGET)
                cells = [
                    f"{entry['median_ms']:.3g}",
                    f"{entry['p20_ms']:.3g}–{entry['p80_ms']:.3g}",
                    _coloured(ratio, target) if ratio else "",
                    f"{entry['gflops']:.0f}" if entry["gflops"] else "",
                    f"{entry['bound_fraction']:.0%}" if entry["bound_fraction"] else "",
                    memory or "",
                ]
            table.add_row(name, provider, *cells)
            name = ""
        if "fastest" in case["targets"] and "fastest" in case["ratios"]:
            ratio = _coloured(case["ratios"]["fastest"], case["targets"]["fastest"])
            table.add_row("", "fastest peer", "", "", ratio)
    return table


def _coloured(ratio: float, target: float | None) -> str:
    colour = "green" if ratio <= (target or 1) else "yellow" if target is None else "red"
    goal = "" if target is None else f" (≤ {target:g})"
    return f"[{colour}]{ratio:.2f}[/]{goal}"


def _case_document(run: Run, outcome: Outcome) -> dict[str, Any]:
    case, flops = outcome.case, outcome.flops
    bound_s = run.peaks.bound_s(case.dtype, flops)
    return {
        "name": case.name,
        "mode": case.mode,
        "subject": case.subject,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "tolerance": case.tolerance,
        "norm": case.norm,
        "gflop": flops.direct / 1e9 if flops.direct else None,
        "winograd_gflop": flops.winograd / 1e9 if flops.direct else None,
        "bound_ms": bound_s and bound_s * 1e3,
        "targets": dict(case.targets(run.device.type)),
        "red": outcome.is_red,
        "ratios": outcome.ratios,
        "memory_ratio": outcome.memory_ratio,
        "providers": {
            name: _entry_document(
                entry, flops.direct, bound_s if case.computed_by(name) == case else None
            )
            for name, entry in outcome.entries.items()
        },
    }


def _entry_document(entry: Entry, flops: int, bound_s: float | None) -> dict[str, Any]:
    timing, error = entry.timing, entry.error
    return {
        "status": entry.status,
        "reason": entry.reason or None,
        "error": error if error is None or error < float("inf") else None,
        "median_ms": timing.median * 1e3 if timing else None,
        "p20_ms": timing.p20 * 1e3 if timing else None,
        "p80_ms": timing.p80 * 1e3 if timing else None,
        "samples": timing.samples if timing else None,
        "gflops": flops / timing.median / 1e9 if timing and flops else None,
        "bound_fraction": bound_s / timing.median if timing and bound_s else None,
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
