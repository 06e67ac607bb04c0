"""What a block is: parameters, a forward, and a backward written by hand."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
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
        self.compute_dtype: torch.dtype | None = None
        self._saved: Any = None
        self._on_grad: Callable[[Tensor], None] | None = None

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """The block's output for `input`, (N, C, H, W)."""

    @abstractmethod
    def backward(self, grad_output: Tensor) -> Tensor:
        """The gradient of `input`, given that of the output; adds to the parameters' `.grad`.

        Raises:
            StateError: no forward in training mode came before.
            ShapeError: grad_output is not shaped as the output was.
        """

    def __call__(self, input: Tensor) -> Tensor:
        """`forward(input)`."""
        return self.forward(input)

    def forward_in_place(self, input: Tensor) -> Tensor:
        """`forward` for inference that may destroy its input, which nobody needs any more."""
        return self.forward(input)

    @property
    def saves_output(self) -> bool:
        """Whether backward reads what forward returned, so that nobody may write to it."""
        return True

    def backward_parameters(self, grad_output: Tensor) -> None:
        """`backward` where nobody wants the input's gradient, as at a network's first layer."""
        self.backward(grad_output)

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
        self.forget()
        for _, child in self.named_children():
            child.train(mode)
        return self

    def forget(self) -> None:
        """Drop what forward kept, here and inside."""
        self._saved = None
        for _, child in self.named_children():
            child.forget()

    def set_compute_dtype(self, dtype: torch.dtype | None) -> Self:
        """Let convolutions compute in `dtype` (None: in the parameters' own).

        The parameters and their gradients stay as they are: with float32 parameters and bfloat16
        computation this is mixed precision (Micikevicius et al., 2018).
        """
        self.compute_dtype = dtype
        for _, child in self.named_children():
            child.set_compute_dtype(dtype)
        return self

    def register_grad_ready_hook(self, on_grad: Callable[[Tensor], None] | None) -> Self:
        """Have backward call `on_grad(parameter)` as soon as that `.grad` is complete.

        A parameter that several blocks share is announced by each of them. None: announce nothing.
        """
        self._on_grad = on_grad
        for _, child in self.named_children():
            child.register_grad_ready_hook(on_grad)
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

    def _save(self, value: Any, output: Tensor) -> None:
        """Keep `value` for the backward of `output`, in training mode only."""
        self._saved = (value, output.shape) if self.training else None

    def _pop_saved(self, grad_output: Tensor) -> Any:
        """What forward kept; the block forgets it, so its memory can go."""
        if self._saved is None:
            raise StateError(
                f"{type(self).__name__}.backward: call forward in training mode first "
                "(each forward serves one backward)"
            )
        saved, shape = self._saved
        if grad_output.shape != shape:
            raise ShapeError(
                f"{type(self).__name__}.backward: grad_output has shape "
                f"{tuple(grad_output.shape)}, the output had {tuple(shape)}"
            )
        self._saved = None
        return saved

    def _notify_grad_ready(self) -> None:
        """At the end of a backward that filled this block's own parameters' gradients."""
        if self._on_grad is not None:
            for name in self.parameter_names:
                if (parameter := getattr(self, name)) is not None:
                    self._on_grad(parameter)


def accumulate_grad(parameter: Tensor, grad: Tensor) -> None:
    """Add `grad` to `parameter.grad`, in the parameter's precision."""
    if parameter.grad is None:
        parameter.grad = grad.to(parameter.dtype)
    else:
        parameter.grad += grad
