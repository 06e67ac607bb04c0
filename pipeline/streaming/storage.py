"""Where files come from and go to; here, on this machine's file systems."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..files.scan import Job
from ..options import DenoiseOptions
from .manifest import Manifest
from .result import Result


class Storage:
    """Files that are where their paths say. `scaling.remote` has one for object stores."""

    def refresh(self, options: DenoiseOptions) -> None:
        """Before inputs and output are looked at."""

    def named(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, as they are to be told to the user."""
        return list(jobs)

    def manifest(self, root: Path, part: str) -> Manifest:
        """What earlier runs made in an output folder, and where this one notes it."""
        return Manifest(root, part)

    def worker_manifest(self, root: Path, part: str) -> Manifest:
        """For a worker, who only notes."""
        return Manifest(root, part)

    def is_gone(self, place: str) -> bool:
        """Whether nothing stands at a `Job.canonical_path` any more; False where that cannot be told."""
        with suppress(OSError):
            return not Path(place).exists()
        return False

    def fetch(self, path: Path) -> None:
        """Before a source is read, in a reader's thread.

        Raises:
            ImageError: it does not come.
        """

    def deliver(self, path: Path) -> None:
        """After an output was written, in a writer's thread.

        Raises:
            ImageError: it does not go.
        """

    def finished(self, result: Result) -> Result:
        """After all is done for a job; the result as it is to be told."""
        return result

    def end(self, manifests: Sequence[Manifest]) -> None:
        """At the end of a run that is alone in its output."""
