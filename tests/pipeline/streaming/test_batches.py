"""What shares a batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import BITS_8
from denoise_batch.models import ARCHITECTURES, Network
from denoise_batch.streaming.denoiser import BatchDenoiser
from denoise_batch.streaming.stream import Batches


def test_full_batches_come_first_and_the_oldest_otherwise() -> None:
    batches: Batches[str] = Batches()
    for item in ("a1", "b1", "b2", "c1", "b3"):
        batches.add(item[0], item, 2)
    assert len(batches) == 5
    assert batches.full() == ["b1", "b2"]
    assert batches.full() is None
    assert batches.oldest() == ["a1"]
    assert batches.oldest() == ["c1"]
    assert batches.clear() == ["b3"]
    assert batches.oldest() is None


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 5))
def test_everything_leaves_once_in_order_of_its_kind(kinds: list[int], size: int) -> None:
    batches: Batches[tuple[int, int]] = Batches()
    for number, kind in enumerate(kinds):
        batches.add(kind, (kind, number), size)
    left = []
    while batch := batches.full() or batches.oldest():
        assert len(batch) <= size
        assert len({kind for kind, _ in batch}) == 1
        left += batch
    assert sorted(left) == sorted((kind, number) for number, kind in enumerate(kinds))
    for wanted in set(kinds):
        numbers = [number for kind, number in left if kind == wanted]
        assert numbers == sorted(numbers)


def test_images_of_several_sizes_in_one_batch_come_out_as_alone() -> None:
    for name, spec in ARCHITECTURES.items():
        network = Network(name, 0.4, 0.2, torch.Generator().manual_seed(0)).eval()
        denoiser = BatchDenoiser(network, torch.device("cpu"), memory=1 << 30)
        multiple = spec.multiple
        pages = []
        for shrink in range(3):
            size = (3 * multiple - shrink, 4 * multiple - (2 - shrink))
            samples = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
            pages.append(
                DecodedImage(samples, None, BITS_8, StorageFormat("PNG", "RGB"), Metadata())
            )
        assert len({denoiser.padded_shape(page) for page in pages}) == 1
        together = list(denoiser.denoise(pages))
        for page, output in zip(pages, together, strict=True):
            assert not isinstance(output, Exception)
            (alone,) = denoiser.denoise([page])
            assert not isinstance(alone, Exception)
            assert torch.equal(output.wait()[0], alone.wait()[0])
