"""Space to depth and back: pixels of a block become channels of one position."""

from collections.abc import Sequence

from torch import Tensor

from . import ops
from .block import Block
from .errors import ShapeError
from .shapes import Shape, check_nchw


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
        self._take_saved(grad_output)
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
        self._take_saved(grad_output)
        return ops.pixel_unshuffle(grad_output, self.upscale_factor)
