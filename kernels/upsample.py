"""Nearest-neighbour upsampling, alone and followed by a convolution (report, II-C)."""

import torch
from torch import Tensor

from . import ops
from .block import Block
from .container import Sequential
from .conv import Conv2d
from .shapes import Int2, check_nchw, pair


class NearestUpsample2d(Block):
    """Repeat every pixel `scale_factor` times down and across.

    Raises:
        ShapeError: a factor that is not a whole number of at least 1.
    """

    def __init__(self, scale_factor: Int2) -> None:
        super().__init__()
        self.scale_factor = pair(scale_factor, "scale_factor", minimum=1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H·sh, W·sw)."""
        check_nchw(input.shape, None, "NearestUpsample2d input")
        output = ops.upsample_nearest2d_forward(input, scale_factor=self.scale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """The sum of the gradients of each pixel's copies."""
        self._take_saved(grad_output)
        return ops.upsample_nearest2d_backward(grad_output, scale_factor=self.scale_factor)


class UpsampleConv2d(Sequential):
    """NearestUpsample2d, then Conv2d: the report's stand-in for a transposed convolution.

    Odena et al., "Deconvolution and checkerboard artifacts" (2016). Arguments after `scale_factor`
    are Conv2d's; the convolution's parameters are named "1.weight" and "1.bias".
    """

    def __init__(
        self,
        scale_factor: Int2,
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
        self.upsample = NearestUpsample2d(scale_factor)
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias,
            generator=generator,
        )
        super().__init__(self.upsample, self.conv)
