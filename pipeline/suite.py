"""`denoise-eval --suite`: how weights do on everything that a picture may be.

White noise of all strengths, files of 8 bits, gray, on white paper, cameras, JPEG, coarse noise,
drawn graphics, dots, clean and flat pictures, and pairs of real shots. Floors, if given, say what
must not be worse.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError, NoImagesError, OptionError

from .evaluate import EvalOptions, Scorer, pictures
from .files.images import read_image
from .files.scan import Job, scan
from .metrics import luma, psnr_of_mse
from .streaming.references import find_reference
from .training.graphics import KINDS, draw_graphic

HIGHEST_PSNR = 100.0  # of an unchanged picture
GRAPHICS_PX = 192
# What is drawn in fine dots and lines, as noise may be, and the other kinds but flat ones.
DOTS = ("hatching", "print", "dither", "cells")
GRAPHICS = tuple(kind for kind in KINDS if kind not in (*DOTS, "flat"))
# (height, width) of the flat pictures: multiples of 16, odd, and smaller than a network's halo.
FLAT_SIZES = ((96, 128), (65, 47), (17, 200))
FLAT_COLOURS = ((0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 60), (16, 40, 235))


@dataclass(frozen=True)
class Row:
    """A row of the suite.

    Attributes:
        name: as printed, and as floors name it.
        pictures: "photographs", "gray" or "framed" photographs, "graphics", "dots" or "flat".
        noise: as `--noise` spells it; "" for none.
    """

    name: str
    pictures: str
    noise: str


ROWS = (
    *(
        Row(f"white {sigma}", "photographs", f"gaussian:{sigma}")
        for sigma in (2, 5, 15, 25, 50, 75)
    ),
    *(
        Row(f"8-bit {sigma}", "photographs", f"gaussian:{sigma}+8bit")
        for sigma in (5, 10, 25, 50, 75)
    ),
    Row("gray 25", "gray", "gaussian:25"),
    Row("framed 25", "framed", "gaussian:25+8bit"),
    Row("clean", "photographs", ""),
    Row("gray clean", "gray", ""),
    Row("camera", "photographs", "camera"),
    Row("raw", "photographs", "raw"),
    Row("8-bit 15, JPEG 75", "photographs", "gaussian:15+8bit+jpeg:75"),
    Row("JPEG 75", "photographs", "jpeg:75"),
    Row("coarse 15", "photographs", "correlated:15+8bit"),
    Row("photons 30", "photographs", "poisson:30"),
    Row("signal-dependent", "photographs", "poisson-gaussian+8bit"),
    *(Row(f"graphics {sigma}", "graphics", f"gaussian:{sigma}+8bit") for sigma in (5, 10, 25)),
    Row("graphics clean", "graphics", ""),
    Row("dots 10", "dots", "gaussian:10+8bit"),
    Row("dots clean", "dots", ""),
    Row("flat", "flat", ""),
    Row("flat 25", "flat", "gaussian:25+8bit"),
)


@dataclass(frozen=True)
class RowScore:
    """Scores of a row, over its pictures; PSNR is at most 100 dB.

    Attributes:
        row: its name.
        images: number of pictures.
        psnr_in: dB of the noisy pictures, mean.
        psnr_out: dB of the denoised pictures, mean.
        lowest: dB of the denoised picture that is lowest.
        worst_gain: dB that the least improved picture gained; below 0 it was harmed.
        worst: name of that picture.
        largest: largest deviation of an output from the clean picture, in units of 1/255.
        bias: largest deviation of a picture's mean, in units of 1/255.
        level: mean noise level that the network was told, in units of 1/255; None if it takes none.
        seconds: time of the network, all pictures.
    """

    row: str
    images: int
    psnr_in: float
    psnr_out: float
    lowest: float
    worst_gain: float
    worst: str
    largest: float
    bias: float
    level: float | None
    seconds: float


@dataclass(frozen=True)
class _PictureScore:
    name: str
    psnr_in: float
    psnr_out: float
    largest: float
    bias: float
    level: float | None
    seconds: float


def run_suite(options: EvalOptions, pairs: Sequence[Path] = ()) -> list[RowScore]:
    """Score every row; outputs of rows named "8-bit" and of 8-bit files of pairs are rounded.

    Args:
        options: weights, folder of clean photographs, device; its noises are not used.
        pairs: folders with `noisy/` and `clean/`, the same names in both.

    Raises:
        OptionError: a folder of pairs lacks one of the two, or two have one name, as rows do.
        NoImagesError: a folder holds no images.
        ImageError: an image cannot be read, is too small, or differs in size from its partner.
        DeviceError: the device is not available.
        WeightsError: the weights cannot be used.
    """
    for folder in pairs:
        for part in ("noisy", "clean"):
            if not (folder / part).is_dir():
                raise OptionError(f"--pairs {folder}: needs the folders noisy and clean in it")
    names = [folder.resolve().name for folder in pairs]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--pairs: two folders are named {name}, as their rows would be")
    shots = {f"pairs {name}": _partners(folder) for name, folder in zip(names, pairs, strict=True)}
    scorer = Scorer(options)
    found: dict[str, list[_PictureScore]] = {row.name: [] for row in ROWS}
    for name, picture in pictures(options.data, scorer.value_range):
        for row in ROWS:
            if row.pictures == "photographs" or (row.pictures == "gray" and len(picture) == 3):
                is_gray = row.pictures == "gray"
                clean = (luma(picture) * 255).round() / 255 if is_gray else picture
                found[row.name].append(_score(scorer, row.noise, name, clean))
            elif row.pictures == "framed":
                noisy = scorer.add_noise(row.noise, name, picture)[0]
                both = _framed(noisy), _framed(picture)
                found[row.name].append(_compare(scorer, name, *both, is_8_bit=True))
    drawn = {"graphics": _drawn(GRAPHICS), "dots": _drawn(DOTS), "flat": _flat_pictures()}
    for kind, of_kind in drawn.items():
        for name, picture in of_kind:
            for row in ROWS:
                if row.pictures == kind:
                    found[row.name].append(_score(scorer, row.noise, name, picture))
    for row_name, jobs in shots.items():
        scores = [_compare(scorer, *pair) for pair in _pairs(jobs, scorer.value_range)]
        found[row_name] = scores
    return [_summary(name, scores) for name, scores in found.items() if scores]


def read_floors(path: Path) -> dict[str, dict[str, float]]:
    """Read floors: row → field of `RowScore` → number; `largest` and `bias` are ceilings.

    Raises:
        OptionError: the file cannot be read, or names a field that does not exist.
    """
    try:
        floors = json.loads(path.read_text(encoding="utf-8"))
        known = {"psnr_out", "lowest", "worst_gain", "largest", "bias"}
        unknown = {field for row in floors.values() for field in row} - known
        numbers = [float(number) for row in floors.values() for number in row.values()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"--floors {path}: not a file of floors ({error})") from error
    if unknown or not all(map(math.isfinite, numbers)):
        raise OptionError(f"--floors {path}: use finite {', '.join(sorted(known))}")
    return dict(floors)


def misses(
    scores: Sequence[RowScore], floors: dict[str, dict[str, float]]
) -> dict[tuple[str, str], float]:
    """Return the floors that are not held: (row, field) → floor. Rows that did not run count."""
    found = {score.row: score for score in scores}
    missed = {}
    for row, fields in floors.items():
        for field, floor in fields.items():
            value = getattr(found[row], field) if row in found else math.nan
            is_held = value <= floor if field in ("largest", "bias") else value >= floor
            if not is_held:
                missed[row, field] = floor
    return missed


def _framed(picture: Tensor) -> Tensor:
    """A picture in the middle of white paper, whose margin is an eighth of the shorter side."""
    channels, height, width = picture.shape
    margin = min(height, width) // 8
    paper = picture.new_ones(channels, height + 2 * margin, width + 2 * margin)
    paper[:, margin : margin + height, margin : margin + width] = picture
    return paper


def _drawn(kinds: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Two pictures of each kind, with Pillow's own font: alike on every machine."""
    for kind in kinds:
        for number in range(2):
            yield f"{kind} {number}", draw_graphic(kind, f"suite {number}", GRAPHICS_PX) / 255


def _flat_pictures() -> Iterator[tuple[str, Tensor]]:
    for height, width in FLAT_SIZES:
        for colour in FLAT_COLOURS:
            picture = torch.tensor(colour).view(3, 1, 1).expand(3, height, width) / 255
            yield f"{width}×{height} {colour}", picture


def _partners(folder: Path) -> list[tuple[Job, Path]]:
    """Return the noisy shots of a folder, and where the clean ones are."""
    jobs = scan([str(folder / "noisy")], Path("unused-output"))
    if not jobs:
        raise NoImagesError(f"{folder / 'noisy'}: no images")
    found = []
    for job in jobs:
        partner = find_reference(folder / "clean", job.name)
        if partner is None:
            raise ImageError(f"{job.source}: no clean image of this name in {folder / 'clean'}")
        found.append((job, partner))
    return found


def _pairs(
    shots: Sequence[tuple[Job, Path]], value_range: tuple[float, float] | None
) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """Yield names, noisy and clean pictures, and whether the noisy ones have 8 bits."""
    for job, partner in shots:
        page = read_image(job.source, value_range)
        own = page.value_range  # of both: noise makes a file's estimated range wider
        is_deep = page.samples.dtype != torch.uint8
        both = (own.offset, own.offset + own.span) if is_deep else value_range
        other = read_image(partner, both)
        if is_deep and other.samples.dtype != torch.uint8:
            other = replace(other, value_range=own)  # one curve, too
        noisy, clean = page.to_unit(), other.to_unit()
        if noisy.shape != clean.shape:
            raise ImageError(f"{job.source}: differs in size from {partner}")
        yield job.name, noisy, clean, page.samples.dtype == torch.uint8


def _score(scorer: Scorer, noise: str, name: str, clean: Tensor) -> _PictureScore:
    noisy = scorer.add_noise(noise, name, clean)[0] if noise else clean
    return _compare(scorer, name, noisy, clean, is_8_bit="8bit" in noise)


def _compare(
    scorer: Scorer, name: str, noisy: Tensor, clean: Tensor, is_8_bit: bool
) -> _PictureScore:
    started = time.perf_counter()
    denoised, level = scorer.denoise(noisy)
    seconds = time.perf_counter() - started
    if is_8_bit:
        denoised = (denoised.clamp(0, 1) * 255).round() / 255
    error = denoised.double() - clean.double()
    return _PictureScore(
        name,
        _psnr(noisy.double() - clean.double()),
        _psnr(error),
        255 * error.abs().max().item(),
        255 * error.mean((1, 2)).abs().max().item(),
        level,
        seconds,
    )


def _psnr(error: Tensor) -> float:
    return min(HIGHEST_PSNR, psnr_of_mse(error.square().mean().item()))


def _summary(row: str, scores: Sequence[_PictureScore]) -> RowScore:
    count = len(scores)
    worst = min(scores, key=lambda score: score.psnr_out - score.psnr_in)
    levels = [score.level for score in scores if score.level is not None]
    return RowScore(
        row,
        count,
        sum(score.psnr_in for score in scores) / count,
        sum(score.psnr_out for score in scores) / count,
        min(score.psnr_out for score in scores),
        worst.psnr_out - worst.psnr_in,
        worst.name,
        max(score.largest for score in scores),
        max(score.bias for score in scores),
        sum(levels) / len(levels) if levels else None,
        sum(score.seconds for score in scores),
    )
