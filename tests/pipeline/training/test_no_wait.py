"""A training step never makes the host wait for the device, nor launches much: on meta tensors.

A meta tensor has no values, so reading one fails; copies between host and device are recorded by a
dispatch mode, and only `upload`, which pins memory, may make them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import Operations, record_launches
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from denoise_batch.files.ranges import BITS_8, ValueRange
from denoise_batch.kernels import SGD, AdamW, ExponentialMovingAverage, Muon, dispatch
from denoise_batch.models import Network
from denoise_batch.training import pairs, scene_pairs
from denoise_batch.training.distributed import ProcessGroup
from denoise_batch.training.noise import parse_noise
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.pairs import (
    Batch,
    CropPairs,
    Denoise,
    Generators,
    Pairs,
    StoredPairs,
)
from denoise_batch.training.run_folder import TrainingState
from denoise_batch.training.scene_pairs import Scene, ScenePairs
from denoise_batch.training.train import training_step
from denoise_batch.training.update import Update

DEVICE = torch.device("meta")
HOST = torch.device("cpu")
OPTIONS = TrainOptions(Path("data"), Path("run"), "tconv", clip_norm=1.0)


class Copies(TorchDispatchMode):
    """Records operations whose operands and results are not all on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        # Numbers that are 0-d tensors on the host are passed with a launch.
        if len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1:
            self.seen.append(str(func))
        return result


def crops(noise: str, framed: float = 0.0) -> Pairs:
    photographs = [torch.empty(3, 40, 50, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
    return CropPairs(photographs, parse_noise(noise), 16, 8, gray_share=0.5, framed_share=framed)


class Counted(Pairs):
    """Pairs whose making is counted."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self.operations = Operations()

    @property
    def tile_px(self) -> int:
        return self._pairs.tile_px

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        with self.operations:
            return self._pairs.batch(indices, generators, denoise)


def stored(noise: str | None = None) -> Pairs:
    versions = torch.empty(8, 3, 3, 16, 16, dtype=torch.uint8, device=DEVICE)
    return StoredPairs(versions, parse_noise(noise) if noise else None)


def scenes(method: str, dtype: torch.dtype = torch.uint8) -> Pairs:
    samples = torch.empty(3, 1, 50, 40, dtype=dtype, device=DEVICE)
    unknown = torch.empty(3, 1, 50, 40, dtype=torch.bool, device=DEVICE)
    scale = BITS_8 if dtype == torch.uint8 else ValueRange(0.0, 65535.0)
    return ScenePairs([Scene(samples, scale), Scene(samples, scale, unknown)], 16, 8, method)


PAIRS: dict[str, Callable[[], Pairs]] = {
    "gaussian": lambda: crops("gaussian:0-55"),
    "poisson-bernoulli": lambda: crops("poisson:30+bernoulli:0.3"),
    "framed": lambda: crops("gaussian:0-55", 1.0),
    "stored": stored,
    "stored-noise": lambda: stored("bernoulli:0.3+gaussian:5"),
    "bursts": lambda: scenes("shots"),
    "recorrupted": lambda: scenes("recorrupted", torch.uint16),
    "neighbor": lambda: scenes("neighbor", torch.uint16),
    "blind-spot": lambda: scenes("blind-spot", torch.uint16),
}


@pytest.fixture(autouse=True)
def _decided_anew() -> Iterator[None]:
    dispatch.ops_for.cache_clear()
    yield
    dispatch.ops_for.cache_clear()


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors given to `upload`; they arrive without a copy that the mode would record."""
    given: list[Tensor] = []

    def upload(host: Tensor, device: torch.device) -> Tensor:
        given.append(host)
        return torch.empty(host.shape, dtype=host.dtype, device=device)

    for module in (pairs, scene_pairs):
        monkeypatch.setattr(module, "upload", upload)
    roots = torch.eye(3).expand(3, 3, 3)
    monkeypatch.setattr(scene_pairs, "noise_roots", lambda *_: roots)  # before all steps
    return given


def state_of(network: Network, optimizer: type[SGD] | type[AdamW] | type[Muon]) -> TrainingState:
    parameters = network.train().parameters()
    average = ExponentialMovingAverage(parameters, 0.9)
    loss_sum = torch.zeros((), device=parameters[0].device)
    return TrainingState(network, optimizer(parameters, 0.1), average, loss_sum)


@pytest.mark.parametrize("data", list(PAIRS))
@pytest.mark.parametrize("optimizer", [SGD, AdamW, Muon])
def test_a_step_reads_nothing_from_the_device_and_uploads_only_pinned(
    data: str, optimizer: type[SGD] | type[AdamW] | type[Muon], uploads: list[Tensor]
) -> None:
    with DEVICE:
        network = Network("tconv", 0.5, 0.25).set_compute_dtype(torch.bfloat16)
    state, source = state_of(network, optimizer), PAIRS[data]()
    update = Update(state, OPTIONS, source.known_share, ProcessGroup())
    generators = Generators(HOST)  # meta tensors draw from the host's generator

    def step() -> None:
        training_step(state, source, torch.arange(4), 0.1, OPTIONS, generators, update)

    step()  # constants are uploaded once
    with Copies() as copies:
        step()
    assert state.step == 2
    assert state.loss_sum.device == DEVICE
    assert not copies.seen
    # Numbers and masks, no pictures.
    assert all(host.numel() <= 32 or host.dtype == torch.bool for host in uploads)


def test_copies_and_reads_would_be_seen() -> None:
    with Copies() as copies:
        torch.zeros(3).to(DEVICE)
    assert copies.seen == ["aten._to_copy.default"]
    with pytest.raises(Exception, match="meta"):
        torch.zeros(3, device=DEVICE).sum().item()


def test_the_camera_s_jpeg_is_known_to_wait(uploads: list[Tensor]) -> None:
    """JPEG runs on the host, as docs/gpu.md says."""
    with pytest.raises(Exception, match="meta"):
        crops("camera").batch(torch.arange(4), Generators(HOST), torch.zeros_like)


@pytest.mark.parametrize(("name", "most_launches"), [("unet", 121), ("unet-level", 140)])
@pytest.mark.parametrize(("optimizer", "most"), [(SGD, 95), (AdamW, 103), (Muon, 157)])
def test_a_step_is_few_operations(
    name: str,
    most_launches: int,
    optimizer: type[SGD] | type[AdamW] | type[Muon],
    most: int,
    uploads: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the launches of Triton kernels, whatever the batch; making tiles is some for each."""
    launches = record_launches(monkeypatch)
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: device == DEVICE)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: dispatch.launchers())
    options = TrainOptions(Path("data"), Path("run"), name, clip_norm=1.0)
    for batch_size in (4, 64):
        with DEVICE:
            network = Network(name, 0.5, 0.25).to(DEVICE).set_compute_dtype(torch.bfloat16)
        network.estimator = None
        state, source = state_of(network, optimizer), Counted(crops("gaussian:0-55"))
        update = Update(state, options, source.known_share, ProcessGroup())
        generators = Generators(HOST)
        for _ in range(2):  # what is kept from one step to the next is made in the first
            launches.clear()
            source.operations.counts.clear()
            with Operations() as operations:
                indices = torch.arange(batch_size)
                training_step(state, source, indices, 0.1, options, generators, update)
        of_tiles = source.operations.counts.total()
        assert len(launches) <= most_launches
        assert 0 < of_tiles <= 10 + 9 * batch_size
        assert operations.counts.total() - of_tiles <= most, operations.counts.most_common()
        # One each for all parameters: their averages, the clipping, the casts.
        for once in ("_foreach_lerp_", "_foreach_norm", "_foreach_copy_"):
            assert operations.counts[once] <= 3, operations.counts
        assert operations.counts["clone"] <= 6  # no weight is packed


@pytest.mark.gpu
def test_a_step_on_a_gpu_does_not_synchronise() -> None:
    device = torch.device("cuda")
    network = Network("unet", 0.5, 0.25).to(device).set_compute_dtype(torch.bfloat16)
    state, generators = state_of(network, SGD), Generators(device)
    photographs = [torch.zeros(3, 200, 200, dtype=torch.uint8, device=device)]
    source = CropPairs(photographs, parse_noise("gaussian:25"), 64, 8, gray_share=0.5)
    update = Update(state, OPTIONS, source.known_share, ProcessGroup())
    for number in range(4):
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            training_step(state, source, torch.arange(4), 0.1, OPTIONS, generators, update)
        finally:
            torch.cuda.set_sync_debug_mode("default")
