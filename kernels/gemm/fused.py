"""What a GPU does in one launch in inference, here one op after the other: the twin of `cuda/`.

`conv2d_fused` and `conv_transpose2d_fused` take along what stands around a convolution.
"""

from typing import Literal

from torch import Tensor

from ..geometry import IntPair
from ..reference import pixel_shuffle, pixel_unshuffle
from .conv import conv2d_forward, conv_transpose2d_forward
from .pointwise import sigmoid_forward_, upsample_nearest2d_forward

FusedActivation = Literal["relu", "sigmoid"] | None


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """shuffle(act(conv(unshuffle(upsample(input))) + bias)) + residual.

    Args:
        input: (N, C, H, W).
        weight: (out_channels, in_channels, kh, kw), of any precision; input's counts.
        bias: (out_channels,) or None.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        activation: None, "relu" or "sigmoid".
        upsample: whole factors of nearest upsampling, (1, 1) for none.
        unshuffle: factor of a pixel unshuffle before, 1 for none.
        shuffle: factor of a pixel shuffle behind, 1 for none.
        residual: added at the very end, in the output's shape; or None.

    Returns:
        The output in input's precision.
    """
    if upsample != (1, 1):
        input = upsample_nearest2d_forward(input, scale_factor=upsample)
    if unshuffle > 1:
        input = pixel_unshuffle(input, unshuffle)
    output = conv2d_forward(
        input,
        weight.to(input.dtype),
        None if bias is None else bias.to(input.dtype),
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation="relu" if activation == "relu" else None,
    )
    if activation == "sigmoid":
        output = sigmoid_forward_(output)
    if shuffle > 1:
        output = pixel_shuffle(output, shuffle)
    return output if residual is None else output + residual


def conv_transpose2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
    activation: FusedActivation = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(conv_transpose(input) + bias) + residual; arguments as of `conv2d_fused`."""
    output = conv_transpose2d_forward(
        input,
        weight.to(input.dtype),
        None if bias is None else bias.to(input.dtype),
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        activation="relu" if activation == "relu" else None,
    )
    if activation == "sigmoid":
        output = sigmoid_forward_(output)
    return output if residual is None else output + residual
