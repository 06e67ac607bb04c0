"""Optimisers with the arguments and arithmetic of torch (course paper, II-F); clipping, averaging.

A step moves all parameters together: a few launches on a GPU. What a step needs beside tensors (its
learning rate, corrections that depend on its number) are its numbers: host floats, or for a CUDA
graph, which would replay those of its recording, 0-d tensors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from .dispatch import ops_for
from .errors import OptionError, ShapeError
from .weight_cache import renew

Number = float | Tensor


class Optimizer(ABC):
    """Parameters, a learning rate, and tensors of state for each parameter.

    Args:
        parameters: tensors whose `.grad` a backward fills; a parameter without a gradient is left
            alone, one that several blocks share is moved once.
        lr: learning rate, ≥ 0; may be changed between steps.
        weight_decay: ≥ 0.

    Raises:
        OptionError: an argument out of range.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        _check_range("lr", lr)
        _check_range("weight_decay", weight_decay)
        self.parameters = _distinct(parameters)
        if not self.parameters:
            raise OptionError("there are no parameters to optimise")
        self.lr = lr
        self.weight_decay = weight_decay
        self._state: dict[str, Tensor] = {}

    def zero_grad(self) -> None:
        """Set every `.grad` to None, before the next backward adds new gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, numbers: Sequence[Number] | None = None) -> None:
        """Move every parameter that has a gradient, in place.

        Args:
            numbers: what `count_step` returned, as 0-d tensors on the parameters' device; by
                default the step is counted here.
        """
        moving = [(i, p, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None]
        if moving:
            indices, parameters, grads = map(list, zip(*moving, strict=True))
            numbers = self._count_step(indices) if numbers is None else numbers
            self._move(indices, parameters, grads, numbers)
            renew(parameters)

    def count_step(self) -> list[float]:
        """Count a step that moves every parameter, and return its numbers."""
        return self._count_step(list(range(len(self.parameters))))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state kept between steps, by name; the tensors themselves."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state_dict` returned, with the same parameters."""
        device = self.parameters[0].device
        # Step counts are 0-d and stay on the host.
        self._state = {
            name: value.to(device if value.ndim else "cpu", copy=True)
            for name, value in state.items()
        }
        for index, parameter in enumerate(self.parameters):  # in memory as their parameters
            for name in [name for name in state if name.endswith(f".{index}")]:
                if state[name].shape == parameter.shape and not parameter.is_contiguous():
                    value = torch.empty_like(parameter, dtype=state[name].dtype)
                    self._state[name] = value.copy_(state[name])

    def _count_step(self, indices: list[int]) -> list[float]:
        """Count a step of the parameters at `indices`, and return its numbers."""
        return [self.lr]

    @abstractmethod
    def _move(
        self,
        indices: list[int],
        parameters: list[Tensor],
        grads: list[Tensor],
        numbers: Sequence[Number],
    ) -> None:
        """Move the parameters at `indices` by one step, all together."""

    def _states(self, name: str, indices: list[int]) -> list[Tensor]:
        """Return a state tensor for each of these parameters, zeros at first."""
        for index in indices:
            if f"{name}.{index}" not in self._state:
                self._state[f"{name}.{index}"] = torch.zeros_like(self.parameters[index])
        return [self._state[f"{name}.{index}"] for index in indices]


class SGD(Optimizer):
    """p ← p − lr·v, with weight decay, momentum and Nesterov's look-ahead as in torch.optim.SGD.

    g = p.grad + weight_decay·p;  v = g at the first step, then v = momentum·v + g;  the step is
    along v, or along g + momentum·v with `nesterov` (Sutskever et al., 2013).

    Args:
        parameters: tensors whose `.grad` a backward fills; those without a gradient stay.
        lr: learning rate, ≥ 0; may be changed between steps.
        momentum: ≥ 0.
        nesterov: needs momentum > 0.
        weight_decay: L2 penalty, ≥ 0.

    Raises:
        OptionError: an argument out of range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        _check_range("momentum", momentum)
        if nesterov and momentum == 0:
            raise OptionError("nesterov needs momentum above 0, such as momentum=0.9")
        self.momentum = momentum
        self.nesterov = nesterov

    def _move(
        self,
        indices: list[int],
        parameters: list[Tensor],
        grads: list[Tensor],
        numbers: Sequence[Number],
    ) -> None:
        (lr,) = numbers
        velocities = self._states("velocity", indices) if self.momentum else []
        ops_for(parameters[0].device).sgd_step(
            *(parameters, grads, velocities),
            *(lr, self.momentum, self.nesterov, self.weight_decay),
        )


class Adam(Optimizer):
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), as torch.optim.Adam.

    m = β₁·m + (1 − β₁)·g;  v = β₂·v + (1 − β₂)·g²;
    p ← p − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + eps).

    Args:
        parameters: tensors whose `.grad` a backward fills; those without a gradient stay.
        lr: learning rate, ≥ 0; may be changed between steps.
        betas: (β₁, β₂), each in [0, 1).
        eps: ≥ 0.
        weight_decay: L2 penalty, ≥ 0.

    Raises:
        OptionError: an argument out of range.
    """

    _is_decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        _check_range("eps", eps)
        if not all(0 <= beta < 1 for beta in betas):
            raise OptionError(f"betas={betas}: each must be at least 0 and below 1")
        self.betas = betas
        self.eps = eps

    def _count_step(self, indices: list[int]) -> list[float]:
        """Return 1 − lr·weight_decay, and √(1 − β₂ᵗ) and −lr/(1 − β₁ᵗ) of the parameters.

        The last two are one number each for all parameters, unless some have rested before.
        """
        for index in indices:
            if f"steps.{index}" not in self._state:
                self._state[f"steps.{index}"] = torch.zeros((), dtype=torch.int64)  # on the host
        steps = [int(self._state[f"steps.{index}"].add_(1)) for index in indices]
        steps = steps[:1] if len(set(steps)) == 1 else steps
        beta1, beta2 = self.betas
        roots = [math.sqrt(1 - beta2**step) for step in steps]
        rates = [-self.lr / (1 - beta1**step) for step in steps]
        return [1 - self.lr * self.weight_decay, *roots, *rates]

    def _move(
        self,
        indices: list[int],
        parameters: list[Tensor],
        grads: list[Tensor],
        numbers: Sequence[Number],
    ) -> None:
        shrink, *corrections = numbers
        half = len(corrections) // 2
        means, squares = self._states("mean", indices), self._states("square", indices)
        beta1, beta2 = self.betas
        if self._is_decoupled:
            _scale_(parameters, [shrink])
        elif self.weight_decay:
            grads = list(torch._foreach_add(grads, parameters, alpha=self.weight_decay))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        _scale_(roots, corrections[:half], is_inverse=True)
        torch._foreach_add_(roots, self.eps)
        _add_(parameters, list(torch._foreach_div(means, roots)), corrections[half:])


class AdamW(Adam):
    """Adam with decoupled weight decay: p ← p·(1 − lr·weight_decay) before Adam's step.

    Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), as torch.optim.AdamW.
    """

    _is_decoupled = True

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)


class ExponentialMovingAverage:
    """A slow copy of the parameters: a ← decay·a + (1 − decay)·p after every step.

    The decay of step t is at most (1 + t)/(10 + t), so that the initial weights fade quickly.
    Polyak and Juditsky (1992).

    Args:
        parameters: the tensors to average, already on their final device and precision.
        decay: in [0, 1).

    Raises:
        OptionError: decay out of range.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise OptionError(f"decay={decay}: must be at least 0 and below 1")
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.clone() for parameter in self.parameters]
        self.steps = 0

    def update(self, weight: Number | None = None) -> None:
        """Add the current parameters to the averages.

        Args:
            weight: what `count_step` returned, as a 0-d tensor; by default the step is counted
                here.
        """
        weight = self.count_step() if weight is None else weight
        if isinstance(weight, Tensor):
            steps = torch._foreach_sub(self.parameters, self.averages)
            _add_(self.averages, list(steps), [weight])
        else:
            torch._foreach_lerp_(self.averages, self.parameters, weight)

    def count_step(self) -> float:
        """Count a step, and return the weight of its parameters, 1 − decay."""
        self.steps += 1
        return 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages inside, and their own values back afterwards."""
        originals = [parameter.clone() for parameter in self.parameters]
        self._load(self.averages)
        try:
            yield
        finally:
            self._load(originals)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages and the number of steps, by name."""
        state = {f"average.{index}": value for index, value in enumerate(self.averages)}
        return state | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state_dict` returned, with the same parameters.

        Raises:
            ShapeError: the state belongs to other parameters.
        """
        names = [f"average.{index}" for index in range(len(self.averages))]
        if {*names, "steps"} != state.keys():
            raise ShapeError("the averages belong to other parameters")
        for average, name in zip(self.averages, names, strict=True):
            average.copy_(state[name])
        self.steps = int(state["steps"])

    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down together where their joint length exceeds `max_norm`.

    Pascanu et al. (2013), as torch.nn.utils.clip_grad_norm_; never waits for the device. A
    parameter that several blocks share counts once.

    Returns:
        The length before clipping, a 0-d tensor.
    """
    grads = [parameter.grad for parameter in _distinct(parameters) if parameter.grad is not None]
    if not grads:
        return torch.zeros(())
    norm: Tensor = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _distinct(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return each once, in order: `Block.parameters` repeats one that several blocks share."""
    return list({id(parameter): parameter for parameter in parameters}.values())


def _scale_(tensors: Sequence[Tensor], by: Sequence[Number], *, is_inverse: bool = False) -> None:
    """Multiply tensors in place, or divide, by a number each or one for all."""
    operation: Any = torch._foreach_div_ if is_inverse else torch._foreach_mul_
    operation(tensors, by[0] if len(by) == 1 else list(by))


def _add_(tensors: list[Tensor], steps: list[Tensor], rates: Sequence[Number]) -> None:
    """x += rate·step in place, with a rate each or one for all; may overwrite the steps."""
    if len(rates) == 1 and not isinstance(rates[0], Tensor):
        torch._foreach_add_(tensors, steps, alpha=rates[0])
        return
    _scale_(steps, rates)
    torch._foreach_add_(tensors, steps)


def _check_range(name: str, value: float) -> None:
    if not value >= 0:
        raise OptionError(f"{name}={value}: must be at least 0")


class Muon(AdamW):
    """Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).

    m ← m + (1 − momentum)·(g − m);  u = m, or g + momentum·(m − g) with `nesterov`;
    p ← p·(1 − lr·weight_decay) − lr · 0.2·√max(rows, columns) · orthogonalized(u).

    As torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (Liu et al., "Muon is scalable for LLM
    training", 2025), which gives updates the size of AdamW's, so that one learning rate suits both;
    here in the parameters' own precision, not in bfloat16. A weight (C, …) counts as a matrix of C
    rows; parameters of one dimension (biases) are moved by AdamW.

    Args:
        parameters: tensors whose `.grad` a backward fills; those without a gradient stay.
        lr: learning rate, ≥ 0; may be changed between steps.
        momentum: in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: decoupled, ≥ 0.
        ns_steps: Newton-Schulz steps that orthogonalise an update, ≥ 1.

    Raises:
        OptionError: an argument out of range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(parameters, lr, weight_decay=weight_decay)
        if not 0 <= momentum < 1:
            raise OptionError(f"momentum={momentum}: must be at least 0 and below 1")
        if ns_steps < 1:
            raise OptionError(f"ns_steps={ns_steps}: must be at least 1")
        self.momentum = momentum
        self.nesterov = nesterov
        self.ns_steps = ns_steps

    def _count_step(self, indices: list[int]) -> list[float]:
        """Return AdamW's numbers for biases, and −lr."""
        vectors = [index for index in indices if self.parameters[index].ndim < 2]
        return [*super()._count_step(vectors), -self.lr]

    def _move(
        self,
        indices: list[int],
        parameters: list[Tensor],
        grads: list[Tensor],
        numbers: Sequence[Number],
    ) -> None:
        moving = list(zip(indices, parameters, grads, strict=True))
        if vectors := [entry for entry in moving if entry[1].ndim < 2]:
            indices, parameters, grads = map(list, zip(*vectors, strict=True))
            super()._move(indices, parameters, grads, numbers[:-1])
        if matrices := [entry for entry in moving if entry[1].ndim >= 2]:
            indices, parameters, grads = map(list, zip(*matrices, strict=True))
            self._move_matrices(indices, parameters, grads, numbers)

    def _move_matrices(
        self,
        indices: list[int],
        parameters: list[Tensor],
        grads: list[Tensor],
        numbers: Sequence[Number],
    ) -> None:
        shrink, *_, rate = numbers
        means = self._states("momentum", indices)
        torch._foreach_lerp_(means, grads, 1 - self.momentum)
        updates = torch._foreach_lerp(grads, means, self.momentum) if self.nesterov else means
        flat = [_as_matrix(u, p) for u, p in zip(updates, parameters, strict=True)]
        updates = ops_for(parameters[0].device).orthogonalize(flat, self.ns_steps)
        # An update of about 0.2·√max(R, C) for each value, as AdamW's are.
        torch._foreach_mul_(updates, [0.2 * max(update.shape) ** 0.5 for update in updates])
        _scale_(parameters, [shrink])
        steps = [_as_weight(u, p) for u, p in zip(updates, parameters, strict=True)]
        _add_(parameters, steps, [rate])


def _as_matrix(update: Tensor, like: Tensor) -> Tensor:
    """An update (C, …) as a matrix of C rows; of C columns where the weight is packed so."""
    if like.ndim == 4 and not like.is_contiguous():
        return update.permute(2, 3, 1, 0).reshape(-1, len(update))
    return update.flatten(1)


def _as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_as_matrix`."""
    if like.ndim == 4 and not like.is_contiguous():
        return matrix.view(like.permute(2, 3, 1, 0).shape).permute(3, 2, 0, 1)
    return matrix.view_as(like)
