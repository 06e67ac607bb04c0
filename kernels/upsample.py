"""Upsampling followed by a convolution, computed as one (course paper, II-C)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .block import Block
from .container import Sequential
from .dispatch import Gradients, Ops, ops_for
from .geometry import Activation, ConvGeometry, Int2, IntPair, check_nchw
from .layers import Conv2d, Convolution, NearestUpsample2d
from .padding import PaddingMode


class UpsampleConv2d(Sequential):
    """NearestUpsample2d, then Conv2d: the course paper's alternative to a transposed convolution.

    Odena et al., "Deconvolution and checkerboard artifacts" (2016). Arguments after `scale_factor`
    are Conv2d's; the convolution's parameters are named "1.weight" and "1.bias".

    Where the convolution has neither stride, dilation nor groups, and zeros added evenly, the two
    are computed as one transposed convolution, without the upsampled image and with fewer
    multiplications (docs/design/adr/0024).

    Attributes:
        upsample: the first block.
        conv: the second block.
        merged: what runs instead of both, or None.
    """

    def __init__(
        self,
        scale_factor: Int2,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        stride: Int2 = 1,
        padding: Int2 | str = 0,
        dilation: Int2 = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.upsample = NearestUpsample2d(scale_factor)
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            generator=generator,
        )
        super().__init__(self.upsample, self.conv)
        self.merged: MergedUpsampleConv2d | None = None
        if MergedUpsampleConv2d.serves(self.conv):
            self.merged = MergedUpsampleConv2d(self.upsample, self.conv)

    def clear_saved(self) -> None:
        """Drop what forward saved."""
        super().clear_saved()
        if self.merged is not None:
            self.merged.clear_saved()

    def launched(self, ops: Ops) -> Sequence[Block]:
        """Return the merged layer, unless upsampling is part of a launch."""
        return self.blocks if self.merged is None or ops.has_fused_upsample else (self.merged,)

    def _steps(self) -> list[tuple[Block, Activation]]:
        return super()._steps() if self.merged is None else [(self.merged, None)]


class MergedUpsampleConv2d(Convolution):
    """A convolution after an upsampling, as the transposed convolution that the two are.

    Upsampled by s, every pixel of the small image meets the k taps of the kernel in its s copies,
    each one pixel further: along each axis a transposed convolution of stride s, whose k + s − 1
    taps are the kernel, turned, and convolved with a box of s ones: 16 multiplications instead of
    36 for s = 2 and k = 3. Parameters and settings are the convolution's own.
    """

    def __init__(self, upsample: NearestUpsample2d, conv: Conv2d) -> None:
        # Convolution's own is not called: what is not set here is `conv`'s (`__getattr__`).
        self._conv = conv
        self._saved = None
        self._scale = upsample.scale_factor
        boxes = (_box(k, s) for k, s in zip(conv.kernel_size, self._scale, strict=True))
        self._boxes = tuple(boxes)
        self._transposed = ConvGeometry(self._scale, _cut(conv))

    def __getattr__(self, name: str) -> Any:
        if name == "_conv":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self._conv, name)

    @staticmethod
    def serves(conv: Conv2d) -> bool:
        """Whether there is a transposed convolution for this convolution."""
        if conv.input_padding is not None or conv.groups > 1:
            return False
        return conv.stride == conv.dilation == (1, 1) and min(_cut(conv)) >= 0

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the convolution's output shape for the upsampled image.

        Raises:
            ShapeError: what the upsampling raises, or the convolution.
        """
        check_nchw(shape, None, "NearestUpsample2d input")
        return super().output_shape(shape)

    def output_size(self, size: Sequence[int]) -> IntPair:
        """Return the convolution's output size for the upsampled image."""
        height, width = (extent * s for extent, s in zip(size, self._scale, strict=True))
        return self._conv.output_size((height, width))

    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        residual: Tensor | None = None,
    ) -> Tensor:
        ops, boxed = ops_for(input.device), self._boxed(weight)
        if residual is None:
            op = ops.conv_transpose2d_forward
            return op(input, boxed, bias, self._transposed, activation)
        return ops.conv_transpose2d_fused(
            input, boxed, bias, self._transposed, activation, residual
        )

    def _gradients(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
        needs_input_grad: bool,
        residual: Tensor | None = None,
    ) -> Gradients:
        op = ops_for(input.device).conv_transpose2d_backward
        arguments = grad_output, input, self._boxed(weight), self._transposed, output
        grad_input, grad_boxed, grad_bias = op(*arguments, needs_input_grad, residual)
        down, across = (box.to(weight.device, _wide(weight)) for box in self._boxes)
        grad_weight = torch.einsum("coab,ai,bj->ocij", grad_boxed.to(down.dtype), down, across)
        return grad_input, grad_weight, grad_bias

    def _boxed(self, weight: Tensor) -> Tensor:
        """(O, C, kh, kw) as the weight (C, O, kh + sh − 1, kw + sw − 1)."""
        down, across = (box.to(weight.device, _wide(weight)) for box in self._boxes)
        boxed = torch.einsum("ocij,ai,bj->coab", weight.to(down.dtype), down, across)
        return boxed.to(weight.dtype)


def _cut(conv: Conv2d) -> IntPair:
    """Rows and columns that the transposed convolution cuts off each side."""
    (kh, kw), (ph, pw) = conv.kernel_size, conv.geometry.padding
    return kh - 1 - ph, kw - 1 - pw


def _box(taps: int, scale: int) -> Tensor:
    """(taps + scale − 1, taps): 1 where a merged tap includes one of the kernel's."""
    box = torch.zeros(taps + scale - 1, taps)
    for copy in range(scale):
        for tap in range(taps):
            box[copy + taps - 1 - tap, tap] = 1
    return box


def _wide(weight: Tensor) -> torch.dtype:
    """Taps are summed in float32 at least."""
    return torch.promote_types(weight.dtype, torch.float32)
