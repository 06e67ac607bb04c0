"""What `denoise-train` shows on stderr: what computes, the data, every validation, and a bar."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment, Segments
from rich.style import Style

from ..device import describe_device
from ..doctor import computing
from ..progress import Progress as Receiver
from ..training.options import TrainOptions
from ..training.run_folder import RunFolder, ValidationResult
from ..training.train import TrainStart

FIRST_SPEED_S = 1.0  # of steps, before their speed is worth showing
PREVIEW_CELLS = (74, 12)  # of the first row of samples.png


class TrainingBar(Receiver[TrainStart, ValidationResult]):
    """Shows a bar of the steps, and a line for every validation.

    Args:
        bar: the terminal's progress display.
        options: the run.
    """

    def __init__(self, bar: Progress, options: TrainOptions) -> None:
        self._bar = bar
        self._options = options
        self._noisy_psnr = 0.0
        self._is_last = False
        self._done = 0
        self._speed = ""
        self._since = (0.0, 0)  # when steps began without a pause, and after how many
        self._task = bar.add_task("reading the data", total=None, speed="")

    def show_device(self, device: torch.device) -> None:
        """Say what is going to compute, before the data is read."""
        options = self._options
        self._print(
            f"{options.network}, {options.precision} on {describe_device(str(device))}: "
            f"{computing(device)}"
        )

    def on_start(self, start: TrainStart) -> None:
        """Print the size of the data, how noisy it is, and where a resumed run goes on."""
        counts, options = start.counts, self._options
        skipped = f" ({counts.too_small} more are too small)" if counts.too_small else ""
        self._print(
            f"{counts.training} to train on, {counts.validation} to validate on{skipped}; noisy "
            f"validation tiles: {start.noisy_psnr:.2f} dB"
        )
        for note in counts.notes:
            self._print(note)
        length = f"{start.steps} steps" if start.steps else f"{options.minutes:g} minutes"
        self._print(f"{length}, {options.batch_size} tiles a step, {start.tiles} an epoch")
        self._noisy_psnr = start.noisy_psnr
        if start.step or start.best:
            best = start.best
            so_far = "no validation yet"
            if best is not None:
                so_far = f"best so far: {best.validation_psnr:.3f} dB at step {best.step}"
            self._print(f"goes on after step {start.step} (epoch {start.epoch:.2f}); {so_far}")
        elif options.resume:
            self._print("nothing to resume here: a new run begins")
        self._bar.reset(self._task, total=start.steps, completed=start.step, description="steps")
        self._done = start.step
        self._since = time.monotonic(), start.step

    def on_step(self, name: str, done: int, total: int) -> None:
        """Move the bar."""
        began, before = self._since
        seconds, is_first = time.monotonic() - began, not self._speed
        if seconds >= FIRST_SPEED_S:
            rate = (done - before) / seconds
            left = timedelta(seconds=round((total - done) / rate))
            self._speed = f"{rate * self._options.batch_size:.0f} images/s, {left} left"
            if is_first and self._bar.disable:
                self._print(self._speed)
        self._bar.update(self._task, completed=done, total=total, speed=self._speed)
        self._done, self._is_last = done, done >= total

    def on_result(self, result: ValidationResult) -> None:
        """Print a validation, and how the tiles look after the first and the last one."""
        gain = result.validation_psnr - self._noisy_psnr
        score = f"validation {result.validation_psnr:.3f} dB ({gain:+.2f})"
        if result.training_loss is None:
            self._print(f"step 0, --init {self._options.init} as it is: {score}")
        else:
            self._print(
                f"step {result.step} (epoch {result.epoch:.2f}): training loss "
                f"{result.training_loss:.6f}, {score}, lr {result.lr:.3g}, "
                f"{result.images_per_s:.0f} images/s{', best so far' if result.is_best else ''}"
            )
        if result.number == 1 or self._is_last:
            self._show_samples(RunFolder(self._options.output).samples)
        self._since = time.monotonic(), self._done

    def _show_samples(self, path: Path) -> None:
        """Draw the first row of samples.png, if the terminal has the colours for it."""
        console, (width, height) = self._bar.console, PREVIEW_CELLS
        is_capable = console.is_terminal and console.color_system == "truecolor"
        if not is_capable or console.width < width or not console.encoding.startswith("utf"):
            return
        with Image.open(path) as sheet:
            row = sheet.convert("RGB").crop((0, 0, sheet.width, sheet.width // 3))
        console.print(half_blocks(row.resize((width, 2 * height), Image.Resampling.BOX)))
        names = {"clean": "clean", "single": "of the same noisy image"}
        first = names.get(self._options.kind, "second shot")
        self._print(f"{first} | noisy | output, more in {path}")

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)


def half_blocks(picture: Image.Image) -> Segments:
    """Draw an RGB picture of even height with two pixels in each cell of a terminal."""
    segments = []
    for top in range(0, picture.height, 2):
        for across in range(picture.width):
            upper, lower = (
                Color.from_rgb(*picture.crop((across, y, across + 1, y + 1)).tobytes())
                for y in (top, top + 1)
            )
            segments.append(Segment("▀", Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)


@contextmanager
def training_bar(options: TrainOptions) -> Iterator[TrainingBar]:
    """Show the bar on stderr inside the block; without a terminal only the lines.

    After an error or a signal nothing of the bar stays.
    """
    console = Console(stderr=True, emoji=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    is_shown = console.is_terminal and not console.is_dumb_terminal
    with Progress(*columns, console=console, disable=not is_shown) as bar:
        try:
            yield TrainingBar(bar, options)
        except BaseException:
            bar.live.transient = True
            raise
