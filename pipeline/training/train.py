"""Noise2Noise training: tiles, two noisy versions of each, mini-batch SGD; readable top to bottom.

Lehtinen et al., "Noise2Noise: learning image restoration without clean data" (2018): with a target
that is as noisy as the input, but independently, the mean squared error has its minimum where a
clean target would have put it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    ExponentialMovingAverage,
    MSELoss,
    Muon,
    OptionError,
    TrainingError,
    clip_grad_norm_,
)
from denoise_batch.kernels.optim import Optimizer

from ..device import deterministic_algorithms, torch_dtype
from ..metrics import psnrs_of_tiles
from ..models import Network, find_weights, load_weights, save_weights
from ..progress import Stop
from .data import Counts, load_data
from .distributed import ProcessGroup
from .options import TrainOptions
from .pairs import Pairs, StepRandom, StoredPairs, mean_and_std, tiles_at_once
from .plots import Curves, draw_samples
from .run_folder import Epoch, Progress, RunFolder
from .schedule import Schedule


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    best: Epoch
    noisy_psnr: float
    noisy_psnr_mean: float
    weights: Path


@dataclass(frozen=True)
class Watcher:
    """What a run tells whoever watches it; every field is called when its name says."""

    on_start: Callable[[Counts, float], None] = lambda counts, noisy_psnr: None
    on_step: Callable[[int, int], None] = lambda step, steps: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None


def train(
    options: TrainOptions,
    watcher: Watcher | None = None,
    team: ProcessGroup | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Train a network as `options` say and leave its best weights in the run folder.

    A run that was killed goes on with `resume` from its last checkpoint and ends with the same
    weights, bit for bit, as one that was not.

    Args:
        options: the run.
        watcher: told how it goes.
        team: the workers that train together (`process_group`), each calling this with the same
            options; this process alone by default.
        stop: once set, the run saves its checkpoint after the step that it is in, and ends.

    Raises:
        KeyboardInterrupt: it was stopped; in the middle of a step the last checkpoint stays.
        OptionError: the run folder holds another run.
        TrainingError: no usable photographs, or the loss is no longer finite.
        DeviceError: the device is not there.
    """
    team = team or ProcessGroup()
    stop = Stop() if stop is None else stop  # one that is not set is false
    watcher = watcher if watcher and team.is_first else Watcher()
    if options.deterministic:
        with deterministic_algorithms():
            return _train(options, watcher, team, stop)
    return _train(options, watcher, team, stop)


def _train(options: TrainOptions, watcher: Watcher, team: ProcessGroup, stop: Stop) -> Outcome:
    device = team.device(options.device)
    team.check_batch(options.batch_size)
    folder = RunFolder(options.output, team)
    folder.check(options)

    pairs, validation, counts = load_data(options, device)
    at_once = tiles_at_once(validation.clean.shape[3])
    noisy_psnr, noisy_psnr_mean = psnrs_of_tiles(validation.noisy, validation.clean, at_once)
    team.check_same("data and noisy dB are", (counts, round(noisy_psnr, 2)))
    watcher.on_start(counts, noisy_psnr)

    random = StepRandom(device)
    network = _new_network(options, pairs, random).to(device)
    network.set_compute_dtype(torch_dtype(options.precision))
    team.join(network)
    parameters = network.parameters()
    optimizer = _new_optimizer(options, parameters)
    average = ExponentialMovingAverage(parameters, options.ema)
    criterion = MSELoss()

    schedule = Schedule(options, len(pairs))
    progress = Progress(loss_sum=torch.zeros((), device=device))
    folder.start(options)
    folder.load_checkpoint(progress, network, optimizer, average)
    saved_at = time.monotonic()
    curves = Curves(folder.curves, noisy_psnr)

    def denoise(images: Tensor) -> Tensor:
        output = network.eval()(team.mine(images))
        network.train()
        return team.restored(output, images)

    try:
        while schedule.done(progress) < 1 or progress.step > progress.epoch_start:
            order = _epoch_order(len(pairs), options, progress.epochs)
            network.train()
            for position in range(progress.step - progress.epoch_start, schedule.per_epoch):
                if schedule.done(progress) >= 1:
                    break
                started = time.perf_counter()
                random.start(options.seed, progress.step)
                indices = order[position * options.batch_size :][: options.batch_size]
                noisy, target = pairs.batch(indices, random, denoise)
                if options.augment:
                    noisy, target = _turn(noisy, target, random)
                noisy, target = team.mine(noisy), team.mine(target)
                output = network(noisy)
                # An unknown pixel is what the network says: no error, no gradient.
                target = torch.where(target.isnan(), output, target)
                loss = criterion(output, target)
                optimizer.zero_grad()
                grad = criterion.backward()
                loss = team.backward(network, loss, grad, len(indices))
                if options.clip_norm:
                    clip_grad_norm_(parameters, options.clip_norm)
                optimizer.lr = schedule.learning_rate(progress)
                with progress.changing():
                    optimizer.step()
                    average.update()
                    progress.loss_sum += loss
                    progress.step += 1
                    progress.seconds += team.clock(time.perf_counter() - started)
                watcher.on_step(progress.step, schedule.steps(progress))
                if stop:
                    raise KeyboardInterrupt
                if time.monotonic() - saved_at > 60 * options.checkpoint_minutes:
                    folder.save_checkpoint(progress, network, optimizer, average)
                    saved_at = time.monotonic()
            started = time.perf_counter()
            training_loss = _finite_loss(progress, options)
            # A GPU ends its steps here.
            progress.seconds += team.clock(time.perf_counter() - started)
            with progress.changing(), average.applied():
                denoised = denoise_tiles(network, team.mine(validation.noisy))
                denoised = team.whole(denoised, len(validation.noisy))
                psnr, psnr_mean = psnrs_of_tiles(denoised, validation.clean, at_once)
                seconds = max(progress.seconds, 1e-9)
                epoch = Epoch(
                    number=progress.epochs + 1,
                    training_loss=training_loss,
                    validation_psnr=psnr,
                    validation_psnr_mean=psnr_mean,
                    lr=optimizer.lr,
                    seconds=seconds,
                    step=progress.step,
                    images_per_s=schedule.images(progress) / seconds,
                    is_best=progress.best is None or psnr > progress.best.validation_psnr,
                )
                if team.is_first:
                    _save_weights(options, folder, network, epoch, noisy_psnr, pairs)
            if team.is_first:
                rows = folder.record(epoch)
                if epoch.is_best:
                    draw_samples(folder.samples, validation.clean, validation.noisy, denoised)
                curves.add(rows)
            progress.finish(epoch)
            folder.save_checkpoint(progress, network, optimizer, average)
            saved_at = time.monotonic()
            watcher.on_epoch(epoch)
    except KeyboardInterrupt:
        if progress.is_whole:
            folder.save_checkpoint(progress, network, optimizer, average)
        raise
    finally:
        curves.draw()
    if progress.best is None:
        raise TrainingError("no epoch was run")
    return Outcome(progress.best, noisy_psnr, noisy_psnr_mean, folder.best)


def denoise_tiles(network: Network, noisy: Tensor, batch_size: int = 50) -> Tensor:
    """The network's output for many tiles of one size, in inference mode."""
    network.eval()
    return torch.cat([network(part) for part in torch.split(noisy, batch_size)])


def _new_network(options: TrainOptions, pairs: Pairs, random: StepRandom) -> Network:
    """The weights to start from, or a fresh network, standardised by the noisy training tiles.

    Standardisation matters most of all (report, section V).
    """
    if options.init is not None:
        network = load_weights(find_weights(options.init)).network
        if network.architecture != options.network:
            found = network.architecture
            raise OptionError(f"--init {options.init}: is of {found}, not of {options.network}")
        return network.train()
    random.start(options.seed, -1)
    mean, std = mean_and_std(pairs, options.tile_px, random)
    initial = torch.Generator().manual_seed(options.seed)
    return Network(options.network, mean, std, initial)


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
    """Every tile once; the order depends on seed and epoch alone."""
    if not options.shuffle:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    return torch.randperm(count, generator=generator)


def _turn(noisy: Tensor, target: Tensor, random: StepRandom) -> tuple[Tensor, Tensor]:
    """One of the square's eight symmetries, the same for the whole batch."""
    choice = int(torch.randint(8, (), generator=random.host))
    if choice & 4:
        noisy, target = noisy.flip(3), target.flip(3)
    turns = choice & 3
    return noisy.rot90(turns, (2, 3)), target.rot90(turns, (2, 3))


def _finite_loss(progress: Progress, options: TrainOptions) -> float:
    """The epoch's mean loss; the one place where the host waits for the device."""
    loss = progress.loss_sum.item() / (progress.step - progress.epoch_start)
    if not math.isfinite(loss):
        kept = f"; the best weights so far are in {options.output}" if progress.best else ""
        raise TrainingError(
            f"the loss became {loss} in epoch {progress.epochs + 1}: use a smaller --lr (now "
            f"{options.lr:g}) or a longer --warmup-epochs{kept}"
        )
    return loss


def _save_weights(
    options: TrainOptions,
    folder: RunFolder,
    network: Network,
    epoch: Epoch,
    noisy_psnr: float,
    pairs: Pairs,
) -> None:
    # A two-tensor file, and nothing else, brings tiles of its own number and size.
    tile_px = pairs.tile_px if isinstance(pairs, StoredPairs) else options.tile_px
    training: dict[str, Any] = {
        "noise": options.noise if options.kind == "clean" else options.kind,
        "targets": options.targets,
        "seed": options.seed,
        "epoch": epoch.number,
        "validation_psnr": round(epoch.validation_psnr, 3),
        "validation_psnr_mean": round(epoch.validation_psnr_mean, 3),
        "noisy_psnr": round(noisy_psnr, 3),
        "tiles": len(pairs),
        "tile_px": tile_px,
    }
    save_weights(folder.last, network, training)
    if epoch.is_best:
        save_weights(folder.best, network, training)
