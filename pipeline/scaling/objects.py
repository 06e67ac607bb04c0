"""Object stores through fsspec: list, fetch, upload whole or not at all, retry.

fsspec decides which stores exist and how to sign in: `s3://` needs s3fs, `gs://` needs gcsfs;
credentials and endpoints come from their own files and variables (`AWS_PROFILE`,
`AWS_ENDPOINT_URL`, `FSSPEC_S3_…`), never from our options.
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from denoise_batch.kernels.errors import ImageError, OptionError, StorageError

# An upload here is atomic; elsewhere a file is uploaded under a temporary name and renamed.
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}
_TRIES = 4
_PAUSE_S = 0.5  # before the second try; doubled before each further try
# The object or its name is to blame, not the store.
_OF_THE_OBJECT = {errno.ENAMETOOLONG, errno.EINVAL, errno.EMSGSIZE, errno.EISDIR, errno.ENOTDIR}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # retrying would not help

Value = TypeVar("Value")


@dataclass(frozen=True)
class Object:
    """One object of a listing.

    Attributes:
        key: bucket and path, without the protocol.
        size: bytes.
        modified_ns: time of the last modification in whole seconds (S3 gives fractions in some
            answers only); 0 if the store does not say.
    """

    key: str
    size: int
    modified_ns: int


def is_url(text: str) -> bool:
    """Whether an input or output is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


class ObjectStore:
    """What this tool needs of one protocol's file system; used from several threads.

    Args:
        protocol: "s3", "gs", "memory" …

    Raises:
        OptionError: fsspec, or its package for this protocol, is not installed.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        try:
            import fsspec
        except ImportError as error:
            raise OptionError(
                f"{protocol}://: URLs need the extra: pip install 'denoise-batch[cloud]'"
            ) from error
        try:
            # No cache of listings: other workers write too.
            self._files: Any = fsspec.filesystem(protocol, use_listings_cache=False)
        except ImportError as error:
            raise OptionError(f"{protocol}://: {error}") from error
        except ValueError as error:
            raise OptionError(f"{protocol}://: fsspec knows no such protocol") from error

    def listing(self, key: str) -> list[Object]:
        """List the object of this name, or those below it, sorted.

        Raises:
            OptionError: the bucket does not exist, or the store does not answer, or refuses.
        """
        try:
            self._files.invalidate_cache()
            found: Mapping[str, Mapping[str, Any]] = self._retry(
                lambda: self._files.find(key, detail=True)
            )
        except FileNotFoundError as error:
            if self.protocol not in _ATOMIC:
                return []
            bucket = self.url(key.split("/")[0])  # only its lack is an error there
            raise OptionError(f"{bucket}: no such bucket; check the name, or make it") from error
        except Exception as error:
            raise OptionError(f"{self.url(key)}: cannot be listed: {_reason(error)}") from error
        return sorted(_objects(found), key=lambda object: object.key)

    def is_gone(self, key: str) -> bool:
        """Whether the store reports that the object does not exist; False if it does not answer."""
        try:
            self._info(key)
        except FileNotFoundError:
            return True
        except Exception:  # every store has errors of its own
            return False
        return False

    def info(self, key: str) -> Object:
        """Ask for an object's size and time.

        Raises:
            StorageError: it does not exist, or the store keeps failing.
        """
        try:
            return self._info(key)
        except Exception as error:
            raise StorageError(f"{self.url(key)}: cannot be read: {_reason(error)}") from error

    def fetch(self, key: str, path: Path) -> Object:
        """Download an object to a file, with its time.

        Raises:
            ImageError: it does not exist, is not to be read, or changed meanwhile.
            StorageError: the store keeps failing, or lets us in no more.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = self._info(key)
            self._retry(lambda: self._files.get_file(key, str(path)))
            if path.stat().st_size != before.size:
                came = f"{path.stat().st_size} of {before.size} bytes came"
                raise OSError(errno.EMSGSIZE, came)
            os.utime(path, ns=(before.modified_ns, before.modified_ns))
        except Exception as error:
            with suppress(OSError):
                path.unlink()
            is_of_object = isinstance(error, _FINAL) or _is_of_object(error)
            if isinstance(error, PermissionError):
                is_of_object = not self._is_locked(key)
            kind = ImageError if is_of_object else StorageError
            raise kind(f"{self.url(key)}: cannot be read: {_reason(error)}") from error
        return before

    def _is_locked(self, key: str) -> bool:
        """Whether the store, which let us list this object, lets us in no more: credentials end."""
        folder, _, name = key.rpartition("/")
        try:
            self._files.invalidate_cache()
            self._files.find(folder, prefix=name)
        except Exception:  # every store has errors of its own
            return True
        return False

    def upload(self, path: Path, key: str) -> None:
        """Upload a file as the object of this name, whole or not at all.

        Raises:
            ImageError: no object can have this name.
            StorageError: the store keeps failing; the object at `key` is unchanged.
        """
        try:
            self._retry(lambda: self._put(path, key))
        except Exception as error:
            kind = ImageError if _is_of_object(error) else StorageError
            raise kind(f"{self.url(key)}: cannot be written: {_reason(error)}") from error

    def read(self, key: str) -> bytes | None:
        """Return the object's bytes; None if it does not exist.

        Raises:
            OptionError: the store keeps failing.
        """
        try:
            data: bytes = self._retry(lambda: self._files.cat_file(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OptionError(f"{self.url(key)}: cannot be read: {_reason(error)}") from error
        return data

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is gone already, or cannot be deleted, is no error."""
        for key in keys:
            with suppress(Exception):  # an object that stays does no harm
                self._files.rm_file(key)

    def url(self, key: str) -> str:
        """The object's URL."""
        return f"{self.protocol}://{key}"

    def _put(self, path: Path, key: str) -> None:
        if self.protocol in _ATOMIC:
            self._files.put_file(str(path), key)
            return
        place = PurePosixPath(key)
        unfinished = str(place.with_name(f".{place.name[:40]}.{secrets.token_hex(4)}.tmp"))
        try:
            self._files.makedirs(str(place.parent), exist_ok=True)
            self._files.put_file(str(path), unfinished)
            self._files.mv(unfinished, key)
        except BaseException:
            self.delete([unfinished])
            raise

    def _info(self, key: str) -> Object:
        self._files.invalidate_cache()
        info = self._retry(lambda: self._files.info(key))
        return Object(key, int(info["size"]), _modified_ns(info))

    def _retry(self, action: Callable[[], Value]) -> Value:
        """Return `action()`, retrying a few times."""
        for number in range(_TRIES - 1):
            try:
                return action()
            except _FINAL:
                raise
            except Exception:  # every store has its own errors; the last is raised
                time.sleep(_PAUSE_S * 2**number)
        return action()


def _objects(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Object]:
    for name, info in found.items():
        key = name.removeprefix("/")
        if info.get("type") == "directory" or name.endswith("/") or "\0" in key:
            continue
        yield Object(key, int(info.get("size") or 0), _modified_ns(info))


def _modified_ns(info: Mapping[str, Any]) -> int:
    """Every file system has its own name for the time, and some give text."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            value = value.timestamp()
        if isinstance(value, (int, float)):
            return int(value) * 1_000_000_000
    return 0


def _is_of_object(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_OBJECT


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
