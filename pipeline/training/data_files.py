"""The files that a run trains on: which, of what content, and in what range of values."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import TrainingError

from ..files.images import read_pages
from .data import split_photographs
from .options import TrainOptions
from .scenes import find_partner, images_below

LEAST_FILLED = 0.01  # of the range, from the least to the greatest sample
MOST_BEYOND = 0.5  # of the samples; a picture's black ground and its highlights are fewer


def data_files(options: TrainOptions) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of the files that `load_data` reads.

    Raises:
        OptionError: a path is not a folder.
        TrainingError: there are no usable photographs.
    """
    folder = options.data
    if options.kind == "clean":
        smallest_px = options.tile_px * options.noise_model.factor
        split = split_photographs(folder, smallest_px, options.validation_share)
        for path in (*split.training, *split.validation):
            yield path.relative_to(folder).as_posix(), path
        return
    if options.kind == "tensors":
        yield from ((path.name, path) for path in (folder, options.validation_file) if path)
        return
    for name, path in images_below(folder):
        yield name, path
        if options.pairs is not None and (partner := find_partner(options.pairs, name)):
            yield f"{name}, second shot", partner


def describe_files(options: TrainOptions) -> str:
    """Say how many files a run's data are, and of what names and content.

    Raises:
        OptionError: a path is not a folder.
        TrainingError: there are no usable photographs, or a file cannot be read.
    """
    digest, count, size = hashlib.sha256(), 0, 0
    for name, path in data_files(options):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
                size += file.tell()
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror}") from error
        digest.update(f"{content} {name}\n".encode(errors="surrogateescape"))
        count += 1
    return f"{count} files of {size} bytes, sha256 {digest.hexdigest()[:16]}"


def compare_range(options: TrainOptions) -> tuple[str, ...]:
    """Compare --range, if given, with the samples that the files store.

    Returns:
        A warning if most samples lie beyond, or all in a small part of it.

    Raises:
        OptionError: a path is not a folder.
        TrainingError: all samples do, or there are no usable photographs.
        ImageError: a file cannot be read.
    """
    if options.value_range is None:
        return ()
    low, high = options.value_range
    count = beyond = 0
    least, most = math.inf, -math.inf
    for samples in _deep_samples(options):
        count += samples.numel()
        beyond += int(((samples < low) | (samples > high)).sum())
        if samples.numel():
            least = min(least, samples.min().item())
            most = max(most, samples.max().item())
    if count == 0:
        return ()
    if beyond <= MOST_BEYOND * count:
        if most - least < LEAST_FILLED * (high - low):
            return (
                f"warning: {options.data}: all samples lie within {least:g} to {most:g}, a small "
                f"part of --range {low:g}-{high:g}; give black and white of these files, or leave "
                "it out",
            )
        return ()
    share = "all" if beyond == count else f"{100 * beyond / count:.0f} % of the"
    found = (
        f"{options.data}: {share} samples lie beyond --range {low:g}-{high:g} (they are {least:g} "
        f"to {most:g}); give black and white of these files, or leave --range out"
    )
    if beyond == count:
        raise TrainingError(found)
    return (f"warning: {found}",)


def _deep_samples(options: TrainOptions) -> Iterator[Tensor]:
    """Yield the samples above 8 bits that mean something, (pixels, C) float64, page by page."""
    for _, path in data_files(options):
        for page in read_pages(path):
            if page.samples.dtype != torch.uint8:
                samples = page.with_outliers(page.samples).double()
                yield samples.flatten(0, 1) if page.kept is None else samples[~page.kept.mask]
