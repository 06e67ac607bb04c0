"""Real noise: paired folders, bursts, single noisy images and the course's two-tensor files.

A scene is a stack of aligned shots of one subject, uint8 (V, 3, H, W). With two or more shots,
Noise2Noise takes one as input and another as target; with one, neighbouring pixels act as two.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import OptionError, TrainingError
from denoise_batch.kernels.errors import first_line

from ..files.images import READABLE_SUFFIXES, read_image
from ..files.pixels import DecodedImage
from ..files.ranges import BITS_8, UNIT, ValueRange, find_range
from ..streaming.references import find_reference
from .pairs import Generators, ScenePairs, StoredPairs, Validation, level_of_two, to_float

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True)
class Scenes:
    """Scenes for training and for validation, and the number of those that are too small."""

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    too_small: int


def load_paired_folders(first: Path, second: Path, smallest_px: int, share: float) -> Scenes:
    """Load two folders of noisy shots of the same scenes under the same names.

    Raises:
        OptionError: one of them is not a folder.
        TrainingError: a shot has no partner or another size, or there are too few scenes.
        ImageError: a shot cannot be read.
    """
    if not second.is_dir():
        raise OptionError(f"--pairs {second}: not a folder")
    named = {}
    for path in _images_below(first):
        name = path.relative_to(first).as_posix()
        partner = find_reference(second, name)
        if partner is None:
            raise TrainingError(f"{path}: has no partner of the same name in {second}")
        named[name] = _stack([path, partner])
    return _split(named, smallest_px, share, first)


def load_bursts(folder: Path, smallest_px: int, share: float) -> Scenes:
    """Load a folder of folders, each with two or more aligned shots of one scene.

    Raises:
        OptionError: not a folder.
        TrainingError: a burst has one shot or shots of different sizes, or there are too few.
        ImageError: a shot cannot be read.
    """
    bursts: dict[str, list[Path]] = {}
    for path in _images_below(folder):
        bursts.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    for name, shots in bursts.items():
        if len(shots) < 2:
            raise TrainingError(f"{folder / name}: a burst needs at least two shots; found one")
    named = {name: _stack(shots) for name, shots in bursts.items()}
    return _split(named, smallest_px, share, folder)


def load_single_images(folder: Path, smallest_px: int, share: float) -> Scenes:
    """Load a folder of noisy images, one per scene.

    Raises:
        OptionError: not a folder.
        TrainingError: there are too few images.
        ImageError: an image cannot be read.
    """
    named = {path.relative_to(folder).as_posix(): _stack([path]) for path in _images_below(folder)}
    return _split(named, smallest_px, share, folder)


def scene_validation(
    scenes: Sequence[Tensor], tile_px: int, count: int, seed: int, device: torch.device
) -> Validation:
    """Cut fixed crops of held-out scenes: one shot, and another one or its neighbouring pixels.

    There is no clean image: the PSNR against this reference is lower than against the truth, but
    rises and falls with it.
    """
    generators = Generators(device)
    generators.seed(seed, 0)
    crops = ScenePairs([scene.to(device) for scene in scenes], tile_px, count)
    return Validation(*crops.batch(torch.arange(count), generators, torch.zeros_like))


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


def _images_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise OptionError(f"{folder}: not a folder of noisy images")
    for path in sorted(folder.rglob("*")):
        is_image = path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith(".")
        if is_image and path.is_file():  # a folder may be called IMG_0001.JPG
            yield path


def _stack(shots: Sequence[Path]) -> Tensor:
    decoded = [read_image(path) for path in shots]
    float_scale, deep_scale = _shared_float_range(decoded), _shared_deep_range(decoded)
    images = []
    for path, shot in zip(shots, decoded, strict=True):
        samples = shot.samples
        is_deep = samples.dtype != torch.uint8
        scale = float_scale if samples.is_floating_point() else deep_scale if is_deep else BITS_8
        levels = (scale.to_unit(samples) * 255).round().clamp(0, 255).to(torch.uint8)
        images.append(levels.permute(2, 0, 1).expand(3, -1, -1))
        if images[-1].shape != images[0].shape:
            raise TrainingError(f"{path}: differs in size from {shots[0]}")
    return torch.stack(images)


def _shared_float_range(shots: Sequence[DecodedImage]) -> ValueRange:
    """Return one range for all: float files state none, and shots shall differ in noise only."""
    floats = [shot.samples for shot in shots if shot.samples.is_floating_point()]
    if not floats:
        return UNIT
    low = min(float(samples.min()) for samples in floats)
    high = max(float(samples.max()) for samples in floats)
    return UNIT if low >= 0 and high <= 1 else ValueRange(low, (high - low) or 1.0)


def _shared_deep_range(shots: Sequence[DecodedImage]) -> ValueRange:
    """Return one range for all shots in integers above 8 bits, as it is found in a file's pages."""
    deep = [s.samples for s in shots if not s.samples.is_floating_point()]
    deep = [samples for samples in deep if samples.dtype != torch.uint8]
    return find_range(deep)[0] if deep else BITS_8


def _split(named: Mapping[str, Tensor], smallest_px: int, share: float, folder: Path) -> Scenes:
    """Split by a hash of the name, as for photographs; at least one scene on each side."""
    large = {n: scene for n, scene in named.items() if min(scene.shape[2:]) >= smallest_px}
    if len(large) < 2:
        raise TrainingError(
            f"{folder}: found {len(large)} scenes of at least {smallest_px} px a side "
            f"({len(named) - len(large)} are smaller); at least two are required"
        )
    order = sorted(large, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = min(max(1, round(share * len(order))), len(order) - 1)
    validation = tuple(large[name] for name in order[:held_out])
    training = tuple(large[name] for name in order[held_out:])
    return Scenes(training, validation, len(named) - len(large))
