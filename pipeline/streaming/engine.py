"""Who denoises a run's jobs: this process, or the workers of `scaling`."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import torch

from denoise_batch.kernels import DeviceError

from ..device import (
    compute_bytes,
    in_flight_bytes,
    resolve_device,
    return_large_blocks,
    torch_dtype,
)
from ..files.scan import Job
from ..models import find_weights, load_weights
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from .denoiser import BatchDenoiser
from .manifest import Manifest, Storage
from .result import Plan, Result
from .steps import Writer
from .stream import Budget, stream

# Maximum pixels of an automatic batch: enough to fill a device. On a processor more would make
# nothing faster and take more memory than one ordinary photograph.
BATCH_PIXELS_ON_CPU = 1 << 20
BATCH_PIXELS = 1 << 24


class Engine(ABC):
    """Denoises jobs.

    Attributes:
        device: where networks run, for the user.
        precision: of their convolutions: fp32, bf16 or fp16.
        weights_file: of the network.
        digests: of weights and options, for manifests.
    """

    device: str
    precision: str
    weights_file: Path
    digests: tuple[str, str]

    @abstractmethod
    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Denoise the jobs' files, record and yield each; one bad file never stops the rest.

        `progress` receives tiles only: the caller reports the results.

        Raises:
            DeviceError: the device failed.
        """

    def close(self) -> None:
        """Release what is held between runs; by default nothing."""
        return


class LocalEngine(Engine):
    """This process, on one device.

    Args:
        options: of the run.
        storage: where its files come from and go to.

    Attributes:
        denoiser: the loaded network with the run's settings.

    Raises:
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage) -> None:
        return_large_blocks()
        self._options = options
        self._storage = storage
        self._device = resolve_device(options.device)
        self.device = str(self._device)
        self.precision = precision_on(options.precision, self._device)
        self.weights_file = find_weights(options.weights)
        weights = load_weights(self.weights_file)
        self.digests = (weights.sha256, options.digest(self.precision))
        self.denoiser = BatchDenoiser(
            weights.network.to(self._device),
            self._device,
            memory=compute_bytes(self._device),
            precision=torch_dtype(self.precision),
            strength=options.strength,
            tta=options.tta,
            tile_px=options.tile_px,
            cuda_graphs=options.cuda_graphs,
            probe=options.measure and options.reference is None,
        )

    def run(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        progress: Progress[Plan, Result],
        stop: Stop,
    ) -> Generator[Result, None, None]:
        """Stream the jobs through the network."""
        options, storage = self._options, self._storage
        writer = Writer(
            manifests,
            self.digests,
            options.quality,
            options.reference,
            storage.upload,
        )
        is_cpu = self._device.type == "cpu"
        try:
            yield from stream(
                jobs,
                self.denoiser,
                writer,
                budget=Budget(in_flight_bytes(self._device)),
                batch_size=options.batch_size,
                batch_pixels=BATCH_PIXELS_ON_CPU if is_cpu else BATCH_PIXELS,
                progress=progress,
                stop=stop,
                fetch=storage.fetch,
                measure=options.measure,
            )
        except RuntimeError as error:
            if "CUDA error" not in str(error):
                raise
            line = str(error).splitlines()[0]
            raise DeviceError(f"{self.device} failed: {line}; finished files are kept") from error


def precision_on(name: str, device: torch.device) -> str:
    """Resolve `auto`: bf16 on GPUs with tensor cores for it, float32 elsewhere."""
    if name != "auto":
        return name
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_bf16 else "fp32"
