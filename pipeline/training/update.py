"""One update of what is trained: loss, gradients, a step of the optimiser, the moving average."""

import torch
from torch import Tensor

from denoise_batch.kernels import Block, LogMSELoss, MSELoss, OptionError, clip_grad_norm_
from denoise_batch.kernels.capture import Captured, Recorder
from denoise_batch.kernels.loss import Loss
from denoise_batch.kernels.optim import Number
from denoise_batch.kernels.weight_cache import forget

from ..models import LARGEST_LEVEL, Network
from .distributed import ProcessGroup
from .options import TrainOptions
from .pairs import upload
from .run_folder import TrainingState


def trained_part(network: Network, options: TrainOptions) -> Block:
    """Return the part of the network that this run trains."""
    if options.estimator:
        assert network.estimator is not None  # `_new_network` made one
        return network.estimator
    return network.restorer


class Update:
    """Moves the trained part along the gradients of a batch's mean loss.

    Args:
        state: its weights, optimiser, average and sum of losses are updated in place; the network
            is in training mode, on its device.
        options: of the run; with `cuda_graphs` all launches of an update are recorded once on
            CUDA, then replayed.
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
        state: TrainingState,
        options: TrainOptions,
        known: float,
        group: ProcessGroup,
        recorder: Recorder | None = None,
    ) -> None:
        self._state = state
        self._options = options
        self._known = known
        self.group = group
        self._trainee = trained_part(state.network, options)
        self._captured: Captured | None = None
        if not options.cuda_graphs:
            return
        if group.size > 1:
            raise OptionError("--cuda-graphs: only for one process; leave it out")
        if recorder is not None or state.loss_sum.is_cuda:
            self._captured = Captured(self._replayable, recorder=recorder, changes=self._changes)

    def __call__(self, noisy: Tensor, target: Tensor, level: Tensor, told: Tensor) -> None:
        """Train on the global batch, at the optimiser's learning rate.

        Args:
            noisy: (N, 3, H, W).
            target: the same shape; NaN where a pixel is unknown.
            level: of the noise, (N,).
            told: the level that the network is told, (N,).
        """
        rows = [self.group.local_rows(values) for values in (noisy, target, level, told)]
        if self._captured is None:
            self._trainee.zero_grad()
            loss = self.group.backward(self._trainee, *self._loss(*rows), len(noisy))
            self._move(loss)
            return
        optimizer, average = self._state.optimizer, self._state.average
        numbers = torch.tensor([average.count_step(), *optimizer.count_step()])
        # Tiles that were turned lie otherwise in memory, and would need a recording of their own.
        rows = [values.contiguous() for values in rows]
        self._captured(*rows, upload(numbers, noisy.device))
        forget(optimizer.parameters)  # torch does not see what a replay changes

    def _loss(
        self, noisy: Tensor, target: Tensor, level: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the trained part forward; return the loss and its output's gradient."""
        if self._options.estimator:
            criterion: Loss = MSELoss()
            output = self._trainee(self._state.network.pad(noisy))
            target = (255 * level.clamp(max=LARGEST_LEVEL)).sqrt().view(-1, 1, 1, 1)
        else:
            is_log = self._options.loss == "log"
            criterion = LogMSELoss(level, self._known) if is_log else MSELoss(self._known)
            self._state.network.set_level(told)
            output = self._trainee(noisy).to(noisy.dtype)
            # An unknown target pixel is replaced by the output: no error, no gradient.
            target = torch.where(target.isnan(), output, target)
        return criterion(output, target), criterion.backward()

    def _move(self, loss: Tensor, numbers: tuple[Number, ...] = ()) -> None:
        """Move weights and average, by the optimiser's and the average's own numbers by default."""
        state = self._state
        if self._options.clip_norm:
            clip_grad_norm_(state.optimizer.parameters, self._options.clip_norm)
        state.optimizer.step(numbers[1:] or None)
        state.average.update(*numbers[:1])
        state.loss_sum += loss

    def _replayable(self, *tensors: Tensor) -> Tensor:
        """Make an update without anything of the host, and return its loss.

        What is made of the weights (casts, other layouts) is made inside: a replay that read what
        was kept from before would read old weights.
        """
        *rows, numbers = tensors
        parameters = self._state.optimizer.parameters
        forget(parameters)
        self._trainee.zero_grad()
        loss, grad_output = self._loss(*rows)
        self._trainee.backward(grad_output, needs_input_grad=False)
        forget(parameters)
        self._move(loss, numbers.unbind())
        return loss.view(1)

    def _changes(self) -> list[Tensor]:
        """Return all tensors that an update changes, but for host counts."""
        state = self._state
        moments = [value for value in state.optimizer.state_dict().values() if value.ndim]
        return [*state.optimizer.parameters, *moments, *state.average.averages, state.loss_sum]
