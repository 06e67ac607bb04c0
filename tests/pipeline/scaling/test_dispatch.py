"""Handing out jobs: all are done once, by whoever is there, whatever is lost."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from denoise_batch.files.scan import Job
from denoise_batch.kernels import DeviceError, WeightsError
from denoise_batch.scaling.dispatch import Dispatch, Worker, WorkerLostError
from denoise_batch.streaming.result import Result


class Fake(Worker):
    """A worker in this process.

    Args:
        name: its name.
        loses: called before each job; True loses the worker before it is done.
        starts: how often it can be started.
    """

    def __init__(
        self,
        name: str,
        loses: Callable[[Job], bool] = lambda job: False,
        starts: int = 1000,
    ) -> None:
        self.name = name
        self.chunks: list[int] = []
        self.done: list[str] = []
        self._loses = loses
        self._starts = starts
        self._is_stopped = False

    def start(self, is_over: Callable[[], bool]) -> bool:
        self._starts -= 1
        while self._starts < 0 and not is_over():
            time.sleep(0.01)
        return not is_over()

    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        self.chunks.append(len(jobs))
        for job in jobs:
            if self._is_stopped:
                return
            if self._loses(job):
                raise WorkerLostError("killed")
            time.sleep(0.0005)
            self.done.append(job.name)
            yield Result(job, "done")

    def stop(self) -> None:
        self._is_stopped = True

    def close(self) -> None:
        pass


def some_jobs(count: int) -> list[Job]:
    root = Path("out")
    return [Job(Path(f"{i}.png"), root / f"{i}.png", f"{i}.png", root) for i in range(count)]


def run(workers: Sequence[Worker], count: int, **options: float) -> list[Result]:
    results = list(Dispatch(workers, **options).run(some_jobs(count)))
    names = sorted(result.job.name for result in results)
    assert names == sorted(job.name for job in some_jobs(count))  # each once
    return results


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_job_is_done_once(size: int, count: int) -> None:
    workers = [Fake(f"w{i}") for i in range(size)]
    results = run(workers, count)
    assert all(result.status == "done" for result in results)
    assert sum(len(worker.done) for worker in workers) == count
    if count == 300:
        assert all(len(worker.done) > 0 for worker in workers)
        assert all(max(worker.chunks) <= -(-300 // size) for worker in workers)
        assert workers[0].chunks[-1] <= 3  # they shrink, so that all end together


def test_a_lost_workers_jobs_go_to_another() -> None:
    is_lost = threading.Event()

    def once(job: Job) -> bool:
        return job.name == "5.png" and not is_lost.is_set() and (is_lost.set() or True)

    workers = [Fake("lost", once, starts=1), Fake("other", once, starts=1)]
    results = run(workers, 100)
    assert is_lost.is_set()
    assert all(result.status == "done" for result in results)
    assert sum(len(worker.done) for worker in workers) == 100


def test_a_lost_worker_comes_back() -> None:
    left = [True]
    worker = Fake("alone", lambda job: job.name == "5.png" and bool(left and left.pop()))
    assert all(result.status == "done" for result in run([worker], 20))


def test_a_file_that_takes_its_workers_down_fails_alone() -> None:
    workers = [Fake(f"w{i}", lambda job: job.name == "50.png") for i in range(2)]
    results = {result.job.name: result for result in run(workers, 100)}
    assert results["50.png"].status == "failed"
    assert "took its worker down 3 times" in results["50.png"].reason
    assert "killed" in results["50.png"].reason
    assert sum(result.status == "done" for result in results.values()) == 99


def test_files_that_all_take_their_worker_down_all_fail_alone() -> None:
    bad = {"0.png", "1.png", "2.png", "3.png", "17.png"}
    results = {r.job.name: r.status for r in run([Fake("w", lambda job: job.name in bad)], 20)}
    assert {name for name, status in results.items() if status == "failed"} == bad


def test_a_failed_device_is_a_lost_worker() -> None:
    class Failing(Fake):
        def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
            for result in super().run(jobs):
                yield result
                if len(self.done) == 3:
                    raise DeviceError("CUDA error: unspecified launch failure")

    assert all(result.status == "done" for result in run([Failing("w"), Fake("other")], 50))


def test_workers_that_only_get_lost_end_the_run() -> None:
    class Stillborn(Fake):
        def start(self, is_over: Callable[[], bool]) -> bool:
            raise WorkerLostError("no such library")

    with pytest.raises(DeviceError, match=r"lost again and again .*no such library"):
        run([Stillborn("w")], 3)


def test_without_any_worker_patience_ends() -> None:
    with pytest.raises(DeviceError, match="there was no worker for 0 s"):
        run([Fake("w", starts=0)], 3, patience_s=0.3)


def test_what_no_worker_can_mend_ends_the_run() -> None:
    class Wrong(Fake):
        def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
            raise WeightsError("damaged")
            yield

    with pytest.raises(WeightsError, match="damaged"):
        run([Wrong("w"), Fake("other")], 50)


def test_stopping_finishes_what_is_in_flight_and_leaves_the_rest() -> None:
    workers = [Fake(f"w{i}") for i in range(2)]
    results: list[Result] = []
    for result in Dispatch(workers).run(some_jobs(2000), lambda: len(results) >= 10):
        results.append(result)
    assert 10 <= len(results) < 2000
    assert len(results) == sum(len(worker.done) for worker in workers)
