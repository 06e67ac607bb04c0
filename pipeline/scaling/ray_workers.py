"""Workers on a Ray cluster: one actor per GPU, or per few cores if there is no GPU."""

import logging
import os
import platform
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from denoise_batch.kernels.errors import DenoiseBatchError, DeviceError, OptionError, first_line

from ..device import precision_on
from ..files.scan import Job
from ..progress import Stop
from ..streaming.result import Result
from .dispatch import PATIENCE_S, Worker, WorkerLostError
from .worker_session import WorkerConfig, WorkerSession

CORES = 4  # per worker without a GPU


@dataclass(frozen=True)
class Share:
    """The resources of one worker.

    Attributes:
        gpus: 1 or 0.
        cores: number of processor cores.
        node: the machine's id, for workers without a GPU.
    """

    gpus: int
    cores: int
    node: str = ""


def connect(address: str | None) -> tuple[Any, bool]:
    """Connect Ray to a cluster: at the address, at `RAY_ADDRESS`, or a local one.

    Returns:
        The module, and whether it was connected by this call.

    Raises:
        OptionError: Ray is not installed.
        DeviceError: there is no cluster at that address.
    """
    # Otherwise Ray's calls would join some cluster by themselves after we have left ours.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
    except ImportError as error:
        raise OptionError("--engine ray: pip install 'denoise-batch[ray]'") from error
    if ray.is_initialized():
        return ray, False
    with _kept_handlers():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            place = f"--ray-address {address}" if address else "--engine ray"
            raise DeviceError(f"{place}: {first_line(error)}; is the cluster up?") from error
    return ray, True


def precision_there(ray: Any, name: str, *, has_gpu: bool) -> str:
    """Resolve a precision on the first of the cluster's GPUs that is free.

    Raises:
        OptionError: low precision, and the cluster has no GPU.
        DeviceError: none becomes free, or it fails.
    """
    if name != "auto" or not has_gpu:
        return precision_on(name, torch.device("cuda" if has_gpu else "cpu"))
    task = ray.remote(num_gpus=1)(_precision_here).remote()
    try:
        return str(ray.get(task, timeout=PATIENCE_S))
    except ray.exceptions.RayError as error:
        ray.cancel(task)
        raise DeviceError(
            f"--precision auto: no GPU of the cluster answers: {first_line(error)}; "
            "name a precision, or try again when one is free"
        ) from error


def _precision_here() -> str:
    return precision_on("auto", torch.device("cuda"))


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore our signal handlers, which finish the files in flight: Ray replaces SIGTERM's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not one of Python's
                signal.signal(number, handler)


def shares(nodes: Sequence[dict[str, Any]], device: str) -> list[Share]:
    """Divide the cluster among workers.

    Args:
        nodes: as `ray.nodes()` lists them.
        device: "auto" (GPUs if there are any), "cuda" or "cpu".

    Raises:
        OptionError: the device is not one of these.
        DeviceError: the cluster has no such device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise OptionError(f"--device {device} with --engine ray: choose auto, cuda or cpu")
    alive = [node for node in nodes if node.get("Alive", node.get("alive"))]
    gpus = [int(node["Resources"].get("GPU", 0)) for node in alive]
    if device == "cuda" and not sum(gpus):
        raise DeviceError("--device cuda: the Ray cluster has no GPU; use --device cpu")
    if sum(gpus) and device != "cpu":
        found = []
        for node, count in zip(alive, gpus, strict=True):
            cores = int(node["Resources"].get("CPU", 0)) // count if count else 0
            found += [Share(1, max(1, min(CORES, cores)))] * count
        return found
    found = []
    for node in alive:
        cores = int(node["Resources"].get("CPU", 0))
        size = min(CORES, cores)
        found += [Share(0, size, node["NodeID"])] * (cores // size if size else 0)
    if not found:
        raise DeviceError("the Ray cluster has no free cores; add a node")
    return found


class RayWorker(Worker):
    """A worker in a Ray actor, on whichever machine the cluster chooses.

    Args:
        name: for messages.
        ray: the connected module.
        share: what it takes.
        config: what the worker is told.
    """

    def __init__(self, name: str, ray: Any, share: Share, config: WorkerConfig) -> None:
        self.name = name
        self._ray = ray
        self._share = share
        self._config = config
        self._actor: Any = None

    def start(self, is_over: Callable[[], bool]) -> bool:
        """Ask the cluster for resources; this may take as long as the cluster takes to grow."""
        if self._actor is not None:
            return True
        options: dict[str, Any] = {
            "num_gpus": self._share.gpus,
            "num_cpus": self._share.cores,
            "max_concurrency": 2,  # so that `stop` is heard while `run` runs
            "max_restarts": 0,  # `Dispatch` starts a new one itself
        }
        if self._share.node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # Prefer its node; use another if that is lost and there is room.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                self._share.node, soft=True
            )
        actor = self._ray.remote(**options)(_Actor)
        try:
            self._actor = actor.remote(self._config, self._share.cores)
            problem = self._actor.problem.remote()
            while not self._ray.wait([problem], timeout=0.2)[0]:
                if is_over():
                    self.close()
                    return False
            _checked(self._ray.get(problem))
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(first_line(error)) from error
        return True

    def run(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield results as they stream back."""
        try:
            run = self._actor.run.options(num_returns="streaming")
            for reference in run.remote(list(jobs)):
                message = _checked(self._ray.get(reference))
                if isinstance(message, str):
                    self.kernels = message
                else:
                    yield message
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(first_line(error)) from error

    def stop(self) -> None:
        """Stop the actor; a lost one has stopped anyway."""
        if self._actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._actor.stop.remote()

    def clean(self) -> None:
        """Remove everything from the actor's machine."""
        if self._actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.clean.remote(), timeout=5)

    def close(self) -> None:
        """Kill the actor: files in flight are no longer needed."""
        actor, self._actor = self._actor, None
        if actor is not None:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(actor)


class _Actor:
    """The worker's side. Our errors are returned, not raised, because Ray would wrap them."""

    def __init__(self, config: WorkerConfig, cores: int) -> None:
        torch.set_num_threads(cores)
        self._stop = Stop()
        self._mirror = config.mirror
        self._session: WorkerSession | None = None
        self._error: DenoiseBatchError | None = None
        try:
            self._session = WorkerSession(config, f"the Ray node {platform.node()}")
        except DenoiseBatchError as error:
            self._error = error

    def problem(self) -> DenoiseBatchError | None:
        """The reason why this worker can never work; None if it is up."""
        return self._error

    def run(self, jobs: Sequence[Job]) -> Iterator[Result | DenoiseBatchError | str]:
        """Yield results as they come; what computed, or an error that ends the work, comes last."""
        assert self._session is not None  # `problem` was asked before
        try:
            yield from self._session.run(jobs, self._stop)
            yield self._session.kernels
        except DenoiseBatchError as error:
            yield error
        except Exception as error:
            yield DeviceError(f"{type(error).__name__}: {error}")

    def clean(self) -> None:
        """Remove this machine's mirror."""
        if self._mirror is not None:
            shutil.rmtree(self._mirror, ignore_errors=True)

    def stop(self) -> None:
        """Begin no further file."""
        self._stop.set(signal.SIGTERM)


def _checked(message: Any) -> Any:
    if isinstance(message, DenoiseBatchError):
        raise message
    return message
