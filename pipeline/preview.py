"""`--preview`: a sheet of crops, as they are and denoised at three strengths, to choose by eye.

Two crops of each of a few images: where it has most detail, which denoising may lose, and where it
is smoothest, which shows the noise that is left. They equal what a batch makes of these places.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from denoise_batch.kernels import ImageError, OptionError

from .device import device_failures
from .files.atomic import atomic_write
from .files.images import read_pages
from .files.metadata import upright
from .files.pixels import DecodedImage, to_pil
from .files.scan import PREVIEW, Job
from .models import LARGEST_LEVEL
from .options import DenoiseOptions, check_writable
from .progress import Stop
from .reports.pictures import in_8_bit
from .streaming.denoiser import BatchDenoiser
from .streaming.large import on_disk_if_large
from .streaming.manifest import Storage
from .streaming.result import Result
from .streaming.session import Session
from .streaming.stream import LocalEngine, weights_for
from .text import printable

MOST = 50  # images
CROP_PX = 320
LEVELS = (0.7, 1.0, 1.4)  # factors of the level
STRENGTHS = (0.5, 0.75, 1.0)  # factors of the strength, for networks that take no level
_REDUCED = 8  # what a crop is chosen by: means of so many pixels a side
_MIDDLE = 128  # a smooth place of middle brightness shows its noise best
_TONE = 0.02  # of steps between neighbours, for each level that its mean is off the middle
_MARK = b"denoise-batch preview"


@dataclass(frozen=True)
class Variant:
    """One of the three ways to denoise.

    Attributes:
        option: what asks `denoise-batch` for it, such as `--noise-level 0.7x`.
        denoiser: the network with this option.
    """

    option: str
    denoiser: BatchDenoiser


@dataclass(frozen=True)
class Crop:
    """One place of an image.

    Attributes:
        what: is to be seen there.
        pictures: as it is, then by each variant; upright, in 8 bit.
    """

    what: str
    pictures: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Preview:
    """One image of the sheet.

    Attributes:
        name: of the image.
        size: (width, height).
        levels_255: noise levels that the network was told, by variant; empty if it takes none.
        crops: its places.
        problem: why there are none.
    """

    name: str
    size: tuple[int, int] = (0, 0)
    levels_255: tuple[float, ...] = ()
    crops: tuple[Crop, ...] = ()
    problem: str = ""


def write_preview(
    options: DenoiseOptions,
    count: int,
    storage: Storage,
    warn: Callable[[str], None],
    stop: Stop,
) -> tuple[tuple[Path, ...], int]:
    """Write a page and a picture of so many images into the current folder, and nothing else.

    Args:
        options: of the batch.
        count: how many; spread over the batch, another one for each that fails.
        storage: where its files come from.
        warn: called with why an image cannot be shown.
        stop: ends it before the next image, with nothing written.

    Returns:
        The files, none if every image failed, and the exit code, as of a batch.

    Raises:
        OptionError: they cannot be written or are somebody else's, or an option does not fit.
        NoImagesError: the inputs hold no image.
        DeviceError: the device does not exist, or failed.
        WeightsError: the weights cannot be used.
    """
    if not 1 <= count <= MOST:
        raise OptionError(f"--preview {count}: from 1 to {MOST} images")
    files = _files()
    device = "cuda" if options.device == "cuda:all" else options.device
    options = replace(options, device=device, engine="local", ray_address=None, measure=False)
    with Session(options, storage) as session:
        jobs = session.jobs()
        weights = session.engine.weights_file.stem
    ways = variants(options, storage)
    previews = []
    for image in _previews(jobs, count, options, storage, ways):
        if stop:
            return (), 0
        if image.problem:
            warn(image.problem)
        previews.append(image)
    failed = sum(bool(image.problem) for image in previews)
    if failed == len(previews):
        return (), 6
    names = [way.option for way in ways]
    title = f"Preview: {len(previews) - failed} of {len(jobs)} images"
    sheets = _html(title, previews, names, weights), _png(previews, names)
    for path, data in zip(files, sheets, strict=True):
        try:
            atomic_write(path, data)
        except OSError as error:
            raise OptionError(f"--preview: {path}: cannot be written: {error.strerror}") from error
    return files, 1 if failed else 0


def _files() -> tuple[Path, Path]:
    """The page and the picture, checked before any work."""
    files = Path.cwd() / f"{PREVIEW}.html", Path.cwd() / f"{PREVIEW}.png"
    check_writable("--preview", files[0])
    for path in files:
        if path.exists() and not _is_ours(path):
            raise OptionError(
                f"--preview: {path} was not written by --preview; rename it, or run this in "
                "another folder"
            )
    return files


def variants(options: DenoiseOptions, storage: Storage) -> list[Variant]:
    """Load the network with three levels around the options' own, or three strengths up to it."""
    takes_level = weights_for(options)[1].network.spec.takes_level
    chosen = []
    for factor in LEVELS if takes_level else STRENGTHS:
        if not takes_level:
            name, value = "strength", f"{options.strength * factor:.3g}"
            own = replace(options, strength=float(value))
        else:
            name = "noise-level"
            if options.level is None:
                value = f"{min(10.0, max(0.1, options.level_factor * factor)):.3g}x"
            else:
                value = f"{min(255.0, 255 * options.level * factor):.3g}"
            own = replace(options, noise_level=value)
        chosen.append(Variant(f"--{name} {value}", LocalEngine(own, storage).denoiser))
    return chosen


def _previews(
    jobs: Sequence[Job],
    count: int,
    options: DenoiseOptions,
    storage: Storage,
    ways: Sequence[Variant],
) -> Iterator[Preview]:
    count = min(count, len(jobs))
    spread = [round((at + 0.5) * len(jobs) / count - 0.5) for at in range(count)]
    others = [at for at in range(len(jobs)) if at not in set(spread)]
    shown = 0
    for at in (*spread, *others):
        if shown == count:
            return
        job = jobs[at]
        try:
            if job.fault:
                raise ImageError(job.fault)
            storage.fetch(job.source)
            page = read_pages(job.source, on_disk_if_large(), options.value_range)[0]
            with device_failures(ways[0].denoiser.device):
                image = _preview(job.name, page, ways)
            shown += 1
        except ImageError as error:
            failed = storage.finish(Result(job, "failed", str(error)))  # in the user's names
            image = Preview(job.name, problem=failed.reason)
        else:
            storage.finish(Result(job, "done"))
        yield image


def _preview(name: str, page: DecodedImage, ways: Sequence[Variant]) -> Preview:
    height, width = page.size
    levels = [way.denoiser.level_of(page) for way in ways]
    crops = []
    for what, rows, columns in places(page):
        parts = [page.samples[rows, columns]]
        for way, level in zip(ways, levels, strict=True):
            parts.append(way.denoiser.denoise_part(page, rows, columns, level))
        crops.append(Crop(what, tuple(_picture(page, part) for part in parts)))
    told = tuple(255 * min(float(level), LARGEST_LEVEL) for level in levels if level is not None)
    return Preview(name, (width, height), told, tuple(crops))


def _picture(page: DecodedImage, samples: torch.Tensor) -> Image.Image:
    return upright(to_pil(in_8_bit(samples.contiguous(), page.value_range)), page.metadata)


def places(page: DecodedImage) -> list[tuple[str, slice, slice]]:
    """Return what is to be seen, rows and columns of the places to look at."""
    height, width = page.size
    tall, wide = min(CROP_PX, height), min(CROP_PX, width)
    if (tall, wide) == (height, width):
        return [("whole image", slice(0, height), slice(0, width))]
    gray = to_pil(in_8_bit(page.samples, page.value_range)).convert("L").reduce(_REDUCED)
    values = torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8)
    values = values.view(gray.height, gray.width).float()
    # Steps between neighbours; the last row and column have none.
    steps = torch.zeros_like(values)
    steps[:-1] += values.diff(dim=0).abs()
    steps[:, :-1] += values.diff(dim=1).abs()
    detail, mean = _means(steps, tall, wide), _means(values, tall, wide)
    smooth = -detail - _TONE * (mean - _MIDDLE).abs()
    found = {}
    for what, scores in (("detail", detail), ("smooth", smooth)):
        row, column = divmod(int(scores.argmax()), scores.shape[1])
        top = min(height - tall, row * _stride(tall))
        left = min(width - wide, column * _stride(wide))
        found[top, left] = what, slice(top, top + tall), slice(left, left + wide)
    return list(found.values())


def _stride(side: int) -> int:
    """Distance of the places to choose from, in pixels."""
    return max(1, side // _REDUCED // 4) * _REDUCED


def _means(values: torch.Tensor, tall: int, wide: int) -> torch.Tensor:
    """Mean of the reduced values in each place of this height and width."""
    for dim, side in ((0, tall), (1, wide)):
        size = min(values.shape[dim], max(1, side // _REDUCED))
        values = values.unfold(dim, size, _stride(side) // _REDUCED).mean(-1)
    return values


def _html(title: str, previews: Sequence[Preview], options: Sequence[str], weights: str) -> bytes:
    from .reports.html import page_environment  # with Jinja2, which other runs do not need
    from .reports.pictures import png_uri

    environment = page_environment()
    environment.filters["png"] = png_uri
    template = environment.get_template("preview.html")
    return template.render(
        title=title, previews=previews, options=options, weights=weights, mark=_MARK.decode()
    ).encode()


_GAP, _LINE = 10, 18  # pixels of the picture


def _png(previews: Sequence[Preview], options: Sequence[str]) -> bytes:
    """The sheet as one picture: a row for each crop, a column for the input and each variant."""
    rows = [(image, crop) for image in previews for crop in image.crops]
    widest = max((crop.pictures[0].width for _, crop in rows), default=CROP_PX)
    widest = max(widest, 200)  # as wide as its caption
    height = sum(crop.pictures[0].height + 2 * _LINE + _GAP for _, crop in rows) + 2 * _GAP
    sheet = Image.new("RGB", (4 * (widest + _GAP) + _GAP, max(height, 60)), "#f6f7f9")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for image, crop in rows:
        head = printable(f"{image.name}, {image.size[0]}x{image.size[1]}: {crop.what}")
        draw.text((_GAP, top), head, "#16202c", font)
        top += _LINE
        levels = [f" (level {level:.1f})" for level in image.levels_255] or [""] * len(options)
        captions = ["input", *(a + b for a, b in zip(options, levels, strict=True))]
        for column, (caption, picture) in enumerate(zip(captions, crop.pictures, strict=True)):
            left = _GAP + column * (widest + _GAP)
            draw.text((left, top), caption, "#5a6675", font)
            sheet.paste(picture.convert("RGB"), (left, top + _LINE))
        top += _LINE + crop.pictures[0].height + _GAP
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", _MARK.decode())
    file = io.BytesIO()
    sheet.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK in file.read(1024)
    except OSError:
        return False
