"""Updates from recorded launches: those of the same launches one by one, bit for bit.

`tests/kernels/test_optim.py` holds that numbers in tensors do what floats do.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    ExponentialMovingAverage,
    Muon,
    OptionError,
)
from denoise_batch.kernels.capture import RECHECKS
from denoise_batch.kernels.optim import Optimizer
from denoise_batch.models import Network
from denoise_batch.training.distributed import ProcessGroup
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.run_folder import TrainingState
from denoise_batch.training.update import Update

OPTIONS = TrainOptions(
    Path("data"), Path("run"), "unet-level", loss="log", clip_norm=1.0, cuda_graphs=True
)
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, 0.1, 0.9, True, 1e-3),
    "adam": lambda parameters: Adam(parameters, weight_decay=1e-3),
    "adamw": AdamW,
    "muon": Muon,
}


class Recordings:
    """Replays by running again, unseen by torch, as a graph's launches are.

    Args:
        spoil: changes what a replay left in the state.

    Attributes:
        state: that updates change; nothing is recorded before it is known.
    """

    def __init__(self, spoil: Callable[[TrainingState], None] = lambda state: None) -> None:
        self.spoil = spoil
        self.replays = 0
        self.state: TrainingState | None = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.state is None:
            raise RuntimeError("not recorded")
        state = self.state
        output = run().clone()  # changes the state, as a warm-up does

        def replay() -> None:
            self.replays += 1
            parameters = tuple(state.optimizer.parameters)
            with torch.autograd._unsafe_preserve_version_counter(parameters):
                output.copy_(run())
                self.spoil(state)

        return replay, output


def batch(seed: int, count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 3, 32, 32, generator=generator)
    level = torch.linspace(0.05, 0.1, count)
    noisy = clean + level.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=generator)
    return noisy, clean, level, 1.2 * level


def new_state(optimizer: str) -> TrainingState:
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(1)).train()
    parameters = network.restorer.parameters()
    average = ExponentialMovingAverage(parameters, 0.99)
    return TrainingState(network, OPTIMIZERS[optimizer](parameters), average, torch.zeros(()))


def trained(
    steps: int,
    recordings: Recordings | None = None,
    *,
    optimizer: str = "muon",
    counts: Callable[[int], int] = lambda step: 2,
) -> TrainingState:
    """The state after some steps of falling learning rates; without recordings, of plain ones."""
    state = new_state(optimizer)
    if recordings is None:
        recordings = Recordings()
    else:
        recordings.state = state
    update = Update(state, OPTIONS, 1.0, ProcessGroup(), recordings)
    for step in range(steps):
        state.optimizer.lr = 0.01 / (1 + step)
        update(*batch(step, counts(step)))
    return state


def assert_same_state(one: TrainingState, other: TrainingState) -> None:
    pairs = [
        *zip(one.optimizer.parameters, other.optimizer.parameters, strict=True),
        *zip(one.average.averages, other.average.averages, strict=True),
        (one.loss_sum, other.loss_sum),
    ]
    moments, others = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert moments.keys() == others.keys()
    pairs += [(moments[name], others[name]) for name in moments]
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
    assert one.average.steps == other.average.steps


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_replays_make_the_plain_steps_updates(optimizer: str) -> None:
    recordings = Recordings()
    replayed = trained(8, recordings, optimizer=optimizer)
    assert recordings.replays == 7  # the second step records; from then on each replays
    assert_same_state(replayed, trained(8, optimizer=optimizer))


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    def counts(step: int) -> int:
        return 1 if step % 4 == 3 else 2

    recordings = Recordings()
    replayed = trained(12, recordings, counts=counts)
    assert recordings.replays == 8 + 2  # of nine pairs and three single images all but the first
    assert_same_state(replayed, trained(12, counts=counts))


def test_turned_tiles_need_no_recording_of_their_own() -> None:
    recordings, state = Recordings(), new_state("sgd")
    recordings.state = state
    update = Update(state, OPTIONS, 1.0, ProcessGroup(), recordings)
    for step in range(6):
        noisy, clean, *levels = batch(step)
        if step % 2:
            noisy, clean = noisy.mT, clean.mT
        update(noisy, clean, *levels)
    assert recordings.replays == 5


def test_after_a_replay_the_network_computes_with_its_new_weights() -> None:
    """What was cast from older ones is dropped: torch does not see what a graph changed."""
    recordings = Recordings()
    state = new_state("sgd")
    recordings.state = state
    state.network.set_compute_dtype(torch.bfloat16)
    update = Update(state, OPTIONS, 1.0, ProcessGroup(), recordings)
    noisy, *rest = batch(0)
    outputs = []
    for _ in range(6):
        update(noisy, *rest)
        outputs.append(state.network.eval().forward(noisy, rest[0].new_full((2,), 0.1)))
        fresh = Network("unet-level", 0.5, 0.25).set_compute_dtype(torch.bfloat16).eval()
        weights = {name: p.clone() for name, p in state.network.named_parameters()}
        fresh.load_state_dict(weights)
        expected = fresh.forward(noisy, rest[0].new_full((2,), 0.1))
        assert torch.equal(outputs[-1], expected)
        state.network.train()
    assert recordings.replays == 5


def scale_weight(state: TrainingState) -> None:
    state.optimizer.parameters[0].mul_(1.001)


def scale_last_moment(state: TrainingState) -> None:
    list(state.optimizer.state_dict().values())[-1].mul_(1.1)


def lose_average(state: TrainingState) -> None:
    state.average.averages[-1].copy_(state.optimizer.parameters[-1])


def add_to_loss(state: TrainingState) -> None:
    state.loss_sum += 1


def break_weight(state: TrainingState) -> None:
    state.optimizer.parameters[3].view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    "spoil", [scale_weight, scale_last_moment, lose_average, add_to_loss, break_weight]
)
def test_a_graph_that_updates_wrongly_is_not_used(
    spoil: Callable[[TrainingState], None], caplog: pytest.LogCaptureFixture
) -> None:
    recordings = Recordings(spoil)
    with caplog.at_level(logging.WARNING, "denoise_batch.kernels"):
        replayed = trained(5, recordings)
    assert recordings.replays == 1
    assert "CUDA graphs are disabled (wrong changes" in caplog.text
    assert_same_state(replayed, trained(5))


def test_a_graph_that_keeps_old_weights_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """Right when it was recorded, wrong as soon as the weights have moved."""
    kept: list[list[Tensor]] = []

    def go_back(state: TrainingState) -> None:
        kept.append([parameter.clone() for parameter in state.optimizer.parameters])
        for parameter, old in zip(state.optimizer.parameters, kept[0], strict=True):
            parameter.copy_(old)

    recordings = Recordings(go_back)
    with caplog.at_level(logging.WARNING, "denoise_batch.kernels"):
        replayed = trained(5, recordings)
    assert recordings.replays <= 1 + RECHECKS
    assert "CUDA graphs are disabled" in caplog.text
    assert_same_state(replayed, trained(5))


def test_on_a_processor_nothing_is_recorded() -> None:
    update = Update(new_state("muon"), OPTIONS, 1.0, ProcessGroup())
    assert update._captured is None


def test_several_processes_are_refused() -> None:
    group = ProcessGroup()
    group.size = 2
    with pytest.raises(OptionError, match="one process"):
        Update(new_state("sgd"), OPTIONS, 1.0, group)
