"""The main job: folders of noisy images in, the same folders denoised out."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from denoise_batch.kernels import ImageError, NoImagesError, OptionError
from denoise_batch.kernels.errors import StorageError

from ..files.atomic import remove_abandoned
from ..files.images import read_head, read_pages
from ..files.listed import read_list
from ..files.scan import FileStat, Job, canonical_paths, look, real_path, scan
from ..options import DenoiseOptions
from ..progress import Progress, Stop
from .estimate import estimate, keep_speed, last_speed
from .large import on_disk_if_large
from .manifest import (
    FOLDER,
    Entry,
    Manifest,
    Storage,
    is_cut_from,
    is_left_of,
    locked,
    sha256_of,
)
from .result import Estimate, Plan, Result, Summary
from .stream import Engine, LocalEngine

_WORTH_MEASURING = 100.0  # megapixels; the measurement takes half of one
MOST_FAULTS = 10  # of the output or a store, in a row
UNCHANGED = "done before"
FOREIGN = "exists"
CHANGED = "changed since it was written"


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
        self._manifests: dict[Path, Manifest] = {}
        self._tidied: set[Path] = set()  # output folders
        self._faulty: list[Job] = []
        self._looked: dict[str, bytes | None] | None = None
        self._is_listed = False  # since the last look
        self._jobs: list[Job] | None = None  # of the last look

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def look(self) -> dict[str, bytes | None]:
        """List the inputs, so that `jobs` need not if no name came or went since the last look.

        Returns:
            What `files.scan.look` does, for paths on this machine.

        Raises:
            OptionError: an input does not exist.
        """
        self._faulty = self.storage.refresh(self.options)
        self._is_listed = True
        found = look(self.options.inputs, self.options.output, recursive=self.options.recursive)
        if self._looked is None or found.keys() != self._looked.keys():
            self._jobs = None
        self._looked = found
        return found

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
        if not self._is_listed:
            self._faulty = self.storage.refresh(options)
        elif self._jobs is not None and not self._faulty:
            return self._jobs
        self._is_listed = False
        if listed is not None:
            named = {item.path for item in listed.files}
            self._faulty = [job for job in self._faulty if job.name in named]
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
            if not self._faulty:
                raise
        self._passed_over = tuple(passed_over)
        self._scanned = [*self.storage.named(jobs), *self._faulty]
        self._jobs = of_shard(self._scanned, *options.shard)
        return self._jobs

    def plan(self, jobs: Sequence[Job], stop: Stop | None = None) -> Plan:
        """Plan a run without writing anything; images whose heads tell that they fail do so."""
        stop = Stop() if stop is None else stop
        plan = self._plan(jobs, self._read_manifests(jobs), stop, is_timed=True)
        failing = []
        for job in plan.jobs:
            if stop:
                break
            if "://" not in job.source_name:
                try:
                    read_head(job.source)
                except ImageError as error:
                    failing.append(Result(job, "failed", str(error)))
        bad = {result.job for result in failing}
        todo = tuple(job for job in plan.jobs if job not in bad)
        return replace(plan, jobs=todo, skipped=(*plan.skipped, *failing))

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
        damaged: set[Job] = set()

        def record(result: Result) -> None:
            if result.job in damaged:
                note = f"{result.job.name}: its output was damaged, and was made again"
                if result.status == "done":
                    result = replace(result, notes=(note, *result.notes))
            results[result.job] = result
            ending.count(result)
            progress.on_result(result)

        with ExitStack() as locks:
            for root in dict.fromkeys(job.root for job in jobs):
                locks.enter_context(locked(root, self._part))
            manifests = self._read_manifests(jobs)
            for manifest in manifests.values():
                manifest.compact(lambda name: is_in_shard(name, *self.options.shard))
            same: dict[Job, Entry] = {}
            plan = self._plan(jobs, manifests, ending, same.__setitem__, damaged.add)
            for root, manifest in manifests.items():
                if entries := [entry for job, entry in same.items() if job.root == root]:
                    manifest.restamp(entries)
                if root not in self._tidied:
                    self._tidied.add(root)
                    _tidy(root, manifest, self._scanned)
            progress.on_start(plan)
            for result in plan.skipped:
                record(result)
            if plan.jobs:
                for root in manifests:
                    self.storage.check(root)
            todo, rest = plan.jobs, plan.rest
            while todo and not ending:
                with closing(self.engine.run(todo, manifests, progress, ending)) as finished:
                    for result in finished:
                        record(self.storage.finish(result))
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

    def _read_manifests(self, jobs: Sequence[Job]) -> dict[Path, Manifest]:
        """The manifests of the jobs' output folders; those of the last run, if still true."""
        manifests = {}
        for root in {job.root for job in jobs}:
            manifest = self._manifests.get(root)
            if manifest is None or not manifest.is_current():
                manifest = self.storage.manifest(root, self._part)
            manifests[root] = self._manifests[root] = manifest
        return manifests

    def _plan(
        self,
        jobs: Sequence[Job],
        manifests: Mapping[Path, Manifest],
        stop: Stop,
        on_same: Callable[[Job, Entry], None] = lambda job, entry: None,
        on_damaged: Callable[[Job], None] = lambda job: None,
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
            stop=stop,
            on_same=on_same,
            on_damaged=on_damaged,
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
    def is_at_once(self) -> bool:  # type: ignore[override]
        """After it gave up: what is in flight would fail too, each after many tries."""
        return bool(self.gave_up)

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
    names = (job.output.relative_to(job.root).as_posix() for job in jobs)
    return [job for job, name in zip(jobs, names, strict=True) if is_in_shard(name, number, shards)]


def is_in_shard(output: str, number: int, shards: int) -> bool:
    """Whether an output, by its name below its folder, belongs to a shard."""
    digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) % shards == number - 1


def split(
    jobs: Sequence[Job],
    scanned: Iterable[Job],
    manifests: Mapping[Path, Manifest],
    run: tuple[str, str],
    is_gone: Callable[[str], bool],
    *,
    overwrite: bool,
    stop: Stop,
    on_same: Callable[[Job, Entry], None] = lambda job, entry: None,
    on_damaged: Callable[[Job], None] = lambda job: None,
) -> tuple[list[Job], list[Result]]:
    """Return the jobs to do, and the results of those not to do; what `stop` cuts off is neither.

    An output is skipped if an earlier run made it from the same input with the same weights and
    options, or if no run made it. It is made anew if its input, the weights or an option changed.
    One that is not what was written is made anew if that is damage: it cannot be read, and what is
    there is left of what was written. Otherwise somebody changed it, and it is skipped, as `dpkg`
    keeps changed configuration files. Another image's output is never overwritten: the job fails,
    unless that image no longer exists, or was also scanned in this run, in the same folder, and now
    maps to a different output.

    Args:
        jobs: of the run; those with a fault fail.
        scanned: all that the run found, in any shard.
        manifests: of every output folder.
        run: digests of weights and options.
        is_gone: whether a canonical path no longer exists.
        overwrite: skip nothing.
        stop: ends the search, also in the midst of a file.
        on_same: called with the new entry of each source or output that has another stat than the
            old one says, and the same bytes.
        on_damaged: called with each job whose output is damaged.
    """
    done = [Result(job, "failed", job.fault) for job in jobs if job.fault]
    jobs = [job for job in jobs if not job.fault]

    @cache
    def leads_out(folder: Path, root: Path) -> bool:
        return not real_path(folder).is_relative_to(real_path(root))

    out = [job for job in jobs if leads_out(job.output.parent, job.root)]
    for job in out:
        reason = f"{job.output.parent}: leads out of {job.root} by a link; remove it, or give "
        done.append(Result(job, "failed", f"{job.output}: {reason}another --output"))
    if out:
        jobs = [job for job in jobs if not leads_out(job.output.parent, job.root)]
    if overwrite:
        return jobs, done

    @cache  # slow for many images, and seldom needed
    def paths() -> Set[str]:
        return {job.canonical_path for job in scanned}

    def result_of(job: Job, path: str) -> Result | None:
        manifest = manifests[job.root]
        place = job.source_name if "://" in job.source_name else path
        entry, is_damaged = manifest.made_of(job.output, stop.__bool__), False
        if stop:
            return None
        if entry is None and _is_folder(job.output):
            reason = "a folder has the output's name; move it, or give another --output"
            return Result(job, "failed", f"{job.output}: {reason}")
        if entry is None and (known := manifest.entries(job.output)) and _exists(job.output):
            is_damaged = _is_damaged(manifest, job.output, known)
            if not is_damaged:
                return _changed(job)
            entry = known[-1]
        elif reason := _reason_to_skip(job, place, manifest, entry, run, stop, on_same):
            return Result(job, "skipped", reason)
        if entry and _is_of_another(entry, place, paths) and not is_gone(entry.source):
            taken = f"{job.output}: is the output of {entry.source}"
            return Result(job, "failed", f"{taken}; give another --output, or --overwrite")
        if is_damaged:
            on_damaged(job)
        elif entry and not manifest.is_unchanged(job.output, entry):
            return _changed(job)
        return None

    todo = []
    for job, path in zip(jobs, canonical_paths(job.source for job in jobs), strict=True):
        result = result_of(job, path)
        if stop:  # the last file may not have been read to its end
            break
        if result is None:
            todo.append(job)
        else:
            done.append(result)
    return todo, done


def _changed(job: Job) -> Result:
    note = (
        f"{job.name}: its output was changed after it was written, and is left as it is; delete it "
        "or give --overwrite to make it again"
    )
    return Result(job, "skipped", CHANGED, notes=(note,))


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError:
        return False  # writing will say what is wrong


def _is_folder(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _is_damaged(manifest: Manifest, output: Path, known: Sequence[Entry]) -> bool:
    """Whether an output is what a crash left of it; another file there is somebody's work."""
    try:
        with manifest.content(output) as path:
            if any(entry.outline and is_cut_from(path, entry) for entry in known):
                return True
            if not any(is_left_of(path, entry) for entry in known):
                return False
            read_pages(path, on_disk_if_large(output.parent))
    except StorageError:
        return False  # no room to look at it
    except ImageError:
        return True
    except OSError:
        pass
    return False


def _tidy(root: Path, manifest: Manifest, jobs: Iterable[Job]) -> None:
    """Delete the temporary files that killed runs left in an output folder, also of gone inputs."""
    remove_abandoned(root / FOLDER)
    sources = {job.source.parent for job in jobs}
    if any(real_path(folder).is_relative_to(real_path(root)) for folder in sources):
        # Much else may be there.
        folders = {job.output.parent for job in jobs if job.root == root}
        for folder in folders | {(root / name).parent for name in manifest.names()}:
            remove_abandoned(folder)
    else:
        remove_abandoned(root, is_recursive=True)


def _is_of_another(entry: Entry, place: str, paths: Callable[[], Set[str]]) -> bool:
    """Whether an output belongs to another image, one without another output in this run."""
    if entry.source in ("", place):
        return False
    is_beside = Path(entry.source).parent == Path(place).parent
    return not (is_beside and entry.source in paths())


def _reason_to_skip(
    job: Job,
    place: str,
    manifest: Manifest,
    entry: Entry | None,
    run: tuple[str, str],
    stop: Stop,
    on_same: Callable[[Job, Entry], None],
) -> str:
    if entry is None:
        return FOREIGN if _exists(job.output) else ""
    if (entry.weights, entry.options) != run:
        return ""
    try:
        stamp = FileStat.of_source(job)
        is_moved = entry.output in manifest.moved
        if entry.source in ("", place) and stamp == entry.source_stamp and not is_moved:
            return UNCHANGED
        if stamp != entry.source_stamp and (
            stamp.size != entry.source_stamp.size
            or sha256_of(job.source, stop.__bool__) != entry.source_sha256
        ):
            return ""
    except OSError:
        return ""  # reading will say what is wrong
    if entry.source == place:
        on_same(job, entry._replace(source_stamp=stamp))
    return UNCHANGED
