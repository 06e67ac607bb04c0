"""The curves, as SVG: the report's Figure 1, gradient norms by layer, quality against cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tables import NAMES, epochs_of

from denoise_batch.files.atomic import atomic_file

# The same results give the same bytes, and no font is needed to read the words.
mpl.rcParams.update({"svg.hashsalt": "reproduction", "svg.fonttype": "none", "font.size": 9})

Runs = Mapping[str, Mapping[str, Any]]


def draw_curves(path: Path, stages: Mapping[str, Runs], noisy_psnr: float, tiles: int) -> None:
    """Training loss, validation loss and PSNR over the epochs, a row for each architecture.

    Args:
        path: SVG to write.
        stages: label → runs by architecture.
        noisy_psnr: dB of the noisy validation tiles.
        tiles: of an epoch.
    """
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.subplots(2, 3)
    columns = {
        "training_loss": "training loss",
        "validation_loss": "validation loss",
        "psnr": "validation PSNR",
    }
    for (architecture, title), axes_row in zip(NAMES.items(), grid, strict=True):
        for (key, label), axes in zip(columns.items(), axes_row, strict=True):
            for stage, runs in stages.items():
                run = runs.get(architecture, {})
                points = [
                    (epochs_of(run, row["step"], tiles), row[key])
                    for row in run.get("rows", [])
                    if row[key] is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), marker=".", label=stage)
            axes.set(title=f"{title}: {label}", xlabel="epoch")
            axes.grid(alpha=0.3)
            if key == "psnr":
                axes.set_ylabel("dB")
                axes.axhline(noisy_psnr, linestyle="--", color="gray", label="noisy")
                axes.legend()
            else:
                axes.set_yscale("log")
    _save(path, figure)


def draw_gradients(path: Path, stages: Mapping[str, Runs], tiles: int) -> None:
    """Norm of every layer's weight gradient over the epochs, a column for each architecture."""
    figure = Figure(figsize=(10, 2.8 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), 2, sharey=True, squeeze=False)
    for (stage, runs), axes_row in zip(stages.items(), grid, strict=True):
        for (architecture, title), axes in zip(NAMES.items(), axes_row, strict=True):
            run = runs.get(architecture, {})
            rows = run.get("rows", [])[1:]
            for number, name in enumerate(rows[0]["gradients"] if rows else ()):
                epochs = [epochs_of(run, row["step"], tiles) for row in rows]
                norms = [row["gradients"][name] for row in rows]
                axes.plot(epochs, norms, marker=".", label=f"convolution {number + 1}")
            axes.set(title=f"{title}, {stage}", xlabel="epoch", yscale="log")
            axes.set(ylabel="‖gradient of the weight‖")
            axes.grid(alpha=0.3)
            if rows:
                axes.legend(fontsize=7)
    _save(path, figure)


def draw_cost(
    path: Path, macs: Mapping[str, float], psnrs: Mapping[str, float], count: int
) -> None:
    """PSNR on Kodak against multiply-adds a pixel; what has no such number is a line."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, psnr in psnrs.items():
        if name in macs:
            axes.plot(macs[name], psnr, "o", color="tab:blue")
            axes.annotate(name, (macs[name], psnr), (6, 4), textcoords="offset points")
        else:
            axes.axhline(psnr, linestyle="--", color="gray", linewidth=1)
            axes.annotate(
                name, (0.01, psnr), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )  # fmt: skip
    axes.set(xscale="log", xlabel="multiply-adds a pixel", ylabel="PSNR, dB")
    axes.set_title(f"Kodak ({count} of 24 photographs), colour, Gaussian σ = 25")
    axes.grid(alpha=0.3)
    axes.margins(0.3, 0.1)
    axes.xaxis.set_minor_formatter(NullFormatter())
    _save(path, figure)


def _save(path: Path, figure: Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
