"""Inference on a device with fused kernels: which blocks become one launch, and the launch.

A convolution includes the upsampling or pixel unshuffle before it, the ReLU or sigmoid and the
pixel shuffle after it, and what is added to its result. Results are those of the blocks' own
forwards, up to rounding, and so are the errors: shapes are checked here, since a launch reads and
writes wherever they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .block import Block
from .dispatch import ops_for
from .geometry import ConvGeometry, FusedActivation, check_nchw
from .layers import (
    Conv2d,
    Convolution,
    ConvTranspose2d,
    NearestUpsample2d,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Sigmoid,
)
from .work import WORK


@dataclass(frozen=True)
class Launch:
    """A convolution and its neighbours.

    Attributes:
        conv: the convolution.
        before: upsampling or unshuffling of its input.
        activation: applied to its output.
        shuffle: factor of the pixel shuffle after it, 1 for none.
    """

    conv: Convolution
    before: NearestUpsample2d | PixelUnshuffle | None = None
    activation: FusedActivation = None
    shuffle: int = 1


def plan(blocks: Sequence[Block]) -> list[Launch | Block]:
    """Group the blocks, none of which is a Sequential, into launches."""
    steps: list[Launch | Block] = []
    while blocks:
        count, step = _first_step(blocks)
        steps.append(step)
        blocks = blocks[count:]
    return steps


def _first_step(blocks: Sequence[Block]) -> tuple[int, Launch | Block]:
    """Return (number of blocks, what they are together)."""
    before = blocks[0] if isinstance(blocks[0], (NearestUpsample2d, PixelUnshuffle)) else None
    rest = list(blocks[1:] if before is not None else blocks)
    if not rest or not isinstance(rest[0], Conv2d if before is not None else Convolution):
        return 1, blocks[0]
    conv = rest.pop(0)
    assert isinstance(conv, Convolution)
    is_padded_first = conv.input_padding is not None  # so that no launch can read or write more
    if before is not None and is_padded_first:
        return 1, blocks[0]
    activation: FusedActivation = None
    if rest and isinstance(rest[0], (ReLU, Sigmoid)):
        activation = "relu" if isinstance(rest.pop(0), ReLU) else "sigmoid"
    shuffle = 1
    can_shuffle = isinstance(conv, Conv2d) and not is_padded_first
    if rest and isinstance(rest[0], PixelShuffle) and can_shuffle:
        factor = rest[0].upscale_factor
        if conv.out_channels % factor**2 == 0:  # or the block alone will refuse them
            shuffle = factor
            rest.pop(0)
    return len(blocks) - len(rest), Launch(conv, before, activation, shuffle)


# Values of a map from which on a pair is one pass over memory. The L3 cache holds smaller ones, and
# two launches have no borders that are computed twice.
LEAST_PAIR = 3 << 20


def as_pair(steps: Sequence[Launch | Block]) -> tuple[Convolution, Convolution] | None:
    """The two convolutions, if the steps are 3×3, ReLU, 3×3 with padding 1 and nothing else."""
    if len(steps) != 2:
        return None
    first, second = steps
    if not isinstance(first, Launch) or not isinstance(second, Launch):
        return None
    is_plain = all(
        isinstance(step.conv, Conv2d)
        and step.conv.kernel_size == (3, 3)
        and step.conv.geometry == ConvGeometry(padding=(1, 1))
        and step.before is None
        and step.shuffle == 1
        for step in (first, second)
    )
    if not is_plain or first.activation != "relu" or second.activation is not None:
        return None
    return first.conv, second.conv


def launch_pair(pair: tuple[Convolution, Convolution], input: Tensor) -> Tensor:
    """Return input + conv(relu(conv(input))).

    Raises:
        ShapeError: what the blocks raise for this input.
    """
    first, second = pair
    shape = second.output_shape(first.output_shape(input.shape))
    if input.ndim == 3:
        return launch_pair(pair, input[None])[0]
    dtype = first.compute_dtype or first.weight.dtype
    parameters = first.weight, first.bias, second.weight, second.bias
    output: Tensor = ops_for(input.device).residual_pair(input.to(dtype), *parameters)
    for conv in pair:
        WORK.add(conv.weight, shape)
    return output


def launch(step: Launch, input: Tensor, residual: Tensor | None) -> tuple[Tensor, bool]:
    """Return (output, whether the residual was added to it).

    Raises:
        ShapeError: what the blocks raise for this input.
    """
    conv, before = step.conv, step.before
    seen = input.shape if before is None else before.output_shape(input.shape)
    shape = conv.output_shape(seen)
    if step.shuffle > 1:
        check_nchw(shape, None, "PixelShuffle input")
    if input.ndim == 3:
        output, is_added = launch(step, input[None], None if residual is None else residual[None])
        return output[0], is_added
    dtype = conv.compute_dtype or conv.weight.dtype
    # In mixed precision a sum with a float32 image is float32, which this launch could not write.
    fused = residual if residual is not None and residual.dtype == dtype else None
    arguments = input.to(dtype), conv.weight, conv.bias, conv.geometry, step.activation
    ops = ops_for(input.device)
    is_merged = not isinstance(conv, (Conv2d, ConvTranspose2d))  # with an upsampling
    if is_merged or conv.input_padding is not None:
        output = conv.forward(input, "relu" if step.activation == "relu" else None)
        return ops.sigmoid_forward_(output) if step.activation == "sigmoid" else output, False
    if isinstance(conv, ConvTranspose2d):
        output = ops.conv_transpose2d_fused(*arguments, fused)
        WORK.add(conv.weight, seen, shape)
        return output, fused is not None
    upsample = before.scale_factor if isinstance(before, NearestUpsample2d) else (1, 1)
    unshuffle = before.downscale_factor if isinstance(before, PixelUnshuffle) else 1
    output = ops.conv2d_fused(*arguments, upsample, unshuffle, step.shuffle, fused)
    WORK.add(conv.weight, seen, shape)
    return output, fused is not None
