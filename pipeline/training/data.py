"""From files to training pairs: clean photographs here, real noisy shots in scenes.py.

Tiles of photographs are random squares, resized by area averaging.
"""

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from denoise_batch.kernels import ImageError, OptionError, TrainingError

from ..files.images import as_image_error, read_pages
from ..files.pixels import from_pil, to_pil
from ..files.sniff import WIDE_GRAY
from .graphics import Graphics
from .noise import ChainedNoise, NoiseModel
from .noise_kind import CORRELATED, NONE_FOUND, measure_noise
from .options import TrainOptions
from .pairs import CropPairs, Pairs, StoredPairs, Validation, tiles_per_chunk, to_float
from .scene_pairs import ScenePairs
from .scenes import (
    Reading,
    Scenes,
    files_below,
    load_bursts,
    load_paired_folders,
    load_single_images,
    scene_validation,
)
from .two_tensors import tensor_pairs

GRAPHICS_PX = 256
LEAST_STEPS = 0.4  # of stored samples that the noise must have; rounding has 0.29
MEASURED_SCENES = 32  # at most, from everywhere
CLEAN_SHARE = 0.13  # of the photographs that an estimator is trained on: texture is no noise
VALIDATION_SEED = 1_000_003  # the same held-out tiles for every training seed
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}


@dataclass(frozen=True)
class Counts:
    """Numbers of photographs, scenes or stored pairs: used on each side, and too small for a tile.

    Attributes:
        training: items to train on.
        validation: items held out.
        too_small: items left out.
        notes: what was found out about the data and done to it, for the user.
    """

    training: int
    validation: int
    too_small: int = 0
    notes: tuple[str, ...] = ()


def load_data(options: TrainOptions, device: torch.device) -> tuple[Pairs, Validation, Counts]:
    """Load training pairs and validation tiles onto the device.

    Raises:
        OptionError: a path is not a folder.
        TrainingError: there is not enough usable data.
    """
    tile_px, share = options.tile_px, options.validation_share
    if options.kind == "clean":
        return _load_clean(options, device)
    if options.kind == "tensors":
        loaded = tensor_pairs(options.data, options.validation_file, share, device)
        return *loaded, Counts(len(loaded[0]), len(loaded[1].noisy))
    reading = Reading(options.axes, options.value_range, tile_px, share)
    method = "shots"
    if options.kind == "pairs" and options.pairs is not None:
        scenes = load_paired_folders(options.data, options.pairs, reading)
    elif options.kind == "bursts":
        scenes = load_bursts(options.data, reading)
    else:
        method = options.self_supervised
        if method == "neighbor":
            reading = replace(reading, smallest_px=2 * tile_px)
        scenes = load_single_images(options.data, reading)
    notes = scenes.notes
    if options.kind == "single":
        method, note = choose_method(method, scenes, tile_px)
        notes = (*notes, note)
    training = [scene.to(device) for scene in scenes.training]
    validation = scene_validation(
        scenes.validation, tile_px, options.validation_tiles, VALIDATION_SEED, device, method
    )
    counts = Counts(len(scenes.training), len(scenes.validation), scenes.too_small, notes)
    return ScenePairs(training, tile_px, options.tiles, method), validation, counts


def choose_method(asked: str, scenes: Scenes, tile_px: int) -> tuple[str, str]:
    """Choose how to learn from single shots, by their noise.

    Args:
        asked: as `--self` spells it.
        scenes: of one shot each.
        tile_px: side of a tile.

    Returns:
        The method, and why, for the user.

    Raises:
        TrainingError: "auto" was asked for, and no method would remove the noise; or it must be
            measured, and there is none.
    """
    measured = scenes.training[:: -(-len(scenes.training) // MEASURED_SCENES)]
    noise = measure_noise(
        [scene.unit(0) for scene in measured], [scene.hidden(0) for scene in measured]
    )
    if not noise.is_found:
        if asked in ("auto", "recorrupted"):
            raise TrainingError(f"--self {asked}: {NONE_FOUND}")
        return asked, "warning: no area shows what the noise is like: it may not suit this method"
    whole = [scene for scene in measured if not scene.samples.is_floating_point()]
    if whole and noise.sigma < LEAST_STEPS / min(scene.value_range.span for scene in whole):
        found = "the noise is weaker than the rounding of the samples"
        if asked == "auto":
            raise TrainingError(f"--self auto: {found}, so there is nothing to learn from it")
        return asked, f"warning: {found}, so there is little to learn from it"
    found = (
        f"the noise of neighbouring pixels correlates by {noise.across:.2f} across and "
        f"{noise.down:.2f} down"
    )
    if noise.correlation >= CORRELATED:
        remedy = (
            "a network that learns from one shot takes such noise for detail: use two shots of "
            "each scene (--pairs) or bursts (--bursts), or images from before they were scaled, "
            "demosaiced or compressed"
        )
        if asked == "auto":
            raise TrainingError(f"--self auto: {found}; {remedy}")
        return asked, f"warning: {found}; {remedy}"
    found += f"; its σ grows {noise.growth:.1f} times from dark to bright"
    if asked == "recorrupted" and not noise.is_normal:
        return asked, f"warning: {found}; it is not normal noise of one strength, so some may stay"
    if asked != "auto":
        return asked, found
    if noise.is_normal:
        return "recorrupted", f"--self recorrupted: {found}"
    if any(min(scene.size) < 2 * tile_px for scene in (*scenes.training, *scenes.validation)):
        return "blind-spot", (
            f"--self blind-spot: some images are smaller than two tiles of {tile_px} px; {found}"
        )
    # On white and Poisson noise it gains 0.4 dB more than hidden pixels, on weak noise 3 dB.
    return "neighbor", f"--self neighbor: {found}"


def _load_clean(options: TrainOptions, device: torch.device) -> tuple[Pairs, Validation, Counts]:
    noise, tile_px = options.noise_model, options.tile_px
    split = split_photographs(options.data, tile_px * noise.factor, options.validation_share)
    validation = validation_tiles(
        split.validation,
        noise,
        count=options.validation_tiles,
        tile_px=tile_px,
        seed=VALIDATION_SEED,
        device=device,
        value_range=options.value_range,
    )
    pairs = training_pairs(
        split.training,
        noise,
        count=options.tiles,
        tile_px=tile_px,
        versions=options.versions,
        seed=options.seed,
        device=device,
        has_clean_targets=options.targets == "clean",
        gray_share=options.gray_share,
        graphics_share=options.graphics_share,
        framed_share=options.framed_share,
        clean_share=CLEAN_SHARE if options.estimator else 0.0,
        value_range=options.value_range,
    )
    return pairs, validation, Counts(len(split.training), len(split.validation), split.too_small)


@dataclass(frozen=True)
class Split:
    """Photographs for training and for validation, and the number of those that are too small."""

    training: tuple[Path, ...]
    validation: tuple[Path, ...]
    too_small: int


def split_photographs(folder: Path, smallest_px: int, validation_share: float) -> Split:
    """Split the photographs with sides of at least `smallest_px` by a hash of their names.

    The side of a photograph depends only on its path below `folder`, so adding photographs never
    moves one from validation to training.

    Raises:
        OptionError: `folder` is not a folder.
        TrainingError: a photograph cannot be opened, or one side of the split is empty.
    """
    if not folder.is_dir():
        raise OptionError(f"{folder}: not a folder of photographs")
    training: list[Path] = []
    validation: list[Path] = []
    too_small = 0
    for path in files_below(folder, SUFFIXES):
        if _short_side(path) < smallest_px:
            too_small += 1
            continue
        digest = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
        is_validation = int.from_bytes(digest[:4]) / 2**32 < validation_share
        (validation if is_validation else training).append(path)
    if not training or not validation:
        raise TrainingError(
            f"{folder}: {len(training)} photographs for training and {len(validation)} for "
            f"validation ({too_small} are smaller than {smallest_px} px); use a folder with more"
        )
    return Split(tuple(training), tuple(validation), too_small)


def training_pairs(
    photographs: Sequence[Path],
    noise: NoiseModel,
    *,
    count: int,
    tile_px: int,
    versions: int,
    seed: int,
    device: torch.device,
    has_clean_targets: bool = False,
    gray_share: float = 0.0,
    graphics_share: float = 0.0,
    framed_share: float = 0.0,
    clean_share: float = 0.0,
    value_range: tuple[float, float] | None = None,
) -> Pairs:
    """Return pairs of tiles of side `tile_px`, on the device.

    Subpixel noise samples a larger source, which would not fit in memory: `count` tiles are drawn
    `versions` times now and stored. Any other noise, including noise chained after subpixel noise,
    is drawn anew in every step. Without subpixel noise the crops are drawn anew too, and `count`
    only sets the length of an epoch.

    Raises:
        OptionError: clean targets, graphics or frames with subpixel noise, which is stored.
    """
    if noise.factor == 1:
        loaded = [
            page.to(device)
            for path in photographs
            for page in load_photographs(path, value_range)
            if min(page.shape[1:]) >= tile_px
        ]
        graphics = Graphics(seed, size_px=max(GRAPHICS_PX, tile_px))
        shares = (gray_share, graphics, graphics_share, framed_share, clean_share)
        return CropPairs(loaded, noise, tile_px, count, has_clean_targets, *shares)
    for flag, share in (("graphics", graphics_share), ("framed", framed_share)):
        if share:
            raise OptionError(
                f"--{flag}-share cannot be combined with subpixel noise, which samples photographs"
            )
    if has_clean_targets:
        raise OptionError(
            "--targets clean cannot be combined with subpixel noise, which stores noisy tiles"
        )

    models = noise.models if isinstance(noise, ChainedNoise) else (noise,)
    rest = ChainedNoise(models[1:]) if len(models) > 1 else None

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([models[0].draw(squares, generator) for _ in range(versions)], 1)

    source_px = tile_px * noise.factor
    stored = map_tiles(
        photographs, count, source_px, seed, draw, is_zoomed=True, value_range=value_range
    )
    return StoredPairs(stored.to(device), rest, gray_share)


def validation_tiles(
    photographs: Sequence[Path],
    noise: NoiseModel,
    *,
    count: int,
    tile_px: int,
    seed: int,
    device: torch.device,
    value_range: tuple[float, float] | None = None,
) -> Validation:
    """Cut `count` tiles and draw one noisy version of each."""

    source_px, is_zoomed = tile_px * noise.factor, noise.factor > 1

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        rows = []
        for chunk in torch.split(squares, tiles_per_chunk(source_px)):
            source = to_float(chunk)
            noisy, level = noise.draw_with_level(source, generator)
            row = (noisy.flatten(1), noise.clean(source).flatten(1), level[:, None])
            rows.append(torch.cat(row, 1))
        return torch.cat(rows)

    rows = map_tiles(
        photographs, count, source_px, seed, draw, is_zoomed=is_zoomed, value_range=value_range
    ).to(device)
    shape = (count, 3, tile_px, tile_px)
    noisy, clean = (part.reshape(shape) for part in rows[:, :-1].chunk(2, 1))
    return Validation(noisy.contiguous(), clean.contiguous(), rows[:, -1].contiguous())


def map_tiles(
    photographs: Sequence[Path],
    count: int,
    size_px: int,
    seed: int,
    reduce: Callable[[Tensor, torch.Generator], Tensor],
    *,
    is_zoomed: bool,
    value_range: tuple[float, float] | None = None,
) -> Tensor:
    """Apply `reduce` to `count` random squares, an equal number from each photograph.

    Neighbours in the result come from different photographs. The result depends only on the
    arguments, not on the number of threads.

    Args:
        photographs: image files with sides of at least `size_px`.
        count: number of squares.
        size_px: side that every square is resized to.
        seed: seed of the squares and of the generators passed to `reduce`.
        reduce: maps uint8 squares (n, 3, size_px, size_px) to n rows of the result, so that memory
            holds the squares of only a few photographs at once.
        is_zoomed: False cuts squares of side `size_px`; True draws sides log-uniformly from
            `size_px` to the photograph's short side and resizes them by area averaging.
        value_range: as for `load_photographs`.

    Returns:
        (count, …), with the shape and dtype that `reduce` returns.

    Raises:
        TrainingError: `count` is 0, there are no photographs, or one cannot be read.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)

    def work(number: int) -> tuple[list[int], Tensor | None]:
        share = order[number :: len(photographs)]
        if not share:
            return share, None
        seeds = [f"{seed}:{i}" for i in share]
        squares = _cut_squares(photographs[number], seeds, size_px, is_zoomed, value_range)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        return share, reduce(squares, generator)

    result: Tensor | None = None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for share, rows in pool.map(work, range(len(photographs))):
            if rows is None:
                continue
            if result is None:
                result = rows.new_empty(count, *rows.shape[1:])
            result[share] = rows
    if result is None:
        raise TrainingError("no tiles: at least one photograph and one tile are required")
    return result


def load_photographs(path: Path, value_range: tuple[float, float] | None = None) -> list[Tensor]:
    """Read the pages of a file of photographs.

    Args:
        path: the file.
        value_range: black and white of samples above 8 bits; None: as `denoise-batch` finds them.

    Returns:
        uint8 (3, H, W) for 8 bits; else float32 (1 or 3, H, W) in [0, 1].

    Raises:
        TrainingError: it cannot be read.
    """
    with _as_training_error(path):
        if not _is_beyond_pillow(path):
            with Image.open(path) as file:
                return [from_pil(file.convert("RGB")).permute(2, 0, 1).contiguous()]
        pages = []
        for page in read_pages(path, value_range=value_range):
            if page.samples.dtype == torch.uint8:
                pages.append(page.samples.expand(-1, -1, 3).permute(2, 0, 1).contiguous())
            else:
                unit = page.value_range.to_unit(page.with_outliers(page.samples))
                pages.append(unit.clamp_(0, 1).permute(2, 0, 1).contiguous())
        return pages


def _cut_squares(
    path: Path,
    seeds: list[str],
    size_px: int,
    is_zoomed: bool,
    value_range: tuple[float, float] | None,
) -> Tensor:
    pages = _open_rgb(path, value_range)
    pages = [page for page in pages if min(page.size) >= size_px] or pages[:1]
    tiles = []
    for seed in seeds:
        rng = random.Random(seed)
        image = pages[0] if len(pages) == 1 else rng.choice(pages)
        width, height = image.size
        longest = min(width, height) if is_zoomed else size_px
        side = round(math.exp(rng.uniform(math.log(size_px), math.log(longest))))
        left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        box = (left, top, left + side, top + side)
        tile = image.resize((size_px, size_px), Image.Resampling.BOX, box)
        tiles.append(from_pil(tile))
    return torch.stack(tiles).permute(0, 3, 1, 2)


def _open_rgb(path: Path, value_range: tuple[float, float] | None) -> list[Image.Image]:
    """Open the pages of a file in 8-bit RGB."""
    pages = []
    for page in load_photographs(path, value_range):
        levels = page if page.dtype == torch.uint8 else (page * 255).round().to(torch.uint8)
        pages.append(to_pil(levels.permute(1, 2, 0)).convert("RGB"))
    return pages


def _short_side(path: Path) -> int:
    with _as_training_error(path):
        try:
            with Image.open(path) as image:
                return min(image.size)
        except UnidentifiedImageError:
            return min(read_pages(path)[0].size)


def _is_beyond_pillow(path: Path) -> bool:
    """Whether Pillow would clip or round a file's samples, or see its first page only."""
    try:
        with Image.open(path) as image:
            is_16_bit = any("16" in str(tile[3]) for tile in image.tile)
            return image.format == "TIFF" or image.mode in WIDE_GRAY or is_16_bit
    except UnidentifiedImageError:
        return True


@contextmanager
def _as_training_error(path: Path) -> Iterator[None]:
    """Turn any failure to read a photograph into a TrainingError of one line."""
    try:
        with as_image_error(path, "read"):
            yield
    except ImageError as error:
        raise TrainingError(str(error)) from error
