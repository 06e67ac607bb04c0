"""What runs in a worker: a loaded network, and the way from jobs to results.

The run's own process keeps the plan, the locks and the screen; a worker reads, denoises and writes
files, and notes each in a part of the manifest that is its own.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from denoise_batch.kernels.errors import OptionError

from ..files.scan import Job
from ..options import DenoiseOptions
from ..streaming.engine import Described, LocalEngine
from ..streaming.manifest import FOLDER, Manifest
from ..streaming.result import Result
from ..streaming.stream import Stop, Watcher
from .remote import RemoteManifest, RemoteStorage
from .stage import Stage


@dataclass(frozen=True)
class Setup:
    """What a worker is told when it begins.

    Attributes:
        options: of the run, with the worker's own device.
        weights: bytes of the weights file, where the worker's machine may not have it.
        stage: the folder that stands for object storage, if any is used.
        part: the name of its part of the manifest.
        must_see: files that its machine must share with the run's.
        machine: what to call its machine in errors.
    """

    options: DenoiseOptions
    weights: bytes | None = None
    stage: Path | None = None
    part: str = ""
    must_see: tuple[Path, ...] = ()
    machine: str = "this machine"


class Station:
    """A worker's network and manifests.

    Raises:
        OptionError: the worker's machine does not share the files.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, setup: Setup) -> None:
        for path in setup.must_see:
            if not path.exists():
                raise OptionError(
                    f"{setup.machine} does not see {path}: workers need inputs and outputs on "
                    "storage that all machines share under the same paths, or URLs"
                )
        options = setup.options
        if setup.weights is None:
            self._engine = LocalEngine(options)
        else:
            with tempfile.TemporaryDirectory(prefix="denoise-batch-") as folder:
                path = Path(folder) / "weights.safetensors"
                path.write_bytes(setup.weights)
                self._engine = LocalEngine(replace(options, weights=str(path)))
        self._stage = Stage(setup.stage) if setup.stage else None
        self._part = setup.part
        self._manifests: dict[Path, Manifest] = {}

    def described(self) -> Described:
        """Device, precision and digests."""
        return self._engine.described

    def run(self, jobs: Sequence[Job], on_result: Callable[[Result], None], stop: Stop) -> None:
        """Denoise the jobs' files.

        Raises:
            DeviceError: the device failed.
        """
        pass
