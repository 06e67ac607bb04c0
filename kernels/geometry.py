"""Geometry of convolutions: types, output sizes and argument checks, on plain integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import ShapeError

IntPair = tuple[int, int]
Shape = tuple[int, int, int, int]
Int2 = int | Sequence[int]
Activation = Literal["relu"] | None
FusedActivation = Literal["relu", "sigmoid"] | None
Standard = tuple[tuple[float, ...], tuple[float, ...]]  # (means, deviations), one or per channel


@dataclass(frozen=True)
class ConvGeometry:
    """How a kernel moves over an image; every pair is (vertical, horizontal).

    Attributes:
        stride: distance between two positions of the kernel, in pixels of the larger image.
        padding: zeros added on each side of the input; a transposed convolution instead cuts so
            many rows and columns off its output.
        dilation: distance between kernel taps.
        output_padding: rows and columns that a transposed convolution adds at the bottom and right.
        groups: equal parts of the input's channels, each joined with its own part of the output's;
            a weight's second dimension counts the channels of one part.
    """

    stride: IntPair = (1, 1)
    padding: IntPair = (0, 0)
    dilation: IntPair = (1, 1)
    output_padding: IntPair = (0, 0)
    groups: int = 1

    def conv2d_output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> IntPair:
        """Extent (oh, ow) of a convolution of an image of (H, W) = `size`.

        ⌊(size + 2·padding − dilation·(kernel − 1) − 1)/stride⌋ + 1; Dumoulin and Visin, "A guide
        to convolution arithmetic for deep learning" (2016), relationship 15.

        Raises:
            ShapeError: the kernel is larger than the padded input.
        """
        axes = zip(size, kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        if min(height, width) < 1:
            raise ShapeError(
                f"input of {size[0]}x{size[1]} with padding {self.padding} is smaller than "
                f"kernel_size {tuple(kernel_size)} at dilation {self.dilation}: pad the input or "
                "use a larger one"
            )
        return height, width

    def conv_transpose2d_output_size(
        self, size: Sequence[int], kernel_size: Sequence[int]
    ) -> IntPair:
        """Extent (oh, ow) of a transposed convolution of an image of (H, W) = `size`.

        (size − 1)·stride − 2·padding + dilation·(kernel − 1) + output_padding + 1; Dumoulin and
        Visin (2016), relationship 14.

        Raises:
            ShapeError: output_padding is smaller than neither stride nor dilation (the output size
                would be ambiguous), or the output would be empty.
        """
        extra = self.output_padding
        limits = zip(extra, self.stride, self.dilation, strict=True)
        if any(o >= max(s, d) for o, s, d in limits):
            raise ShapeError(
                f"output_padding {extra} must be smaller than stride {self.stride} "
                f"or dilation {self.dilation}"
            )
        axes = zip(size, kernel_size, self.stride, self.padding, self.dilation, extra, strict=True)
        height, width = ((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in axes)
        if min(height, width) < 1:
            raise ShapeError(
                f"input of {size[0]}x{size[1]} with padding {self.padding} leaves an empty output "
                f"({height}x{width}): use less padding"
            )
        return height, width


def pair(value: Int2, name: str, *, minimum: int) -> IntPair:
    """`value` as (vertical, horizontal), as torch reads `kernel_size`, `stride` and the like.

    Raises:
        ShapeError: not one or two integers, or one of them below `minimum`.
    """
    both: object = (value, value) if isinstance(value, int) else value
    values = tuple(both) if isinstance(both, Sequence) else ()
    if len(values) != 2 or not all(type(v) is int for v in values):
        raise ShapeError(f"{name}={value!r}: give one integer or two")
    if min(values) < minimum:
        raise ShapeError(f"{name}={value!r}: must be at least {minimum}")
    return values[0], values[1]


def integer(value: int, name: str, *, minimum: int) -> int:
    """`value`, if it is an integer.

    Raises:
        ShapeError: it is none, or below `minimum`.
    """
    if type(value) is not int:
        raise ShapeError(f"{name}={value!r}: give one integer")
    if value < minimum:
        raise ShapeError(f"{name}={value!r}: must be at least {minimum}")
    return value


def check_image(shape: Sequence[int], channels: int | None, what: str) -> None:
    """Raise unless `shape` is (N, C, H, W) or (C, H, W) with C = `channels` and a non-empty image.

    Raises:
        ShapeError: another number of dimensions or channels, or an empty image.
    """
    if len(shape) not in (3, 4):
        raise ShapeError(
            f"{what} has shape {tuple(shape)}: expected 4 dimensions (N, C, H, W), or 3 (C, H, W)"
        )
    if channels is not None and shape[-3] != channels:
        raise ShapeError(
            f"{what} has {shape[-3]} channels (shape {tuple(shape)}), expected {channels}"
        )
    if min(shape[-2:]) < 1:
        raise ShapeError(f"{what} has an empty image (shape {tuple(shape)})")


def check_nchw(shape: Sequence[int], channels: int | None, what: str) -> None:
    """Raise unless `shape` is (N, C, H, W) with C = `channels` and a non-empty image.

    Raises:
        ShapeError: another number of dimensions or channels, or an empty image.
    """
    if len(shape) != 4:
        hint = "; add a batch dimension with image[None]" if len(shape) == 3 else ""
        raise ShapeError(
            f"{what} has shape {tuple(shape)}: expected 4 dimensions (N, C, H, W){hint}"
        )
    check_image(shape, channels, what)


def lower_precision(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The type of fewer bytes; the first, if both have as many."""
    return other if other.itemsize < one.itemsize else one


def pixel_unshuffle(input: Tensor, factor: int) -> Tensor:
    """(N, C, H·r, W·r) → (N, C·r², H, W)."""
    n, c, height, width = input.shape
    h, w = height // factor, width // factor
    blocks = input.reshape(n, c, h, factor, w, factor).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, h, w, c * factor**2).permute(0, 3, 1, 2)


def pixel_shuffle(input: Tensor, factor: int) -> Tensor:
    """(N, C·r², H, W) → (N, C, H·r, W·r)."""
    n, channels, h, w = input.shape
    c = channels // factor**2
    blocks = input.reshape(n, c, factor, factor, h, w).permute(0, 4, 2, 5, 3, 1)
    return blocks.reshape(n, h * factor, w * factor, c).permute(0, 3, 1, 2)
