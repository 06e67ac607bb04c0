"""Check the CUDA path on this machine's GPU and write a Markdown report to paste into an issue.

    scripts/gpu-check                   everything, about 15 minutes
    scripts/gpu-check --quick           smoke test with small shapes
    scripts/gpu-check --output FILE     default: gpu-check-DEVICE.md

The report has four parts: correctness (the self-check of denoise-doctor), speed (scripts/bench
beside torch eager and torch.compile), training (denoise-train) and whole folders (scripts/bench
folder).
`--device cpu` rehearses the command without a GPU. Exit codes: 0 done, 1 something was wrong.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from report import commit, device_name, versions

from denoise_batch.doctor import computing, kernel_checks, self_test

CASES = ("train/*", "infer/tconv/*", "infer/unet/*", "infer/unet-level/*", "step/*")
QUICK_CASES = ("infer/tconv/*",)
SAMPLES = Path(__file__).parents[2] / "docs" / "samples" / "clean"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; a part that fails says so and does not stop the others."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--quick", action="store_true", help="smoke test with small shapes")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu rehearses the command")
    lines = [f"# denoise-batch on {device_name(device)}", ""]
    if device.type != "cuda":
        lines += ["**A rehearsal without a GPU: these figures are no result.**", ""]
    lines += [f"- {fact}" for fact in _facts(device)]
    is_wrong = False
    for title, part in (
        ("Correctness: every kernel against the reference implementation", _correctness),
        ("Speed", _speed),
        ("Training", _training),
        ("Whole folders, file to file", _folder),
    ):
        try:
            text, is_part_wrong = part(device, options.quick)
        except Exception as error:  # the other parts are still worth having
            text, is_part_wrong = f"This part failed. {type(error).__name__}: {error}", True
        is_wrong |= is_part_wrong
        lines += ["", f"## {title}{' — WRONG' if is_part_wrong else ''}", "", text]
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = options.output or Path(f"gpu-check-{slug}.md")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"written to {path}", file=sys.stderr)
    return 1 if is_wrong else 0


def _facts(device: torch.device) -> list[str]:
    facts = [", ".join(f"{name} {version}" for name, version in versions().items())]
    facts += [f"commit {commit()}, {platform.platform()}"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts.append(
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB, "
            f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    return facts


def _correctness(device: torch.device, is_quick: bool) -> tuple[str, bool]:
    checks, network = kernel_checks(device), self_test(device)
    rows = [
        (
            check.name,
            check.implementation,
            check.status + (f": {check.reason}" if check.reason else ""),
            "" if check.error is None else f"{check.error:.1e}",
            f"{check.tolerance:.0e}",
        )
        for check in checks
    ]
    text = (
        f"Computing on {device}: {computing(device)}. A whole network, {network.name}: "
        f"{network.state}, {network.detail}.\n\n"
        "Error: largest difference relative to the largest element of the float64 result.\n\n"
        + _table(("kernel", "implementation", "status", "error", "allowed"), rows)
    )
    is_wrong = network.state == "problem" or any(check.status == "failed" for check in checks)
    return text, is_wrong


def _speed(device: torch.device, is_quick: bool) -> tuple[str, bool]:
    cases = [*(QUICK_CASES if is_quick else CASES), "--providers", "ours,eager,compile"]
    cases += ["--quick", "--rounds", "1", "--threads", "1"] if is_quick else []
    chosen = _bench(device, cases, "auto")
    portable = {case["name"]: case for case in _bench(device, cases, "gemm")["cases"]}
    rows = []
    for case in chosen["cases"]:
        ours, ratios = case["providers"]["ours"], case["ratios"]
        rows.append(
            (
                case["name"],
                "" if ours["error"] is None else f"{ours['error']:.1e} of {case['tolerance']:.0e}",
                _median(case, "ours"),
                _median(portable[case["name"]], "ours"),
                _median(case, "eager"),
                _median(case, "compile"),
                *(f"{ratios[peer]:.2f}" if peer in ratios else "" for peer in ("eager", "compile")),
                f"{ours['bound_fraction']:.0%}" if ours["bound_fraction"] else "",
            )
        )
    head = ("case", "error", "ours, ms", "by matrix products", "eager", "compile", "ours/eager")
    text = (
        "Medians over alternating rounds. Error: against torch eager, of what is allowed. "
        "Ratios below 1: ours is faster. GEMM: our share of the fastest torch.mm in that dtype.\n\n"
        + _table((*head, "ours/compile", "GEMM"), rows)
    )
    return text, any(case["red"] for case in chosen["cases"])


def _training(device: torch.device, is_quick: bool) -> tuple[str, bool]:
    precision = "fp32" if device.type == "cpu" else "bf16"
    size = ["--batch-size", "16", "--tile-px", "96", "--tiles", "8000", "--minutes", "0.4"]
    if is_quick:
        size = ["--batch-size", "2", "--tile-px", "32", "--tiles", "8", "--steps", "3"]
    runs, rows = (("sgd",), ("muon",), ("muon", "--cuda-graphs")), []
    for optimizer, *graphs in runs[-1:] if is_quick else runs:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "denoise_batch.training", str(SAMPLES), "-o", str(run)]
            command += ["--network", "unet-level", "--noise", "gaussian:0-55", "--loss", "log"]
            command += ["--targets", "clean", "--optimizer", optimizer, "--precision", precision]
            command += ["--validation-tiles", "8", "--device", str(device), *size, *graphs]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"denoise-train: {result.stderr.strip()[-500:]}")
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        rows.append((" ".join([optimizer, *graphs]), f"{last['images_per_s']:.1f}"))
    text = f"unet-level in {precision}, {' '.join(size)}; speed between its last two validations."
    return f"{text}\n\n{_table(('optimizer', 'images/s'), rows)}", False


def _folder(device: torch.device, is_quick: bool) -> tuple[str, bool]:
    quick = ["--images", "2", "--memory", "", "--weights", "tconv", "--threads", "1"]
    sizes = quick if is_quick else ["--images", "200", "--memory", "50,2000"]
    result = _bench(device, ["folder", *sizes], "auto")
    rows = [(f"{stage} alone", seconds) for stage, seconds in result["stages_alone_s"].items()]
    rows += [("stream", result["stream_s"]), ("… with estimates", result["measured_stream_s"])]
    if result["graphs_stream_s"]:
        rows.append(("… with CUDA graphs", result["graphs_stream_s"]))
    table = [
        (name, f"{s:.2f}", f"{result['images'] / s:.1f}", f"{result['megapixels'] / s:.2f}")
        for name, s in rows
    ]
    peaks = [f"{n} images: {peak / 2**20:.0f} MiB" for n, peak in result["peak_bytes"].items()]
    text = f"{result['images']} images, {result['megapixels']:.1f} megapixels, {result['weights']}."
    text += f" Peak memory of the command: {', '.join(peaks)}." if peaks else ""
    return f"{text}\n\n{_table(('', 'seconds', 'images/s', 'MP/s'), table)}", False


def _bench(device: torch.device, arguments: Sequence[str], kernels: str) -> dict[str, Any]:
    """Run scripts/bench with this implementation of the kernels; return its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [sys.executable, str(Path(__file__).parent), *arguments]
        command += ["--device", str(device), "--json", str(path)]
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


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["--"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
