"""What every provider of a case is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from registry import DTYPES, Case
from torch import Tensor


class UnavailableError(Exception):
    """This provider cannot take part in this case; the message says why, for the table."""


def _nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class Runner:
    """One provider, ready to run one case.

    Attributes:
        run: what is timed.
        results: what the latest run came to, by name, for the gate.
        prepare: what must happen before each run and is not timed.
    """

    run: Callable[[], None]
    results: Callable[[], dict[str, Tensor]]
    prepare: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Problem:
    """A case's data; the same values whenever it is posed.

    Attributes:
        case: the case.
        device: where its tensors are.
        input: (N, C, H, W), channels-last: float32 images in [0, 1] for a network, normally
            distributed and in the case's precision for a block.
        target: for training, of the same shape.
    """

    case: Case
    device: torch.device
    input: Tensor
    target: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the arithmetic."""
        return DTYPES[self.case.dtype]

    def grad_of(self, output: Tensor) -> Tensor:
        """A gradient for an output of that shape and precision; 1 for a loss."""
        if output.ndim == 0:
            return torch.ones_like(output)
        return _seeded(torch.randn, tuple(output.shape), seed=2).to(output)

    def grads_of(self, parameters: list[Tensor]) -> list[Tensor]:
        """A gradient for every parameter."""
        return [
            _seeded(torch.randn, tuple(value.shape), seed=3 + index).to(value)
            for index, value in enumerate(parameters)
        ]


def pose(case: Case, device: torch.device) -> Problem:
    """The case's data on the device."""
    if case.mode == "step":
        nothing = torch.empty(0)
        return Problem(case, device, nothing, nothing)
    draw = torch.rand if case.is_network else torch.randn
    dtype = torch.float32 if case.is_network else DTYPES[case.dtype]
    input, target = (
        _seeded(draw, case.shape, seed).to(device, dtype, memory_format=torch.channels_last)
        for seed in (0, 1)
    )
    return Problem(case, device, input, target)


def _seeded(draw: Callable[..., Tensor], shape: tuple[int, ...], seed: int) -> Tensor:
    """Drawn on the host, so that every device sees the same values."""
    return draw(shape, generator=torch.Generator().manual_seed(seed))
