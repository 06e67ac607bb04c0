"""Score weights as the course paper does: 1 000 held-out 32×32 tiles with `subpixel:8` noise.

usage: python scripts/data/score_protocol.py CORPUS WEIGHTS...

WEIGHTS are files of denoise-train, or the course paper's own (tensors conv1, conv2, tconv1,
tconv2), for values in [0, 1] without normalisation or margin.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from denoise_batch.metrics import mse, psnr, psnr_of_mse
from denoise_batch.models import Network, load_weights
from denoise_batch.training.data import VALIDATION_SEED, split_photographs, validation_tiles
from denoise_batch.training.noise import SubpixelNoise

AUTHORS_LAYERS = {"conv1": "0", "conv2": "2", "tconv1": "4", "tconv2": "6"}


def main() -> None:
    """Print one line of JSON for the noisy tiles and for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    options = parser.parse_args()
    noise, cpu = SubpixelNoise(8), torch.device("cpu")
    photographs = split_photographs(options.corpus, 256, 0.2).validation
    tiles = validation_tiles(
        photographs, noise, count=1000, tile_px=32, seed=VALIDATION_SEED, device=cpu
    )
    print_score("noisy", tiles.noisy, tiles.clean)
    for path in options.weights:
        network = load_any(path)
        output = torch.cat([network(part) for part in tiles.noisy.split(50)])
        print_score(str(path), output, tiles.clean)


def load_any(path: Path) -> Callable[[Tensor], Tensor]:
    """Load our weights as a network, the course paper's as the layers of Architecture 1."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if "tconv1.weight" not in names:
            return load_weights(path).network
        layers = Network("tconv").eval().layers
        layers.load_state_dict(
            {
                f"{ours}.{kind}": file.get_tensor(f"{theirs}.{kind}")
                for theirs, ours in AUTHORS_LAYERS.items()
                for kind in ("weight", "bias")
            }
        )
    return layers


def print_score(name: str, images: Tensor, clean: Tensor) -> None:
    """Print the PSNR of one MSE over all tiles, and averaged over tiles."""
    each = [psnr(image, target) for image, target in zip(images, clean, strict=True)]
    row = {
        "images": name,
        "psnr": round(psnr_of_mse(mse(images, clean)), 3),
        "psnr_mean": round(sum(each) / len(each), 3),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
