"""How much memory there is, and a budget of bytes that the files in flight share."""

import ctypes
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Condition

import torch

MIB = 1 << 20
# Bounds of what is taken where memory abounds: more makes nothing faster.
_MOST_ON_CPU = 1200 * MIB
_MOST_IN_FLIGHT_ON_CPU = 1024 * MIB
_IN_FLIGHT_BY_CORE = 64 * MIB  # a core's share: more would only be read sooner than it is wanted
_MOST_IN_FLIGHT = 4096 * MIB
_LEAST = 128 * MIB
_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_large_blocks() -> None:
    """Let glibc give freed blocks of a mebibyte and more back to the system, as it does at first.

    It raises that limit to the largest block freed so far, up to 32 MiB; pages then stay in the
    heaps of the threads that decoded them: 50 mixed photographs with `tconv` took 610 MB, not 468.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MIB)


class Budget:
    """Bytes that files in flight may take together; first come, first served.

    A file that needs more than there is in all waits until it is alone.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.most = 0
        self._queue: deque[object] = deque()
        self._changed = Condition()
        self._is_closed = False

    def acquire(self, size: int) -> bool:
        """Wait for `size` bytes; False if the budget was closed meanwhile."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._is_closed or self._may_go(ticket, size))
            self._queue.remove(ticket)
            if self._is_closed:
                return False
            self.used += size
            self.most = max(self.most, self.used)
            self._changed.notify_all()
            return True

    def release(self, size: int) -> None:
        """Give bytes back."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may_go(self, ticket: object, size: int) -> bool:
        return self._queue[0] is ticket and (self.used == 0 or self.used + size <= self.limit)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_flight_bytes(device: torch.device) -> int:
    """What decoded and denoised files may take on the host, all stages together."""
    most = _MOST_IN_FLIGHT
    if device.type == "cpu":
        most = min(_MOST_IN_FLIGHT_ON_CPU, cores() * _IN_FLIGHT_BY_CORE)
    return max(_LEAST, min(most, available_host_bytes() // 4))


def compute_bytes(device: torch.device) -> int:
    """What one pass of the network may take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(_LEAST, (free + cached) * 6 // 10)
    return max(_LEAST, min(_MOST_ON_CPU, available_host_bytes() // 4))


def available_host_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's if less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if _HAS_SYSCONF else 0
    available = pages or 4096 * MIB
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        entry = next(line for line in lines if line.startswith("MemAvailable"))
        available = int(entry.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return max(0, available)


_HAS_SYSCONF = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
