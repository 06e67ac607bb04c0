"""Rows and columns around an image, and the way back of their gradient."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .buffer_pool import POOL
from .errors import ShapeError
from .geometry import IntPair

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)


@dataclass(frozen=True)
class Padding:
    """What is added around an image.

    Attributes:
        rows: how many above and below.
        columns: how many on the left and on the right.
        mode: "zeros"; "reflect", the image mirrored at its edge pixels, to and fro as often as
            needed; "replicate", the edge pixels; "circular", the opposite side.
    """

    rows: IntPair
    columns: IntPair
    mode: PaddingMode = "zeros"

    def size(self, size: Sequence[int]) -> IntPair:
        """Return (height, width) of the padded image for an image of (H, W) = `size`."""
        return size[0] + sum(self.rows), size[1] + sum(self.columns)

    def check(self, size: Sequence[int]) -> None:
        """Raise where torch has no such padding for an image of (H, W) = `size`.

        Raises:
            ShapeError: a reflection or a circle longer than the image.
        """
        for extent, sides in zip(size, (self.rows, self.columns), strict=True):
            most = {"reflect": extent - 1, "circular": extent}.get(self.mode, max(sides))
            if max(sides) > most:
                raise ShapeError(
                    f"padding of {max(sides)} with padding_mode={self.mode!r} takes an image of at "
                    f"least {max(sides) + extent - most} pixels, not {size[0]}x{size[1]}: pad "
                    "less, or with padding_mode='replicate'"
                )

    def pad(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the padded image, channels-last: one copy, then the narrow borders."""
        n, c, height, width = input.shape
        if self.size((height, width)) == (height, width):
            return input
        padded = POOL.alloc((n, *self.size((height, width)), c), input)
        (top, _), (left, _) = self.rows, self.columns
        band = padded[:, top : top + height]
        band[:, :, left : left + width] = input.permute(0, 2, 3, 1)
        for border, source in self._borders(self.columns, width, input.device):
            band[:, :, border] = 0 if source is None else band.index_select(2, source + left)
        for border, source in self._borders(self.rows, height, input.device):
            padded[:, border] = 0 if source is None else padded.index_select(1, source + top)
        return padded.permute(0, 3, 1, 2)

    def fold(self, grad: Tensor) -> Tensor:
        """The adjoint of `pad`: every pixel sums the gradients of itself and of its copies."""
        for dim, sides in ((2, self.rows), (3, self.columns)):
            if not any(sides):
                continue
            size, padded = grad.shape[dim] - sum(sides), grad
            grad = padded.narrow(dim, sides[0], size)
            if self.mode != "zeros":
                grad = grad.clone()
            for border, source in self._borders(sides, size, grad.device):
                if source is not None:
                    copies = padded.narrow(dim, border.start, border.stop - border.start)
                    grad.index_add_(dim, source, copies)
        return grad

    def _borders(
        self, sides: IntPair, size: int, device: torch.device
    ) -> Iterator[tuple[slice, Tensor | None]]:
        """Yield a border's place and the image's positions that it copies, None for zeros."""
        before, after = sides
        for start, stop in ((0, before), (before + size, before + size + after)):
            if start == stop:
                continue
            source = None
            if self.mode != "zeros":
                positions = torch.arange(start - before, stop - before, device=device)
                source = copied_positions(positions, size, self.mode)
            yield slice(start, stop), source


def copied_positions(positions: Tensor, size: int, mode: PaddingMode) -> Tensor:
    """Return the positions in [0, size) that positions outside copy in a mode other than zeros."""
    if mode == "replicate" or size == 1:
        return positions.clamp(0, size - 1)
    if mode == "circular":
        return positions.remainder(size)
    positions = positions.remainder(2 * (size - 1))
    return torch.minimum(positions, 2 * (size - 1) - positions)


def same_padding(extent: int) -> IntPair:
    """Return what keeps an image's extent under a kernel of `extent`; torch puts more behind."""
    return (extent - 1) // 2, extent // 2
