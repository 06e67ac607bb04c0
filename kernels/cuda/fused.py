"""A convolution with what stands around it in one launch: twins of `gemm.fused`."""

from torch import Tensor

from ..errors import NotCoveredError
from ..gemm.fused import FusedActivation
from ..geometry import IntPair, conv2d_output_size, conv_transpose2d_output_size
from .conv import check_covered, conv_transpose_weight, kernel_of, new_image, nhwc
from .conv_forward import correlate
from .packed_weights import packed


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
    """As `gemm.fused.conv2d_fused`."""
    check_covered(input, weight, dilation)
    if unshuffle > 1 and upsample != (1, 1):
        raise NotCoveredError("upsampling and unshuffling at once")
    height, width = (
        extent * up // unshuffle for extent, up in zip(input.shape[2:], upsample, strict=True)
    )
    size = conv2d_output_size((height, width), kernel_of(weight), stride, padding, dilation)
    channels = len(weight) // shuffle**2
    output = new_image(input, channels, (size[0] * shuffle, size[1] * shuffle))
    if bias is not None and shuffle > 1:
        bias = bias.view(channels, shuffle**2).T.contiguous().flatten()
    correlate(
        nhwc(input),
        packed(weight, input.dtype, shuffle),
        bias,
        output,
        kernel=kernel_of(weight),
        stride=stride,
        padding=padding,
        weight_strides=(len(weight), 1),
        activation=activation,
        residual=_as_output(residual, output),
        upsample=upsample,
        unshuffle=unshuffle,
        shuffle=(shuffle, shuffle),
    )
    return output.permute(0, 3, 1, 2)


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
    """As `gemm.fused.conv_transpose2d_fused`."""
    check_covered(input, weight, dilation)
    size = conv_transpose2d_output_size(
        input.shape[2:], kernel_of(weight), stride, padding, output_padding, dilation
    )
    output = new_image(input, weight.shape[1], size)
    conv_transpose_weight(
        nhwc(input),
        weight,
        bias,
        output,
        stride=stride,
        padding=padding,
        activation=activation,
        residual=_as_output(residual, output),
    )
    return output.permute(0, 3, 1, 2)


def _as_output(residual: Tensor | None, output: Tensor) -> Tensor | None:
    """The residual in the output's layout.

    Raises:
        NotCoveredError: it would have to be broadcast.
    """
    if residual is None:
        return None
    residual = nhwc(residual)
    if residual.shape != output.shape:
        raise NotCoveredError(f"a residual {tuple(residual.shape)} of {tuple(output.shape)}")
    return residual
