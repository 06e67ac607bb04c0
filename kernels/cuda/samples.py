"""Samples to padded values and back, each in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from ..geometry import IntPair

DTYPES = (torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32)
BLOCK = 1024  # elements of a row
MOST_BLOCKS = 65535  # that CUDA launches beside each other along an axis but the first
# Added to a float32 and taken off again, it rounds to the nearest integer, ties to even.
ROUNDING = tl.constexpr(12582912.0)
MOST_CHANGE = tl.constexpr(131072.0)  # of an integer of 16 bits; rounding is exact up to 2²²


@triton.jit
def unit(samples, offset, span, beyond):
    """As values in [0, 1] and a little beyond; NaN stays."""
    values = tl.div_rn(samples.to(tl.float32) - offset, span)
    values = tl.maximum(values, -beyond, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(values, 1 + beyond, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reflected(position, size):
    """The position in [0, size) that one outside mirrors, to and fro."""
    period = tl.maximum(2 * size - 2, 1)
    inside = (position % period + period) % period
    return tl.minimum(inside, period - inside)


@triton.jit(do_not_specialize=["height", "width", "padded_height", "padded_width", "margin"])
def unit_padded_kernel(
    samples_ptr,  # (N, height, width, C), image_stride between images
    y_ptr,  # (N, padded_height, padded_width, C) float32
    image_stride,
    height,
    width,
    padded_height,
    padded_width,
    margin,
    offset,
    span,
    beyond,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row."""
    row = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < padded_width * C
    image = (row // padded_height).to(tl.int64)
    y = reflected(row % padded_height - margin, height)
    x = reflected(k // C - margin, width)
    source = image * image_stride + y * width * C
    samples = tl.load(samples_ptr + source + x * C + k % C, mask=mask, other=0)
    target = row.to(tl.int64) * padded_width * C
    tl.store(y_ptr + target + k, unit(samples, offset, span, beyond), mask=mask)


@triton.jit(do_not_specialize=["height", "width", "padded_height", "padded_width", "margin"])
def stored_samples_kernel(
    values_ptr,  # (N, padded_height, padded_width, C) float32
    samples_ptr,  # (N, height, width, C), image_stride between images
    y_ptr,  # (N, height, width, C)
    flags_ptr,  # (N·height, blocks) int32: 1 where a value is not finite
    image_stride,
    height,
    width,
    padded_height,
    padded_width,
    margin,
    offset,
    span,
    beyond,
    least,
    most,
    C: tl.constexpr,
    IS_RELATIVE: tl.constexpr,
    HAS_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row."""
    row = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < width * C
    image = (row // height).to(tl.int64)
    y = row % height
    source = ((image * padded_height + y + margin) * padded_width + margin) * C
    values = tl.load(values_ptr + source + k, mask=mask, other=0.0)
    is_bad = (values - values) != 0.0  # NaN and infinity
    flag = tl.max(is_bad.to(tl.int32), axis=0)
    tl.store(flags_ptr + row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1), flag)
    if IS_RELATIVE:
        before = tl.load(samples_ptr + image * image_stride + y * width * C + k, mask=mask, other=0)
        change = (values - unit(before, offset, span, beyond)) * span
        if HAS_LEVELS:
            change = tl.where(is_bad, 0.0, change)
            change = tl.minimum(tl.maximum(change, -MOST_CHANGE), MOST_CHANGE)
            change = (change + ROUNDING) - ROUNDING
        stored = before.to(tl.float32) + change
    else:
        stored = tl.where(is_bad, 0.0, values) * span + 0.5
    target = row.to(tl.int64) * width * C
    if HAS_LEVELS:  # the conversion truncates
        stored = tl.minimum(tl.maximum(stored, least), most).to(tl.int32)
    tl.store(y_ptr + target + k, stored.to(y_ptr.dtype.element_ty), mask=mask)


def unit_padded(
    samples: Tensor, offset: float, span: float, beyond: float, size: IntPair, margin: int
) -> Tensor:
    """Triton implementation of `samples.unit_padded`."""
    count, height, width, channels = _check(samples)
    output = samples.new_empty((count, *size, channels), dtype=torch.float32)
    check_extent(*output.shape)
    unit_padded_kernel[(count * size[0], triton.cdiv(size[1] * channels, BLOCK))](
        samples,
        output,
        samples.stride(0),
        height,
        width,
        size[0],
        size[1],
        margin,
        float(offset),
        float(span),
        float(beyond),
        C=channels,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return output.permute(0, 3, 1, 2)


def stored_samples(
    values: Tensor,
    samples: Tensor,
    offset: float,
    span: float,
    beyond: float,
    levels: IntPair | None,
    is_relative: bool,
    margin: int,
) -> tuple[Tensor, Tensor]:
    """Triton implementation of `samples.stored_samples`."""
    count, height, width, channels = _check(samples)
    if values.dtype != torch.float32:
        raise NotCoveredError(f"values in {values.dtype}")
    values = values.permute(0, 2, 3, 1).contiguous()
    check_extent(*values.shape)
    output = torch.empty_like(samples, memory_format=torch.contiguous_format)
    blocks = triton.cdiv(width * channels, BLOCK)
    flags = samples.new_empty((count, height * blocks), dtype=torch.int32)
    least, most = levels or (0, 0)
    stored_samples_kernel[(count * height, blocks)](
        values,
        samples,
        output,
        flags,
        samples.stride(0),
        height,
        width,
        values.shape[1],
        values.shape[2],
        margin,
        float(offset),
        float(span),
        float(beyond),
        float(least),
        float(most),
        C=channels,
        IS_RELATIVE=is_relative,
        HAS_LEVELS=levels is not None,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return output, flags.amax(1) == 0


def _check(samples: Tensor) -> tuple[int, int, int, int]:
    """The samples' shape.

    Raises:
        NotCoveredError: a type of other arithmetic than float32's, images that are not contiguous,
            or too large ones.
    """
    if samples.dtype not in DTYPES or not samples.numel() or not samples[0].is_contiguous():
        raise NotCoveredError(f"{samples.dtype}, shape {tuple(samples.shape)}")
    check_extent(*samples.shape)
    count, height, width, channels = samples.shape
    return count, height, width, channels


def check_extent(count: int, height: int, width: int, channels: int) -> None:
    """Raise unless int32 counts rows and an image's elements, and a launch has a row's blocks.

    Raises:
        NotCoveredError: it does not.
    """
    # What reflects a row adds two periods, of two heights each.
    most = max(height * width * channels + BLOCK, count * height, 4 * height)
    if most >= torch.iinfo(torch.int32).max:
        raise NotCoveredError(f"{most} elements of an image, or rows: more than int32 counts")
    if width * channels > MOST_BLOCKS * BLOCK:
        raise NotCoveredError(f"{width * channels} elements of a row: more than a launch has")
