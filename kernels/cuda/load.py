"""The Triton kernels of a device, if it has any. Imports triton only when asked for them."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import UnavailableError

# Ampere: bfloat16 on tensor cores, asynchronous copies, 99 KiB of shared memory and more.
MINIMUM_CAPABILITY = (8, 0)


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def is_for_kernels(device: torch.device) -> bool:
    """Whether the kernels are asked at all."""
    return device.type == "cuda" or (device.type == "cpu" and is_interpreted())


def load(device: torch.device) -> Mapping[str, Callable[..., Any]]:
    """The kernels' launchers by the names of the ops that they do.

    Raises:
        UnavailableError: this device has none.
    """
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("triton is not installed (pip install 'denoise-batch[gpu]')")
    if not is_interpreted():
        capability = torch.cuda.get_device_capability(device)
        if capability < MINIMUM_CAPABILITY:
            need, found = (".".join(map(str, c)) for c in (MINIMUM_CAPABILITY, capability))
            raise UnavailableError(f"compute capability {found}, the kernels need {need}")
    return launchers()


def launchers() -> Mapping[str, Callable[..., Any]]:
    """All of them, whatever the device can do."""
    from . import conv, fused, loss

    every = (
        conv.conv2d_forward,
        conv.conv2d_backward,
        conv.conv_transpose2d_forward,
        conv.conv_transpose2d_backward,
        fused.conv2d_fused,
        fused.conv_transpose2d_fused,
        loss.mse_loss,
    )
    return {launcher.__name__: launcher for launcher in every}
