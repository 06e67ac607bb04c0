"""What became of one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..files.scan import Job

STAGES = ("decode", "transfer", "compute", "encode")


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
        psnr_in: dB of the input against the reference, if there is one.
        psnr_out: dB of the output.
        is_retried: the network's output was not finite in the asked-for precision, and was made
            again in float32.
    """

    job: Job
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    size: tuple[int, int] | None = None
    pages: int = 1
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    psnr_in: float | None = None
    psnr_out: float | None = None
    is_retried: bool = False

    @property
    def pixels(self) -> int:
        """Of all pages, as large as the first."""
        return self.size[0] * self.size[1] * self.pages if self.size else 0
