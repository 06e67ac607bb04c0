"""What hypothesis may draw: only valid geometries, with odd, prime and size-1 extents first."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from denoise_batch.kernels.geometry import ConvGeometry

Pair = tuple[int, int]

EXTENTS = (1, 2, 3, 5, 7, 8, 11, 13)


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution but its numbers; output_padding is None for a plain one."""

    batch: int
    in_channels: int
    out_channels: int
    size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    output_padding: Pair | None
    bias: bool
    groups: int = 1

    @property
    def geometry(self) -> ConvGeometry:
        """What our ops take."""
        output_padding = self.output_padding or (0, 0)
        return ConvGeometry(self.stride, self.padding, self.dilation, output_padding, self.groups)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of torch.nn.functional."""
        options: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if self.output_padding is not None:
            options["output_padding"] = self.output_padding
        return options

    @property
    def arguments(self) -> dict[str, Any]:
        """The keywords of a block, and of its torch.nn module."""
        return self.options | {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "bias": self.bias,
        }

    def input(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.batch, self.in_channels, *self.size, dtype=dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        channels = [self.out_channels, self.in_channels]
        if self.output_padding is not None:
            channels.reverse()
        shape = channels[0], channels[1] // self.groups, *self.kernel_size
        return torch.randn(*shape, dtype=dtype)


@st.composite
def conv_geometries(draw: st.DrawFn, *, bias: bool | None = None) -> Geometry:
    """Any convolution whose kernel fits into the padded input."""
    kernel_size, stride, padding, dilation = _kernels(draw)
    size = _pair(
        draw,
        [
            st.sampled_from([extent for extent in EXTENTS if extent >= 1 + d * (k - 1) - 2 * p])
            for k, p, d in zip(kernel_size, padding, dilation, strict=True)
        ],
    )
    return _geometry(draw, size, kernel_size, stride, padding, dilation, None, bias)


@st.composite
def conv_transpose_geometries(draw: st.DrawFn) -> Geometry:
    """Any transposed convolution whose output is not empty."""
    kernel_size, stride, padding, dilation = _kernels(draw)
    limits = [max(pair) for pair in zip(stride, dilation, strict=True)]
    output_padding = _pair(draw, [st.integers(0, limit - 1) for limit in limits])
    size = _pair(
        draw,
        [
            st.sampled_from([n for n in EXTENTS if (n - 1) * s - 2 * p + d * (k - 1) + o >= 0])
            for k, s, p, d, o in zip(
                kernel_size, stride, padding, dilation, output_padding, strict=True
            )
        ],
    )
    return _geometry(draw, size, kernel_size, stride, padding, dilation, output_padding, None)


@st.composite
def images(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """A small batch of normal numbers."""
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    return torch.randn(*shape, *_pair(draw, [st.sampled_from(EXTENTS)] * 2), dtype=dtype)


def _kernels(draw: st.DrawFn) -> tuple[Pair, Pair, Pair, Pair]:
    """kernel_size, stride, padding, dilation."""
    ranges = ((1, 5), (1, 3), (0, 2), (1, 2))
    kernel_size, stride, padding, dilation = (
        _pair(draw, [st.integers(low, high)] * 2) for low, high in ranges
    )
    return kernel_size, stride, padding, dilation


def _geometry(
    draw: st.DrawFn,
    size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output_padding: Pair | None,
    bias: bool | None,
) -> Geometry:
    groups = draw(st.sampled_from((1, 1, 2, 3)))  # depthwise, where one channel a group is drawn
    return Geometry(
        batch=draw(st.integers(1, 5)),
        in_channels=groups * draw(st.integers(1, 4 if groups == 1 else 2)),
        out_channels=groups * draw(st.integers(1, 4 if groups == 1 else 2)),
        size=size,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        output_padding=output_padding,
        bias=draw(st.booleans()) if bias is None else bias,
        groups=groups,
    )


def _pair(draw: st.DrawFn, axes: list[st.SearchStrategy[int]]) -> Pair:
    """One draw for the rows, one for the columns."""
    return draw(axes[0]), draw(axes[1])
