"""The input of a case, equal for every provider, and what a provider returns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from registry import DTYPES, Case
from torch import Tensor


class UnavailableError(Exception):
    """A provider cannot run a case here; the message says why."""


@dataclass(frozen=True)
class Runner:
    """A provider ready to run a case.

    Attributes:
        run: the timed call.
        results: returns the latest run's results by name, for the correctness check.
        prepare: called before each run, untimed.
    """

    run: Callable[[], None]
    results: Callable[[], dict[str, Tensor]]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Problem:
    """A case's data, reproducible by seed.

    Attributes:
        case: the case.
        device: where the tensors are.
        input: (N, C, H, W), channels-last. For a network, float32 images in [0, 1]; for a layer,
            normally distributed values in the case's dtype.
        target: of a training step; shape and dtype of `input`.
    """

    case: Case
    device: torch.device
    input: Tensor
    target: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return DTYPES[self.case.dtype]

    def grad_of(self, output: Tensor) -> Tensor:
        """Return a gradient for `output`; 1 for a loss."""
        if output.ndim == 0:
            return torch.ones_like(output)
        return _seeded(torch.randn, tuple(output.shape), seed=2).to(output)

    def grads_of(self, parameters: list[Tensor]) -> list[Tensor]:
        """Return a gradient for every parameter."""
        return [
            _seeded(torch.randn, tuple(value.shape), seed=3 + index).to(value)
            for index, value in enumerate(parameters)
        ]


def pose(case: Case, device: torch.device) -> Problem:
    """Create the case's data on the device."""
    if case.mode == "step":
        return Problem(case, device, torch.empty(0), torch.empty(0))
    draw = torch.rand if case.is_network else torch.randn
    dtype = torch.float32 if case.is_network else DTYPES[case.dtype]
    input, target = (
        _seeded(draw, case.shape, seed).to(device, dtype, memory_format=torch.channels_last)
        for seed in (0, 1)
    )
    return Problem(case, device, input, target)


def _seeded(draw: Callable[..., Tensor], shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw on the host, so that every device gets the same values."""
    return draw(shape, generator=torch.Generator().manual_seed(seed))
