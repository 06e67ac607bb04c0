"""An output folder: its lock, where its files come from, and what earlier runs made of them.

Every output folder has a hidden folder `.denoise-batch` with one JSON line per output, so that a
run continues where another ended. A line is written just before its output is renamed into place,
and identifies the file by size and time: a run may be killed between the two, and a file that
somebody changed is not mistaken for ours.
"""

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

from filelock import FileLock, Timeout

from denoise_batch.kernels import OptionError

from ..files.atomic import atomic_write
from ..files.scan import Job
from ..options import DenoiseOptions
from .result import Result

FOLDER = ".denoise-batch"
_BLOCK = 1 << 20
_LOOK_S = 2.0  # for another shard that is looking at the same lock
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of the file system
# Lines survive the death of the process without a sync. Surviving the death of the machine would
# take a sync per line, and make every file wait for the disk twice.
_SYNC_S = 5.0


@dataclass(frozen=True)
class FileStat:
    """Size and times of a file: whether it may have changed, without reading it.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last modification.
        ctime_ns: time of the last change of the file or its inode; 0 for outputs (renaming and
            copying change it), objects, and in the lines of older releases.
        inode: number of the file; 0 where `ctime_ns` is.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, path: Path) -> "FileStat":
        """Stat an output.

        Raises:
            OSError: it does not exist.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def of_source(cls, job: Job) -> "FileStat":
        """Stat a job's source; two files of one size and time that swap names differ too.

        Raises:
            OSError: it does not exist.
        """
        if "://" in job.source_name:  # its placeholder is new in each run
            return cls.of(job.source)
        status = job.source.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Entry:
    """One output and what it was made of; the names of the fields are those on the disk.

    Attributes:
        output: path below the output folder, with forward slashes.
        output_stamp: the output's stat.
        output_sha256: digest of the output's bytes, for files that were copied since.
        source_stamp: the input's stat.
        source_sha256: digest of the input's bytes.
        weights: sha256 of the weights file.
        options: digest of all options that change pixels.
        source: the input's `Job.canonical_path`; "" if unknown.
    """

    output: str
    output_stamp: FileStat
    output_sha256: str
    source_stamp: FileStat
    source_sha256: str
    weights: str
    options: str
    source: str = ""


class Manifest:
    """The entries of one output folder.

    Args:
        root: the output folder.
        part: whose lines this run adds: "" or a shard's name. The lines of all parts are read.

    Raises:
        OptionError: something else is in the place of a part.
    """

    def __init__(self, root: Path, part: str = "") -> None:
        self.root = root
        self.path = root / FOLDER / f"manifest{part}.jsonl"
        self._entries: dict[str, list[Entry]] = {}
        self._lock = Lock()
        self._synced = time.monotonic()
        lines = 0
        _refuse_others(root)
        for path in sorted((root / FOLDER).glob("manifest*.jsonl"), key=_age):
            for entry in _read(path):
                lines += 1
                self._entries.setdefault(entry.output, []).append(entry)
        self._is_long = lines > 64 + 2 * len(self._entries)

    def made_of(self, output: Path) -> Entry | None:
        """Return the entry of the file at `output`; None if the file is missing or not ours."""
        entries = self._entries.get(self._key(output), [])
        try:
            stamp = FileStat.of(output)
            same = [entry for entry in entries if entry.output_stamp == stamp]
            # Outputs have their inputs' times: two runs may differ in nothing but the bytes.
            if len({entry.output_sha256 for entry in same}) == 1:
                return same[-1]
            same_size = [entry for entry in entries if entry.output_stamp.size == stamp.size]
            if same_size:
                digest = sha256_of(output)
                return next((e for e in reversed(same_size) if e.output_sha256 == digest), None)
        except OSError:
            return None
        return None

    def is_unchanged(self, output: Path, entry: Entry) -> bool:
        """Whether a file that `made_of` found is, byte for byte, what its run wrote.

        A file of another origin may have its size, and its input's time.
        """
        if entry.output_stamp.mtime_ns != entry.source_stamp.mtime_ns:
            return True
        with suppress(OSError):
            return sha256_of(output) == entry.output_sha256
        return False

    def record(
        self,
        output: Path,
        written: Path,
        source: str,
        source_stamp: FileStat,
        source_sha256: str,
        run: tuple[str, str],
    ) -> None:
        """Add the line of an output that is about to be renamed into place.

        Args:
            output: the final name.
            written: the finished file under its temporary name.
            source: the input's canonical path.
            source_stamp: the input's stat from before it was read.
            source_sha256: digest of the input.
            run: digests of weights and options.

        Raises:
            OSError: the line cannot be written.
        """
        stamp, digest = FileStat.of(written), sha256_of(written)
        key = self._key(output)
        self._append([Entry(key, stamp, digest, source_stamp, source_sha256, *run, source)])

    def restamp(self, entries: Sequence[Entry]) -> None:
        """Add entries whose sources have another stat and were found to be the same, if possible.

        Without, they are read again by every run.
        """
        with suppress(OSError):
            self._append(entries)

    def _append(self, entries: Sequence[Entry]) -> None:
        line = "".join(json.dumps(asdict(entry), ensure_ascii=True) + "\n" for entry in entries)
        with self._lock:
            for entry in entries:
                self._entries.setdefault(entry.output, []).append(entry)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+") as file:
                if _ends_torn(file):
                    line = "\n" + line
                file.write(line.encode())
                file.flush()
                if time.monotonic() - self._synced > _SYNC_S:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()

    def compact(self) -> None:
        """Drop outdated lines if there are many; for unsharded runs only."""
        if not self._is_long:
            return
        last = [self.made_of(self.root / key) or self._entries[key][-1] for key in self._entries]
        lines = (json.dumps(asdict(entry)) + "\n" for entry in last)
        with suppress(OSError):  # a longer manifest is still correct
            whole = self.root / FOLDER / "manifest.jsonl"
            atomic_write(whole, "".join(lines).encode())
            for path in (self.root / FOLDER).glob("manifest*.jsonl"):
                if path != whole:
                    path.unlink()

    def _key(self, output: Path) -> str:
        return output.relative_to(self.root).as_posix()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    digest = hashlib.sha256()
    with _open_regular(path, os.O_RDONLY, "rb", is_link_followed=True) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _age(path: Path) -> tuple[int, str]:
    """A key that sorts the oldest manifest first: of two entries that fit, the later one counts."""
    with suppress(OSError):
        return path.stat().st_mtime_ns, path.name
    return 0, path.name


def _read(path: Path) -> Iterator[Entry]:
    """Yield the valid lines of a manifest; a killed run may leave a torn one, others anything."""
    try:
        with _open_regular(path, os.O_RDONLY, "rb") as file:
            data = file.read()
    except OSError:
        return
    for line in data.split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            fields = json.loads(line)
            fields["output_stamp"] = FileStat(**fields["output_stamp"])
            fields["source_stamp"] = FileStat(**fields["source_stamp"])
            entry = Entry(**fields)
            if _is_valid(entry):
                yield entry


def _is_valid(entry: Entry) -> bool:
    """Whether all fields have their types, and the output is below the folder.

    Raises:
        ValueError: a name that no file can have.
    """
    for stamp in (entry.output_stamp, entry.source_stamp):
        if not all(type(number) is int for number in vars(stamp).values()):
            return False
    texts = [value for value in vars(entry).values() if not isinstance(value, FileStat)]
    if not all(isinstance(text, str) for text in texts):
        return False
    os.fsencode(entry.output + entry.source)
    is_below = entry.output[:1] not in ("", "/") and not {".", ".."} & {*entry.output.split("/")}
    return is_below and "\0" not in entry.output + entry.source


def _open_regular(path: Path, flags: int, mode: str, *, is_link_followed: bool = False) -> BinaryIO:
    """Open a regular file, without waiting for a pipe's other end.

    Raises:
        OSError: it cannot be opened, is something else, or a link that is not followed.
    """
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not is_link_followed:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return cast(BinaryIO, os.fdopen(descriptor, mode))


def _refuse_others(root: Path) -> None:
    """Refuse links, pipes and the like in the place of an output folder's state.

    Raises:
        OptionError: there is one.
    """
    folder = root / FOLDER
    for path in (folder, *folder.glob("manifest*.jsonl"), *folder.glob("lock*")):
        with suppress(OSError):
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) if path == folder else stat.S_ISREG(mode)):
                wanted = "folder" if path == folder else "file"
                raise OptionError(
                    f"{path}: is not a {wanted} of its own, but a link, pipe or the like; remove "
                    "it, or choose another output"
                )


def _ends_torn(file: BinaryIO) -> bool:
    """Whether a file opened for appending ends in the middle of a line."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


@contextmanager
def locked(root: Path, part: str = "") -> Iterator[None]:
    """Hold the output folder for this run, or for this shard; a killed run holds nothing.

    An unsharded run excludes every other run, a shard excludes itself and unsharded runs. Each
    takes its own lock first and then looks at the others', so that of two runs that begin together
    at least one sees the other.

    Args:
        root: the output folder; made if missing.
        part: "" for an unsharded run, or the shard's name.

    Raises:
        OptionError: another run holds it, or it cannot be written.
    """
    _refuse_others(root)
    folder = root / FOLDER
    whole, own = folder / "lock", folder / f"lock{part}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (whole, own):
            path.touch()  # with the permissions that the folder's users expect
    except OSError as error:
        raise OptionError(
            f"{folder}: cannot be made: {error.strerror}; choose another output"
        ) from error
    with ExitStack() as held:
        held.callback(_lock(own, root).release)
        if part:  # several shards may look at the same moment
            _lock(whole, root, timeout_s=_LOOK_S).release()
        else:
            for other in folder.glob("lock-*"):
                _lock(other, root).release()
        yield


def _lock(path: Path, root: Path, timeout_s: float = 0.0) -> FileLock:
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise OptionError(
            f"{root}: another denoise-batch is writing there; wait for it, or choose another output"
        ) from error
    except NotImplementedError:
        pass  # a file system without locks: better unguarded than unusable
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OptionError(
                f"{path}: cannot be locked: {error.strerror}; choose another output"
            ) from error
    return lock


class Storage:
    """Files that are where their paths say; `scaling.remote` adds object stores."""

    def refresh(self, options: DenoiseOptions) -> list[Job]:
        """Called before inputs and output are scanned; return jobs that fail already."""
        return []

    def check(self, root: Path) -> None:
        """Called before anything is computed; of folders, the lock has shown what this would.

        Raises:
            OptionError: nothing can be written below `root`.
        """

    def named(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs under the names that the user knows."""
        return list(jobs)

    def manifest(self, root: Path, part: str) -> Manifest:
        """Return the manifest of an output folder, to read and to add to."""
        return Manifest(root, part)

    def worker_manifest(self, root: Path, part: str) -> Manifest:
        """Return a manifest that a worker only adds to."""
        return Manifest(root, part)

    def is_gone(self, canonical_path: str) -> bool:
        """Whether a `Job.canonical_path` no longer exists; False where that is unknown."""
        with suppress(OSError):
            return not Path(canonical_path).exists()
        return False

    def fetch(self, path: Path) -> None:
        """Called before a source is read, in a reader thread.

        Raises:
            ImageError: it cannot be fetched.
        """

    def upload(self, path: Path) -> None:
        """Called after an output was written, in a writer thread.

        Raises:
            ImageError: it cannot be uploaded.
        """

    def finish(self, result: Result) -> Result:
        """Release a finished job's space, and return its result in the user's names."""
        return result

    def end(self, manifests: Sequence[Manifest]) -> None:
        """Called at the end of an unsharded run."""
