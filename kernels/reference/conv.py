"""Convolution and transposed convolution as unfold, one matrix product, fold (report, II-A, II-B).

`unfold` writes the k·k neighbours of every position into a column, so that the convolution is
`weight · columns`. `fold` is its adjoint: it adds every column back to the place it came from, so
the gradient of the input, and the transposed convolution, are `fold(weightᵀ · …)`.
"""

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from ..shapes import Activation, IntPair, conv2d_output_size, conv_transpose2d_output_size
from .activation import relu_backward, relu_forward


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
    """Y = W · unfold(X) + b, then the activation.

    Args:
        input: (N, in_channels, H, W).
        weight: (out_channels, in_channels, kh, kw).
        bias: (out_channels,) or None.
        stride: step between output positions, in pixels.
        padding: zeros added on each side.
        dilation: distance between kernel taps.
        activation: None, or "relu" applied to the output.

    Returns:
        (N, out_channels, oh, ow).
    """
    kernel_size = (weight.shape[2], weight.shape[3])
    oh, ow = conv2d_output_size(input.shape[2:], kernel_size, stride, padding, dilation)
    columns = unfold(input, kernel_size, dilation, padding, stride)  # (N, C·kh·kw, oh·ow)
    output = weight.flatten(1) @ columns
    if bias is not None:
        output += bias.view(1, -1, 1)
    return _activate(output.view(len(input), len(weight), oh, ow), activation)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    output: Tensor | None = None,
    needs_grad_input: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """dX = fold(Wᵀ · dY), dW = Σ_n dY_n · unfold(X_n)ᵀ, db = Σ_{n,y,x} dY.

    Args:
        grad_output: shaped as the output.
        input: what forward was given.
        weight: likewise.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        output: what forward returned, if its activation was "relu"; otherwise None.
        needs_grad_input: False saves the work for a layer that nothing learns before.

    Returns:
        grad_input (None if not needed), grad_weight and grad_bias, shaped as input, weight, bias.
    """
    if output is not None:
        grad_output = relu_backward(grad_output, output)
    kernel_size = (weight.shape[2], weight.shape[3])
    size = (input.shape[2], input.shape[3])
    grad = grad_output.flatten(2)  # (N, out_channels, oh·ow)
    columns = unfold(input, kernel_size, dilation, padding, stride)
    grad_weight = torch.einsum("nol,nkl->ok", grad, columns).view_as(weight)
    grad_input = None
    if needs_grad_input:
        grad_columns = weight.flatten(1).T @ grad
        grad_input = fold(grad_columns, size, kernel_size, dilation, padding, stride)
    return grad_input, grad_weight, grad.sum((0, 2))


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
    """Y = crop(fold(Wᵀ · X)) + b: every input pixel stamps its weighted kernel on the output.

    Args:
        input: (N, in_channels, H, W).
        weight: (in_channels, out_channels, kh, kw).
        bias: (out_channels,) or None.
        stride: distance between stamps, in pixels.
        padding: rows and columns cut off each side.
        output_padding: rows and columns added at the bottom and right.
        dilation: distance between kernel taps.
        activation: None, or "relu" applied to the output.

    Returns:
        (N, out_channels, oh, ow).
    """
    kernel_size = (weight.shape[2], weight.shape[3])
    output_size = conv_transpose2d_output_size(
        input.shape[2:], kernel_size, stride, padding, output_padding, dilation
    )
    canvas_size = _canvas_size(input, kernel_size, stride, dilation)
    columns = weight.flatten(1).T @ input.flatten(2)  # (N, out_channels·kh·kw, H·W)
    canvas = fold(columns, canvas_size, kernel_size, dilation, 0, stride)
    output = _window(canvas, padding, output_size)
    if bias is not None:
        output += bias.view(1, -1, 1, 1)
    return _activate(output, activation)


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
    needs_grad_input: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """With C = unfold(uncrop(dY)): dX = W · C, dW = Σ_n X_n · C_nᵀ, db = Σ_{n,y,x} dY.

    Args and Returns as of `conv2d_backward`.
    """
    if output is not None:
        grad_output = relu_backward(grad_output, output)
    kernel_size = (weight.shape[2], weight.shape[3])
    canvas_size = _canvas_size(input, kernel_size, stride, dilation)
    canvas = _window(grad_output, (-padding[0], -padding[1]), canvas_size)
    columns = unfold(canvas, kernel_size, dilation, 0, stride)
    grad_input = (weight.flatten(1) @ columns).view_as(input) if needs_grad_input else None
    grad_weight = torch.einsum("ncl,nkl->ck", input.flatten(2), columns).view_as(weight)
    return grad_input, grad_weight, grad_output.sum((0, 2, 3))


def _activate(output: Tensor, activation: Activation) -> Tensor:
    return relu_forward(output) if activation == "relu" else output


def _canvas_size(
    input: Tensor, kernel_size: IntPair, stride: IntPair, dilation: IntPair
) -> IntPair:
    """What the stamps cover before padding is cut off."""
    return conv_transpose2d_output_size(
        input.shape[2:], kernel_size, stride, (0, 0), (0, 0), dilation
    )


def _window(image: Tensor, start: IntPair, size: IntPair) -> Tensor:
    """A copy of `image` from `start` (may be negative), `size` tall and wide; zero outside."""
    output = image.new_zeros(*image.shape[:2], *size)
    source, target = [], []
    for extent, first, length in zip(image.shape[2:], start, size, strict=True):
        low, high = max(first, 0), max(min(extent, first + length), max(first, 0))
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    output[:, :, target[0], target[1]] = image[:, :, source[0], source[1]]
    return output
