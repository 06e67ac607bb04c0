"""Sums of gradients over all workers, in buckets, while backward still computes the rest.

Li et al., "PyTorch Distributed: experiences on accelerating data parallel training" (2020), with
blocks that announce their gradients (`Block.announce_grads`) instead of autograd's hooks.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from denoise_batch.kernels import Block, StateError

BUCKET_BYTES = 2**20


@dataclass
class _Bucket:
    """Neighbouring gradients that travel together.

    Attributes:
        parameters: in the order of their places.
        flat: their gradients, one behind the other; in the first bucket the loss comes last.
        missing: announcements still to come of each parameter, by its identity.
        work: the sum under way.
    """

    parameters: list[Tensor]
    flat: Tensor
    missing: Counter[int] = field(default_factory=Counter)
    work: "distributed.Work | None" = None

    def places(self) -> list[Tensor]:
        """Where each parameter's gradient stands in `flat`, in the parameter's shape."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(self.flat[: sum(sizes)], sizes)
        return [
            part.view(parameter.shape)
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]

    def send(self) -> None:
        """Begin to sum over the workers."""
        for parameter, place in zip(self.parameters, self.places(), strict=True):
            assert parameter.grad is not None  # it was announced
            place.copy_(parameter.grad)
        self.work = distributed.all_reduce(self.flat, async_op=True)


class GradientReducer:
    """Makes a network's backward leave the sum of all workers' gradients.

    Buckets fill from the network's end, where backward begins, and go out in that order on every
    worker, each as soon as its last gradient is there.

    Args:
        network: the same on every worker, on its final device; all parameters of one precision.
        bucket_bytes: a bucket is closed when it holds as much. Smaller ones start earlier, larger
            ones pay less often for a message.
    """

    def __init__(self, network: Block, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._network = network
        self._uses = Counter(id(parameter) for parameter in network.parameters())
        self._buckets: list[_Bucket] = []
        unique = {id(parameter): parameter for parameter in network.parameters()}
        waiting: list[Tensor] = []
        for parameter in reversed(unique.values()):
            waiting.append(parameter)
            if sum(p.numel() * p.element_size() for p in waiting) >= bucket_bytes:
                self._close(waiting)
                waiting = []
        if waiting:
            self._close(waiting)
        self._bucket_of = {id(p): bucket for bucket in self._buckets for p in bucket.parameters}
        self._sent = 0
        network.announce_grads(self._on_grad)

    def backward(self, loss: Tensor, grad_output: Tensor) -> Tensor:
        """The network's backward; afterwards `.grad` and the returned loss are sums over workers.

        The gradients must have been forgotten before (`zero_grad`).

        Args:
            loss: this worker's, 0-d.
            grad_output: as for `Block.backward_parameters`.

        Raises:
            StateError: a parameter got no gradient, so that the other workers would wait for ever.
        """
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing = Counter({id(p): self._uses[id(p)] for p in bucket.parameters})
        first = self._buckets[0].flat
        first[-1] = loss
        self._network.backward_parameters(grad_output)
        if self._sent < len(self._buckets):
            raise StateError(
                f"{len(self._buckets) - self._sent} of {len(self._buckets)} gradient buckets are "
                "incomplete: a block with parameters does not announce its gradients"
            )
        for bucket in self._buckets:
            assert bucket.work is not None  # it was sent
            bucket.work.wait()
            bucket.work = None
            for parameter, place in zip(bucket.parameters, bucket.places(), strict=True):
                parameter.grad = place
        return first[-1].clone()

    def _close(self, parameters: list[Tensor]) -> None:
        size = sum(parameter.numel() for parameter in parameters) + (not self._buckets)
        like = parameters[0]
        flat = torch.empty(size, dtype=like.dtype, device=like.device)
        self._buckets.append(_Bucket(parameters, flat))

    def _on_grad(self, parameter: Tensor) -> None:
        missing = self._bucket_of[id(parameter)].missing
        missing[id(parameter)] -= 1
        if missing[id(parameter)] == 0:
            del missing[id(parameter)]
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._buckets[self._sent].send()
            self._sent += 1
