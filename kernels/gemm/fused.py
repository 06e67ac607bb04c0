"""A convolution with its neighbours, one op after the other: what others do in one launch.

These are the specification of the fused ops, and do the work of those that are disabled.
"""

from torch import Tensor

from ..geometry import (
    Activation,
    ConvGeometry,
    FusedActivation,
    IntPair,
    pixel_shuffle,
    pixel_unshuffle,
)
from .conv import conv2d_forward, conv_transpose2d_forward
from .pointwise import upsample_nearest2d_forward


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
