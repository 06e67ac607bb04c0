"""Samples as a file stores them ↔ values in [0, 1] as the network wants them.

The conversions run wherever the samples are, so that a GPU receives and returns the narrow ones.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The affine map of stored samples to [0, 1]: (sample − offset) / span.

    Attributes:
        offset: the sample that becomes 0.
        span: what is added for 1: 255 of 8 bits, 65535 of 16, the range of float samples that
            leave [0, 1].
    """

    offset: float
    span: float

    def to_unit(self, samples: Tensor) -> Tensor:
        """Samples of any shape and type as float32, [0, 1]."""
        values = samples.to(torch.float32, copy=True)
        return (values.sub_(self.offset) if self.offset else values).div_(self.span)

    def from_unit(self, values: Tensor, samples: Tensor) -> Tensor:
        """Values as new samples in the place of `samples`, whose type they take.

        Integers are rounded to the nearest and clamped; floats are not. Values that `to_unit` made
        come back bit for bit.

        Args:
            values: float, any shape.
            samples: what was stored, of that shape.
        """
        if samples.dtype == torch.float32:
            if self == UNIT:
                return values.to(torch.float32)
            # Added to what was stored, so that an unchanged pixel keeps every bit.
            return samples + (values - self.to_unit(samples)) * self.span
        levels = (values * self.span).add_(0.5).clamp_(0, self.span)  # the conversion cuts
        if samples.dtype == torch.uint8:
            return levels.to(torch.uint8)
        return levels.to(torch.int32).to(torch.uint16)


BITS_8 = Scale(0.0, 255.0)
BITS_16 = Scale(0.0, 65535.0)
UNIT = Scale(0.0, 1.0)


def float_scale(samples: Tensor) -> Scale:
    """The map of float samples: their range to [0, 1], or nothing for those that are there."""
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and high <= 1:
        return UNIT
    return Scale(low, (high - low) or 1.0)


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable and without a copy; outlives no tensor."""
    size = tensor.numel() * tensor.element_size()
    buffer = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(buffer).cast("B")
