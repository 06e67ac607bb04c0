"""Gradients from recorded launches: those of the plain step, also once the weights have moved."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import SGD, OptionError
from denoise_batch.kernels.capture import Recorder
from denoise_batch.models import Network
from denoise_batch.training.distributed import ProcessGroup
from denoise_batch.training.gradients import RECHECKS, Gradients
from denoise_batch.training.options import TrainOptions

OPTIONS = TrainOptions(Path("data"), Path("run"), "unet-level", loss="log", cuda_graphs=True)


class Recordings:
    """Replays by running again. `old` keeps for every replay what a step found at first."""

    def __init__(self, old: Callable[[Tensor], Tensor] = lambda now: now) -> None:
        self.old = old
        self.replays = 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = run().clone()

        def replay() -> None:
            self.replays += 1
            output.copy_(self.old(run()))

        return replay, output


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(2, 3, 32, 32, generator=generator)
    level = torch.tensor([0.05, 0.1])
    noisy = clean + level.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=generator)
    return noisy, clean, level, 1.2 * level


def losses(options: TrainOptions, recorder: Recorder | None, steps: int) -> list[Tensor]:
    """Losses and gradients of some steps of SGD."""
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(1)).train()
    gradients = Gradients(network, options, 1.0, ProcessGroup(), recorder)
    optimizer = SGD(network.restorer.parameters(), 0.01)
    found = []
    for step in range(steps):
        loss = gradients(*batch(step))
        grads = [p.grad.flatten() for p in optimizer.parameters if p.grad is not None]
        found.append(torch.cat([loss.view(1), *grads]).clone())
        optimizer.step()
    return found


def test_replays_give_the_plain_steps_gradients() -> None:
    recordings = Recordings()
    replayed = losses(OPTIONS, recordings, 8)
    plain = losses(replace(OPTIONS, cuda_graphs=False), None, 8)
    assert recordings.replays == 7  # the second step records; from then on each replays
    for one, other in zip(replayed, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("part", [0, 1, -1])  # the loss, the first and the last gradient
def test_a_graph_with_wrong_gradients_is_not_used(
    part: int, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(values: Tensor) -> Tensor:
        values[part] *= 1.5
        return values

    recordings = Recordings(wrong)
    with caplog.at_level(logging.WARNING, "denoise_batch.kernels"):
        replayed = losses(OPTIONS, recordings, 5)
    assert recordings.replays == 1
    assert "CUDA graphs are disabled (wrong results" in caplog.text
    plain = losses(replace(OPTIONS, cuda_graphs=False), None, 5)
    assert all(map(torch.equal, replayed, plain))


def test_a_graph_that_keeps_old_weights_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """Right when it was recorded, wrong as soon as the weights have moved."""
    kept: list[Tensor] = []

    def old(values: Tensor) -> Tensor:
        kept.append(values.clone())
        return kept[0]

    recordings = Recordings(old)
    with caplog.at_level(logging.WARNING, "denoise_batch.kernels"):
        replayed = losses(OPTIONS, recordings, 5)
    assert recordings.replays <= 1 + RECHECKS
    assert "CUDA graphs are disabled" in caplog.text
    plain = losses(replace(OPTIONS, cuda_graphs=False), None, 5)
    assert all(map(torch.equal, replayed, plain))


def test_on_a_processor_nothing_is_recorded() -> None:
    plain = losses(replace(OPTIONS, cuda_graphs=False), None, 2)
    assert all(map(torch.equal, losses(OPTIONS, None, 2), plain))


def test_several_processes_are_refused() -> None:
    group = ProcessGroup()
    group.size = 2
    with pytest.raises(OptionError, match="one process"):
        Gradients(Network("unet-level"), OPTIONS, 1.0, group)
