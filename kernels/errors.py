"""Every error that denoise-batch raises on purpose; the bottom of the house.

    DenoiseBatchError            70  (a bug, unless a child says better)
    ├── OptionError               2  the user asked for something that cannot be
    ├── NoImagesError             3  nothing to work on
    ├── DeviceError               4  the device is missing or out of memory
    ├── WeightsError              5  a weights file is missing, broken or of another network
    ├── ImageError                1  one image cannot be read or written; the folder goes on
    ├── TrainingError             1  a training run cannot go on (diverged, no usable tiles)
    ├── ShapeError               70  sizes of a caller that do not fit (ValueError, RuntimeError)
    └── StateError               70  blocks called in an impossible order (RuntimeError)

The number is the exit code that the command line gives when the error ends a run. A message says
what, why and how to mend. Exit codes follow DESIGN section 5: 0 done, 1 some files failed, 2 usage,
3 no images, 4 device, 5 weights, 6 every file failed, 130 interrupted, 70 an internal error.
"""

from typing import ClassVar


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
    """The asked-for device is missing, or its memory does not suffice."""

    exit_code = 4


class WeightsError(DenoiseBatchError):
    """A weights file is missing, damaged, or belongs to another architecture."""

    exit_code = 5


class ImageError(DenoiseBatchError):
    """One image cannot be read, denoised or written; recorded, never fatal for a folder."""

    exit_code = 1


class TrainingError(DenoiseBatchError):
    """A training run cannot start or go on."""

    exit_code = 1


class ShapeError(DenoiseBatchError, ValueError, RuntimeError):
    """Sizes that do not fit; also what torch raises for it (ValueError or RuntimeError)."""


class StateError(DenoiseBatchError, RuntimeError):
    """A call that needs another call before it, such as backward without forward."""


class UnavailableError(Exception):
    """There are no kernels for this device; the message is the reason."""


class NotCoveredError(Exception):
    """A kernel declines a call (a precision, a size) that `gemm/` can do."""


class UncheckableError(Exception):
    """A call cannot be checked: it is wrong itself, or there is no small problem like it."""
