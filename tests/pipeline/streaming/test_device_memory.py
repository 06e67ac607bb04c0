"""The memory that a GPU is assumed to need, beside what its tensors take: on meta tensors."""

from collections.abc import Iterator

import pytest
import torch
from launches import Forgotten, LiveBytes, record_launches

from denoise_batch.kernels import dispatch
from denoise_batch.models import ARCHITECTURES, Network

META = torch.device("meta")
SIDE = 512
SAMPLES = 12 + 3 + 3  # bytes a pixel: the float32 image, and 8-bit samples in and out


@pytest.fixture(params=["triton", "gemm"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    record_launches(monkeypatch, Forgotten())
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", request.param)
    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: device == META)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: dispatch.launchers())
    dispatch.ops_for.cache_clear()
    yield request.param
    dispatch.ops_for.cache_clear()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_is_assumed_suffices_and_is_not_twice_as_much(
    name: str, dtype: torch.dtype | None
) -> None:
    spec = ARCHITECTURES[name]
    with META:
        network = Network(name).eval().to(META).set_compute_dtype(dtype)
        image = torch.empty(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        level = torch.empty(1) if spec.takes_level else None
    with torch.inference_mode():
        network.forward_padded(image, level)  # packs the weights
        with LiveBytes() as live:
            network.forward_padded(image, level)
    needed = live.most / SIDE**2 + SAMPLES
    assumed = spec.bytes_on(META, dtype)
    assert needed <= assumed <= 2 * needed
