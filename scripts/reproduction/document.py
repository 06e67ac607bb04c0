"""reproduction.md: the prose of document.md, with tables and figures of whatever has finished."""

from collections.abc import Callable
from pathlib import Path
from string import Template

import comparisons
import tables
from lab import Lab

from denoise_batch.files.atomic import atomic_write


def write_document(lab: Lab) -> None:
    """Draw the curves and write OUTPUT/reproduction.md."""
    _draw(lab)
    parts: dict[str, Callable[[Lab], str]] = {
        "scale": tables.scale,
        "data": tables.data,
        "results": tables.results,
        "sources": tables.sources,
        "gradients": tables.gradients,
        "ablation": tables.ablation,
        "slow": tables.slow,
        "noise2noise": comparisons.noise2noise,
        "parity": comparisons.parity,
        "cost": comparisons.cost,
    }
    template = (Path(__file__).parent / "document.md").read_text(encoding="utf-8")
    values = {name: part(lab) for name, part in parts.items()}
    for name in ("figure-1.svg", "figure-2.png", "figure-3.png", "gradients.svg", "cost.svg"):
        is_there = (lab.figures / name).exists()
        key = {"gradients.svg": "gradients_figure", "cost.svg": "cost_figure"}.get(
            name, name.split(".")[0].replace("-", "_")
        )
        values[key] = f"![{key}](reproduction/{name})" if is_there else tables.MISSING
    text = Template(template).substitute(values)
    lab.output.mkdir(parents=True, exist_ok=True)
    atomic_write(lab.output / "reproduction.md", text.encode())


def _draw(lab: Lab) -> None:
    try:
        import figures
    except ImportError:
        print("matplotlib is not installed (extra: reproduction): no curves")
        return
    runs = {stage: lab.result(stage).get("runs", {}) for stage in ("report", "repaired")}
    if any(runs.values()):
        noisy = lab.result("protocol").get("noisy_psnr") or float("nan")
        figures.draw_curves(lab.figures / "figure-1.svg", runs, noisy, lab.scale.tiles)
        figures.draw_gradients(lab.figures / "gradients.svg", runs, lab.scale.tiles)
    cost = lab.result("cost")
    if cost.get("mse"):
        psnrs = comparisons.common_psnrs(cost)
        count = len(comparisons.common_photographs(cost))
        figures.draw_cost(lab.figures / "cost.svg", cost["macs"], psnrs, count)
