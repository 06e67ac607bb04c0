"""Scratch memory that every thread keeps: chunks are written over the same bytes again and again.

Fresh memory costs a page fault per 4 KiB (about as much as the arithmetic on it), and memory that
is already in cache costs nothing. Results of ops never live here.
"""

import threading

import torch
from torch import Tensor


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
