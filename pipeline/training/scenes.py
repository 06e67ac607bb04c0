"""Real noise: pairs, bursts, single noisy images and stacks.

With two or more aligned shots of a scene, Noise2Noise takes one as input and another as target;
with one, a scene is learnt from itself.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import OptionError, TrainingError

from ..files.images import READABLE_SUFFIXES, read_pages
from ..files.pixels import DecodedImage, prepare
from ..files.ranges import UNIT
from ..streaming.references import find_reference
from .axes import axes_of_pages, parse_axes, refuse_planes, scenes_of_pages
from .pairs import Batch, Generators, Validation
from .scene_pairs import Scene, ScenePairs
from .shots import FoundScene, MatchedScene, match_shots, notes_on_shots

_USUAL = (".tif", ".png", ".jpg", ".webp")
_OF_SYSTEMS = {"__MACOSX", "@eaDir"}  # folders of copies and thumbnails
_RUN_FILES, _PICTURES_OF_RUNS = {"config.json", "metrics.jsonl"}, {"samples.png", "curves.png"}
_MOST_DRAWS = 32  # of validation tiles, until they show noise


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        axes: what the pages of a file are, as `--axes` spells it: T shots of one scene, S, Z and C
            scenes of their own; None by the kind of data.
        value_range: black and white of samples above 8 bits; None: as `denoise-batch` does, from
            all pages of the shots that belong together.
        smallest_px: side of a scene that is used.
        share: of the scenes that are held out.
    """

    axes: str | None = None
    value_range: tuple[float, float] | None = None
    smallest_px: int = 32
    share: float = 0.2


@dataclass(frozen=True)
class Scenes:
    """Scenes for training and for validation.

    Attributes:
        training: to train on.
        validation: held out.
        too_small: number of those that are smaller than a tile.
        notes: what was done to them, for the user.
    """

    training: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    too_small: int
    notes: tuple[str, ...] = ()


def load_paired_folders(first: Path, second: Path, reading: Reading) -> Scenes:
    """Load two folders, or files, of noisy shots of the same scenes under the same names.

    Page k of one file pairs with page k of the other.

    Raises:
        OptionError: one of them is not a folder, or both are the same.
        TrainingError: a shot has no partner, another size or other parts elsewhere, or there are
            too few scenes.
        ImageError: a shot cannot be read.
    """
    if not second.is_dir() and not (first.is_file() and second.is_file()):
        raise OptionError(f"--pairs {second}: not a folder")
    if first.resolve() == second.resolve():
        raise OptionError(f"--pairs {second}: holds the first shots; give other ones")
    named, partners = {}, set()
    for name, path in images_below(first):
        partner = find_partner(second, name)
        if partner is None:
            raise TrainingError(f"{path}: has no partner of the same name in {second}")
        partners.add(_identity(partner))
        named[name] = _read(_decoded([path, partner], reading), reading, "SYX")
    scenes = _split(named, reading, first)
    lonely = [path for _, path in images_below(second) if _identity(path) not in partners]
    if not lonely:
        return scenes
    has = f"{len(lonely)} images have" if len(lonely) > 1 else "1 image has"
    note = f"{second}: {has} no first shot, such as {lonely[0].name}; left out"
    return replace(scenes, notes=(*scenes.notes, note))


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file, as those that differ in case on some systems."""
    status = path.stat()
    return status.st_dev, status.st_ino


def load_bursts(folder: Path, reading: Reading) -> Scenes:
    """Load a folder of bursts: folders of aligned shots of one scene, and stacks of such shots.

    Raises:
        OptionError: not a folder.
        TrainingError: a burst has one shot, shots of different sizes or with other parts elsewhere,
            or there are too few.
        ImageError: a shot cannot be read.
    """
    folders: dict[str, list[Path]] = {}
    for name, path in images_below(folder):
        folders.setdefault(Path(name).parent.as_posix(), []).append(path)
    named: dict[str, list[FoundScene]] = {}
    for name, shots in folders.items():
        rest = _decoded(shots, reading)
        if "T" in parse_axes(reading.axes or "TYX"):
            for path in [path for path, pages in rest.items() if len(pages) > 1]:
                stack = {path: rest.pop(path)}
                named[f"{name}/{path.name}"] = _read(stack, reading, "TYX")
        if len(rest) == 1:
            raise TrainingError(
                f"{next(iter(rest))}: found one shot, but a burst needs at least two: put more of "
                "the same scene beside it, or learn from single shots with --self auto"
            )
        if rest:
            named[name] = _read(rest, reading, "SYX")
    return _split(named, reading, folder)


def load_single_images(folder: Path, reading: Reading) -> Scenes:
    """Load a folder of noisy images; every page is a scene.

    Raises:
        OptionError: not a folder.
        TrainingError: there are too few images.
        ImageError: an image cannot be read.
    """
    named = {
        name: _read(_decoded([path], reading), reading, "SYX")
        for name, path in images_below(folder)
    }
    return _split(named, reading, folder)


def scene_validation(
    scenes: Sequence[Scene],
    tile_px: int,
    count: int,
    seed: int,
    device: torch.device,
    method: str = "shots",
) -> Validation:
    """Cut fixed crops of held-out scenes, as `ScenePairs` does.

    There is no clean image: the PSNR against this reference is lower than against the truth, but
    rises and falls with it. Crops where both are the same, as in black borders, are drawn again.

    Raises:
        TrainingError: none shows noise.
    """
    generators = Generators(device)
    generators.seed(seed, 0)
    crops = ScenePairs([scene.to(device) for scene in scenes], tile_px, count, method)
    found = crops.batch(torch.arange(count), generators, torch.zeros_like)
    for _ in range(_MOST_DRAWS):
        empty = _is_without_noise(found)
        if not bool(empty.any()):
            break
        again = crops.batch(torch.arange(int(empty.sum())), generators, torch.zeros_like)
        found = Batch(*(part.contiguous() for part in found))  # gray has one channel thrice
        for part, new in zip(found, again, strict=True):
            part[empty] = new
    if bool(_is_without_noise(found).all()):
        raise TrainingError(
            "the images held out for validation show no noise: their tiles are constant, the same "
            "in all shots, or have no pixel with a meaning; hold out others (--validation-share), "
            "or leave such images out"
        )
    return Validation(*found)


def _is_without_noise(tiles: Batch) -> Tensor:
    """(N,): whether nothing of a tile's target is known, or it is the same as the input."""
    differs = (tiles.noisy != tiles.target) & ~tiles.target.isnan()
    return ~differs.flatten(1).any(1)


def find_partner(second: Path, name: str) -> Path | None:
    """Return the second shot of this name, in a folder or the file itself; None if it has none."""
    return second if second.is_file() else find_reference(second, name)


def images_below(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of the images in a folder, or of the file itself.

    Raises:
        OptionError: there is neither.
        TrainingError: the folder holds no images.
    """
    if path.is_file():
        yield path.name, path
        return
    if not path.is_dir():
        raise OptionError(f"{path}: no such file or folder")
    for file in files_below(path, READABLE_SUFFIXES):
        yield file.relative_to(path).as_posix(), file


def files_below(folder: Path, suffixes: Set[str]) -> list[Path]:
    """Return the images in a folder, at any depth, in order.

    Left out are hidden files and folders, those that systems keep, and pictures of earlier runs.

    Args:
        folder: to look in.
        suffixes: of images, in lower case, with their dots.

    Raises:
        TrainingError: there are none.
    """
    found = []
    for name, folders, files in os.walk(folder):
        folders[:] = [inner for inner in folders if inner[0] != "." and inner not in _OF_SYSTEMS]
        ours = _PICTURES_OF_RUNS if set(files) >= _RUN_FILES else ()
        for file in files:
            path = Path(name, file)
            is_image = path.suffix.lower() in suffixes and file[0] != "." and file not in ours
            if is_image and path.is_file():
                found.append(path)
    if not found:
        readable = ", ".join(kind for kind in _USUAL if kind in suffixes)
        arrays = "; save NumPy's arrays as TIFF" if any(folder.rglob("*.np[yz]")) else ""
        raise TrainingError(f"{folder}: holds no images ({readable} …){arrays}")
    return sorted(found)


def _decoded(files: Sequence[Path], reading: Reading) -> dict[Path, tuple[DecodedImage, ...]]:
    decoded = {path: tuple(read_pages(path, value_range=reading.value_range)) for path in files}
    for path, pages in decoded.items():
        refuse_planes(path, pages)
    return decoded


def _read(
    files: Mapping[Path, tuple[DecodedImage, ...]], reading: Reading, usual: str
) -> list[FoundScene]:
    """Return the scenes of files that belong together.

    Args:
        files: their pages.
        reading: how they are read.
        usual: what pages are if neither `reading` nor their file says it, as `--axes` spells it.

    Raises:
        TrainingError: the files differ in number or size of pages, or contradict `--axes`.
    """
    pages = list(files.values())
    own = pages[0][0].value_range
    if len(files) > 1:
        pages = _in_one_range(pages, reading.value_range)
    first = next(iter(files))
    groups = [
        scenes_of_pages(axes_of_pages(path, of_file, reading.axes, usual))
        for path, of_file in zip(files, pages, strict=True)
    ]
    for path, of_file in zip(files, groups, strict=True):
        if len(of_file) != len(groups[0]):
            raise TrainingError(
                f"{path}: has {len(of_file)} scenes, but {first} has {len(groups[0])}; shots of "
                "the same scenes must have as many pages"
            )
    scenes = []
    for of_scene in zip(*groups, strict=True):  # the numbers of its pages, for each file
        shots = {
            (path, number): of_file[number]
            for path, of_file, numbers in zip(files, pages, of_scene, strict=True)
            for number in numbers
        }
        _check_sizes(shots)
        ranges = tuple(page.value_range for page in shots.values())
        scenes.append(FoundScene(_scene(list(shots.values())), ranges, own))
    return scenes


def _check_sizes(shots: Mapping[tuple[Path, int], DecodedImage]) -> None:
    """Refuse shots (by file and page) of other sizes than the first one."""

    def said(path: Path, number: int) -> str:
        height, width = shots[path, number].size
        return f"{path}, page {number + 1}: {width}×{height} px"

    first = next(iter(shots))
    for place, page in shots.items():
        if page.size != shots[first].size:
            raise TrainingError(
                f"{said(*place)}, but {said(*first)}; shots of a scene have one size: crop it, or "
                "store it elsewhere"
            )


def _in_one_range(
    pages: Sequence[tuple[DecodedImage, ...]], value_range: tuple[float, float] | None
) -> list[tuple[DecodedImage, ...]]:
    """Prepare pages of several files anew: those whose samples have one type have one range."""
    stored = [
        replace(page, samples=page.stored(page.samples)) for of_file in pages for page in of_file
    ]
    numbers: dict[torch.dtype, list[int]] = {}
    for number, page in enumerate(stored):
        numbers.setdefault(page.samples.dtype, []).append(number)
    for of_type in numbers.values():
        ready = prepare([stored[number] for number in of_type], value_range)
        for number, page in zip(of_type, ready, strict=True):
            stored[number] = page
    rest = iter(stored)
    return [tuple(next(rest) for _ in of_file) for of_file in pages]


def _scene(shots: Sequence[DecodedImage]) -> Scene:
    """Join prepared pages of one size; floats, and what has a curve, are brought to [0, 1]."""
    scale = replace(shots[0].value_range, ceiling=None)
    kinds = {
        (shot.samples.dtype, shot.samples.shape, replace(shot.value_range, ceiling=None))
        for shot in shots
    }
    dtype = shots[0].samples.dtype
    if len(kinds) > 1 or scale.curve or dtype not in (torch.uint8, torch.uint16):
        scale, dtype = UNIT, torch.float32
    channels = max(shot.samples.shape[2] for shot in shots)
    samples = torch.empty(len(shots), channels, *shots[0].size, dtype=dtype)
    for target, shot in zip(samples, shots, strict=True):
        target.copy_(shot.samples.permute(2, 0, 1) if scale is not UNIT else shot.to_unit())
    unknown = torch.zeros(len(shots), 1, *shots[0].size, dtype=torch.bool)
    for mask, shot in zip(unknown, shots, strict=True):
        for filled in (shot.kept, shot.outliers):
            if filled is not None:
                mask |= filled.mask
    return Scene(samples, scale, unknown if bool(unknown.any()) else None)


def _split(named: Mapping[str, Sequence[FoundScene]], reading: Reading, folder: Path) -> Scenes:
    """Align shots, make them as bright, and hold out files by a hash of their names.

    Of a single file the last scenes are held out, of a single scene the end of its longer side.
    """
    smallest = reading.smallest_px
    root = folder.parent if folder.is_file() else folder
    matched: list[MatchedScene] = []
    large: dict[str, list[Scene]] = {}
    too_small = 0
    for name, scenes in named.items():
        for number, found in enumerate(scenes):
            if min(found.scene.size) >= smallest:
                place = f"{root / name}" + (f", scene {number + 1}" if len(scenes) > 1 else "")
                matched.append(match_shots(found, place))
                if min(matched[-1].scene.size) >= smallest:
                    large.setdefault(name, []).append(matched[-1].scene)
                    continue
            too_small += 1
    count = sum(map(len, large.values()))
    if count == 1:
        ((name, [scene]),) = large.items()
        large = {name: _divided(scene, smallest, reading.share)}
    if sum(map(len, large.values())) < 2:
        raise TrainingError(
            f"{folder}: scenes of at least {smallest} px a side: {count}; smaller: {too_small}; at "
            "least two are required, or one that can be divided"
        )
    order = sorted(large, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) == 1:
        parts = large[order[0]]
        held_out = _held_out(len(parts), reading.share)
        training, validation = parts[:-held_out], parts[-held_out:]
    else:
        held_out = _held_out(len(order), reading.share)
        validation = [scene for name in order[:held_out] for scene in large[name]]
        training = [scene for name in order[held_out:] for scene in large[name]]
    notes = notes_on_shots(matched)
    return Scenes(tuple(training), tuple(validation), too_small, notes)


def _held_out(count: int, share: float) -> int:
    """Return how many of so many are held out: at least one, and never all."""
    return min(max(1, round(share * count)), count - 1)


def _divided(scene: Scene, smallest_px: int, share: float) -> list[Scene]:
    """Divide a scene across its longer side; one part if it is too small for two."""
    dim = 2 if scene.size[0] >= scene.size[1] else 3
    extent = scene.samples.shape[dim]
    held_out = max(smallest_px, round(share * extent))
    if extent - held_out < smallest_px:
        return [scene]
    parts = []
    for start, length in ((0, extent - held_out), (extent - held_out, held_out)):
        unknown = None if scene.unknown is None else scene.unknown.narrow(dim, start, length)
        parts.append(
            replace(scene, samples=scene.samples.narrow(dim, start, length), unknown=unknown)
        )
    return parts
