"""GPU-accelerated batch image denoiser whose network is made of hand-written blocks.

    from denoise_batch import denoise

    clean = denoise(noisy)      # a NumPy array, PIL image, torch tensor or path

The blocks, forward and backward, are in `denoise_batch.kernels`. The project grew out of a course
paper: EE-559 mini-project 2, EPFL 2022 (Xu, Song, Peng).

Importing this package is light: torch is imported with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Denoiser, denoise, denoise_folder, load
    from .progress import Progress, Stop

    __version__: str

__all__ = ["Denoiser", "Progress", "Stop", "__version__", "denoise", "denoise_folder", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("denoise-batch")
    if name in ("Progress", "Stop"):
        return getattr(import_module(".progress", __name__), name)
    if name in __all__:
        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
