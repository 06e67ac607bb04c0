"""Write files completely or not at all."""

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
    """A file to write under a `temporary_name`; on exit it is flushed to disk and becomes `path`.

    If the block raises, the temporary file is deleted and any file at `path` stays.

    Args:
        path: the file's final name.
        on_written: called with the flushed file's temporary name, just before it is renamed.

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
    """`.NAME.HASH.RANDOM.tmp` beside `path`: NAME is cut short, HASH is of the whole name."""
    return path.with_name(f"{temporary_lead(path.name)}{secrets.token_hex(4)}.tmp")


def temporary_lead(name: str) -> str:
    """The prefix of the temporary names of a file with this name, and of no other."""
    # 40 characters take at most 160 bytes: with the rest, below the usual limit of 255.
    return f".{name[:40]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}."


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, completely or not at all."""
    with atomic_file(path) as file:
        file.write(data)
