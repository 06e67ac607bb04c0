"""The product's convolutions with operations for tiny batches behind them (`lean_ops`).

At the report's batch of four 32×32 tiles a step is bound by the number of torch operations.
`kernels/gemm`, which cuts large images into chunks that fit the cache, needed 1 680 of them for a
step of Architecture 1 (as torch.profiler counts) before it took some of this over (ADR 24); the
blocks here, which are the product's own with the report's recipe for their arithmetic (II-A, II-B),
need 459.
"""

from collections.abc import Sequence
from functools import partial

from lean_ops import (
    box_taps,
    conv2d_backward,
    conv2d_forward,
    conv_transpose2d_backward,
    conv_transpose2d_forward,
    upsample_conv2d_backward,
    upsample_conv2d_forward,
)

from denoise_batch.kernels import Block, Conv2d, ConvTranspose2d, UpsampleConv2d
from denoise_batch.kernels.geometry import IntPair


def lean(block: Block) -> Block:
    """The same block on the same parameters, with the operations of this file where there are."""
    if isinstance(block, Conv2d) and block.dilation == (1, 1):
        return LeanConv2d(block)
    if isinstance(block, ConvTranspose2d) and block.dilation == (1, 1):
        return LeanConvTranspose2d(block)
    if isinstance(block, UpsampleConv2d) and LeanUpsampleConv2d.serves(block):
        return LeanUpsampleConv2d(block)
    return block


class LeanConv2d(Conv2d):
    """A Conv2d without dilation, for tiny batches."""

    def __init__(self, conv: Conv2d) -> None:
        self.__dict__.update(conv.__dict__)
        geometry = {"stride": conv.stride, "padding": conv.padding}
        self._forward_op = partial(conv2d_forward, **geometry)
        self._backward_op = partial(conv2d_backward, **geometry)


class LeanConvTranspose2d(ConvTranspose2d):
    """A ConvTranspose2d without dilation, for tiny batches."""

    def __init__(self, conv: ConvTranspose2d) -> None:
        self.__dict__.update(conv.__dict__)
        geometry = {"stride": conv.stride, "padding": conv.padding}
        geometry["output_padding"] = conv.output_padding
        self._forward_op = partial(conv_transpose2d_forward, **geometry)
        self._backward_op = partial(conv_transpose2d_backward, **geometry)


class LeanUpsampleConv2d(Conv2d):
    """An UpsampleConv2d by 2 with a 3×3 kernel and padding 1, without the upsampled image.

    Every pixel of the small image meets the 3×3 kernel in its four copies, each one pixel further:
    the layer is a transposed convolution of stride 2 whose 4×4 kernel is the 3×3 one, turned, and
    convolved with a box of 2×2. 2.25 times fewer multiplications, and no larger image in between.
    """

    def __init__(self, block: UpsampleConv2d) -> None:
        self.__dict__.update(block.conv.__dict__)
        taps = box_taps().to(self.weight)
        self._forward_op = partial(upsample_conv2d_forward, taps=taps)
        self._backward_op = partial(upsample_conv2d_backward, taps=taps)

    @staticmethod
    def serves(block: UpsampleConv2d) -> bool:
        """Whether the block is one that this class can stand for."""
        conv = block.conv
        geometry = (block.upsample.scale_factor, conv.kernel_size, conv.padding)
        return geometry == ((2, 2), (3, 3), (1, 1)) and conv.stride == conv.dilation == (1, 1)

    def output_size(self, size: Sequence[int]) -> IntPair:
        """Twice the size."""
        return 2 * size[0], 2 * size[1]
