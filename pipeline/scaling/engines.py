"""Engines that spread a run over workers: processes on this machine's GPUs, or a Ray cluster."""

import sys
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from denoise_batch.kernels.errors import DeviceError

from ..files.scan import Job
from ..models import find_weights, load_weights
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from ..streaming.engine import Engine, precision_on
from ..streaming.manifest import FOLDER, Manifest, Storage
from ..streaming.result import Plan, Result
from .dispatch import Dispatch, Worker
from .processes import ProcessWorker
from .ray_workers import RayWorker, connect, precision_there, shares
from .remote import RemoteStorage
from .worker_session import WorkerConfig


class WorkersEngine(Engine):
    """Hands a run's jobs to workers, which it keeps until it is closed.

    The workers note what they write, each in its own part of the manifest.

    Args:
        options: of the run.
        storage: where its files come from and go to.
        part: the run's part of the manifest.

    Raises:
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage, part: str) -> None:
        self.options = options
        self.weights_file = find_weights(options.weights)
        self.digests = (
            load_weights(self.weights_file).sha256,
            options.digest(self.precision),
        )
        self._mirror = storage.mirror.root if isinstance(storage, RemoteStorage) else None
        self._part = part
        self._workers: list[Worker] = []

    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Denoise the jobs' files; a lost worker's jobs go to another.

        Raises:
            DeviceError: all workers were lost, or a device failed.
        """
        self._workers = self._workers or self.new_workers(jobs)
        dispatch = Dispatch(self._workers[: len(jobs)])
        absolute = {_absolute(job): job for job in jobs}
        with closing(dispatch.run(list(absolute), lambda: bool(stop))) as results:
            for result in results:
                yield replace(result, job=absolute[result.job])

    def warm_up(self, jobs: Sequence[Job]) -> None:
        """Start all workers now, for who wants to time what follows."""
        self._workers = self._workers or self.new_workers(jobs)
        for worker in self._workers:
            worker.start(lambda: False)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    @abstractmethod
    def new_workers(self, jobs: Sequence[Job]) -> list[Worker]:
        """Workers, not started yet, for a run whose first jobs these are."""

    def config(self, device: str, number: int) -> WorkerConfig:
        """What a worker of this run is told."""
        reference = self.options.reference
        options = replace(
            self.options,
            device=device,
            precision=self.precision,
            reference=reference.absolute() if reference else None,
            reports=(),  # the run writes them, where it runs
            engine="local",
            ray_address=None,
        )
        return WorkerConfig(options, f"{self._part}-worker-{number}", mirror=self._mirror)


class ProcessEngine(WorkersEngine):
    """A process for each of this machine's CUDA devices.

    Args:
        options: of the run.
        storage: where its files come from and go to.
        part: the run's part of the manifest.
        devices: one worker for each; None: all CUDA devices.

    Raises:
        DeviceError: there is no CUDA device.
        WeightsError: the weights cannot be used.
    """

    def __init__(
        self,
        options: DenoiseOptions,
        storage: Storage,
        part: str,
        devices: Sequence[str] | None = None,
    ) -> None:
        self._devices = list(_cuda_devices() if devices is None else devices)
        self.device = ", ".join(self._devices)
        # The first one stands for all: cards of one machine are alike.
        self.precision = precision_on(options.precision, torch.device(self._devices[0]))
        super().__init__(options, storage, part)

    def new_workers(self, jobs: Sequence[Job]) -> list[Worker]:
        """One a device."""
        return [
            ProcessWorker(f"worker {number} on {device}", self.config(device, number))
            for number, device in enumerate(self._devices)
        ]


class RayEngine(WorkersEngine):
    """Actors of a Ray cluster.

    Args:
        options: of the run.
        storage: where its files come from and go to.
        part: the run's part of the manifest.

    Raises:
        OptionError: Ray is not installed, or a device that a cluster does not have.
        DeviceError: there is no such cluster.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage, part: str) -> None:
        self._ray, self._is_ours = connect(options.ray_address)
        self._shares = shares(self._ray.nodes(), options.device)
        gpus = sum(share.gpus for share in self._shares)
        self.device = f"Ray ({len(self._shares)} × {'GPU' if gpus else 'CPU'})"
        self.precision = precision_there(self._ray, options.precision, has_gpu=gpus > 0)
        super().__init__(options, storage, part)

    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Denoise the jobs' files; what Ray itself prints goes to stderr."""
        with closing(super().run(jobs, manifests, progress, stop)) as results:
            while True:
                # Ray prints a lost node's log to stdout, in the middle of --log json.
                with redirect_stdout(sys.stderr):
                    result = next(results, None)
                if result is None:
                    return
                yield result

    def new_workers(self, jobs: Sequence[Job]) -> list[Worker]:
        """One a share of the cluster."""
        weights = self.weights_file.read_bytes()
        first = _absolute(jobs[0])
        must_see = tuple(
            path
            for path in (first.source.parent, first.root / FOLDER / "lock")
            if self._mirror is None or not path.is_relative_to(self._mirror)
        )
        workers: list[Worker] = []
        for number, share in enumerate(self._shares):
            config = self.config("cuda" if share.gpus else "cpu", number)
            config = replace(config, weights=weights, must_see=must_see)
            workers.append(RayWorker(f"Ray worker {number}", self._ray, share, config))
        return workers

    def close(self) -> None:
        """Leave the cluster, if it was us who joined it, and nothing on it."""
        for worker in self._workers:
            assert isinstance(worker, RayWorker)  # new_workers made it
            worker.clean()
        super().close()
        if self._is_ours:
            self._ray.shutdown()


def _cuda_devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError("--device cuda:all: PyTorch finds no usable NVIDIA GPU; use --device cpu")
    return [f"cuda:{index}" for index in range(count)]


def _absolute(job: Job) -> Job:
    """The same job from anywhere: a worker has another working directory."""
    return replace(
        job, source=job.source.absolute(), output=job.output.absolute(), root=job.root.absolute()
    )
