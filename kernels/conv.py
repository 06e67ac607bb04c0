"""Conv2d and ConvTranspose2d: torch's signatures, weight shapes, initialisation and errors."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import ops
from .block import Block, accumulate_grad
from .geometry import (
    Activation,
    Int2,
    IntPair,
    Shape,
    check_nchw,
    conv2d_output_size,
    conv_transpose2d_output_size,
    pair,
)
from .init import bias_uniform_, kaiming_uniform_


class Convolution(Block):
    """What both convolutions share: arguments, parameters, precision, the fused activation."""

    parameter_names = ("weight", "bias")

    # The ops with this block's geometry filled in.
    _forward_op: Callable[..., Tensor]
    _backward_op: Callable[..., tuple[Tensor | None, Tensor, Tensor]]

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

    @property
    def saves_output(self) -> bool:
        """Not without an activation (`Sequential` asks this of a convolution that has none)."""
        return False

    @abstractmethod
    def output_size(self, size: Sequence[int]) -> IntPair:
        """(oh, ow) for an input of (H, W).

        Raises:
            ShapeError: the output would be empty.
        """

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """(N, out_channels, oh, ow) for an input of (N, in_channels, H, W).

        Raises:
            ShapeError: wrong number of channels, or an input too small for any output.
        """
        check_nchw(shape, self.in_channels, f"{type(self).__name__} input")
        return (shape[0], self.out_channels, *self.output_size(shape[2:]))

    def forward(self, input: Tensor, activation: Activation = None) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, oh, ow), then the activation.

        Raises:
            ShapeError: wrong number of channels, or an input too small for any output.
        """
        self.output_shape(input.shape)
        dtype = self.compute_dtype or self.weight.dtype
        input, weight = input.to(dtype), self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        output = self._forward_op(input, weight, bias, activation=activation)
        self._save((input, output if activation else None, weight), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """The gradient of the input; adds to weight.grad and bias.grad."""
        grad_input = self._backward(grad_output, needs_input_grad=True)
        assert grad_input is not None  # it was asked for
        return grad_input

    def backward_parameters(self, grad_output: Tensor) -> None:
        """Adds to weight.grad and bias.grad, and saves the work for the input's gradient."""
        self._backward(grad_output, needs_input_grad=False)

    def _backward(self, grad_output: Tensor, *, needs_input_grad: bool) -> Tensor | None:
        input, output, weight = self._pop_saved(grad_output)
        grad_input, grad_weight, grad_bias = self._backward_op(
            grad_output.to(weight.dtype),
            input,
            weight,
            output=output,
            needs_input_grad=needs_input_grad,
        )
        accumulate_grad(self.weight, grad_weight)
        if self.bias is not None:
            accumulate_grad(self.bias, grad_bias)
        self._notify_grad_ready()
        return grad_input


class Conv2d(Convolution):
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
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
        }
        self._forward_op = partial(ops.conv2d_forward, **geometry)
        self._backward_op = partial(ops.conv2d_backward, **geometry)

    def output_size(self, size: Sequence[int]) -> IntPair:
        """As `shapes.conv2d_output_size`."""
        return conv2d_output_size(size, self.kernel_size, self.stride, self.padding, self.dilation)


class ConvTranspose2d(Convolution):
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
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "dilation": self.dilation,
        }
        self._forward_op = partial(ops.conv_transpose2d_forward, **geometry)
        self._backward_op = partial(ops.conv_transpose2d_backward, **geometry)
        # An input that is large enough for any padding: only the arguments can be wrong here.
        self.output_size((1 + 2 * self.padding[0], 1 + 2 * self.padding[1]))

    def output_size(self, size: Sequence[int]) -> IntPair:
        """As `shapes.conv_transpose2d_output_size`."""
        return conv_transpose2d_output_size(
            size, self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation
        )
