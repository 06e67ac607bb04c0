"""Memory that the layers of a network hand on to each other in inference.

Fresh memory costs a page fault every 4 KiB, about as much as a small layer's arithmetic on it.
Inside `active()` layers take their outputs from here (`empty`), and containers give an intermediate
back as soon as nothing reads it (`release`); what the last forward left serves the next one of the
same shapes without an allocation, and makes room for one of other shapes: images of many sizes take
no more than the largest of them. Every thread has a workspace of its own; on devices other than the
CPU torch's caching allocator does all this already.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class _Workspace(threading.local):
    """One thread's free and lent buffers."""

    def __init__(self) -> None:
        self.depth = 0
        self.free: list[Tensor] = []
        self.lent: dict[int, Tensor] = {}  # by address
        self.used: set[int] = set()  # addresses lent since the outermost `active` began


_workspace = _Workspace()


@contextmanager
def active() -> Iterator[None]:
    """Inside, `empty` lends pooled memory; on leaving, what was not used in it goes.

    What is still lent at the end (the network's output) belongs to the caller for good.
    """
    state = _workspace
    if state.depth == 0:
        state.used.clear()
    state.depth += 1
    try:
        yield
    finally:
        state.depth -= 1
        if state.depth == 0:
            state.lent.clear()
            state.free = [b for b in state.free if b.data_ptr() in state.used]


def is_active() -> bool:
    """Whether this thread is inside `active`."""
    return _workspace.depth > 0


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised contiguous tensor on `like`'s device, pooled inside `active`."""
    dtype = dtype or like.dtype
    state = _workspace
    if state.depth == 0 or like.device.type != "cpu":
        return like.new_empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    # A tighter fit would allocate more, a looser one lend large buffers to small requests.
    fitting = [b for b in state.free if size <= len(b) <= 1.25 * size]
    if fitting:
        buffer = min(fitting, key=len)
        state.free = [b for b in state.free if b is not buffer]
    else:
        _make_room(state, size)
        buffer = _allocate(size)
    state.lent[buffer.data_ptr()] = buffer
    state.used.add(buffer.data_ptr())
    return buffer[:size].view(dtype).view(*shape)


def release(tensor: Tensor) -> None:
    """Nothing reads `tensor`, nor any view of its memory, any more. Tensors not from here stay."""
    buffer = _workspace.lent.pop(_address(tensor), None)
    if buffer is not None:
        _workspace.free.append(buffer)


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether both are views of the same memory."""
    return _address(one) == _address(other)


def pooled_bytes() -> int:
    """Bytes that this thread's workspace holds for the next forward."""
    return sum(len(buffer) for buffer in _workspace.free)


def lent_bytes() -> int:
    """Bytes that somebody in this thread's forward still reads."""
    return sum(len(buffer) for buffer in _workspace.lent.values())


def _make_room(state: _Workspace, size: int) -> None:
    """Give up as many bytes that only an earlier forward used, the smallest buffers first."""
    for buffer in sorted(state.free, key=len):
        if size <= 0:
            break
        if buffer.data_ptr() not in state.used:
            state.free = [b for b in state.free if b is not buffer]
            size -= len(buffer)


def _allocate(size: int) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be written outside
        return torch.empty(size, dtype=torch.uint8)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Buffers(threading.local):
    """This thread's buffers by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}


_buffers = _Buffers()


def take(name: str, numel: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """`numel` uninitialised elements on `like`'s device.

    On the CPU they are valid until the same thread takes `name` again; the buffer grows to the
    largest request, which chunking bounds. Elsewhere torch's caching allocator does this work.
    """
    if like.device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=like.device)
    size = numel * dtype.itemsize
    buffer = _buffers.by_name.get(name)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # an inference tensor could not be written outside
            buffer = torch.empty(size, dtype=torch.uint8)
        _buffers.by_name[name] = buffer
    return buffer[:size].view(dtype)
