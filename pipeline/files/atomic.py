"""Write files completely or not at all."""

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Attributes:
    """What a file has beside its bytes.

    Attributes:
        mode: permissions of owner, group and others.
        times_ns: of the last access and modification; None: when it was written.
    """

    mode: int
    times_ns: tuple[int, int] | None = None

    @classmethod
    def of(cls, path: Path, *, times: bool) -> "Attributes | None":
        """Those of a file, with its times if they are wanted; None if it does not exist."""
        try:
            status = path.stat()
        except OSError:
            return None
        times_ns = (status.st_atime_ns, status.st_mtime_ns) if times else None
        return cls(stat.S_IMODE(status.st_mode) & 0o777, times_ns)


@contextmanager
def atomic_file(
    path: Path,
    on_written: Callable[[Path], None] = lambda unfinished: None,
    attributes: Attributes | None = None,
) -> Iterator[BinaryIO]:
    """A file to write under a `temporary_name`; on exit it is flushed to disk and becomes `path`.

    If the block raises, the temporary file is deleted and any file at `path` stays.

    Args:
        path: the file's final name.
        on_written: called with the flushed file's temporary name, just before it is renamed.
        attributes: of the new file, as far as its file system knows them.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    unfinished = temporary_name(path)
    try:
        with unfinished.open("x+b") as file:
            if attributes is not None and os.name == "posix":
                with suppress(OSError):  # before there is anything to read
                    unfinished.chmod(attributes.mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if attributes is not None and attributes.times_ns is not None:
            with suppress(OSError):
                os.utime(unfinished, ns=attributes.times_ns)
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


def make_folder(path: Path) -> None:
    """Make a folder and those above it; unlike `Path.mkdir`, at any depth.

    Raises:
        OSError: it cannot be made.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder with all that it holds, if there is one; at any depth.

    Raises:
        OSError: something cannot be deleted.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    folders = [path]
    for folder in folders:  # grows meanwhile
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    Path(entry.path).unlink()
    for folder in reversed(folders):
        folder.rmdir()
