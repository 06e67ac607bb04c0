"""What a block is: parameters, a forward, and a backward written by hand."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .errors import ShapeError, StateError


class Block(ABC):
    """A differentiable function of one tensor, with its own gradient.

    `forward(input)` computes the output and, in training mode, keeps what `backward` needs;
    `backward(grad_output)` returns the gradient of the input, adds the parameters' gradients to
    their `.grad`, and forgets what was kept. Calling a block is calling `forward`.

    Parameters are plain tensors (`conv.weight`, `conv.bias`) whose gradients stand in their
    `.grad`, as in torch, though no autograd graph ever exists: `requires_grad` is False.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.training = True
        self._saved: Any = None

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """The block's output for `input`, (N, C, H, W)."""

    @abstractmethod
    def backward(self, grad_output: Tensor) -> Tensor:
        """The gradient of `input`, given that of the output; adds to the parameters' `.grad`.

        Raises:
            StateError: no forward in training mode came before.
        """

    def __call__(self, input: Tensor) -> Tensor:
        """`forward(input)`."""
        return self.forward(input)

    def named_children(self) -> Iterator[tuple[str, "Block"]]:
        """Blocks inside this one, with the names under which their parameters appear."""
        yield from ()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every parameter, its own first, then the children's."""
        for name in self.parameter_names:
            value = getattr(self, name)
            if value is not None:
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Tensor]:
        """All parameters, in a fixed order."""
        return [value for _, value in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget all gradients (`.grad` becomes None)."""
        for value in self.parameters():
            value.grad = None

    def train(self, mode: bool = True) -> Self:
        """Training mode (keep what backward needs) or inference mode (keep nothing)."""
        self.training = mode
        self._saved = None
        for _, child in self.named_children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Inference mode: `train(False)`."""
        return self.train(False)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move the parameters in place, so that an optimiser keeps pointing at them."""
        for value in self.parameters():
            grad = value.grad
            value.grad = None
            value.data = value.data.to(device=device, dtype=dtype)
            if grad is not None:
                value.grad = grad.to(device=device, dtype=dtype)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by name; the tensors themselves, not copies."""
        return dict(self.named_parameters())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` into the parameters; on an error nothing is changed.

        Raises:
            ShapeError: names or shapes differ from this block's.
        """
        own = self.state_dict()
        missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unknown:
            raise ShapeError(
                f"parameters do not fit: missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ShapeError(
                    f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
                )
        for name, value in own.items():
            value.copy_(state[name])

    def _save(self, value: Any) -> None:
        """Keep `value` for backward, in training mode only."""
        self._saved = value if self.training else None

    def _take_saved(self) -> Any:
        """What forward kept; the block forgets it, so its memory can go."""
        if self._saved is None:
            raise StateError(
                f"{type(self).__name__}.backward: call forward in training mode first "
                "(each forward serves one backward)"
            )
        saved, self._saved = self._saved, None
        return saved


class Sequential(Block):
    """Blocks one after the other; backward runs them in reverse (the chain rule)."""

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, input: Tensor) -> Tensor:
        """Apply every block in order."""
        for block in self.blocks:
            input = block.forward(input)
        return input

    def backward(self, grad_output: Tensor) -> Tensor:
        """Apply every block's backward in reverse order."""
        for block in reversed(self.blocks):
            grad_output = block.backward(grad_output)
        return grad_output

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Blocks named by their position: "0", "1", …"""
        for index, block in enumerate(self.blocks):
            yield str(index), block

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return self.blocks[index]


def accumulate_grad(parameter: Tensor, grad: Tensor) -> None:
    """Add `grad` to `parameter.grad`."""
    if parameter.grad is None:
        parameter.grad = grad
    else:
        parameter.grad += grad
