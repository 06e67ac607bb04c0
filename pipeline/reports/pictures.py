"""Images of an HTML report as data URIs: thumbnails, input and output, crops, residual."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageFilter, ImageStat
from torch import Tensor

from denoise_batch.kernels import ImageError

from ..files.images import read_pages
from ..files.metadata import upright
from ..files.pixels import DecodedImage, to_pil
from ..files.ranges import ValueRange
from ..streaming.large import on_disk_if_large

VIEW_PX = 1280  # long side of an image in full, which more may have if there is room
_MOST_WEBP_PX = 16_383  # a side
_FAST_PIXELS = 2_000_000  # larger ones are compressed with less effort
RESIDUAL_PX = 600
CROP_PX = 96
AMPLIFICATION = 4  # factor of the residual
_STRIP_ROWS = 512


@dataclass(frozen=True)
class View:
    """One image in full, as data URIs.

    Attributes:
        size: width and height of `noisy` and `denoised`.
        scale: of these to the file's.
        noisy: the input.
        denoised: the output.
        crops: (caption, data URI) of the region that changed most, at full resolution.
        residual: input − output, amplified around gray.
    """

    size: tuple[int, int]
    scale: float
    noisy: str
    denoised: str
    crops: tuple[tuple[str, str], ...]
    residual: str


@dataclass(frozen=True)
class Thumbnails:
    """A small input and output, as data URIs.

    Attributes:
        noisy: the input.
        denoised: the output.
    """

    noisy: str
    denoised: str


def load(path: Path, scale: ValueRange | None = None) -> tuple[Image.Image, ValueRange]:
    """Return a file's first page as a viewer would show it, upright and in 8 bit, and its range.

    Args:
        path: the file.
        scale: range of values to show a float image in; its own by default.

    Raises:
        ImageError: the file cannot be read.
    """
    page = read_pages(path, on_disk_if_large())[0]
    own = page.value_range
    return _shown(page, scale if scale and page.samples.is_floating_point() else own), own


def thumbnails(noisy: Image.Image, denoised: Image.Image, side_px: int) -> Thumbnails:
    """Return both images at no more than `side_px` on the long side."""
    return Thumbnails(
        _data_uri(_shrunk(noisy, side_px), 62), _data_uri(_shrunk(denoised, side_px), 62)
    )


def view(
    noisy: Image.Image, denoised: Image.Image, clean: Image.Image | None, most_pixels: int = 0
) -> View:
    """Return an image in full, with a crop of `clean` if it has the same size.

    Args:
        noisy: the input.
        denoised: the output.
        clean: the reference, if there is one.
        most_pixels: a larger image is shrunk to so many, but no further than to `VIEW_PX`.

    Raises:
        ImageError: input and output differ in size.
    """
    if noisy.size != denoised.size:
        sizes = " and ".join("{}×{}".format(*image.size) for image in (noisy, denoised))
        raise ImageError(f"input and output differ in size: {sizes}")
    if noisy.mode != denoised.mode:  # WebP stores gray images in colour
        noisy, denoised = noisy.convert("RGB"), denoised.convert("RGB")
    residual = _residual(noisy, denoised)
    box = _largest_change(noisy, denoised)
    crops = [("Noisy", noisy), ("Denoised", denoised)]
    if clean is not None and clean.size == noisy.size:
        crops.append(("Reference", clean.convert(noisy.mode)))
    crops.append((f"Removed, ×{AMPLIFICATION}", residual))
    scale = min(1.0, (most_pixels / (noisy.width * noisy.height)) ** 0.5)
    side_px = min(_MOST_WEBP_PX, max(VIEW_PX, int(scale * max(noisy.size))))
    small = _shrunk(noisy, side_px)
    return View(
        small.size,
        small.width / noisy.width,
        _data_uri(small, 82),
        _data_uri(_shrunk(denoised, side_px), 88),
        tuple((caption, _data_uri(image.crop(box), 90)) for caption, image in crops),
        _data_uri(_shrunk(residual, RESIDUAL_PX), 60),
    )


def _shown(page: DecodedImage, scale: ValueRange) -> Image.Image:
    return upright(to_pil(in_8_bit(page.samples, scale)), page.metadata)


def in_8_bit(samples: Tensor, scale: ValueRange) -> Tensor:
    """Return samples (H, W, C) of this range as a viewer would show them, in uint8."""
    if samples.dtype != torch.uint8:
        strips = (
            scale.to_unit(samples[top : top + _STRIP_ROWS])
            .nan_to_num()
            .clamp(0, 1)
            .mul(255)
            .round()
            for top in range(0, len(samples), _STRIP_ROWS)  # a whole page in float32 is large
        )
        samples = torch.cat([strip.to(torch.uint8) for strip in strips])
    return samples


def _shrunk(image: Image.Image, side_px: int) -> Image.Image:
    longest = max(image.size)
    if longest <= side_px:
        return image
    size = tuple(max(1, round(extent * side_px / longest)) for extent in image.size)
    # reducing_gap: average whole blocks first, which is many times faster and looks the same.
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _residual(noisy: Image.Image, denoised: Image.Image) -> Image.Image:
    """Amplified difference around gray: ImageChops.subtract computes (a − b) / scale + offset."""
    return ImageChops.subtract(noisy, denoised, scale=1 / AMPLIFICATION, offset=128)


def _largest_change(noisy: Image.Image, denoised: Image.Image) -> tuple[int, int, int, int]:
    """Box of the `CROP_PX` square with the largest mean change, on a grid of a third of that."""
    width, height = noisy.size
    wide, tall = min(CROP_PX, width), min(CROP_PX, height)
    change = ImageChops.difference(noisy, denoised).convert("L").filter(ImageFilter.BoxBlur(4))
    places = [(x, y) for y in _starts(height, tall) for x in _starts(width, wide)]
    # Means of a coarse map: exact means of thousands of squares would take seconds.
    step = max(1, min(wide, tall) // 8)
    coarse = change.reduce(step)

    def mean(place: tuple[int, int]) -> float:
        x, y = place
        box = (x // step, y // step, max(x // step + 1, (x + wide) // step))
        bottom = max(y // step + 1, (y + tall) // step)
        return ImageStat.Stat(coarse.crop((box[0], box[1], box[2], bottom))).mean[0]

    x, y = max(places, key=mean)
    return x, y, x + wide, y + tall


def _starts(extent: int, side: int) -> list[int]:
    step = max(1, side // 3, (extent - side) // 48)  # at most about 50 × 50 squares
    return [*range(0, extent - side, step), extent - side]


def png_uri(image: Image.Image) -> str:
    """Return an image without any loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _data_uri(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    effort = 4 if image.width * image.height <= _FAST_PIXELS else 1
    image.save(file, "WEBP", quality=quality, method=effort)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
