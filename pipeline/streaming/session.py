"""The main job: folders of noisy images in, the same folders denoised out."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..files.atomic import temporary_lead
from ..files.scan import Job, scan
from ..options import DenoiseOptions
from ..progress import Stop
from .engine import choose_engine
from .manifest import Entry, FileStat, Manifest, locked, sha256_of
from .result import STAGES, Result
from .storage import Storage
from .stream import Watcher

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
        return {job.canonical_path for job in scanned}

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


def remove_stale_temp_files(jobs: Iterable[Job]) -> None:
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
    if entry.source in ("", job.canonical_path):
        return False
    is_beside = Path(entry.source).parent == Path(job.canonical_path).parent
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
        stamp = FileStat.of(job.source)
        is_same_file = entry.source in ("", job.canonical_path)
        is_same = (is_same_file and stamp == entry.source_stamp) or (
            stamp.size == entry.source_stamp.size and sha256_of(job.source) == entry.source_sha256
        )
    except OSError:
        return ""  # reading it will say what is wrong
    return UNCHANGED if is_same else ""


@dataclass(frozen=True)
class Start:
    """What a run is going to do.

    Attributes:
        jobs: to be denoised.
        rest: what the limit leaves, of which some take the places of jobs that fail.
        skipped: results of what is not begun: done by earlier runs, or not to be done.
        device: where the network runs.
        precision: of its convolutions: fp32, bf16 or fp16.
        weights: the file.
    """

    jobs: tuple[Job, ...]
    rest: tuple[Job, ...]
    skipped: tuple[Result, ...]
    device: str
    precision: str
    weights: str


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        results: one for every image, in the order of the inputs.
        seconds: from the first read to the last write.
        device: where the network ran.
        weights: the file it was loaded from.
        signal: that ended the run early; images without a result are left for the next run.
        left: images that were left over by a signal or the limit.
    """

    results: tuple[Result, ...]
    seconds: float
    device: str
    weights: str
    signal: int | None = None
    left: int = 0

    @property
    def is_interrupted(self) -> bool:
        """A signal ended the run early."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 6 every file failed, 130 or 143 for SIGINT or SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        failed = sum(result.status == "failed" for result in self.results)
        if failed == 0:
            return 0
        return 6 if failed == len(self.results) else 1

    @property
    def megapixels(self) -> float:
        """Of the images that were denoised."""
        return sum(result.pixels for result in self.results if result.status == "done") / 1e6

    @property
    def stage_seconds(self) -> dict[str, float]:
        """By stage, summed over the images; stages overlap, so the sums exceed `seconds`."""
        return {
            stage: sum(result.seconds.get(stage, 0.0) for result in self.results)
            for stage in STAGES
        }


@dataclass(frozen=True)
class Events:
    """Who is told how a run goes, in the thread that runs it.

    Attributes:
        on_start: told what is going to be done.
        on_result: told of every image as soon as it is done; skipped ones first.
        on_tile: told of every finished tile of a large image: job, tiles done, tiles in all.
    """

    on_start: Callable[[Start], None] = lambda start: None
    on_result: Callable[[Result], None] = lambda result: None
    on_tile: Callable[[Job, int, int], None] = lambda job, done, tiles: None


class Session:
    """A loaded network and where it runs: for one run or, watching folders, for many.

    Args:
        options: of all its runs.
        storage: where files come from and go to; this machine's file systems by default.

    Raises:
        OptionError: an extra is not installed.
        DeviceError: the device is not there.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage | None = None) -> None:
        self.options = options
        self.storage = storage or Storage()
        self._part = "" if options.shard[1] == 1 else "-{}-of-{}".format(*options.shard)
        self.engine = choose_engine(options, self.storage, self._part)
        self._scanned: Sequence[Job] = ()  # in all shards

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def jobs(self) -> list[Job]:
        """The images of this run's shard, in the order of the inputs.

        Raises:
            OptionError: an input that is not there, or an output that would overwrite an input.
            NoImagesError: the inputs hold no image.
        """
        options = self.options
        self.storage.refresh(options)
        jobs = scan(
            options.inputs, options.output, recursive=options.recursive, naming=options.naming
        )
        self._scanned = self.storage.named(jobs)
        return of_shard(self._scanned, *options.shard)

    def plan(self, jobs: Sequence[Job]) -> Start:
        """What `run` would do; nothing is written."""
        return self._plan(jobs, self._manifests(jobs))

    def run(
        self, jobs: Sequence[Job], events: Events | None = None, stop: Stop | None = None
    ) -> Summary:
        """Denoise the jobs' images; one bad image never stops the rest.

        Raises:
            OptionError: another run is writing to the output, or it cannot be made.
            DeviceError: the device failed.
        """
        events = events or Events()
        stop = Stop() if stop is None else stop  # one that is not set is false
        started = time.perf_counter()
        results: dict[Job, Result] = {}

        def record(result: Result) -> None:
            results[result.job] = result
            events.on_result(result)

        def finish(result: Result) -> None:
            record(self.storage.finished(result))

        with ExitStack() as locks:
            for root in dict.fromkeys(job.root for job in jobs):
                locks.enter_context(locked(root, self._part))
            manifests = self._manifests(jobs)
            if not self._part:
                for manifest in manifests.values():
                    manifest.compact()
            start = self._plan(jobs, manifests)
            events.on_start(start)
            for result in start.skipped:
                record(result)
            todo, rest = start.jobs, start.rest
            while todo and not stop:
                remove_stale_temp_files(todo)
                self.engine.run(todo, manifests, Watcher(finish, events.on_tile), stop)
                # Others take the places of those that failed, which would hold up a limit for ever.
                failed = sum(results[job].status == "failed" for job in todo if job in results)
                todo, rest = rest[:failed], rest[failed:]
            if start.jobs and not self._part:
                self.storage.end(list(manifests.values()))
        return Summary(
            tuple(results[job] for job in jobs if job in results),
            time.perf_counter() - started,
            self.engine.device,
            str(self.engine.weights_file),
            stop.signal,
            len(jobs) - len(results),
        )

    def _manifests(self, jobs: Sequence[Job]) -> dict[Path, Manifest]:
        roots = {job.root for job in jobs}
        return {root: self.storage.manifest(root, self._part) for root in roots}

    def _plan(self, jobs: Sequence[Job], manifests: Mapping[Path, Manifest]) -> Start:
        todo, skipped = split(
            jobs,
            self._scanned,
            manifests,
            self.engine.digests,
            self.storage.is_gone,
            overwrite=self.options.overwrite,
        )
        limit = self.options.limit
        return Start(
            tuple(todo[:limit]),
            tuple(todo[limit:] if limit else ()),
            tuple(skipped),
            self.engine.device,
            self.engine.precision,
            str(self.engine.weights_file),
        )


def denoise(
    options: DenoiseOptions, events: Events | None = None, stop: Stop | None = None
) -> Summary:
    """Do what the options say, once.

    Raises:
        OptionError: an input that is not there, or an output that would overwrite an input.
        NoImagesError: the inputs hold no image.
        DeviceError: the device is not there, or failed.
        WeightsError: the weights cannot be used.
    """
    with Session(options) as session:
        return session.run(session.jobs(), events, stop)
