"""Quality against cost: PSNR and multiply-adds per pixel on Kodak, colour, Gaussian σ = 25.

Peers from the extra `reproduction`, if installed: BM3D (under a non-commercial licence; measured
here, never shipped) and OpenCV's non-local means.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from config import Recipe
from reproduction import Reproduction
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch_networks import torch_equivalent
from training import layers_of, network_of

from denoise_batch.files.images import read_image
from denoise_batch.kernels import Block
from denoise_batch.metrics import mse
from denoise_batch.models import find_weights, load_weights, shipped_names
from denoise_batch.training.noise import parse_noise

NOISE, SIGMA = "gaussian:25", 25 / 255
PROBE_PX = 256
SLOW = "BM3D"  # more than a minute per photograph
# Of OpenCV's filter strengths, the best on the first photograph is used.
NLM_STRENGTHS = (10, 15, 20, 25, 30)

Denoise = Callable[[Tensor], Tensor]


def measure_cost(reproduction: Reproduction, recipes: Mapping[str, Recipe]) -> None:
    """Score every contestant on every photograph that has no score yet.

    Result: noise; macs (multiply-adds per pixel; none for the peers); mse and seconds of processor
    time (contestant → photograph → value).
    """
    result = reproduction.result("cost") or {"noise": NOISE, "macs": {}, "mse": {}, "seconds": {}}
    contestants: dict[str, Denoise] = {}
    for name, recipe in recipes.items():
        recipe = replace(recipe, noise=NOISE)
        if reproduction.run("cost-training", name, recipe, reproduction.scale.noise_steps, 2):
            result["mse"].pop(name, None)
        network = network_of(
            recipe, reproduction.checkpoint("cost-training", name), reproduction.dataset
        )
        contestants[name], result["macs"][name] = network, multiply_adds(network)
    for width in reproduction.scale.widths:
        name = f"unet-{width}"
        recipe = Recipe(
            name, lr=2e-3, schedule="cosine", optimizer="muon", clip_norm=0.1, batch_size=8,
            is_shuffled=True, is_augmented=True, noise=NOISE, targets="clean",
        )  # fmt: skip
        if reproduction.run("cost-training", name, recipe, reproduction.scale.noise_steps, 2):
            result["mse"].pop(name, None)
        narrow = layers_of(recipe, reproduction.checkpoint("cost-training", name))
        contestants[name], result["macs"][name] = narrow, multiply_adds(narrow)
    default = shipped_names()[0]
    contestants[default] = unet = load_weights(find_weights(default)).network
    result["macs"][default] = multiply_adds(unet)
    for former in result["macs"].keys() - contestants.keys():
        del result["macs"][former]
        result["mse"].pop(former, None)
    contestants |= _peers()
    if reproduction.kodak is None:
        reproduction.keep("cost", result)
        return
    files = sorted(reproduction.kodak.glob("*.png"))[: reproduction.scale.kodak]
    for number, file in enumerate(files):
        clean = read_image(file).to_unit()
        noisy = _noisy(clean, file.name)
        result["mse"].setdefault("noisy", {})[file.name] = mse(noisy, clean)
        for name, denoise in contestants.items():
            errors = result["mse"].setdefault(name, {})
            if file.name in errors or (name == SLOW and number >= reproduction.scale.slow_kodak):
                continue
            started = time.process_time()
            errors[file.name] = mse(denoise(noisy[None])[0], clean)
            times = result["seconds"].setdefault(name, {})
            times[file.name] = time.process_time() - started
        if number == 0:
            strengths = [name for name in contestants if name.startswith("NLM")]
            best = min(strengths, key=lambda name: result["mse"][name][file.name], default="")
            for name in set(strengths) - {best}:
                del contestants[name]
        reproduction.keep("cost", result)


def multiply_adds(network: Block) -> float:
    """Return multiply-adds of the convolutions per pixel of a 256×256 image."""
    equivalent = torch_equivalent(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        equivalent(torch.zeros(1, 3, PROBE_PX, PROBE_PX))
    return counter.get_total_flops() / 2 / PROBE_PX**2


def _noisy(clean: Tensor, name: str) -> Tensor:
    """Add the noise that denoise-eval adds to this file."""
    digest = hashlib.sha256(f"0:{NOISE}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return parse_noise(NOISE).draw(clean[None], generator)[0]


def _peers() -> dict[str, Denoise]:
    """Return BM3D and non-local means, if installed."""
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
                # It takes only 8 bits.
                image = (noisy[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
                found = cv2.fastNlMeansDenoisingColored(
                    image.contiguous().numpy(), None, strength, strength
                )
                return torch.from_numpy(found).permute(2, 0, 1)[None].float() / 255

            peers[f"NLM h={strength}"] = nlm
    return peers
