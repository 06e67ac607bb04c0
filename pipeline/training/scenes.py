"""Real noise: paired folders, bursts and single noisy images.

A scene is a stack of aligned shots of one picture, uint8 (V, 3, H, W). With two or more,
Noise2Noise takes one as input and another as target; with one, neighbouring pixels serve as two.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import OptionError, TrainingError

from ..files.images import READABLE_SUFFIXES, read_image
from ..files.pixels import UNIT, DecodedImage, ValueRange
from ..streaming.references import find_reference
from .pairs import Denoise, Pairs, StepRandom, Validation, to_float

# Weight of Neighbor2Neighbor's regulariser, γ/(1 + γ) with the paper's γ = 2.
NEIGHBOR_SHARE = 2 / 3


@dataclass(frozen=True)
class Scenes:
    """Scenes for training and others for validation."""

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    too_small: int


def load_paired_folders(first: Path, second: Path, smallest_px: int, share: float) -> Scenes:
    """Two folders of noisy shots of the same scenes under the same names.

    Raises:
        OptionError: one of them is no folder.
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
            raise TrainingError(f"{path}: has no partner of that name in {second}")
        named[name] = _stack([path, partner])
    return _split(named, smallest_px, share, first)


def load_bursts(folder: Path, smallest_px: int, share: float) -> Scenes:
    """A folder of folders, each with two or more aligned shots of one scene.

    Raises:
        OptionError: not a folder.
        TrainingError: a burst of one shot, shots of different sizes, or too few scenes.
        ImageError: a shot cannot be read.
    """
    bursts: dict[str, list[Path]] = {}
    for path in _images_below(folder):
        bursts.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    for name, shots in bursts.items():
        if len(shots) < 2:
            raise TrainingError(f"{folder / name}: a burst needs two shots or more, this has one")
    return _split(
        {name: _stack(shots) for name, shots in bursts.items()}, smallest_px, share, folder
    )


def load_single_images(folder: Path, smallest_px: int, share: float) -> Scenes:
    """A folder of noisy images, one of each scene.

    Raises:
        OptionError: not a folder.
        TrainingError: too few images.
        ImageError: an image cannot be read.
    """
    named = {path.relative_to(folder).as_posix(): _stack([path]) for path in _images_below(folder)}
    return _split(named, smallest_px, share, folder)


class ScenePairs(Pairs):
    """Random crops of random scenes: two different shots, or neighbouring pixels of a single one.

    Neighbor2Neighbor (Huang et al., 2021): from every 2×2 cell two adjacent pixels are drawn, the
    first of each making the input, the second the target. Its regulariser, the squared distance of
    (output − target) to g₁(f(y)) − g₂(f(y)), is the plain loss against a target that is moved by
    γ/(1 + γ) of that difference (and 1 + γ as large), which is how it is done here.

    Args:
        scenes: uint8 (V, 3, H, W), on the device; either all V ≥ 2 or all V = 1.
        tile_px: side of a tile.
        count: tiles of an epoch.
    """

    def __init__(self, scenes: Sequence[Tensor], tile_px: int, count: int) -> None:
        self._scenes = scenes
        self._tile_px = tile_px
        self._count = count
        self._is_single = len(scenes[0]) == 1
        areas = [scene.shape[2] * scene.shape[3] for scene in scenes]
        self._areas = torch.tensor(areas, dtype=torch.float64)

    def __len__(self) -> int:
        """Tiles of an epoch."""
        return self._count

    def batch(self, indices: Tensor, random: StepRandom, denoise: Denoise) -> tuple[Tensor, Tensor]:
        """As many crops as there are indices."""
        count, size = len(indices), self._tile_px * (2 if self._is_single else 1)
        chosen = torch.multinomial(self._areas, count, True, generator=random.host).tolist()
        draws = torch.rand(count, 4, generator=random.host, dtype=torch.float64).tolist()
        first, second = [], []
        for number, (down, across, one, other) in zip(chosen, draws, strict=True):
            scene = self._scenes[number]
            top = int(down * (scene.shape[2] - size + 1))
            left = int(across * (scene.shape[3] - size + 1))
            crop = scene[:, :, top : top + size, left : left + size]
            shot = int(one * len(scene))
            first.append(crop[shot])
            second.append(crop[(shot + 1 + int(other * (len(scene) - 1))) % len(scene)])
        noisy = to_float(torch.stack(first))
        if not self._is_single:
            return noisy, to_float(torch.stack(second))
        cells = _Neighbors(noisy, random)
        input, target = cells.pick(noisy)
        one_side, other_side = cells.pick(denoise(noisy))
        return input, target + NEIGHBOR_SHARE * (one_side - other_side)


class _Neighbors:
    """For every 2×2 cell of a batch, two adjacent pixels."""

    def __init__(self, like: Tensor, random: StepRandom) -> None:
        n, _, height, width = like.shape
        shape = (n, 1, height // 2, width // 2, 1)
        first = torch.randint(4, shape, generator=random.device, device=like.device)
        # Pixels 0 1 / 2 3: the neighbour across differs in bit 0, the one below or above in bit 1.
        step = torch.randint(1, 3, shape, generator=random.device, device=like.device)
        self._first, self._second = first, first ^ step

    def pick(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two images (N, C, H/2, W/2)."""
        n, c, height, width = images.shape
        cells = images.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 1, 2, 4, 3, 5)
        cells = cells.reshape(n, c, height // 2, width // 2, 4)
        places = (index.expand(-1, c, -1, -1, -1) for index in (self._first, self._second))
        one, other = (cells.gather(4, place)[..., 0] for place in places)
        return one, other


def scene_validation(
    scenes: Sequence[Tensor], tile_px: int, count: int, seed: int, device: torch.device
) -> Validation:
    """Fixed crops of held-out scenes: a shot, and another one (or its neighbouring pixels).

    There is no clean image: the PSNR against this reference is lower than against the truth, and
    rises and falls with it.
    """
    random = StepRandom(device)
    random.start(seed, 0)
    crops = ScenePairs([scene.to(device) for scene in scenes], tile_px, count)
    noisy, target = crops.batch(torch.arange(count), random, torch.zeros_like)
    return Validation(noisy, target)


def _images_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise OptionError(f"{folder}: not a folder of noisy images")
    for path in sorted(folder.rglob("*")):
        is_picture = path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith(".")
        if is_picture and path.is_file():  # a folder may be called IMG_0001.JPG
            yield path


def _stack(shots: Sequence[Path]) -> Tensor:
    pictures = [read_image(path) for path in shots]
    shared = _scale_of_floats(pictures)
    images = []
    for path, picture in zip(shots, pictures, strict=True):
        samples = picture.samples
        scale = shared if samples.is_floating_point() else picture.value_range
        levels = (scale.to_unit(samples) * 255).round().clamp(0, 255).to(torch.uint8)
        images.append(levels.permute(2, 0, 1).expand(3, -1, -1))
        if images[-1].shape != images[0].shape:
            raise TrainingError(f"{path}: not of the size of {shots[0]}")
    return torch.stack(images)


def _scale_of_floats(shots: Sequence[DecodedImage]) -> ValueRange:
    """Floats have no range of their own, and the shots of a scene shall differ in noise alone."""
    floats = [shot.samples for shot in shots if shot.samples.is_floating_point()]
    ends = [end for samples in floats for end in samples.aminmax()]
    return ValueRange.of(torch.stack(ends)) if ends else UNIT


def _split(named: Mapping[str, Tensor], smallest_px: int, share: float, folder: Path) -> Scenes:
    """By a hash of the name, as photographs are; at least one scene on each side."""
    large = {n: scene for n, scene in named.items() if min(scene.shape[2:]) >= smallest_px}
    if len(large) < 2:
        raise TrainingError(
            f"{folder}: {len(large)} scenes of at least {smallest_px} px a side "
            f"({len(named) - len(large)} are smaller); two are the least"
        )
    order = sorted(large, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = min(max(1, round(share * len(order))), len(order) - 1)
    validation = tuple(large[name] for name in order[:held_out])
    training = tuple(large[name] for name in order[held_out:])
    return Scenes(training, validation, len(named) - len(large))
