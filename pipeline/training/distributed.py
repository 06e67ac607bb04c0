"""Training on several devices or machines: one process ("worker") for each, started by torchrun.

Every worker holds the whole network and all the data, and draws the same joint batch; it trains on
rows of its own, and the gradients are summed while backward still computes the rest. So the weights
depend on `--batch-size`, which is the joint one, and not on how many workers there are, but for
rounding: a run may go on with more or fewer than it began with. Only the first worker writes files
and speaks.

A process that torchrun did not start is a team of one: nothing here then does anything, and
torch.distributed is not used.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from denoise_batch.kernels import Block, DenoiseBatchError, OptionError, StateError, TrainingError

from ..device import resolve_device

if TYPE_CHECKING:
    pass


PATIENCE = timedelta(minutes=30)  # a worker may still be importing, or its machine starting


def meet() -> tuple[Store, int, int]:
    """The workers' common store, under a prefix that only this attempt uses; rank; size.

    torchrun keeps one store for all attempts (torch 2.13), and a worker that starts anew may read
    there the address of one that is dead, and wait for it. So everyone but the first says hello
    with a fresh token, and answers only a welcome to this very token; the first one welcomes
    whoever it hears, the dead too, until all others have answered.
    """
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    token = secrets.token_hex(8)
    if rank:
        store.set(f"hello/{rank}", token)
        store.wait([f"welcome/{token}"], PATIENCE)
        attempt = store.get(f"welcome/{token}").decode()
        store.set(f"answer/{attempt}/{rank}", "")
        return PrefixStore(attempt, store), rank, size
    silent = set(range(1, size))
    while silent:
        for other in sorted(silent):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", token)
            if store.check([f"answer/{token}/{other}"]):
                silent.remove(other)
        time.sleep(0.01)
    return PrefixStore(token, store), rank, size


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
        network.register_grad_ready_hook(self._on_grad)

    def backward(self, loss: Tensor, grad_output: Tensor) -> Tensor:
        """The network's backward; afterwards `.grad` and the returned loss are sums over workers.

        The gradients must have been forgotten before (`zero_grad`).

        Args:
            loss: this worker's, 0-d.
            grad_output: as for `Block.backward`.

        Raises:
            StateError: a parameter got no gradient, so that the other workers would wait for ever.
        """
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing = Counter({id(p): self._uses[id(p)] for p in bucket.parameters})
        first = self._buckets[0].flat
        first[-1] = loss
        self._network.backward(grad_output, needs_input_grad=False)
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


Value = TypeVar("Value")


class ProcessGroup:
    """All workers, as one of them sees them; this one is alone.

    Attributes:
        rank: which worker this is; 0 is the first.
        size: how many there are.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This worker's device, where `--device` says `name`."""
        return resolve_device(name)

    def first(self, action: Callable[[], Value]) -> Value:
        """What `action` returns where the first worker runs it; its error is everyone's error."""
        return action()

    def check_same(self, what: str, value: object) -> None:
        """Make sure that `value` is the first worker's.

        Raises:
            TrainingError: it is not.
        """

    def clock(self, seconds: float) -> float:
        """The first worker's measurement: how long a run goes on may depend on it."""
        return seconds

    def check_batch(self, batch_size: int) -> None:
        """Make sure that a joint batch has a tile for everyone.

        Raises:
            OptionError: it has not.
        """

    def join(self, network: Block) -> None:
        """Take over the first worker's parameters and train this network together."""

    def mine(self, rows: Tensor) -> Tensor:
        """This worker's rows of a joint tensor (N, …), at least one."""
        return rows

    def restored(self, part: Tensor, rows: Tensor) -> Tensor:
        """The joint tensor `rows` with `part` in the place of `mine(rows)`."""
        return part

    def whole(self, part: Tensor, count: int) -> Tensor:
        """All `count` rows of a joint tensor, each from the worker whose it is."""
        return part

    def backward(self, network: Block, loss: Tensor, grad_output: Tensor, count: int) -> Tensor:
        """Fill the parameters' gradients with those of the joint batch's mean loss.

        Args:
            network: in training mode, after a forward of this worker's rows.
            loss: their mean loss, 0-d.
            grad_output: its gradient, of the network's output.
            count: rows of the joint batch.

        Returns:
            The joint batch's mean loss.
        """
        network.backward(grad_output, needs_input_grad=False)
        return loss


class Workers(ProcessGroup):
    """Several processes in torch.distributed's default group.

    Args:
        rank: which one this is.
        size: how many there are.
        local_rank: which one this is on its machine.
        local_size: how many there are on this machine.
    """

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.rank = rank
        self.size = size
        self._local_rank = local_rank
        self._local_size = local_size
        self._reducer: GradientReducer | None = None

    def device(self, name: str) -> torch.device:
        """`auto` and `cuda` mean the GPU of this worker's number on its machine."""
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            device = resolve_device(f"cuda:{self._local_rank}")
            torch.cuda.set_device(device)
            return device
        if name == "auto":
            return torch.device("cpu")
        device = resolve_device(name)
        if device.type == "mps" or (device.type == "cuda" and self._local_size > 1):
            raise OptionError(f"--device {name}: is one device; workers want --device cuda or cpu")
        return device

    def first(self, action: Callable[[], Value]) -> Value:
        """Run `action` on the first worker and send what came of it to the others."""
        from torch import distributed

        box: list[tuple[Value | None, str]] = [(None, "")]
        error: DenoiseBatchError | None = None
        if self.is_first:
            try:
                box = [(action(), "")]
            except DenoiseBatchError as raised:
                error, box = raised, [(None, str(raised))]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        value, reason = box[0]
        if error is not None:
            raise error
        if reason:
            raise TrainingError(f"worker {self.rank} stops with the first one: {reason}")
        return value  # type: ignore[return-value]  # None stands for itself or came with a reason

    def check_same(self, what: str, value: object) -> None:
        """Compare with the first worker's."""
        expected = self.first(lambda: value)
        if value != expected:
            raise TrainingError(
                f"worker {self.rank}: {what} {value}, the first worker's {expected}; all machines "
                "need the same files and the same release"
            )

    def clock(self, seconds: float) -> float:
        """A message on the host's own channel; it does not wait for a GPU."""
        from torch import distributed

        value = torch.tensor(seconds, dtype=torch.float64)
        distributed.broadcast(value, src=0)
        return float(value)

    def check_batch(self, batch_size: int) -> None:
        """At least as many tiles as workers."""
        if batch_size < self.size:
            raise OptionError(
                f"--batch-size {batch_size}: is shared by {self.size} workers; give as many or more"
            )

    def join(self, network: Block) -> None:
        """Take over the first worker's parameters; gradients are summed from now on."""
        from torch import distributed

        pass

        for parameter in network.parameters():
            distributed.broadcast(parameter, src=0)
        self._reducer = GradientReducer(network)

    def mine(self, rows: Tensor) -> Tensor:
        """A contiguous part; where there are fewer rows than workers, some get one of no weight."""
        start, stop = self._part(len(rows), self.rank)
        return rows[start:stop] if stop > start else rows[:1]

    def restored(self, part: Tensor, rows: Tensor) -> Tensor:
        """Other workers' rows stay as they are: nobody looks at them here."""
        start, stop = self._part(len(rows), self.rank)
        return torch.cat([rows[:start], part[: stop - start], rows[stop:]])

    def whole(self, part: Tensor, count: int) -> Tensor:
        """Gather the parts; all are padded to one length on the way."""
        from torch import distributed

        longest = -(-count // self.size)
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        ends = [self._part(count, rank) for rank in range(self.size)]
        return torch.cat([p[: stop - start] for p, (start, stop) in zip(parts, ends, strict=True)])

    def backward(self, network: Block, loss: Tensor, grad_output: Tensor, count: int) -> Tensor:
        """Weigh this worker's mean by its rows and add up everyone's."""
        assert self._reducer is not None  # join came first
        start, stop = self._part(count, self.rank)
        share = (stop - start) / count
        return self._reducer.backward(loss * share, grad_output * share)

    def _part(self, count: int, rank: int) -> tuple[int, int]:
        return rank * count // self.size, (rank + 1) * count // self.size


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The team that torchrun put this process in, inside the block; alone without torchrun.

    Raises:
        OptionError: WORLD_SIZE is set, as torchrun does, but the rest is not.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ProcessGroup()
        return
    from torch import distributed

    pass

    try:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        store, rank, workers = meet()
    except (KeyError, ValueError) as error:
        raise OptionError(
            f"WORLD_SIZE is {size}, but the other variables of a distributed run are missing or no "
            f"numbers ({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error
    # Objects and CPU tensors go over gloo, CUDA tensors over NCCL where it is there.
    has_nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers)
    try:
        yield Workers(rank, workers, local_rank, local_size)
    finally:
        distributed.destroy_process_group()


def was_restarted() -> bool:
    """Whether torchrun started this worker anew, after one of them was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
