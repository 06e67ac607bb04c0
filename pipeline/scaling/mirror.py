"""A local folder that mirrors object storage, so that everything else works on paths.

    STAGE/s3/bucket/imgs/a.png   ↔   s3://bucket/imgs/a.png

Listed objects appear as sparse files of their size and time that take no space, so names,
collisions, new and finished images follow the same rules as in folders. An object is fetched when
its file is decoded, an output is uploaded when it is written, and neither is kept: the disk holds
only what is in flight.
"""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from denoise_batch.kernels.errors import (
    DenoiseBatchError,
    ImageError,
    OptionError,
    StorageError,
)

from ..files.atomic import lock, make_folder, remove_tree
from .objects import Object, ObjectStore, is_url

LOCAL = "file://"  # the rest is a path
_LOCK = "lock"  # held by the process that made the folder
_OF_ITS_NAME = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOENT, errno.ENOTDIR}


class LocalMirror:
    """The folder and the stores that it mirrors; used from several threads.

    Args:
        root: the folder; the same path on every machine of a run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stores: dict[str, ObjectStore] = {}
        self._lock = Lock()

    def path(self, url: str) -> Path:
        """The file or folder that mirrors a URL.

        Raises:
            OptionError: the protocol is not available, or the URL names no bucket.
        """
        protocol, _, key = url.partition("://")
        parts = [part for part in key.split("/") if part]
        if not parts or any(part in (".", "..") for part in parts):
            raise OptionError(f"{url}: name a bucket or folder, without '.' and '..'")
        self.store(protocol)
        return self.root.joinpath(protocol, *parts)

    def holds(self, path: Path) -> bool:
        """Whether a path mirrors an object."""
        return path.is_relative_to(self.root)

    def url(self, path: Path) -> str:
        """The URL that a path mirrors; other paths are returned as they are."""
        if not self.holds(path):
            return str(path)
        protocol, *key = path.relative_to(self.root).parts
        return f"{protocol}://{'/'.join(key)}"

    def with_urls(self, text: str) -> str:
        """Replace mirrored paths in a message by their URLs."""
        for protocol in list(self._stores):
            text = text.replace(f"{self.root}{os.sep}{protocol}{os.sep}", f"{protocol}://")
        return text

    def refresh(self, path: Path) -> tuple[list[Object], dict[str, str]]:
        """Update a path, and everything below it, from the store's listing.

        Returns:
            What is mirrored; and key → reason of the objects whose names no folder can hold.

        Raises:
            OptionError: the store cannot be listed, or not mirrored.
        """
        store, key = self._place(path)
        objects = store.listing(key)
        remove_tree(path)
        folders = {parent for object in objects for parent in _parents(object.key)}
        shown, faults = [], {}
        for object in objects:
            if reason := self._show(store, object, is_folder=object.key in folders):
                faults[object.key] = reason
            else:
                shown.append(object)
        return shown, faults

    def is_gone(self, url: str) -> bool:
        """Whether the URL's store reports that the object does not exist."""
        with suppress(DenoiseBatchError):
            store, key = self._place(self.path(url))
            return store.is_gone(key)
        return False

    def fetch(self, path: Path) -> None:
        """Download a file's object, with its time.

        Raises:
            ImageError: the object does not exist, or the store fails.
        """
        if self.holds(path):
            store, key = self._place(path)
            store.fetch(key, path)

    def upload(self, path: Path) -> None:
        """Upload a file, whole or not at all.

        Raises:
            ImageError: the store fails.
        """
        if self.holds(path):
            store, key = self._place(path)
            store.upload(path, key)

    def info(self, path: Path) -> Object:
        """Ask for the size and time of a path's object.

        Raises:
            StorageError: it does not exist, or the store fails.
        """
        store, key = self._place(path)
        return store.info(key)

    @contextmanager
    def copy(self, path: Path) -> Iterator[Path]:
        """A copy of a path's object, as long as it is needed.

        Raises:
            FileNotFoundError: the object does not exist.
            OptionError: the store fails.
        """
        store, key = self._place(path)
        copy = self.root / f"copy-{secrets.token_hex(8)}{path.suffix}"
        try:
            store.fetch(key, copy)
        except StorageError as error:
            raise OptionError(str(error)) from error
        except ImageError as error:
            raise FileNotFoundError(errno.ENOENT, str(error)) from error
        try:
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def delete(self, path: Path) -> None:
        """Delete a path's object, if the store lets us."""
        store, key = self._place(path)
        store.delete([key])

    def release(self, path: Path) -> None:
        """Release a file's space on the disk."""
        if self.holds(path):
            with suppress(OSError):
                os.truncate(path, 0)

    def store(self, protocol: str) -> ObjectStore:
        """The store of a protocol, opened once.

        Raises:
            OptionError: it is not available.
        """
        with self._lock:
            if protocol not in self._stores:
                self._stores[protocol] = ObjectStore(protocol)
            return self._stores[protocol]

    def _place(self, path: Path) -> tuple[ObjectStore, str]:
        protocol, *key = path.relative_to(self.root).parts
        return self.store(protocol), "/".join(key)

    def _show(self, store: ObjectStore, object: Object, *, is_folder: bool) -> str:
        """Mirror an object; or return why no folder can hold it."""
        url, parts = store.url(object.key), object.key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            return f"{url}: its key has an empty part, '.' or '..', which no path has; rename it"
        if is_folder:
            return f"{url}: other objects have its name as their folder; rename it"
        path = self.root.joinpath(store.protocol, *parts)
        try:
            make_folder(path.parent)
            path.touch()
            os.truncate(path, object.size)
            os.utime(path, ns=(object.modified_ns, object.modified_ns))
        except OSError as error:
            if error.errno in _OF_ITS_NAME:
                return f"{url}: no file can have its name ({error.strerror}); rename it"
            raise OptionError(
                f"{url}: cannot be mirrored in {self.root}: {error.strerror}; set TMPDIR"
            ) from error
        return ""


def _parents(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


@contextmanager
def local_mirror() -> Iterator[LocalMirror]:
    """Make a mirror, and remove it at the end; remove those that killed runs left behind."""
    temporary = Path(tempfile.gettempdir()).resolve()
    _remove_abandoned(temporary)
    root = temporary / f"denoise-batch-{secrets.token_hex(8)}"
    unnamed = root.with_name(f".{root.name}")  # until it is locked
    unnamed.mkdir(mode=0o700)
    descriptor = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        lock(descriptor)
        if os.name == "posix":
            unnamed.rename(root)
        else:  # where nothing can be renamed that has an open file
            root.mkdir(mode=0o700)
        yield LocalMirror(root)
    finally:
        os.close(descriptor)
        for path in (root, unnamed):
            with suppress(OSError):
                _remove(path)


def _remove_abandoned(temporary: Path) -> None:
    for path in (*temporary.glob("denoise-batch-*"), *temporary.glob(".denoise-batch-*")):
        with suppress(OSError):
            if not re.fullmatch(r"\.?denoise-batch-[0-9a-f]{16}", path.name) or path.is_symlink():
                continue
            descriptor = os.open(path / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                is_abandoned = lock(descriptor) is True
            finally:
                os.close(descriptor)
            if is_abandoned:
                _remove(path)


def _remove(mirror: Path) -> None:
    """Delete a mirror, its lock last: who is killed meanwhile leaves one that is abandoned."""
    for path in mirror.iterdir():
        if path.name != _LOCK:
            remove_tree(path)
    remove_tree(mirror)


def local_path(text: str, mirror: LocalMirror) -> str:
    """The path of an input or output on this machine: of a `file://` URL its path, else its mirror.

    Raises:
        OptionError: the URL cannot be used.
    """
    if not is_url(text):
        return text
    if text == LOCAL:
        raise OptionError(f"{text}: names no path; give one, such as file:///data/imgs")
    if text.startswith(LOCAL):
        return text.removeprefix(LOCAL)
    return str(mirror.path(text))
