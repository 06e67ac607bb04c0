"""Convolution and transposed convolution, forward and backward, as matrix products.

Both join a larger image L and a smaller image S by a kernel W:

    conv2d             S = conv_forward(L)      dL = conv_transpose(dS)   dW = Lᵀ·dS
    conv_transpose2d   L = conv_transpose(S)    dS = conv_forward(dL)     dW = dLᵀ·S

Inputs may have any strides; channels-last ones are read fastest, and outputs are channels-last.
Dilated kernels are written out with their zeros first: right, though not fast. Results never share
memory with each other or with a cache.
"""

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..geometry import Activation, ConvGeometry, IntPair
from . import im2col, products, winograd
from .pointwise import relu_backward
from .products import Chunk, Grid, WriteChunk, compute_dtype, write

# Of all windows together: 16 MiB in float32, half of a last-level cache.
MOST_WINDOW_ELEMENTS = 1 << 22
_IM2COL_DTYPES = (torch.float32, torch.float64)
_SUM_ROWS = 8192


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """CPU implementation of `reference.conv2d_forward`."""
    size = geometry.conv2d_output_size(input.shape[2:], weight.shape[2:])
    with torch.inference_mode(False):
        output = _empty(input, len(weight), size)
        if output.numel():
            dense = _dense(weight, geometry)
            _conv_forward(output, input, dense, bias, geometry, activation == "relu")
    return output


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """CPU implementation of `reference.conv2d_backward`."""
    with torch.inference_mode(False):
        grad = grad_output if output is None else relu_backward(grad_output, output)
        dense = _dense(weight, geometry)
        grad_dense, grad_bias = torch.zeros_like(dense), weight.new_zeros(len(weight))
        grad_input = _empty(input, input.shape[1], input.shape[2:]) if needs_input_grad else None
        if grad.numel():
            _weight_grad(grad_dense, input, grad, geometry)
            grad_bias.copy_(_channel_sums(grad))
        if grad_input is not None and grad_input.numel():
            _conv_transpose(grad_input, grad, dense, None, geometry, False)
        if grad_input is not None and residual is not None:
            grad_input += residual
    return grad_input, _thinned(grad_dense, geometry), grad_bias


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """CPU implementation of `reference.conv_transpose2d_forward`."""
    size = geometry.conv_transpose2d_output_size(input.shape[2:], weight.shape[2:])
    with torch.inference_mode(False):
        output = _empty(input, weight.shape[1], size)
        if output.numel():
            dense = _dense(weight, geometry)
            _conv_transpose(output, input, dense, bias, geometry, activation == "relu")
    return output


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """CPU implementation of `reference.conv_transpose2d_backward`."""
    with torch.inference_mode(False):
        grad = grad_output if output is None else relu_backward(grad_output, output)
        dense = _dense(weight, geometry)
        grad_dense, grad_bias = torch.zeros_like(dense), weight.new_zeros(weight.shape[1])
        grad_input = _empty(input, input.shape[1], input.shape[2:]) if needs_input_grad else None
        if grad.numel():
            _weight_grad(grad_dense, grad, input, geometry)
            grad_bias.copy_(_channel_sums(grad))
            if grad_input is not None:
                _conv_forward(grad_input, grad, dense, None, geometry, False)
        if grad_input is not None and residual is not None:
            grad_input += residual
    return grad_input, _thinned(grad_dense, geometry), grad_bias


def _conv_forward(
    output: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    relu: bool,
) -> None:
    """S = conv_forward(L) for S, L and the weight (S, L, kh, kw) as the ops see them."""
    dtype = compute_dtype(image)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    size = (output.shape[2], output.shape[3])
    source, target = _nhwc(image), _nhwc(output)
    if winograd.applies(weight, geometry, size, image.dtype):
        winograd.conv_forward(source, weight, bias, target, padding=geometry.padding, relu=relu)
        return
    if is_small(image, _kernel(weight), size):
        im2col.conv_forward(source, weight, bias, target, geometry, relu=relu)
        return

    def writer(product: Tensor) -> WriteChunk:
        values = product[:, :, : size[1]]

        def write_chunk(chunk: Chunk) -> None:
            write(values, target[chunk.n0 : chunk.n1, chunk.y0 : chunk.y1], relu)

        return write_chunk

    # (S, L, kh, kw) as (kw·kh·L, S), of which only the rows have to be contiguous.
    matrix = weight.permute(0, 3, 2, 1).reshape(len(weight), -1).T
    products.conv_forward(source, matrix, bias, _grid(image, weight, geometry, size), writer)


def _conv_transpose(
    output: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    relu: bool,
) -> None:
    """L = conv_transpose(S), the adjoint."""
    dtype = compute_dtype(image)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    source, target = _nhwc(image), _nhwc(output)
    size = (output.shape[2], output.shape[3])
    if bias is None and not relu and winograd.applies(weight, geometry, size, image.dtype):
        winograd.conv_transpose(source, weight, target, padding=geometry.padding)
    elif is_small(output, _kernel(weight), (image.shape[2], image.shape[3])):
        im2col.conv_transpose(source, weight, bias, target, geometry, relu=relu)
    else:
        products.conv_transpose(source, weight, bias, target, geometry, relu=relu)


def _weight_grad(grad_weight: Tensor, large: Tensor, small: Tensor, geometry: ConvGeometry) -> None:
    """dW = windows(L)ᵀ · S."""
    size, kernel = (small.shape[2], small.shape[3]), _kernel(grad_weight)
    source, target = _nhwc(large), _nhwc(small)
    if winograd.applies(grad_weight, geometry, size, large.dtype):
        grad_weight.copy_(winograd.weight_grad(source, target, padding=geometry.padding))
        return
    if is_small(large, kernel, size):
        grad_weight.copy_(im2col.weight_grad(source, target, kernel, geometry))
        return
    grid = _grid(large, grad_weight, geometry, size)
    matrix = products.weight_grad(source, target, grid, compute_dtype(large))
    small_channels, large_channels, kh, kw = grad_weight.shape
    taps = matrix.view(kw, kh, large_channels, small_channels)
    grad_weight.copy_(taps.permute(3, 2, 1, 0))


def is_small(large: Tensor, kernel: IntPair, size: IntPair) -> bool:
    """Whether `im2col` serves: few windows of (N, L, H, W) at `size` positions, and in training."""
    batch, channels = large.shape[:2]
    elements = batch * size[0] * size[1] * kernel[0] * kernel[1] * channels
    is_little = elements <= MOST_WINDOW_ELEMENTS and large.dtype in _IM2COL_DTYPES
    return is_little and not POOL.is_enabled


def _grid(large: Tensor, weight: Tensor, geometry: ConvGeometry, output: IntPair) -> Grid:
    batch, channels, height, width = large.shape
    stride, padding = geometry.stride, geometry.padding
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
        wide = POOL.scratch("sum", rows.numel(), rows, dtype).view(rows.shape)
        total += wide.copy_(rows).sum(0)
    return total


def _dense(weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The kernel with the zeros between its taps."""
    down, across = geometry.dilation
    if (down, across) == (1, 1):
        return weight
    kh, kw = _kernel(weight)
    dense = weight.new_zeros(*weight.shape[:2], down * (kh - 1) + 1, across * (kw - 1) + 1)
    dense[:, :, ::down, ::across] = weight
    return dense


def _thinned(grad: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of a dilated kernel's own taps."""
    return grad[:, :, :: geometry.dilation[0], :: geometry.dilation[1]].contiguous()


def _kernel(weight: Tensor) -> IntPair:
    return weight.shape[2], weight.shape[3]


def _nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


def _empty(like: Tensor, channels: int, size: IntPair | torch.Size) -> Tensor:
    """An uninitialised channels-last image."""
    return POOL.alloc((len(like), *size, channels), like).permute(0, 3, 1, 2)
