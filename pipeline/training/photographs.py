"""Training tiles out of a folder of photographs: random squares, resized by area averaging."""

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from denoise_batch.kernels import ImageError, OptionError, TrainingError

from ..files.images import as_image_error, read_image
from ..files.pixels import from_pil, to_pil
from ..files.sniff import WIDE_GRAY

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm")


@dataclass(frozen=True)
class Split:
    """Photographs for training and others for validation."""

    training: tuple[Path, ...]
    validation: tuple[Path, ...]
    too_small: int


def split_photographs(folder: Path, smallest_px: int, validation_share: float) -> Split:
    """Every photograph of at least `smallest_px` a side, split by a hash of its name.

    A photograph's side of the split depends on nothing but its path below `folder`, so more
    photographs never move one from validation into training.

    Raises:
        OptionError: `folder` is no folder.
        TrainingError: a photograph cannot be opened, or a side of the split would be empty.
    """
    if not folder.is_dir():
        raise OptionError(f"{folder}: not a folder of photographs")
    training: list[Path] = []
    validation: list[Path] = []
    too_small = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if not path.is_file():  # a folder may be called IMG_0001.JPG
            continue
        with _readable(path), Image.open(path) as image:
            short_side = min(image.size)
        if short_side < smallest_px:
            too_small += 1
            continue
        digest = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
        is_validation = int.from_bytes(digest[:4]) / 2**32 < validation_share
        (validation if is_validation else training).append(path)
    if not training or not validation:
        raise TrainingError(
            f"{folder}: {len(training)} photographs to train on and {len(validation)} to validate "
            f"with ({too_small} are smaller than {smallest_px} px): give a folder with more"
        )
    return Split(tuple(training), tuple(validation), too_small)


def map_tiles(
    photographs: Sequence[Path],
    count: int,
    size_px: int,
    seed: int,
    reduce: Callable[[Tensor, torch.Generator], Tensor],
    *,
    is_zoomed: bool,
) -> Tensor:
    """`reduce` of `count` random squares, in an order where neighbours differ in photograph.

    Every photograph gives its even share. The outcome depends on the arguments alone, not on the
    number of threads.

    Args:
        photographs: image files, each at least `size_px` a side.
        count: how many squares.
        size_px: side that every square is resized to.
        seed: of the squares and of the generators that `reduce` gets.
        reduce: turns uint8 squares (n, 3, size_px, size_px) into n rows of the result, so that no
            more than a few photographs' squares are in memory at once.
        is_zoomed: False cuts squares as they are; True cuts sides that are log-uniform from
            `size_px` to the photograph's short side, and resizes them by area averaging.

    Returns:
        (count, …), as `reduce` shaped and typed it.

    Raises:
        TrainingError: no tiles are asked for, or a photograph cannot be read.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)

    def work(number: int) -> tuple[list[int], Tensor | None]:
        share = order[number :: len(photographs)]
        if not share:
            return share, None
        seeds = [f"{seed}:{i}" for i in share]
        squares = _cut_squares(photographs[number], seeds, size_px, is_zoomed)
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
        raise TrainingError("no tiles: give at least one photograph and ask for at least one tile")
    return result


def load_photograph(path: Path) -> Tensor:
    """One photograph as uint8 (3, H, W).

    Raises:
        TrainingError: it cannot be read.
    """
    return from_pil(_open_rgb(path)).permute(2, 0, 1).contiguous()


def _cut_squares(path: Path, seeds: list[str], size_px: int, is_zoomed: bool) -> Tensor:
    image = _open_rgb(path)
    width, height = image.size
    tiles = []
    for seed in seeds:
        rng = random.Random(seed)
        longest = min(width, height) if is_zoomed else size_px
        side = round(math.exp(rng.uniform(math.log(size_px), math.log(longest))))
        left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        box = (left, top, left + side, top + side)
        tile = image.resize((size_px, size_px), Image.Resampling.BOX, box)
        tiles.append(from_pil(tile))
    return torch.stack(tiles).permute(0, 3, 1, 2)


def _open_rgb(path: Path) -> Image.Image:
    """The photograph in 8-bit RGB; wide gray is rounded, where Pillow would clip it to white."""
    with _readable(path), Image.open(path) as file:
        if file.mode not in WIDE_GRAY:
            return file.convert("RGB")
    try:
        pixels = read_image(path).to_unit()
    except ImageError as error:
        raise TrainingError(str(error)) from error
    levels = (pixels * 255).round().to(torch.uint8)
    return to_pil(levels.permute(1, 2, 0)).convert("RGB")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Give every failure on a photograph one line."""
    try:
        with as_image_error(path, "read"):
            yield
    except ImageError as error:
        raise TrainingError(str(error)) from error
