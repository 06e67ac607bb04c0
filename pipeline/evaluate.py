"""PSNR and SSIM of weights on a folder of clean images with synthetic noise."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError, NoImagesError

from .device import resolve_device, torch_dtype
from .files.images import read_image
from .files.scan import scan
from .metrics import mse, psnr_of_mse, ssim
from .models import find_weights, load_weights
from .options import EvalOptions
from .streaming.denoiser import Forward


@dataclass(frozen=True)
class Score:
    """One image under one noise.

    Attributes:
        name: path below the data folder.
        noise: as `--noise` spells it.
        mse_in: of the noisy image.
        mse_out: of the denoised image.
        ssim_in: of the noisy image.
        ssim_out: of the denoised image.
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
    """A noise's scores over all images.

    Attributes:
        noise: as `--noise` spells it.
        psnr_in: dB, averaged over the images.
        psnr_out: likewise.
        ssim_in: averaged over the images.
        ssim_out: likewise.
        set_psnr_in: dB of one MSE over all pixels, as the report's code does.
        set_psnr_out: likewise.
    """

    noise: str
    psnr_in: float
    psnr_out: float
    ssim_in: float
    ssim_out: float
    set_psnr_in: float
    set_psnr_out: float


def evaluate(
    options: EvalOptions, on_score: Callable[[Score], None] = lambda score: None
) -> list[Score]:
    """Score every image under every noise; the outputs are compared as they are, unrounded.

    Each image's noise depends on the seed, the image's name and the noise model alone.

    Raises:
        NoImagesError: the folder holds no image.
        ImageError: an image cannot be read.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """
    device = resolve_device(options.device)
    network = load_weights(find_weights(options.weights)).network.to(device)
    network.set_compute_dtype(torch_dtype(options.precision))
    forward = Forward(network, tta=options.tta)
    scores = []
    for job in scan([str(options.data)], Path("unused-output")):
        clean = read_image(job.source).to_unit()
        if options.is_gray and len(clean) == 3:
            clean = _luminance(clean)
        for noise in options.noises:
            score = _score(forward, clean, job.name, noise, options, device)
            scores.append(score)
            on_score(score)
    if not scores:
        raise NoImagesError(f"{options.data}: no images")
    return scores


def means(scores: Sequence[Score]) -> list[Mean]:
    """The averages of every noise, in the order of their first appearance."""
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


def _score(
    forward: Forward,
    image: Tensor,
    name: str,
    noise: str,
    options: EvalOptions,
    device: torch.device,
) -> Score:
    model = options.model(noise)
    height, width = (extent // model.factor * model.factor for extent in image.shape[1:])
    source = image[None, :, :height, :width]
    if min(source.shape[2:]) < 11 * model.factor:
        raise ImageError(f"{name}: too small for {noise}: {11 * model.factor} pixels a side")
    digest = hashlib.sha256(f"{options.seed}:{noise}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    noisy, clean = model.draw(source, generator), model.clean(source)[0]
    margin = forward.network.spec.margin
    rows, columns = (slice(margin, margin + extent) for extent in noisy.shape[2:])
    denoised = forward(forward.network.pad(noisy.to(device)))[0, :, rows, columns].to("cpu")
    return Score(
        name,
        noise,
        mse(noisy[0], clean),
        mse(denoised, clean),
        ssim(noisy[0], clean),
        ssim(denoised, clean),
        clean.shape[1] * clean.shape[2],
    )


def _luminance(image: Tensor) -> Tensor:
    """ITU-R BT.601 luma, rounded to 8 bit as Pillow's L is."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return torch.round((image * weights).sum(0, keepdim=True) * 255) / 255
