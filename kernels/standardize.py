"""Standardisation: what section V of the report found to matter most."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .block import Block
from .errors import ShapeError
from .shapes import check_nchw
from .workspace import empty


class Standardize(Block):
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
        self._take_saved(grad_output)
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
