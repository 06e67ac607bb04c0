"""Inputs on the command line → jobs: which file is read, where its result goes.

Rules:
    * An input is a folder (with its sub-folders), a file, or else a glob pattern.
    * Without an output folder, results go beside the input: folder `imgs` → `imgs-denoised/…`, file
      or glob match `a.png` → `a-denoised.png`.
    * With an output folder, a folder's tree is mirrored in it, glob matches are mirrored from the
      pattern's fixed part, and single files go in by name. If the output has an image suffix, is
      not a folder, and there is one single file, that file is written to exactly this path.
    * The suffix is kept; formats that cannot be written become `.png`.
    * Sources that would share an output are told apart, on every system also those whose outputs
      would meet where case and Unicode's normal forms do not count (macOS, exFAT, SMB). First,
      those whose suffix changes keep the old one too (`a.gif` → `a.gif.png` beside `a.png`). Then
      those of different inputs go into a folder named after their input (`out/monday/a.png`,
      `out/tuesday/a.png`). Then they are numbered.
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
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

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

    def output_name(self, source: Path, ending: str) -> str:
        """The name of a source's output, with this ending added to its stem."""
        return f"{source.stem}{ending}{self.extension or output_suffix(source)}"


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
    everything = [item for item in everything if not item.fault]
    found = [item for item in everything if not item.is_passed_over]
    taken = {real_path(item.source) for item in found}
    passed_over = {real_path(item.source): item for item in everything if item.is_passed_over}
    names = [item.name for path, item in passed_over.items() if path not in taken]
    for name in names:
        on_passed_over(name)
    if output is not None and _is_exact(inputs if listed is None else (), output, naming):
        found = [replace(found[0], root=output.parent, relative=Path(output.name))]
    # A folder is one root, however it is spelled.
    roots = {real_path(item.root): item.root for item in reversed(found)}
    found = [replace(item, root=roots[real_path(item.root)]) for item in found]
    canonical = canonical_paths(
        path for item in found for path in (item.source, item.root / item.relative)
    )
    first = {canonical[item.source]: item for item in reversed(found)}
    found = [item for item in found if first[canonical[item.source]] is item]
    if output is None:
        own = {canonical[item.root / item.relative] for item in found}
        found = [item for item in found if canonical[item.source] not in own]
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
        root = roots.get(real_path(item.root), item.root)
        jobs.append(Job(item.source, root / item.relative, item.name, root, item.fault))
    return jobs


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
            if is_inside or _is_skipped(path, Path("x"), None, naming, marks):
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
        matches = sorted(base.glob(pattern), key=_natural)
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
        if _is_skipped(match, relative, inside, naming, marks):
            continue
        if _is(match.is_dir):
            root = output or _beside(match)
            top = base if output else match
            found += _in_folder(match, top, root, inside, recursive, naming)
        elif is_image(match):
            item = _of_file(match, relative, output, naming)
            found.append(replace(item, is_passed_over=not _is_read(match)))
    return found


def split_pattern(path: Path) -> tuple[Path, str]:
    """A glob pattern's fixed part, and the rest from its first wildcard; "" without one."""
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    return Path(*parts[:first]), str(Path(*parts[first:])) if first < len(parts) else ""


def _of_file(path: Path, relative: Path, output: Path | None, naming: OutputNaming) -> Candidate:
    name, input_name = relative.as_posix(), path.parent.resolve().name
    if output is not None:
        renamed = relative.with_name(naming.output_name(relative, naming.suffix))
        return Candidate(path, output, renamed, name, input_name)
    marked = Path(naming.output_name(path, naming.mark))
    return Candidate(path, path.parent, marked, name, input_name)


def _in_folder(
    folder: Path, base: Path, root: Path, inside: Path | None, recursive: bool, naming: OutputNaming
) -> list[Candidate]:
    """The images of a folder, named and mirrored relative to `base`."""
    input_name = base.resolve().name
    faults: dict[Path, str] = {}
    found = [
        Candidate(path, root, renamed, relative.as_posix(), input_name, not _is_read(path))
        for path in sorted(_walk(folder, inside, recursive, naming, faults), key=_natural)
        for relative in [path.relative_to(base)]
        for renamed in [relative.with_name(naming.output_name(relative, naming.suffix))]
    ]
    for path, fault in sorted(faults.items()):
        relative = path.relative_to(base)
        found.append(Candidate(path, root, relative, relative.as_posix(), input_name, fault=fault))
    return found


def _walk(
    folder: Path,
    inside: Path | None,
    recursive: bool,
    naming: OutputNaming,
    faults: dict[Path, str],
) -> Iterator[Path]:
    """The image files of a folder, at any depth; `faults` gets the folders that are not listed."""
    open_folders = [folder]
    while open_folders:
        here = open_folders.pop()
        relative = here.relative_to(folder)
        try:
            with os.scandir(here) as entries:
                listed = [(entry.name, _is(entry.is_dir)) for entry in entries]
        except OSError as error:
            if here == folder:
                raise OptionError(
                    f"{here}: cannot be listed: {error.strerror}; "
                    "correct its permissions or leave it out"
                ) from error
            if not isinstance(error, FileNotFoundError):  # removed while we looked
                mend = "correct its permissions, or move it"
                faults[here] = f"{here}: cannot be listed: {error.strerror}; {mend}"
            continue
        for name, is_folder in listed:
            path = here / name
            if is_folder:
                is_skipped = _is_skipped(path, relative / name, inside, naming)
                # Linked folders are not entered.
                if recursive and not is_skipped and not _is(path.is_symlink):
                    open_folders.append(path)
            elif is_image(path) and not _is_skipped(path, Path(name), None, naming):
                yield path


def _is(ask: Callable[[], bool]) -> bool:
    """What `Path.is_dir` and the like answer; False where it cannot be told."""
    try:
        return ask()
    except OSError:
        return False


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in READABLE_SUFFIXES


def is_image(path: Path) -> bool:
    """Whether a file is one to read, or one to say of that it is passed over."""
    return _is_read(path) or bool(kind_of_name(path))


def _is_skipped(
    path: Path,
    relative: Path,
    inside: Path | None,
    naming: OutputNaming,
    marks: Set[str] = _MARKS,
) -> bool:
    """Whether a path is hidden below its input, in the output folder, or an earlier run's output.

    The names of earlier outputs end with one of `marks`.
    """
    if any(part.startswith(".") for part in relative.parts) or path.name == f"{PREVIEW}.png":
        return True
    if inside is not None and real_path(path).is_relative_to(inside):
        return True
    if _is(path.is_dir):
        original = path.name.removesuffix(OUTPUT_MARK)
        return original not in ("", ".", path.name) and _is(path.with_name(original).is_dir)
    suffixes = [
        suffix
        for suffix in READABLE_SUFFIXES
        if path.suffix in {output_suffix(Path("x" + suffix)), naming.extension}
    ]
    originals = [
        path.stem.removesuffix(mark)
        for mark in marks
        if path.stem.endswith(mark) and path.stem != mark
    ]
    return any(
        _is(path.with_name(original + suffix).is_file)
        for original in originals
        for suffix in ["", *suffixes]
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


def _natural(path: Path) -> tuple[list[list[int | str]], str]:
    """A sort key that puts a2 before a10, folder by folder."""
    parts = [
        [int(run) if run.isdecimal() else run.casefold() for run in re.split(r"(\d+)", part)]
        for part in path.parts
    ]
    return parts, str(path)


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
        wanted = Counter(meeting[path] for path in outputs)
        if len(wanted) == len(outputs):
            return outputs
        inputs: dict[str, set[Path]] = {}
        for item, path in zip(found, outputs, strict=True):
            inputs.setdefault(meeting[path], set()).add(item.input)
        outputs = [
            item.root / rename(item)
            if wanted[meeting[path]] > 1
            and (rename is with_old_suffix or len(inputs[meeting[path]]) > 1)
            else path
            for item, path in zip(found, outputs, strict=True)
        ]
    meeting = _meeting_names(outputs)
    others = set(meeting.values())
    taken: set[str] = set()
    distinct = []
    for path in outputs:
        candidate, key, number = path, meeting[path], 1
        while key in taken or (number > 1 and key in others):
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
            key = _folded(canonical_path(candidate))
        taken.add(key)
        distinct.append(candidate)
    return distinct


def _meeting_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Each path, spelled so that those compare equal that are one file on some systems."""
    return {path: _folded(canonical) for path, canonical in canonical_paths(paths).items()}


def _folded(path: str) -> str:
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
    read = set(canonical_paths(sources).values())
    read |= {os.path.normcase(real_path(path)) for path in sources if _is(path.is_symlink)}
    for path, canonical in canonical_paths(outputs).items():
        if canonical in read:
            raise OptionError(f"{path}: the output would overwrite the input; name another folder")


def canonical_path(path: Path) -> str:
    """The absolute path, spelled so that equal paths compare equal; a link as last part stays."""
    return os.path.normcase(real_path(path.parent) / path.name)


def canonical_paths(paths: Iterable[Path]) -> dict[Path, str]:
    """`canonical_path` of each; every folder is resolved once."""
    unique = set(paths)
    parents = {parent: real_path(parent) for parent in {path.parent for path in unique}}
    return {path: os.path.normcase(parents[path.parent] / path.name) for path in unique}


def real_path(path: Path) -> Path:
    """Absolute and without links as far as possible; `Path.resolve` raises where they loop."""
    return Path(os.path.realpath(path))
