"""Files that are whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; on leaving it is flushed to disk and becomes `path`.

    When the block raises, the temporary file goes and what stood at `path` stays.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    temporary = path.parent / f".{path.name[-100:]}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, wholly or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
