"""--cuda-graphs: where it acts, and that it changes nothing elsewhere."""

from pathlib import Path

import pytest
import torch

from denoise_batch.cli import batch
from denoise_batch.device import Transfer
from denoise_batch.kernels.capture import Captured
from denoise_batch.models import Network
from denoise_batch.streaming import denoiser
from denoise_batch.streaming import stream as engine
from denoise_batch.streaming.denoiser import BatchDenoiser


@pytest.mark.parametrize(
    ("device", "is_wanted", "is_captured"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_launches_are_replayed_on_cuda_if_asked_for(
    device: str, is_wanted: bool, is_captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "Transfer", lambda device: Transfer(torch.device("cpu")))
    made = BatchDenoiser(
        Network("unet-level"), torch.device(device), memory=1 << 20, cuda_graphs=is_wanted
    )
    assert isinstance(made._forward._run, Captured) == is_captured


def test_the_flag_reaches_the_denoiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class StoppedError(Exception):
        pass

    def record(*args: object, cuda_graphs: bool, **kwargs: object) -> None:
        seen.append(cuda_graphs)
        raise StoppedError

    monkeypatch.setattr(engine, "BatchDenoiser", record)
    for flags in ([], ["--cuda-graphs"]):
        with pytest.raises(StoppedError):
            batch.main([str(tmp_path), "--device", "cpu", *flags])
    assert seen == [False, True]
