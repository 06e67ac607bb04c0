"""Outputs that would meet: sources that want the same place are told apart, inputs are kept."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from denoise_batch.kernels.errors import OptionError


@dataclass(frozen=True)
class Found:
    """A source and where its output would go, before collisions are looked for."""

    source: Path
    root: Path
    relative: Path
    name: str
    input_name: str


def distinct_outputs(found: Sequence[Found]) -> list[Path]:
    """Each source's output, after telling apart those that want the same."""

    def with_old_suffix(item: Found) -> Path:
        if item.source.suffix.lower() == item.relative.suffix.lower():
            return item.relative
        ending = item.relative.name.removeprefix(item.source.stem)
        return item.relative.with_name(item.source.name + ending)

    def under_input(item: Found) -> Path:
        return item.input_name / with_old_suffix(item)

    outputs = [item.root / item.relative for item in found]
    for rename in (with_old_suffix, under_input):
        places = places_of(outputs)
        wanted = Counter(places[path] for path in outputs)
        if len(wanted) == len(outputs):
            return outputs
        outputs = [
            item.root / rename(item) if wanted[places[path]] > 1 else path
            for item, path in zip(found, outputs, strict=True)
        ]
    places = places_of(outputs)
    taken: set[str] = set()
    distinct = []
    for path in outputs:
        candidate, place, number = path, places[path], 1
        while place in taken or (number > 1 and place in places.values()):
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
            place = places_of([candidate])[candidate]
        taken.add(place)
        distinct.append(candidate)
    return distinct


def refuse_overwriting(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    """OptionError where an output stands in the place of something that is read."""
    read = set(places_of(sources).values())
    read |= {os.path.normcase(real_path(path)) for path in sources if path.is_symlink()}
    for path, place in places_of(outputs).items():
        if place in read:
            raise OptionError(f"{path}: the output would overwrite the input; name another")


def places_of(paths: Iterable[Path]) -> dict[Path, str]:
    """Where paths really stand, spelled so that equal places compare equal; links stay links."""
    unique = set(paths)
    parents = {parent: str(real_path(parent)) for parent in {path.parent for path in unique}}
    return {path: os.path.normcase(f"{parents[path.parent]}{os.sep}{path.name}") for path in unique}


def real_path(path: Path) -> Path:
    """Absolute and without links, as far as that goes; `Path.resolve` raises where they loop."""
    return Path(os.path.realpath(path))
