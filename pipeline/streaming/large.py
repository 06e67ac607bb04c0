"""Files of many pages that would take much of the memory: their pages go to disk (ADR 29)."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from denoise_batch.kernels.errors import StorageError

from ..device import available_host_bytes
from ..files.footprint import Footprint
from ..files.scratch import Scratch

LARGE = 4  # what takes more than one such part of the free memory is large


def is_large(footprint: Footprint, coding: int, need: int, free: int) -> bool:
    """Whether the pages of a file are to be on disk.

    Args:
        footprint: of the file.
        coding: bytes that it takes in memory without the network.
        need: with the network.
        free: bytes of memory that the process may still take.
    """
    return len(footprint.pages) > 1 and (coding > free // LARGE or need > free)


def scratch_for(
    folder: Path, footprint: Footprint, need: int, mend: str = "choose another --output"
) -> Scratch:
    """Make a scratch file for the pages of a file.

    Args:
        folder: whose file system it takes room on.
        footprint: of the file.
        need: bytes of disk, about.
        mend: what to do, beside making room there, if there is too little.

    Raises:
        StorageError: there is too little room, or the scratch file cannot be made.
    """
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if is_memory(folder):
            free = min(free, available_host_bytes())
        if free < need:
            raise StorageError(
                f"needs about {need / 1e9:.2g} GB of disk ({len(footprint.pages)} pages, "
                f"{footprint.pixels / 1e6:.0f} megapixels), {free / 1e9:.2g} GB are free in "
                f"{folder}; make room there, or {mend}"
            )
    return Scratch(folder, mend)


def is_memory(folder: Path) -> bool:
    """Whether what is in a folder takes memory, as in Linux's tmpfs.

    Raises:
        OSError: there is no such folder.
    """
    device = folder.stat().st_dev
    try:
        mounts = [*map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())]
    except OSError:  # not Linux
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return any(
        mount[2] == wanted and mount[mount.index("-") + 1] in {"tmpfs", "ramfs"} for mount in mounts
    )


def on_disk_if_large(folder: Path | None = None) -> Callable[[Footprint], Scratch | None]:
    """For `read_pages`: where pages are to be that are only looked at.

    Args:
        folder: whose file system they take room on; None: that of temporary files. `read_pages`
            raises `StorageError` if there is too little room.
    """

    def place(footprint: Footprint) -> Scratch | None:
        need = footprint.peak_bytes(footprint.format)
        if not is_large(footprint, need, need, available_host_bytes()):
            return None
        if folder is not None:
            return scratch_for(folder, footprint, footprint.disk_bytes // 2)
        temporary = Path(tempfile.gettempdir())
        return scratch_for(temporary, footprint, footprint.disk_bytes // 2, "set TMPDIR")

    return place
