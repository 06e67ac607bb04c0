"""How far the blocks carry: PSNR against multiply-adds a pixel, Kodak, colour, Gaussian σ = 25.

Peers of the extra `reproduction`: BM3D (its licence is non-commercial; it is measured here and
never shipped) and OpenCV's non-local means. A peer that is not installed is left out.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lab import Lab
from recipes import Recipe
from torch import Tensor
from trained import layers_of, network_of

from denoise_batch.files.images import read_image
from denoise_batch.kernels import Block, ConvTranspose2d, UpsampleConv2d
from denoise_batch.kernels.layers import Convolution
from denoise_batch.metrics import mse
from denoise_batch.models import find_weights, load_weights
from denoise_batch.training.noise import parse_noise
from denoise_batch.weights import names

NOISE, SIGMA = "gaussian:25", 25 / 255
PROBE_PX = 256
SLOW = "BM3D"  # a minute and more for a photograph
# OpenCV's strength of filtering; the first photograph chooses, in its favour.
NLM_STRENGTHS = (10, 15, 20, 25, 30)

Denoise = Callable[[Tensor], Tensor]


def measure_cost(lab: Lab, recipes: Mapping[str, Recipe]) -> None:
    """Score every contestant on every photograph; what was scored before stays.

    Result: noise; macs (multiply-adds a pixel of a 256×256 image; none for the peers); mse and
    seconds of processor time (contestant → photograph → value).
    """
    result = lab.result("cost") or {"noise": NOISE, "macs": {}, "mse": {}, "seconds": {}}
    contestants: dict[str, Denoise] = {}
    for name, recipe in recipes.items():
        recipe = replace(recipe, noise=NOISE)
        if lab.run("cost-training", name, recipe, lab.scale.noise_steps, 2):
            result["mse"].pop(name, None)
        network = network_of(recipe, lab.checkpoint("cost-training", name), lab.protocol)
        contestants[name], result["macs"][name] = network, multiply_adds(network)
    for width in lab.scale.widths:
        name = f"unet-{width}"
        recipe = Recipe(
            name, lr=2e-3, schedule="cosine", optimizer="muon", clip_norm=0.1, batch_size=8,
            is_shuffled=True, is_augmented=True, noise=NOISE, targets="clean",
        )  # fmt: skip
        if lab.run("cost-training", name, recipe, lab.scale.noise_steps, 2):
            result["mse"].pop(name, None)
        narrow = layers_of(recipe, lab.checkpoint("cost-training", name))
        contestants[name], result["macs"][name] = narrow, multiply_adds(narrow)
    default = names()[0]
    contestants[default] = unet = load_weights(find_weights(default)).network
    result["macs"][default] = multiply_adds(unet)
    for former in result["macs"].keys() - contestants.keys():
        del result["macs"][former]
        result["mse"].pop(former, None)
    contestants |= _peers()
    if lab.kodak is None:
        lab.keep("cost", result)
        return
    files = sorted(lab.kodak.glob("*.png"))[: lab.scale.kodak]
    for number, file in enumerate(files):
        clean = read_image(file).to_unit()
        noisy = _noisy(clean, file.name)
        result["mse"].setdefault("noisy", {})[file.name] = mse(noisy, clean)
        for name, denoise in contestants.items():
            errors = result["mse"].setdefault(name, {})
            if file.name in errors or (name == SLOW and number >= lab.scale.slow_kodak):
                continue
            started = time.process_time()
            errors[file.name] = mse(denoise(noisy[None])[0], clean)
            times = result["seconds"].setdefault(name, {})
            times[file.name] = time.process_time() - started
        if number == 0:  # the first photograph chooses
            strengths = [name for name in contestants if name.startswith("NLM")]
            best = min(strengths, key=lambda name: result["mse"][name][file.name], default="")
            for name in set(strengths) - {best}:
                del contestants[name]
        lab.keep("cost", result)


def multiply_adds(network: Block) -> float:
    """Multiply-adds of the convolutions for each pixel of a 256×256 image."""
    total = 0.0

    def counted(
        conv: Convolution, op: Callable[..., Tensor], *inputs: Tensor, **fuse: Any
    ) -> Tensor:
        nonlocal total
        output = op(*inputs, **fuse)
        small = inputs[0] if isinstance(conv, ConvTranspose2d) else output
        total += conv.weight.numel() * small.shape[2] * small.shape[3]
        return output

    originals = []
    for conv in _convolutions(network):
        originals.append((conv, conv._convolve))
        conv._convolve = partial(counted, conv, conv._convolve)
    network.eval()(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
    for conv, op in originals:
        conv._convolve = op
    return total / PROBE_PX**2


def _convolutions(block: Block) -> list[Convolution]:
    if isinstance(block, UpsampleConv2d) and block.merged is not None:
        return [block.merged]  # counted as the convolution that it stands for
    own = [block] if isinstance(block, Convolution) else []
    return own + [conv for _, child in block.named_children() for conv in _convolutions(child)]


def _noisy(clean: Tensor, name: str) -> Tensor:
    """The noise that denoise-eval adds to this file."""
    digest = hashlib.sha256(f"0:{NOISE}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return parse_noise(NOISE).draw(clean[None], generator)[0]


def _peers() -> dict[str, Denoise]:
    """BM3D and non-local means, whichever are installed."""
    peers: dict[str, Denoise] = {}
    try:
        from bm3d import bm3d_rgb
    except ImportError:
        print("BM3D is not installed (extra: reproduction)")
    else:

        def bm3d(noisy: Tensor) -> Tensor:
            image = noisy[0].permute(1, 2, 0).double().numpy()
            return torch.from_numpy(bm3d_rgb(image, SIGMA)).permute(2, 0, 1)[None].float()

        peers[SLOW] = bm3d
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed (extra: reproduction)")
    else:
        for strength in NLM_STRENGTHS:

            def nlm(noisy: Tensor, strength: int = strength) -> Tensor:
                # It takes 8 bits only.
                image = (noisy[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
                found = cv2.fastNlMeansDenoisingColored(
                    image.contiguous().numpy(), None, strength, strength
                )
                return torch.from_numpy(found).permute(2, 0, 1)[None].float() / 255

            peers[f"NLM h={strength}"] = nlm
    return peers
