"""How far a forward is: convolutions tell of their multiply-adds as they end.

A large image takes a processor many seconds, and this is what its caller can show meanwhile. On
devices that compute while the host goes on, a convolution ends when it has been launched.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


class Work(threading.local):
    """Every thread's own listener."""

    def __init__(self) -> None:
        self._tell: Callable[[int], None] | None = None

    @contextmanager
    def told(self, tell: Callable[[int], None]) -> Iterator[None]:
        """Inside, call `tell` with the multiply-adds of each convolution of this thread."""
        before, self._tell = self._tell, tell
        try:
            yield
        finally:
            self._tell = before

    def add(self, weight: Tensor, *shapes: Sequence[int]) -> None:
        """Count a convolution with this weight, between an input and an output of these shapes."""
        if self._tell is not None:
            images = (shape[:-3] + shape[-2:] for shape in map(tuple, shapes))
            self._tell(weight.numel() * min(map(math.prod, images)))


WORK = Work()
