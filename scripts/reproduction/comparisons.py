"""The tables of what is measured beside something: clean targets, torch, BM3D."""

import statistics
from collections.abc import Mapping
from typing import Any

from lab import Lab
from tables import MISSING, NAMES, steps_of, table

from denoise_batch.metrics import psnr_of_mse


def noise2noise(lab: Lab) -> str:
    """Noisy targets against clean ones."""
    runs = lab.result("noise2noise").get("runs", {})
    found: dict[str, dict[str, list[float]]] = {}
    for name, run in runs.items():
        noise, targets, _ = name.split(" ")
        found.setdefault(noise, {}).setdefault(targets, []).append(run["rows"][-1]["psnr"])
    rows = []
    for noise, by_target in found.items():
        noisy, clean = by_target.get("noisy", []), by_target.get("clean", [])
        pairs = [a - b for a, b in zip(noisy, clean, strict=False)]
        rows.append((f"`{noise}`", _mean(noisy), _mean(clean), _mean(pairs), str(len(pairs))))
    if not rows:
        return MISSING
    steps = steps_of(runs)
    head = ("noise", "noisy targets, dB", "clean targets, dB", "difference", "seeds")
    return f"Architecture 1, repaired recipe, {steps} steps of batch 4 each:\n\n{table(head, rows)}"


def parity(lab: Lab) -> str:
    """Ours beside torch."""
    result = lab.result("parity")
    if not result:
        return MISSING
    times, single, double = result["cpu_ms"], result["single"], result["double"]
    both = [
        ("steps of batch 4", str(result["steps"]), str(double["steps"])),
        *((f"final PSNR, {who}, dB", *_each(who, single, double)) for who in ("ours", "torch")),
    ]
    labels = {
        "psnr_difference": "difference, dB",
        "outputs": "largest difference of an output",
        "parameters": "largest difference of a parameter",
        "relative": "… by the largest of its tensor",
        "moved": "to compare: the furthest that training moved one",
    }
    both += [(label, f"{single[key]:.1e}", f"{double[key]:.1e}") for key, label in labels.items()]
    speed = [
        ("torch", f"{times['torch']:.2f}", ""),
        ("ours, lean operations", *_ratio(times, "ours")),
        ("ours, `kernels/gemm`", *_ratio(times, "gemm")),
    ]
    head = (f"lr {result['lr']:g}, {NAMES[result['architecture']]}", "float32", "float64")
    return (
        f"{table(head, both)}\n\n"
        f"{table(('a step of batch 4, float32', 'ms of processor time', 'of torch'), speed)}"
    )


def _each(who: str, *results: Mapping[str, Any]) -> list[str]:
    return [f"{result['psnr'][who]:.3f}" for result in results]


def _ratio(times: Mapping[str, float], name: str) -> tuple[str, str]:
    return f"{times[name]:.2f}", f"{times[name] / times['torch']:.2f}"


def cost(lab: Lab) -> str:
    """Quality against multiply-adds."""
    found = lab.result("cost")
    if not found.get("mse"):
        return MISSING
    errors = found["mse"]
    files = list(errors["noisy"])
    common = common_photographs(found)
    rows = []
    for name in common_psnrs(found):
        macs = found["macs"].get(name)
        times = found["seconds"].get(name, {}).values()
        seconds = f"{statistics.mean(times):.2f}" if times else ""
        cells = [_psnr_on(errors[name], chosen) for chosen in (files, common)]
        rows.append((name, f"{macs:,.0f}" if macs else "–", *cells, seconds))
    head = (
        "",
        "multiply-adds a pixel",
        f"dB, {len(files)} photographs",
        f"dB, the {len(common)} of BM3D",
    )
    return table((*head, "processor seconds a photograph"), rows)


def common_photographs(cost: Mapping[str, Any]) -> list[str]:
    """Those that all have denoised; BM3D takes minutes, and may have done fewer."""
    errors = cost["mse"]
    return [file for file in errors["noisy"] if file in (errors.get("BM3D") or errors["noisy"])]


def common_psnrs(cost: Mapping[str, Any]) -> dict[str, float]:
    """dB on them of everyone who took part in all; of OpenCV's strengths the one that did."""
    files, count = common_photographs(cost), len(cost["mse"]["noisy"])
    return {
        name: statistics.mean(psnr_of_mse(errors[file]) for file in files)
        for name, errors in cost["mse"].items()
        if errors and (len(errors) == count or name == "BM3D")
    }


def _psnr_on(errors: Mapping[str, float], files: list[str]) -> str:
    found = [psnr_of_mse(errors[file]) for file in files if file in errors]
    return f"{statistics.mean(found):.2f}" if len(found) == len(files) and files else "–"


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"
