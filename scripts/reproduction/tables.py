"""The tables of reproduction.md, from the results so far."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from config import NAMES, SCALES
from figures import epochs_of
from reproduction import Reproduction

from denoise_batch.metrics import psnr_of_mse

# The results keep their old spellings.
RECIPES = {
    "report": "course paper", "repaired": "repaired", "the report's": "the course paper's",
}  # fmt: skip
MISSING = "*Not run yet.*"


def scale(reproduction: Reproduction) -> str:
    """Say how much of the whole has been run."""
    whole = SCALES["whole"]
    if reproduction.scale.tiles != whole.tiles:
        return (
            f"**Smoke test** on {reproduction.scale.tiles} tiles; the numbers are not meaningful, "
            "and the text describes the full run."
        )
    wanted = {
        ("tconv", "report"): whole.report_epochs[0],
        ("upsample", "report"): whole.report_epochs[1],
        ("tconv", "repaired"): whole.repaired_epochs,
        ("upsample", "repaired"): whole.repaired_epochs,
    }
    parts = []
    for (name, stage), epochs in wanted.items():
        run = reproduction.result(stage).get("runs", {}).get(name)
        done = epochs_of(run, run["steps"], whole.tiles) if run else 0
        if done < epochs:
            parts.append(f"{NAMES[name]}, {RECIPES[stage]}: {done:g} of {epochs} epochs")
    if not parts:
        return "All runs are complete."
    return (
        f"**Not complete yet**: {'; '.join(parts)}. The tables of the short runs say how many "
        "steps they had."
    )


def data(reproduction: Reproduction) -> str:
    """Describe the data."""
    protocol = reproduction.result("protocol")
    if not protocol:
        return MISSING
    training, validation = protocol["photographs"]
    rows = [
        ("training pairs", f"{reproduction.scale.tiles} of 32×32, from {training} photographs"),
        (
            "validation tiles",
            f"{reproduction.scale.validation_tiles}, from {validation} other photographs",
        ),
        ("noisy validation tiles", _db(protocol["scores"]["noisy"])),
    ]
    return table(("", ""), rows)


def sources(reproduction: Reproduction) -> str:
    """Name the photographs in the figures."""
    files = sorted({file for row in reproduction.result("sources").values() for file in row})
    if not files:
        return MISSING
    named = ", ".join(f"`{file}`" for file in files)
    return f"From `scripts/corpus`, in the public domain or under CC0: {named}."


def results(reproduction: Reproduction) -> str:
    """PSNR of the trained networks and of existing weights."""
    scores, rows = reproduction.result("protocol").get("scores", {}), []
    if scores:
        rows.append(("noisy", "", "", *_db_cells(scores["noisy"])))
    for stage in ("report", "repaired"):
        for name, run in reproduction.result(stage).get("runs", {}).items():
            epochs = f"{epochs_of(run, run['steps'], reproduction.scale.tiles):g}"
            last = run["rows"][-1]["psnr"]
            cells = _db_cells({"psnr": last, "psnr_mean": run["psnr_mean"]})
            rows.append((NAMES[name], RECIPES[stage], epochs, *cells))
    labels = {
        "report authors": ("Architecture 1", "the course paper's published weights", "15"),
        "tconv": ("Architecture 1", "shipped `tconv`, turned tiles, reflected margin", "30"),
        "upsample": ("Architecture 2", "shipped `upsample`, turned tiles", "12"),
    }
    rows += [(*labels[k], *_db_cells(v)) for k, v in scores.items() if k in labels]
    head = ("network", "recipe", "epochs", "PSNR, one MSE", "PSNR, mean of tiles")
    return table(head, rows) if rows else MISSING


def gradients(reproduction: Reproduction) -> str:
    """Gradient norms in the first steps, by layer."""
    rows = []
    for name, run in reproduction.result("gradients").get("runs", {}).items():
        architecture, label = name.split(", ", 1)
        norms = list(run["rows"][-1]["gradients"].values())
        share = f"{norms[0] / norms[-1]:.2f}"
        rows.append(
            (
                NAMES[architecture],
                RECIPES.get(label, label),
                *(f"{norm:.1e}" for norm in norms),
                share,
            )
        )
    layers = [f"‖dW{number}‖" for number in range(1, 5)]
    return table(("network", "recipe", *layers, "first/last"), rows) if rows else MISSING


def ablation(reproduction: Reproduction) -> str:
    """One change at a time, both architectures."""
    runs = reproduction.result("ablation").get("runs", {})
    if not runs:
        return MISSING
    labels = dict.fromkeys(name.split(", ", 1)[1] for name in runs)
    rows = []
    for label in labels:
        cells = [label]
        for name in NAMES:
            run = runs.get(f"{name}, {label}")
            cells += _run_cells(run) if run else ["–", "–"]
        rows.append(tuple(cells))
    head = ["recipe (the course paper's, with)"]
    for title in NAMES.values():
        head += [f"{title}: dB", "dead channels"]
    batches = "of batch 4 (Architecture 2 repaired: 8)"
    return f"{steps_of(runs)} steps each, {batches}:\n\n{table(head, rows)}"


def steps_of(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the length of the runs; several while a longer scale is running."""
    lengths = sorted({run["steps"] for run in runs.values()})
    return " or ".join(map(str, lengths))


def _run_cells(run: Mapping[str, Any]) -> list[str]:
    row = run["rows"][-1]
    if row["psnr"] is None:
        return ["diverged", "–"]
    return [f"{row['psnr']:.2f}", " ".join(f"{share:.0%}" for share in row["dead"])]


def slow(reproduction: Reproduction) -> str:
    """A low rate for many steps beside a high one for few."""
    fast = reproduction.result("ablation").get("runs", {}).get("upsample, lr 0.5")
    runs = [fast, reproduction.result("slow").get("runs", {}).get("upsample")]
    rows = [
        (f"{run['recipe']['lr']:g}", str(run["steps"]), _run_cells(run)[0]) for run in runs if run
    ]
    return table(("lr, Architecture 2", "steps", "dB"), rows) if rows else MISSING


def _db(score: Mapping[str, float]) -> str:
    return f"{score['psnr']:.2f} dB (one MSE), {score['psnr_mean']:.2f} dB (mean of tiles)"


def _db_cells(score: Mapping[str, float]) -> tuple[str, str]:
    return f"{score['psnr']:.2f}", f"{score['psnr_mean']:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|--" * len(head) + "|", *lines[1:]])


def noise2noise(reproduction: Reproduction) -> str:
    """Noisy against clean targets."""
    runs = reproduction.result("noise2noise").get("runs", {})
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


def parity(reproduction: Reproduction) -> str:
    """Our layers beside torch."""
    result = reproduction.result("parity")
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
        # Results of earlier versions have operations of their own for small batches.
        ("ours, lean operations" if "gemm" in times else "ours", *_ratio(times, "ours")),
        *((("ours, `kernels/gemm`", *_ratio(times, "gemm")),) if "gemm" in times else ()),
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


def cost(reproduction: Reproduction) -> str:
    """Quality against cost."""
    found = reproduction.result("cost")
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
    """Return the photographs that everyone has denoised; slow BM3D may have done fewer."""
    errors = cost["mse"]
    return [file for file in errors["noisy"] if file in (errors.get("BM3D") or errors["noisy"])]


def common_psnrs(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return PSNR on them in dB, of everyone who has denoised all photographs, and of BM3D."""
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
