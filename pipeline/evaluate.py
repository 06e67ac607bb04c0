"""Score weights on a folder of clean images with synthetic noise: PSNR and SSIM."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError, NoImagesError, OptionError

from .device import device_failures, precision_on, resolve_device, torch_dtype
from .files.images import read_pages
from .files.scan import scan
from .metrics import luma, mse, psnr_of_mse, ssim
from .models import find_weights, load_weights
from .options import parse_noise_level
from .streaming.denoiser import Forward, Levels
from .training.noise import parse_noise

MOST_BEYOND = 0.9  # of a page's samples: pictures of another range of values


@dataclass(frozen=True)
class EvalOptions:
    """One run of denoise-eval.

    Attributes:
        weights: a file or a shipped name.
        data: folder of clean images.
        noises: noise models, each as `--noise` spells it.
        seed: of the noise.
        is_gray: score luminance instead of colour.
        device: auto, cpu, cuda, cuda:N, mps or xpu.
        precision: "fp32", or on a GPU "bf16" or "fp16".
        tta: average over the eight rotated and flipped versions of every image.
        noise_level: that the network is told, as `--noise-level` of denoise-batch spells it.
        value_range: black and white of samples above 8 bits; None: as the weights say, or as
            denoise-batch finds them.
    """

    weights: str
    data: Path
    noises: tuple[str, ...]
    seed: int = 0
    is_gray: bool = False
    device: str = "auto"
    precision: str = "fp32"
    tta: bool = False
    noise_level: str = "auto"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise OptionError(f"--precision {self.precision!r}: choose fp32, bf16, fp16")
        parse_noise_level(self.noise_level)
        for noise in self.noises:
            parse_noise(noise)


@dataclass(frozen=True)
class Score:
    """Scores of one image with one noise model.

    Attributes:
        name: path below the data folder; with the number of the page, if there are several.
        noise: the model, as spelled in `--noise`.
        mse_in: mean squared error of the noisy image.
        mse_out: mean squared error of the denoised image.
        ssim_in: SSIM of the noisy image.
        ssim_out: SSIM of the denoised image.
        pixels: number of pixels.
    """

    name: str
    noise: str
    mse_in: float
    mse_out: float
    ssim_in: float
    ssim_out: float
    pixels: int


@dataclass(frozen=True)
class Mean:
    """Scores of one noise model over all images; `_in` of the noisy, `_out` of the denoised ones.

    Attributes:
        noise: the model, as spelled in `--noise`.
        psnr_in: dB, averaged over images.
        psnr_out: dB, averaged over images.
        ssim_in: averaged over images.
        ssim_out: averaged over images.
        set_psnr_in: dB of one MSE over all pixels, as the course paper's code computes it.
        set_psnr_out: dB of one MSE over all pixels.
    """

    noise: str
    psnr_in: float
    psnr_out: float
    ssim_in: float
    ssim_out: float
    set_psnr_in: float
    set_psnr_out: float


def evaluate(options: EvalOptions) -> list[Score]:
    """Score every image with every noise model; outputs are compared unrounded.

    Each image's noise depends only on the seed, the image's name and the noise model; it is added
    to what `denoise-batch` would show the network. Every page of a file is an image.

    Raises:
        NoImagesError: the folder holds no images.
        ImageError: an image cannot be read, or is too small for a noise model.
        OptionError: the device does not compute in the precision.
        DeviceError: the device is not available.
        WeightsError: the weights cannot be used.
    """
    scorer = Scorer(options)
    scores = []
    for name, clean in pictures(options.data, scorer.value_range):
        if options.is_gray and len(clean) == 3:
            clean = torch.round(luma(clean) * 255) / 255  # 8 bits, as Pillow's mode L
        for noise in options.noises:
            scores.append(_score(scorer, clean, name, noise))
    return scores


def pictures(folder: Path, value_range: tuple[float, float] | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the values (C, H, W) of every page, as `denoise-batch` sees them.

    Raises:
        NoImagesError: the folder holds no images.
        ImageError: an image cannot be read.
    """
    jobs = scan([str(folder)], Path("unused-output"))
    if not jobs:
        raise NoImagesError(f"{folder}: no images")
    for job in jobs:
        pages = read_pages(job.source, value_range=value_range)
        for number, page in enumerate(pages, 1):
            if page.kept is not None and bool(page.kept.mask.all()):
                raise ImageError(f"{job.source}: page {number} has no pixel with a value")
            beyond = 0.0 if page.outliers is None else page.outliers.mask.float().mean()
            if value_range and beyond > MOST_BEYOND:
                low, high = value_range
                raise ImageError(
                    f"{job.source}: nearly all samples lie beyond {low:g}-{high:g}, the --range "
                    "that the weights were trained with"
                )
            yield job.name + (f", page {number}" if len(pages) > 1 else ""), page.to_unit()


def common_range(weights: Sequence[str]) -> tuple[float, float] | None:
    """Return the range of samples above 8 bits that weights to compare were trained with.

    Returns:
        That of those that have one; None if none has.

    Raises:
        OptionError: two ranges differ.
        WeightsError: weights cannot be used.
    """
    ranges = {name: load_weights(find_weights(name)).value_range for name in weights}
    found = {name: ends for name, ends in ranges.items() if ends is not None}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} with {low:g}-{high:g}" for name, (low, high) in found.items())
        raise OptionError(
            f"WEIGHTS were trained with different --range values: {said}; they see the same "
            "picture differently, so evaluate them separately"
        )
    return next(iter(found.values()), None)


def means(scores: Sequence[Score]) -> list[Mean]:
    """Average the scores of every noise model, in order of first appearance."""
    result = []
    for noise in dict.fromkeys(score.noise for score in scores):
        group = [score for score in scores if score.noise == noise]
        count, pixels = len(group), sum(score.pixels for score in group)
        result.append(
            Mean(
                noise,
                sum(psnr_of_mse(score.mse_in) for score in group) / count,
                sum(psnr_of_mse(score.mse_out) for score in group) / count,
                sum(score.ssim_in for score in group) / count,
                sum(score.ssim_out for score in group) / count,
                psnr_of_mse(sum(score.mse_in * score.pixels for score in group) / pixels),
                psnr_of_mse(sum(score.mse_out * score.pixels for score in group) / pixels),
            )
        )
    return result


class Scorer:
    """Adds noise to images and denoises them, as the options say.

    Attributes:
        value_range: black and white of samples above 8 bits, by the options or the weights; None:
            as found.

    Raises:
        OptionError: the device does not compute in the precision.
        DeviceError: the device is not available, or failed.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: EvalOptions) -> None:
        self._options = options
        self._device = resolve_device(options.device)
        weights = load_weights(find_weights(options.weights))
        network = weights.network
        with device_failures(self._device):
            network.to(self._device)
        network.set_compute_dtype(torch_dtype(precision_on(options.precision, self._device)))
        self.value_range = options.value_range or weights.value_range
        self._network = network
        self._forward = Forward(network, tta=options.tta)
        self._levels = Levels(network, *parse_noise_level(options.noise_level))

    def add_noise(self, noise: str, name: str, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy and the clean image, (C, H, W); the name and the seed decide the noise.

        Raises:
            ImageError: the image is too small.
        """
        model = parse_noise(noise)
        height, width = (extent // model.factor * model.factor for extent in image.shape[1:])
        source = image[None, :, :height, :width]
        if min(source.shape[2:]) < 11 * model.factor:
            raise ImageError(
                f"{name}: too small for {noise}, which needs at least {11 * model.factor} pixels "
                "a side"
            )
        digest = hashlib.sha256(f"{self._options.seed}:{noise}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        return model.draw(source, generator)[0], model.clean(source)[0]

    def denoise(self, noisy: Tensor) -> tuple[Tensor, float | None]:
        """Return the denoised image (C, H, W) and the noise level that the network was told.

        The level is in units of 1/255; None for a network that takes none.
        """
        margin = self._network.margin
        rows, columns = (slice(margin, margin + extent) for extent in noisy.shape[1:])
        with device_failures(self._device):
            padded = self._network.pad(noisy[None].to(self._device))
            level = self._levels.of_images(padded)
            denoised = self._forward(padded, level)[0, :, rows, columns].to("cpu")
            return denoised, None if level is None else 255 * level.item()


def _score(scorer: Scorer, image: Tensor, name: str, noise: str) -> Score:
    noisy, clean = scorer.add_noise(noise, name, image)
    denoised, _ = scorer.denoise(noisy)
    return Score(
        name,
        noise,
        mse(noisy, clean),
        mse(denoised, clean),
        ssim(noisy, clean),
        ssim(denoised, clean),
        clean.shape[1] * clean.shape[2],
    )
