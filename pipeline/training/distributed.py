"""Training on several devices or machines: one process for each, started by torchrun.

Every process holds the whole network and all the data and draws the same global batch; it trains on
its own rows, and gradients are summed while backward is still computing the rest. The weights
therefore depend on `--batch-size`, the size of the global batch, and not on the number of processes
(up to rounding): a run may be resumed with more or fewer. Only the first process writes files and
prints.

A process that torchrun did not start forms a group of one, which uses nothing of torch.distributed.
"""

import logging
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
from torch import Tensor

from denoise_batch.kernels import (
    Block,
    DenoiseBatchError,
    DeviceError,
    OptionError,
    StateError,
    TrainingError,
)

from ..device import resolve_device

if TYPE_CHECKING:
    from torch.distributed import Work
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger("denoise_batch.device")

TIMEOUT = timedelta(minutes=30)  # a process may still be importing, or its machine booting
BUCKET_BYTES = 2**20

Value = TypeVar("Value")


class ProcessGroup:
    """The processes that train together; this base class is the group of one.

    Attributes:
        rank: number of this process; 0 is the first.
        size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this process's device for `--device name`."""
        return resolve_device(name)

    def on_first(self, action: Callable[[], Value]) -> Value:
        """Run `action` on the first process and return its result everywhere.

        If it fails there, every process fails.
        """
        return action()

    def check_same(self, what: str, value: object) -> None:
        """Check that `value` equals the first process's.

        Raises:
            TrainingError: it does not.
        """

    def broadcast_time(self, seconds: float) -> float:
        """Return the first process's measurement: the length of a run may depend on it."""
        return seconds

    def check_batch_size(self, batch_size: int) -> None:
        """Check that the global batch has a tile for every process.

        Raises:
            OptionError: it has not.
        """

    def prepare(self, network: Block) -> None:
        """Copy the first process's parameters and sum gradients over the group from now on."""

    def local_rows(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a global tensor (N, …), at least one."""
        return rows

    def scatter_back(self, local: Tensor, rows: Tensor) -> Tensor:
        """Return the global tensor `rows` with `local` in place of `local_rows(rows)`."""
        return local

    def all_gather(self, local: Tensor, count: int) -> Tensor:
        """Return all `count` rows of a global tensor, given each process's local rows."""
        return local

    def backward(self, network: Block, loss: Tensor, grad_output: Tensor, count: int) -> Tensor:
        """Set the parameters' gradients to those of the global batch's mean loss.

        Args:
            network: in training mode, after a forward of the local rows.
            loss: their mean loss, 0-d.
            grad_output: its gradient with respect to the network's output.
            count: rows of the global batch.

        Returns:
            The global batch's mean loss.
        """
        network.backward(grad_output, needs_input_grad=False)
        return loss


class TorchProcessGroup(ProcessGroup):
    """Several processes in torch.distributed's default group.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        local_size: number of processes on this machine.
    """

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.rank = rank
        self.size = size
        self._local_rank = local_rank
        self._local_size = local_size
        self._reducer: GradientReducer | None = None

    def device(self, name: str) -> torch.device:
        """Map `auto` and `cuda` to the GPU with this process's local rank.

        Every process must call this: `auto` is the CPU in all of them if a GPU of one fails.
        """
        if name == "auto":
            name = "cuda" if self._all_have_gpus() else "cpu"
        if name == "cuda":
            device = resolve_device(f"cuda:{self._local_rank}")
            torch.cuda.set_device(device)
            return device
        device = resolve_device(name)
        if device.type == "mps" or (device.type == "cuda" and self._local_size > 1):
            raise OptionError(
                f"--device {name}: is one device; several processes need --device cuda or cpu"
            )
        return device

    def _all_have_gpus(self) -> bool:
        """Whether every process has a GPU that computes, or too few GPUs, which is a mistake."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        is_usable = count > 0
        if self._local_rank < count:
            try:
                resolve_device(f"cuda:{self._local_rank}")
            except DeviceError as error:
                logger.warning("%s; --device auto takes the CPU in every process", error)
                is_usable = False
        usable = torch.tensor(int(is_usable))
        torch.distributed.all_reduce(usable, torch.distributed.ReduceOp.MIN)
        return bool(usable)

    def on_first(self, action: Callable[[], Value]) -> Value:
        """Run `action` on the first process and broadcast its result or error."""
        box: list[tuple[Value | None, str]] = [(None, "")]
        error: DenoiseBatchError | None = None
        if self.is_first:
            try:
                box = [(action(), "")]
            except DenoiseBatchError as raised:
                error, box = raised, [(None, str(raised))]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        value, reason = box[0]
        if error is not None:
            raise error
        if reason:
            raise TrainingError(f"process {self.rank} stops because the first failed: {reason}")
        return value  # type: ignore[return-value]  # None is the action's own, or came with a reason

    def check_same(self, what: str, value: object) -> None:
        """Compare with the first process's value."""
        expected = self.on_first(lambda: value)
        if value != expected:
            raise TrainingError(
                f"process {self.rank}: {what} {value} instead of the first process's {expected}; "
                "all machines need the same files and the same release"
            )

    def broadcast_time(self, seconds: float) -> float:
        """Broadcast over the host's own channel, which does not wait for a GPU."""
        value = torch.tensor(seconds, dtype=torch.float64)
        torch.distributed.broadcast(value, src=0)
        return float(value)

    def check_batch_size(self, batch_size: int) -> None:
        """Require at least as many tiles as processes."""
        if batch_size < self.size:
            raise OptionError(
                f"--batch-size {batch_size}: is shared by {self.size} processes; use at least "
                f"{self.size}"
            )

    def prepare(self, network: Block) -> None:
        """Broadcast the first process's parameters and attach the gradient buckets."""
        for parameter in network.parameters():
            torch.distributed.broadcast(parameter, src=0)
        self._reducer = GradientReducer(network)

    def local_rows(self, rows: Tensor) -> Tensor:
        """Return a contiguous part; with fewer rows than processes, some get one of weight 0."""
        start, stop = self._bounds(len(rows), self.rank)
        return rows[start:stop] if stop > start else rows[:1]

    def scatter_back(self, local: Tensor, rows: Tensor) -> Tensor:
        """Leave the other processes' rows as they are: nothing here reads them."""
        start, stop = self._bounds(len(rows), self.rank)
        return torch.cat([rows[:start], local[: stop - start], rows[stop:]])

    def all_gather(self, local: Tensor, count: int) -> Tensor:
        """Gather the parts, padded to equal length on the way."""
        longest = -(-count // self.size)
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded)
        bounds = [self._bounds(count, rank) for rank in range(self.size)]
        return torch.cat([p[: end - start] for p, (start, end) in zip(parts, bounds, strict=True)])

    def backward(self, network: Block, loss: Tensor, grad_output: Tensor, count: int) -> Tensor:
        """Weight the local mean by its share of the rows and sum over the group."""
        assert self._reducer is not None  # set by prepare
        start, stop = self._bounds(count, self.rank)
        share = (stop - start) / count
        return self._reducer.backward(loss * share, grad_output * share)

    def _bounds(self, count: int, rank: int) -> tuple[int, int]:
        return rank * count // self.size, (rank + 1) * count // self.size


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the group that torchrun set up, inside the block; a group of one without torchrun.

    Raises:
        OptionError: torchrun's WORLD_SIZE is set, but its other variables are not.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ProcessGroup()
        return
    try:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        store, rank, processes = rendezvous()
    except (KeyError, ValueError) as error:
        raise OptionError(
            f"WORLD_SIZE is {size}, but the other variables of a distributed run are missing or "
            f"not numbers ({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error
    # Objects and CPU tensors use gloo, CUDA tensors NCCL where available.
    has_nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=processes)
    try:
        yield TorchProcessGroup(rank, processes, local_rank, local_size)
    finally:
        torch.distributed.destroy_process_group()


def rendezvous() -> tuple["Store", int, int]:
    """Return the group's store, under a prefix unique to this attempt; rank; size.

    torchrun keeps one store for all attempts (torch 2.13), so a restarted process may read the
    address of a dead one there and wait for it. Every process but the first therefore announces
    itself with a fresh token and reacts only to a welcome for that token; the first welcomes every
    announcement, also those of dead processes, until all others have answered.
    """
    # Not for a group of one: torch may come without them.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous as torch_rendezvous

    store, rank, size = next(torch_rendezvous("env://", timeout=TIMEOUT))
    token = secrets.token_hex(8)
    if rank:
        store.set(f"hello/{rank}", token)
        store.wait([f"welcome/{token}"], TIMEOUT)
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


def was_restarted() -> bool:
    """Whether torchrun restarted this process after one of the group was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@dataclass
class _Bucket:
    """Neighbouring gradients that are sent together.

    Attributes:
        parameters: in the order of their gradients in `flat`.
        flat: their gradients, concatenated; in the first bucket the loss comes last.
        missing: number of gradients still to come for each parameter, by its identity.
        work: the sum in progress.
    """

    parameters: list[Tensor]
    flat: Tensor
    missing: Counter[int] = field(default_factory=Counter)
    work: "Work | None" = None

    def views(self) -> list[Tensor]:
        """Return each parameter's part of `flat`, in the parameter's shape."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(self.flat[: sum(sizes)], sizes)
        return [
            part.view(parameter.shape)
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]

    def send(self) -> None:
        """Start the sum over the group."""
        for parameter, view in zip(self.parameters, self.views(), strict=True):
            assert parameter.grad is not None  # it was announced
            view.copy_(parameter.grad)
        self.work = torch.distributed.all_reduce(self.flat, async_op=True)


class GradientReducer:
    """Makes a network's backward produce the sum of all processes' gradients.

    Buckets fill from the network's end, where backward begins, and are sent in that order by every
    process, each as soon as its last gradient is ready.

    Args:
        network: the same in every process, on its final device; all parameters of one dtype.
        bucket_bytes: size at which a bucket is closed. Smaller buckets start earlier, larger ones
            cost fewer messages.
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
        """Run the network's backward and sum `.grad` and the returned loss over the group.

        Call `zero_grad` first.

        Args:
            loss: this process's loss, 0-d.
            grad_output: as for `Block.backward`.

        Raises:
            StateError: a parameter got no gradient, so the other processes would wait forever.
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
            for parameter, view in zip(bucket.parameters, bucket.views(), strict=True):
                parameter.grad = view
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
