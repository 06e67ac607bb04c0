"""Noise2Noise training: tiles, two noisy versions of each, mini-batch SGD; readable top to bottom.

Lehtinen et al., "Noise2Noise: learning image restoration without clean data" (2018): with a target
that is as noisy as the input, but independently, the mean squared error has its minimum where a
clean target would have put it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import SGD, MSELoss, OptionError, TrainingError, clip_grad_norm_

from .atomic import atomic_write
from .checkpoint import save_weights
from .device import resolve_device
from .metrics import mse, psnr_of_mse
from .networks import Network
from .options import TrainOptions
from .pairs import Pairs, training_pairs, validation_tiles
from .tiles import Split, split_photographs

VALIDATION_SEED = 1_000_003  # the same held-out tiles whatever the training seed


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        number: 1 for the first.
        training_loss: mean over the epoch's batches, against noisy targets.
        validation_psnr: dB, one MSE over all validation tiles (the report's protocol).
        validation_psnr_mean: dB, per tile and then averaged.
        lr: learning rate of the last step.
        seconds: training alone, without validation.
        is_best: highest validation_psnr so far.
    """

    number: int
    training_loss: float
    validation_psnr: float
    validation_psnr_mean: float
    lr: float
    seconds: float
    is_best: bool


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

    on_start: Callable[[Split, float], None] = lambda split, noisy_psnr: None
    on_step: Callable[[int, int], None] = lambda step, steps: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None


def train(options: TrainOptions, watcher: Watcher | None = None) -> Outcome:
    """Train a network as `options` say and leave its best weights in the run folder.

    Raises:
        OptionError: the run folder already holds a run.
        TrainingError: no usable photographs, or the loss is no longer finite.
        DeviceError: the device is not there.
    """
    watcher = watcher or Watcher()
    device = resolve_device(options.device)
    noise = options.noise_model
    tile_px = options.tile_px
    _start_run_folder(options)

    split = split_photographs(options.data, tile_px * noise.factor, options.validation_share)
    validation = validation_tiles(
        split.validation,
        noise,
        count=options.validation_tiles,
        tile_px=tile_px,
        seed=VALIDATION_SEED,
        device=device,
    )
    pairs = training_pairs(
        split.training,
        noise,
        count=options.tiles,
        tile_px=tile_px,
        versions=options.versions,
        seed=options.seed,
        device=device,
    )
    noisy_psnr, noisy_psnr_mean = _psnrs(validation.noisy, validation.clean)
    watcher.on_start(split, noisy_psnr)

    generator = torch.Generator(device).manual_seed(options.seed)
    network = _new_network(options, pairs, device, generator)
    optimizer = SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )
    criterion = MSELoss()
    steps_per_epoch = math.ceil(len(pairs) / options.batch_size)
    step, best = 0, None
    for number in range(1, options.epochs + 1):
        started = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        network.train()
        for indices in _epoch_indices(len(pairs), options, generator):
            optimizer.lr = _learning_rate(options, step / steps_per_epoch)
            noisy, target = pairs.batch(indices, generator)
            if options.augment:
                noisy, target = _turn(noisy, target, generator)
            loss_sum += criterion(network(noisy), target)
            optimizer.zero_grad()
            network.backward_parameters(criterion.backward())
            if options.clip_norm:
                clip_grad_norm_(network.parameters(), options.clip_norm)
            optimizer.step()
            step += 1
            watcher.on_step(step, steps_per_epoch * options.epochs)
        training_loss = loss_sum.item() / steps_per_epoch
        if not math.isfinite(training_loss):
            kept = f"; the best weights so far are in {options.output}" if best else ""
            raise TrainingError(
                f"the loss became {training_loss} in epoch {number}: use a smaller --lr "
                f"(now {options.lr:g}) or a longer --warmup-epochs{kept}"
            )
        seconds = time.perf_counter() - started
        psnr, psnr_mean = _psnrs(denoise_tiles(network, validation.noisy), validation.clean)
        is_best = best is None or psnr > best.validation_psnr
        epoch = Epoch(number, training_loss, psnr, psnr_mean, optimizer.lr, seconds, is_best)
        _record_epoch(options, network, epoch, noisy_psnr)
        best = epoch if is_best else best
        watcher.on_epoch(epoch)
    if best is None:
        raise TrainingError("no epoch was run")
    return Outcome(best, noisy_psnr, noisy_psnr_mean, options.output / "best.safetensors")


def denoise_tiles(network: Network, noisy: Tensor, batch_size: int = 250) -> Tensor:
    """The network's output for many tiles of one size, in inference mode."""
    network.eval()
    return torch.cat([network(part) for part in torch.split(noisy, batch_size)])


def _new_network(
    options: TrainOptions, pairs: Pairs, device: torch.device, generator: torch.Generator
) -> Network:
    """A fresh network, standardised by the noisy training tiles themselves (report, section V)."""
    sample = torch.arange(min(len(pairs), 2_000), device=device)
    noisy, _ = pairs.batch(sample, generator)
    mean, std = noisy.mean((0, 2, 3)).tolist(), noisy.std((0, 2, 3)).tolist()
    initial = torch.Generator().manual_seed(options.seed)
    return Network(options.network, mean, std, initial).to(device)


def _epoch_indices(
    count: int, options: TrainOptions, generator: torch.Generator
) -> Iterator[Tensor]:
    """Every tile once, in batches."""
    if options.shuffle:
        order = torch.randperm(count, generator=generator, device=generator.device)
    else:
        order = torch.arange(count, device=generator.device)
    yield from torch.split(order, options.batch_size)


def _turn(noisy: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of the square's eight symmetries, the same for the whole batch."""
    # Drawn on the generator's device but read on the host: cheap on a CPU, one sync on a GPU.
    choice = int(torch.randint(8, (), generator=generator, device=generator.device))
    if choice & 4:
        noisy, target = noisy.flip(3), target.flip(3)
    turns = choice & 3
    return noisy.rot90(turns, (2, 3)), target.rot90(turns, (2, 3))


def _learning_rate(options: TrainOptions, epoch: float) -> float:
    """The rate at a (fractional) epoch: linear warm-up, then constant or half a cosine to 0."""
    if epoch < options.warmup_epochs:
        return options.lr * (epoch / options.warmup_epochs + 0.01) / 1.01
    if options.schedule == "constant":
        return options.lr
    done = (epoch - options.warmup_epochs) / max(options.epochs - options.warmup_epochs, 1e-9)
    return options.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _psnrs(images: Tensor, clean: Tensor) -> tuple[float, float]:
    """PSNR of one MSE over all tiles, and the mean of each tile's own."""
    each = (images.double() - clean.double()).square().mean((1, 2, 3)).clamp_min(1e-10)
    return psnr_of_mse(mse(images, clean)), (-10 * each.log10()).mean().item()


def _start_run_folder(options: TrainOptions) -> None:
    config = options.output / "config.json"
    if config.exists():
        raise OptionError(f"{options.output}: already holds a run; give another --output")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        atomic_write(config, json.dumps(options.to_json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise OptionError(f"--output {options.output}: {error.strerror}") from error


def _record_epoch(options: TrainOptions, network: Network, epoch: Epoch, noisy_psnr: float) -> None:
    with (options.output / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(asdict(epoch)) + "\n")
    training: dict[str, Any] = {
        "noise": options.noise,
        "seed": options.seed,
        "epoch": epoch.number,
        "validation_psnr": round(epoch.validation_psnr, 3),
        "validation_psnr_mean": round(epoch.validation_psnr_mean, 3),
        "noisy_psnr": round(noisy_psnr, 3),
        "tiles": options.tiles,
        "tile_px": options.tile_px,
    }
    save_weights(options.output / "last.safetensors", network, training)
    if epoch.is_best:
        save_weights(options.output / "best.safetensors", network, training)
