"""Copies between host and device: packing is tested here as CUDA uses it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from denoise_batch.device import MIB, Transfer, pinned_sizes

CPU = torch.device("cpu")
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
dtypes = st.sampled_from([torch.uint8, torch.uint16, torch.float32])


@given(st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=6))
def test_tensors_packed_into_one_block_come_out_as_they_went_in(
    parts: list[tuple[tuple[int, int, int], torch.dtype]],
) -> None:
    tensors = [(torch.rand(shape) * 200).to(dtype) for shape, dtype in parts]
    arrived = Transfer(CPU, is_packed=True).upload(tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in arrived}) == 1
    for tensor, there in zip(tensors, arrived, strict=True):
        assert there.dtype == tensor.dtype
        assert torch.equal(there, tensor)


def test_on_the_cpu_nothing_is_copied() -> None:
    transfer, tensor = Transfer(CPU), torch.rand(4, 5, 3)
    (there,) = transfer.upload([tensor])
    (back,) = transfer.download([there]).wait()
    assert back.data_ptr() == tensor.data_ptr()


def test_views_arrive_contiguous() -> None:
    view = torch.rand(6, 8, 3)[1:5, 2:7]
    (there,) = Transfer(CPU, is_packed=True).upload([view])
    assert torch.equal(there, view)
    (back,) = Transfer(CPU).download([view]).wait()
    assert back.is_contiguous()


def test_marks_measure_time() -> None:
    transfer = Transfer(CPU)
    first, second = transfer.mark(), transfer.mark()
    assert 0 <= first.seconds_until(second) < 10


class FakeCuda:
    """Streams, events and pinned memory that only write down in what order they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.pinned: set[int] = set()
        self.reserved = 0  # bytes of pinned memory, as torch rounds them up
        self.current = FakeStream(self, "main")
        names = iter(("up", "down"))
        empty, to, copy = torch.empty, Tensor.to, Tensor.copy_
        fake = self

        def new(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            options.pop("device", None)
            result = empty(*size, **options)
            if pin_memory:
                fake.pinned.add(result.data_ptr())
                fake.reserved += _rounded(result.numel() * result.element_size())
            return result

        def upload(
            tensor: Tensor, *args: Any, non_blocking: bool = False, **options: Any
        ) -> Tensor:
            if not args or torch.device(args[0]).type != "cuda":
                return to(tensor, *args, **options)
            fake.copied("up", tensor, non_blocking)
            return tensor.clone()

        def download(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if non_blocking:
                is_up = fake.current.name == "up"
                fake.copied("up" if is_up else "down", source if is_up else tensor, non_blocking)
            return copy(tensor, source)

        def record_stream(tensor: Tensor, stream: FakeStream) -> None:
            fake.log.append(f"memory used on {stream.name}")

        for target, name, value in (
            (torch, "empty", new),
            (Tensor, "to", upload),
            (Tensor, "copy_", download),
            (Tensor, "record_stream", record_stream),
            (torch.cuda, "Stream", lambda device: FakeStream(fake, next(names))),
            (torch.cuda, "current_stream", lambda device: fake.current),
            (torch.cuda, "stream", self.on),
            (torch.cuda, "Event", lambda **options: FakeEvent(fake, options)),
        ):
            monkeypatch.setattr(target, name, value)

    @contextmanager
    def on(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def copied(self, way: str, host: Tensor, non_blocking: bool) -> None:
        is_asynchronous = non_blocking and host.data_ptr() in self.pinned
        kind = "asynchronous" if is_asynchronous else "waiting"
        self.log.append(f"{kind} copy {way} on {self.current.name}")


def _rounded(size: int) -> int:
    """The size of the block that torch's pinned allocator takes."""
    return 1 << (size - 1).bit_length()


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def wait_stream(self, other: "FakeStream") -> None:
        self._cuda.log.append(f"{self.name} waits for {other.name}")


class FakeEvent:
    def __init__(self, cuda: FakeCuda, options: dict[str, bool]) -> None:
        self._cuda, self._options = cuda, options

    def record(self, stream: FakeStream) -> None:
        self._cuda.log.append(f"event on {stream.name}")

    def synchronize(self) -> None:
        how = "sleeps" if self._options.get("blocking") else "spins"
        self._cuda.log.append(f"host {how} until the event")


def test_an_upload_is_asynchronous_and_the_computation_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    transfer = Transfer(torch.device("cuda"))
    arrived = transfer.upload([torch.arange(6), torch.rand(4)])
    assert arrived[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert cuda.log == [
        "asynchronous copy up on up",
        "main waits for up",
        "memory used on main",
    ]


def test_a_download_waits_for_the_computation_and_the_host_for_its_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    transfer = Transfer(torch.device("cuda"))
    download = transfer.download([torch.arange(6), torch.rand(4)])
    assert cuda.log == [
        "down waits for main",
        *["asynchronous copy down on down", "memory used on down"] * 2,
        "event on down",
    ]
    first, _ = download.wait()
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    # A thread that spins takes a core from the decoders.
    assert cuda.log[-1] == "host sleeps until the event"


@given(st.integers(1, 1 << 36))
def test_little_of_the_pinned_blocks_is_left_over(size: int) -> None:
    sizes = pinned_sizes(size)
    assert sum(sizes) == size
    assert len(sizes) <= 4
    if size > MIB:
        assert sum(map(_rounded, sizes)) <= 1.125 * size


def test_large_tensors_take_several_pinned_blocks_and_come_out_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    transfer = Transfer(torch.device("cuda"))
    pages = [torch.randint(0, 256, (700, 601, 3), dtype=torch.uint8), torch.rand(300, 11, 3)]
    arrived = transfer.upload(pages)
    held = sum(page.numel() * page.element_size() for page in pages)
    assert held < cuda.reserved <= 1.125 * held + 16 * len(pages)
    copies = [line for line in cuda.log if "copy" in line]
    assert copies == ["asynchronous copy up on up"] * len(copies)
    assert len(copies) > 1
    assert all(torch.equal(page, there) for page, there in zip(pages, arrived, strict=True))

    cuda.log.clear()
    cuda.reserved = 0
    page = arrived[0][:, 1:]  # not contiguous
    download = transfer.download([page, torch.tensor(True)])
    assert page.numel() < cuda.reserved <= 1.125 * page.numel() + 1
    assert {line for line in cuda.log if "copy" in line} == {"asynchronous copy down on down"}
    first, flag = download.wait()
    assert torch.equal(first, pages[0][:, 1:])
    assert bool(flag)
    assert download.wait()[0] is first
