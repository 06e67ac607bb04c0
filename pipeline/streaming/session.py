"""The main job: folders of noisy images in, the same folders denoised out."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from denoise_batch.kernels import NoImagesError, OptionError

from ..files.atomic import temporary_lead
from ..files.listed import read_list
from ..files.scan import Job, real_path, scan
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from .estimate import estimate, keep_speed, last_speed
from .manifest import Entry, FileStat, Manifest, Storage, locked, sha256_of
from .result import Estimate, Plan, Result, Summary
from .stream import Engine, LocalEngine

_WORTH_MEASURING = 100.0  # megapixels; the measurement takes half of one
MOST_FAULTS = 10  # of the output or a store, in a row
UNCHANGED = "done before"
FOREIGN = "exists"


def denoise(
    options: DenoiseOptions,
    progress: Progress[Plan, Result] | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Do what the options say, once.

    Raises:
        OptionError: an input does not exist, or an output would overwrite an input.
        NoImagesError: the inputs hold no image.
        DeviceError: the device does not exist, or failed.
        WeightsError: the weights cannot be used.
    """
    with Session(options) as session:
        return session.run(session.jobs(), progress, stop)


class Session:
    """A loaded network and where it runs: for one run or, with `--watch`, for many.

    Args:
        options: of all its runs.
        storage: where files come from and go to; this machine's file systems by default.

    Raises:
        OptionError: an extra is not installed.
        DeviceError: the device does not exist.
        WeightsError: the weights cannot be used.
    """

    def __init__(self, options: DenoiseOptions, storage: Storage | None = None) -> None:
        self.options = options
        self.storage = storage or Storage()
        self._part = "" if options.shard[1] == 1 else "-{}-of-{}".format(*options.shard)
        self.engine = choose_engine(options, self.storage, self._part)
        self._scanned: Sequence[Job] = ()  # in all shards
        self._passed_over: tuple[str, ...] = ()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def jobs(self) -> list[Job]:
        """Find the images of this run's shard, in the order of the inputs.

        Raises:
            OptionError: an input does not exist, or an output would overwrite an input.
            NoImagesError: the inputs hold no image.
        """
        options = self.options
        listed = None
        if options.files_from is not None:
            listed = read_list(options.files_from, null=options.null)
        faulty = self.storage.refresh(options)
        if listed is not None:
            names = {item.path for item in listed.files}
            faulty = [job for job in faulty if job.name in names]
        passed_over: list[str] = []
        jobs: list[Job] = []
        try:
            jobs = scan(
                options.inputs,
                options.output,
                recursive=options.recursive,
                naming=options.naming,
                listed=listed,
                on_passed_over=passed_over.append,
            )
        except NoImagesError:
            if not faulty:
                raise
        self._passed_over = tuple(passed_over)
        self._scanned = [*self.storage.named(jobs), *faulty]
        return of_shard(self._scanned, *options.shard)

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """Plan a run without writing anything."""
        return self._plan(jobs, self._manifests(jobs), is_timed=True)

    def run(
        self,
        jobs: Sequence[Job],
        progress: Progress[Plan, Result] | None = None,
        stop: Stop | None = None,
    ) -> Summary:
        """Denoise the jobs' images; one bad image never stops the rest.

        Raises:
            OptionError: another run is writing to the output, or it cannot be made.
            DeviceError: the device failed.
        """
        progress = progress or Progress()
        ending = _Ending(Stop() if stop is None else stop)  # a Stop that is not set is false
        started = time.perf_counter()
        results: dict[Job, Result] = {}

        def record(result: Result) -> None:
            results[result.job] = result
            ending.count(result)
            progress.on_result(result)

        with ExitStack() as locks:
            for root in dict.fromkeys(job.root for job in jobs):
                locks.enter_context(locked(root, self._part))
            manifests = self._manifests(jobs)
            if not self._part:
                for manifest in manifests.values():
                    manifest.compact()
            same: dict[Job, Entry] = {}
            plan = self._plan(jobs, manifests, same.__setitem__)
            for root, manifest in manifests.items():
                if entries := [entry for job, entry in same.items() if job.root == root]:
                    manifest.restamp(entries)
            progress.on_start(plan)
            for result in plan.skipped:
                record(result)
            if plan.jobs:
                for root in manifests:
                    self.storage.check(root)
            todo, rest = plan.jobs, plan.rest
            while todo and not ending:
                remove_stale_temp_files(todo)
                with closing(self.engine.run(todo, manifests, progress, ending)) as finished:
                    for result in finished:
                        record(self.storage.finish(result))
                        if ending.gave_up:
                            break  # the files in flight would fail too, each after many tries
                # Others replace those that failed, which would block a limit for ever.
                failed = sum(results[job].status == "failed" for job in todo if job in results)
                todo, rest = rest[:failed], rest[failed:]
            if plan.jobs and not self._part:
                self.storage.end(list(manifests.values()))
            seconds = time.perf_counter() - started
            for root in manifests:
                own = [result for job, result in results.items() if job.root == root]
                if len(own) == len(results):  # of several outputs no one has its own time
                    keep_speed(root, self._like, own, seconds)
        return Summary(
            tuple(results[job] for job in jobs if job in results),
            seconds,
            self.engine.device,
            str(self.engine.weights_file),
            ending.signal,
            len(jobs) - len(results),
            self.engine.kernels,
            self._passed_over,
            ending.gave_up,
        )

    def _manifests(self, jobs: Sequence[Job]) -> dict[Path, Manifest]:
        roots = {job.root for job in jobs}
        return {root: self.storage.manifest(root, self._part) for root in roots}

    def _plan(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        on_same: Callable[[Job, Entry], None] = lambda job, entry: None,
        *,
        is_timed: bool = False,
    ) -> Plan:
        todo, skipped = split(
            jobs,
            self._scanned,
            manifests,
            self.engine.digests,
            self.storage.is_gone,
            overwrite=self.options.overwrite,
            on_same=on_same,
        )
        limit = self.options.limit

        def measure(megapixels: float) -> float | None:
            if is_timed or megapixels >= _WORTH_MEASURING:
                return self.engine.megapixels_per_second()
            return None

        def estimated() -> Estimate:
            speeds = [last_speed(root, self._like) for root in manifests]
            return estimate(
                todo[:limit],
                next(filter(None, speeds), None),
                measure,
                keeps_format=self.options.format == "preserve",
            )

        return Plan(
            tuple(todo[:limit]),
            tuple(todo[limit:] if limit else ()),
            tuple(skipped),
            self.engine.device,
            self.engine.precision,
            str(self.engine.weights_file),
            self.engine.kernels,
            self._passed_over,
            estimated,
        )

    @property
    def _like(self) -> str:
        """What runs of one speed have in common."""
        return " ".join((self.engine.device, self.engine.precision, *self.engine.digests))


class _Ending(Stop):
    """Whether a run shall end early: its caller says so, or its output or store keeps failing.

    Args:
        stop: the caller's.

    Attributes:
        gave_up: why the run ends by itself; "" if it does not.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._faults = 0  # since the last image that was done
        self.gave_up = ""

    def count(self, result: Result) -> None:
        """Take notice of a result; unreadable inputs neither count nor interrupt the count."""
        if result.status == "done":
            self._faults = 0
        self._faults += result.is_storage_fault
        if self._faults >= MOST_FAULTS and not self.gave_up:
            self.gave_up = (
                f"the output or a store failed {self._faults} times in a row, last: "
                f"{result.reason}; finished files are kept: run again when it works"
            )

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        """The signal that the caller's has had."""
        return self._stop.signal

    def __bool__(self) -> bool:
        return bool(self._stop) or bool(self.gave_up)


def choose_engine(options: DenoiseOptions, storage: Storage, part: str) -> Engine:
    """Return the engine that the options ask for.

    Args:
        options: of the run.
        storage: where its files come from and go to.
        part: the run's part of the manifest.

    Raises:
        OptionError: an extra is not installed.
        DeviceError: the device or cluster does not exist.
        WeightsError: the weights cannot be used.
    """
    if options.engine == "ray":
        from ..scaling.engines import RayEngine

        return RayEngine(options, storage, part)
    if options.device == "cuda:all":
        from ..scaling.engines import ProcessEngine

        return ProcessEngine(options, storage, part)
    return LocalEngine(options, storage)


@contextmanager
def open_storage(
    inputs: Sequence[str], output: str | None
) -> Iterator[tuple[tuple[str, ...], Path | None, Storage]]:
    """Inputs and output as paths on this machine, and their storage; only URLs import `scaling`.

    Raises:
        OptionError: a URL that cannot be used, or one without an output.
    """
    if output == "":  # which `Path` takes for the current folder
        raise OptionError("--output is empty; name a folder, or leave it out")
    if not has_urls(inputs, output):
        yield tuple(inputs), None if output is None else Path(output), Storage()
        return
    from ..scaling.remote import storage_of

    with storage_of(inputs, output) as mirrored:
        yield mirrored


def has_urls(inputs: Sequence[str], output: str | None) -> bool:
    """Whether an input or the output is a URL."""
    return any("://" in text for text in (*inputs, output or ""))


def of_shard(jobs: Sequence[Job], number: int, shards: int) -> list[Job]:
    """The jobs of one shard; each job belongs to exactly one, whatever other jobs there are.

    Args:
        jobs: of the whole run.
        number: of the shard, from 1.
        shards: number of shards.
    """
    if shards == 1:
        return list(jobs)

    def shard_of(job: Job) -> int:
        name = job.output.relative_to(job.root).as_posix()
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8])

    return [job for job in jobs if shard_of(job) % shards == number - 1]


def split(
    jobs: Sequence[Job],
    scanned: Iterable[Job],
    manifests: Mapping[Path, Manifest],
    run: tuple[str, str],
    is_gone: Callable[[str], bool],
    *,
    overwrite: bool,
    on_same: Callable[[Job, Entry], None] = lambda job, entry: None,
) -> tuple[list[Job], list[Result]]:
    """Return the jobs to do, and the results of those not to do.

    An output is skipped if an earlier run made it from the same input with the same weights and
    options, or if no run made it. It is made anew if its input, the weights or an option changed.
    Another image's output is never overwritten: the job fails, unless that image no longer exists,
    or was also scanned in this run, in the same folder, and now maps to a different output.

    Args:
        jobs: of the run; those with a fault fail.
        scanned: all that the run found, in any shard.
        manifests: of every output folder.
        run: digests of weights and options.
        is_gone: whether a canonical path no longer exists.
        overwrite: skip nothing.
        on_same: called with the new entry of each source that has another stat than the old one
            says, and the same bytes.
    """
    done = [Result(job, "failed", job.fault) for job in jobs if job.fault]
    jobs = [job for job in jobs if not job.fault]

    @cache
    def leads_out(folder: Path, root: Path) -> bool:
        return not real_path(folder).is_relative_to(real_path(root))

    out = [job for job in jobs if leads_out(job.output.parent, job.root)]
    jobs = [job for job in jobs if not leads_out(job.output.parent, job.root)]
    for job in out:
        reason = f"{job.output.parent}: leads out of {job.root} by a link; remove it, or give "
        done.append(Result(job, "failed", f"{job.output}: {reason}another --output"))
    if overwrite:
        return jobs, done

    @cache  # slow for many images, and seldom needed
    def paths() -> Set[str]:
        return {job.canonical_path for job in scanned}

    todo = []
    for job in jobs:
        entry = manifests[job.root].made_of(job.output)
        if reason := _reason_to_skip(job, entry, run, on_same):
            done.append(Result(job, "skipped", reason))
        elif entry and _is_of_another(entry, job, paths) and not is_gone(entry.source):
            taken = f"{job.output}: is the output of {entry.source}"
            done.append(Result(job, "failed", f"{taken}; give another --output, or --overwrite"))
        elif entry and not manifests[job.root].is_unchanged(job.output, entry):
            done.append(Result(job, "skipped", FOREIGN))
        else:
            todo.append(job)
    return todo, done


def remove_stale_temp_files(jobs: Iterable[Job]) -> None:
    """Delete the temporary files that a killed run left of these outputs."""
    folders: dict[Path, set[str]] = {}
    for job in jobs:
        folders.setdefault(job.output.parent, set()).add(temporary_lead(job.output.name))
    for folder, leads in folders.items():
        with suppress(OSError):
            for path in folder.iterdir():
                match = re.fullmatch(r"(\..+\.)[0-9a-f]{8}\.tmp", path.name, re.DOTALL)
                if match and match[1] in leads:
                    path.unlink()


def _is_of_another(entry: Entry, job: Job, paths: Callable[[], Set[str]]) -> bool:
    """Whether an output belongs to another image, one without another output in this run."""
    if entry.source in ("", job.canonical_path):
        return False
    is_beside = Path(entry.source).parent == Path(job.canonical_path).parent
    return not (is_beside and entry.source in paths())


def _reason_to_skip(
    job: Job, entry: Entry | None, run: tuple[str, str], on_same: Callable[[Job, Entry], None]
) -> str:
    if entry is None:
        try:
            return FOREIGN if job.output.exists() or job.output.is_symlink() else ""
        except OSError:
            return ""  # writing will say what is wrong
    if (entry.weights, entry.options) != run:
        return ""
    try:
        stamp = FileStat.of_source(job)
        if entry.source in ("", job.canonical_path) and stamp == entry.source_stamp:
            return UNCHANGED
        if stamp.size != entry.source_stamp.size or sha256_of(job.source) != entry.source_sha256:
            return ""
    except OSError:
        return ""  # reading will say what is wrong
    if entry.source == job.canonical_path:
        on_same(job, replace(entry, source_stamp=stamp))
    return UNCHANGED
