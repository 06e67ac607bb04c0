"""An asked-for device is there, or the run ends with a clear error."""

import pytest
import torch

from denoise_batch.kernels import DeviceError, OptionError
from denoise_batch.pipeline.device import resolve_device


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "mps:1", "cuda:-1"])
def test_nonsense_names_the_choices(name: str) -> None:
    with pytest.raises(OptionError, match="auto, cpu, cuda"):
        resolve_device(name)


def test_missing_cuda_is_an_error_never_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_device("cuda")
    assert resolve_device("auto").type in ("cpu", "mps")


def test_a_device_number_too_high_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="2 CUDA devices"):
        resolve_device("cuda:2")


def test_missing_mps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="Apple"):
        resolve_device("mps")
