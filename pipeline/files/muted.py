"""Pillow warns of odd headers and large images; a batch job says what matters itself."""

import warnings
from threading import Lock


class Muted:
    """Ignores Pillow's warnings while any thread decodes or encodes.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._filters.__exit__(None, None, None)


PILLOW_WARNINGS = Muted()
