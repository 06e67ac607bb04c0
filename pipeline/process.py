"""How the process waits and frees memory: set before torch is imported, or pictures are streamed.

A library must not change its users' processes much: `denoise_batch` itself only returns large
blocks, when it begins to stream pictures on a processor. Its commands do the rest.
"""

import ctypes
import os

# mallopt's numbers (malloc.h). Larger blocks than the first have a mapping of their own; so much
# freed memory as the second is kept for the next use.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_ALSO_SET_BY = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
_MIB = 1 << 20


def tune_process() -> None:
    """Let threads sleep while they wait, and keep freed memory; what the user has set stays."""
    # OpenMP's threads would spin for milliseconds after each torch operation, on the cores that the
    # native kernels, decoders and encoders need. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc would give activations back to the system and take them again, 3 µs for every 4 KiB: a
    # fifth of a training step.
    if _ALSO_SET_BY.isdisjoint(os.environ):
        _set(_MMAP_THRESHOLD, 32 * _MIB)
        _set(_TRIM_THRESHOLD, 256 * _MIB)


def return_large_blocks() -> None:
    """Let glibc give freed blocks of a mebibyte and more back to the system, as it does at first.

    It raises that limit to the largest block freed so far, up to 32 MiB; pages then stay in the
    heaps of the threads that decoded them: 50 mixed photographs with `tconv` took 610 MB, not 468.
    Beside a network on the processor, whose own memory is pooled, keeping them is hardly faster.
    Beside a GPU JPEG files went 26 % faster with it, PNG 16 % (throw-away script).
    """
    _set(_MMAP_THRESHOLD, _MIB)


def _set(parameter: int, size: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(parameter, size)
    except (AttributeError, OSError, TypeError):  # another system
        return
