"""What `denoise-train` shows of a run while it goes on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..training.data import Counts
    from ..training.runs import Epoch
    from ..training.train import Watcher


def watcher_of(progress: "Progress", batch_size: int) -> "Watcher":
    """Live steps, and a line for every epoch."""
    from ..training.train import Watcher

    task = progress.add_task("steps", total=None, images_per_s=0.0)

    def on_start(counts: "Counts", noisy_psnr: float) -> None:
        skipped = f" ({counts.too_small} more are too small)" if counts.too_small else ""
        progress.console.print(
            f"{counts.training} to train on, {counts.validation} to validate with{skipped}; noisy "
            f"validation tiles: {noisy_psnr:.2f} dB",
            highlight=False,
            soft_wrap=True,
        )

    def on_step(step: int, steps: int) -> None:
        speed = progress.tasks[0].speed or 0.0  # steps a second, lately
        images_per_s = speed * batch_size
        progress.update(task, completed=step, total=steps, images_per_s=images_per_s)

    def on_epoch(epoch: "Epoch") -> None:
        progress.console.print(
            f"epoch {epoch.number}: training loss {epoch.training_loss:.6f}, validation "
            f"{epoch.validation_psnr:.3f} dB, lr {epoch.lr:.3g}, {epoch.seconds:.0f} s, "
            f"{epoch.images_per_s:.0f} images/s{', best so far' if epoch.is_best else ''}",
            highlight=False,
            soft_wrap=True,
        )

    return Watcher(on_start, on_step, on_epoch)
