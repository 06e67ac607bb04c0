"""Our layers beside torch.nn, autograd and torch.optim over a whole training."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from config import Recipe, layers
from reproduction import Reproduction
from torch import Tensor, nn
from torch_networks import torch_equivalent
from training import CHUNK_STEPS, Data, layers_of

from denoise_batch.kernels import SGD, MSELoss, Sequential
from denoise_batch.metrics import psnr
from denoise_batch.models import load_tensors, save_tensors

Step = Callable[[Tensor, Tensor], None]
TIMED_CHUNKS = 4
# The run in float64 is shorter by this factor.
DOUBLE_SHARE = 12
CHECKPOINT_CHUNKS = 10


def measure_parity(reproduction: Reproduction, recipe: Recipe) -> None:
    """Train both for `parity_steps` and compare the results.

    Result: steps; architecture; lr; single and (fewer steps) double, each with the final psnr in
    dB of `ours` and `torch`, the largest differences of outputs and parameters, relative (of a
    parameter, by its tensor's largest element) and moved (the largest change by training); cpu_ms,
    processor time per step of `ours` and `torch` (median over a few chunks).
    """
    steps = reproduction.scale.parity_steps
    found = reproduction.result("parity")
    if found.get("steps") == steps and "double" in found:
        return
    reproduction.run("parity", "ours", recipe, steps, 4)
    data = Data(recipe, reproduction.dataset)
    ours = layers_of(recipe, reproduction.checkpoint("parity", "ours"))
    peer = _trained_peer(recipe, data, steps, reproduction.checkpoint("parity", "torch"))
    double_steps = max(steps // DOUBLE_SHARE, 1)
    double = (layers(recipe).to(dtype=torch.float64), torch_equivalent(layers(recipe)).double())
    for step in (_our_step(double[0], recipe.lr), _torch_step(double[1], recipe.lr)):
        for start in range(0, double_steps, CHUNK_STEPS):
            chunk = data.chunk(start, min(CHUNK_STEPS, double_steps - start))
            _run(step, (chunk[0].double(), chunk[1].double()), recipe.batch_size)
    result: dict[str, Any] = reproduction.result("parity") | {
        "steps": steps,
        "architecture": recipe.architecture,
        "lr": recipe.lr,
        "single": _difference(ours, peer, recipe, data),
        "double": {"steps": double_steps} | _difference(*double, recipe, data),
        "cpu_ms": _times(recipe, data, min(steps, CHUNK_STEPS)),
        "torch_version": torch.__version__,
    }
    reproduction.keep("parity", result)


def _difference(ours: Sequential, peer: nn.Module, recipe: Recipe, data: Data) -> dict[str, Any]:
    """Compare the outcome of two trainings."""
    parameters, relative, moved = 0.0, 0.0, 0.0
    noisy = data.noisy.to(ours.parameters()[0].dtype)
    triples = zip(ours.parameters(), peer.parameters(), layers(recipe).parameters(), strict=True)
    with torch.no_grad():
        outputs = {"ours": ours(noisy), "torch": peer(noisy)}
        for own, value, before in triples:
            difference = (own - value).abs().max().item()
            parameters = max(parameters, difference)
            relative = max(relative, difference / value.abs().max().item())
            moved = max(moved, (own - before).abs().max().item())
    psnrs = {name: psnr(output, data.clean) for name, output in outputs.items()}
    return {
        "psnr": psnrs,
        # Five digits of the PSNR would not show it.
        "psnr_difference": abs(psnrs["ours"] - psnrs["torch"]),
        "outputs": (outputs["ours"] - outputs["torch"]).abs().max().item(),
        "parameters": parameters,
        "relative": relative,
        "moved": moved,
    }


def _trained_peer(recipe: Recipe, data: Data, steps: int, file: Path) -> nn.Module:
    """Train torch's network from the same initial parameters, resuming from `file`."""
    peer, done = torch_equivalent(layers(recipe)), 0
    if file.exists():
        tensors, header = load_tensors(file)
        peer.load_state_dict(tensors)
        done = header["step"]
    step = _torch_step(peer, recipe.lr)
    for number, start in enumerate(range(done, steps, CHUNK_STEPS), 1):
        size = min(CHUNK_STEPS, steps - start)
        _run(step, data.chunk(start, size), recipe.batch_size)
        if number % CHECKPOINT_CHUNKS == 0 or start + size == steps:
            state = {name: value.detach() for name, value in peer.state_dict().items()}
            save_tensors(file, state, {"step": start + size})
    return peer


def _times(recipe: Recipe, data: Data, size: int) -> dict[str, float]:
    """Return milliseconds of processor time per step; the two take turns."""
    contestants = {
        "ours": _our_step(layers(recipe), recipe.lr),
        "torch": _torch_step(torch_equivalent(layers(recipe)), recipe.lr),
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


def _torch_step(network: nn.Module, lr: float) -> Step:
    criterion, optimizer = nn.MSELoss(), torch.optim.SGD(network.parameters(), lr)

    def step(noisy: Tensor, target: Tensor) -> None:
        loss = criterion(network(noisy), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
