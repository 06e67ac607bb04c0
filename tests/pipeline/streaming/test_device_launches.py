"""What a GPU would launch, and move, around a network's convolutions: on meta tensors."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from launches import Launch, Operations, record_launches
from torch import Tensor

from denoise_batch.device import Download, Transfer
from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import BITS_8, ValueRange
from denoise_batch.kernels import dispatch
from denoise_batch.models import Network
from denoise_batch.streaming import denoiser as denoising
from denoise_batch.streaming.denoiser import BatchDenoiser, Output

META = torch.device("meta")
SIDE = 480  # 512 with the context


class MetaTransfer(Transfer):
    """Copies that cost nothing here, and arrive as meta tensors."""

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(tensor, device=META) for tensor in tensors]

    def download(self, tensors: Sequence[Tensor]) -> Download:
        return Download(tuple(tensors))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    found = record_launches(monkeypatch)
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: device == META)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: dispatch.launchers())
    monkeypatch.setattr(denoising, "Transfer", MetaTransfer)
    dispatch.ops_for.cache_clear()
    yield found
    dispatch.ops_for.cache_clear()


def page(dtype: torch.dtype) -> DecodedImage:
    scale = BITS_8 if dtype == torch.uint8 else ValueRange(0.0, 65535.0)
    samples = torch.zeros(SIDE, SIDE, 3, dtype=dtype)
    return DecodedImage(samples, None, scale, StorageFormat("PNG", "RGB"), Metadata())


def around(found: Sequence[Launch], operations: Operations) -> tuple[int, float]:
    """(Launches that are no convolution's, bytes a pixel that they and the ends' images move)."""
    others = [launch for launch in found if not launch.kernel.startswith("conv_")]
    moved = operations.bytes
    for launch in found:
        images = [x for x in launch.arguments if isinstance(x, Tensor) and x.ndim == 4]
        unique = {id(x): x for x in images if launch in others or x.shape[-1] <= 4}
        moved += sum(x.numel() * x.itemsize for x in unique.values())
    return len(others) + operations.counts.total(), moved / SIDE**2


# Launches, and bytes a pixel of 8 bits: samples to values, the ends' images, values to samples and
# their flags. unet-level's output is guarded, and its level estimated by torch's operations.
MOST = {"tconv": (5, 72), "unet": (4, 78), "unet-level": (47, 196)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=["8-bits", "16-bits"])
@pytest.mark.parametrize("name", list(MOST))
def test_little_is_launched_and_moved_around_the_convolutions(
    name: str, dtype: torch.dtype, launches: list[Launch]
) -> None:
    with META:
        network = Network(name).eval().to(META)
    denoiser = BatchDenoiser(network, META, memory=1 << 40, precision=torch.bfloat16)
    pages = [page(dtype)]
    with torch.inference_mode():
        list(denoiser.denoise(pages))  # packs the weights
        launches.clear()
        with Operations() as operations:
            (output,) = denoiser.denoise(pages)
    assert isinstance(output, Output)
    count, moved = around(launches, operations)
    assert count <= MOST[name][0]
    assert moved <= MOST[name][1] + (9 if dtype == torch.uint16 else 0)
