"""Pooled memory of inference: reused, bounded, and never under a result that somebody holds."""

import threading

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import buffer_pool
from denoise_batch.kernels.buffer_pool import POOL, shares_memory
from denoise_batch.models import ARCHITECTURES, Network

LIKE = torch.zeros(1)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    drop_all()


def drop_all() -> None:
    """Empty the pool of this thread."""
    with POOL.enabled():
        pass


def test_released_memory_is_lent_again() -> None:
    with POOL.enabled():
        first = POOL.alloc((10, 20), LIKE)
        address = first.data_ptr()
        POOL.free(first[2:5])  # any view of it
        assert POOL.alloc((9, 20), LIKE).data_ptr() == address


def test_memory_in_use_is_never_lent_again() -> None:
    with POOL.enabled():
        first, second = POOL.alloc((100,), LIKE), POOL.alloc((100,), LIKE)
        assert not shares_memory(first, second)


def test_a_much_larger_buffer_is_kept_for_larger_requests() -> None:
    with POOL.enabled():
        large = POOL.alloc((1000,), LIKE)
        POOL.free(large)
        assert not shares_memory(POOL.alloc((10,), LIKE), large)


def test_foreign_tensors_are_not_taken() -> None:
    with POOL.enabled():
        foreign = torch.zeros(100)
        POOL.free(foreign)
        assert not shares_memory(POOL.alloc((100,), LIKE), foreign)


def test_outside_nothing_is_pooled() -> None:
    POOL.free(POOL.alloc((100,), LIKE))
    assert POOL.free_bytes == 0


def test_what_a_forward_did_not_use_goes() -> None:
    with POOL.enabled():
        POOL.free(POOL.alloc((1000,), LIKE))
        POOL.free(POOL.alloc((10,), LIKE))
    assert POOL.free_bytes >= 4000
    with POOL.enabled():
        POOL.free(POOL.alloc((10,), LIKE))
    assert POOL.free_bytes == 40


def counted_new_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the buffers that the pool allocates from now on."""
    sizes: list[int] = []
    allocate = buffer_pool.new_buffer

    def counting(size: int) -> Tensor:
        sizes.append(size)
        return allocate(size)

    monkeypatch.setattr(buffer_pool, "new_buffer", counting)
    return sizes


# Bytes of the pool for every byte of a float32 RGB image; measured, with a tenth to spare.
PEAKS = {"tconv": 6.6, "upsample": 4.4, "unet": 24.0, "unet-level": 42.0}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_second_forward_of_the_same_shape_allocates_its_output_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = Network(name).eval(), torch.rand(1, 3, 256, 256)
    network(image)  # allocates scratch memory, which stays
    drop_all()
    sizes = counted_new_bytes(monkeypatch)
    first = network(image)
    assert sum(sizes) <= PEAKS[name] * image.numel() * 4
    sizes.clear()
    second = network(image)
    assert sum(sizes) <= 1.1 * image.numel() * 4
    assert torch.equal(first, second)
    assert not shares_memory(first, second)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_images_of_many_sizes_take_no_more_than_the_largest(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, held = Network(name).eval(), [0]
    network(torch.rand(1, 3, 256, 256))  # allocates scratch memory, which stays
    drop_all()
    allocate = buffer_pool.new_buffer

    def watching(size: int) -> Tensor:
        held[0] = max(held[0], size + POOL.free_bytes + POOL.lent_bytes)
        return allocate(size)

    monkeypatch.setattr(buffer_pool, "new_buffer", watching)
    network(torch.rand(1, 3, 256, 256))
    largest = held[0]
    for height, width in ((208, 208), (256, 160), (176, 256), (240, 240), (256, 256)):
        network(torch.rand(1, 3, height, width))
    assert held[0] <= 1.1 * largest


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_results_stay_what_they_are_when_the_network_runs_on(name: str) -> None:
    network = Network(name).eval()
    images = [torch.rand(1, 3, 40, 40), torch.rand(2, 3, 24, 56), torch.rand(1, 1, 40, 40)]
    results = [network(image) for image in images]
    copies = [result.clone() for result in results]
    for image in reversed(images):
        network(image)
    assert all(map(torch.equal, results, copies))


def test_threads_do_not_share_memory() -> None:
    network, results = Network("tconv").eval(), {}
    images = {seed: torch.rand(1, 3, 64, 64) for seed in range(4)}
    expected = {seed: network(image) for seed, image in images.items()}

    def work(seed: int) -> None:
        for _ in range(5):
            results[seed] = network(images[seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        assert torch.equal(result, expected[seed])
