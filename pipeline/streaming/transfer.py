"""Asynchronous copies between the host and a device.

On CUDA an upload packs its tensors into one block of pinned memory and copies it on a stream of its
own; downloads have another. Copies overlap the computation, which waits on the device and never on
the host. On other devices tensors are passed on as they are, or copied at once.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; every tensor of a block starts at a multiple


@dataclass(frozen=True)
class Download:
    """Tensors that are being copied to the host.

    Attributes:
        tensors: on the host; do not read them before `wait`.
        event: on CUDA, recorded after the copies.
    """

    tensors: tuple[Tensor, ...]
    event: Any = None

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the copies and return the tensors; any thread may call this, repeatedly."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


class Transfer:
    """Copies between the host and one device.

    Args:
        device: to copy to and from.
        is_packed: pack uploads into one block; by default on CUDA only.
    """

    def __init__(self, device: torch.device, *, is_packed: bool | None = None) -> None:
        self.device = device
        self._is_cuda = device.type == "cuda"
        self._is_packed = self._is_cuda if is_packed is None else is_packed
        self._up = _stream(device)
        self._down = _stream(device)

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copy tensors to the device; work that is queued there after this call may read them."""
        if not self._is_packed:
            return [tensor.to(self.device) for tensor in tensors]
        block, places = self._packed(tensors)
        with self._on(self._up):
            there = block.to(self.device, non_blocking=True)
        if self._up is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._up)
            there.record_stream(current)
        return [
            there[start : start + size].view(tensor.dtype).view(tensor.shape)
            for tensor, (start, size) in zip(tensors, places, strict=True)
        ]

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Start copying to the host what is queued on the device so far."""
        if self._down is None:
            return Download(tuple(tensor.to("cpu").contiguous() for tensor in tensors))
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        event = _event(is_timed=False)
        arrived = []
        with self._on(self._down):
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                arrived.append(host.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._down)
            event.record(self._down)
        return Download(tuple(arrived), event)

    def mark(self) -> "Mark":
        """Mark this moment of the computation, to measure time between marks."""
        if not self._is_cuda:
            return Mark(time.perf_counter())
        event = _event(is_timed=True)
        event.record(torch.cuda.current_stream(self.device))
        return Mark(0.0, event)

    def _packed(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Pack all bytes into one pinned block; return it and each tensor's (start, size)."""
        places, total = [], 0
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            places.append((total, size))
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
        # The caching allocator hands a pinned block out again only when its copies are done.
        block = torch.empty(total, dtype=torch.uint8, pin_memory=self._is_cuda)
        for tensor, (start, size) in zip(tensors, places, strict=True):
            block[start : start + size] = tensor.contiguous().view(-1).view(torch.uint8)
        return block, places

    def _on(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream) if stream is not None else nullcontext()


@dataclass(frozen=True)
class Mark:
    """A moment of the computation; on CUDA the device's, known once it has passed."""

    host_seconds: float
    event: Any = None

    def seconds_until(self, later: "Mark") -> float:
        """Seconds between two marks that have both passed."""
        if self.event is None:
            return later.host_seconds - self.host_seconds
        return float(self.event.elapsed_time(later.event)) / 1000


def _stream(device: torch.device) -> Any:
    # torch does not type its streams and events.
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _event(*, is_timed: bool) -> Any:
    return torch.cuda.Event(enable_timing=is_timed)  # type: ignore[no-untyped-call]
