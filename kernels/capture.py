"""Work of a fixed shape as one CUDA graph: recorded once, replayed without Python's launches.

For small images a network's launches cost the host more than their work costs the GPU. A graph
replays them all at once, in the memory that they were recorded with. A recording is used only after
it gave the plain function's result on other values than it was made from, and, of a function that
changes tensors in place, made the same changes.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import first_line, is_out_of_memory
from .kernel_check import TOLERANCES

logger = logging.getLogger("denoise_batch.kernels")

Function = Callable[..., Tensor]
# Each recording keeps its intermediate tensors.
MOST_RECORDINGS = 4
WARM_UPS = 3
# Further calls whose replay is compared, of a function that changes what the next call reads.
RECHECKS = 2
CHANGE_TOLERANCE = 1e-3  # relative to a tensor's largest change


class Recorder(Protocol):
    """Makes graphs; tests use one that needs no GPU."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Return (replay, the tensor in which every replay leaves its result)."""


class CudaGraphs:
    """CUDA's own graphs."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Warm up on a stream of its own (kernels compile, self-checks run), then record."""
        current = torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads wait for events and pin memory meanwhile, which the default mode forbids.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = run()
        return graph.replay, output


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Callable[[], None]

    def __call__(self, *inputs: Tensor) -> Tensor:
        for static, input in zip(self.inputs, inputs, strict=True):
            static.copy_(input)
        self.replay()
        return self.output.clone()


class Captured:
    """`function`, replayed for shapes that recur.

    Args:
        function: of tensors, without reading anything back to the host; its launches must depend
            on the tensors' shapes alone.
        state: what else they depend on, such as the precision; a change needs a new recording.
        recorder: CUDA's graphs by default.
        changes: returns the tensors that the function changes in place, the same ones from its
            second call on.
    """

    def __init__(
        self,
        function: Function,
        state: Callable[[], Hashable] = lambda: None,
        recorder: Recorder | None = None,
        changes: Callable[[], Sequence[Tensor]] | None = None,
    ) -> None:
        self._function = function
        self._state = state
        self._recorder = recorder or CudaGraphs()
        self._rechecks = 0 if changes is None else RECHECKS
        self._changes = changes or (lambda: ())
        self._recordings: dict[Hashable, _Recording] = {}
        self._unchecked: dict[Hashable, int] = {}
        self._seen: set[Hashable] = set()
        self._is_disabled = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`, by replay once the shapes have been recorded."""
        if self._is_disabled:
            return self._function(*inputs)
        kinds = ((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        key = (*kinds, self._state())
        recording = self._recordings.get(key)
        if recording is not None and not self._unchecked[key]:
            return recording(*inputs)
        is_worth_it = key in self._seen and len(self._recordings) < MOST_RECORDINGS
        self._seen.add(key)
        if recording is None and not is_worth_it:
            return self._function(*inputs)
        changed = self._changes()
        before = _copies(changed)
        expected = self._function(*inputs)
        after = _copies(changed)
        try:
            recording = self._record(inputs) if recording is None else recording
            _restore(changed, before)
            result = recording(*inputs)
            is_right = self._check(result, expected, changed, before, after)
        except RuntimeError as failure:  # torch's, for whatever cannot be recorded
            if is_out_of_memory(failure):
                self._end()  # the plain function needs the memory
            else:
                self._disable(first_line(failure))
        else:
            if is_right:
                left = self._unchecked.get(key, self._rechecks + 1)
                self._recordings[key], self._unchecked[key] = recording, left - 1
        finally:
            _restore(changed, after)
        return expected

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        """Record on zeros, so that a replay which does not read its inputs is found."""
        static = tuple(torch.zeros_like(input) for input in inputs)
        with torch.cuda.device_of(static[0]):  # type: ignore[no-untyped-call]
            replay, output = self._recorder.record(lambda: self._function(*static))
        return _Recording(static, output, replay)

    def _check(
        self,
        result: Tensor,
        expected: Tensor,
        changed: Sequence[Tensor],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
    ) -> bool:
        """Whether a replay's result and changes are right; wrong ones end the use of graphs."""
        allowed = TOLERANCES.get(expected.dtype, TOLERANCES[torch.float32])
        found = [("results", _difference(result, expected), allowed)]
        if changed:
            differences = map(_difference_of_changes, changed, after, before)
            worst = float(torch.stack(list(differences)).max())
            found.append(("changes", worst, CHANGE_TOLERANCE))
        for what, error, most in found:
            if not error <= most:
                self._disable(f"wrong {what}: error {error:.2g}, allowed {most:.2g}")
                return False
        return True

    def _end(self) -> None:
        """Make no more graphs, and give the recordings' memory back."""
        self._is_disabled = True
        self._recordings.clear()

    def _disable(self, reason: str) -> None:
        self._end()
        logger.warning("CUDA graphs are disabled (%s); launches go on one by one", reason)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _restore(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.copy_(copy)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected element; NaN if any is NaN."""
    scale = expected.abs().max().double().clamp_min(1e-30)
    return float((actual.double() - expected.double()).abs().max() / scale)


def _difference_of_changes(actual: Tensor, expected: Tensor, before: Tensor) -> Tensor:
    """The largest difference, but for rounding, relative to the largest change; NaN if any is."""
    rounding = 2 * torch.finfo(expected.dtype).eps * expected.abs().max()
    error = ((actual - expected).abs().max() - rounding).clamp_min(0)
    return (error / (expected - before).abs().max().clamp_min(1e-30)).double()
