"""Reflection around a network: any image size goes in, the same size comes out."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .block import Block
from .errors import ShapeError
from .shapes import check_nchw
from .workspace import empty, release, shares_memory


class Padded(Block):
    """Pad by reflection to sizes that `body` likes, run it, cut the padding off again.

    `body` must return images of its input's size. Reflection does not repeat the edge pixel and
    goes to and fro as often as needed, so that even a 1×1 image can be padded (torch's stops at
    size − 1).

    Args:
        body: the block inside.
        multiple: padded height and width are multiples of it.
        minimum: padded height and width are at least this.
        margin: pixels of reflected context on every side, at least.

    Raises:
        ShapeError: multiple or minimum below 1, or margin below 0.
    """

    def __init__(self, body: Block, multiple: int, minimum: int = 1, margin: int = 0) -> None:
        super().__init__()
        if multiple < 1 or minimum < 1 or margin < 0:
            raise ShapeError(f"Padded: multiple={multiple}, minimum={minimum}, margin={margin}")
        self.body = body
        self.multiple = multiple
        self.minimum = minimum
        self.margin = margin

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """The body, under the name "body"."""
        yield "body", self.body

    def padded_size(self, size: int) -> int:
        """Extent that `body` sees for an image of extent `size`."""
        wanted = max(size + 2 * self.margin, self.minimum)
        return -(-wanted // self.multiple) * self.multiple

    def indices(self, size: int, device: torch.device) -> Tensor:
        """For every padded position of an extent, the image position that it mirrors."""
        positions = torch.arange(-self.margin, self.padded_size(size) - self.margin, device=device)
        period = max(2 * (size - 1), 1)
        positions = positions.remainder(period)
        return torch.minimum(positions, period - positions) if size > 1 else positions * 0

    def pad(self, input: Tensor) -> Tensor:
        """(N, C, H, W) of any size, between its reflections as the body sees it."""
        height, width = input.shape[2:]
        rows, columns = self.indices(height, input.device), self.indices(width, input.device)
        return self._pad(input, rows, columns)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) of any size; the body's output, cut to H×W.

        Raises:
            ShapeError: an empty image, or the body does not keep the size.
        """
        check_nchw(input.shape, None, "Padded input")
        height, width = input.shape[2:]
        rows, columns = self.indices(height, input.device), self.indices(width, input.device)
        inside = self._run(self._pad(input, rows, columns), input)
        if inside.shape[2:] != (len(rows), len(columns)):
            raise ShapeError(
                f"Padded: the body turned an image of size {len(rows)}x{len(columns)} into one of "
                f"size {inside.shape[2]}x{inside.shape[3]}; it must keep the size"
            )
        bottom, right = self.margin + height, self.margin + width
        output = inside[:, :, self.margin : bottom, self.margin : right]
        self._save((height, width, rows, columns), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """Zero where the output was cut off; each pixel sums the gradients of its reflections."""
        height, width, rows, columns = self._take_saved(grad_output)
        grad = self.body.backward(self._framed(grad_output, len(rows), len(columns)))
        if len(rows) != height:
            grad = grad.new_zeros(*grad.shape[:2], height, len(columns)).index_add_(2, rows, grad)
        if len(columns) != width:
            grad = grad.new_zeros(*grad.shape[:3], width).index_add_(3, columns, grad)
        return grad

    def backward_parameters(self, grad_output: Tensor) -> None:
        """As backward, without the input's gradient."""
        _, _, rows, columns = self._take_saved(grad_output)
        self.body.backward_parameters(self._framed(grad_output, len(rows), len(columns)))

    def _framed(self, grad_output: Tensor, padded_height: int, padded_width: int) -> Tensor:
        """The output's gradient with zeros where the output was cut off."""
        n, c, height, width = grad_output.shape
        if (height, width) == (padded_height, padded_width):
            return grad_output
        framed = grad_output.new_zeros(n, c, padded_height, padded_width)
        margin = self.margin
        framed[:, :, margin : margin + height, margin : margin + width] = grad_output
        return framed

    def _pad(self, input: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The image between its reflections, channels-last: one copy, then the narrow borders."""
        n, c, height, width = input.shape
        if (height, width) == (len(rows), len(columns)):
            return input
        padded = empty((n, len(rows), len(columns), c), input)
        bottom, right = self.margin + height, self.margin + width
        band = padded[:, self.margin : bottom]
        band[:, :, self.margin : right] = input.permute(0, 2, 3, 1)
        for border in (slice(None, self.margin), slice(right, None)):
            band[:, :, border] = band.index_select(2, columns[border] + self.margin)
        for border in (slice(None, self.margin), slice(bottom, None)):
            padded[:, border] = padded.index_select(1, rows[border] + self.margin)
        return padded.permute(0, 3, 1, 2)

    def _run(self, padded: Tensor, input: Tensor) -> Tensor:
        inside = self.body.forward(padded)
        if not self.training and not any(shares_memory(padded, kept) for kept in (input, inside)):
            release(padded)
        return inside
