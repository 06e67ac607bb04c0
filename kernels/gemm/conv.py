"""Convolution and transposed convolution, forward and backward: the twins of `reference.conv`.

Both are made of one pair of images, a larger L and a smaller S, joined by a kernel W:

    conv2d             S = correlate(L)     dL = stamp(dS)       dW = Lᵀ·dS
    conv_transpose2d   L = stamp(S)         dS = correlate(dL)   dW = dLᵀ·S

Inputs may have any strides; channels-last ones are read fastest, and outputs are channels-last.
Dilated kernels are written out with their zeros first: right, though not fast. Results never share
memory with each other or with a cache.
"""

import torch
from torch import Tensor

from .. import buffer_pool as scratch
from .. import buffer_pool as workspace
from ..geometry import Activation, IntPair, conv2d_output_size, conv_transpose2d_output_size
from . import im2col as small
from . import winograd
from .pointwise import masked
from .products import Chunk, Grid, Store, compute_dtype, correlate, stamp, weight_grad, write

_SUM_ROWS = 8192


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
    """Y = act(W · windows(X) + b).

    Args:
        input: (N, in_channels, H, W).
        weight: (out_channels, in_channels, kh, kw).
        bias: (out_channels,) or None.
        stride: step between output positions, in pixels.
        padding: zeros added on each side.
        dilation: distance between kernel taps.
        activation: "relu" is applied to the result while it is in cache.

    Returns:
        (N, out_channels, oh, ow), channels-last.
    """
    size = conv2d_output_size(input.shape[2:], _kernel(weight), stride, padding, dilation)
    with torch.inference_mode(False):
        output = _empty(input, len(weight), size)
        if output.numel():
            taps = _dense(weight, dilation)
            _conv_forward_into(output, input, taps, bias, stride, padding, activation == "relu")
    return output


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
    """dX = stamp(dZ), dW = windows(X)ᵀ · dZ, db = Σ dZ, with dZ = dY where Y > 0 (or all of dY).

    Args:
        grad_output: (N, out_channels, oh, ow).
        input: forward's.
        weight: forward's.
        stride: forward's.
        padding: forward's.
        dilation: forward's.
        output: forward's result if its activation was "relu", otherwise None.
        needs_input_grad: False for a first layer, whose grad_input nobody reads.

    Returns:
        grad_input (None if not needed), grad_weight and grad_bias, shaped as input, weight, bias.
    """
    with torch.inference_mode(False):
        grad = masked(grad_output, output)
        taps = _dense(weight, dilation)
        grad_taps, grad_bias = torch.zeros_like(taps), weight.new_zeros(len(weight))
        grad_input = _empty(input, input.shape[1], input.shape[2:]) if needs_input_grad else None
        if grad.numel():
            _weight_grad_into(grad_taps, input, grad, stride, padding)
            grad_bias.copy_(_channel_sums(grad))
        if grad_input is not None and grad_input.numel():
            _conv_transpose_into(grad_input, grad, taps, None, stride, padding, False)
    return grad_input, _thinned(grad_taps, dilation), grad_bias


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
    """Y = act(stamp(X) + b): every input pixel stamps its weighted kernel on the output.

    Args:
        input: (N, in_channels, H, W).
        weight: (in_channels, out_channels, kh, kw).
        bias: (out_channels,) or None.
        stride: distance between stamps, in pixels.
        padding: rows and columns cut off each side.
        output_padding: rows and columns added at the bottom and right.
        dilation: distance between kernel taps.
        activation: "relu" is applied to the result while it is in cache.

    Returns:
        (N, out_channels, oh, ow), channels-last.
    """
    size = conv_transpose2d_output_size(
        input.shape[2:], _kernel(weight), stride, padding, output_padding, dilation
    )
    with torch.inference_mode(False):
        output = _empty(input, weight.shape[1], size)
        if output.numel():
            taps = _dense(weight, dilation)
            _conv_transpose_into(output, input, taps, bias, stride, padding, activation == "relu")
    return output


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
    """dX = W · windows(dZ), dW = windows(dZ)ᵀ · X, db = Σ dZ; dZ as in `conv2d_backward`.

    Returns:
        grad_input (None if not needed), grad_weight and grad_bias, shaped as input, weight, bias.
    """
    with torch.inference_mode(False):
        grad = masked(grad_output, output)
        taps = _dense(weight, dilation)
        grad_taps, grad_bias = torch.zeros_like(taps), weight.new_zeros(weight.shape[1])
        grad_input = _empty(input, input.shape[1], input.shape[2:]) if needs_input_grad else None
        if grad.numel():
            _weight_grad_into(grad_taps, grad, input, stride, padding)
            grad_bias.copy_(_channel_sums(grad))
            if grad_input is not None:
                _conv_forward_into(grad_input, grad, taps, None, stride, padding, False)
    return grad_input, _thinned(grad_taps, dilation), grad_bias


def _conv_forward_into(
    output: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair,
    relu: bool,
) -> None:
    """S = correlate(L) for S, L and the weight (S, L, kh, kw) as the ops see them."""
    dtype = compute_dtype(image)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    size = (output.shape[2], output.shape[3])
    source, target = _nhwc(image), _nhwc(output)
    if winograd.applies(weight, stride, size, image.dtype):
        winograd.correlate(source, weight, bias, target, padding=padding, relu=relu)
        return
    if small.applies(image, _kernel(weight), size):
        small.correlate(source, weight, bias, target, stride=stride, padding=padding, relu=relu)
        return

    def emit(product: Tensor) -> Store:
        values = product[:, :, : size[1]]

        def store(chunk: Chunk) -> None:
            write(values, target[chunk.n0 : chunk.n1, chunk.y0 : chunk.y1], relu)

        return store

    # (S, L, kh, kw) as (kw·kh·L, S), of which only the rows have to be contiguous.
    matrix = weight.permute(0, 3, 2, 1).reshape(len(weight), -1).T
    correlate(source, matrix, bias, _grid(image, weight, stride, padding, size), emit)


def _conv_transpose_into(
    output: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair,
    relu: bool,
) -> None:
    """L = stamp(S), the adjoint."""
    dtype = compute_dtype(image)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    source, target = _nhwc(image), _nhwc(output)
    size = (output.shape[2], output.shape[3])
    if bias is None and not relu and winograd.applies(weight, stride, size, image.dtype):
        winograd.stamp(source, weight, target, padding=padding)
    elif small.applies(output, _kernel(weight), (image.shape[2], image.shape[3])):
        small.stamp(source, weight, bias, target, stride=stride, padding=padding, relu=relu)
    else:
        stamp(source, weight, bias, target, stride=stride, padding=padding, relu=relu)


def _weight_grad_into(
    grad_weight: Tensor, large: Tensor, little: Tensor, stride: IntPair, padding: IntPair
) -> None:
    """dW = windows(L)ᵀ · S."""
    size, kernel = (little.shape[2], little.shape[3]), _kernel(grad_weight)
    source, target = _nhwc(large), _nhwc(little)
    if winograd.applies(grad_weight, stride, size, large.dtype):
        grad_weight.copy_(winograd.weight_grad(source, target, padding=padding))
        return
    if small.applies(large, kernel, size):
        grad_weight.copy_(small.weight_grad(source, target, kernel, stride, padding))
        return
    grid = _grid(large, grad_weight, stride, padding, size)
    matrix = weight_grad(source, target, grid, compute_dtype(large))
    small_channels, large_channels, kh, kw = grad_weight.shape
    taps = matrix.view(kw, kh, large_channels, small_channels)
    grad_weight.copy_(taps.permute(3, 2, 1, 0))


def _grid(
    large: Tensor, weight: Tensor, stride: IntPair, padding: IntPair, output: IntPair
) -> Grid:
    batch, channels, height, width = large.shape
    return Grid(batch, (height, width), channels, _kernel(weight), stride, padding, output)


def _channel_sums(image: Tensor) -> Tensor:
    """Σ over images and positions, in float32 at least."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    flat = _nhwc(image).reshape(-1, image.shape[1])
    if image.dtype == dtype:
        return flat.sum(0)
    # Summing bfloat16 into float32 takes 2.3 ms for 2.4 M elements, summing float32 0.1: rows are
    # converted first, in cache.
    total = torch.zeros(image.shape[1], dtype=dtype, device=image.device)
    for start in range(0, len(flat), _SUM_ROWS):
        rows = flat[start : start + _SUM_ROWS]
        wide = scratch.take("sum", rows.numel(), rows, dtype).view(rows.shape)
        total += wide.copy_(rows).sum(0)
    return total


def _dense(weight: Tensor, dilation: IntPair) -> Tensor:
    """The kernel with the zeros between its taps."""
    if dilation == (1, 1):
        return weight
    kh, kw = _kernel(weight)
    dense = weight.new_zeros(
        *weight.shape[:2], dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1
    )
    dense[:, :, :: dilation[0], :: dilation[1]] = weight
    return dense


def _thinned(grad: Tensor, dilation: IntPair) -> Tensor:
    """The gradient of a dilated kernel's own taps."""
    return grad[:, :, :: dilation[0], :: dilation[1]].contiguous()


def _kernel(weight: Tensor) -> IntPair:
    return weight.shape[2], weight.shape[3]


def _nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


def _empty(like: Tensor, channels: int, size: IntPair | torch.Size) -> Tensor:
    """An uninitialised channels-last image."""
    return workspace.empty((len(like), *size, channels), like).permute(0, 3, 1, 2)
