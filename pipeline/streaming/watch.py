"""Drop folders: poll for images, and denoise each once it is whole."""

import time
from collections.abc import Callable, Mapping, Sequence

from denoise_batch.kernels import NoImagesError, OptionError
from denoise_batch.kernels.errors import DenoiseBatchError, StorageError

from ..files.scan import Job
from ..progress import Progress, Stop
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
    seen: dict[str, bytes | None] = {}  # by the source's path on this machine
    handled: dict[str, tuple[str, bytes]] = {}  # by the same: the output's path, and the stat
    is_waiting = False  # for an image to be done
    pause_s, pause_ends = interval_s, 0.0
    is_first = True
    while not stop:
        try:
            found = session.look()
            jobs = _jobs(session)
            if found != seen or is_waiting:
                waiting = {
                    job: stamp
                    for job in jobs
                    if (stamp := _stamp(job, found)) is not None
                    and handled.get(str(job.source)) != (str(job.output), stamp)
                }
                ready = [job for job, stamp in waiting.items() if stamp == _stamp(job, seen)]
                is_waiting, seen = bool(waiting), found
                if len(handled) > len(jobs):
                    names = {str(job.source) for job in jobs}
                    handled = {name: done for name, done in handled.items() if name in names}
                if ready and time.monotonic() >= pause_ends:
                    summary = session.run(ready, progress, stop)
                    # Images that the limit or a signal left over come again.
                    final = [r.job for r in summary.results if not r.is_storage_fault]
                    handled |= {str(job.source): (str(job.output), waiting[job]) for job in final}
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


def _stamp(job: Job, found: Mapping[str, bytes | None]) -> bytes | None:
    """What a look has found of a job's source; None if it was not there, or unreadable."""
    if job.fault:
        return b"" if found else None
    stamp = found.get(str(job.source))
    return stamp[: len(stamp) // 2] if stamp and "://" in job.source_name else stamp
