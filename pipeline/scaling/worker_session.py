"""The worker's side: a loaded network that turns jobs into results.

The run's own process has the plan, the locks and the display; a worker reads, denoises and writes
files, and records each in its own part of the manifest.
"""

import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from denoise_batch.kernels.errors import OptionError

from ..files.scan import Job
from ..models import shipped_names
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from ..streaming.manifest import Manifest, Storage
from ..streaming.result import Result
from ..streaming.stream import LocalEngine
from .mirror import LocalMirror
from .remote import RemoteStorage


@dataclass(frozen=True)
class WorkerConfig:
    """Settings of a worker.

    Attributes:
        options: the run's, with the worker's device and a precision other than "auto".
        part: name of its part of the manifest.
        weights: bytes of the weights file, if the worker's machine may not have it.
        mirror: folder that mirrors object storage, if any is used.
        must_see: files that the worker's machine must share with the run's.
    """

    options: DenoiseOptions
    part: str
    weights: bytes | None = None
    mirror: Path | None = None
    must_see: tuple[Path, ...] = ()


class WorkerSession:
    """A worker's network and manifests.

    Args:
        config: as the run's own process sent it.
        machine: name of this worker's machine in errors.

    Raises:
        OptionError: the worker's machine does not share the files.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, config: WorkerConfig, machine: str = "this machine") -> None:
        for path in config.must_see:
            if not path.exists():
                raise OptionError(
                    f"{machine} does not see {path}: workers need inputs and outputs on storage "
                    "that all machines share under the same paths, or URLs"
                )
        self._storage = RemoteStorage(LocalMirror(config.mirror)) if config.mirror else Storage()
        self._part = config.part
        self._manifests: dict[Path, Manifest] = {}
        options = config.options
        if config.weights is None:
            self._engine = LocalEngine(options, self._storage)
            return
        with tempfile.TemporaryDirectory(prefix="denoise-batch-") as folder:
            name = Path(options.weights or shipped_names()[0]).stem  # outputs say it
            path = Path(folder) / f"{name}.safetensors"
            path.write_bytes(config.weights)
            self._engine = LocalEngine(replace(options, weights=str(path)), self._storage)

    @property
    def kernels(self) -> str:
        """What computes, in words."""
        return self._engine.kernels

    def run(self, jobs: Sequence[Job], stop: Stop) -> Generator[Result, None, None]:
        """Denoise the jobs' files; each file's space in the mirror is released as it ends.

        Raises:
            DeviceError: the device failed.
        """
        for root in {job.root for job in jobs} - self._manifests.keys():
            self._manifests[root] = self._storage.worker_manifest(root, self._part)
        with closing(self._engine.run(jobs, self._manifests, Progress(), stop)) as results:
            for result in results:
                yield self._storage.finish(result)
