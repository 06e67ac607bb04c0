"""An output folder: its lock, where its files come from, and what earlier runs made of them.

Every output folder has a hidden folder `.denoise-batch` with one JSON line per output, so that a
run continues where another ended. A line is written just before its output is renamed into place,
and completed after: a run may be killed between the two, and a file that somebody changed is not
mistaken for ours. Each shard and worker has a file of its own; none is ever shared between writers.
"""

import errno
import hashlib
import json
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, cast

from filelock import FileLock, Timeout

from denoise_batch.kernels import OptionError

from ..files.atomic import atomic_file
from ..files.scan import FileStat, Job, folded
from ..options import DenoiseOptions
from .result import Result

FOLDER = ".denoise-batch"
_BLOCK = 1 << 20
_LOOK_S = 2.0  # for another shard that is looking at the same lock
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of the file system
# Lines survive the death of the process without a sync. Surviving the death of the machine would
# take a sync per line, and make every file wait for the disk twice.
_SYNC_S = 5.0
_STAMP = struct.Struct("<QqqQ")
_PACKED = struct.Struct("<QqqQQqqQ32s32sIB")  # two stamps, two digests, the run, a length
_LONGEST_LINE = 1 << 20  # paths have some kilobytes, escaped at most six times as many
_DIGITS = 20  # of a time that is not known yet when its line is written


class Entry(NamedTuple):
    """One output and what it was made of; the names of the fields are those on the disk.

    Attributes:
        output: path below the output folder, with forward slashes.
        output_stamp: the output's stat. Its ctime is 0 until it has its name, its ctime and inode
            are in the lines of older releases; an object has neither.
        output_sha256: digest of the output's bytes, for files that were copied since.
        source_stamp: the input's stat.
        source_sha256: digest of the input's bytes.
        weights: sha256 of the weights file.
        options: digest of all options that change pixels.
        source: the input's `Job.canonical_path`; "" if unknown.
        outline: what `digests_of` says of the output's parts; "" if unknown.
    """

    output: str
    output_stamp: FileStat
    output_sha256: str
    source_stamp: FileStat
    source_sha256: str
    weights: str
    options: str
    source: str = ""
    outline: str = ""

    def fits(self, output: FileStat) -> bool:
        """Whether this is the entry of a file with this stat, as far as a stat can tell."""
        known = self.output_stamp
        if known.ctime_ns:
            return known == output
        return known[:2] == output[:2] and known.inode in (0, output.inode)

    def to_json(self) -> str:
        """The line of a manifest, without its end."""
        stamps = {
            "output_stamp": self.output_stamp._asdict(),
            "source_stamp": self.source_stamp._asdict(),
        }
        return json.dumps(self._asdict() | stamps)


class Manifest:
    """The entries of one output folder.

    In memory an entry is one string of bytes: a manifest may have hundreds of thousands.

    Args:
        root: the output folder.
        part: whose lines this run adds: "" or a shard's name. The lines of all parts are read.

    Raises:
        OptionError: a part cannot be read, or something else is in its place.
    """

    def __init__(self, root: Path, part: str = "") -> None:
        self.root = root
        self.path = root / FOLDER / f"manifest{part}.jsonl"
        self.moved: dict[str, Entry] = {}  # found by their bytes under another stat
        self._last: dict[str, bytes] = {}
        self._older: dict[str, list[bytes]] = {}  # before the last; most outputs have none
        self._runs: dict[tuple[str, str], int] = {}  # digests of weights and options
        self._run_names: Sequence[tuple[str, str]] = ()
        self._unnamed: dict[str, tuple[Entry, int]] = {}  # and where their lines lack the ctime
        self._spellings: dict[str, list[str]] = {}  # outputs by their folded names
        self._lock = Lock()
        self._synced = time.monotonic()
        self._lines = 0  # of all parts; of a shard's, of its own
        _refuse_others(root)
        self._parts = _parts(root)
        for path in sorted((root / FOLDER).glob("manifest*.jsonl"), key=_age):
            for entry in _read(path):
                self._lines += path == self.path or not part
                self._keep(entry)

    def is_current(self) -> bool:
        """Whether nobody else has added or changed a line since this was read."""
        return self._parts == _parts(self.root)

    def names(self) -> list[str]:
        """The outputs that there are entries of."""
        return list(self._last)

    def entries(self, output: Path) -> list[Entry]:
        """The entries of an output, whatever is there now; the newest is the last."""
        key = self._key(output)
        if key not in self._last:
            key = self._other_spelling(output, key)
        if key not in self._last:
            return []
        return [
            self._unpack(key, packed) for packed in (*self._older.get(key, ()), self._last[key])
        ]

    def _other_spelling(self, output: Path, key: str) -> str:
        """The name by which an output is known, where case does not count; "" if there is none."""
        with suppress(OSError):
            output.stat()
            if sum(map(len, self._spellings.values())) != len(self._last):
                self._spellings.clear()
                for name in self._last:
                    self._spellings.setdefault(folded(name), []).append(name)
            for name in self._spellings.get(folded(key), ()):
                if (self.root / name).samefile(output):
                    return name
        return ""

    def made_of(self, output: Path, is_stopped: Callable[[], bool] = lambda: False) -> Entry | None:
        """Return the entry of the file at `output`; None if the file is missing or not ours.

        A file is read only if its stat is not the one that was noted; `moved` has it afterwards.
        Once `is_stopped`, None says nothing.
        """
        entries = self.entries(output)
        if not entries:
            return None
        try:
            stamp = FileStat.of(output)
            same = [entry for entry in entries if entry.fits(stamp)]
            # Outputs have their inputs' times: two runs may differ in nothing but the bytes.
            if len({entry.output_sha256 for entry in same}) == 1:
                return same[-1]
            return self._by_bytes(output, stamp, entries, is_stopped)
        except OSError:
            return None

    def _by_bytes(
        self,
        output: Path,
        stamp: FileStat,
        entries: Sequence[Entry],
        is_stopped: Callable[[], bool],
    ) -> Entry | None:
        same_size = [entry for entry in entries if entry.output_stamp.size == stamp.size]
        if not same_size:
            return None
        with self.content(output) as path:
            digest = sha256_of(path, is_stopped)
        found = next((e for e in reversed(same_size) if e.output_sha256 == digest), None)
        if found is not None:
            found = found._replace(output_stamp=stamp)
            self.moved[found.output] = found
            self._keep(found)
        return found

    @contextmanager
    def content(self, output: Path) -> Iterator[Path]:
        """A file on this machine with the bytes of an output.

        Raises:
            OSError: there are none, or they cannot be had.
        """
        yield output

    def is_unchanged(self, output: Path, entry: Entry) -> bool:
        """Whether a file that `made_of` found is, byte for byte, what its run wrote.

        Without a ctime, a file of another origin may have its size, and its input's time.
        """
        stamp = entry.output_stamp
        if stamp.ctime_ns or stamp.mtime_ns != entry.source_stamp.mtime_ns:
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
        stamp = FileStat.of(written)._replace(ctime_ns=0)
        digest, outline = digests_of(written)
        key = self._key(output)
        entry = Entry(key, stamp, digest, source_stamp, source_sha256, *run, source, outline)
        self._append([entry], is_named=False)

    def confirm(self, output: Path) -> None:
        """Complete the line of an output that has its name now, if possible.

        The ctime, which renaming changes, shows later changes under the old size and time.
        """
        entry, place = self._unnamed.pop(self._key(output), (None, 0))
        if entry is None:
            return
        with suppress(OSError):
            stamp = FileStat.of(output)
            if stamp._replace(ctime_ns=0) != entry.output_stamp:
                return  # somebody was faster
            with self._lock:
                with _open_regular(self.path, os.O_RDWR, "rb+") as file:
                    file.seek(place)
                    file.write(f"{stamp.ctime_ns:{_DIGITS}}".encode())
                    self._note_part(file)
                self._last[entry.output] = self._pack(entry._replace(output_stamp=stamp))
                self._older.pop(entry.output, None)

    def restamp(self, entries: Sequence[Entry]) -> None:
        """Add entries of files that have another stat and were found to be the same, if possible.

        Without, they are read again by every run.
        """
        for entry in entries:
            self.moved.pop(entry.output, None)
        with suppress(OSError):
            self._append(entries)

    def _append(self, entries: Sequence[Entry], *, is_named: bool = True) -> None:
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+") as file:
                if _ends_torn(file):
                    file.write(b"\n")
                self._lines += len(entries)
                for entry in entries:
                    self._keep(entry)
                    line = entry.to_json()
                    if not is_named:
                        # The name comes before it, but has no quote that is not escaped.
                        lead, mark, rest = line.partition('"ctime_ns": 0')
                        place = file.seek(0, os.SEEK_END) + len(lead) + len(mark) - 1
                        self._unnamed[entry.output] = entry, place
                        line = f"{lead}{mark[:-1]}{0:{_DIGITS}}{rest}"
                    file.write(line.encode() + b"\n")
                file.flush()
                if time.monotonic() - self._synced > _SYNC_S:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
                self._note_part(file)

    def compact(self, is_own: Callable[[str], bool] = lambda name: True) -> None:
        """Drop outdated lines if there are many: of all parts, or of a shard's own.

        Args:
            is_own: whether an output is one of this run.
        """
        if self._lines <= 64 + 2 * len(self._last):
            return
        with suppress(OSError):  # a longer manifest is still correct
            lines = 0
            with atomic_file(self.path) as file:
                for key in filter(is_own, self.names()):
                    for entry in self._useful(self.root / key):
                        file.write(entry.to_json().encode() + b"\n")
                        lines += 1
            if self.path.name == "manifest.jsonl":
                for path in (self.root / FOLDER).glob("manifest-*.jsonl"):
                    path.unlink()
            self._parts, self._lines = _parts(self.root), lines
            self._unnamed.clear()  # whose places in the file are others now

    def _useful(self, output: Path) -> list[Entry]:
        """The entry of the file at `output`; all entries, if only its bytes would tell."""
        entries = self.entries(output)
        with suppress(OSError):
            stamp = FileStat.of(output)
            fitting = [entry for entry in entries if entry.fits(stamp)]
            if len({entry.output_sha256 for entry in fitting}) == 1:
                return fitting[-1:]
            return entries
        return entries[-1:]

    def _key(self, output: Path) -> str:
        root, path = str(self.root), str(output)
        if os.sep == "/" and path.startswith(f"{root}/"):  # `relative_to` takes ten times as long
            return path[len(root) + 1 :]
        return output.relative_to(self.root).as_posix()

    def _note_part(self, file: BinaryIO) -> None:
        """Tell our own changes from those of others."""
        file.flush()
        self._parts[self.path.name] = _version(os.fstat(file.fileno()))

    def _keep(self, entry: Entry) -> None:
        packed = self._pack(entry)
        if (last := self._last.get(entry.output)) is not None:
            self._older.setdefault(entry.output, []).append(last)
        self._last[entry.output] = packed

    def _pack(self, entry: Entry) -> bytes:
        run = self._runs.setdefault((entry.weights, entry.options), len(self._runs))
        outline = bytes.fromhex(entry.outline)
        return (
            _PACKED.pack(
                *entry.output_stamp,
                *entry.source_stamp,
                bytes.fromhex(entry.output_sha256),
                bytes.fromhex(entry.source_sha256),
                run,
                len(outline),
            )
            + outline
            + os.fsencode(entry.source)
        )

    def _unpack(self, key: str, packed: bytes) -> Entry:
        *numbers, output, source, run, length = _PACKED.unpack_from(packed)
        end = _PACKED.size + length
        if run >= len(self._run_names):
            self._run_names = list(self._runs)
        weights, options = self._run_names[run]
        return Entry(
            key,
            FileStat(*numbers[:4]),
            output.hex(),
            FileStat(*numbers[4:]),
            source.hex(),
            weights,
            options,
            os.fsdecode(packed[end:]),
            packed[_PACKED.size : end].hex(),
        )


def sha256_of(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a file's bytes; of its first ones, if `is_stopped` becomes true.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    digest = hashlib.sha256()
    with _open_regular(path, os.O_RDONLY, "rb", is_link_followed=True) as file:
        while (block := file.read(_BLOCK)) and not is_stopped():
            digest.update(block)
    return digest.hexdigest()


def digests_of(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file's bytes, and its outline, both in hexadecimal.

    The outline shows what damage left of a file: 16 bits of the CRC-32 of each of its parts, which
    are its first byte, and then always as much as all before.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    digest, outline = hashlib.sha256(), b""
    with _open_regular(path, os.O_RDONLY, "rb", is_link_followed=True) as file:
        for _, check, _ in _parts_of(file, digest.update):
            outline += check
    return digest.hexdigest(), outline.hex()


def is_cut_from(path: Path, entry: Entry) -> bool:
    """Whether a file is shorter than an output, but begins like it: each whole part is the same.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    outline = bytes.fromhex(entry.outline)
    with _open_regular(path, os.O_RDONLY, "rb", is_link_followed=True) as file:
        end = 0
        for number, (size, check, start) in enumerate(_parts_of(file, lambda block: None)):
            is_whole = size == max(1, start)
            if is_whole and check != outline[2 * number : 2 * number + 2]:
                return False
            end = start + size
    return end < entry.output_stamp.size


def is_left_of(path: Path, entry: Entry) -> bool:
    """Whether a file is what damage left of an output: nothing, zeros, or most of its parts.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    outline, ours, last = bytes.fromhex(entry.outline), 0, 0
    position = 0

    def find_zeros(block: bytes) -> None:
        nonlocal position, last
        if kept := len(block.rstrip(b"\0")):
            last = position + kept
        position += len(block)

    with _open_regular(path, os.O_RDONLY, "rb", is_link_followed=True) as file:
        for number, (size, check, start) in enumerate(_parts_of(file, find_zeros)):
            is_whole = size == max(1, start) or start + size == entry.output_stamp.size
            if is_whole and check == outline[2 * number : 2 * number + 2]:
                ours += size
    return 2 * ours >= last


def _parts_of(
    file: BinaryIO, on_block: Callable[[bytes], None]
) -> Iterator[tuple[int, bytes, int]]:
    """Yield size, checksum and start of each part of a file."""
    start = 0
    while True:
        left, check = max(1, start), 0
        while left and (block := file.read(min(left, _BLOCK))):
            on_block(block)
            check = zlib.crc32(block, check)
            left -= len(block)
        size = max(1, start) - left
        if size:
            yield size, (check & 0xFFFF).to_bytes(2), start
        if left:
            return
        start += size


def _parts(root: Path) -> dict[str, tuple[int, ...]]:
    """The parts of a manifest, by their names, and what shows that one has changed."""
    found = {}
    with suppress(OSError):
        for path in (root / FOLDER).glob("manifest*.jsonl"):
            with suppress(OSError):
                found[path.name] = _version(path.stat())
    return found


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _age(path: Path) -> tuple[int, str]:
    """A key that sorts the oldest manifest first: of two entries that fit, the later one counts."""
    with suppress(OSError):
        return path.stat().st_mtime_ns, path.name
    return 0, path.name


def _read(path: Path) -> Iterator[Entry]:
    """Yield the valid lines of a manifest; a killed run may leave a torn one, others anything.

    Raises:
        OptionError: it cannot be read: without it, no output is known.
    """
    try:
        with _open_regular(path, os.O_RDONLY, "rb") as file:
            for line in _lines(file):
                with suppress(ValueError, TypeError, KeyError, RecursionError, struct.error):
                    yield _parse(json.loads(line))
    except FileNotFoundError:
        return  # merged meanwhile
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be read: {error.strerror}; correct its permissions, or choose another "
            "output"
        ) from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's lines, without those that are too long to be ours."""
    is_begun = False
    while line := file.readline(_LONGEST_LINE):
        is_whole = line.endswith(b"\n") or len(line) < _LONGEST_LINE
        if is_whole and not is_begun:
            yield line
        is_begun = not is_whole


def _parse(fields: dict[str, Any]) -> Entry:
    """Return the entry of a line.

    Raises:
        ValueError, TypeError, KeyError, struct.error: it is none, or of no file below the folder.
    """
    stamps = [FileStat(**fields[name]) for name in ("output_stamp", "source_stamp")]
    entry = Entry(**fields | {"output_stamp": stamps[0], "source_stamp": stamps[1]})
    for stamp in stamps:
        _STAMP.pack(*stamp)
    digests = [bytes.fromhex(text) for text in (entry.output_sha256, entry.source_sha256)]
    texts = (entry.output, entry.weights, entry.options, entry.source, entry.outline)
    if any(len(digest) != 32 for digest in digests) or not all(type(text) is str for text in texts):
        raise ValueError("a digest or text is none")
    names = entry.output + entry.source
    os.fsencode(names)
    is_below = entry.output[:1] not in ("", "/") and not {".", ".."} & {*entry.output.split("/")}
    if "\0" in names or not is_below or len(bytes.fromhex(entry.outline)) > 255:
        raise ValueError("no file can have this name")
    return entry


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

    An unsharded run excludes every other run; a shard excludes itself, unsharded runs and shards of
    another split, whose images are partly the same. Each takes its own lock first and then looks
    at the others', so that of two runs that begin together at least one sees the other.

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
    manifest = folder / f"manifest{part}.jsonl"
    try:
        _open_regular(manifest, os.O_RDWR, "rb+").close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OptionError(
            f"{manifest}: cannot be written: {error.strerror}; correct its permissions, or choose "
            "another output"
        ) from error
    with ExitStack() as held:
        held.callback(_lock(own, root).release)
        split = part.rpartition("-of-")[2]
        others = [
            path for path in folder.glob("lock-*") if path.name.rpartition("-of-")[2] != split
        ]
        for other in (whole, *others) if part else others:
            # Several shards may look at the same moment.
            _lock(other, root, timeout_s=_LOOK_S if part else 0.0).release()
        yield


def _lock(path: Path, root: Path, timeout_s: float = 0.0) -> FileLock:
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as error:
        _, _, shard = path.name.partition("-")
        split = f" (--shard {shard.replace('-of-', '/')})" if shard else ""
        raise OptionError(
            f"{root}: another denoise-batch{split} is writing there; wait for it, or choose "
            "another output"
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

    def name_of(self, path: Path) -> str:
        """Return the name of a file or folder that the user knows."""
        return str(path)

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
