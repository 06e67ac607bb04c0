"""The loss of a batch and the gradients of what is trained: one forward and one backward."""

from itertools import pairwise

import torch
from torch import Tensor

from denoise_batch.kernels import Block, LogMSELoss, MSELoss, OptionError
from denoise_batch.kernels.capture import Captured, Recorder
from denoise_batch.kernels.loss import Loss
from denoise_batch.kernels.weight_cache import forget

from ..models import LARGEST_LEVEL, Network
from .distributed import ProcessGroup
from .options import TrainOptions

RECHECKS = 2  # of a graph, after the weights have moved


def trained_part(network: Network, options: TrainOptions) -> Block:
    """Return the part of the network that this run trains."""
    if options.estimator:
        assert network.estimator is not None  # `_new_network` made one
        return network.estimator
    return network.restorer


class Gradients:
    """Sets the trained part's gradients to those of a batch's mean loss.

    Args:
        network: in training mode, on its device.
        options: of the run; with `cuda_graphs` forward and backward are recorded once on CUDA,
            then replayed.
        known: share of the target that is known.
        group: the processes that share a batch.
        recorder: of graphs; tests use one that needs no GPU.

    Attributes:
        group: as given.

    Raises:
        OptionError: several processes, whose messages no graph can hold, and `cuda_graphs`.
    """

    def __init__(
        self,
        network: Network,
        options: TrainOptions,
        known: float,
        group: ProcessGroup,
        recorder: Recorder | None = None,
    ) -> None:
        self._network = network
        self._options = options
        self._known = known
        self.group = group
        self._trainee = trained_part(network, options)
        self._parameters = list({id(p): p for p in self._trainee.parameters()}.values())
        ends = [1]  # of the loss, and of every parameter's gradient
        for parameter in self._parameters:
            ends.append(ends[-1] + parameter.numel())
        self._parts = [slice(0, 1), *(slice(*span) for span in pairwise(ends))]
        self._captured: Captured | None = None
        if not options.cuda_graphs:
            return
        if group.size > 1:
            raise OptionError("--cuda-graphs: only for one process; leave it out")
        if recorder is not None or self._parameters[0].is_cuda:
            self._captured = Captured(
                self._flat, recorder=recorder, difference=self._difference, rechecks=RECHECKS
            )

    def __call__(self, noisy: Tensor, target: Tensor, level: Tensor, told: Tensor) -> Tensor:
        """Set every `.grad`; return the mean loss of the global batch, 0-d.

        Args:
            noisy: the global batch, (N, 3, H, W).
            target: the same shape; NaN where a pixel is unknown.
            level: of the noise, (N,).
            told: the level that the network is told, (N,).
        """
        rows = [self.group.local_rows(values) for values in (noisy, target, level, told)]
        if self._captured is not None:
            flat = self._captured(*rows)
            loss, *grads = (flat[part] for part in self._parts)
            for parameter, grad in zip(self._parameters, grads, strict=True):
                parameter.grad = grad.view(parameter.shape)
            return loss[0]
        self._trainee.zero_grad()
        return self.group.backward(self._trainee, *self._loss(*rows), len(noisy))

    def _loss(
        self, noisy: Tensor, target: Tensor, level: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the trained part forward; return the loss and its output's gradient."""
        if self._options.estimator:
            criterion: Loss = MSELoss()
            output = self._trainee(self._network.pad(noisy))
            target = (255 * level.clamp(max=LARGEST_LEVEL)).sqrt().view(-1, 1, 1, 1)
        else:
            is_log = self._options.loss == "log"
            criterion = LogMSELoss(level, self._known) if is_log else MSELoss(self._known)
            self._network.set_level(told)
            output = self._trainee(noisy).to(noisy.dtype)
            # An unknown target pixel is replaced by the output: no error, no gradient.
            target = torch.where(target.isnan(), output, target)
        return criterion(output, target), criterion.backward()

    def _flat(self, *rows: Tensor) -> Tensor:
        """The loss and all gradients in one row, which a graph can leave in its memory.

        What is made of the weights (casts, other layouts) is made inside: a replay that read what
        was kept from before would read old weights.
        """
        forget(self._parameters)
        self._trainee.zero_grad()
        loss, grad_output = self._loss(*rows)
        self._trainee.backward(grad_output, needs_input_grad=False)
        forget(self._parameters)
        grads = [p.grad.flatten() for p in self._parameters if p.grad is not None]
        return torch.cat([loss.view(1), *grads])

    def _difference(self, actual: Tensor, expected: Tensor) -> float:
        """The largest difference of a part, relative to its largest element; NaN if any is NaN."""
        errors = [
            (actual[part] - expected[part]).abs().max()
            / expected[part].abs().max().clamp_min(1e-30)
            for part in self._parts
        ]
        return float(torch.stack(errors).max())
