"""Our blocks beside torch.nn, autograd and torch.optim over a whole training, step by step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lab import Lab
from recipes import Recipe, layers
from torch import Tensor, nn
from trained import layers_of
from training import CHUNK_STEPS, Data

from denoise_batch.kernels import SGD, MSELoss, Sequential
from denoise_batch.metrics import psnr
from denoise_batch.models import ARCHITECTURES, load_tensors, save_tensors

Step = Callable[[Tensor, Tensor], None]
TIMED_CHUNKS = 4
# The run in float64 is shorter by this.
DOUBLE_SHARE = 12
CHECKPOINT_CHUNKS = 10


def measure_parity(lab: Lab, recipe: Recipe) -> None:
    """Train both for `parity_steps` of the recipe and compare what comes out.

    Result: steps; architecture; single and (fewer steps) double, for each precision: for `ours`
    and `torch` the final psnr in dB; outputs and parameters, the largest difference of any;
    relative, that of a parameter by the largest of its tensor; moved, the furthest that training
    took a parameter; cpu_ms, processor time of a step
    (median over a few chunks) of ours, torch and gemm, the operations for images of any size.
    """
    steps = lab.scale.parity_steps
    if lab.result("parity").get("steps") == steps and "double" in lab.result("parity"):
        return
    lab.run("parity", "ours", recipe, steps, 4)
    data, ours = Data(recipe, lab.protocol), layers_of(recipe, lab.checkpoint("parity", "ours"))
    twin = _trained_twin(recipe, data, steps, lab.checkpoint("parity", "torch"))
    double_steps = max(steps // DOUBLE_SHARE, 1)
    double = (layers(recipe).to(dtype=torch.float64), _twin_of(recipe).double())
    for step in (_our_step(double[0], recipe.lr), _torch_step(double[1], recipe.lr)):
        for start in range(0, double_steps, CHUNK_STEPS):
            chunk = data.chunk(start, min(CHUNK_STEPS, double_steps - start))
            _run(step, (chunk[0].double(), chunk[1].double()), recipe.batch_size)
    result: dict[str, Any] = lab.result("parity") | {
        "steps": steps,
        "architecture": recipe.architecture,
        "lr": recipe.lr,
        "single": _difference(ours, twin, recipe, data),
        "double": {"steps": double_steps} | _difference(*double, recipe, data),
        "cpu_ms": _times(recipe, data, min(steps, CHUNK_STEPS)),
        "torch_version": torch.__version__,
    }
    lab.keep("parity", result)


def torch_layers(architecture: str) -> nn.Sequential:
    """The architecture in torch.nn, parameters in the same order."""
    if architecture == "tconv":
        return nn.Sequential(
            nn.Conv2d(3, 24, 4, 2),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(48, 24, 3, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 3, 4, 2),
            nn.Sigmoid(),
        )
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, 2, 1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(48, 24, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(24, 3, 3, padding=1),
        nn.Sigmoid(),
    )


def _difference(
    ours: Sequential, twin: nn.Sequential, recipe: Recipe, data: Data
) -> dict[str, Any]:
    """How far apart two trainings ended."""
    parameters, relative, moved = 0.0, 0.0, 0.0
    noisy = data.noisy.to(ours.parameters()[0].dtype)
    triples = zip(ours.parameters(), twin.parameters(), layers(recipe).parameters(), strict=True)
    with torch.no_grad():
        outputs = {"ours": ours(noisy), "torch": twin(noisy)}
        for own, value, before in triples:
            difference = (own - value).abs().max().item()
            parameters = max(parameters, difference)
            relative = max(relative, difference / value.abs().max().item())
            moved = max(moved, (own - before).abs().max().item())
    psnrs = {name: psnr(output, data.clean) for name, output in outputs.items()}
    return {
        "psnr": psnrs,
        # The results' five digits would not show it.
        "psnr_difference": abs(psnrs["ours"] - psnrs["torch"]),
        "outputs": (outputs["ours"] - outputs["torch"]).abs().max().item(),
        "parameters": parameters,
        "relative": relative,
        "moved": moved,
    }


def _twin_of(recipe: Recipe) -> nn.Sequential:
    """torch's network with our initial parameters."""
    twin = torch_layers(recipe.architecture)
    for value, own in zip(twin.parameters(), layers(recipe).parameters(), strict=True):
        value.data.copy_(own)
    return twin


def _trained_twin(recipe: Recipe, data: Data, steps: int, file: Path) -> nn.Sequential:
    """torch's network after the same steps, from the same initial parameters."""
    twin, done = _twin_of(recipe), 0
    if file.exists():
        tensors, header = load_tensors(file)
        twin.load_state_dict(tensors)
        done = header["step"]
    step = _torch_step(twin, recipe.lr)
    for number, start in enumerate(range(done, steps, CHUNK_STEPS), 1):
        size = min(CHUNK_STEPS, steps - start)
        _run(step, data.chunk(start, size), recipe.batch_size)
        if number % CHECKPOINT_CHUNKS == 0 or start + size == steps:
            state = {name: value.detach() for name, value in twin.state_dict().items()}
            save_tensors(file, state, {"step": start + size})
    return twin


def _times(recipe: Recipe, data: Data, size: int) -> dict[str, float]:
    """Milliseconds of processor time of a step; the contestants take turns."""
    generator = torch.Generator().manual_seed(recipe.seed)
    plain = Sequential(*ARCHITECTURES[recipe.architecture].layers(generator))
    contestants = {
        "ours": _our_step(layers(recipe), recipe.lr),
        "torch": _torch_step(torch_layers(recipe.architecture), recipe.lr),
        "gemm": _our_step(plain, recipe.lr),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(TIMED_CHUNKS):
        batches = data.chunk(number * size, size)
        for name, step in contestants.items():
            started = time.process_time()
            _run(step, batches, recipe.batch_size)
            times[name].append((time.process_time() - started) / size * 1000)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _run(step: Step, chunk: tuple[Tensor, Tensor], batch_size: int) -> None:
    for pair in zip(*(tiles.split(batch_size) for tiles in chunk), strict=True):
        step(*pair)


def _our_step(network: Sequential, lr: float) -> Step:
    criterion, optimizer = MSELoss(), SGD(network.parameters(), lr)

    def step(noisy: Tensor, target: Tensor) -> None:
        with torch.inference_mode():
            criterion(network(noisy), target)
            optimizer.zero_grad()
            network.backward(criterion.backward(), needs_input_grad=False)
            optimizer.step()

    return step


def _torch_step(network: nn.Sequential, lr: float) -> Step:
    criterion, optimizer = nn.MSELoss(), torch.optim.SGD(network.parameters(), lr)

    def step(noisy: Tensor, target: Tensor) -> None:
        loss = criterion(network(noisy), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
