"""What earlier runs made of which input, so that a run can go on where another ended.

Every output folder has a hidden folder `.denoise-batch` with one JSON line for each output. A line
is written just before its output gets its name, and says by size and time which file it means: so a
run may be killed between the two, and a file that somebody changed is told from ours.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from filelock import FileLock, Timeout

from denoise_batch.kernels import OptionError

from ..files.atomic import atomic_write

FOLDER = ".denoise-batch"
_BLOCK = 1 << 20
_LOOK_S = 2.0  # for another shard that is looking at the same lock
# Lines survive the death of the process as they are; against that of the machine a sync for each
# would make every file wait for the disk a second time.
_SYNC_S = 5.0


@dataclass(frozen=True)
class FileStat:
    """What tells, without reading it, whether a file is still the one it was.

    Attributes:
        size: bytes.
        mtime_ns: time of the last change.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileStat":
        """The stamp of a file that is there.

        Raises:
            OSError: it is not.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """One output and what it was made of.

    Attributes:
        output: path below the output folder, with forward slashes.
        output_stamp: of the file.
        output_sha256: of its bytes, for files that were copied since.
        source_stamp: of the input.
        source_sha256: of its bytes.
        weights: sha256 of the weights file.
        options: digest of all options that change pixels.
        source: the input's `Job.canonical_path`; "" where that is not known.
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
        part: of whom the lines are that this run writes: "" or a shard's name. What all parts
            wrote is read.
    """

    def __init__(self, root: Path, part: str = "") -> None:
        self.root = root
        self.path = root / FOLDER / f"manifest{part}.jsonl"
        self._entries: dict[str, list[Entry]] = {}
        self._lock = Lock()
        self._synced = time.monotonic()
        lines = 0
        for path in sorted((root / FOLDER).glob("manifest*.jsonl")):
            for entry in _read(path):
                lines += 1
                self._entries.setdefault(entry.output, []).append(entry)
        self._is_long = lines > 64 + 2 * len(self._entries)

    def made_of(self, output: Path) -> Entry | None:
        """The entry of the file that stands at `output`; None if it is missing or not ours."""
        entries = self._entries.get(self._key(output), [])
        try:
            stamp = FileStat.of(output)
            for entry in reversed(entries):
                if entry.output_stamp == stamp:
                    return entry
            same_size = [entry for entry in entries if entry.output_stamp.size == stamp.size]
            if same_size:
                digest = sha256_of(output)
                return next((e for e in same_size if e.output_sha256 == digest), None)
        except OSError:
            return None
        return None

    def record(
        self,
        output: Path,
        written: Path,
        source: str,
        source_stamp: FileStat,
        source_sha256: str,
        run: tuple[str, str],
    ) -> None:
        """Note what `output` is going to be, once `written` gets its name.

        Args:
            output: the name.
            written: the finished file under its temporary name.
            source: the input's place.
            source_stamp: of the input, from before it was read.
            source_sha256: of the input.
            run: digests of weights and options.

        Raises:
            OSError: the line cannot be written.
        """
        stamp, digest = FileStat.of(written), sha256_of(written)
        key = self._key(output)
        entry = Entry(key, stamp, digest, source_stamp, source_sha256, *run, source)
        line = json.dumps(asdict(entry), ensure_ascii=True) + "\n"
        with self._lock:
            self._entries.setdefault(entry.output, []).append(entry)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if _ends_torn(file):
                    line = "\n" + line
                file.write(line.encode())
                file.flush()
                if time.monotonic() - self._synced > _SYNC_S:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()

    def compact(self) -> None:
        """Write only what still holds again, where much is outdated; for a run that is alone."""
        if not self._is_long:
            return
        last = [self.made_of(self.root / key) or self._entries[key][-1] for key in self._entries]
        lines = (json.dumps(asdict(entry)) + "\n" for entry in last)
        with suppress(OSError):  # a longer manifest is no less true
            whole = self.root / FOLDER / "manifest.jsonl"
            atomic_write(whole, "".join(lines).encode())
            for path in (self.root / FOLDER).glob("manifest*.jsonl"):
                if path != whole:
                    path.unlink()

    def _key(self, output: Path) -> str:
        return output.relative_to(self.root).as_posix()


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> Iterator[Entry]:
    """The whole lines of a manifest; those that a killed run tore are no entries."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    for line in data.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            fields = json.loads(line)
            fields["output_stamp"] = FileStat(**fields["output_stamp"])
            fields["source_stamp"] = FileStat(**fields["source_stamp"])
            yield Entry(**fields)


def _ends_torn(file: BinaryIO) -> bool:
    """Whether a file that was opened to append ends in the middle of a line."""
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
    folder = root / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"lock{part}"
        own.touch()
    except OSError as error:
        raise OptionError(
            f"{folder}: cannot be made: {error.strerror}; choose another output"
        ) from error
    with ExitStack() as held:
        held.callback(_lock(own, root).release)
        for other in [folder / "lock"] if part else folder.glob("lock-*"):
            _lock(other, root, timeout_s=_LOOK_S).release()
        yield


def _lock(path: Path, root: Path, timeout_s: float = 0.0) -> FileLock:
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise OptionError(
            f"{root}: another denoise-batch is writing there; wait for it, or choose another output"
        ) from error
    except (OSError, NotImplementedError):
        pass  # a file system without locks: better unguarded than unusable
    return lock
