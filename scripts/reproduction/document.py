"""Write reproduction.md: the text of document.md with the tables and figures so far."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from string import Template

import figures
import tables
from reproduction import Reproduction

from denoise_batch.files.atomic import atomic_write


def write_document(reproduction: Reproduction) -> None:
    """Draw the curves and write OUTPUT/reproduction.md."""
    _draw(reproduction)
    parts: dict[str, Callable[[Reproduction], str]] = {
        "scale": tables.scale,
        "data": tables.data,
        "results": tables.results,
        "sources": tables.sources,
        "gradients": tables.gradients,
        "ablation": tables.ablation,
        "slow": tables.slow,
        "noise2noise": tables.noise2noise,
        "parity": tables.parity,
        "cost": tables.cost,
    }
    template = (Path(__file__).parent / "document.md").read_text(encoding="utf-8")
    values = {name: part(reproduction) for name, part in parts.items()}
    for name in ("figure-1.svg", "figure-2.png", "figure-3.png", "gradients.svg", "cost.svg"):
        is_there = (reproduction.figures / name).exists()
        key = {"gradients.svg": "gradients_figure", "cost.svg": "cost_figure"}.get(
            name, name.split(".")[0].replace("-", "_")
        )
        values[key] = f"![{key}](reproduction/{name})" if is_there else tables.MISSING
    text = Template(template).substitute(values)
    reproduction.output.mkdir(parents=True, exist_ok=True)
    atomic_write(reproduction.output / "reproduction.md", text.encode())


def _draw(reproduction: Reproduction) -> None:
    if not importlib.util.find_spec("matplotlib"):
        print("matplotlib is not installed (extra: reproduction): no curves")
        return
    labels = {"report": "course paper", "repaired": "repaired"}
    runs = {label: reproduction.result(name).get("runs", {}) for name, label in labels.items()}
    if any(runs.values()):
        noisy = reproduction.result("protocol").get("noisy_psnr") or float("nan")
        figures.draw_curves(
            reproduction.figures / "figure-1.svg", runs, noisy, reproduction.scale.tiles
        )
        figures.draw_gradients(
            reproduction.figures / "gradients.svg", runs, reproduction.scale.tiles
        )
    cost = reproduction.result("cost")
    if cost.get("mse"):
        psnrs = tables.common_psnrs(cost)
        count = len(tables.common_photographs(cost))
        figures.draw_cost(reproduction.figures / "cost.svg", cost["macs"], psnrs, count)
