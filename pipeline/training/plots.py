"""Pictures of a training run: samples.png (Pillow) and curves.png (matplotlib, extra `plots`)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..files.atomic import atomic_file
from ..files.pixels import to_pil

SAMPLES = 6
GAP_PX = 4


def draw_samples(path: Path, clean: Tensor, noisy: Tensor, output: Tensor) -> None:
    """Rows of clean | noisy | output, as the report's Figures 2 and 3 show them.

    Args:
        path: PNG to write.
        clean: (N, 3, H, W) in [0, 1]; the first `SAMPLES` are drawn.
        noisy: likewise.
        output: likewise.
    """
    count, _, height, width = clean[:SAMPLES].shape
    zoom = max(1, 128 // width)
    size = (3 * (width * zoom + GAP_PX) - GAP_PX, count * (height * zoom + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    for row in range(count):
        for column, images in enumerate((clean, noisy, output)):
            tile = _to_image(images[row]).resize(
                (width * zoom, height * zoom), Image.Resampling.BOX
            )
            sheet.paste(tile, (column * (width * zoom + GAP_PX), row * (height * zoom + GAP_PX)))
    with atomic_file(path) as file:
        sheet.save(file, "PNG")


class Curves:
    """curves.png of a run, drawn now and then: a drawing takes as long as a hundred small steps.

    Args:
        path: PNG to write.
        noisy_psnr: dB of the noisy validation tiles.
        seconds: at least, between two drawings.
    """

    def __init__(self, path: Path, noisy_psnr: float, seconds: float = 20.0) -> None:
        self.path = path
        self.noisy_psnr = noisy_psnr
        self.seconds = seconds
        self._drawn_at = time.monotonic()
        self._rows: Sequence[Mapping[str, Any]] = ()  # not drawn yet

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All lines of metrics.jsonl, after an epoch."""
        self._rows = rows
        if time.monotonic() - self._drawn_at >= self.seconds:
            self.draw()

    def draw(self) -> None:
        """Draw what is not drawn yet."""
        if self._rows:
            draw_curves(self.path, self._rows, self.noisy_psnr)
        self._rows = ()
        self._drawn_at = time.monotonic()


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], noisy_psnr: float) -> bool:
    """Training loss, validation loss and PSNR over the epochs, as the report's Figure 1.

    Args:
        path: PNG to write.
        rows: the lines of metrics.jsonl.
        noisy_psnr: dB of the noisy validation tiles, for the title: as a line far below it would
            flatten the curve.

    Returns:
        False without matplotlib: nothing is drawn then.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    epochs = [row["number"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, psnrs = figure.subplots(1, 2)
    values = [row["validation_psnr"] for row in rows]
    errors = [10 ** (-value / 10) for value in values]
    style = {"marker": "o", "markersize": 3}
    losses.plot(epochs, [row["training_loss"] for row in rows], label="training", **style)
    losses.plot(epochs, errors, label="validation", **style)
    losses.set(xlabel="epoch", ylabel="mean squared error", title="loss", yscale="log")
    losses.legend()
    psnrs.plot(epochs, values, color="C1", **style)
    psnrs.set(
        xlabel="epoch", ylabel="dB", title=f"validation PSNR (noisy tiles: {noisy_psnr:.2f} dB)"
    )
    for axes in (losses, psnrs):
        axes.grid(alpha=0.3)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def _to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as a Pillow image."""
    return to_pil((pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0))
