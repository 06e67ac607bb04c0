"""The stream as beside a GPU, with a network that costs nothing: for `scripts/bench host`."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from denoise_batch.device import Download, Transfer
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.models import Network
from denoise_batch.options import DenoiseOptions
from denoise_batch.streaming.denoiser import BatchDenoiser, Output
from denoise_batch.streaming.manifest import Storage
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.stream import LocalEngine

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # nothing runs on the second
MEMORY = 1 << 36  # of that


def free_session(options: DenoiseOptions) -> Session:
    """A session whose threads, budget and batches are a GPU's, and whose network is free."""
    session = Session(options)
    session.engine = _FreeEngine(options, session.storage)
    return session


class _FreeDenoiser(BatchDenoiser):
    """Packs pages as an upload does, and gives them back as they are."""

    def __init__(self, network: Network, *, probe: bool) -> None:
        super().__init__(network, CPU, memory=MEMORY, probe=probe)
        self.device = GPU
        self._transfer = Transfer(CPU, is_packed=True)

    @property
    def is_asynchronous(self) -> bool:
        """As a GPU."""
        return True

    def denoise(self, images: Sequence[DecodedImage], **options: Any) -> Iterator[Output]:
        """Yield each page."""
        for page in self._transfer.upload([image.samples for image in images]):
            yield Output(Download((page, torch.tensor(True))))


class _FreeEngine(LocalEngine):
    def __init__(self, options: DenoiseOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.denoiser = _FreeDenoiser(self.denoiser.network, probe=options.measure)
        self._device = GPU

    @property
    def kernels(self) -> str:
        """Nothing computes."""
        return "none"
