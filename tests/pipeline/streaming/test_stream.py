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

from denoise_batch.options import DenoiseOptions
from denoise_batch.streaming import stream as readers_module
from denoise_batch.streaming import stream as turns_module
from denoise_batch.streaming import stream as writer_module
from denoise_batch.streaming.denoiser import Denoiser, Forward
from denoise_batch.streaming.result import Result
from denoise_batch.streaming.session import Events, Session
from denoise_batch.streaming.stream import Writer

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
    monkeypatch.setattr(turns_module, "cores", lambda: 2)
    denoise, write = Denoiser.denoise, Writer.write
    computing, writing = threading.Event(), threading.Semaphore(2)
    together: list[str] = []

    def denoise_alone(self: Denoiser, *args: Any, **options: Any) -> Iterator[Any]:
        computing.set()
        if writing._value != 2:
            together.append("the network began while a writer was at work")
        outputs = list(denoise(self, *args, **options))
        computing.clear()
        yield from outputs

    def write_alone(self: Writer, *args: Any) -> Any:
        with writing:
            if computing.is_set():
                together.append("a writer began while the network was at work")
            return write(self, *args)

    monkeypatch.setattr(Denoiser, "denoise", denoise_alone)
    monkeypatch.setattr(Writer, "write", write_alone)
    with torch_threads(2):
        session = make_session(weights, tmp_path)
        summary = session.run(session.jobs())
    assert [result.status for result in summary.results] == ["done"] * IMAGES
    assert together == []


def test_with_a_core_left_writers_work_beside_the_network(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "cores", lambda: 4)
    denoise, write = Denoiser.denoise, Writer.write
    started, begun = 0, threading.Condition()
    waits: list[bool] = []

    def denoise_counted(self: Denoiser, pictures: Sequence[Any], **options: Any) -> Iterator[Any]:
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

    monkeypatch.setattr(Denoiser, "denoise", denoise_counted)
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
        (".png", "96", None, "estimate", ""),
        (".jpg", "off", 1, None, "not white"),
        (".jpg", "96", None, None, "not white"),
    ],
)
def test_the_network_is_asked_twice_only_where_an_estimate_can_come_of_it(
    suffix: str,
    tile: str,
    passes: int | None,
    basis: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch, probe_tiles = Forward._launch, Denoiser._probe_tiles
    launches, tile_probes = 0, 0

    def launch_counted(self: Forward, padded: torch.Tensor) -> torch.Tensor:
        nonlocal launches
        launches += 1
        return launch(self, padded)

    def probe_counted(self: Denoiser, page: Any) -> Any:
        nonlocal tile_probes
        tile_probes += 1
        return probe_tiles(self, page)

    monkeypatch.setattr(Forward, "_launch", launch_counted)
    monkeypatch.setattr(Denoiser, "_probe_tiles", probe_counted)
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
    if passes is None:
        assert tile_probes == (1 if basis else 0)
    else:
        assert launches == passes


@pytest.mark.parametrize("stage", ["assess", "measure"])
def test_an_estimate_that_fails_costs_neither_the_file_nor_the_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    module = readers_module if stage == "assess" else writer_module
    estimate, calls = getattr(module, stage), itertools.count()

    def failing_once(*args: Any, **options: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("linalg.eigh: the algorithm failed to converge")
        return estimate(*args, **options)

    monkeypatch.setattr(module, stage, failing_once)
    session = make_session(weights, tmp_path)
    results: list[Result] = []
    summary = session.run(session.jobs(), Events(on_result=results.append))
    assert summary.exit_code == 0
    assert [result.status for result in results] == ["done"] * IMAGES
    (odd,) = [result for result in results if result.notes]
    assert "could not be estimated: linalg.eigh" in odd.notes[0]
    assert odd.quality is None
    assert odd.job.output.exists()
    assert all(result.quality is not None for result in results if result is not odd)
