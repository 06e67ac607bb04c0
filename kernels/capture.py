"""Work of a fixed shape as one CUDA graph: recorded once, replayed without Python's launches.

For small images a network's launches cost the host more than their work costs the GPU. A graph
replays them all at once, in the memory that they were recorded with. A recording is used only after
it gave the plain function's result on other values than it was made from.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import first_line, is_out_of_memory
from .kernel_check import TOLERANCES

logger = logging.getLogger("denoise_batch.kernels")

Function = Callable[..., Tensor]
Difference = Callable[[Tensor, Tensor], float]
# Each recording keeps its intermediate tensors.
MOST_RECORDINGS = 4
WARM_UPS = 3


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
        difference: of a replay's result from the function's; by default the largest one, relative
            to the largest element.
        rechecks: further calls whose replay is compared with the function, for a function that
            reads what changes from call to call, such as weights.
    """

    def __init__(
        self,
        function: Function,
        state: Callable[[], Hashable] = lambda: None,
        recorder: Recorder | None = None,
        difference: Difference | None = None,
        rechecks: int = 0,
    ) -> None:
        self._function = function
        self._state = state
        self._recorder = recorder or CudaGraphs()
        self._difference = difference or _difference
        self._rechecks = rechecks
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
        if recording is not None:
            self._unchecked[key] -= 1
            expected = self._function(*inputs)
            self._check(recording(*inputs), expected)
            return expected
        is_worth_it = key in self._seen and len(self._recordings) < MOST_RECORDINGS
        self._seen.add(key)
        expected = self._function(*inputs)
        if is_worth_it:
            self._record(key, inputs, expected)
        return expected

    def _record(self, key: Hashable, inputs: tuple[Tensor, ...], expected: Tensor) -> None:
        """Record on zeros, and keep the recording if it gives `expected` for `inputs`."""
        try:
            static = tuple(torch.zeros_like(input) for input in inputs)
            with torch.cuda.device_of(static[0]):  # type: ignore[no-untyped-call]
                replay, output = self._recorder.record(lambda: self._function(*static))
            recording = _Recording(static, output, replay)
            result = recording(*inputs)
        except RuntimeError as failure:  # torch's, for whatever cannot be recorded
            if is_out_of_memory(failure):
                self._end()  # the plain function needs the memory
                return
            self._disable(first_line(failure))
            return
        if self._check(result, expected):
            self._recordings[key], self._unchecked[key] = recording, self._rechecks

    def _check(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether a replay's result is right; a wrong one ends the use of graphs."""
        error = self._difference(actual, expected)
        allowed = TOLERANCES.get(expected.dtype, TOLERANCES[torch.float32])
        if not error <= allowed:
            self._disable(f"wrong results: error {error:.2g}, allowed {allowed:.2g}")
        return error <= allowed

    def _end(self) -> None:
        """Make no more graphs, and give the recordings' memory back."""
        self._is_disabled = True
        self._recordings.clear()

    def _disable(self, reason: str) -> None:
        self._end()
        logger.warning("CUDA graphs are disabled (%s); launches go on one by one", reason)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected element; NaN if any is NaN."""
    scale = expected.abs().max().double().clamp_min(1e-30)
    return float((actual.double() - expected.double()).abs().max() / scale)
