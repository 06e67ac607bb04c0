"""Who runs while the network computes."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch.models import Network
from denoise_batch.options import DenoiseOptions
from denoise_batch.streaming import steps
from denoise_batch.streaming import stream as stream_module
from denoise_batch.streaming.denoiser import BatchDenoiser
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.steps import Writer

IMAGES = 15  # more than a turn has


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_session(weights: Path, folder: Path) -> Session:
    imgs = folder / "imgs"
    imgs.mkdir()
    for number in range(IMAGES):
        picture(40 + number, 32, number).save(imgs / f"{number}.png")
    options = DenoiseOptions((str(imgs),), weights=str(weights), device="cpu", batch_size=1)
    return Session(options)


def test_on_every_core_network_and_writers_take_turns(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "cores", lambda: 2)
    denoise, write = BatchDenoiser.denoise, Writer.write
    computing, writing = threading.Event(), threading.Lock()
    writers = 0
    together: list[str] = []

    def denoise_alone(self: BatchDenoiser, *args: Any, **options: Any) -> Iterator[Any]:
        computing.set()
        if writers:
            together.append("the network began while a writer was at work")
        outputs = list(denoise(self, *args, **options))
        computing.clear()
        yield from outputs

    def write_alone(self: Writer, *args: Any) -> Any:
        nonlocal writers
        with writing:
            writers += 1
        if computing.is_set():
            together.append("a writer began while the network was at work")
        result = write(self, *args)
        with writing:
            writers -= 1
        return result

    monkeypatch.setattr(BatchDenoiser, "denoise", denoise_alone)
    monkeypatch.setattr(Writer, "write", write_alone)
    with torch_threads(2):
        session = make_session(weights, tmp_path)
        summary = session.run(session.jobs())
    assert [result.status for result in summary.results] == ["done"] * IMAGES
    assert together == []


def test_with_a_core_left_writers_work_beside_the_network(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "cores", lambda: 4)
    denoise, write = BatchDenoiser.denoise, Writer.write
    started, begun = 0, threading.Condition()
    waits: list[bool] = []

    def denoise_counted(
        self: BatchDenoiser, pictures: Sequence[Any], **options: Any
    ) -> Iterator[Any]:
        nonlocal started
        with begun:
            started += 1
            begun.notify_all()
        return denoise(self, pictures, **options)

    def write_beside(self: Writer, *args: Any) -> Any:
        """Does not end before the network is at the last image."""
        with begun:
            waits.append(begun.wait_for(lambda: started == IMAGES, timeout=20))
        return write(self, *args)

    monkeypatch.setattr(BatchDenoiser, "denoise", denoise_counted)
    monkeypatch.setattr(Writer, "write", write_beside)
    with torch_threads(1):
        session = make_session(weights, tmp_path)
        summary = session.run(session.jobs())
    assert [result.status for result in summary.results] == ["done"] * IMAGES
    assert waits == [True] * IMAGES


def test_writers_have_one_torch_thread_each_and_the_rest_keeps_its_own(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writer.write
    seen: list[int] = []

    def write_noted(self: Writer, *args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return write(self, *args)

    monkeypatch.setattr(Writer, "write", write_noted)
    with torch_threads(3):
        session = make_session(weights, tmp_path)
        session.run(session.jobs())
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [1] * IMAGES
    assert later == [3]


@pytest.mark.parametrize(
    ("suffix", "tile", "passes", "basis", "reason"),
    [
        (".png", "off", 2, "estimate", ""),
        (".png", "96", 25 + 2, "estimate", ""),
        (".jpg", "off", 1, None, "not white"),
        (".jpg", "96", 25, None, "not white"),
    ],
)
def test_the_network_is_asked_twice_only_where_an_estimate_can_come_of_it(
    suffix: str,
    tile: str,
    passes: int,
    basis: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, calls = Network.forward_padded, 0

    def forward_counted(self: Network, padded: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(self, padded)

    monkeypatch.setattr(Network, "forward_padded", forward_counted)
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    noise = torch.randn(384, 384, 3, generator=torch.Generator().manual_seed(0))
    samples = (128 + 30 * noise).clamp(0, 255).to(torch.uint8)
    noisy = Image.frombytes("RGB", (384, 384), samples.numpy().tobytes())
    noisy.save(imgs / f"a{suffix}", quality=60)
    options = DenoiseOptions((str(imgs),), weights="tconv", device="cpu", tile=tile)
    session = Session(options)
    (result,) = session.run(session.jobs()).results
    assert result.quality is not None
    assert result.quality.sigma_in_255 is not None
    assert result.quality.basis == basis
    assert reason in result.quality.reason
    assert calls == passes


@pytest.mark.parametrize("stage", ["assess", "measure"])
def test_an_estimate_that_fails_costs_neither_the_file_nor_the_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    estimate, calls = getattr(steps, stage), itertools.count()

    def failing_once(*args: Any, **options: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("linalg.eigh: the algorithm failed to converge")
        return estimate(*args, **options)

    monkeypatch.setattr(steps, stage, failing_once)
    session = make_session(weights, tmp_path)
    summary = session.run(session.jobs())
    results = summary.results
    assert summary.exit_code == 0
    assert [result.status for result in results] == ["done"] * IMAGES
    (odd,) = [result for result in results if result.notes]
    assert "could not be estimated: linalg.eigh" in odd.notes[0]
    assert odd.quality is None
    assert odd.job.output.exists()
    assert all(result.quality is not None for result in results if result is not odd)
