"""The arithmetic of the lean blocks: unfold, one matrix product, fold, for a whole tiny batch.

Signatures and results are those of `kernels/reference`; images are channels-last. Not for large
ones, whose im2col would not fit in cache.

With S the smaller and L the larger image (N, H, W, C) and windows(L) of kh·kw·C columns:

    conv2d             S = windows(L) · W     dL = fold(dS · Wᵀ)    dW = windows(L)ᵀ · dS
    conv_transpose2d   L = fold(S · Wᵀ)       dS = windows(dL) · W  dW = windows(dL)ᵀ · S
"""

import torch
from torch import Tensor

from denoise_batch.kernels.gemm.im2col import fold, matrix_of, windows_of
from denoise_batch.kernels.geometry import (
    Activation,
    IntPair,
    conv2d_output_size,
    conv_transpose2d_output_size,
)

# As a transposed convolution, upsampling by 2 before a 3×3 convolution with padding 1 is …
UPSAMPLING: dict[str, IntPair] = {"stride": (2, 2), "padding": (1, 1), "output_padding": (0, 0)}


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    activation: Activation = None,
) -> Tensor:
    """As `kernels.reference.conv.conv2d_forward`; the output is channels-last."""
    kernel = (weight.shape[2], weight.shape[3])
    size = conv2d_output_size(input.shape[2:], kernel, stride, padding, (1, 1))
    output = _product(_windows(input, kernel, stride, padding, size), matrix_of(weight), bias)
    if activation == "relu":
        output.relu_()
    return output.view(len(input), *size, len(weight)).permute(0, 3, 1, 2)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `kernels.reference.conv.conv2d_backward`."""
    grad = _rows(_masked(grad_output, output))
    kernel = (weight.shape[2], weight.shape[3])
    windows = _windows(input, kernel, stride, padding, grad_output.shape[2:])
    grad_weight = _weight_of(windows.T.mm(grad), weight)
    grad_input = None
    if needs_input_grad and stride == (1, 1):
        # The fold of a stride of 1 is itself a convolution, with the kernel turned by 180°.
        turned = weight.flip(2, 3).transpose(0, 1)
        around = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
        image = grad.view(len(input), *grad_output.shape[2:], len(weight)).permute(0, 3, 1, 2)
        grad_input = conv2d_forward(image, turned, None, stride=stride, padding=around)
    elif needs_input_grad:
        columns = grad.mm(matrix_of(weight).T)
        grad_input = _fold(columns, input.shape, kernel, stride, padding, grad_output.shape[2:])
    return grad_input, grad_weight, grad.sum(0)


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    activation: Activation = None,
) -> Tensor:
    """As `kernels.reference.conv.conv_transpose2d_forward`; the output is channels-last."""
    kernel = (weight.shape[2], weight.shape[3])
    size = conv_transpose2d_output_size(
        input.shape[2:], kernel, stride, padding, output_padding, (1, 1)
    )
    shape = (len(input), weight.shape[1], *size)
    columns = _rows(input).mm(matrix_of(weight).T)
    output = _fold(columns, shape, kernel, stride, padding, input.shape[2:], bias)
    return output.relu_() if activation == "relu" else output


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """As `kernels.reference.conv.conv_transpose2d_backward`."""
    grad = _masked(grad_output, output)
    kernel = (weight.shape[2], weight.shape[3])
    windows = _windows(grad, kernel, stride, padding, input.shape[2:])
    grad_weight = _weight_of(windows.T.mm(_rows(input)), weight)
    grad_input = None
    if needs_input_grad:
        flat = windows.mm(matrix_of(weight))
        grad_input = flat.view(len(input), *input.shape[2:], len(weight)).permute(0, 3, 1, 2)
    return grad_input, grad_weight, _rows(grad).sum(0)


def upsample_conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    taps: Tensor,
    activation: Activation = None,
) -> Tensor:
    """(N, C, H, W) → (N, O, 2H, 2W), channels-last; `taps` is `box_taps()`."""
    return conv_transpose2d_forward(
        input, _boxed(weight, taps), bias, activation=activation, **UPSAMPLING
    )


def upsample_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    taps: Tensor,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of input, weight and bias."""
    grad_input, grad_boxed, grad_bias = conv_transpose2d_backward(
        grad_output,
        input,
        _boxed(weight, taps),
        output=output,
        needs_input_grad=needs_input_grad,
        **UPSAMPLING,
    )
    by_tap = grad_boxed.permute(2, 3, 0, 1).reshape(16, -1)
    return grad_input, _weight_of(taps.T.mm(by_tap), weight), grad_bias


def _windows(
    image: Tensor, kernel: IntPair, stride: IntPair, padding: IntPair, size: tuple[int, ...]
) -> Tensor:
    """im2col: (N·oh·ow, kh·kw·C), a row for each window."""
    return windows_of(image.permute(0, 2, 3, 1), kernel, stride, padding, (size[0], size[1]))


def _fold(
    columns: Tensor,
    shape: tuple[int, ...],
    kernel: IntPair,
    stride: IntPair,
    padding: IntPair,
    size: tuple[int, ...],
    bias: Tensor | None = None,
) -> Tensor:
    """The adjoint of `_windows`, plus a bias: (N·oh·ow, kh·kw·C) → (N, C, H, W)."""
    n, c, height, width = shape
    large = (n, height, width, c)
    return fold(columns, (n, *size), large, kernel, stride, padding, bias).permute(0, 3, 1, 2)


def _weight_of(matrix: Tensor, weight: Tensor) -> Tensor:
    """The inverse of `matrix_of`, as a view."""
    small, large, kh, kw = weight.shape
    return matrix.view(kh, kw, large, small).permute(3, 2, 0, 1)


def _rows(image: Tensor) -> Tensor:
    """(N, C, H, W) as (N·H·W, C)."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return left.mm(right) if bias is None else torch.addmm(bias, left, right)


def _masked(grad_output: Tensor, output: Tensor | None) -> Tensor:
    """ReLU's gradient."""
    return grad_output if output is None else grad_output * (output > 0)


def box_taps() -> Tensor:
    """(16, 9), 1 where tap (k, l) of the 4×4 kernel takes up tap (i, j) of the 3×3 one."""
    line = torch.zeros(4, 3)
    for copy in range(2):
        for tap in range(3):
            line[copy + 2 - tap, tap] = 1
    return torch.einsum("ki,lj->klij", line, line).reshape(16, 9)


def _boxed(weight: Tensor, taps: Tensor) -> Tensor:
    """(O, C, 3, 3) as the weight (C, O, 4, 4) of a transposed convolution."""
    out_channels, in_channels = weight.shape[:2]
    by_tap = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return taps.mm(by_tap).view(4, 4, in_channels, out_channels).permute(2, 3, 0, 1)
