"""A convolution with its neighbours, one op after the other: what others do in one launch.

These are the specification of the fused ops, and do the work of those that are disabled.
"""

import torch
from torch import Tensor

from ..geometry import (
    Activation,
    ConvGeometry,
    FusedActivation,
    IntPair,
    Standard,
    lower_precision,
    pixel_shuffle,
    pixel_unshuffle,
)
from .conv import conv2d_forward, conv_transpose2d_forward
from .pointwise import normalize, upsample_nearest2d_forward


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """shuffle(act(conv(unshuffle(upsample(input))) + bias)) + residual.

    Args:
        input: (N, C, H, W).
        weight: (out_channels, in_channels, kh, kw), converted to input's precision.
        bias: (out_channels,) or None.
        geometry: the convolution's.
        activation: None, "relu" or "sigmoid".
        upsample: whole factors of nearest upsampling, (1, 1) for none.
        unshuffle: factor of a pixel unshuffle before the convolution, 1 for none.
        shuffle: factor of a pixel shuffle after it, 1 for none.
        residual: added at the very end, in the output's shape; or None.

    Returns:
        The output in input's precision.
    """
    if upsample != (1, 1):
        input = upsample_nearest2d_forward(input, upsample)
    if unshuffle > 1:
        input = pixel_unshuffle(input, unshuffle)
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    relu: Activation = "relu" if activation == "relu" else None
    output = conv2d_forward(input, weight, bias, geometry, relu)
    if activation == "sigmoid":
        output = output.sigmoid_()
    if shuffle > 1:
        output = pixel_shuffle(output, shuffle)
    return output if residual is None else output + residual


def conv2d_image(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
    standard: Standard | None = None,
    planes: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`conv2d_fused` at a network's ends, where images are of higher precision than its layers.

    gate · shuffle(act(conv(append(unshuffle(upsample((input − mean)/std)), planes)) + bias)) +
    residual, computed in the lower precision of input and weight.

    Args:
        input: (N, C, H, W).
        weight: (out_channels, in_channels, kh, kw); in_channels with the planes.
        bias: (out_channels,) or None.
        geometry: the convolution's; zeros surround what is standardised.
        activation: None, "relu" or "sigmoid".
        upsample: whole factors of nearest upsampling, (1, 1) for none.
        unshuffle: factor of a pixel unshuffle before the convolution, 1 for none.
        shuffle: factor of a pixel shuffle after it, 1 for none.
        residual: added at the very end, in the output's shape; or None.
        standard: means and deviations of the channels, in input's precision; None: as it is.
        planes: (N, P), constant channels that are appended; or None.
        gate: (N,), factors of the output; or None.

    Returns:
        The output in the precision that it is computed in, or the residual's if that is higher.
    """
    dtype = lower_precision(input.dtype, weight.dtype)
    if standard is not None:
        input = normalize(input, *standard)
    if upsample != (1, 1):
        input = upsample_nearest2d_forward(input, upsample)
    if unshuffle > 1:
        input = pixel_unshuffle(input, unshuffle)
    if planes is not None:
        size = planes.shape + input.shape[2:]
        input = torch.cat([input, planes.to(input.dtype)[:, :, None, None].expand(size)], 1)
    arguments = input.to(dtype), weight, bias, geometry, activation
    output = conv2d_fused(*arguments, shuffle=shuffle)
    if gate is not None:
        output = (output * gate.view(-1, 1, 1, 1)).to(dtype)
    return output if residual is None else output + residual


def conv_transpose2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(conv_transpose(input) + bias) + residual; arguments are those of `conv2d_fused`."""
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    relu: Activation = "relu" if activation == "relu" else None
    output = conv_transpose2d_forward(input, weight, bias, geometry, relu)
    if activation == "sigmoid":
        output = output.sigmoid_()
    return output if residual is None else output + residual


def residual_pair(
    input: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> Tensor:
    """input + conv(relu(conv(input) + bias1)) + bias2, both 3×3 with padding 1."""
    square = ConvGeometry(padding=(1, 1))
    hidden = conv2d_fused(input, weight1, bias1, square, "relu")
    return conv2d_fused(hidden, weight2, bias2, square, residual=input)
