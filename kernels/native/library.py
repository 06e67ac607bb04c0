"""Find, check and load the compiled library."""

import ctypes
import platform
from ctypes import c_char_p, c_double, c_int64, c_void_p
from pathlib import Path

import torch

from ..errors import UnavailableError
from .build import FOLDER, HINT, file_name, instruction_sets, source_hash


class Geometry(ctypes.Structure):
    """direct.cpp's: a convolution between a large and a small map."""

    _fields_ = tuple(
        (name, c_int64)
        for name in (
            *("n", "large_h", "large_w", "large_c", "small_h", "small_w", "small_c"),
            *("kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
            "groups",
        )
    )


_GEOMETRY = ctypes.POINTER(Geometry)
# Every function's result and arguments: "p" a pointer, "i" an integer, "g" a geometry.
_SIGNATURES = {
    "denoise_source": (c_char_p, ""),
    "denoise_threads": (None, "i"),
    "denoise_winograd_size": (c_int64, "ii"),
    "denoise_winograd_pack": (None, "piiiiip"),
    "denoise_winograd_conv": (None, "ppiiiiiippippiii"),
    "denoise_winograd_residual": (None, "piiiiippppp"),
    "denoise_winograd_weights": (None, "piiiiiippiiipp"),
    "denoise_direct_size": (c_int64, "gi"),
    "denoise_direct_pack": (None, "gipp"),
    "denoise_direct_forward": (None, "gpppipp"),
    "denoise_direct_transpose": (None, "gpppipp"),
    "denoise_direct_weights": (None, "gppp"),
    "denoise_sgd": (None, "ippppddid"),
    "denoise_orthogonalize": (None, "ippppi"),
    "denoise_relu_backward": (None, "ppiipp"),
    "denoise_sigmoid": (None, "pip"),
    "denoise_mse": (c_double, "ppip"),
    "denoise_normalize": (None, "ppiiiippp"),
    "denoise_pixel_unshuffle": (None, "ppiiiiip"),
    "denoise_pixel_shuffle": (None, "piiiiippp"),
}
_TYPES = {"p": c_void_p, "i": c_int64, "d": c_double, "g": _GEOMETRY}


def load_library() -> tuple[str, ctypes.CDLL]:
    """Return the best instruction set that processor and build have, and its library.

    Raises:
        UnavailableError: none was compiled, none fits the processor, or it is stale.
    """
    if not instruction_sets():
        raise UnavailableError(f"there are none for {platform.system()} on {platform.machine()}")
    usable = [name for name in instruction_sets() if is_supported(name)]
    if not usable:
        raise UnavailableError("the processor has no AVX2")
    for name in usable:
        path = FOLDER / file_name(name)
        if path.exists():
            return name, open_library(path)
    raise UnavailableError(f"the library was not compiled: {HINT}")


def is_supported(instruction_set: str) -> bool:
    """Whether this processor runs it."""
    if instruction_set == "neon":
        return platform.machine() in ("aarch64", "arm64")
    capability = torch.backends.cpu.get_cpu_capability()
    needed = {"avx512": ("AVX512",), "avx2": ("AVX2", "AVX512")}
    return capability in needed[instruction_set]


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library and declare its functions.

    Raises:
        UnavailableError: it cannot be loaded, or was compiled from other sources.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = [_TYPES[kind] for kind in arguments]
    except (OSError, AttributeError) as error:
        raise UnavailableError(f"{path.name} cannot be loaded: {error}") from error
    wanted = source_hash()
    if wanted is not None and library.denoise_source().decode() != wanted:
        raise UnavailableError(f"{path.name} is stale: run python {FOLDER / 'build.py'}")
    return library
