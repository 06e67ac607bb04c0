"""What became of one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..files.scan import Job
from ..quality import Quality

STAGES = ("decode", "transfer", "compute", "encode", "measure")


@dataclass(frozen=True)
class Result:
    """What became of one file.

    Attributes:
        job: where it came from and went.
        status: done, failed (see reason) or skipped (see reason).
        reason: why it failed or was skipped.
        size: (width, height) of its first page, once it was read.
        pages: how many pages it has.
        notes: what the user should know of a finished image: something its file could not keep,
            or why there is no PSNR although references were given.
        seconds: by stage (`STAGES`) how long it took; a batch's time is shared out by pixels.
        quality: noise and PSNR before and after, if they were measured.
        is_retried: the network's output was not finite in the asked-for precision, and was made
            again in float32.
        pixels_of_pages: of all pages together, where they differ in size.
    """

    job: Job
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    size: tuple[int, int] | None = None
    pages: int = 1
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    quality: Quality | None = None
    is_retried: bool = False
    pixels_of_pages: int | None = None

    @property
    def pixels(self) -> int:
        """Of all pages, as large as the first unless it is told otherwise."""
        if self.pixels_of_pages is not None:
            return self.pixels_of_pages
        return self.size[0] * self.size[1] * self.pages if self.size else 0
