"""Convolution and transposed convolution, forward and backward, as products with im2col's windows.

Chellapilla et al., "High performance convolutional neural networks for document processing" (2006).
Both ops join a larger image L and a smaller image S by a kernel W:

    conv2d             S = W · windows(L)    dL = transpose(dS)     dW = dS · windows(L)ᵀ
    conv_transpose2d   L = transpose(S)      dS = W · windows(dL)   dW = S · windows(dL)ᵀ

`transpose` is a convolution, too: the output pixels between two positions of the stride all read
the same pixels of S, so they are channels of one convolution of stride 1, shuffled into place
afterwards (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).

Windows are written to memory in chunks; those of a 1×1 kernel are the image itself. Inputs may have
any strides, outputs are channels-last. Inside, images are (N, H, W, C).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..geometry import Activation, ConvGeometry, IntPair
from ..reference import relu_backward

CHUNK_BYTES = 3 << 19  # on a processor: stays in its cache
CHUNK_BYTES_DEVICE = 256 << 20  # elsewhere: few launches, yet memory that any GPU has

Where = tuple[slice, slice]


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Portable implementation of `reference.conv2d_forward`."""
    size = geometry.conv2d_output_size(input.shape[2:], weight.shape[2:])
    with torch.inference_mode(False):
        return _convolve(input, weight, bias, geometry, geometry.padding, size, activation)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Portable implementation of `reference.conv2d_backward`."""
    with torch.inference_mode(False):
        grad = grad_output if output is None else relu_backward(grad_output, output)
        grad_input = None
        if needs_input_grad:
            grad_input = _transpose(grad, weight, None, geometry, (input.shape[2], input.shape[3]))
            if residual is not None:
                grad_input += residual
        return grad_input, _weight_grad(input, grad, weight, geometry), _channel_sums(grad)


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Portable implementation of `reference.conv_transpose2d_forward`."""
    size = geometry.conv_transpose2d_output_size(input.shape[2:], weight.shape[2:])
    with torch.inference_mode(False):
        return _transpose(input, weight, bias, geometry, size, activation)


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Portable implementation of `reference.conv_transpose2d_backward`."""
    with torch.inference_mode(False):
        grad = grad_output if output is None else relu_backward(grad_output, output)
        grad_input = None
        if needs_input_grad:
            size = (input.shape[2], input.shape[3])
            grad_input = _convolve(grad, weight, None, geometry, geometry.padding, size)
            if residual is not None:
                grad_input += residual
        return grad_input, _weight_grad(grad, input, weight, geometry), _channel_sums(grad)


def _convolve(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    offset: IntPair,
    size: IntPair,
    activation: Activation = None,
) -> Tensor:
    """S = W · windows(L) + bias; `weight` is (S, L/groups, kh, kw), `offset` that of `_windows`."""
    groups, out = geometry.groups, len(weight)
    matrix, shift = _as_matrices(weight, bias, groups)
    output = POOL.alloc((len(image), *size, out), image)
    for where, windows in _chunks(_windows(image, _kernel(weight), geometry, offset, size)):
        _multiply(windows, matrix, shift, _by_group(output[where], groups), activation)
    return output.permute(0, 3, 1, 2)


def _transpose(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    size: IntPair,
    activation: Activation = None,
) -> Tensor:
    """L = transpose(S) + bias, of `size`; `weight` is (S, L/groups, kh, kw).

    Along each axis, with phase = (o + padding) mod stride and position = ⌊(o + padding)/stride⌋,

        L[o] = Σ_t S[position − dilation·t] · W[stride·t + phase]

    where a kernel that has both stride and dilation is written out with the zeros between its taps.
    """
    (sh, sw), (top, left), groups = geometry.stride, geometry.padding, geometry.groups
    if geometry.stride != (1, 1):
        weight, geometry = _dense(weight, geometry.dilation), ConvGeometry(groups=groups)
    into, channels, kh, kw = weight.shape
    th, tw = -(-kh // sh), -(-kw // sw)
    taps = torch.constant_pad_nd(weight, (0, tw * sw - kw, 0, th * sh - kh))
    taps = taps.view(groups, into // groups, channels, th, sh, tw, sw).flip(3, 5)
    # (groups · sh · sw · channels, into / groups, th, tw)
    taps = taps.permute(0, 4, 6, 2, 1, 3, 5).reshape(-1, into // groups, th, tw)
    if bias is not None:
        bias = bias.view(groups, 1, -1).expand(-1, sh * sw, -1).flatten()
    rows = (size[0] - 1 + top) // sh + 1 - top // sh
    columns = (size[1] - 1 + left) // sw + 1 - left // sw
    down, across = geometry.dilation
    offset = (down * (th - 1) - top // sh, across * (tw - 1) - left // sw)
    plain = ConvGeometry(dilation=(down, across), groups=groups)
    if (sh, sw) == (1, 1):
        return _convolve(image, taps, bias, plain, offset, (rows, columns), activation)
    matrix, shift = _as_matrices(taps, bias, groups)
    output = POOL.alloc((len(image), *size, groups * channels), image)
    top, left = top % sh, left % sw
    for (images, lines), windows in _chunks(
        _windows(image, (th, tw), plain, offset, (rows, columns))
    ):
        shape = (groups, windows.shape[1], matrix.shape[2])
        product = POOL.scratch("product", math.prod(shape), windows, windows.dtype).view(shape)
        _multiply(windows, matrix, shift, product, activation)
        target = output[images]
        phases = product.view(groups, len(target), -1, columns, sh, sw, channels)
        pixels = phases.permute(1, 2, 4, 3, 5, 0, 6).reshape(
            len(target), -1, columns * sw, groups * channels
        )
        start = lines.start * sh - top
        low, high = max(start, 0), min(start + pixels.shape[1], size[0])
        target[:, low:high] = pixels[:, low - start : high - start, left : left + size[1]]
    return output.permute(0, 3, 1, 2)


def _weight_grad(large: Tensor, small: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """dW = S · windows(L)ᵀ, summed in float32 at least."""
    groups, (out, into, kh, kw) = geometry.groups, weight.shape
    dtype = torch.promote_types(large.dtype, torch.float32)
    total = large.new_zeros(groups, kh * kw * into, out // groups, dtype=dtype)
    values, size = _nhwc(small), (small.shape[2], small.shape[3])
    for where, windows in _chunks(_windows(large, (kh, kw), geometry, geometry.padding, size)):
        # On a GPU half-precision products round once, after a sum in float32.
        total += torch.bmm(windows.transpose(1, 2), _by_group(values[where], groups))
    taps = total.view(groups, kh, kw, into, -1).permute(0, 4, 3, 1, 2)
    return taps.reshape(weight.shape).to(weight.dtype)


def _windows(
    image: Tensor, kernel: IntPair, geometry: ConvGeometry, offset: IntPair, size: IntPair
) -> Tensor:
    """View (groups, N, oh, ow, kh, kw, C/groups): what the kernel sees at every position.

    Args:
        image: (N, C, H, W).
        kernel: kh, kw.
        geometry: stride, dilation and groups.
        offset: zero rows above and columns left of the image; negative: so many are skipped.
        size: oh, ow; beyond the image are zeros.
    """
    image = _nhwc(image)[:, max(-offset[0], 0) :, max(-offset[1], 0) :]
    borders = []
    axes = (image.shape[1:3], kernel, geometry.stride, geometry.dilation, offset, size)
    for extent, k, stride, dilation, start, positions in zip(*axes, strict=True):
        before, seen = max(start, 0), (positions - 1) * stride + dilation * (k - 1) + 1
        borders.append((before, max(seen - before - extent, 0)))
    if any(map(any, borders)):
        image = torch.constant_pad_nd(image, (0, 0, *borders[1], *borders[0]))
    n, y, x, c = image.stride()
    channels = image.shape[3] // geometry.groups
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    return image.as_strided(
        (geometry.groups, len(image), *size, *kernel, channels),
        (channels * c, n, sh * y, sw * x, dh * y, dw * x, c),
        image.storage_offset(),
    )


def _chunks(windows: Tensor) -> Iterator[tuple[Where, Tensor]]:
    """Yield (images and rows, their windows (groups, positions, kh·kw·C/groups)).

    A chunk's memory serves the next one.
    """
    groups, batch, rows, columns = windows.shape[:4]
    depth = math.prod(windows.shape[4:])
    row_bytes = groups * columns * depth * windows.element_size()
    limit = CHUNK_BYTES if windows.device.type == "cpu" else CHUNK_BYTES_DEVICE
    at_once = max(limit // row_bytes, 1)
    images = max(at_once // rows, 1)
    # Equal shares: whole images, or rows of one.
    rows_at_once = -(-rows // -(-rows // at_once))
    for n in range(0, batch, images):
        for y in range(0, rows, rows_at_once):
            where = slice(n, n + images), slice(y, y + rows_at_once)
            chunk = windows[:, *where]
            if not chunk.is_contiguous():
                memory = POOL.scratch("windows", chunk.numel(), chunk, chunk.dtype)
                chunk = memory.view(chunk.shape).copy_(chunk)
            yield where, chunk.view(groups, -1, depth)


def _as_matrices(weight: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor | None]:
    """Return (groups, kh·kw·L/groups, S/groups) and (groups, 1, S/groups)."""
    out, into, kh, kw = weight.shape
    taps = weight.reshape(groups, out // groups, into, kh, kw).permute(0, 3, 4, 2, 1)
    return taps.reshape(groups, -1, out // groups), None if bias is None else bias.view(
        groups, 1, -1
    )


def _multiply(
    windows: Tensor, matrix: Tensor, shift: Tensor | None, target: Tensor, activation: Activation
) -> None:
    """target = activation(windows · matrix + shift)."""
    if shift is None:
        torch.bmm(windows, matrix, out=target)
    else:
        torch.baddbmm(shift, windows, matrix, out=target)
    if activation == "relu":
        target.clamp_min_(0)


def _by_group(image: Tensor, groups: int) -> Tensor:
    """(N, H, W, C) as (groups, positions, C/groups)."""
    return image.view(-1, groups, image.shape[3] // groups).transpose(0, 1)


def _channel_sums(image: Tensor) -> Tensor:
    """Σ over images and positions, in float32 at least."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    return image.sum((0, 2, 3), dtype=dtype).to(image.dtype)


def _dense(weight: Tensor, dilation: IntPair) -> Tensor:
    """The kernel with the zeros between its taps."""
    if dilation == (1, 1):
        return weight
    kh, kw = weight.shape[2:]
    down, across = dilation
    dense = weight.new_zeros(*weight.shape[:2], down * (kh - 1) + 1, across * (kw - 1) + 1)
    dense[:, :, ::down, ::across] = weight
    return dense


def _kernel(weight: Tensor) -> IntPair:
    return weight.shape[2], weight.shape[3]


def _nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).contiguous()
