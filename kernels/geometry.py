"""Geometry of convolutions: types, output sizes and argument checks, on plain integers."""

from collections.abc import Sequence
from typing import Literal

from .errors import ShapeError

IntPair = tuple[int, int]
Shape = tuple[int, int, int, int]
Int2 = int | Sequence[int]
Activation = Literal["relu"] | None


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


def conv2d_output_size(
    size: Sequence[int], kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair
) -> IntPair:
    """Extent (oh, ow) of a convolution.

    ⌊(size + 2·padding − dilation·(kernel − 1) − 1)/stride⌋ + 1; Dumoulin and Visin, "A
    guide to convolution arithmetic for deep learning" (2016), relationship 15.

    Raises:
        ShapeError: the kernel is larger than the padded input.
    """
    extents = [
        (s + 2 * p - d * (k - 1) - 1) // st + 1
        for s, k, st, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]
    if min(extents) < 1:
        raise ShapeError(
            f"input of {size[0]}x{size[1]} with padding {padding} is smaller than "
            f"kernel_size {kernel_size} at dilation {dilation}: pad the input or use a larger one"
        )
    return extents[0], extents[1]


def conv_transpose2d_output_size(
    size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
) -> IntPair:
    """Extent of a transposed convolution's output.

    (size − 1)·stride − 2·padding + dilation·(kernel − 1) + output_padding + 1; Dumoulin and Visin
    (2016), relationship 14.

    Raises:
        ShapeError: output_padding is smaller than neither stride nor dilation (the output size
            would be ambiguous), or the output would be empty.
    """
    for op, st, d in zip(output_padding, stride, dilation, strict=True):
        if op >= max(st, d):
            raise ShapeError(
                f"output_padding {output_padding} must be smaller than stride {stride} "
                f"or dilation {dilation}"
            )
    extents = [
        (s - 1) * st - 2 * p + d * (k - 1) + op + 1
        for s, k, st, p, op, d in zip(
            size, kernel_size, stride, padding, output_padding, dilation, strict=True
        )
    ]
    if min(extents) < 1:
        raise ShapeError(
            f"input of {size[0]}x{size[1]} with padding {padding} leaves an empty output "
            f"({extents[0]}x{extents[1]}): use less padding"
        )
    return extents[0], extents[1]


def check_nchw(shape: Sequence[int], channels: int | None, what: str) -> None:
    """Raise unless `shape` is (N, C, H, W) with C = `channels` and a non-empty image.

    Raises:
        ShapeError: another number of dimensions or channels, or an empty image.
    """
    if len(shape) != 4:
        raise ShapeError(f"{what} has shape {tuple(shape)}: expected 4 dimensions (N, C, H, W)")
    if channels is not None and shape[1] != channels:
        raise ShapeError(
            f"{what} has {shape[1]} channels (shape {tuple(shape)}), expected {channels}"
        )
    if min(shape[2:]) < 1:
        raise ShapeError(f"{what} has an empty image (shape {tuple(shape)})")
