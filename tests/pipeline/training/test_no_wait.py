"""A training step never makes the host wait for the device: meta tensors stand for a GPU's.

A meta tensor has no values, so whatever would read one fails; copies between host and device are
recorded by a dispatch mode, and only `upload`, which pins, may make them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from denoise_batch.kernels import (
    SGD,
    AdamW,
    ExponentialMovingAverage,
    MSELoss,
    Muon,
    clip_grad_norm_,
)
from denoise_batch.kernels.optim import Optimizer
from denoise_batch.models import Network
from denoise_batch.training import pairs
from denoise_batch.training.noise import parse_noise
from denoise_batch.training.pairs import CropPairs, Pairs, StepRandom, StoredPairs
from denoise_batch.training.scenes import ScenePairs

DEVICE = torch.device("meta")


class Copies(TorchDispatchMode):
    """Operations whose operands and results are not all on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        # Numbers that are 0-d tensors on the host go along with a launch.
        if len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1:
            self.seen.append(str(func))
        return result


def crops(noise: str) -> Pairs:
    photographs = [torch.empty(3, 40, 50, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
    return CropPairs(photographs, parse_noise(noise), 16, 8, gray_share=0.5)


def stored(noise: str | None = None) -> Pairs:
    versions = torch.empty(8, 3, 3, 16, 16, dtype=torch.uint8, device=DEVICE)
    return StoredPairs(versions, parse_noise(noise) if noise else None)


def scenes(shots: int) -> Pairs:
    return ScenePairs([torch.empty(shots, 3, 50, 40, dtype=torch.uint8, device=DEVICE)], 16, 8)


PAIRS: dict[str, Callable[[], Pairs]] = {
    "gaussian": lambda: crops("gaussian:0-55"),
    "poisson-bernoulli": lambda: crops("poisson:30+bernoulli:0.3"),
    "stored": stored,
    "stored-noise": lambda: stored("bernoulli:0.3+gaussian:5"),
    "bursts": lambda: scenes(3),
    "single": lambda: scenes(1),
}


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `upload` was given; it arrives without a copy that could be seen."""
    given: list[Tensor] = []

    def upload(host: Tensor, device: torch.device) -> Tensor:
        given.append(host)
        return torch.empty(host.shape, dtype=host.dtype, device=device)

    monkeypatch.setattr(pairs, "upload", upload)
    return given


def step(
    source: Pairs, network: Network, optimizer: Optimizer, average: ExponentialMovingAverage
) -> Tensor:
    """As pipeline/training/train.py makes it."""
    random = StepRandom(torch.device("cpu"))  # meta tensors draw from the host's generator
    random.start(1, 2)

    def denoise(images: Tensor) -> Tensor:
        output = network.eval()(images)
        network.train()
        return output

    criterion, parameters = MSELoss(), network.parameters()
    noisy, target = source.batch(torch.arange(4), random, denoise)
    output = network(noisy)
    loss = criterion(output, torch.where(target.isnan(), output, target))
    optimizer.zero_grad()
    network.backward(criterion.backward(), needs_input_grad=False)
    clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    average.update()
    return loss


@pytest.mark.parametrize("data", list(PAIRS))
@pytest.mark.parametrize("optimizer", [SGD, AdamW, Muon])
def test_a_step_reads_nothing_from_the_device_and_uploads_only_pinned(
    data: str, optimizer: type[SGD] | type[AdamW] | type[Muon], uploads: list[Tensor]
) -> None:
    with DEVICE:
        network = Network("tconv", 0.5, 0.25).set_compute_dtype(torch.bfloat16)
    mover = optimizer(network.parameters(), 0.1)
    average = ExponentialMovingAverage(network.parameters())
    source = PAIRS[data]()
    step(source, network, mover, average)  # constants are uploaded once
    with Copies() as copies:
        loss = step(source, network, mover, average)
    assert loss.device == DEVICE
    assert not copies.seen
    assert all(host.numel() <= 4 for host in uploads)


def test_copies_and_reads_would_be_seen() -> None:
    with Copies() as copies:
        torch.zeros(3).to(DEVICE)
    assert copies.seen == ["aten._to_copy.default"]
    with pytest.raises(Exception, match="meta"):
        torch.zeros(3, device=DEVICE).sum().item()


def test_the_camera_s_jpeg_is_known_to_wait(uploads: list[Tensor]) -> None:
    """It is made on the host; docs/gpu.md says so."""
    source = crops("camera")
    random = StepRandom(torch.device("cpu"))
    with pytest.raises(Exception, match="meta"):
        source.batch(torch.arange(4), random, torch.zeros_like)


@pytest.mark.gpu
def test_a_step_on_a_gpu_does_not_synchronise(tmp_path: Path) -> None:
    device = torch.device("cuda")
    network = Network("unet", 0.5, 0.25).to(device).set_compute_dtype(torch.bfloat16)
    mover = SGD(network.parameters(), 0.1, momentum=0.9)
    average = ExponentialMovingAverage(network.parameters())
    photographs = [torch.zeros(3, 200, 200, dtype=torch.uint8, device=device)]
    source = CropPairs(photographs, parse_noise("gaussian:25"), 64, 8, gray_share=0.5)
    random = StepRandom(device)
    for number in range(4):
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            random.start(1, number)
            noisy, target = source.batch(torch.arange(4), random, torch.zeros_like)
            criterion = MSELoss()
            criterion(network(noisy), target)
            network.backward(criterion.backward(), needs_input_grad=False)
            mover.step()
            average.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
