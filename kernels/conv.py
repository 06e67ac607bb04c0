"""Conv2d and ConvTranspose2d: torch's signatures, weight shapes, initialisation and errors."""

import torch
from torch import Tensor

from . import ops
from .block import Block, accumulate_grad
from .init import bias_uniform_, kaiming_uniform_
from .shapes import Int2, check_nchw, conv2d_output_size, conv_transpose2d_output_size, pair


class _Convolution(Block):
    """Arguments and parameters that both convolutions share."""

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        weight_channels: tuple[int, int],
        kernel_size: Int2,
        stride: Int2,
        padding: Int2,
        dilation: Int2,
        bias: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.in_channels = pair(in_channels, "in_channels", minimum=1)[0]
        self.out_channels = pair(out_channels, "out_channels", minimum=1)[0]
        self.kernel_size = pair(kernel_size, "kernel_size", minimum=1)
        self.stride = pair(stride, "stride", minimum=1)
        self.padding = pair(padding, "padding", minimum=0)
        self.dilation = pair(dilation, "dilation", minimum=1)
        self.weight = kaiming_uniform_(torch.empty(*weight_channels, *self.kernel_size), generator)
        self.bias = (
            bias_uniform_(torch.empty(out_channels), self.weight, generator) if bias else None
        )

    def _accumulate(self, grad_weight: Tensor, grad_bias: Tensor) -> None:
        accumulate_grad(self.weight, grad_weight)
        if self.bias is not None:
            accumulate_grad(self.bias, grad_bias)


class Conv2d(_Convolution):
    """2-D convolution (cross-correlation, as torch calls it) over (N, in_channels, H, W).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: extent of the kernel, one integer or (kh, kw).
        stride: step between output positions.
        padding: zeros added on each side.
        dilation: distance between kernel taps.
        bias: whether a bias is added.
        generator: randomness of the initial weights; torch's global generator by default.

    Attributes:
        weight: (out_channels, in_channels, kh, kw).
        bias: (out_channels,) or None.

    Raises:
        ShapeError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        stride: Int2 = 1,
        padding: Int2 = 0,
        dilation: Int2 = 1,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (out_channels, in_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            bias,
            generator,
        )

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, oh, ow).

        Raises:
            ShapeError: wrong number of channels, or an image smaller than the kernel.
        """
        check_nchw(input.shape, self.in_channels, "Conv2d input")
        conv2d_output_size(
            input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation
        )
        self._save(input)
        return ops.conv2d_forward(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def backward(self, grad_output: Tensor) -> Tensor:
        """The gradient of the input; adds to weight.grad and bias.grad."""
        grad_input, grad_weight, grad_bias = ops.conv2d_backward(
            grad_output,
            self._take_saved(),
            self.weight,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        self._accumulate(grad_weight, grad_bias)
        return grad_input


class ConvTranspose2d(_Convolution):
    """Transposed 2-D convolution, the adjoint of Conv2d, over (N, in_channels, H, W).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: extent of the kernel, one integer or (kh, kw).
        stride: how far apart two input pixels stamp their kernels.
        padding: rows and columns cut off each side of the output.
        output_padding: rows and columns added at the bottom and right; less than stride
            (or dilation).
        bias: whether a bias is added.
        dilation: distance between kernel taps.
        generator: randomness of the initial weights; torch's global generator by default.

    Attributes:
        weight: (in_channels, out_channels, kh, kw).
        bias: (out_channels,) or None.

    Raises:
        ShapeError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        stride: Int2 = 1,
        padding: Int2 = 0,
        output_padding: Int2 = 0,
        bias: bool = True,
        dilation: Int2 = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (in_channels, out_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            bias,
            generator,
        )
        self.output_padding = pair(output_padding, "output_padding", minimum=0)
        # A kernel of any size fits an image of its own size: only the arguments can be wrong here.
        conv_transpose2d_output_size(
            (1 + 2 * self.padding[0], 1 + 2 * self.padding[1]),
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
        )

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, oh, ow).

        Raises:
            ShapeError: wrong number of channels, or padding that leaves no output.
        """
        check_nchw(input.shape, self.in_channels, "ConvTranspose2d input")
        conv_transpose2d_output_size(
            input.shape[2:],
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
        )
        self._save(input)
        return ops.conv_transpose2d_forward(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
        )

    def backward(self, grad_output: Tensor) -> Tensor:
        """The gradient of the input; adds to weight.grad and bias.grad."""
        grad_input, grad_weight, grad_bias = ops.conv_transpose2d_backward(
            grad_output,
            self._take_saved(),
            self.weight,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
        )
        self._accumulate(grad_weight, grad_bias)
        return grad_input
