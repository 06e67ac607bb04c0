"""Blocks of a network that is told how much noise there is, and of one that estimates it.

A level is the root mean square of an image's noise, for values in [0, 1]; a batch has one level an
image. Its gradient is not computed: nothing learns through it.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from .block import Block, InputGrad
from .buffer_pool import POOL
from .errors import ShapeError, StateError
from .geometry import check_nchw


class LevelBlock(Block):
    """A block that reads the images' noise levels beside its input.

    Attributes:
        level: (N,), set before forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.level: Tensor | None = None

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), for N levels."""

    def _level_255(self, input: Tensor) -> Tensor:
        """The levels in units of 1/255, (N, 1, 1, 1).

        Raises:
            StateError: there is none.
            ShapeError: not one for each image.
        """
        check_nchw(input.shape, None, f"{type(self).__name__} input")
        if self.level is None:
            raise StateError(f"{type(self).__name__}: set the level first, one for each image")
        if self.level.shape != input.shape[:1]:
            raise ShapeError(
                f"{type(self).__name__}: levels of shape {tuple(self.level.shape)} for "
                f"{len(input)} images; give one for each"
            )
        wide = torch.promote_types(input.dtype, torch.float32)
        return 255 * self.level.to(wide).view(-1, 1, 1, 1)


class AppendLevel(LevelBlock):
    """Append two constant planes, the level and its square root, both of unit 50/255.

    Zhang et al., "FFDNet: toward a fast and flexible solution for CNN based image denoising"
    (2018), append one, of the level; the root tells weak levels apart.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + 2, H, W), channels-last."""
        planes = self.planes(input)
        n, channels, height, width = input.shape
        output = POOL.alloc((n, height, width, channels + 2), input).permute(0, 3, 1, 2)
        output[:, :channels] = input
        output[:, channels:] = planes
        self._save((), output)
        return output

    def planes(self, input: Tensor) -> Tensor:
        """Return what is appended to (N, C, H, W): (N, 2, 1, 1), float32 or wider.

        Raises:
            StateError: there is no level.
            ShapeError: not one for each image.
        """
        level = self._level_255(input) / 50
        return torch.cat([level, level.sqrt()], 1)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """The gradient without that of the planes."""
        self._pop_saved(grad_output)
        return grad_output[:, :-2] if needs_input_grad else None


class LevelGate(LevelBlock):
    """g·x with g = s/(s + 1), s the level in 1/255: nothing passes where there is no noise.

    At the end of a residual branch it makes the network the identity at level 0.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        gate = self.factors(input)
        output = (input * gate).to(input.dtype)
        self._save(gate, output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """g·grad_output."""
        gate = self._pop_saved(grad_output)
        return (grad_output * gate).to(grad_output.dtype) if needs_input_grad else None

    def forward_plus(self, input: Tensor, residual: Tensor) -> Tensor:
        """Return g·x + `residual`."""
        if self.training or input.dtype != residual.dtype:
            return super().forward_plus(input, residual)
        return torch.addcmul(residual, input, self.factors(input).to(input.dtype))

    @property
    def saves_output(self) -> bool:
        """Backward reads the gate only."""
        return False

    def factors(self, input: Tensor) -> Tensor:
        """Return g for (N, C, H, W): (N, 1, 1, 1), float32 or wider.

        Raises:
            StateError: there is no level.
            ShapeError: not one for each image.
        """
        level = self._level_255(input)
        return level / (level + 1)


class ConfidentMean(Block):
    """Σ c·v / Σ c over all cells of an image, with v = softplus(x₀) ≥ 0 and confidence c = exp(x₁).

    A network that gives a value for every cell says itself which ones to trust. The sums of an
    image's parts add up to its own.
    """

    LIMIT = 6.0  # of |x₁|, so that no cell outweighs a million others

    def sums(self, input: Tensor, is_left_out: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 3): Σ c·v and Σ c of each image, and Σ c of the cells left out.

        Args:
            input: the cells.
            is_left_out: (N, 1, H, W).
        """
        value, confidence = self._value_and_confidence(input)
        counted = confidence.masked_fill(is_left_out, 0)
        return torch.cat([counted * value, counted, confidence - counted], 1).sum((2, 3))

    def forward(self, input: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 1, 1, 1), float32 or wider."""
        check_nchw(input.shape, 2, "ConfidentMean input")
        value, confidence = self._value_and_confidence(input)
        weight = confidence / confidence.sum((2, 3), keepdim=True)
        mean = (weight * value).sum((2, 3), keepdim=True)
        self._save((input, value, weight, mean), mean)
        return mean

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """With w = c/Σ c and the mean m: w·σ(x₀) of x₀, and w·(v − m) of x₁ within its limit."""
        input, value, weight, mean = self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        of_value = weight * torch.sigmoid(input[:, :1].to(value.dtype))
        of_confidence = weight * (value - mean) * (input[:, 1:].abs() <= self.LIMIT)
        return (grad_output * torch.cat([of_value, of_confidence], 1)).to(input.dtype)

    def _value_and_confidence(self, input: Tensor) -> tuple[Tensor, Tensor]:
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        zero = wide.new_zeros(())
        value = torch.logaddexp(wide[:, :1], zero)
        return value, wide[:, 1:].clamp(-self.LIMIT, self.LIMIT).exp()
