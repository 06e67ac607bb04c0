"""A file between its decoding and its writing, and how it gets there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from denoise_batch.kernels import ImageError

from ..files.images import read_pages
from ..files.picture import Picture
from ..files.scan import Job
from .manifest import Stamp, sha256_of
from .output import Output
from .quality import Noise
from .result import Result


@dataclass(eq=False)
class FileInFlight:
    """A file between its decoding and its writing.

    Attributes:
        job: where it comes from and goes.
        pictures: its pages.
        source: the input's stamp from before it was read.
        source_sha256: of the input.
        held: bytes of the budget.
        noises: of the pages, where the run estimates.
        outputs: of the pages, as far as they are made.
        seconds: by stage.
        notes: what the user should know of it.
        is_retried: some page was made again in float32.
    """

    job: Job
    pictures: tuple[Picture, ...]
    source: Stamp
    source_sha256: str
    held: int
    noises: tuple[Noise, ...] = ()
    outputs: dict[int, Output] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_retried: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first page."""
        height, width = self.pictures[0].layout.size
        return width, height

    @property
    def pixels(self) -> int:
        """Of all pages."""
        sizes = [picture.layout.size for picture in self.pictures]
        return sum(height * width for height, width in sizes)

    @property
    def is_estimable(self) -> bool:
        """Whether the network shall be probed, since an estimate of the error may come of it."""
        return bool(self.noises) and not any(noise.reason for noise in self.noises)

    def count(self, passes: Iterable[dict[str, float]]) -> None:
        """Add the seconds of these passes, stage by stage."""
        for seconds in passes:
            for stage, value in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def note_no_estimate(self, error: Exception) -> None:
        """Say why there are no estimates; a picture is not lost for lack of a number."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        self.notes.append(f"{self.job.name}: its noise could not be estimated: {line}")

    def failed(self, reason: str) -> Result:
        """The result of a file that cannot be finished."""
        return Result(
            self.job, "failed", reason, self.size, len(self.pictures), seconds=self.seconds
        )


@dataclass(frozen=True)
class Page:
    """One page of a file, on its way to the network."""

    file: FileInFlight
    number: int
    is_float32: bool = False

    @property
    def picture(self) -> Picture:
        """As it was decoded."""
        return self.file.pictures[self.number]


def read_pages_of(
    source: Path, reserve: Callable[[int], None]
) -> tuple[Stamp, str, tuple[Picture, ...]]:
    """A file's stamp, digest and pages, all of the same bytes.

    Raises:
        ImageError: it cannot be read, or changed meanwhile.
    """
    try:
        stamp = Stamp.of(source)
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    try:
        pictures = read_pages(source, reserve)
        digest = sha256_of(source)
        is_same = Stamp.of(source) == stamp
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    if not is_same:
        raise ImageError(f"{source}: changed while it was being read; run again when it is whole")
    return stamp, digest, pictures
