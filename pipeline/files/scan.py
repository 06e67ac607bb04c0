"""Inputs on the command line → jobs: which file is read, where its result goes.

Rules:
    * An input is a folder (with its sub-folders), a file, or else a glob pattern.
    * Without an output folder, results go beside the input: folder `imgs` → `imgs-denoised/…`, file
      or glob match `a.png` → `a-denoised.png`.
    * With an output folder, a folder's tree is mirrored in it, glob matches are mirrored from the
      pattern's fixed part, and single files go in by name. If the output has an image suffix, is
      not a folder, and there is one single file, that file is written to exactly this path.
    * The suffix is kept; formats that cannot be written become `.png`.
    * Sources that would share an output, or whose output would be another's folder, are told apart,
      on every system also those whose outputs would meet where case and Unicode's normal forms do
      not count (macOS, exFAT, SMB). First, those whose suffix changes keep the old one too (`a.gif`
      → `a.gif.png` beside `a.png`). Then those of different inputs go into a folder named after
      their input (`out/monday/a.png`, `out/tuesday/a.png`). Then they are numbered.
    * A list of files (`listed.py`) is of paths below the one input, a folder, or else below the
      current one; what it names is mirrored in the output as the folder's tree is, an absolute path
      without its root. With neither input nor output, each name is an input, but never a pattern.
      What it names and cannot be found is a job that fails. Outputs of earlier runs are left out.
    * Of image files that are not read (`kinds.py`), folders and globs tell the names.
    * A folder below an input that cannot be listed is a job that fails.
    * Folders and globs skip hidden files and folders, `denoise-preview.png`, the output folder, and
      what an earlier run wrote (`x-denoised` beside `x`; `x` with the given suffix, if this run's
      outputs go beside their inputs). Linked files are read, linked folders are not entered. An
      input that is another input's default output is skipped too.
    * Each file is processed once, for the first input that holds it; within an input, in natural
      order (`a2` before `a10`).
"""

import logging
import os
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from denoise_batch.kernels.errors import NoImagesError, OptionError

from ..text import printable
from .images import READABLE_SUFFIXES, WRITABLE_SUFFIXES, output_format, output_suffix
from .kinds import kind_of_name, passed_over_line
from .listed import FileList

logger = logging.getLogger("denoise_batch.files")

OUTPUT_MARK = "-denoised"
PREVIEW = "denoise-preview"  # the stem of what `--preview` writes
_MARKS = frozenset({OUTPUT_MARK})


@dataclass(frozen=True)
class OutputNaming:
    """How outputs are named.

    Attributes:
        suffix: added to every output's stem; "" adds `OUTPUT_MARK` beside an input, else nothing.
        extension: every output's extension, with its dot; None keeps the source's if it can be
            written.
    """

    suffix: str = ""
    extension: str | None = None

    @property
    def mark(self) -> str:
        """How the stem of an output beside its source ends."""
        return self.suffix or OUTPUT_MARK

    def output_name(self, name: str, ending: str) -> str:
        """The name of a source's output, by that of the source, with this ending on its stem."""
        stem, suffix = _split_suffix(name)
        return f"{stem}{ending}{self.extension or _output_suffix(suffix)}"


DEFAULT_NAMING = OutputNaming()


@dataclass(frozen=True)
class Job:
    """One file to process.

    Attributes:
        source: the file to read.
        output: the file to write; distinct for every job, never a source.
        name: the source relative to its input, with forward slashes; not always unique if there
            are several inputs.
        root: the output folder that contains `output`, at any depth.
        fault: why it fails before it is begun: its source cannot be listed.
    """

    source: Path
    output: Path
    name: str
    root: Path
    fault: str = ""

    @property
    def canonical_path(self) -> str:
        """The source's path or URL, the same however it was spelled."""
        return self.source_name if "://" in self.source_name else canonical_path(self.source)

    @property
    def source_name(self) -> str:
        """What to call the source: its path."""
        return str(self.source)

    @property
    def output_name(self) -> str:
        """What to call the output: its path."""
        return str(self.output)


class FileStat(NamedTuple):
    """Size and times of a file: whether it may have changed, without reading it.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last modification.
        ctime_ns: time of the last change of the file or its inode; 0 if unknown, as of objects.
        inode: number of the file; 0 if unknown.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, path: Path | str) -> "FileStat":
        """Stat a file.

        Raises:
            OSError: it does not exist.
        """
        return cls.from_status(os.stat(path))  # noqa: PTH116 (a `Path` costs as much as the call)

    @classmethod
    def from_status(cls, status: os.stat_result) -> "FileStat":
        """What `os.stat` said, as far as it shows a change."""
        inode = status.st_ino & 0xFFFF_FFFF_FFFF_FFFF  # ReFS has longer ones
        mtime_ns, ctime_ns = map(_in_64_bits, (status.st_mtime_ns, status.st_ctime_ns))
        return cls(status.st_size, mtime_ns, ctime_ns, inode)

    @classmethod
    def of_source(cls, job: Job) -> "FileStat":
        """Stat a job's source; two files of one size and time that swap names differ too.

        Raises:
            OSError: it does not exist.
        """
        stat = cls.of(job.source)
        return stat.of_object if "://" in job.source_name else stat

    @property
    def of_object(self) -> "FileStat":
        """Without what is new each time that an object is shown as a file."""
        return self._replace(ctime_ns=0, inode=0)


def _in_64_bits(time_ns: int) -> int:
    """A time, or the nearest one between 1677 and 2262; file systems have others."""
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))


@dataclass(frozen=True)
class Candidate:
    """A source and where its output would go, before collisions are resolved.

    Attributes:
        source: the file to read.
        root: the output folder.
        relative: the output's path in `root`.
        name: the source relative to its input, with forward slashes.
        input_name: the name of the input's folder.
        is_passed_over: a folder or pattern holds it, but it is of a kind that is not read.
        fault: of a folder, why it cannot be listed.
    """

    source: Path
    root: Path
    relative: Path
    name: str
    input_name: str
    is_passed_over: bool = False
    fault: str = ""

    @property
    def input(self) -> Path:
        """The folder that `name` is relative to."""
        return self.source.parents[self.name.count("/")]


def scan(
    inputs: Sequence[Path | str],
    output: Path | None,
    *,
    recursive: bool = True,
    naming: OutputNaming = DEFAULT_NAMING,
    listed: FileList | None = None,
    on_passed_over: Callable[[str], None] = lambda name: None,
) -> list[Job]:
    """List the jobs of a run, in the order of the inputs, by the rules above.

    Args:
        inputs: folders, files and glob patterns.
        output: where the outputs go; None puts them beside the input.
        recursive: whether sub-folders are searched.
        naming: how outputs are named.
        listed: the files to read; None: all that the inputs hold.
        on_passed_over: called with the name of each image file of a kind that is not read.

    Raises:
        OptionError: an input is missing or unreadable, or the output would overwrite an input.
        NoImagesError: there is nothing to do.
    """
    if listed is None:
        everything = [
            item for text in inputs for item in _candidates(text, output, recursive, naming)
        ]
    else:
        everything = _of_list(listed, inputs, output, recursive, naming)
        inputs = (*inputs, f"--files-from {listed.name}")
    faulty = {item.source: item for item in everything if item.fault}
    found = [item for item in everything if not item.fault and not item.is_passed_over]
    names = _names_passed_over(everything, found)
    for name in names:
        on_passed_over(name)
    if output is not None and _is_exact(inputs if listed is None else (), output, naming):
        found = [replace(found[0], root=output.parent, relative=Path(output.name))]
    # A folder is one root, however it is spelled.
    first: dict[Path, Path] = {}
    roots = {
        root: first.setdefault(real_path(root), root)
        for root in dict.fromkeys(item.root for item in found)
    }
    found = [
        item if roots[item.root] is item.root else replace(item, root=roots[item.root])
        for item in found
    ]
    sources = canonical_paths(item.source for item in found)
    by_source = dict(zip(reversed(sources), reversed(found), strict=True))
    found = [by_source[path] for path in dict.fromkeys(sources)]
    if output is None:
        own = set(canonical_paths(item.root / item.relative for item in found))
        pairs = zip(found, dict.fromkeys(sources), strict=True)
        found = [item for item, path in pairs if path not in own]
    if not found and not faulty:
        given = ", ".join(str(text) for text in inputs) or "no input"
        suffixes = " ".join(sorted(READABLE_SUFFIXES))
        more = f"; {passed_over_line(names)}" if names else ""
        raise NoImagesError(
            f"{given}: no images found; looked for files with suffix {suffixes}{more}"
        )
    outputs = _distinct_outputs(found)
    _refuse_overwriting([item.source for item in found], outputs)
    jobs = [
        Job(item.source, path, item.name, item.root)
        for item, path in zip(found, outputs, strict=True)
    ]
    for item in faulty.values():
        root = first.get(real_path(item.root), item.root)
        jobs.append(Job(item.source, root / item.relative, item.name, root, item.fault))
    return jobs


def look(
    inputs: Sequence[Path | str], output: Path | None, *, recursive: bool = True
) -> dict[str, bytes | None]:
    """List what the inputs hold, quickly: `scan` finds the same jobs while the names are the same.

    Returns:
        Path → size, times and inode in bytes, the first half of which also tells of objects; None
        for what is not read or cannot be looked at. A folder that cannot be listed has none (b"").
    """
    found: dict[str, bytes | None] = {}
    for path in map(Path, inputs):
        base, pattern = (path, "") if _is(path.exists) else split_pattern(path)
        inside = _strictly_inside(output, base)
        with suppress(OSError, ValueError, RecursionError):  # `scan` says what is wrong
            for match in base.glob(pattern) if pattern else [path]:
                if match.is_dir():
                    _look_below(str(match), inside, recursive, found)
                else:
                    found[str(match)] = None
                    found[str(match)] = _packed(match.stat())
    return found


def _look_below(
    folder: str, inside: Path | None, recursive: bool, found: dict[str, bytes | None]
) -> None:
    open_folders = [folder]
    while open_folders:
        here = open_folders.pop()
        if inside is not None and real_path(Path(here)).is_relative_to(inside):
            continue
        lead = os.path.join(here, "")  # noqa: PTH118
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    stat = None
                    with suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            if recursive:
                                open_folders.append(lead + name)
                        elif _is_read(name):
                            stat = _packed(entry.stat())
                    found[lead + name] = stat
            found[lead] = None
        except OSError:
            found[here] = b""


def output_folders(inputs: Sequence[Path | str], output: Path | None) -> list[Path]:
    """The output folders of these inputs, each once; the inputs may be empty.

    Raises:
        OptionError: there is no `output`, and an input does not exist.
    """
    folders = [] if inputs or output is None else [output]
    for path in map(Path, inputs):
        is_file = _is(path.is_file)
        if output is not None:
            is_exact = (
                is_file and output.suffix.lower() in READABLE_SUFFIXES and not _is(output.is_dir)
            )
            folders.append(output.parent if is_exact else output)
        elif is_file:
            folders.append(path.parent)
        elif _is(path.is_dir):
            folders.append(_beside(path))
        else:
            base, pattern = split_pattern(path)
            if not pattern or not _is(base.is_dir):
                raise OptionError(f"{path}: no such file or folder; check the path")
            try:
                for match in base.glob(pattern):
                    folders.append(_beside(match) if _is(match.is_dir) else match.parent)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"{path}: {error}; correct the pattern") from error
    return list({real_path(folder): folder for folder in reversed(folders)}.values())[::-1]


def images_below(folder: Path) -> list[str]:
    """The names, below a folder, of its images that are not hidden; other outputs' too."""
    found: dict[str, bytes | None] = {}
    _look_below(str(folder), None, True, found)
    lead = len(os.path.join(folder, ""))  # noqa: PTH118
    return sorted(Path(path[lead:]).as_posix() for path, stat in found.items() if stat)


def _packed(status: os.stat_result) -> bytes:
    """A `FileStat` that garbage collection need not look at, which takes as long as a look."""
    return _STAT.pack(*FileStat.from_status(status))


_STAT = struct.Struct("<QqqQ")


def _names_passed_over(everything: Sequence[Candidate], found: Sequence[Candidate]) -> list[str]:
    """Names of the files that are passed over, and are not also inputs of their own."""
    passed_over = [item for item in everything if item.is_passed_over and not item.fault]
    if not passed_over:
        return []
    taken = set(canonical_paths(item.source for item in found))
    paths = canonical_paths(item.source for item in passed_over)
    return [
        item.name
        for path, item in dict(zip(paths, passed_over, strict=True)).items()
        if path not in taken
    ]


def _is_exact(inputs: Sequence[Path | str], output: Path, naming: OutputNaming) -> bool:
    """Whether the output names the one file to write; refused if it names a file and cannot."""
    try:
        if output.is_dir():
            return False
    except OSError as error:
        raise OptionError(f"--output {output}: {error.strerror}; name another folder") from error
    suffix = output.suffix.lower()
    if len(inputs) == 1 and Path(inputs[0]).is_file() and suffix in READABLE_SUFFIXES:
        if suffix not in WRITABLE_SUFFIXES:
            raise OptionError(f"--output {output}: {suffix} cannot be written; use .png or .tif")
        named = naming.extension or suffix
        if naming.suffix or output_format(Path("x" + named)) != output_format(output):
            raise OptionError(
                f"--output {output}: already names the file; leave out --format and --suffix"
            )
        return True
    if output.exists() or suffix in READABLE_SUFFIXES:
        raise OptionError(f"--output {output}: is a file; name a folder for these inputs")
    return False


def _candidates(
    text: Path | str, output: Path | None, recursive: bool, naming: OutputNaming
) -> list[Candidate]:
    """The candidates of one input: a folder, a file or a glob pattern."""
    path = Path(text)
    try:
        if path.is_dir():
            return _of_folder(path, output, recursive, naming)
        if path.exists() or path.is_symlink():
            return [_of_file(path, Path(path.name), output, naming)]
        return _of_pattern(text, output, recursive, naming)
    except OSError as error:
        reason = f"{error.strerror}; check the path and its permissions, or leave it out"
        raise OptionError(f"{error.filename or text}: {reason}") from error


def _of_list(
    listed: FileList,
    inputs: Sequence[Path | str],
    output: Path | None,
    recursive: bool,
    naming: OutputNaming,
) -> list[Candidate]:
    """The candidates that a list names; outputs of earlier runs among them are told of."""
    base = Path(inputs[0]) if inputs else None
    if base is not None and not base.is_dir():
        raise OptionError(f"{base}: is no folder, below which {listed.name} could name files")
    if base is not None and output is not None and _is_same_folder(output, base):
        raise OptionError(f"--output {output}: would overwrite the input; name another folder")
    root = output or (base and _beside(base))
    marks = _MARKS if root else _MARKS | {naming.mark}
    inside_of, real_folder = cache(lambda top: _strictly_inside(output, top)), cache(real_path)
    found: list[Candidate] = []
    left_out: list[str] = []
    for item in listed.files:
        path = Path(item.path) if base is None else base / item.path
        top = base or Path(path.anchor)
        below = _below(path, top)
        try:
            if "://" in item.path:
                raise OptionError("is a URL; give what it begins with as INPUT, and list the rest")
            if root and below is None:
                raise OptionError(f"is not below {top.absolute()}; name files there")
            path = top / below if root and below else path
            inside = inside_of(top)
            is_inside = inside is not None and real_folder(path.parent).is_relative_to(inside)
            if is_inside or _is_skipped(path, _is(path.is_dir), None, naming, marks):
                left_out.append(f"{item.where}: {item.path}")
            elif path.is_dir():
                found += (
                    _in_folder(path, top, root, inside, recursive, naming)
                    if root
                    else _of_folder(path, None, recursive, naming)
                )
            elif path.exists() or path.is_symlink():
                relative = below if root and below else Path(path.name)
                found.append(_of_file(path, relative, root, naming))
            else:
                raise OptionError("no such file or folder; check the path")
        except (OptionError, OSError) as error:
            said = f"{error.strerror}; check the path" if isinstance(error, OSError) else error
            fault = f"{item.where}: {item.path}: {said}"
            relative = below or Path(path.name)
            place = root or path.parent
            found.append(Candidate(path, place, relative, relative.as_posix(), "", fault=fault))
    if left_out:
        logger.warning(
            "%s: %d left out, outputs of an earlier run or in the output folder; first: %s",
            listed.name, len(left_out), printable(left_out[0]),
        )  # fmt: skip
    return found


def _below(path: Path, top: Path) -> Path | None:
    """A path relative to a folder, as spelled or else without links; None if it is not below."""
    spelled = path.absolute(), top.absolute()
    for one, folder in (spelled, (real_path(path.parent) / path.name, real_path(top))):
        if ".." not in one.parts and one.is_relative_to(folder):
            return one.relative_to(folder)
    return None


def _of_folder(
    folder: Path, output: Path | None, recursive: bool, naming: OutputNaming
) -> list[Candidate]:
    if output is not None and _is_same_folder(output, folder):
        raise OptionError(f"--output {output}: would overwrite the input; name another folder")
    inside = _strictly_inside(output, folder)
    return _in_folder(folder, folder, output or _beside(folder), inside, recursive, naming)


def _of_pattern(
    text: Path | str, output: Path | None, recursive: bool, naming: OutputNaming
) -> list[Candidate]:
    base, pattern = split_pattern(Path(text))
    if not pattern or not base.is_dir():
        raise OptionError(f"{text}: no such file or folder; check the path")
    try:
        matches = sorted(base.glob(pattern), key=lambda path: _natural(str(path)))
    except RecursionError as error:
        raise OptionError(f"{text}: folders too deep for a pattern; name a folder") from error
    except ValueError as error:
        raise OptionError(f"{text}: {error}; correct the pattern") from error
    inside = _strictly_inside(output, base)
    is_beside = output is None or real_path(output) == real_path(base)
    marks = _MARKS | {naming.mark} if is_beside else _MARKS
    found = []
    for match in matches:
        relative = match.relative_to(base)
        is_folder = _is(match.is_dir)
        if _is_skipped(match, is_folder, inside, naming, marks) or _is_hidden(relative):
            continue
        if is_folder:
            root = output or _beside(match)
            top = base if output else match
            found += _in_folder(match, top, root, inside, recursive, naming)
        elif is_image(match):
            item = _of_file(match, relative, output, naming)
            found.append(replace(item, is_passed_over=not _is_read(match.name)))
    return found


def split_pattern(path: Path) -> tuple[Path, str]:
    """A glob pattern's fixed part, and the rest from its first wildcard; "" without one."""
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    return Path(*parts[:first]), str(Path(*parts[first:])) if first < len(parts) else ""


def _of_file(path: Path, relative: Path, output: Path | None, naming: OutputNaming) -> Candidate:
    name, input_name = relative.as_posix(), path.parent.resolve().name
    if output is not None:
        renamed = relative.with_name(naming.output_name(relative.name, naming.suffix))
        return Candidate(path, output, renamed, name, input_name)
    marked = Path(naming.output_name(path.name, naming.mark))
    return Candidate(path, path.parent, marked, name, input_name)


def _in_folder(
    folder: Path, base: Path, root: Path, inside: Path | None, recursive: bool, naming: OutputNaming
) -> list[Candidate]:
    """The images of a folder, named and mirrored relative to `base`."""
    input_name = base.resolve().name
    faults: dict[Path, str] = {}
    below = folder.relative_to(base)
    found = []
    for name in sorted(_walk(folder, inside, recursive, naming, faults), key=_natural):
        above, slash, last = name.rpartition("/")
        renamed = Path(below, f"{above}{slash}{naming.output_name(last, naming.suffix)}")
        relative = (below / name).as_posix() if below.parts else name
        is_passed_over = not _is_read(last)
        found.append(Candidate(folder / name, root, renamed, relative, input_name, is_passed_over))
    for path, fault in sorted(faults.items()):
        place = path.relative_to(base)
        found.append(Candidate(path, root, place, place.as_posix(), input_name, fault=fault))
    return found


def _walk(
    folder: Path,
    inside: Path | None,
    recursive: bool,
    naming: OutputNaming,
    faults: dict[Path, str],
) -> Iterator[str]:
    """The image files of a folder, at any depth, by their names below it, with forward slashes.

    `faults` gets the folders that are not listed.
    """
    open_folders = [""]
    while open_folders:
        lead = open_folders.pop()
        here = folder / lead
        try:
            with os.scandir(here) as entries:
                listed = [
                    (entry.name, _is(entry.is_dir), _is(entry.is_symlink))
                    for entry in entries
                    if entry.name[0] != "."
                ]
        except OSError as error:
            if not lead:
                raise OptionError(
                    f"{here}: cannot be listed: {error.strerror}; "
                    "correct its permissions or leave it out"
                ) from error
            if not isinstance(error, FileNotFoundError):  # removed while we looked
                mend = "correct its permissions, or move it"
                faults[here] = f"{here}: cannot be listed: {error.strerror}; {mend}"
            continue
        for name, is_folder, is_link in listed:
            if is_folder:
                # Linked folders are not entered.
                is_entered = recursive and not is_link
                if is_entered and not _is_skipped(here / name, True, inside, naming):
                    open_folders.append(f"{lead}{name}/")
            elif _is_named_as_image(name) and not _is_ours(here, name, naming, _MARKS):
                yield lead + name


def _is(ask: Callable[[], bool]) -> bool:
    """What `Path.is_dir` and the like answer; False where it cannot be told."""
    try:
        return ask()
    except OSError:
        return False


def _split_suffix(name: str) -> tuple[str, str]:
    """A file name's stem and suffix, as `Path` has them."""
    at = name.rfind(".")
    return (name[:at], name[at:]) if 0 < at < len(name) - 1 else (name, "")


@cache
def _output_suffix(suffix: str) -> str:
    return output_suffix(Path("x" + suffix))


def _is_read(name: str) -> bool:
    return _split_suffix(name)[1].lower() in READABLE_SUFFIXES


def is_image(path: Path) -> bool:
    """Whether a file is one to read, or one to say of that it is passed over."""
    return _is_named_as_image(path.name)


def _is_named_as_image(name: str) -> bool:
    return _is_read(name) or bool(kind_of_name(Path(name)))


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _is_skipped(
    path: Path,
    is_folder: bool,
    inside: Path | None,
    naming: OutputNaming,
    marks: Set[str] = _MARKS,
) -> bool:
    """Whether a path is in the output folder, or an earlier run's output.

    The names of earlier outputs end with one of `marks`.
    """
    if inside is not None and real_path(path).is_relative_to(inside):
        return True
    if is_folder:
        original = path.name.removesuffix(OUTPUT_MARK)
        return original not in ("", ".", path.name) and _is(path.with_name(original).is_dir)
    return _is_ours(path.parent, path.name, naming, marks)


def _is_ours(folder: Path, name: str, naming: OutputNaming, marks: Set[str]) -> bool:
    """Whether a file is a preview, or the original of one is beside it, by their names."""
    if name == f"{PREVIEW}.png":
        return True
    stem, suffix = _split_suffix(name)
    originals = [stem.removesuffix(mark) for mark in marks if stem.endswith(mark) and stem != mark]
    if not originals:
        return False
    suffixes = [
        read for read in READABLE_SUFFIXES if suffix in {_output_suffix(read), naming.extension}
    ]
    return any(
        _is((folder / (original + ending)).is_file)
        for original in originals
        for ending in ["", *suffixes]
    )


def _is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths name one folder, also if case does not count there."""
    return real_path(one) == real_path(other) or _is(lambda: one.samefile(other))


def _strictly_inside(output: Path | None, folder: Path) -> Path | None:
    """The output, resolved, if it is a folder inside a folder that is read."""
    if output is None or real_path(folder) not in real_path(output).parents:
        return None
    return real_path(output)


def _beside(folder: Path) -> Path:
    named = folder if folder.name not in {"", ".."} else folder.resolve()
    if not named.name:
        raise OptionError(f"{folder}: outputs cannot go beside the root folder; give --output")
    return named.with_name(named.name + OUTPUT_MARK)


def _natural(path: str) -> tuple[list[list[int | str]], str]:
    """A sort key that puts a2 before a10, folder by folder."""
    return [_natural_part(part) for part in path.split("/")], path


@lru_cache(1024)  # for folders
def _natural_part(part: str) -> list[int | str]:
    return [int(run) if run.isdecimal() else run.casefold() for run in _DIGITS.split(part)]


_DIGITS = re.compile(r"(\d+)")


def _distinct_outputs(found: Sequence[Candidate]) -> list[Path]:
    """Each source's output, after renaming those that would share one."""

    def with_old_suffix(item: Candidate) -> Path:
        if item.source.suffix.lower() == item.relative.suffix.lower():
            return item.relative
        ending = item.relative.name.removeprefix(item.source.stem)
        return item.relative.with_name(item.source.name + ending)

    def under_input(item: Candidate) -> Path:
        return item.input_name / with_old_suffix(item)

    outputs = [item.root / item.relative for item in found]
    for rename in (with_old_suffix, under_input):
        meeting = _meeting_names(outputs)
        wanted = Counter(meeting)
        shared = {name for name, count in wanted.items() if count > 1}
        shared |= wanted.keys() & _folders_of(meeting)
        if not shared:
            return outputs
        inputs: dict[str, set[Path]] = {}
        for item, name in zip(found, meeting, strict=True):
            if name in shared:
                inputs.setdefault(name, set()).add(item.input)
        outputs = [
            item.root / rename(item)
            if name in shared and (rename is with_old_suffix or len(inputs[name]) > 1)
            else path
            for item, path, name in zip(found, outputs, meeting, strict=True)
        ]
    meeting = _meeting_names(outputs)
    others, taken = set(meeting), _folders_of(meeting)
    distinct = []
    for path, name in zip(outputs, meeting, strict=True):
        candidate, key, number = path, name, 1
        while key in taken or (number > 1 and key in others):
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
            key = folded(canonical_path(candidate))
        taken.add(key)
        distinct.append(candidate)
    return distinct


def _folders_of(paths: Iterable[str]) -> set[str]:
    """The folders that files need, and those above them."""
    folders: set[str] = set()
    for folder in {os.path.dirname(path) for path in paths}:  # noqa: PTH120 (100 000 paths)
        while folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)  # noqa: PTH120
    return folders


def _meeting_names(paths: Iterable[Path]) -> list[str]:
    """Each path, spelled so that those are equal that are one file on some systems."""
    return [folded(path) for path in canonical_paths(paths)]


def folded(path: str) -> str:
    """Caseless matching as Unicode defines it (D145)."""
    if path.isascii():
        return path.lower()
    decomposed = unicodedata.normalize("NFD", path).casefold()
    return unicodedata.normalize("NFC", decomposed)


def _refuse_overwriting(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuse outputs that would replace a file that is read.

    Raises:
        OptionError: there is one.
    """
    read = set(canonical_paths(sources))
    read |= {os.path.normcase(real_path(path)) for path in sources if os.path.islink(path)}  # noqa: PTH114
    for path, canonical in zip(outputs, canonical_paths(outputs), strict=True):
        if canonical in read:
            raise OptionError(f"{path}: the output would overwrite the input; name another folder")


def canonical_path(path: Path) -> str:
    """The absolute path, spelled so that equal paths compare equal; a link as last part stays."""
    return os.path.normcase(real_path(path.parent) / path.name)


def canonical_paths(paths: Iterable[Path]) -> list[str]:
    """`canonical_path` of each; every folder is resolved once."""

    @cache
    def resolved(folder: str) -> str:
        return os.path.join(os.path.realpath(folder), "")  # noqa: PTH118

    parts = (os.path.split(path) for path in paths)
    return [os.path.normcase(resolved(folder) + name) for folder, name in parts]


def real_path(path: Path) -> Path:
    """Absolute and without links as far as possible; `Path.resolve` raises where they loop."""
    return Path(os.path.realpath(path))
