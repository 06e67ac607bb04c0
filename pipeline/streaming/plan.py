"""Which jobs a run does: its shard, without what earlier runs did, up to its limit."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..files.atomic import temporary_lead
from ..files.scan import Job
from .manifest import Entry, Manifest, Stamp, sha256_of
from .result import Result

UNCHANGED = "done before"
FOREIGN = "exists"


def of_shard(jobs: Sequence[Job], number: int, shards: int) -> list[Job]:
    """The jobs of one shard of several; each belongs to exactly one, whatever else is there.

    Args:
        jobs: of the whole run.
        number: the shard's, from 1.
        shards: how many there are.
    """
    if shards == 1:
        return list(jobs)

    def shard_of(job: Job) -> int:
        name = job.output.relative_to(job.root).as_posix()
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8])

    return [job for job in jobs if shard_of(job) % shards == number - 1]


def split(
    jobs: Iterable[Job],
    scanned: Iterable[Job],
    manifests: Mapping[Path, Manifest],
    run: tuple[str, str],
    is_gone: Callable[[str], bool],
    *,
    overwrite: bool,
) -> tuple[list[Job], list[Result]]:
    """What is to be done, and the results of what is not.

    An output is skipped that an earlier run made of the same input with the same weights and
    options, and one that no run made. It is made anew if its input, the weights or an option
    changed. Where it is that of another image, which is still there, the job fails: none shall take
    another's place unasked. But an image of the same folder that this run scanned, too, has another
    output by now and needs this one no longer.

    Args:
        jobs: of the run.
        scanned: all that the run found, in whichever shard.
        manifests: of every output folder.
        run: digests of weights and options.
        is_gone: whether nothing stands at a place any more.
        overwrite: skip nothing.
    """
    jobs = list(jobs)
    if overwrite:
        return jobs, []

    @cache  # for many images it takes a while, and it is seldom asked for
    def places() -> Set[str]:
        return {job.place for job in scanned}

    todo, done = [], []
    for job in jobs:
        entry = manifests[job.root].made_of(job.output)
        if reason := _reason_to_skip(job, entry, run):
            done.append(Result(job, "skipped", reason))
        elif entry and _is_of_another(entry, job, places) and not is_gone(entry.source):
            taken = f"{job.output}: is the output of {entry.source}"
            done.append(Result(job, "failed", f"{taken}; give another --output, or --overwrite"))
        else:
            todo.append(job)
    return todo, done


def remove_remains(jobs: Iterable[Job]) -> None:
    """Delete what a killed run left half-written of these outputs."""
    folders: dict[Path, set[str]] = {}
    for job in jobs:
        folders.setdefault(job.output.parent, set()).add(temporary_lead(job.output.name))
    for folder, leads in folders.items():
        with suppress(OSError):
            for path in folder.iterdir():
                match = re.fullmatch(r"(\..+\.)[0-9a-f]{8}\.tmp", path.name, re.DOTALL)
                if match and match[1] in leads:
                    path.unlink()


def _is_of_another(entry: Entry, job: Job, places: Callable[[], Set[str]]) -> bool:
    """Whether an output is of another image, one that has no other output in this run."""
    if entry.source in ("", job.place):
        return False
    is_beside = Path(entry.source).parent == Path(job.place).parent
    return not (is_beside and entry.source in places())


def _reason_to_skip(job: Job, entry: Entry | None, run: tuple[str, str]) -> str:
    if entry is None:
        try:
            return FOREIGN if job.output.exists() or job.output.is_symlink() else ""
        except OSError:
            return ""  # writing it will say what is wrong
    if (entry.weights, entry.options) != run:
        return ""
    try:
        stamp = Stamp.of(job.source)
        is_same_file = entry.source in ("", job.place)
        is_same = (is_same_file and stamp == entry.source_stamp) or (
            stamp.size == entry.source_stamp.size and sha256_of(job.source) == entry.source_sha256
        )
    except OSError:
        return ""  # reading it will say what is wrong
    return UNCHANGED if is_same else ""
