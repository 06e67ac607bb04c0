"""Pages of one size and range go through kernels of their own; they come out as all others do."""

from dataclasses import replace

import pytest
import torch

from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import BITS_8, UNIT, ValueRange
from denoise_batch.kernels import samples
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.models import Network
from denoise_batch.streaming import denoiser as denoising
from denoise_batch.streaming.denoiser import BatchDenoiser, Output

CPU = torch.device("cpu")
TWELVE_BITS = ValueRange(130.0, 3900.0, ceiling=4095)
KINDS = {
    "8-bits": (torch.uint8, BITS_8),
    "12-bits": (torch.uint16, TWELVE_BITS),
    "signed": (torch.int16, ValueRange(-5.5, 300.25)),
    "half": (torch.float16, UNIT),
    "float": (torch.float32, ValueRange(-0.7, 2.3)),
    "32-bits": (torch.int32, ValueRange(0.0, 1e6)),  # not these kernels'
}


def pages(dtype: torch.dtype, scale: ValueRange, channels: int) -> list[DecodedImage]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 21, 13, channels)
    drawn = (1.5 * torch.rand(shape, generator=generator) - 0.2) * scale.span + scale.offset
    limits = scale.levels(dtype)
    drawn = drawn if limits is None else drawn.clamp(*limits)
    stored = StorageFormat("TIFF", "RGB")
    return [DecodedImage(page, None, scale, stored, Metadata()) for page in drawn.to(dtype)]


def stored(images: list[DecodedImage]) -> list[tuple[torch.Tensor, bool]]:
    network = Network("upsample", 0.45, 0.25, torch.Generator().manual_seed(0)).eval()
    found = []
    for output in BatchDenoiser(network, CPU, memory=1 << 30).denoise(images):
        assert isinstance(output, Output)
        found.append(output.wait()[:2])
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels' ops that are called; the specification does their work."""
    called: list[str] = []

    def op(name: str) -> object:
        def run(*args: object) -> object:
            called.append(name)
            return getattr(samples, name)(*args)

        return run

    table = replace(
        ops_for(CPU), unit_padded=op("unit_padded"), stored_samples=op("stored_samples")
    )
    monkeypatch.setattr(denoising, "ops_for", lambda device: table)
    return called


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_samples_are_those_without_kernels(kind: str, channels: int, calls: list[str]) -> None:
    images = pages(*KINDS[kind], channels)
    found = stored(images)
    assert calls == ([] if kind == "32-bits" else ["unit_padded", "stored_samples"])
    with pytest.MonkeyPatch.context() as without:
        without.setattr(denoising, "ops_for", ops_for)
        expected = stored(images)
    for (ours, is_finite), (theirs, is_theirs_finite) in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert is_finite == is_theirs_finite


def test_pages_of_other_ranges_go_without(calls: list[str]) -> None:
    images = pages(*KINDS["12-bits"], 3)
    images[1] = replace(images[1], value_range=replace(TWELVE_BITS, offset=0.0))
    assert len(stored(images)) == 3
    assert calls == []


def test_a_page_with_an_infinite_value_is_told_among_others(calls: list[str]) -> None:
    images = pages(*KINDS["float"], 3)
    images[1].samples[5, 6, 1] = torch.nan
    assert [is_finite for _, is_finite in stored(images)] == [True, False, True]
    assert calls


def test_pages_that_lie_evenly_in_a_block_are_not_copied() -> None:
    block = torch.arange(3 * 112, dtype=torch.uint8).view(3, 112)
    apart = [row[:105].view(7, 5, 3) for row in block]
    stacked = denoising._stacked(apart)
    assert torch.equal(stacked, torch.stack(apart))
    assert stacked.data_ptr() == block.data_ptr()
    uneven = [apart[0], apart[2], apart[1]]
    assert torch.equal(denoising._stacked(uneven), torch.stack(uneven))
