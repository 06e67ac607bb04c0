"""Recording and replay with a recorder that needs no GPU."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import capture
from denoise_batch.kernels.capture import Captured, CudaGraphs


class FakeGraphs:
    """Replays by running the function again, into the memory of its first result."""

    def __init__(self, *, is_stale: bool = False, error: Exception | None = None) -> None:
        self.is_stale = is_stale
        self.error = error
        self.records = 0
        self.replays = 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.records += 1
        if self.error is not None:
            raise self.error
        output = run()

        def replay() -> None:
            self.replays += 1
            if not self.is_stale:
                output.copy_(run())

        return replay, output


def double(input: Tensor) -> Tensor:
    return 2 * input + 1


def scaled(input: Tensor, factor: Tensor) -> Tensor:
    return input * factor.view(-1, 1, 1, 1)


def calls(captured: Captured, count: int, *shape: int) -> None:
    for _ in range(count):
        image = torch.rand(shape)
        assert torch.equal(captured(image), 2 * image + 1)


def test_every_replay_gets_all_tensors_anew() -> None:
    graphs = FakeGraphs()
    captured = Captured(scaled, recorder=graphs)
    for _ in range(4):
        image, factor = torch.rand(2, 3, 8, 8), torch.rand(2)
        assert torch.equal(captured(image, factor), scaled(image, factor))
    assert (graphs.records, graphs.replays) == (1, 1 + 2)


def test_a_shape_that_comes_again_is_recorded_and_replayed() -> None:
    graphs = FakeGraphs()
    captured = Captured(double, recorder=graphs)
    calls(captured, 1, 1, 3, 8, 8)
    assert graphs.records == 0  # it may never come again
    calls(captured, 4, 1, 3, 8, 8)
    assert (graphs.records, graphs.replays) == (1, 1 + 3)
    calls(captured, 3, 2, 3, 8, 8)
    assert graphs.records == 2


def test_a_result_is_the_caller_s_own() -> None:
    captured = Captured(double, recorder=FakeGraphs())
    calls(captured, 2, 1, 1, 2, 2)
    first, second = captured(torch.zeros(1, 1, 2, 2)), captured(torch.ones(1, 1, 2, 2))
    assert (first.unique().item(), second.unique().item()) == (1, 3)


def test_another_state_is_another_recording() -> None:
    graphs, state = FakeGraphs(), ["fp32"]
    captured = Captured(double, lambda: state[0], graphs)
    calls(captured, 3, 1, 1, 2, 2)
    state[0] = "bf16"
    calls(captured, 3, 1, 1, 2, 2)
    assert graphs.records == 2


def test_few_shapes_are_recorded() -> None:
    graphs = FakeGraphs()
    captured = Captured(double, recorder=graphs)
    for size in range(1, 9):
        calls(captured, 3, 1, 1, size, size)
    assert graphs.records == capture.MOST_RECORDINGS


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        (FakeGraphs(is_stale=True), "wrong results: error"),
        (FakeGraphs(error=RuntimeError("operation not permitted\nwhen capturing")), "operation no"),
    ],
    ids=["stale", "not-capturable"],
)
def test_a_recording_that_fails_is_switched_off_with_one_line(
    graphs: FakeGraphs, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    captured = Captured(double, recorder=graphs)
    calls(captured, 5, 1, 3, 8, 8)
    assert graphs.records == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage().startswith(f"CUDA graphs are disabled ({reason}")


def test_without_memory_for_a_recording_the_plain_function_goes_on() -> None:
    graphs = FakeGraphs(error=torch.OutOfMemoryError("CUDA out of memory"))
    captured = Captured(double, recorder=graphs)
    calls(captured, 5, 1, 3, 8, 8)
    assert graphs.records == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("operation not permitted")],
    ids=["out-of-memory", "not-capturable"],
)
def test_once_switched_off_no_recording_keeps_its_memory(error: Exception) -> None:
    graphs = FakeGraphs()
    captured = Captured(double, recorder=graphs)
    calls(captured, 2, 1, 3, 8, 8)
    assert captured._recordings
    graphs.error = error
    calls(captured, 2, 2, 3, 8, 8)
    assert not captured._recordings
    calls(captured, 2, 1, 3, 8, 8)
    assert (graphs.records, graphs.replays) == (2, 1)


def test_calls_of_other_threads_leave_a_recording_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for events and readers pin memory meanwhile: CUDA's default forbids that."""
    modes = []

    @contextmanager
    def graph(graph: object, *, capture_error_mode: str = "global") -> Iterator[None]:
        modes.append(capture_error_mode)
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    _, output = CudaGraphs().record(lambda: torch.ones(2))
    assert output.tolist() == [1, 1]
    assert modes == ["thread_local"]


def test_errors_of_the_function_itself_are_raised() -> None:
    def broken(input: Tensor) -> Any:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Captured(broken, recorder=FakeGraphs())(torch.zeros(1))


@pytest.mark.gpu
def test_a_network_on_a_gpu_is_replayed() -> None:
    weight = torch.randn(16, 16, device="cuda")
    captured = Captured(lambda image: (image @ weight).relu())
    for _ in range(4):
        image = torch.randn(8, 16, device="cuda")
        torch.testing.assert_close(captured(image), (image @ weight).relu())
    assert captured._recordings
