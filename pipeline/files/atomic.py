"""Write files completely or not at all; tell what is being written from what a death left."""

import hashlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_LONGEST_WRITE_S = 86_400.0  # where no lock tells whether somebody is writing
_TEMPORARY = re.compile(r"\.(?P<name>.{1,40})\.(?P<hash>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp", re.DOTALL)


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

    If the block raises, the temporary file is deleted and any file at `path` stays. Until it has
    its name, the temporary file is locked, so that `remove_abandoned` leaves it alone.

    Args:
        path: the file's final name.
        on_written: called with the flushed file's temporary name, just before it is renamed.
        attributes: of the new file, as far as its file system knows them.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    unfinished = temporary_name(path)

    def give_name() -> None:
        if attributes is not None and attributes.times_ns is not None:
            with suppress(OSError):
                os.utime(unfinished, ns=attributes.times_ns)
        on_written(unfinished)
        unfinished.replace(path)

    try:
        with unfinished.open("x+b") as file:
            lock(file.fileno())
            if attributes is not None and os.name == "posix":
                with suppress(OSError):  # before there is anything to read
                    unfinished.chmod(attributes.mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":
                lock(file.fileno(), is_shared=True)  # SMB would let nobody read it otherwise
                give_name()
        if os.name != "posix":  # where an open file keeps its name
            give_name()
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def lock(descriptor: int, *, is_shared: bool = False) -> bool | None:
    """Lock an open file until it is closed, without waiting.

    Returns:
        Whether it is locked now; None where files cannot be locked.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def remove_abandoned(folder: Path, *, is_recursive: bool = False) -> None:
    """Delete the temporary files in a folder that no process is writing any more."""
    folders = [str(folder)]
    while folders:
        names = []
        with suppress(OSError), os.scandir(here := folders.pop()) as entries:
            for entry in entries:
                if _is_temporary(entry.name):
                    names.append(entry.name)
                elif is_recursive and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
        for name in names:
            with suppress(OSError):
                _remove_if_abandoned(Path(here, name))


def _is_temporary(name: str) -> bool:
    match = _TEMPORARY.fullmatch(name) if name.endswith(".tmp") else None
    if match is None:
        return False
    # A name that was cut short does not say what it stands for.
    return (
        len(match["name"]) == 40 or temporary_lead(match["name"]) == name[: match.end("hash") + 1]
    )


def _remove_if_abandoned(path: Path) -> None:
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | os.O_RDWR)  # NFS locks nothing else
    except PermissionError:
        descriptor = os.open(path, flags | os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        is_free = lock(descriptor)
        if is_free is None and os.name == "posix":
            is_free = time.time() - status.st_mtime > _LONGEST_WRITE_S
        if not stat.S_ISREG(status.st_mode) or is_free is False:
            return
        if os.name == "posix":
            path.unlink()
            return
    finally:
        os.close(descriptor)
    path.unlink()  # Windows refuses while somebody has it open


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
