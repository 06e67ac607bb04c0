"""Noise2Noise training: two noisy versions of each tile, mini-batch SGD.

Lehtinen et al., "Noise2Noise: learning image restoration without clean data" (2018): against
targets with independent, unbiased noise, the mean squared error has the same minimum as against
clean targets.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    Block,
    ExpectileLoss,
    ExponentialMovingAverage,
    LogMSELoss,
    MSELoss,
    Muon,
    OptionError,
    TrainingError,
    clip_grad_norm_,
)
from denoise_batch.kernels.loss import Loss
from denoise_batch.kernels.optim import Optimizer

from ..device import deterministic_algorithms, device_failures, precision_on, torch_dtype
from ..metrics import psnrs_of_tiles
from ..models import LARGEST_LEVEL, LevelEstimator, Network, find_weights, load_weights
from ..progress import Progress, Stop
from .data import Counts, load_data
from .distributed import ProcessGroup
from .options import TrainOptions
from .pairs import Generators, Pairs, StoredPairs, mean_and_std, tiles_per_chunk
from .run_folder import Curves, Epoch, RunFolder, TrainingState, draw_samples

# Too low an estimate leaves noise, too high a one costs little.
ESTIMATOR_TAU = 0.65
# Half of the tiles are told a level that is a little wrong, as an estimate is.
EXACT_SHARE = 0.5
LEVEL_SPREAD = 0.3  # deviation of its logarithm
LEVEL_OFFSET = 0.5 / 255


@dataclass(frozen=True)
class TrainStart:
    """What is known when training begins.

    Attributes:
        counts: size of the data.
        noisy_psnr: dB of the noisy validation tiles, of one MSE over all of them.
    """

    counts: Counts
    noisy_psnr: float


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        best: the best epoch.
        noisy_psnr: dB of the noisy validation tiles, of one MSE over all of them.
        noisy_psnr_mean: the same, averaged over tiles.
        weights: best.safetensors.
    """

    best: Epoch
    noisy_psnr: float
    noisy_psnr_mean: float
    weights: Path


def train(
    options: TrainOptions,
    progress: Progress[TrainStart, Epoch] | None = None,
    group: ProcessGroup | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Train a network and leave its best weights in the run folder.

    A killed run that is resumed from its last checkpoint ends with the same weights, bit for bit,
    as an uninterrupted one.

    Args:
        options: the run.
        progress: receives the start, every step and the result of every epoch.
        group: the processes that train together (`process_group`), each calling this function with
            the same options; by default this process alone.
        stop: once set, the run finishes its step, saves a checkpoint and ends.

    Raises:
        KeyboardInterrupt: the run was stopped; in the middle of a step the last checkpoint stays.
        OptionError: the run folder holds another run, or the device does not compute in the
            precision.
        TrainingError: there is no usable data, or the loss is no longer finite.
        DeviceError: the device is not available, or failed.
    """
    group = group or ProcessGroup()
    stop = Stop() if stop is None else stop  # an unset one is false
    progress = progress if progress and group.is_first else Progress()
    strictly = deterministic_algorithms() if options.deterministic else nullcontext()
    with device_failures(options.device, "checkpoints are kept for --resume"), strictly:
        device = group.device(options.device)
        precision = precision_on(options.precision, device)
        group.check_batch_size(options.batch_size)
        folder = RunFolder(options.output, group)
        folder.check(options)

        pairs, validation, counts = load_data(options, device)
        chunk = tiles_per_chunk(validation.clean.shape[3])
        noisy_psnr, noisy_psnr_mean = psnrs_of_tiles(validation.noisy, validation.clean, chunk)
        group.check_same("data and noisy dB are", (counts, round(noisy_psnr, 2)))
        progress.on_start(TrainStart(counts, noisy_psnr))

        generators = Generators(device)
        network, earlier = _new_network(options, pairs, generators)
        network.to(device).set_compute_dtype(torch_dtype(precision))
        trainee = trained_part(network, options)
        group.prepare(trainee)
        parameters = trainee.parameters()
        average = ExponentialMovingAverage(parameters, options.ema)
        loss_sum = torch.zeros((), device=device)
        state = TrainingState(network, _new_optimizer(options, parameters), average, loss_sum)
        schedule = Schedule(options, len(pairs))
        folder.start(options)
        folder.load_checkpoint(state)
        saved_at = time.monotonic()
        curves = Curves(folder.curves, noisy_psnr)

        try:
            while not schedule.is_over(state) or state.step > state.epoch_start:
                order = _epoch_order(len(pairs), options, state.epochs)
                network.train()
                for number in range(state.step - state.epoch_start, schedule.steps_per_epoch):
                    if schedule.is_over(state):
                        break
                    indices = order[number * options.batch_size :][: options.batch_size]
                    lr = schedule.learning_rate(state)
                    training_step(state, pairs, indices, lr, options, generators, group)
                    progress.on_step("", state.step, schedule.steps(state))
                    if stop:
                        raise KeyboardInterrupt
                    if time.monotonic() - saved_at > 60 * options.checkpoint_minutes:
                        folder.save_checkpoint(state)
                        saved_at = time.monotonic()

                training_loss = _finish_steps(state, options, group)
                with state.updating(), average.applied():
                    level = None if options.estimator else group.local_rows(validation.level)
                    local = denoise_tiles(network, group.local_rows(validation.noisy), level)
                    denoised = group.all_gather(local, len(validation.noisy))
                    psnrs = psnrs_of_tiles(denoised, validation.clean, chunk)
                    epoch = _epoch_result(state, schedule, training_loss, *psnrs)
                    if group.is_first:
                        described = _describe(options, pairs, epoch, noisy_psnr)
                        if options.estimator:
                            described = {**earlier, "estimator": described}
                        folder.save_weights(network, epoch, described)
                if group.is_first:
                    curves.add(folder.record(epoch))
                    if epoch.is_best:
                        draw_samples(folder.samples, validation.clean, validation.noisy, denoised)
                state.finish_epoch(epoch)
                folder.save_checkpoint(state)
                saved_at = time.monotonic()
                progress.on_result(epoch)
        except KeyboardInterrupt:
            if state.is_consistent:
                folder.save_checkpoint(state)
            raise
        finally:
            curves.draw()
    if state.best is None:
        raise TrainingError("the run ended before its first epoch")
    return Outcome(state.best, noisy_psnr, noisy_psnr_mean, folder.best)


def training_step(
    state: TrainingState,
    pairs: Pairs,
    indices: Tensor,
    lr: float,
    options: TrainOptions,
    generators: Generators,
    group: ProcessGroup,
) -> None:
    """Train on one batch; the host never waits for the device, except for camera noise (JPEG).

    Args:
        state: updated in place; its network is in training mode.
        pairs: the training tiles.
        indices: the tiles of the global batch, int64 (n,), on the host.
        lr: learning rate of this step.
        options: seed, augmentation and gradient clipping.
        generators: seeded here for this step.
        group: the processes that share the batch.
    """
    started = time.perf_counter()
    network, trainee = state.network, trained_part(state.network, options)

    def denoise(images: Tensor) -> Tensor:
        output = network.eval()(group.local_rows(images))
        network.train()
        return group.scatter_back(output, images)

    generators.seed(options.seed, state.step)
    noisy, target, level = pairs.batch(indices, generators, denoise)
    if options.augment:
        noisy, target = _random_symmetry(noisy, target, generators)
    told = _roughly(level, generators) if network.spec.takes_level else level
    rows = (group.local_rows(global_rows) for global_rows in (noisy, target, level, told))
    loss, grad_output = _loss_and_gradient(network, options, *rows)
    state.optimizer.zero_grad()
    loss = group.backward(trainee, loss, grad_output, len(indices))
    if options.clip_norm:
        clip_grad_norm_(trainee.parameters(), options.clip_norm)
    state.optimizer.lr = lr
    with state.updating():
        state.optimizer.step()
        state.average.update()
        state.loss_sum += loss
        state.step += 1
        state.seconds += group.broadcast_time(time.perf_counter() - started)


def trained_part(network: Network, options: TrainOptions) -> Block:
    """Return the part of the network that this run trains."""
    if options.estimator:
        assert network.estimator is not None  # `_new_network` made one
        return network.estimator
    return network.restorer


def _loss_and_gradient(
    network: Network,
    options: TrainOptions,
    noisy: Tensor,
    target: Tensor,
    level: Tensor,
    told: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the trained part forward on a batch; return its loss and its output's gradient.

    Args:
        network: in training mode.
        options: of the run.
        noisy: (N, 3, H, W).
        target: the same shape; NaN where a pixel is unknown.
        level: of the noise, (N,).
        told: the level that the network is told, (N,).
    """
    if options.estimator:
        criterion: Loss = ExpectileLoss(ESTIMATOR_TAU)
        output = trained_part(network, options)(network.pad(noisy))
        target = (255 * level.clamp(max=LARGEST_LEVEL)).sqrt().view(-1, 1, 1, 1)
    else:
        criterion = LogMSELoss(level) if options.loss == "log" else MSELoss()
        network.set_level(told)
        output = network.restorer(noisy).to(noisy.dtype)
        # An unknown target pixel is replaced by the output: no error, no gradient.
        target = torch.where(target.isnan(), output, target)
    return criterion(output, target), criterion.backward()


def _roughly(level: Tensor, generators: Generators) -> Tensor:
    """Return the level, for half of the tiles a little off, as an estimate or a user's is."""
    draw = torch.randn(3, len(level), generator=generators.device, device=level.device)
    rough = level * (LEVEL_SPREAD * draw[0]).exp() + LEVEL_OFFSET * draw[1].abs()
    is_exact = torch.special.ndtr(draw[2]) < EXACT_SHARE
    return torch.where(is_exact, level, rough)


def denoise_tiles(
    network: Network, noisy: Tensor, level: Tensor | None = None, batch_size: int = 50
) -> Tensor:
    """Return the network's output for tiles (N, C, H, W), in inference mode.

    Args:
        network: set to inference mode.
        noisy: the tiles.
        level: of their noise, (N,); estimated by default where the network takes one.
        batch_size: tiles at once.
    """
    network.eval()
    levels = [None] * len(noisy) if level is None else torch.split(level, batch_size)
    parts = zip(torch.split(noisy, batch_size), levels, strict=False)
    return torch.cat([network.forward(part, of_part) for part, of_part in parts])


@dataclass(frozen=True)
class Schedule:
    """Length of a run, in epochs, steps or minutes, and the learning rate along it.

    Attributes:
        options: the run.
        tiles: tiles per epoch.
    """

    options: TrainOptions
    tiles: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return math.ceil(self.tiles / self.options.batch_size)

    def images(self, state: TrainingState) -> int:
        """Return the number of tiles that the current epoch has trained on."""
        return min((state.step - state.epoch_start) * self.options.batch_size, self.tiles)

    def is_over(self, state: TrainingState) -> bool:
        """Whether the run has reached its length."""
        return self.fraction(state) >= 1

    def fraction(self, state: TrainingState) -> float:
        """Return the fraction of the run that is done, from 0; 1 or more at its end.

        Minutes count time spent in steps, summed over resumed parts of the run, without validation
        and waiting.
        """
        if self.options.minutes is not None:
            return (state.total_seconds + state.seconds) / (60 * self.options.minutes)
        return state.step / self.steps(state)

    def steps(self, state: TrainingState) -> int:
        """Return the steps of the whole run; an estimate if its length is given in minutes."""
        if self.options.minutes is not None:
            fraction = self.fraction(state)
            return max(round(state.step / fraction), state.step) if fraction > 0 else 1
        return self.options.steps or self.options.epochs * self.steps_per_epoch

    def learning_rate(self, state: TrainingState) -> float:
        """Return the next step's rate: linear warm-up, then constant or a half cosine to 0."""
        options, epoch = self.options, state.step / self.steps_per_epoch
        if epoch < options.warmup_epochs:
            return options.lr * (epoch / options.warmup_epochs + 0.01) / 1.01
        if options.schedule == "constant":
            return options.lr
        fraction = self.fraction(state)
        if options.minutes is None:
            # The cosine begins where the warm-up ends; in minutes that moment is not known.
            warmup = options.warmup_epochs * self.steps_per_epoch / self.steps(state)
            fraction = (fraction - warmup) / max(1 - warmup, 1e-9)
        return options.lr * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


def _new_network(
    options: TrainOptions, pairs: Pairs, generators: Generators
) -> tuple[Network, dict[str, Any]]:
    """Load the weights of --init, or make a network standardised by the noisy training tiles.

    Standardisation matters more than anything else (course paper, section V). A network has no
    estimator before that is trained.

    Returns:
        The network, and how the weights of --init were trained.
    """
    initial = torch.Generator().manual_seed(options.seed)
    if options.init is not None:
        loaded = load_weights(find_weights(options.init))
        network = loaded.network
        if network.architecture != options.network:
            raise OptionError(
                f"--init {options.init}: holds {network.architecture}, but --network is "
                f"{options.network}"
            )
        if options.estimator and network.estimator is None:
            network.estimator = LevelEstimator(initial)
        return network.train(), loaded.training
    generators.seed(options.seed, -1)
    mean, std = mean_and_std(pairs, options.tile_px, generators)
    network = Network(options.network, mean, std, initial)
    network.estimator = None
    return network, {}


def _new_optimizer(options: TrainOptions, parameters: list[Tensor]) -> Optimizer:
    lr, decay = options.lr, options.weight_decay
    if options.optimizer == "sgd":
        nesterov = options.nesterov and options.momentum > 0
        return SGD(parameters, lr, options.momentum, nesterov, decay)
    if options.optimizer == "muon":
        return Muon(parameters, lr, options.momentum, options.nesterov, decay)
    kind = {"adam": Adam, "adamw": AdamW}[options.optimizer]
    return kind(parameters, lr, weight_decay=decay)


def _epoch_order(count: int, options: TrainOptions, number: int) -> Tensor:
    """Return every tile's index once; the order depends only on seed and epoch."""
    if not options.shuffle:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator)


def _random_symmetry(
    noisy: Tensor, target: Tensor, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Apply one of the square's eight symmetries, the same to the whole batch."""
    choice = int(torch.randint(8, (), generator=generators.host))
    if choice & 4:
        noisy, target = noisy.flip(3), target.flip(3)
    quarters = choice & 3
    return noisy.rot90(quarters, (2, 3)), target.rot90(quarters, (2, 3))


def _finish_steps(state: TrainingState, options: TrainOptions, group: ProcessGroup) -> float:
    """Wait for the device and return the epoch's mean loss.

    Raises:
        TrainingError: it is not finite.
    """
    started = time.perf_counter()
    loss = state.loss_sum.item() / (state.step - state.epoch_start)
    if not math.isfinite(loss):
        kept = f"; the best weights so far are in {options.output}" if state.best else ""
        raise TrainingError(
            f"the loss became {loss} in epoch {state.epochs + 1}: use a smaller --lr (now "
            f"{options.lr:g}) or a longer --warmup-epochs{kept}"
        )
    state.seconds += group.broadcast_time(time.perf_counter() - started)
    return loss


def _epoch_result(
    state: TrainingState, schedule: Schedule, training_loss: float, psnr: float, psnr_mean: float
) -> Epoch:
    seconds = max(state.seconds, 1e-9)
    return Epoch(
        number=state.epochs + 1,
        training_loss=training_loss,
        validation_psnr=psnr,
        validation_psnr_mean=psnr_mean,
        lr=state.optimizer.lr,
        seconds=seconds,
        step=state.step,
        images_per_s=schedule.images(state) / seconds,
        is_best=state.best is None or psnr > state.best.validation_psnr,
    )


def _describe(
    options: TrainOptions, pairs: Pairs, epoch: Epoch, noisy_psnr: float
) -> dict[str, object]:
    """Return what a weights file says about its training."""
    # Only a two-tensor file brings tiles of its own number and size.
    tile_px = pairs.tile_px if isinstance(pairs, StoredPairs) else options.tile_px
    return {
        "noise": options.noise if options.kind == "clean" else options.kind,
        "targets": options.targets,
        "loss": "expectile" if options.estimator else options.loss,
        "seed": options.seed,
        "epoch": epoch.number,
        "validation_psnr": round(epoch.validation_psnr, 3),
        "validation_psnr_mean": round(epoch.validation_psnr_mean, 3),
        "noisy_psnr": round(noisy_psnr, 3),
        "tiles": len(pairs),
        "tile_px": tile_px,
    }
