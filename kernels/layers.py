"""Blocks without neighbours: ReLU, Sigmoid, pixel shuffles, upsampling, Normalize, ReflectPadded."""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from . import ops
from .block import Block
from .buffer_pool import empty, release, shares_memory
from .errors import ShapeError
from .geometry import Int2, Shape, check_nchw, pair


class ReLU(Block):
    """max(x, 0), elementwise (report, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        output = ops.relu_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """max(x, 0) in the place of x."""
        return input.clamp_min_(0)

    def backward(self, grad_output: Tensor) -> Tensor:
        """grad_output where the output was positive, 0 elsewhere."""
        return ops.relu_backward(grad_output, self._pop_saved(grad_output))


class Sigmoid(Block):
    """1/(1 + e^−x), elementwise and without overflow (report, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape, values in [0, 1]."""
        output = ops.sigmoid_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """1/(1 + e^−x) in the place of x."""
        return ops.sigmoid_forward_(input)

    def backward(self, grad_output: Tensor) -> Tensor:
        """grad_output · σ · (1 − σ)."""
        return ops.sigmoid_backward(grad_output, self._pop_saved(grad_output))


class PixelUnshuffle(Block):
    """(N, C, H·r, W·r) → (N, C·r², H, W), the inverse of PixelShuffle.

    Raises:
        ShapeError: downscale_factor below 1.
    """

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        if downscale_factor < 1:
            raise ShapeError(f"downscale_factor={downscale_factor}: must be at least 1")
        self.downscale_factor = downscale_factor

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """(N, C·r², H, W) for an input of (N, C, H·r, W·r).

        Raises:
            ShapeError: height or width is no multiple of the factor.
        """
        check_nchw(shape, None, "PixelUnshuffle input")
        batch, channels, height, width = shape
        factor = self.downscale_factor
        if height % factor or width % factor:
            raise ShapeError(f"PixelUnshuffle: {height}x{width} is no multiple of {factor}")
        return batch, channels * factor**2, height // factor, width // factor

    def forward(self, input: Tensor) -> Tensor:
        """Height and width must be multiples of the factor.

        Raises:
            ShapeError: they are not.
        """
        self.output_shape(input.shape)
        output = ops.pixel_unshuffle(input, self.downscale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """Every pixel has moved, so the gradient moves back."""
        self._pop_saved(grad_output)
        return ops.pixel_shuffle(grad_output, self.downscale_factor)


class PixelShuffle(Block):
    """(N, C·r², H, W) → (N, C, H·r, W·r) (Shi et al., "sub-pixel convolution", 2016).

    Raises:
        ShapeError: upscale_factor below 1.
    """

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        if upscale_factor < 1:
            raise ShapeError(f"upscale_factor={upscale_factor}: must be at least 1")
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        """The number of channels must be a multiple of r².

        Raises:
            ShapeError: it is not.
        """
        check_nchw(input.shape, None, "PixelShuffle input")
        if input.shape[1] % self.upscale_factor**2:
            square = self.upscale_factor**2
            raise ShapeError(f"PixelShuffle: {input.shape[1]} channels, no multiple of {square}")
        output = ops.pixel_shuffle(input, self.upscale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """Every pixel has moved, so the gradient moves back."""
        self._pop_saved(grad_output)
        return ops.pixel_unshuffle(grad_output, self.upscale_factor)


class NearestUpsample2d(Block):
    """Repeat every pixel `scale_factor` times down and across.

    Raises:
        ShapeError: a factor that is not a whole number of at least 1.
    """

    def __init__(self, scale_factor: Int2) -> None:
        super().__init__()
        self.scale_factor = pair(scale_factor, "scale_factor", minimum=1)

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """(N, C, H·sh, W·sw) for an input of (N, C, H, W).

        Raises:
            ShapeError: not four dimensions, or an empty image.
        """
        check_nchw(shape, None, "NearestUpsample2d input")
        down, across = self.scale_factor
        return shape[0], shape[1], shape[2] * down, shape[3] * across

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H·sh, W·sw)."""
        self.output_shape(input.shape)
        output = ops.upsample_nearest2d_forward(input, scale_factor=self.scale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """The sum of the gradients of each pixel's copies."""
        self._pop_saved(grad_output)
        return ops.upsample_nearest2d_backward(grad_output, scale_factor=self.scale_factor)


class Normalize(Block):
    """(x − mean)/std per channel: network inputs of mean 0 and deviation 1.

    Args:
        mean: one value, or one a channel, in the input's unit.
        std: likewise, above 0.

    Raises:
        ShapeError: lengths that contradict each other, or a std that is not above 0.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean = _as_tuple(mean)
        self.std = _as_tuple(std)
        lengths = {len(self.mean), len(self.std)} - {1}
        if len(lengths) > 1 or 0 in lengths or not all(s > 0 for s in self.std):
            raise ShapeError(
                f"Standardize: mean={mean}, std={std}: one value or one a channel, std above 0"
            )
        self._channels = lengths.pop() if lengths else None

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        check_nchw(input.shape, self._channels, "Standardize input")
        self._save((), input)
        n, c, height, width = input.shape
        output = empty((n, height, width * c), input)
        # Rows of values and of means as long: a channel at a time the inner loops would be 3 long.
        rows = input.permute(0, 2, 3, 1).reshape(n, height, width * c)
        torch.sub(rows, _per_channel(self.mean, c, input).repeat(width), out=output)
        output.div_(_per_channel(self.std, c, input).repeat(width))
        return output.view(n, height, width, c).permute(0, 3, 1, 2)

    def backward(self, grad_output: Tensor) -> Tensor:
        """grad_output / std."""
        self._pop_saved(grad_output)
        std = _per_channel(self.std, grad_output.shape[1], grad_output)
        return grad_output / std.view(-1, 1, 1)


def _as_tuple(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))


def _per_channel(values: tuple[float, ...], channels: int, like: Tensor) -> Tensor:
    """One value for each channel."""
    return _uploaded(values, like.device, like.dtype).expand(channels)


@cache
def _uploaded(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Kept for good: on CUDA an upload waits, and a recorded graph reads it where it lies."""
    return torch.tensor(values, device=device, dtype=dtype)


class ReflectPadded(Block):
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
        height, width, rows, columns = self._pop_saved(grad_output)
        grad = self.body.backward(self._framed(grad_output, len(rows), len(columns)))
        if len(rows) != height:
            grad = grad.new_zeros(*grad.shape[:2], height, len(columns)).index_add_(2, rows, grad)
        if len(columns) != width:
            grad = grad.new_zeros(*grad.shape[:3], width).index_add_(3, columns, grad)
        return grad

    def backward_parameters(self, grad_output: Tensor) -> None:
        """As backward, without the input's gradient."""
        _, _, rows, columns = self._pop_saved(grad_output)
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
