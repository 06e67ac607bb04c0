"""Read every output back, and compare it with what its run wrote, as `restic check --read-data`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from denoise_batch.kernels import NoImagesError, OptionError

from ..files.scan import canonical_paths, images_below, output_folders, scan
from ..options import DenoiseOptions
from ..progress import Stop
from .manifest import FOLDER, Manifest, Storage, is_cut_from, sha256_of
from .session import is_in_shard

State = Literal["whole", "missing", "truncated", "changed", "unreadable", "unknown"]
BAD: tuple[State, ...] = ("missing", "truncated", "changed", "unreadable")
_THREADS = 8
_CHUNK = 64  # outputs begun before it is asked whether to stop


@dataclass(frozen=True)
class Check:
    """What an output is found to be.

    Attributes:
        name: its path below the output folder.
        path: its path or URL.
        state: whole (as it was written), missing, truncated (shorter, and what is there was
            written), changed, unreadable, or unknown: an image that no run has noted.
        size: bytes that were read.
        reason: more about it.
    """

    name: str
    path: str
    state: State
    size: int = 0
    reason: str = ""


def verify(options: DenoiseOptions, storage: Storage, stop: Stop) -> Iterator[Check]:
    """Check all outputs in the output folders of these inputs; neither these nor weights are read.

    Raises:
        OptionError: an output folder has no manifest, or an input does not exist and there is no
            `--output`.
    """
    storage.refresh(options)
    roots = output_folders(options.inputs, options.output)
    if not roots:
        raise OptionError(f"{', '.join(options.inputs)}: matches nothing; name the --output")
    for root in roots:
        manifest = storage.manifest(root, "")
        names = manifest.names()
        if not names:
            place = storage.name_of(root)
            raise OptionError(
                f"{place}: no manifest in {FOLDER}, so nothing to verify; check the output"
            )
        shard = [name for name in sorted(names) if is_in_shard(name, *options.shard)]
        with ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(shard), _CHUNK):
                before, check = manifest, partial(_check, storage, stop, manifest)
                for found in threads.map(check, shard[start : start + _CHUNK]):
                    if stop:  # it may not have been read to its end
                        return
                    if found.state in BAD:  # or a run has replaced it meanwhile
                        if manifest is before and not manifest.is_current():
                            manifest = storage.manifest(root, "")
                        if manifest is not before:
                            found = _check(storage, stop, manifest, found.name)
                    yield found
        yield from _unknown(options, root, {*names, *manifest.names()}, storage)


def _check(storage: Storage, stop: Stop, manifest: Manifest, name: str) -> Check:
    output = manifest.root / name
    place, entries = storage.name_of(output), manifest.entries(output)

    def check(state: State, size: int = 0, reason: str = "") -> Check:
        return Check(name, place, state, size, reason)

    try:
        with manifest.content(output) as path:
            size = path.stat().st_size
            digest = sha256_of(path, stop.__bool__)
            if any(entry.output_sha256 == digest for entry in entries):
                return check("whole", size)
            written = entries[-1].output_stamp.size
            if size < written and any(
                not entry.outline or is_cut_from(path, entry) for entry in entries
            ):
                return check("truncated", size, f"{size} of {written} bytes")
            return check("changed", size, _difference(size, written))
    except FileNotFoundError:
        return check("missing", reason="no such file")
    except (OSError, OptionError) as error:
        return check("unreadable", reason=getattr(error, "strerror", "") or str(error))


def _difference(size: int, written: int) -> str:
    return "other bytes, same size" if size == written else f"{size} bytes, {written} were written"


def _unknown(
    options: DenoiseOptions, root: Path, names: set[str], storage: Storage
) -> Iterator[Check]:
    """The images in an output folder that no run has noted, unless inputs are there too."""
    try:
        sources = [job.source for job in scan(options.inputs, options.output)]
    except (NoImagesError, OptionError):
        sources = []
    below = set(canonical_paths(sources))
    if any(source.parent == root for source in sources):
        return
    for name in images_below(root):
        if name not in names and canonical_paths([root / name])[0] not in below:
            yield Check(name, storage.name_of(root / name), "unknown")
