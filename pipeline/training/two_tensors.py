"""The course's file of two noisy versions: two tensors (N, 3, H, W)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import TrainingError

from .pairs import StoredPairs, Validation, to_float

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int16, torch.int32, torch.int64}


def load_two_tensors(path: Path) -> tuple[Tensor, Tensor]:
    """The file's tensors, stored as uint8, as other integers of [0, 255], or as floats of [0, 1].

    Floats may also be of [0, 255], and noise may take any of them out of its range.
    Read with torch's `weights_only`, so that a file cannot run code.

    Returns:
        Both as uint8.

    Raises:
        TrainingError: the file cannot be read or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch lets almost any exception through
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(f"{path}: not a file of two tensors ({reason})") from error
    if isinstance(content, Mapping):
        content = tuple(content.values())
    is_pair = isinstance(content, Sequence) and len(content) == 2
    if not is_pair or not all(isinstance(part, Tensor) and part.ndim == 4 for part in content):
        raise TrainingError(f"{path}: expected two tensors (N, 3, H, W)")
    first, second = content
    if first.shape != second.shape or first.shape[1] != 3 or 0 in first.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise TrainingError(f"{path}: expected two tensors (N, 3, H, W) of one shape, has {shapes}")
    return _to_uint8(path, first, second)


def tensor_pairs(
    path: Path, validation_path: Path | None, share: float, device: torch.device
) -> tuple[StoredPairs, Validation]:
    """The two-tensor file as pairs; validation from another such file (noisy, clean) or its end.

    Raises:
        TrainingError: as `load_two_tensors`, or nothing would be left to train on.
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
    return StoredPairs(versions), Validation(to_float(noisy.to(device)), to_float(clean.to(device)))


def _to_uint8(path: Path, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both by one scale.

    The mean tells [0, 1] from [0, 255]: noise that was not clipped moves the largest value far, and
    the mean hardly.
    """
    parts = (first, second)
    means = [_mean(path, part) for part in parts]
    of_floats = [mean for mean, part in zip(means, parts, strict=True) if part.dtype in _FLOATS]
    is_unit = bool(of_floats) and sum(of_floats) / len(of_floats) <= 1.5
    one, other = (_levels(part, 255 if is_unit else 1) for part in parts)
    return one, other


def _mean(path: Path, part: Tensor) -> float:
    if part.dtype not in _FLOATS | _INTEGERS or part.layout != torch.strided:
        kind = str(part.dtype).removeprefix("torch.")
        raise TrainingError(f"{path}: tensors of {kind}: cannot be used; save them as uint8")
    mean = 0.0 if part.dtype == torch.uint8 else part.float().mean().item()
    if not 0 <= mean <= 255:  # nor is NaN
        raise TrainingError(
            f"{path}: values of mean {mean:g}: neither in [0, 1] nor in [0, 255]; rescale them, "
            "and replace what is not finite"
        )
    return mean


def _levels(part: Tensor, scale: int) -> Tensor:
    if part.dtype == torch.uint8:
        return part
    values = part.float() * (scale if part.dtype in _FLOATS else 1)
    return values.round().clamp(0, 255).to(torch.uint8)
