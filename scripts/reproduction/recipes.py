"""How a run trains: the report's way, and each remedy as one changed field."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lean import lean
from narrow import unet

from denoise_batch.kernels import Block, Conv2d, ConvTranspose2d, Sequential, Sigmoid
from denoise_batch.kernels.init import kaiming_normal_
from denoise_batch.models import ARCHITECTURES

# The rate in the report authors' published code, for Architecture 1; none is known for the other.
REPORT_LR = 0.5


@dataclass(frozen=True)
class Recipe:
    """One training run; the defaults are the report's.

    Attributes:
        architecture: "tconv" (Architecture 1), "upsample" (Architecture 2), or "unet-W", the U-Net
            of width W, residual and as it is initialised.
        lr: highest learning rate.
        schedule: "constant", or "cosine" after a warm-up over the first 2 % of the steps.
        optimizer: "sgd", or "muon" with its usual momentum.
        momentum: of SGD; above 0 with Nesterov's look-ahead.
        clip_norm: longest gradient; 0 never clips.
        is_standardised: whether the network's input has mean 0 and deviation 1.
        init: "report", "torch" or "he".
        has_sigmoid: whether a Sigmoid closes the network.
        is_shuffled: a new order in every epoch, or always the same.
        is_augmented: one of the square's symmetries for every batch.
        batch_size: tiles a step.
        noise: "subpixel:8" from the protocol's stored versions, or drawn anew on clean tiles.
        targets: "noisy" or "clean".
        seed: of initial weights, order and drawn noise.
    """

    architecture: str
    lr: float = REPORT_LR
    schedule: str = "constant"
    momentum: float = 0.0
    clip_norm: float = 0.0
    is_standardised: bool = False
    init: str = "report"
    has_sigmoid: bool = True
    is_shuffled: bool = False
    is_augmented: bool = False
    batch_size: int = 4
    noise: str = "subpixel:8"
    targets: str = "noisy"
    seed: int = 0
    optimizer: str = "sgd"

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step."""
        if self.schedule == "constant":
            return self.lr
        warm_up = max(steps // 50, 1)
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def layers(recipe: Recipe) -> Sequential:
    """The architecture's bare layers, without margin, initialised; lean operations behind them."""
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.architecture.startswith("unet-"):
        return Sequential(unet(int(recipe.architecture.removeprefix("unet-")), generator))
    blocks = list(ARCHITECTURES[recipe.architecture].layers(generator))
    if not recipe.has_sigmoid:
        blocks = [block for block in blocks if not isinstance(block, Sigmoid)]
    for block in blocks:
        initialise(block, recipe.init, generator)
    return Sequential(*map(lean, blocks))


def initialise(block: Block, kind: str, generator: torch.Generator) -> None:
    """Fill the convolutions inside `block`.

    "report": weight and bias from U(−b, b), b = 1/√(2·in_channels·kernel), as the authors' code;
    "torch": left as it is, U with b = 1/√fan_in;
    "he": N(0, 2/n) with n the inputs that an output really has, bias 0 (He et al., 2015).
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
