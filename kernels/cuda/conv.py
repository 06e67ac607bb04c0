"""Convolution and transposed convolution: the twins of `gemm.conv`, made of three kernels.

As there, an op joins a larger image L and a smaller image S by a kernel W (S, L, kh, kw):

    conv2d             S = correlate(L)     dL = stamp(dS)       dW = windows(L)ᵀ · dS
    conv_transpose2d   L = stamp(S)         dS = correlate(dL)   dW = windows(dL)ᵀ · S

Operands are float32, bfloat16 or float16, sums float32; weight and bias gradients come back in
float32 whatever the operands, since that is what parameters are kept in. float64 and dilated
kernels are declined: `gemm/` does those.
"""

import torch
from torch import Tensor

from ..errors import NotCoveredError
from ..geometry import Activation, IntPair, conv2d_output_size, conv_transpose2d_output_size
from .conv_forward import correlate
from .conv_transpose import stamp
from .packed_weights import packed
from .relu_backward import relu_backward_bias_grad
from .weight_grad import weight_grad

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    activation: Activation = None,
) -> Tensor:
    """As `gemm.conv.conv2d_forward`."""
    check_covered(input, weight, dilation)
    size = conv2d_output_size(input.shape[2:], kernel_of(weight), stride, padding, dilation)
    output = new_image(input, len(weight), size)
    correlate(
        nhwc(input),
        packed(weight, input.dtype),
        bias,
        output,
        kernel=kernel_of(weight),
        stride=stride,
        padding=padding,
        weight_strides=(len(weight), 1),
        activation=activation,
    )
    return output.permute(0, 3, 1, 2)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `gemm.conv.conv2d_backward`, with grad_weight and grad_bias in float32."""
    check_covered(input, weight, dilation)
    grad, grad_bias = _masked(grad_output, output)
    grad_input = None
    if needs_input_grad:
        image = new_image(input, input.shape[1], (input.shape[2], input.shape[3]))
        conv_transpose_weight(grad, weight, None, image, stride=stride, padding=padding)
        grad_input = image.permute(0, 3, 1, 2)
    grad_weight = weight_grad(
        nhwc(input), grad, kernel=kernel_of(weight), stride=stride, padding=padding
    )
    return grad_input, grad_weight, grad_bias


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
    activation: Activation = None,
) -> Tensor:
    """As `gemm.conv.conv_transpose2d_forward`."""
    check_covered(input, weight, dilation)
    size = conv_transpose2d_output_size(
        input.shape[2:], kernel_of(weight), stride, padding, output_padding, dilation
    )
    output = new_image(input, weight.shape[1], size)
    conv_transpose_weight(
        nhwc(input), weight, bias, output, stride=stride, padding=padding, activation=activation
    )
    return output.permute(0, 3, 1, 2)


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `gemm.conv.conv_transpose2d_backward`, with grad_weight and grad_bias in float32."""
    check_covered(input, weight, dilation)
    grad, grad_bias = _masked(grad_output, output)
    grad_input = None
    if needs_input_grad:
        image = new_image(input, len(weight), (input.shape[2], input.shape[3]))
        correlate(
            grad,
            packed(weight, grad.dtype),
            None,
            image,
            kernel=kernel_of(weight),
            stride=stride,
            padding=padding,
            weight_strides=(len(weight), 1),
        )
        grad_input = image.permute(0, 3, 1, 2)
    grad_weight = weight_grad(
        grad, nhwc(input), kernel=kernel_of(weight), stride=stride, padding=padding
    )
    return grad_input, grad_weight, grad_bias


def conv_transpose_weight(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> None:
    """L = stamp(S) for images (N, H, W, C) and a weight (S, L, kh, kw).

    Where the stamps tile the output (kernel = stride, nothing cut off or added), all phases are the
    columns of one product of a single tap, whose result is shuffled: S is read once.
    """
    kernel, channels = kernel_of(weight), weight.shape[1]
    tiles = (small.shape[1] * stride[0], small.shape[2] * stride[1]) == tuple(output.shape[1:3])
    if kernel == stride and padding == (0, 0) and tiles:
        correlate(
            small,
            packed(weight, small.dtype),
            bias,
            output,
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            # (kh, kw, L) are the columns.
            weight_strides=(1, len(weight)),
            activation=activation,
            residual=residual,
            shuffle=stride,
        )
        return
    assert output.shape[3] == channels
    stamp(
        small,
        packed(weight, small.dtype),
        bias,
        output,
        kernel=kernel,
        stride=stride,
        padding=padding,
        weight_strides=(1, len(weight)),
        activation=activation,
        residual=residual,
    )


def check_covered(input: Tensor, weight: Tensor, dilation: IntPair = (1, 1)) -> None:
    """Raise what sends a call to `gemm/`.

    Raises:
        NotCoveredError: float64, a dilated kernel, or an empty batch.
    """
    if input.dtype not in DTYPES:
        raise NotCoveredError(f"{input.dtype}")
    if dilation != (1, 1):
        raise NotCoveredError(f"dilation {dilation}")
    if not input.numel():
        raise NotCoveredError("an empty batch")


def kernel_of(weight: Tensor) -> IntPair:
    """kh, kw."""
    return weight.shape[2], weight.shape[3]


def nhwc(image: Tensor) -> Tensor:
    """(N, C, H, W) of any strides as (N, H, W, C) contiguous; no copy of a channels-last one."""
    return image.permute(0, 2, 3, 1).contiguous()


def new_image(like: Tensor, channels: int, size: IntPair) -> Tensor:
    """An uninitialised (N, H, W, C)."""
    return like.new_empty((len(like), *size, channels))


def _masked(grad_output: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
    return relu_backward_bias_grad(nhwc(grad_output), None if output is None else nhwc(output))
