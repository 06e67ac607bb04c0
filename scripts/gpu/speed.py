"""How fast: scripts/bench with the kernels, again with gemm/, and shares of what the GPU can do."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import Section

BENCH = Path(__file__).parents[1] / "benchmarks"
# Operations (multiplications and additions) and bytes of inference in bfloat16, for a pixel of the
# image: the layers' own arithmetic, and every launch's input and output once
# (docs/notes/kernels.md).
WORK = {"tconv": (2 * 1872, 24.0), "unet": (2 * 37_376, 450.0)}


def speed_sections(device: torch.device, *, is_quick: bool) -> list[Section]:
    """Training and inference beside the peers; then the roofline."""
    cases = (
        ["infer/tconv/*"] if is_quick else ["train/*", "infer/tconv/*", "infer/unet/*", "step/*"]
    )
    with_kernels = _bench(device, cases, is_quick, "auto")
    without = _bench(device, cases, is_quick, "gemm")
    table = Section(
        "Time of a call, ms",
        "Median of alternating rounds, after the same results; `ours/…`: below 1 is faster.",
        ("case", "ours", "ours by gemm/", "eager", "compile", "ours/eager", "ours/compile"),
    )
    by_gemm = {case["name"]: case for case in without["cases"]}
    for case in with_kernels["cases"]:
        ratios = case["ratios"]
        table.rows.append(
            (
                case["name"],
                _median(case, "ours"),
                _median(by_gemm[case["name"]], "ours"),
                _median(case, "eager"),
                _median(case, "compile"),
                *(f"{ratios[peer]:.2f}" if peer in ratios else "" for peer in ("eager", "compile")),
            )
        )
        table.is_wrong |= case["red"]
    return [table, _roofline(device, with_kernels, is_quick=is_quick)]


def _bench(device: torch.device, cases: list[str], is_quick: bool, kernels: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [sys.executable, str(BENCH), *cases, "--device", str(device)]
        command += ["--json", str(path), "--providers", "ours,eager,compile"]
        command += ["--quick", "--rounds", "1"] if is_quick else []
        environment = {**os.environ, "DENOISE_BATCH_KERNELS": kernels}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if not path.exists():
            raise RuntimeError(f"scripts/bench: {result.stderr.strip()[-500:]}")
        document: dict[str, Any] = json.loads(path.read_text())
    return document


def _median(case: dict[str, Any], provider: str) -> str:
    entry = case["providers"].get(provider)
    if entry is None:
        return ""
    return f"{entry['median_ms']:.3g}" if entry["median_ms"] else str(entry["status"])


def _roofline(device: torch.device, document: dict[str, Any], *, is_quick: bool) -> Section:
    copy = _copy_bandwidth(device, 2**22 if is_quick else 2**28)
    section = Section(
        "Shares of this GPU's own limits, inference in bfloat16",
        f"A copy moves {copy / 1e9:.0f} GB/s here, counting what it reads and what it writes; the "
        "fastest matrix product stands in the table. A network cannot take less time than the "
        "longer of the two bounds.",
        ("case", "GEMM, TFLOP/s", "by arithmetic, ms", "by memory, ms", "ours, ms", "share of it"),
    )
    for case in document["cases"]:
        if case["mode"] != "infer" or case["dtype"] != "bfloat16" or case["subject"] not in WORK:
            continue
        batch, _, height, width = case["shape"]
        operations, moved = WORK[case["subject"]]
        gemm = max(document["gemm"]["bfloat16"].values()) * 1e9
        pixels = batch * height * width
        bounds = 1e3 * pixels * operations / gemm, 1e3 * pixels * moved / copy
        measured = case["providers"]["ours"]["median_ms"]
        section.rows.append(
            (
                case["name"],
                f"{gemm / 1e12:.3g}",
                *(f"{bound:.3g}" for bound in bounds),
                f"{measured:.3g}" if measured else "",
                f"{max(bounds) / measured:.0%}" if measured else "",
            )
        )
    return section


def _copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of the best of ten copies."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _finish(device)
        started = time.perf_counter()
        target.copy_(source)
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
