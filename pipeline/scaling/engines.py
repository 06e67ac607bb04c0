"""Engines that spread a run over workers: processes on this machine's GPUs, or a Ray cluster."""

import sys
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from denoise_batch.kernels.errors import DeviceError

from ..device import device_failures, precision_on
from ..files.scan import Job
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from ..streaming.manifest import FOLDER, Manifest, Storage
from ..streaming.result import Plan, Result
from ..streaming.stream import Engine, weights_for
from .dispatch import Dispatch, Worker
from .processes import ProcessWorker
from .ray_workers import RayWorker, connect, precision_there, shares
from .remote import RemoteStorage
from .worker_session import WorkerConfig


class WorkersEngine(Engine):
    """Sends a run's jobs to workers, which it keeps until it is closed.

    Each worker records what it writes in its own part of the manifest.

    Args:
        options: of the run.
        storage: where its files come from and go to.
        part: the run's part of the manifest.

    Raises:
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage, part: str) -> None:
        self.options = options
        self.weights_file, weights = weights_for(options)
        self.digests = (weights.sha256, options.digest(self.precision))
        self._mirror = storage.mirror.root if isinstance(storage, RemoteStorage) else None
        self._part = part
        self._workers: list[Worker] = []

    @property
    def kernels(self) -> str:
        """What computed on the workers, in words, once they have said it."""
        said = dict.fromkeys(worker.kernels for worker in self._workers if worker.kernels)
        return "; ".join(said) or super().kernels

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
                if stop.is_at_once:
                    return

    def warm_up(self, jobs: Sequence[Job]) -> None:
        """Start all workers now, to time what follows without their start."""
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
        """Make the workers, not started yet, for a run that begins with these jobs."""

    def config(self, device: str, number: int) -> WorkerConfig:
        """Settings for worker `number` of this run."""
        reference = self.options.reference
        options = replace(
            self.options,
            device=device,
            precision=self.precision,
            reference=reference.absolute() if reference else None,
            reports=(),  # written by the run's own process
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
        # The first stands for all: a machine's GPUs are usually alike.
        with device_failures(self._devices[0]):
            self.precision = precision_on(options.precision, torch.device(self._devices[0]))
        super().__init__(options, storage, part)

    def new_workers(self, jobs: Sequence[Job]) -> list[Worker]:
        """One worker per device."""
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
        OptionError: Ray is not installed, or the device is not one for clusters.
        DeviceError: there is no cluster at the address.
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
        """One worker per share of the cluster."""
        weights = self.weights_file.read_bytes()
        first = _absolute(jobs[0])
        must_see = tuple(
            path
            for path in (first.source.parent, first.root / FOLDER)
            if self._mirror is None or not path.is_relative_to(self._mirror)
        )
        workers: list[Worker] = []
        for number, share in enumerate(self._shares):
            config = self.config("cuda" if share.gpus else "cpu", number)
            config = replace(config, weights=weights, must_see=must_see)
            workers.append(RayWorker(f"Ray worker {number}", self._ray, share, config))
        return workers

    def close(self) -> None:
        """Clean up on the cluster, and leave it if this engine joined it."""
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
    """The job with absolute paths: a worker has another working directory."""
    return replace(
        job, source=job.source.absolute(), output=job.output.absolute(), root=job.root.absolute()
    )
