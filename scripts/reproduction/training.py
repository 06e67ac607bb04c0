"""The training loop: our layers, loss and optimiser, and the history of a run.

`denoise-train` draws and augments at every step. Here tiles come in chunks of many steps, because
at batch size 4 everything done per step counts (ADR 19).
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from config import Recipe, layers
from dataset import Dataset, standardisation
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    MSELoss,
    Muon,
    Normalize,
    ReLU,
    Sequential,
    Sigmoid,
    clip_grad_norm_,
)
from denoise_batch.kernels.optim import Optimizer
from denoise_batch.metrics import mse, psnr_of_mse
from denoise_batch.models import Network, load_tensors, save_tensors
from denoise_batch.training.noise import parse_noise
from denoise_batch.training.pairs import to_float

CHUNK_STEPS = 125
CHECKPOINT_S = 60
VALIDATION_SEED = 77
# Recorded gradient norms are means over this many steps.
NORM_STEPS = 8


@dataclass
class Run:
    """The state and history of a run.

    Attributes:
        step: steps done.
        seconds: processor time of the steps.
        rows: the history, see `record`.
        psnr_mean: final PSNR in dB, averaged over the validation tiles.
    """

    step: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    psnr_mean: float = math.nan


class Data:
    """A recipe's batches, chunk by chunk, and its validation tiles."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.noise = None if recipe.noise == "subpixel:8" else parse_noise(recipe.noise)
        mean, std = standardisation(dataset) if recipe.is_standardised else ([0.0], [1.0])
        self.standardize = Normalize(mean, std).eval()
        self.clean = dataset.validation_clean
        self.noisy = dataset.validation_noisy
        if self.noise is not None:
            generator = torch.Generator().manual_seed(VALIDATION_SEED)
            self.noisy = self.noise.draw(self.clean, generator)

    def chunk(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return input and target tiles of the steps [step, step + steps), whatever came before."""
        recipe, count = self.recipe, len(self.dataset.noisy)
        first = step * recipe.batch_size
        positions = torch.arange(first, first + steps * recipe.batch_size)
        indices = positions % count
        if recipe.is_shuffled:
            indices = torch.empty_like(positions)
            for epoch in range(first // count, int(positions[-1]) // count + 1):
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
                is_inside = positions // count == epoch
                order = torch.randperm(count, generator=generator)
                indices[is_inside] = order[positions[is_inside] % count]
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noisy, target = self._pair(indices, generator)
        if recipe.is_augmented:
            turn = int(torch.randint(8, (), generator=generator))
            noisy, target = _turned(noisy, turn), _turned(target, turn)
        nhwc = torch.channels_last
        return self.standardize(noisy), target.contiguous(memory_format=nhwc)

    def _pair(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        dataset, is_clean = self.dataset, self.recipe.targets == "clean"
        if self.noise is None:
            target = dataset.clean if is_clean else dataset.other
            return to_float(dataset.noisy[indices]), to_float(target[indices])
        clean = to_float(dataset.clean[indices])
        noisy = self.noise.draw(clean, generator)
        return noisy, clean if is_clean else self.noise.draw_target(clean, generator)


def train(recipe: Recipe, dataset: Dataset, steps: int, records: int, file: Path) -> dict[str, Any]:
    """Train, resuming from the checkpoint `file` if it exists; return the run as plain values.

    Args:
        recipe: how to train.
        dataset: the tiles.
        steps: length of the run; a shorter run with a constant rate is continued.
        records: rows of the history, evenly spaced.
        file: the checkpoint; its name is the run's.
    """
    data, network, criterion = Data(recipe, dataset), layers(recipe), MSELoss()
    parameters = network.parameters()
    optimizer: Optimizer = SGD(parameters, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)
    if recipe.optimizer == "muon":
        optimizer = Muon(parameters, recipe.lr, weight_decay=0.0)
    run = _load(file, recipe, steps, network, optimizer) or Run()
    every = max(steps // records, 1)
    saved_at = time.monotonic()
    loss_sum, norms = torch.zeros(()), torch.zeros(len(parameters))
    with torch.inference_mode():
        if not run.rows:
            run.rows.append(record(run, data, network, math.nan, norms, recipe.rate(0, steps)))
        while run.step < steps:
            last = run.rows[-1]["step"]
            size = min(CHUNK_STEPS, steps - run.step, last + every - run.step)
            noisy, target = data.chunk(run.step, size)
            started = time.process_time()
            batches = zip(
                noisy.split(recipe.batch_size), target.split(recipe.batch_size), strict=True
            )
            for input, wanted in batches:
                output = network(input)
                if recipe.noise.startswith("bernoulli"):
                    wanted = torch.where(wanted.isnan(), output, wanted)
                loss_sum += criterion(output, wanted)
                optimizer.zero_grad()
                network.backward(criterion.backward(), needs_input_grad=False)
                if run.step >= min(last + every, steps) - NORM_STEPS:
                    norms += torch.stack([_grad(value).norm() for value in parameters])
                if recipe.clip_norm:
                    clip_grad_norm_(parameters, recipe.clip_norm)
                optimizer.lr = recipe.rate(run.step, steps)
                optimizer.step()
                run.step += 1
            run.seconds += time.process_time() - started
            if run.step >= last + every or run.step == steps:
                loss = loss_sum.item() / (run.step - last)
                norms /= min(NORM_STEPS, run.step - last)
                run.rows.append(record(run, data, network, loss, norms, optimizer.lr))
                loss_sum, norms = torch.zeros(()), torch.zeros(len(parameters))
                if not math.isfinite(loss):
                    break
                if time.monotonic() - saved_at > CHECKPOINT_S or run.step == steps:
                    _save(file, run, recipe, steps, network, optimizer)
                    saved_at = time.monotonic()
        output = _denoise(network, data)
    each = (output - data.clean).square().mean((1, 2, 3)).clamp_min(1e-10)
    run.psnr_mean = (-10 * each.log10()).mean().item()
    return asdict(run) | {"recipe": asdict(recipe), "steps": steps, "name": file.stem}


def record(
    run: Run, data: Data, network: Sequential, loss: float, norms: Tensor, lr: float
) -> dict[str, Any]:
    """Return a row of the history: losses, PSNR, and what may explain them.

    Returns:
        step; training_loss (mean since the last row); validation_loss and psnr (from one MSE over
        all validation tiles); lr; gradients (norm before clipping) and updates (lr · gradient norm
        / weight norm) by name of the weight; dead (share of channels that are 0 everywhere, per
        ReLU); slope (mean of the Sigmoid's derivative σ(1 − σ)); spread (mean standard deviation
        of the output within an image).
    """
    error = mse(_denoise(network, data), data.clean)
    names = [name for name, _ in network.named_parameters()]
    gradients, updates = {}, {}
    for name, value, norm in zip(names, network.parameters(), norms.tolist(), strict=True):
        if name.endswith("weight"):
            gradients[name] = norm
            updates[name] = lr * norm / value.norm().item()
    dead, slope, output = [], math.nan, data.standardize(data.noisy[:50])
    for block in network.eval().blocks:
        output = block(output)
        if isinstance(block, ReLU):
            dead.append((output.amax((0, 2, 3)) <= 0).float().mean().item())
        elif isinstance(block, Sigmoid):
            slope = (output * (1 - output)).mean().item()
    network.train()
    return {
        "step": run.step,
        "training_loss": loss,
        "validation_loss": error,
        "psnr": psnr_of_mse(error),
        "lr": lr,
        "gradients": gradients,
        "updates": updates,
        "dead": dead,
        "slope": slope,
        "spread": output.std((1, 2, 3)).mean().item(),
    }


def _denoise(network: Sequential, data: Data) -> Tensor:
    network.eval()
    output = torch.cat([network(data.standardize(part)) for part in data.noisy.split(50)])
    network.train()
    return output


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # set by the backward pass
    return parameter.grad


def _turned(tiles: Tensor, turn: int) -> Tensor:
    return (tiles.flip(3) if turn & 4 else tiles).rot90(turn & 3, (2, 3))


def _save(
    file: Path, run: Run, recipe: Recipe, steps: int, network: Sequential, optimizer: Optimizer
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer.state_dict().items()}
    save_tensors(file, tensors, {"run": asdict(run), "recipe": asdict(recipe), "steps": steps})


def _load(
    file: Path, recipe: Recipe, steps: int, network: Sequential, optimizer: Optimizer
) -> Run | None:
    """Return the checkpoint's run if it is the beginning of this one."""
    if not file.exists():
        return None
    tensors, header = load_tensors(file)
    is_same_rate = recipe.schedule == "constant" or header.get("steps") == steps
    if Recipe(**header["recipe"]) != recipe or header["run"]["step"] > steps or not is_same_rate:
        return None
    network.load_state_dict(_without(tensors, "network."))
    optimizer.load_state_dict(_without(tensors, "optimizer."))
    return Run(**header["run"])


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def layers_of(recipe: Recipe, file: Path) -> Sequential:
    """Load a run's trained layers, without margin, for inference."""
    tensors, _ = load_tensors(file)
    network = layers(recipe)
    network.load_state_dict(_without(tensors, "network."))
    network.eval()
    return network


def network_of(recipe: Recipe, file: Path, dataset: Dataset) -> Network:
    """Load a run's network with normalisation and margin, for images of any size."""
    mean, std = standardisation(dataset) if recipe.is_standardised else ([0.0], [1.0])
    network = Network(recipe.architecture, mean, std)
    network.load_state_dict(layers_of(recipe, file).state_dict())
    network.eval()
    return network
