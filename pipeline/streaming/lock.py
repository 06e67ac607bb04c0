"""One run at a time in an output folder; shards of one split may share it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from denoise_batch.kernels import OptionError

from .manifest import FOLDER

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(root: Path, part: str = "") -> Iterator[None]:
    """Hold the output folder for this run, or for this shard; a killed run holds nothing.

    Args:
        root: the output folder; made if missing.
        part: "" for the whole, or the shard's name.

    Raises:
        OptionError: another run holds it, or it cannot be written.
    """
    folder = root / FOLDER
    with ExitStack() as files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = files.enter_context((folder / "lock").open("a+b"))
            own = files.enter_context((folder / f"lock{part}").open("a+b")) if part else whole
        except OSError as error:
            raise OptionError(
                f"{folder}: cannot be made: {error.strerror}; choose another output"
            ) from error
        _take(whole, root, is_shared=bool(part))
        if part:
            _take(own, root, is_shared=False)
        yield


def _take(file: BinaryIO, root: Path, *, is_shared: bool) -> None:
    if fcntl is None:
        return
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OptionError(
            f"{root}: another denoise-batch is writing there; wait for it, or choose another output"
        ) from error
    except OSError:
        return  # a file system without locks: better unguarded than unusable
