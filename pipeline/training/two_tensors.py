"""The course's training data: a file of two tensors, noisy versions of the same images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import TrainingError
from denoise_batch.kernels.errors import first_line

from .pairs import StoredPairs, Validation, level_of_two, to_float

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int16, torch.int32, torch.int64}


def tensor_pairs(
    path: Path, validation_path: Path | None, share: float, device: torch.device
) -> tuple[StoredPairs, Validation]:
    """Load a two-tensor file; validate on another such file (noisy, clean) or on its last rows.

    Raises:
        TrainingError: as for `load_two_tensors`, or nothing would be left to train on.
    """
    first, second = load_two_tensors(path)
    if validation_path is not None:
        noisy, clean = load_two_tensors(validation_path)
    else:
        held_out = max(1, round(share * len(first)))
        if held_out >= len(first):
            raise TrainingError(f"{path}: {len(first)} pairs are too few to hold some out")
        noisy, clean = first[-held_out:], second[-held_out:]
        first, second = first[:-held_out], second[:-held_out]
    versions = torch.stack([first, second], 1).to(device)
    inputs, references = to_float(noisy.to(device)), to_float(clean.to(device))
    # The reference is clean in a file of its own; otherwise it is as noisy as the input.
    level = level_of_two(inputs, references) * (1 if validation_path is None else 2**0.5)
    return StoredPairs(versions), Validation(inputs, references, level)


def load_two_tensors(path: Path) -> tuple[Tensor, Tensor]:
    """Load the course's file of two noisy versions, two tensors (N, 3, H, W), as uint8.

    Tensors may hold integers in [0, 255], or floats in [0, 1] or [0, 255]; noise may exceed the
    range. The file is read with torch's `weights_only`, so it cannot run code.

    Raises:
        TrainingError: the file cannot be read or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch raises almost any exception
        reason = f"{path}: not a file of two tensors ({first_line(error)})"
        raise TrainingError(reason) from error
    if isinstance(content, Mapping):
        content = tuple(content.values())
    is_pair = isinstance(content, Sequence) and len(content) == 2
    if not is_pair or not all(isinstance(part, Tensor) and part.ndim == 4 for part in content):
        raise TrainingError(f"{path}: expected two tensors (N, 3, H, W)")
    first, second = content
    if first.shape != second.shape or first.shape[1] != 3 or 0 in first.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise TrainingError(
            f"{path}: expected two tensors (N, 3, H, W) of the same shape, found {shapes}"
        )
    return _to_uint8(path, first, second)


def _to_uint8(path: Path, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both with the same scale.

    The mean tells [0, 1] from [0, 255]: unclipped noise moves the maximum far and the mean hardly.
    """
    parts = (first, second)
    means = [_mean(path, part) for part in parts]
    float_means = [mean for mean, part in zip(means, parts, strict=True) if part.dtype in _FLOATS]
    is_unit = bool(float_means) and sum(float_means) / len(float_means) <= 1.5
    one, other = (_levels(part, 255 if is_unit else 1) for part in parts)
    return one, other


def _mean(path: Path, part: Tensor) -> float:
    if part.dtype not in _FLOATS | _INTEGERS or part.layout != torch.strided:
        dtype = str(part.dtype).removeprefix("torch.")
        raise TrainingError(f"{path}: tensors of {dtype} are not supported; save them as uint8")
    mean = 0.0 if part.dtype == torch.uint8 else part.float().mean().item()
    if not 0 <= mean <= 255:  # also refuses NaN
        raise TrainingError(
            f"{path}: values of mean {mean:g} are neither in [0, 1] nor in [0, 255]; rescale them "
            "and replace values that are not finite"
        )
    return mean


def _levels(part: Tensor, scale: int) -> Tensor:
    if part.dtype == torch.uint8:
        return part
    values = part.float() * (scale if part.dtype in _FLOATS else 1)
    return values.round().clamp(0, 255).to(torch.uint8)
