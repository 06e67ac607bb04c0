"""How long a run goes on, and the learning rate on the way."""

import math
from dataclasses import dataclass

from .options import TrainOptions
from .run_folder import Progress


@dataclass(frozen=True)
class Schedule:
    """A run's length in epochs, steps or minutes, and what follows from it.

    Attributes:
        options: the run's.
        tiles: of an epoch.
    """

    options: TrainOptions
    tiles: int

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return math.ceil(self.tiles / self.options.batch_size)

    def images(self, progress: Progress) -> int:
        """Tiles that the epoch under way has learnt from."""
        return min((progress.step - progress.epoch_start) * self.options.batch_size, self.tiles)

    def done(self, progress: Progress) -> float:
        """Share of the run that is over, from 0; 1 and more at its end.

        Minutes count the time spent in steps, in all sittings of the run together, neither
        validation nor waiting.
        """
        if self.options.minutes is not None:
            return (progress.total_seconds + progress.seconds) / (60 * self.options.minutes)
        return progress.step / self.steps(progress)

    def steps(self, progress: Progress) -> int:
        """Steps of the whole run; where it is measured in minutes, as far as can be foreseen."""
        if self.options.minutes is not None:
            done = self.done(progress)
            return max(round(progress.step / done), progress.step) if done > 0 else 1
        return self.options.steps or self.options.epochs * self.per_epoch

    def learning_rate(self, progress: Progress) -> float:
        """The next step's: linear warm-up, then constant or half a cosine to 0."""
        options, epoch = self.options, progress.step / self.per_epoch
        if epoch < options.warmup_epochs:
            return options.lr * (epoch / options.warmup_epochs + 0.01) / 1.01
        if options.schedule == "constant":
            return options.lr
        done = self.done(progress)
        if options.minutes is None:
            # The cosine begins where the warm-up ends. In minutes nobody knows when that was.
            warmup = options.warmup_epochs * self.per_epoch / self.steps(progress)
            done = (done - warmup) / max(1 - warmup, 1e-9)
        return options.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
