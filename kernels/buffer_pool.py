"""Memory that the layers of a network pass on to each other in inference, and scratch memory.

Fresh memory costs a page fault every 4 KiB, about as much as a small layer's arithmetic on it.
Inside `POOL.enabled()` layers allocate their outputs here, and containers free an intermediate as
soon as nothing reads it. What the last forward left serves the next one of the same shapes without
an allocation, and makes room for one of other shapes: images of many sizes take no more than the
largest of them. On devices other than the CPU torch's caching allocator does all this already.
"""

import ctypes
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_PAGE_BYTES = 2 << 20
_HUGE_BYTES = 4 * _PAGE_BYTES
_MADV_HUGEPAGE = 14


class BufferPool(threading.local):
    """Every thread's own free buffers, lent buffers and scratch buffers."""

    def __init__(self) -> None:
        self._depth = 0
        self._free: list[Tensor] = []
        self._lent: dict[int, Tensor] = {}  # by address
        self._used: set[int] = set()  # addresses lent since the outermost `enabled` began
        self._scratch: dict[str, Tensor] = {}

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Let `alloc` lend pooled memory inside; on leaving, drop the buffers not used inside.

        What is still lent at the end (the network's output) belongs to the caller for good.
        """
        if self._depth == 0:
            self._used.clear()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._lent.clear()
                self._free = [b for b in self._free if b.data_ptr() in self._used]

    @property
    def is_enabled(self) -> bool:
        """Whether this thread is inside `enabled`."""
        return self._depth > 0

    @property
    def free_bytes(self) -> int:
        """Bytes kept for the next forward of this thread."""
        return sum(map(len, self._free))

    @property
    def lent_bytes(self) -> int:
        """Bytes that this thread's forward still reads."""
        return sum(map(len, self._lent.values()))

    def alloc(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised contiguous tensor on `like`'s device, from the pool inside `enabled`."""
        dtype = dtype or like.dtype
        if self._depth == 0 or like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        size = math.prod(shape) * dtype.itemsize
        # A tighter fit would allocate more, a looser one lend large buffers to small requests.
        fitting = [b for b in self._free if size <= len(b) <= 1.25 * size]
        if fitting:
            buffer = min(fitting, key=len)
            self._free = [b for b in self._free if b is not buffer]
        else:
            self._make_room(size)
            buffer = new_buffer(size)
        self._lent[buffer.data_ptr()] = buffer
        self._used.add(buffer.data_ptr())
        return buffer[:size].view(dtype).view(*shape)

    def free(self, tensor: Tensor) -> None:
        """Take back memory that nothing reads any more; tensors from elsewhere are left alone."""
        buffer = self._lent.pop(_address(tensor), None)
        if buffer is not None:
            self._free.append(buffer)

    def scratch(self, name: str, numel: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """`numel` uninitialised elements on `like`'s device, for use within one op.

        On the CPU they are valid until the same thread asks for `name` again; the buffer grows to
        the largest request, which chunking bounds.
        """
        if like.device.type != "cpu":
            return torch.empty(numel, dtype=dtype, device=like.device)
        size = numel * dtype.itemsize
        buffer = self._scratch.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._scratch[name] = new_buffer(size)
        return buffer[:size].view(dtype)

    def _make_room(self, size: int) -> None:
        """Drop `size` bytes that only an earlier forward used, the smallest buffers first."""
        for buffer in sorted(self._free, key=len):
            if size <= 0:
                break
            if buffer.data_ptr() not in self._used:
                self._free = [b for b in self._free if b is not buffer]
                size -= len(buffer)


POOL = BufferPool()


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether both are views of the same memory."""
    return _address(one) == _address(other)


def new_buffer(size: int) -> Tensor:
    """`size` uninitialised bytes that may be written in and outside of inference mode."""
    with torch.inference_mode(False):
        buffer = torch.empty(size, dtype=torch.uint8)
    if size >= _HUGE_BYTES and sys.platform == "linux":
        # Pages of 2 MB: 2 to 5 % of a network's time on an EPYC. Where there are none, no harm.
        start = -(-buffer.data_ptr() // _PAGE_BYTES) * _PAGE_BYTES
        length = (buffer.data_ptr() + size - start) // _PAGE_BYTES * _PAGE_BYTES
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return buffer


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
