"""Drop folders: poll for images, and denoise each once it is whole."""

import time
from collections.abc import Callable, Sequence

from denoise_batch.kernels import NoImagesError, OptionError
from denoise_batch.kernels.errors import DenoiseBatchError, StorageError

from ..files.scan import Job
from ..progress import Progress, Stop
from .manifest import FileStat
from .result import Plan, Result, Summary
from .session import Session

_NAP_S = 0.1  # between two looks at `stop`
_LONGEST_PAUSE_S = 300.0  # after faults of the output or a store


def watch(
    session: Session,
    interval_s: float,
    progress: Progress[Plan, Result],
    stop: Stop,
    on_round: Callable[[Summary], None] = lambda summary: None,
    on_error: Callable[[DenoiseBatchError], None] = lambda error: None,
) -> None:
    """Poll every `interval_s` seconds, until `stop`.

    A file is taken once it has not changed between two polls, so that none is read while it is
    still being copied; and again when it changes, also if it failed, or when its output gets
    another name because a later file needs that one. What fails after the first poll may pass, such
    as another run that holds the output: it is reported, and tried again next time. Images that
    failed because the output or a store did (a full disk) come again, after pauses that double from
    the interval to five minutes.

    Args:
        session: the loaded network.
        interval_s: time between two polls.
        progress: receives what each round reports.
        stop: ends the watch, after the files in flight.
        on_round: called with what a round came to, if it had something to do.
        on_error: called with the reason why a round after the first failed, once per reason; and
            with that of a round that gave up.

    Raises:
        OptionError: the first poll failed.
        DeviceError: the device failed.
    """
    told = ""
    seen: dict[str, FileStat] = {}  # by the source's name
    handled: dict[tuple[str, str], FileStat] = {}  # by the names of source and output
    pause_s, pause_ends = interval_s, 0.0
    is_first = True
    while not stop:
        try:
            jobs = _jobs(session)
            stamps = _stamps(jobs)
            ready = [
                job
                for job in jobs
                if (stamp := stamps.get(job.source_name)) is not None
                and stamp == seen.get(job.source_name)
                and stamp != handled.get((job.source_name, job.output_name))
            ]
            seen = stamps
            if ready and time.monotonic() >= pause_ends:
                summary = session.run(ready, progress, stop)
                # Images that the limit or a signal left over come again.
                final = [result.job for result in summary.results if not result.is_storage_fault]
                handled |= {
                    (job.source_name, job.output_name): stamps[job.source_name] for job in final
                }
                if len(final) == len(summary.results):
                    pause_s = interval_s
                else:
                    pause_ends = time.monotonic() + pause_s
                    pause_s = max(interval_s, min(2 * pause_s, _LONGEST_PAUSE_S))
                on_round(summary)
                if summary.gave_up:
                    on_error(StorageError(summary.gave_up))
            told = ""
        except OptionError as error:
            if is_first:
                raise
            if str(error) != told:
                on_error(error)
            told = str(error)
        is_first = False
        until = time.monotonic() + interval_s
        while not stop and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_S))


def _jobs(session: Session) -> Sequence[Job]:
    try:
        return session.jobs()
    except NoImagesError:
        return ()


def _stamps(jobs: Sequence[Job]) -> dict[str, FileStat]:
    stamps = {}
    for job in jobs:
        if job.fault:
            stamps[job.source_name] = FileStat(0, 0)
            continue
        try:
            stamps[job.source_name] = FileStat.of_source(job)
        except OSError:
            continue  # gone again, or unreadable; the next poll tells
    return stamps
