"""What is trained, and for how long: recipes of runs, scales of the whole reproduction."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denoise_batch.kernels import Block, Conv2d, ConvTranspose2d, Residual, Sequential, Sigmoid
from denoise_batch.kernels.layers import kaiming_normal_
from denoise_batch.models import ARCHITECTURES, unet

NAMES = {"tconv": "Architecture 1", "upsample": "Architecture 2"}
# The rate in the authors' published code, for Architecture 1; none is known for Architecture 2.
PAPER_LR = 0.5
PAPER_BATCH = 4


@dataclass(frozen=True)
class Scale:
    """Amounts of data and work.

    Attributes:
        tiles: training tiles.
        validation_tiles: held-out tiles.
        report_epochs: epochs of the faithful runs of Architectures 1 and 2.
        repaired_epochs: epochs of the repaired runs.
        short_steps: steps of each ablation run.
        noise_steps: steps of each comparison of noisy with clean targets.
        parity_steps: steps beside torch.
        seeds: repetitions of the comparison of noisy with clean targets.
        kodak: Kodak photographs in the plot of quality against cost.
        slow_kodak: how many of them the slow peer (BM3D) denoises.
        widths: U-Nets trained for that plot.
    """

    tiles: int
    validation_tiles: int
    report_epochs: tuple[int, int]
    repaired_epochs: int
    short_steps: int
    noise_steps: int
    parity_steps: int
    seeds: int
    kodak: int
    slow_kodak: int
    widths: tuple[int, ...]


# whole: as the course paper did, two hours on one core. short: all data, fewer epochs and steps.
# quick: a smoke test. tiny: for tests.
SCALES = {
    "whole": Scale(50_000, 1_000, (15, 5), 12, 4_000, 2_500, 12_500, 3, 24, 8, (8, 16, 32)),
    "short": Scale(50_000, 1_000, (1, 1), 1, 500, 400, 12_500, 3, 6, 1, ()),
    "quick": Scale(1_200, 100, (2, 1), 2, 60, 40, 150, 2, 1, 0, ()),
    "tiny": Scale(24, 4, (1, 1), 1, 4, 4, 4, 2, 1, 1, (2,)),
}


@dataclass(frozen=True)
class Recipe:
    """How a run trains; the defaults are the course paper's.

    Attributes:
        architecture: "tconv" (Architecture 1), "upsample" (Architecture 2) or "unet-W", the U-Net
            of width W without normalisation.
        lr: highest learning rate.
        schedule: "constant", or "cosine" after a warm-up over the first 2 % of the steps.
        momentum: of SGD; Nesterov's if above 0.
        clip_norm: largest gradient norm; 0 does not clip.
        is_standardised: whether the network's input has mean 0 and standard deviation 1.
        init: "report" (the course paper's; results use this spelling), "torch" or "he".
        has_sigmoid: whether a Sigmoid ends the network.
        is_shuffled: whether every epoch has an order of its own.
        is_augmented: whether each batch is turned or mirrored at random.
        batch_size: tiles per step.
        noise: "subpixel:8" takes the stored noisy versions; others are drawn on clean tiles.
        targets: "noisy" or "clean".
        seed: of initial weights, order and drawn noise.
        optimizer: "sgd" or "muon".
    """

    architecture: str
    lr: float = PAPER_LR
    schedule: str = "constant"
    momentum: float = 0.0
    clip_norm: float = 0.0
    is_standardised: bool = False
    init: str = "report"
    has_sigmoid: bool = True
    is_shuffled: bool = False
    is_augmented: bool = False
    batch_size: int = PAPER_BATCH
    noise: str = "subpixel:8"
    targets: str = "noisy"
    seed: int = 0
    optimizer: str = "sgd"

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate at a step."""
        if self.schedule == "constant":
            return self.lr
        warm_up = max(steps // 50, 1)
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


REPORT = {name: Recipe(name) for name in NAMES}
_REPAIR = {
    "schedule": "cosine",
    "momentum": 0.9,
    "clip_norm": 0.1,
    "is_standardised": True,
    "is_shuffled": True,
}
REPAIRED = {
    "tconv": Recipe("tconv", lr=2.0, **_REPAIR),
    "upsample": Recipe("upsample", lr=1.5, **_REPAIR, is_augmented=True, batch_size=8),
}


def layers(recipe: Recipe) -> Sequential:
    """Create the architecture's layers, initialised, without margin and normalisation."""
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.architecture.startswith("unet-"):
        width = int(recipe.architecture.removeprefix("unet-"))
        return Sequential(Residual(Sequential(*unet(generator, width))))
    blocks = list(ARCHITECTURES[recipe.architecture].layers(generator))
    if not recipe.has_sigmoid:
        blocks = [block for block in blocks if not isinstance(block, Sigmoid)]
    for block in blocks:
        initialise(block, recipe.init, generator)
    return Sequential(*blocks)


def initialise(block: Block, kind: str, generator: torch.Generator) -> None:
    """Initialise the convolutions inside `block`.

    "report": weight and bias from U(−b, b), b = 1/√(2·in_channels·kernel), as the authors' code;
    "torch": unchanged, U(−b, b) with b = 1/√fan_in;
    "he": N(0, 2/n) with n the number of inputs of an output, bias 0 (He et al., 2015).
    """
    for conv in _convolutions(block):
        if kind == "report":
            bound = 1 / math.sqrt(2 * conv.in_channels * conv.kernel_size[0])
            for value in conv.parameters():
                value.uniform_(-bound, bound, generator=generator)
        elif kind == "he":
            kaiming_normal_(conv.weight, generator)
            if isinstance(conv, ConvTranspose2d):
                # The initialiser counts out_channels·kh·kw, as torch does.
                inputs = conv.in_channels / math.prod(conv.stride)
                conv.weight.mul_(math.sqrt(conv.out_channels / inputs))
            if conv.bias is not None:
                conv.bias.zero_()


def _convolutions(block: Block) -> Iterator[Conv2d | ConvTranspose2d]:
    if isinstance(block, Conv2d | ConvTranspose2d):
        yield block
    for _, child in block.named_children():
        yield from _convolutions(child)
