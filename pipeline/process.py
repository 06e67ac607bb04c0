"""What the process of a command is set to before it imports torch: how threads wait, what is freed.

A library must not do this to its users' processes; `denoise_batch` itself leaves them alone.
"""

import ctypes
import os

# mallopt's numbers (malloc.h), and their values in bytes. What is larger than the first has a
# mapping of its own; so much freed memory is kept for the next use.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 32 << 20), (-1, 256 << 20)
_ALSO_SET_BY = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def tune_process() -> None:
    """Let threads sleep while they wait, and keep freed memory; what the user has set stays."""
    # OpenMP's threads would spin for milliseconds after each torch operation, on the cores that the
    # native kernels, decoders and encoders need. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc would give activations and pages back to the system and take them again, 3 µs for every
    # 4 KiB: a fifth of a training step.
    if _ALSO_SET_BY.isdisjoint(os.environ):
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError, TypeError):  # another system
            return
        for parameter, size in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(parameter, size)
