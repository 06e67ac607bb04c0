"""Score the estimates made without references, on photographs with known noise.

usage: python scripts/data/score_estimates.py PHOTOGRAPHS [--weights NAME] [--every N] [--mosaic]
                                               [--kinds KIND …] [--sigmas SIGMA …]

Compares, for each kind (colour; gray; 8-bit: colour, rounded and clipped) and each σ, the estimated
with the true σ, and the estimated with the true PSNR of the denoised image. --mosaic joins four
photographs into one, large enough that only tiles are probed.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from denoise_batch.files.images import read_pages
from denoise_batch.metrics import mse, psnr_of_mse
from denoise_batch.models import Network, find_weights, load_weights
from denoise_batch.noise_level import EXACT, SHOWN, Effort, NoiseLevel, noise_level, window_slices
from denoise_batch.quality import (
    MAX_CLIPPED,
    MIN_SIGMA_255,
    WHOLE_PIXELS,
    Estimate,
    block_spreads,
    divergence,
    estimate_mse,
    probe_images,
    probe_tiles,
    tile_slices,
)

SIGMAS = (5, 10, 15, 25, 35, 50)
KINDS = ("colour", "gray", "8-bit")
GRAY = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--every", type=int, default=1, help="use every Nth photograph")
    parser.add_argument("--mosaic", action="store_true", help="join four photographs into one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sigmas", nargs="+", type=int, default=SIGMAS)
    arguments = parser.parse_args()
    network = load_weights(find_weights(arguments.weights)).network
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("kind", "σ", "images", "σ̂ within 10 %", "largest σ̂ error"):
        table.add_column(heading, justify="right")
    for heading in ("estimated", "within 0.5 dB", "mean, dB", "rms, dB", "largest, dB"):
        table.add_column(heading, justify="right")
    for kind in arguments.kinds:
        for sigma in arguments.sigmas:
            images = _images(arguments.photographs, arguments.every, arguments.mosaic)
            table.add_row(kind, str(sigma), *_row(network, kind, sigma, images))
    Console(width=110).print(table)


def _images(folder: Path, every: int, mosaic: bool) -> Iterator[tuple[int, Tensor]]:
    paths = sorted(folder.glob("*.png"))[::every]
    if not mosaic:
        yield from ((index, read_pages(path)[0].to_unit()) for index, path in enumerate(paths))
        return
    for index in range(0, len(paths) - 3, 4):
        pixels = [read_pages(path)[0].to_unit() for path in paths[index : index + 4]]
        height, width = (min(p.shape[axis] for p in pixels) for axis in (1, 2))
        cut = [p[:, :height, :width] for p in pixels]
        yield index, torch.cat([torch.cat(cut[:2], 2), torch.cat(cut[2:], 2)], 1)


def _row(
    network: Network, kind: str, sigma: int, images: Iterator[tuple[int, Tensor]]
) -> list[str]:
    sigma_errors, errors, count = [], [], 0
    for index, photograph in images:
        count += 1
        clean = (photograph * GRAY).sum(0, keepdim=True) if kind == "gray" else photograph
        generator = torch.Generator().manual_seed(1000 * sigma + index)
        noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=generator)
        if kind == "8-bit":
            noisy = torch.round(noisy.clamp(0, 1) * 255) / 255
        step = 1 / 255 if kind == "8-bit" else 0.0
        level = _level(noisy, step, SHOWN)
        if level.is_white and level.sigma_255 >= MIN_SIGMA_255:
            level = _level(noisy, step, EXACT)
        sigma_errors.append(level.sigma_255 / sigma - 1)
        denoised = network(noisy[None]).clone()
        estimate = _estimate(network, noisy, denoised, level)
        if estimate is not None:
            truth = psnr_of_mse(mse(denoised[0], clean))
            errors.append(psnr_of_mse(estimate.mse_out) - truth)
    good = sum(abs(error) <= 0.1 for error in sigma_errors)
    near = sum(abs(error) <= 0.5 for error in errors)
    row = [str(count), f"{good}/{count}", f"{max(sigma_errors, key=abs):+.1%}"]
    if not errors:
        return [*row, "0", "", "", "", ""]
    rms = (sum(error**2 for error in errors) / len(errors)) ** 0.5
    row += [str(len(errors)), f"{near}/{len(errors)}", f"{sum(errors) / len(errors):+.2f}"]
    return [*row, f"{rms:.2f}", f"{max(errors, key=abs):+.2f}"]


def _level(noisy: Tensor, step: float, effort: Effort) -> NoiseLevel:
    places = window_slices(noisy.shape[1], noisy.shape[2], effort.pixels)
    windows = torch.stack([noisy[:, rows, columns] for rows, columns in places])
    return noise_level(windows, effort.stride, step=step, is_lossless=True)


def _estimate(
    network: Network, noisy: Tensor, denoised: Tensor, level: NoiseLevel
) -> Estimate | None:
    clipped = ((noisy <= 0) | (noisy >= 1)).float().mean().item()
    is_rounded = torch.equal((noisy * 255).round() / 255, noisy)
    if not level.is_white or level.white_255 is None or (is_rounded and clipped > MAX_CLIPPED):
        return None
    if noisy.shape[1] * noisy.shape[2] <= WHOLE_PIXELS:
        probe = probe_images(network, noisy[None], denoised)[0]
    else:
        places = tile_slices(noisy.shape[1], noisy.shape[2])
        tiles = torch.stack([noisy[:, rows, columns] for rows, columns in places])
        probe = probe_tiles(lambda stack: network(stack).clone(), tiles)
    mean_response = divergence(probe, block_spreads(denoised)[0])
    if mean_response is None:
        return None
    residual = mse(denoised[0], noisy)
    seen = min(noisy.shape[1] * noisy.shape[2], EXACT.pixels)
    return estimate_mse(residual, mean_response, level.white_255 / 255, len(noisy), seen)


if __name__ == "__main__":
    main()
