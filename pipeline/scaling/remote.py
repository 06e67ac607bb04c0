"""Runs whose inputs or outputs are URLs: files pass through a local mirror.

The manifest of an output prefix is kept in it, in `.denoise-batch/`. Each output's entry is an
object of its own: uploaded before the output, so that a run may be killed at any point, and again
with the time that the store gave the output. A run that ends merges them into one. Object stores
have no locks: nothing keeps two runs apart.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from denoise_batch.kernels.errors import DenoiseBatchError, ImageError, OptionError

from ..files.atomic import atomic_write, make_folder
from ..files.scan import FileStat, Job, is_image, split_pattern
from ..options import DenoiseOptions
from ..streaming.manifest import FOLDER, Entry, Manifest, Storage, digests_of
from ..streaming.result import Result
from .mirror import LOCAL, LocalMirror, local_mirror, local_path
from .objects import is_url

_CONNECTIONS = 16  # to fetch the entries of a killed run


@dataclass(frozen=True)
class MirroredJob(Job):
    """A job whose source or output mirrors an object.

    Attributes:
        source_url: of the source, or its path.
        output_url: of the output, or its path.
    """

    source_url: str = ""
    output_url: str = ""

    @property
    def source_name(self) -> str:
        """The source's URL, or path."""
        return self.source_url

    @property
    def output_name(self) -> str:
        """The output's URL, or path."""
        return self.output_url


class RemoteManifest(Manifest):
    """The entries of an output prefix.

    An entry's time is 0 until the store has been asked for it. Whether such an entry is that of an
    object, and which of several of one size and second, is told by the object's bytes.

    Args:
        root: the folder of the mirror that stands for the prefix.
        mirror: that holds it.
        is_read: whether entries of earlier runs are wanted.
    """

    def __init__(self, root: Path, mirror: LocalMirror, *, is_read: bool = True) -> None:
        self._mirror = mirror
        self._unconfirmed: dict[Path, tuple[Entry, Path]] = {}
        if is_read:
            mirror.refresh(root / FOLDER)
            with ThreadPoolExecutor(_CONNECTIONS) as threads:
                list(threads.map(mirror.fetch, (root / FOLDER).glob("manifest*.jsonl")))
        super().__init__(root)

    def is_current(self) -> bool:
        """False: only a listing could tell."""
        return False

    def made_of(self, output: Path, is_stopped: Callable[[], bool] = lambda: False) -> Entry | None:
        """Return the entry of the object at `output`, by size and time, else by its bytes.

        Raises:
            OptionError: the object has to be read, and the store fails.
        """
        entries = self.entries(output)
        if not entries:
            return None
        try:
            stamp = FileStat.of(output).of_object
        except OSError:
            return None
        unconfirmed = FileStat(stamp.size, 0)
        fitting = [entry for entry in entries if entry.output_stamp in (stamp, unconfirmed)]
        exact = [entry for entry in fitting if entry.output_stamp == stamp != unconfirmed]
        if exact and len({entry.output_sha256 for entry in fitting}) == 1:
            return exact[-1]
        try:
            return self._by_bytes(output, stamp, entries, is_stopped)
        except FileNotFoundError:
            return None

    @contextmanager
    def content(self, output: Path) -> Iterator[Path]:
        """A copy of an output's object.

        Raises:
            FileNotFoundError: it does not exist.
            OptionError: the store fails.
        """
        with self._mirror.copy(output) as path:
            yield path

    def is_unchanged(self, output: Path, entry: Entry) -> bool:
        """True: the store gives every object its own time."""
        return True

    def record(
        self,
        output: Path,
        written: Path,
        source: str,
        source_stamp: FileStat,
        source_sha256: str,
        run: tuple[str, str],
    ) -> None:
        """Upload the entry, before `written` becomes the object `output`.

        Raises:
            ImageError: the store fails.
            OSError: the disk is full.
        """
        stamp = FileStat(written.stat().st_size, 0)
        key, (digest, outline) = self._key(output), digests_of(written)
        entry = Entry(key, stamp, digest, source_stamp, source_sha256, *run, source, outline)
        path = self.root / FOLDER / f"manifest-{secrets.token_hex(8)}.jsonl"
        self._upload([entry], path)
        self._unconfirmed[output] = (entry, path)

    def confirm(self, output: Path) -> None:
        """Give the entry of an object that was uploaded just now its time, if the store lets us."""
        entry, path = self._unconfirmed.pop(output, (None, None))
        if entry is None or path is None:
            return
        with suppress(DenoiseBatchError, OSError):  # by its bytes it is still found
            object = self._mirror.info(output)
            if object.size == entry.output_stamp.size:
                stamp = FileStat(object.size, object.modified_ns)
                self._upload([entry._replace(output_stamp=stamp)], path)

    def restamp(self, entries: Sequence[Entry]) -> None:
        """Upload entries whose sources have another stat and were found to be the same."""
        for entry in entries:
            self.moved.pop(entry.output, None)
        with suppress(DenoiseBatchError, OSError):
            self._upload(entries, self.root / FOLDER / f"manifest-{secrets.token_hex(8)}.jsonl")

    def _upload(self, entries: Sequence[Entry], path: Path) -> None:
        make_folder(path.parent)
        path.write_text("".join(f"{entry.to_json()}\n" for entry in entries))
        try:
            self._mirror.upload(path)
        finally:
            path.unlink()

    def collect(self) -> None:
        """Merge all valid entries into one object, with the times that the store reports.

        Raises:
            OptionError: the store cannot be listed.
            ImageError: the store fails.
        """
        self._mirror.refresh(self.root)
        found = RemoteManifest(self.root, self._mirror)
        lines = []
        for key in found.names():
            output = self.root / key
            if (entry := found.made_of(output)) is not None:
                stamp = FileStat.of(output).of_object
                lines.append(entry._replace(output_stamp=stamp).to_json())
        whole = self.root / FOLDER / "manifest.jsonl"
        parts = [path for path in whole.parent.glob("manifest*.jsonl") if path != whole]
        make_folder(whole.parent)
        atomic_write(whole, "".join(f"{line}\n" for line in lines).encode())
        self._mirror.upload(whole)
        for path in parts:
            self._mirror.delete(path)

    def compact(self, is_own: Callable[[str], bool] = lambda name: True) -> None:
        """Do nothing: `collect` does it, at the end."""


class RemoteStorage(Storage):
    """Files in object stores: fetched before they are read, uploaded once written, never kept.

    Args:
        mirror: that stands for the stores.
    """

    def __init__(self, mirror: LocalMirror) -> None:
        self.mirror = mirror

    def refresh(self, options: DenoiseOptions) -> list[Job]:
        """List inputs and output again; return a failed job for each image that has no path.

        Raises:
            OptionError: a bucket does not exist, or a store cannot be listed.
        """
        faulty: list[Job] = []
        if options.output is not None and self.mirror.holds(options.output):
            self.mirror.refresh(options.output)
        for path, pattern in map(split_pattern, map(Path, options.inputs)):
            if not self.mirror.holds(path):
                continue
            objects, faults = self.mirror.refresh(path)
            if not objects:
                # A store has no empty folders: a prefix that does not exist (yet) holds no images.
                make_folder(path)
            protocol, *prefix = path.relative_to(self.mirror.root).parts
            for key, fault in faults.items():
                name = key.removeprefix("/".join(prefix)).removeprefix("/") or prefix[-1]
                if _is_wanted(name, pattern, recursive=options.recursive):
                    root = options.output or path
                    below = name.lstrip("/")
                    place = MirroredJob(path / below, root / below, name, root, fault)
                    urls = (f"{protocol}://{key}", self.mirror.url(place.output))
                    faulty.append(replace(place, source_url=urls[0], output_url=urls[1]))
        return faulty

    def check(self, root: Path) -> None:
        """Write a small object into an output prefix, and delete it.

        Raises:
            OptionError: the store refuses, or keeps failing.
        """
        if not self.mirror.holds(root):
            return
        path = root / FOLDER / "probe"
        make_folder(path.parent)
        path.touch()
        try:
            self.mirror.upload(path)
        except ImageError as error:
            raise OptionError(f"{error}; check the output and your rights to it") from error
        self.mirror.delete(path)

    def named(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with their URLs."""
        return [
            MirroredJob(
                job.source,
                job.output,
                job.name,
                job.root,
                job.fault,
                self.mirror.url(job.source),
                self.mirror.url(job.output),
            )
            for job in jobs
        ]

    def name_of(self, path: Path) -> str:
        """The URL, or path."""
        return self.mirror.url(path)

    def manifest(self, root: Path, part: str) -> Manifest:
        """The manifest of an output folder or prefix."""
        if self.mirror.holds(root):
            return RemoteManifest(root, self.mirror)
        return Manifest(root, part)

    def worker_manifest(self, root: Path, part: str) -> Manifest:
        """A manifest that is only written."""
        if self.mirror.holds(root):
            return RemoteManifest(root, self.mirror, is_read=False)
        return Manifest(root, part)

    def is_gone(self, place: str) -> bool:
        """Whether a URL's store, or a path's folder, reports that it does not exist."""
        return self.mirror.is_gone(place) if is_url(place) else super().is_gone(place)

    def fetch(self, path: Path) -> None:
        """Download a source."""
        self.mirror.fetch(path)

    def upload(self, path: Path) -> None:
        """Upload an output."""
        self.mirror.upload(path)

    def finish(self, result: Result) -> Result:
        """Release the job's disk space, and put URLs into its messages."""
        self.mirror.release(result.job.source)
        self.mirror.release(result.job.output)
        notes = tuple(self.mirror.with_urls(note) for note in result.notes)
        return replace(result, reason=self.mirror.with_urls(result.reason), notes=notes)

    def end(self, manifests: Sequence[Manifest]) -> None:
        """Merge the entries, if the store lets us."""
        for manifest in manifests:
            if isinstance(manifest, RemoteManifest):
                with suppress(DenoiseBatchError, OSError):  # unmerged entries are still valid
                    manifest.collect()


def _is_wanted(name: str, pattern: str, *, recursive: bool) -> bool:
    """Whether an object is one that `scan` would read or tell of, by its name below an input."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    if not parts or not is_image(Path(parts[-1])) or any(part[0] == "." for part in parts):
        return False
    if not pattern:
        return recursive or len(parts) == 1
    wanted = pattern.split("/")
    return "**" in wanted or all(map(fnmatchcase, parts, wanted))


@contextmanager
def storage_of(
    inputs: Sequence[str], output: str | None
) -> Iterator[tuple[tuple[str, ...], Path | None, Storage]]:
    """A run's inputs and output as local paths, and their storage; errors inside name URLs.

    Raises:
        OptionError: a URL that cannot be used, or one without an output.
    """
    urls = [text for text in inputs if is_url(text) and not text.startswith(LOCAL)]
    if output is None and urls:
        raise OptionError(f"{urls[0]}: give --output; there is no place beside it")
    with local_mirror() as mirror:
        try:
            yield (
                tuple(local_path(text, mirror) for text in inputs),
                None if output is None else Path(local_path(output, mirror)),
                RemoteStorage(mirror),
            )
        except DenoiseBatchError as error:
            raise type(error)(mirror.with_urls(str(error))) from error
