"""Inference on a device with fused kernels: a row of blocks as the fewest launches.

A convolution takes along the upsampling or pixel unshuffle before it, the ReLU or sigmoid and the
pixel shuffle behind it, and what is added to its result. The numbers are those of the blocks' own forwards, up to rounding, and
so are the errors: shapes are checked here, since a launch reads and writes wherever they say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .block import Block
from .container import Residual, Sequential, UNetLevel
from .conv import Conv2d, Convolution, ConvTranspose2d
from .gemm.fused import FusedActivation
from .layers import PixelShuffle, PixelUnshuffle, ReLU, Sigmoid
from .upsample import NearestUpsample2d


@dataclass(frozen=True)
class Stage:
    """One launch: a convolution and its neighbours.

    Attributes:
        conv: the convolution.
        before: upsampling or unshuffling of its input.
        activation: of its output.
        shuffle: factor of the pixel shuffle behind, 1 for none.
    """

    conv: Convolution
    before: NearestUpsample2d | PixelUnshuffle | None = None
    activation: FusedActivation = None
    shuffle: int = 1


def forward(blocks: Sequence[Block], input: Tensor, residual: Tensor | None = None) -> Tensor:
    """The blocks one after the other, in inference; then `residual` is added."""
    plan = list(stages(blocks))
    for index, stage in enumerate(plan):
        is_last = index == len(plan) - 1
        if isinstance(stage, Stage):
            input, is_added = _convolve(stage, input, residual if is_last else None)
            if is_added:
                return input
        elif isinstance(stage, Residual):
            input = forward([stage.body], input, residual=input)
        elif isinstance(stage, UNetLevel):
            encoded = forward([stage.encoder], input)
            merged = forward([stage.down, stage.inner, stage.up], encoded, residual=encoded)
            input = forward([stage.decoder], merged)
        else:
            input = stage.forward(input)
    return input if residual is None else input + residual


def stages(blocks: Sequence[Block]) -> Iterator[Stage | Block]:
    """What runs: nested rows in one row, and every convolution with its neighbours."""
    row = list(_flattened(blocks))
    position = 0
    while position < len(row):
        taken, stage = _stage(row[position:])
        yield stage
        position += taken


def _flattened(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if isinstance(block, Sequential):
            yield from _flattened(block.blocks)
        else:
            yield block


def _stage(row: Sequence[Block]) -> tuple[int, Stage | Block]:
    """(blocks taken, what they are together)."""
    before = row[0] if isinstance(row[0], (NearestUpsample2d, PixelUnshuffle)) else None
    rest = list(row[1:] if before is not None else row)
    if not rest or not isinstance(rest[0], Conv2d if before is not None else Convolution):
        return 1, row[0]
    conv = rest.pop(0)
    assert isinstance(conv, Convolution)
    activation: FusedActivation = None
    if rest and isinstance(rest[0], (ReLU, Sigmoid)):
        activation = "relu" if isinstance(rest.pop(0), ReLU) else "sigmoid"
    shuffle = 1
    if rest and isinstance(rest[0], PixelShuffle) and isinstance(conv, Conv2d):
        factor = rest[0].upscale_factor
        if conv.out_channels % factor**2 == 0:  # or the block alone will refuse them
            shuffle = factor
            rest.pop(0)
    return len(row) - len(rest), Stage(conv, before, activation, shuffle)


def _convolve(stage: Stage, input: Tensor, residual: Tensor | None) -> tuple[Tensor, bool]:
    """(output, whether the residual is in it).

    Raises:
        ShapeError: what the blocks raise for this input.
    """
    conv, before = stage.conv, stage.before
    conv.output_shape(input.shape if before is None else before.output_shape(input.shape))
    dtype = _dtype(conv)
    input = input.to(dtype)
    # In mixed precision a sum with a float32 image is float32, which this launch could not write.
    fused = residual if residual is not None and residual.dtype == dtype else None
    if isinstance(conv, ConvTranspose2d):
        output = ops.conv_transpose2d_fused(
            input,
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            output_padding=conv.output_padding,
            dilation=conv.dilation,
            activation=stage.activation,
            residual=fused,
        )
        return output, fused is not None
    output = ops.conv2d_fused(
        input,
        conv.weight,
        conv.bias,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        activation=stage.activation,
        upsample=before.scale_factor if isinstance(before, NearestUpsample2d) else (1, 1),
        unshuffle=before.downscale_factor if isinstance(before, PixelUnshuffle) else 1,
        shuffle=stage.shuffle,
        residual=fused,
    )
    return output, fused is not None


def _dtype(conv: Convolution) -> torch.dtype:
    return conv.compute_dtype or conv.weight.dtype
