"""Between samples as files store them and values in [0, 1]: the specification.

Samples are those of images of one size and range, (N, H, W, C), each image contiguous. Kernels
(`cuda/samples.py`) do in one launch what here takes many; integers of more than 16 bits and float64
are not theirs.
"""

import torch
from torch import Tensor

from .geometry import IntPair
from .padding import copied_positions


def unit_padded(
    samples: Tensor, offset: float, span: float, beyond: float, size: IntPair, margin: int
) -> Tensor:
    """(samples − offset)/span in [−beyond, 1 + beyond], between reflections.

    Args:
        samples: (N, H, W, C).
        offset: the sample that maps to 0.
        span: the distance to the sample that maps to 1.
        beyond: how far values may lie outside [0, 1].
        size: of the result.
        margin: rows above and columns on the left; what `size` leaves is below and on the right.

    Returns:
        (N, C, *size) float32, or float64 for samples in float64; channels-last.
    """
    unit = _unit(samples, offset, span, beyond)
    for dim, extent in enumerate(size, 1):
        positions = torch.arange(-margin, extent - margin, device=samples.device)
        unit = unit.index_select(dim, copied_positions(positions, samples.shape[dim], "reflect"))
    return unit.permute(0, 3, 1, 2)


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
    """Values as samples, cut to the images between the reflections.

    Args:
        values: (N, C, PH, PW) as `unit_padded` makes them.
        samples: (N, H, W, C), which they replace.
        offset: the sample that maps to 0.
        span: the distance to the sample that maps to 1.
        beyond: how far `unit_padded` let values lie outside [0, 1].
        levels: least and most that an integer may be; None for floats, which are not rounded.
        is_relative: add to the samples by how much values differ from them; otherwise values
            become samples by themselves, and `offset` is 0.
        margin: rows above and columns on the left that are cut off.

    Returns:
        (N, H, W, C) of samples' type; and for each image whether all its values are finite, (N,).
    """
    _, height, width, _ = samples.shape
    inside = values[:, :, margin : margin + height, margin : margin + width].permute(0, 2, 3, 1)
    is_finite = torch.isfinite(inside).flatten(1).all(1)
    if not is_relative:
        stored = (inside * span + 0.5).floor()
    else:
        unit = _unit(samples, offset, span, beyond)
        change = (inside.to(unit.dtype) - unit) * span
        stored = samples.to(unit.dtype) + (change if levels is None else change.round())
    if levels is not None:
        stored = stored.clamp(*levels)
    return stored.to(samples.dtype), is_finite


def _unit(samples: Tensor, offset: float, span: float, beyond: float) -> Tensor:
    wide = torch.float64 if samples.dtype == torch.float64 else torch.float32
    return ((samples.to(wide) - offset) / span).clamp(-beyond, 1 + beyond)
