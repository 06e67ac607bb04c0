"""Files that are whole or not there."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(
    path: Path, on_written: Callable[[Path], None] = lambda unfinished: None
) -> Iterator[BinaryIO]:
    """A file to write; on leaving it is flushed to disk and becomes `path`.

    Meanwhile it has a `temporary_name`. When the block raises, that file goes and what stood at
    `path` stays.

    Args:
        path: the file's name in the end.
        on_written: called with the flushed file's temporary name, just before it becomes `path`.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    unfinished = temporary_name(path)
    try:
        with unfinished.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        on_written(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def temporary_name(path: Path) -> Path:
    """`.NAME.HASH.RANDOM.tmp` beside `path`: NAME cut short, HASH of all of it."""
    return path.with_name(f"{temporary_lead(path.name)}{secrets.token_hex(4)}.tmp")


def temporary_lead(name: str) -> str:
    """What the temporary names of a file of this name begin with, and of no other."""
    # 40 characters are at most 160 bytes: with the rest, below every file system's 255.
    return f".{name[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}."


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, wholly or not at all."""
    with atomic_file(path) as file:
        file.write(data)
