"""Block, the base of every layer and network: parameters, a forward, a backward written by hand."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from textwrap import indent
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .buffer_pool import shares_memory
from .dispatch import ops_for
from .errors import ShapeError, StateError

# The gradient of a block's input, a tensor; None where it was not asked for.
InputGrad = Any


class Block(ABC):
    """A differentiable function of one tensor, with its own gradient.

    `forward(input)` computes the output and, in training mode, saves what `backward` needs.
    `backward(grad_output)` returns the gradient of the input, adds the parameters' gradients to
    their `.grad`, and clears what was saved. Calling a block is calling `forward`.

    Parameters are plain tensors (`conv.weight`, `conv.bias`) with their gradients in `.grad`, as in
    torch, but there is no autograd graph: `requires_grad` is False.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.training = True
        self.compute_dtype: torch.dtype | None = None
        self._saved: Any = None
        self._on_grad: Callable[[Tensor], None] | None = None

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Return the output for `input`, (N, C, H, W)."""

    @abstractmethod
    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Add to the parameters' `.grad` and return the gradient of `input`.

        Args:
            grad_output: the gradient of the output.
            needs_input_grad: False saves the work where nobody reads the input's gradient, as at
                a network's first layer; the result is None then.

        Raises:
            StateError: there was no forward in training mode before.
            ShapeError: grad_output has another shape than the output.
        """

    def __call__(self, input: Tensor) -> Tensor:
        """Return `forward(input)`.

        Raises:
            ShapeError: the input is not a tensor.
            StateError: the input requires a gradient of autograd, which blocks cannot give.
        """
        name = type(self).__name__
        if not isinstance(input, Tensor):
            raise ShapeError(
                f"{name} takes a torch tensor (N, C, H, W), not {type(input).__name__}: convert an "
                "array (H, W, C) with torch.from_numpy(array).permute(2, 0, 1)[None]"
            )
        if input.requires_grad:
            raise StateError(
                f"{name}: the input requires grad, but blocks take no part in autograd: pass "
                "input.detach(), and call backward(grad_output) for the input's gradient"
            )
        return self.forward(input)

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}\n" for name, child in self.named_children()]
        inside = "\n" + indent("".join(children), "  ") if children else self.extra_repr()
        return f"{type(self).__name__}({inside})"

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows, as in torch."""
        return ""

    def forward_in_place(self, input: Tensor) -> Tensor:
        """Return `forward(input)` in inference, where the input may be overwritten."""
        return self.forward(input)

    def forward_plus(self, input: Tensor, residual: Tensor) -> Tensor:
        """Return `forward(input) + residual`, in one pass where a convolution ends it."""
        output = self.forward(input)
        return output + residual if self.training and self.saves_output else add(output, residual)

    def backward_plus(self, grad_output: Tensor, residual: Tensor) -> Tensor:
        """Return `backward(grad_output) + residual`, in one pass where a convolution begins it."""
        return add(self.backward(grad_output), residual)

    @property
    def saves_output(self) -> bool:
        """Whether backward reads what forward returned, so that nobody may write to it."""
        return True

    def named_children(self) -> Iterator[tuple[str, "Block"]]:
        """Yield (name, block) of the blocks inside, as the parameters are named."""
        yield from ()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of every parameter, this block's own first, then the children's."""
        for name in self.parameter_names:
            value = getattr(self, name)
            if value is not None:
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Tensor]:
        """Return all parameters, in a fixed order."""
        return [value for _, value in self.named_parameters()]

    def zero_grad(self) -> None:
        """Set every parameter's `.grad` to None."""
        for value in self.parameters():
            value.grad = None

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode (save what backward needs) or inference mode (save nothing)."""
        self.training = mode
        self.clear_saved()
        for _, child in self.named_children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switch to inference mode: `train(False)`."""
        return self.train(False)

    def clear_saved(self) -> None:
        """Drop what forward saved for backward, in this block and inside."""
        self._saved = None
        for _, child in self.named_children():
            child.clear_saved()

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

        A parameter that several blocks share is announced by each of them. None removes the hook.
        """
        self._on_grad = on_grad
        for _, child in self.named_children():
            child.register_grad_ready_hook(on_grad)
        return self

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move the parameters in place, so that an optimiser keeps pointing at them.

        Raises:
            OptionError: DENOISE_BATCH_KERNELS is not valid.
            DeviceError: it asks for kernels that the device does not have.
        """
        for value in self.parameters():
            grad = value.grad
            value.grad = None
            value.data = value.data.to(device=device, dtype=dtype)
            if grad is not None:
                value.grad = grad.to(device=device, dtype=dtype)
        for value in self.parameters():
            # A device without kernels fails here, not at the first image.
            is_packed = ops_for(value.device).implementation == "triton"
            value.data = _laid_out(value.data, is_packed)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters by name; the tensors themselves, not copies."""
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
        """Save `value` for the backward of `output`, in training mode only."""
        self._saved = (value, output.shape) if self.training else None

    def _pop_saved(self, grad_output: Tensor) -> Any:
        """Return what forward saved, and clear it so that its memory can go."""
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
        """Call the hook, at the end of a backward that filled this block's own gradients."""
        if self._on_grad is not None:
            for name in self.parameter_names:
                if (parameter := getattr(self, name)) is not None:
                    self._on_grad(parameter)


def _laid_out(value: Tensor, is_packed: bool) -> Tensor:
    """A parameter as its device's kernels like it in memory; a weight (S, L, kh, kw) packed.

    Packed: (kh, kw, L, S), as the Triton kernels read weights and write their gradients.
    """
    if is_packed and value.ndim == 4:
        return value.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return value.contiguous()


def add(fresh: Tensor, other: Tensor) -> Tensor:
    """Return the sum, in the place of `fresh` (which nobody else reads) unless it views `other`."""
    if fresh.dtype != other.dtype or shares_memory(fresh, other):
        return fresh + other
    return fresh.add_(other)


def accumulate_grad(parameter: Tensor, grad: Tensor) -> None:
    """Add `grad` to `parameter.grad`, in the parameter's precision."""
    if parameter.grad is None:
        parameter.grad = grad.to(parameter.dtype)
    else:
        parameter.grad += grad
