"""Exception hierarchy and exit codes.

    DenoiseBatchError            70  (a bug, unless a subclass says otherwise)
    ├── OptionError               2  an option is invalid
    ├── NoImagesError             3  nothing to work on
    ├── DeviceError               4  the device is missing or out of memory
    ├── WeightsError              5  a weights file is missing, damaged, or for another network
    ├── ImageError                1  one image cannot be read or written; the others go on
    │   └── StorageError          7  the output or a store failed, not the image
    ├── TrainingError             1  a training run cannot go on (diverged, no usable tiles)
    ├── ShapeError               70  shapes that do not fit (ValueError, RuntimeError)
    └── StateError               70  blocks called in the wrong order (RuntimeError)

The number is the exit code of a command that the error ends. A message says what is wrong, why,
and how to mend it. Other exit codes: 0 done, 1 some files failed,
6 every file failed, 7 the output or a store failed ten times in a row, 130 Ctrl-C, 143 SIGTERM.

UnavailableError, NotCoveredError and UncheckableError never leave kernels/.
"""

import re
from typing import ClassVar

_OUT_OF_MEMORY = re.compile(
    # Allocators of torch and of the system; CUDA's, HIP's and XPU's runtimes and drivers, and what
    # calls them: Triton, cuBLAS (whose handles take memory too), cuDNN, cuFFT; Metal.
    r"out[ _]of[ _](\w+[ _])?memory|not enough memory|(can't|cannot|failed to) allocate"
    r"|(cuda|hip)Host(Alloc|Malloc)|cudaErrorMemoryAllocation"
    r"|alloc(ation)?_failed|StatusAllocFailed|NOT_INITIALIZED when calling .cublasCreate"
    r"|Invalid buffer size",
    re.IGNORECASE,
)


class DenoiseBatchError(Exception):
    """Base of all errors of this package."""

    exit_code: ClassVar[int] = 70


class OptionError(DenoiseBatchError):
    """An option or argument is out of its range, or two of them contradict each other."""

    exit_code = 2


class NoImagesError(DenoiseBatchError):
    """The inputs hold no image."""

    exit_code = 3


class DeviceError(DenoiseBatchError):
    """The requested device is missing, or out of memory."""

    exit_code = 4


class WeightsError(DenoiseBatchError):
    """A weights file is missing, damaged, or belongs to another architecture."""

    exit_code = 5


class ImageError(DenoiseBatchError):
    """One image cannot be read, denoised or written; recorded, never fatal for a folder."""

    exit_code = 1


class StorageError(ImageError):
    """The output or an object store failed: of one image recorded, ten times in a row fatal."""

    exit_code = 7


class TrainingError(DenoiseBatchError):
    """A training run cannot start or go on."""

    exit_code = 1


class ShapeError(DenoiseBatchError, ValueError, RuntimeError):
    """Shapes that do not fit; also the errors that torch raises for it."""


class StateError(DenoiseBatchError, RuntimeError):
    """A call that needs another call before it, such as backward without forward."""


class UnavailableError(Exception):
    """There are no kernels for this device; the message is the reason."""


class NotCoveredError(Exception):
    """A kernel declines a call (a precision, a size) that `gemm/` can do."""


class UncheckableError(Exception):
    """A call cannot be checked: it is wrong itself, or there is no small problem like it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, the host's or a device's, in any spelling."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its type if it is empty."""
    text = str(error).strip() or type(error).__name__
    return text.partition("\n")[0][:200]
