"""Drop folders: look again and again, and denoise what has come and is whole."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from denoise_batch.kernels import NoImagesError, OptionError

from ..files.scan import Job
from ..progress import Stop
from .manifest import FileStat
from .session import Events, Session, Summary

_NAP_S = 0.1  # between two looks at `stop`


def watch(
    session: Session,
    interval_s: float,
    events: Events,
    stop: Stop,
    on_round: Callable[[Summary], None] = lambda summary: None,
    on_error: Callable[[OptionError], None] = lambda error: None,
) -> None:
    """Look every `interval_s` seconds, until `stop`.

    A file is taken once it has stayed the same from one look to the next, so that none is read
    while it is still being copied; and again when it has changed, also one that failed, or when
    its output got another name, since a later file wants that one. What fails after the first look
    may pass, such as another run that holds the output: it is told, and tried again next time.

    Args:
        session: what to do.
        interval_s: between two looks.
        events: told how each round goes.
        stop: ends it, after the files in flight.
        on_round: told what a round came to, if it had something to do.
        on_error: told why a round after the first failed; once, while the reason stays the same.

    Raises:
        OptionError: the first look failed.
        DeviceError: the device failed.
    """
    told = ""
    seen: dict[Path, FileStat] = {}
    handled: dict[tuple[Path, Path], FileStat] = {}
    is_first = True
    while not stop:
        try:
            jobs = _jobs(session)
            stamps = _stamps(jobs)
            ready = [
                job
                for job in jobs
                if (stamp := stamps.get(job.source)) is not None
                and stamp == seen.get(job.source)
                and stamp != handled.get((job.source, job.output))
            ]
            seen = stamps
            if ready:
                summary = session.run(ready, events, stop)
                # What the limit or a signal left over comes again.
                done = {(r.job.source, r.job.output): stamps[r.job.source] for r in summary.results}
                handled |= done
                on_round(summary)
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


def _stamps(jobs: Sequence[Job]) -> dict[Path, FileStat]:
    stamps = {}
    for job in jobs:
        try:
            stamps[job.source] = FileStat.of(job.source)
        except OSError:
            continue  # gone again, or not to be read; the next look tells
    return stamps
