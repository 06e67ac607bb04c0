"""The tables of reproduction.md, each of what its stage has found so far."""

from collections.abc import Iterable, Mapping
from typing import Any

from lab import Lab
from scale import SCALES

NAMES = {"tconv": "Architecture 1", "upsample": "Architecture 2"}
# The results keep the names that the stages had when they ran.
RECIPES = {
    "report": "course paper", "repaired": "repaired", "the report's": "the course paper's",
}  # fmt: skip
MISSING = "*Not run yet.*"


def scale(lab: Lab) -> str:
    """How much of the whole there is, whatever was asked for."""
    whole = SCALES["whole"]
    if lab.scale.tiles != whole.tiles:
        return (
            f"**Smoke test** on {lab.scale.tiles} tiles; the numbers are not meaningful, and the "
            "text describes the full run."
        )
    wanted = {
        ("tconv", "report"): whole.report_epochs[0],
        ("upsample", "report"): whole.report_epochs[1],
        ("tconv", "repaired"): whole.repaired_epochs,
        ("upsample", "repaired"): whole.repaired_epochs,
    }
    parts = []
    for (name, stage), epochs in wanted.items():
        run = lab.result(stage).get("runs", {}).get(name)
        done = epochs_of(run, run["steps"], whole.tiles) if run else 0
        if done < epochs:
            parts.append(f"{NAMES[name]}, {RECIPES[stage]}: {done:g} of {epochs} epochs")
    if not parts:
        return "All runs are complete."
    return (
        f"**Not complete yet**: {'; '.join(parts)}. The tables of the short runs say how many "
        "steps they had."
    )


def epochs_of(run: Mapping[str, Any], steps: int, tiles: int) -> float:
    """How many times a run has seen every tile after so many steps."""
    batch_size: int = run["recipe"]["batch_size"]
    return steps * batch_size / tiles


def data(lab: Lab) -> str:
    """What the networks are trained and scored on."""
    protocol = lab.result("protocol")
    if not protocol:
        return MISSING
    training, validation = protocol["photographs"]
    rows = [
        ("training pairs", f"{lab.scale.tiles} of 32×32, from {training} photographs"),
        ("validation tiles", f"{lab.scale.validation_tiles}, from {validation} other photographs"),
        ("noisy validation tiles", _db(protocol["scores"]["noisy"])),
    ]
    return table(("", ""), rows)


def sources(lab: Lab) -> str:
    """Where the pictures' photographs come from."""
    files = sorted({file for row in lab.result("sources").values() for file in row})
    if not files:
        return MISSING
    named = ", ".join(f"`{file}`" for file in files)
    return f"Of `scripts/corpus`, in the public domain or under CC0: {named}."


def results(lab: Lab) -> str:
    """PSNR of everything trained, and of the weights that are at hand."""
    scores, rows = lab.result("protocol").get("scores", {}), []
    if scores:
        rows.append(("noisy", "", "", *_db_cells(scores["noisy"])))
    for stage in ("report", "repaired"):
        for name, run in lab.result(stage).get("runs", {}).items():
            epochs = f"{epochs_of(run, run['steps'], lab.scale.tiles):g}"
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


def gradients(lab: Lab) -> str:
    """Norms in the first steps, layer by layer."""
    rows = []
    for name, run in lab.result("gradients").get("runs", {}).items():
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


def ablation(lab: Lab) -> str:
    """One thing changed at a time, both architectures."""
    runs = lab.result("ablation").get("runs", {})
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
    """How long the runs were: all as long, unless a longer scale is under way."""
    lengths = sorted({run["steps"] for run in runs.values()})
    return " or ".join(map(str, lengths))


def _run_cells(run: Mapping[str, Any]) -> list[str]:
    row = run["rows"][-1]
    if row["psnr"] is None:
        return ["diverged", "–"]
    return [f"{row['psnr']:.2f}", " ".join(f"{share:.0%}" for share in row["dead"])]


def slow(lab: Lab) -> str:
    """A low rate for long beside a high one for a short time."""
    fast = lab.result("ablation").get("runs", {}).get("upsample, lr 0.5")
    runs = [fast, lab.result("slow").get("runs", {}).get("upsample")]
    rows = [
        (f"{run['recipe']['lr']:g}", str(run["steps"]), _run_cells(run)[0]) for run in runs if run
    ]
    return table(("lr, Architecture 2", "steps", "dB"), rows) if rows else MISSING


def _db(score: Mapping[str, float]) -> str:
    return f"{score['psnr']:.2f} dB (one MSE), {score['psnr_mean']:.2f} dB (mean of tiles)"


def _db_cells(score: Mapping[str, float]) -> tuple[str, str]:
    return f"{score['psnr']:.2f}", f"{score['psnr_mean']:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|--" * len(head) + "|", *lines[1:]])
