"""What a run will take, before it begins: megapixels, bytes, time.

Cheap for any number of files: of many, a random sample's heads are read, and it is said so. The
time is told by the speed of the last run with the same device, weights and options into the same
folder, or else by that of the network alone.
"""

import json
import math
import os
import random
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from denoise_batch.kernels import ImageError

from ..files.atomic import atomic_write
from ..files.images import read_head
from ..files.scan import Job
from .manifest import FOLDER
from .result import Estimate, Result

MOST_HEADS = 256
_LOOK_S = 1.0  # then fewer heads have to do
_LEAST_HEADS = 16
_LEAST_S = 3.0  # of a run whose speed is kept; a shorter one says little
_MOST_BYTES = 4096  # of the file


@dataclass(frozen=True)
class Speed:
    """Of a run; the names of the fields are those on the disk.

    Attributes:
        run: device, weights and options.
        megapixels_per_second: of everything, from the first read to the last write.
        bytes_ratio: outputs' size by inputs' size.
    """

    run: str
    megapixels_per_second: float
    bytes_ratio: float

    @classmethod
    def of(cls, run: str, results: Sequence[Result], seconds: float) -> "Speed | None":
        """The speed of a run with these results; None if it did nothing to measure."""
        done = [result for result in results if result.status == "done"]
        pixels = sum(result.pixels for result in done)
        sizes = [
            (source.st_size, output.st_size)
            for result in random.Random(0).sample(done, min(len(done), MOST_HEADS))
            if (source := _stat(result.job.source)) and (output := _stat(result.job.output))
        ]
        read = sum(source for source, _ in sizes)
        if not (pixels and seconds and read):
            return None
        written = sum(output for _, output in sizes)
        return cls(run, pixels / 1e6 / seconds, written / read)


def last_speed(root: Path, run: str) -> Speed | None:
    """The speed of the last run like this one into this folder; None if there was none."""
    path = _place(root)
    with suppress(OSError, ValueError, TypeError, RecursionError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_BYTES:
            speed = Speed(**json.loads(path.read_bytes()))
            numbers = speed.megapixels_per_second, speed.bytes_ratio
            if speed.run == run and all(_is_positive(number) for number in numbers):
                return speed
    return None


def keep_speed(root: Path, run: str, results: Sequence[Result], seconds: float) -> None:
    """Keep the speed of a run for the next one, if it tells something and can be kept."""
    if seconds >= _LEAST_S and (speed := Speed.of(run, results, seconds)):
        with suppress(OSError):  # an estimate is no reason to fail
            atomic_write(_place(root), json.dumps(asdict(speed)).encode())


def estimate(
    jobs: Sequence[Job],
    speed: Speed | None,
    measure: Callable[[float], float | None],
    *,
    keeps_format: bool,
) -> Estimate:
    """Estimate what it takes to do these jobs.

    Args:
        jobs: in any order.
        speed: of the last run.
        measure: called with the megapixels if there is no such speed; returns megapixels a second
            of the network, or None.
        keeps_format: outputs have the format of their inputs, and so about their size.
    """
    here = [job for job in jobs if "://" not in job.source_name]  # others would be fetched
    started, looked_at, pixels, sizes = time.monotonic(), 0, [], []
    for job in random.Random(0).sample(here, min(len(here), MOST_HEADS)):
        if looked_at >= _LEAST_HEADS and time.monotonic() - started > _LOOK_S:
            break
        looked_at += 1
        if status := _stat(job.source):
            sizes.append(status.st_size)
        with suppress(ImageError):
            pixels.append(read_head(job.source).pixels)
    if not pixels:
        return Estimate(len(jobs), looked_at)
    megapixels = sum(pixels) / len(pixels) * len(jobs) / 1e6
    read = round(sum(sizes) / len(sizes) * len(jobs))
    rate = speed.megapixels_per_second if speed else measure(megapixels)
    return Estimate(
        len(jobs),
        looked_at,
        megapixels,
        read,
        round(read * (speed.bytes_ratio if speed else 1)) if speed or keeps_format else None,
        megapixels / rate if rate else None,
        "" if not rate else "last run" if speed else "network",
    )


def _place(root: Path) -> Path:
    return root / FOLDER / "speed.json"


def _is_positive(number: object) -> bool:
    return isinstance(number, (int, float)) and number > 0 and math.isfinite(number)


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None
