"""Where files come from and go to; here, this machine's file systems."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..files.scan import Job
from ..options import DenoiseOptions
from .manifest import Manifest
from .result import Result


class Storage:
    """Files that are where their paths say; `scaling.remote` adds object stores."""

    def refresh(self, options: DenoiseOptions) -> None:
        """Called before inputs and output are scanned."""

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
