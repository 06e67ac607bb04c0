"""Inference on a device with fused kernels: which blocks become one launch, and the launch.

A convolution includes the upsampling or pixel unshuffle before it, the ReLU or sigmoid and the
pixel shuffle after it, and what is added to its result. Where there is an op for a network's ends
(`conv2d_image`), that includes what stands between them and an image of higher precision:
standardisation, the noise level's planes and gate, and the sum with the image. Results are those
of the blocks' own forwards, up to rounding, and so are the errors: shapes are checked here, since a
launch reads and writes wherever they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from .block import Block
from .dispatch import ops_for
from .geometry import ConvGeometry, FusedActivation, check_nchw
from .layers import (
    Conv2d,
    Convolution,
    ConvTranspose2d,
    NearestUpsample2d,
    Normalize,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Sigmoid,
)
from .level import AppendLevel, LevelGate
from .weight_cache import cast
from .work import WORK


@dataclass(frozen=True)
class Launch:
    """A convolution and its neighbours.

    Attributes:
        conv: the convolution.
        before: upsampling or unshuffling of its input.
        activation: applied to its output.
        shuffle: factor of the pixel shuffle after it, 1 for none.
        normalize: of its input, before everything else.
        append: channels behind those of its input, after `before`.
        gate: of its output, after the shuffle.
    """

    conv: Convolution
    before: NearestUpsample2d | PixelUnshuffle | None = None
    activation: FusedActivation = None
    shuffle: int = 1
    normalize: Normalize | None = None
    append: AppendLevel | None = None
    gate: LevelGate | None = None


def plan(blocks: Sequence[Block], *, has_ends: bool = False) -> list[Launch | Block]:
    """Group the blocks, none of which is a Sequential, into launches.

    Args:
        blocks: in order.
        has_ends: there are launches for a network's ends.
    """
    steps: list[Launch | Block] = []
    while blocks:
        count, step = _first_step(blocks, has_ends)
        steps.append(step)
        blocks = blocks[count:]
    return steps


def _first_step(blocks: Sequence[Block], has_ends: bool) -> tuple[int, Launch | Block]:
    """Return (number of blocks, what they are together)."""
    rest = list(blocks)
    normalize = _taken(rest, Normalize) if has_ends else None
    before = _taken(rest, NearestUpsample2d) or _taken(rest, PixelUnshuffle)
    append = _taken(rest, AppendLevel) if has_ends else None
    has_front = len(rest) < len(blocks)
    conv: Convolution | None = _taken(rest, Conv2d)
    if conv is None and not has_front and rest and isinstance(rest[0], Convolution):
        conv, rest = rest[0], rest[1:]
    if conv is None:
        return 1, blocks[0]
    is_padded_first = conv.input_padding is not None  # so that no launch can read or write more
    if has_front and is_padded_first:
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
    gate = _taken(rest, LevelGate) if has_ends and can_shuffle else None
    count = len(blocks) - len(rest)
    return count, Launch(conv, before, activation, shuffle, normalize, append, gate)


Kind = TypeVar("Kind", bound=Block)


def _taken(rest: list[Block], kind: type[Kind]) -> Kind | None:
    """Remove and return the first block, if it is of this kind."""
    if rest and isinstance(rest[0], kind):
        first = rest[0]
        del rest[0]
        return first
    return None


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
    if step.normalize is not None:
        step.normalize.check(input.shape)
    seen: Sequence[int] = input.shape if before is None else before.output_shape(input.shape)
    planes = None if step.append is None else step.append.planes(input).flatten(1)
    if planes is not None:
        seen = (seen[0], seen[1] + planes.shape[1], *seen[2:])
    shape = conv.output_shape(seen)
    if step.shuffle > 1:
        check_nchw(shape, None, "PixelShuffle input")
    gate = None if step.gate is None else step.gate.factors(input).flatten()
    if input.ndim == 3:
        output, is_added = launch(step, input[None], None if residual is None else residual[None])
        return output[0], is_added
    dtype = conv.compute_dtype or conv.weight.dtype
    ops = ops_for(input.device)
    # In mixed precision a sum with a float32 image is float32, which not all launches can write.
    is_summed = residual is None or residual.dtype == dtype
    is_plain = isinstance(conv, Conv2d) and conv.input_padding is None
    upsample = before.scale_factor if isinstance(before, NearestUpsample2d) else (1, 1)
    unshuffle = before.downscale_factor if isinstance(before, PixelUnshuffle) else 1
    between = step.activation, upsample, unshuffle, step.shuffle
    is_end = any(part is not None for part in (step.normalize, planes, gate))
    if is_end or (is_plain and not is_summed and ops.has_fused_ends):
        standard = None
        if step.normalize is not None:
            standard = step.normalize.mean, step.normalize.std
        # What is standardised is converted behind it, in the launch, to the weight's precision.
        is_converted = input.dtype.itemsize > dtype.itemsize
        image = input if is_converted else input.to(dtype)
        weight = cast(conv.weight, dtype) if is_converted else conv.weight
        arguments = image, weight, conv.bias, conv.geometry
        output = ops.conv2d_image(*arguments, *between, residual, standard, planes, gate)
        WORK.add(conv.weight, seen, shape)
        return output, residual is not None
    fused = residual if is_summed else None
    image = input.to(dtype)
    arguments = image, conv.weight, conv.bias, conv.geometry
    is_merged = not isinstance(conv, (Conv2d, ConvTranspose2d))  # with an upsampling
    if is_merged or conv.input_padding is not None:
        output = conv.forward(input, "relu" if step.activation == "relu" else None)
        return ops.sigmoid_forward_(output) if step.activation == "sigmoid" else output, False
    if isinstance(conv, ConvTranspose2d):
        output = ops.conv_transpose2d_fused(*arguments, step.activation, fused)
        WORK.add(conv.weight, seen, shape)
        return output, fused is not None
    output = ops.conv2d_fused(*arguments, *between, fused)
    WORK.add(conv.weight, seen, shape)
    return output, fused is not None
