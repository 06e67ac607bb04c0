"""Stochastic gradient descent (report, II-F), with torch's arguments and torch's arithmetic."""

from collections.abc import Iterable

from torch import Tensor

from .errors import OptionError


class SGD:
    """p ← p − lr·v, with weight decay, momentum and Nesterov's look-ahead as in torch.optim.SGD.

    g = p.grad + weight_decay·p;  v = g at the first step, then v = momentum·v + g;  the step is
    along v, or along g + momentum·v with `nesterov` (Sutskever et al., 2013).

    Args:
        parameters: tensors whose `.grad` a backward fills; one without a gradient is left alone.
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
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise OptionError(f"SGD: {name}={value}: must be at least 0")
        if nesterov and momentum == 0:
            raise OptionError("SGD: nesterov needs momentum above 0, such as momentum=0.9")
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self._velocities: list[Tensor | None] = [None] * len(self.parameters)

    def zero_grad(self) -> None:
        """Forget the gradients, before the next backward adds new ones."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient, in place."""
        for index, parameter in enumerate(self.parameters):
            grad = parameter.grad
            if grad is None:
                continue
            if self.weight_decay:
                grad = grad.add(parameter, alpha=self.weight_decay)
            if self.momentum:
                velocity = self._velocities[index]
                if velocity is None:
                    velocity = self._velocities[index] = grad.clone()
                else:
                    velocity.mul_(self.momentum).add_(grad)
                grad = grad.add(velocity, alpha=self.momentum) if self.nesterov else velocity
            parameter.sub_(grad, alpha=self.lr)
