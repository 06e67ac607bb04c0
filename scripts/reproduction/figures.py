"""The figures: curves as SVG, and tiles (clean, noisy, outputs) as PNG."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from config import NAMES, Recipe
from dataset import SOURCE_PX, VALIDATION_SHARE, Dataset
from PIL import Image
from reproduction import Reproduction
from score_protocol import load_any
from torch import Tensor
from training import Data, layers_of

from denoise_batch.files.atomic import atomic_file
from denoise_batch.files.pixels import to_pil
from denoise_batch.metrics import psnr
from denoise_batch.models import shipped_file, shipped_names
from denoise_batch.training.data import VALIDATION_SEED, split_photographs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Mapping[str, Any]]

TILES = 8
ZOOM, GAP_PX = 3, 3
# Tiles whose clean version varies less than this show nothing.
FLAT = 0.04
FREE = ("public-domain", "CC0-1.0")


def draw_curves(path: Path, stages: Mapping[str, Runs], noisy_psnr: float, tiles: int) -> None:
    """Plot training loss, validation loss and PSNR over the epochs, a row per architecture.

    Args:
        path: SVG to write.
        stages: label → runs by architecture.
        noisy_psnr: dB of the noisy validation tiles.
        tiles: number of tiles in an epoch.
    """
    figure = _figure((10, 5.4))
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
    """Plot the norm of each weight's gradient over the epochs, a column per architecture."""
    figure = _figure((10, 2.8 * len(stages)))
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
    """Plot PSNR on Kodak against multiply-adds per pixel; peers without that number are lines."""
    from matplotlib.ticker import NullFormatter

    figure = _figure((7, 4.2))
    axes = figure.subplots()
    for name, value in psnrs.items():
        if name in macs:
            axes.plot(macs[name], value, "o", color="tab:blue")
            axes.annotate(name, (macs[name], value), (6, 4), textcoords="offset points")
        else:
            axes.axhline(value, linestyle="--", color="gray", linewidth=1)
            axes.annotate(
                name, (0.01, value), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )  # fmt: skip
    axes.set(xscale="log", xlabel="multiply-adds a pixel", ylabel="PSNR, dB")
    axes.set_title(f"Kodak ({count} of 24 photographs), colour, Gaussian σ = 25")
    axes.grid(alpha=0.3)
    axes.margins(0.3, 0.1)
    axes.xaxis.set_minor_formatter(NullFormatter())
    _save(path, figure)


def epochs_of(run: Mapping[str, Any], steps: int, tiles: int) -> float:
    """Return how often a run has seen every tile after so many steps."""
    batch_size: int = run["recipe"]["batch_size"]
    return steps * batch_size / tiles


def _figure(size: tuple[float, float]) -> "Figure":
    """Create a figure; matplotlib is an extra."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Equal results give equal bytes, and the text needs no font.
    mpl.rcParams.update({"svg.hashsalt": "reproduction", "svg.fonttype": "none", "font.size": 9})
    return Figure(figsize=size, layout="constrained")


def _save(path: Path, figure: "Figure") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def score_dataset(reproduction: Reproduction) -> dict[str, Any]:
    """Score the shipped and the authors' weights: PSNR of one MSE over all tiles, and averaged."""
    files = {name: shipped_file(name) for name in shipped_names() if name in ("tconv", "upsample")}
    if reproduction.authors is not None:
        files["report authors"] = reproduction.authors
    dataset, scores = reproduction.dataset, {}
    for name, file in files.items():
        scores[name] = _score(_batched(load_any(file), dataset.validation_noisy), dataset)
    noisy = _score(dataset.validation_noisy, dataset)
    return {"scores": {"noisy": noisy} | scores, "photographs": list(dataset.photographs)}


def draw_tiles(reproduction: Reproduction) -> None:
    """Draw figure-2.png, the tiles that gain most, and figure-3.png, the worst outputs."""
    dataset = reproduction.dataset
    columns = [dataset.validation_clean, dataset.validation_noisy]
    for stage, name in (("report", "tconv"), ("repaired", "tconv"), ("repaired", "upsample")):
        run = reproduction.result(stage).get("runs", {}).get(name)
        file = reproduction.checkpoint(stage, name)
        if run is None or not file.exists():
            return
        columns.append(_denoised(run["recipe"], file, dataset))
    clean, noisy, output = columns[0], columns[1], columns[3]
    before, after = _each_psnr(noisy, clean), _each_psnr(output, clean)
    is_flat = clean.std((1, 2, 3)) < FLAT
    photographs, licences = _photographs(reproduction), _licences(reproduction.corpus)
    sources: dict[str, list[str]] = {}
    ranks = {"figure-2": torch.where(is_flat, -torch.inf, after - before)}
    ranks["figure-3"] = torch.where(is_flat, -torch.inf, -after)
    for figure, rank in ranks.items():
        chosen = _best(rank.tolist(), photographs, licences)
        _draw(reproduction.figures / f"{figure}.png", [images[chosen] for images in columns])
        sources[figure] = [photographs[tile] for tile in chosen]
    reproduction.keep("sources", sources)


def _photographs(reproduction: Reproduction) -> list[str]:
    """Return the photograph of every validation tile, as `map_tiles` assigns them."""
    corpus = reproduction.corpus
    files = split_photographs(corpus, SOURCE_PX, VALIDATION_SHARE).validation
    count = len(reproduction.dataset.validation_clean)
    order = list(range(count))
    random.Random(VALIDATION_SEED).shuffle(order)
    names = [""] * count
    for position, tile in enumerate(order):
        names[tile] = files[position % len(files)].relative_to(corpus).as_posix()
    return names


def _best(rank: list[float], photographs: Sequence[str], licences: Mapping[str, str]) -> list[int]:
    """Return the highest-ranking tiles, one per photograph, whose licence is free."""
    found: dict[str, int] = {}
    for tile in sorted(range(len(rank)), key=lambda tile: -rank[tile]):
        if licences.get(photographs[tile], FREE[0]) in FREE:
            found.setdefault(photographs[tile], tile)
    return list(found.values())[:TILES]


def _licences(corpus: Path) -> dict[str, str]:
    """Return the licence of every photograph from the corpus's manifest."""
    file = corpus / "manifest.json"
    if not file.exists():
        return {}
    manifest = json.loads(file.read_text(encoding="utf-8"))
    return {photograph["file"]: photograph["licence"] for photograph in manifest["photographs"]}


def _denoised(recipe: dict[str, Any], file: Path, dataset: Dataset) -> Tensor:
    data, network = Data(Recipe(**recipe), dataset), layers_of(Recipe(**recipe), file)
    return _batched(lambda tiles: network(data.standardize(tiles)), data.noisy)


def _batched(denoise: Callable[[Tensor], Tensor], noisy: Tensor) -> Tensor:
    return torch.cat([denoise(part) for part in noisy.split(50)])


def _score(images: Tensor, dataset: Dataset) -> dict[str, float]:
    clean = dataset.validation_clean
    return {
        "psnr": psnr(images, clean),
        "psnr_mean": _each_psnr(images, clean).mean().item(),
    }


def _each_psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Return the PSNR of every tile in dB."""
    error = (images.double() - clean.double()).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def _draw(path: Path, rows: Sequence[Tensor]) -> None:
    """Draw a row per version and a column per tile."""
    side = rows[0].shape[3] * ZOOM
    size = (len(rows[0]) * (side + GAP_PX) - GAP_PX, len(rows) * (side + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            levels = (tile.clamp(0, 1) * 255).round().to(torch.uint8)
            image = to_pil(levels.permute(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (column * (side + GAP_PX), row * (side + GAP_PX)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
