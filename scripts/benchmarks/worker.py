"""One provider of a case in a process of its own, which computes when asked and sleeps otherwise.

In one process providers disturb each other: the threads of one spin while the next computes (our
U-Net once took 839 ms instead of 395). The process warms up, writes its results to a file for the
correctness check, and then times as many calls as its pipe asks for. It ends with the pipe.
"""

import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from bounds import Flops, count_flops
from problem import Runner, UnavailableError, pose
from providers import PREPARE
from registry import REFERENCE, Case
from safetensors.torch import save_file
from timing import turn, use_device
from torch import Tensor

from denoise_batch.process import tune_process

WARM_UP = 3
END_S = 5.0  # a dying process has closed its pipe, but may still be writing its core
# Whose memory is told: a compiler needs some itself, and runtimes allocate before they run.
MEMORY_PROVIDERS = ("ours", REFERENCE, f"{REFERENCE}-bf16")


@dataclass(frozen=True)
class First:
    """What a provider reports when it has warmed up.

    Attributes:
        flops: of a call; counted by the reference alone.
        peak_bytes: what a network's calls need beside parameters and images; None if not known.
    """

    flops: Flops
    peak_bytes: int | None


class WorkerError(Exception):
    """A provider has no results; the message says why.

    Attributes:
        status: failed or unavailable.
        reason: the message.
    """

    def __init__(self, status: Literal["failed", "unavailable"], reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


class Worker:
    """A provider's process. Leaving the context ends it.

    Args:
        results: the file to which it writes its results, in safetensors.

    Attributes:
        failure: what ended its turns too early; None if nothing did.
    """

    def __init__(
        self, case: Case, provider: str, *, device: torch.device, threads: int, results: Path
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, case, provider, device, threads, results)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        with _as_commands_run(case, provider):
            self._process.start()
        theirs.close()
        self.failure: WorkerError | None = None

    def first(self) -> First:
        """Wait until it has warmed up and written its results.

        Raises:
            WorkerError: it cannot run the case, raised, or died.
        """
        first: First = self._answer()
        return first

    def turn(self, calls: int) -> Sequence[float]:
        """Return the seconds of so many calls; none after a failure."""
        try:
            with suppress(OSError):  # a broken pipe; reading says so, too
                self._pipe.send(calls)
            seconds: Sequence[float] = self._answer()
        except WorkerError as failure:
            self.failure = failure
            return ()
        return seconds

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(END_S)
            code = self._process.exitcode or 0
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            answer = WorkerError("failed", f"its process died: {cause}")
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def serve(
    pipe: "Connection[Any, Any]",
    case: Case,
    provider: str,
    device: torch.device,
    threads: int,
    results: Path,
) -> None:
    """Be the process: send a `First`, then the seconds of as many calls as are asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends us
    _same_conditions(threads)
    if _is_command(case, provider):
        tune_process()
    try:
        use_device(device)
        runner, first = _start(case, provider, device, results)
        pipe.send(first)
        gc.collect()
        gc.disable()
        while True:
            pipe.send(turn(runner, device, pipe.recv()))
    except UnavailableError as error:
        pipe.send(WorkerError("unavailable", str(error)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as failure:  # compilers and runtimes raise anything; it goes into the table
        first_line = (str(failure).strip() or type(failure).__name__).partition("\n")[0]
        pipe.send(WorkerError("failed", f"{type(failure).__name__}: {first_line}"[:200]))


def _is_command(case: Case, provider: str) -> bool:
    """Whether this is what our commands compute, in processes that they have tuned."""
    return case.is_network and provider.partition("-")[0] == "ours"


@contextmanager
def _as_commands_run(case: Case, provider: str) -> Iterator[None]:
    """Start a process in the environment that it has as a command; others have their users'."""
    before = dict(os.environ)
    if _is_command(case, provider):
        tune_process()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _same_conditions(threads: int) -> None:
    """Give all providers the same threads and, on a GPU, full float32 instead of TF32."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    # torch.compile would start processes of its own, which outlive one that is killed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # Compilers advise their users by warnings; failures still show in the table.
    warnings.filterwarnings("ignore", module="torch")


def _start(case: Case, provider: str, device: torch.device, results: Path) -> tuple[Runner, First]:
    has_peak = case.is_network and provider in MEMORY_PROVIDERS
    if has_peak:  # a small call loads the code
        _prepare(replace(case, shape=(1, case.shape[1], 32, 32)), provider, device).run()
    runner = _prepare(case, provider, device)
    peak_bytes = _warm_up(runner, device)
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in runner.results().items()
    }
    save_file(tensors, results)
    flops = count_flops(runner) if provider == REFERENCE else Flops()
    return runner, First(flops, peak_bytes if has_peak else None)


def _prepare(case: Case, provider: str, device: torch.device) -> Runner:
    name, _, precision = provider.partition("-")
    if precision == "bf16":
        units = torch.cpu.get_capabilities().items()  # such as avx512_bf16
        if not any(has for unit, has in units if unit.endswith("bf16")):
            raise UnavailableError("this processor has no bfloat16")
    runners = [PREPARE[name](pose(part, device)) for part in case.computed_by(provider).parts]
    if len(runners) == 1:
        return runners[0]

    def run() -> None:
        for runner in runners:
            runner.run()

    def results() -> dict[str, Tensor]:
        return {f"{i} {k}": v for i, r in enumerate(runners) for k, v in r.results().items()}

    return Runner(run, results)


def _warm_up(runner: Runner, device: torch.device) -> int | None:
    """Run; return by how much that raised the peak memory, if it can be known.

    On a processor this is the growth of the resident set: its high-water mark (VmHWM, reset by
    /proc/self/clear_refs) minus what was resident before. It counts memory whoever allocates it
    (torch, oneDNN, the optimiser), which a profiler of torch's allocator does not. On CUDA it is
    the allocator's peak.
    """
    is_cuda, reset = device.type == "cuda", Path("/proc/self/clear_refs")
    is_known = is_cuda or reset.exists()
    before = 0
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    elif is_known:
        reset.write_text("5")
        before = _status_bytes("VmRSS")
    for _ in range(WARM_UP):
        runner.prepare()
        runner.run()
    if not is_known:
        return None
    return (torch.cuda.max_memory_allocated() if is_cuda else _status_bytes("VmHWM")) - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
