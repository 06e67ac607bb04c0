"""What the pages of a file are: shots of one scene, scenes, slices, channels.

`--axes` says it, or the file: ImageJ, OME and tifffile write it into TIFF's description.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from denoise_batch.kernels import OptionError, TrainingError

from ..files.pixels import DecodedImage

Axes = list[tuple[str, int]]  # letters of `--axes`, or none, and their numbers, the slowest first
# Letters of `--axes` → what ImageJ's description calls their number.
_COUNTS = {"T": "frames", "Z": "slices", "C": "channels", "S": "scenes"}
_UNNAMED = "?"
_DESCRIPTION = 270  # TIFF tag
_NOT_SHAPED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # of other JSON


def parse_axes(text: str) -> str:
    """Return the letters of `--axes` that pages run along, the slowest first.

    Raises:
        OptionError: another spelling.
    """
    letters = text.upper()
    along = letters.removesuffix("YX")
    is_known = set(along) <= _COUNTS.keys() and len(set(along)) == len(along)
    if not (along and is_known and along != letters):
        raise OptionError(
            f"--axes {text!r}: letters of what the pages of a file are, then YX, such as TYX "
            "(shots of one scene), SYX or ZYX (scenes of their own) or TZYX"
        )
    return along


def axes_of_pages(path: Path, pages: Sequence[DecodedImage], asked: str | None, usual: str) -> Axes:
    """Return what the pages of a file run along: as asked for, else as it says, else as usual.

    A single axis may be asked to be another than the file says; more must be the same.

    Raises:
        TrainingError: the file does not tell its pages apart, or contradicts what is asked for.
    """
    letters = parse_axes(asked or usual)
    if "T" not in letters or len(pages) == 1:  # every page is a scene, in whatever order
        return [("S", len(pages))]
    said = _said(pages)
    count = _pages(said)
    if letters == "T" and (not said or (asked and (len(said) == 1 or count != len(pages)))):
        return [("T", len(pages))]
    if said and count != len(pages):
        raise TrainingError(
            f"{path}: says that its pages are {_spelled(said)}, but has {len(pages)}, as a part of "
            "a larger set does; give --axes TYX if they are shots of one scene, or save it anew"
        )
    if not said:
        missing = " and ".join(_COUNTS[letter] for letter in letters)
        raise TrainingError(
            f"{path}: its {len(pages)} pages cannot be told apart by --axes {letters}YX: it does "
            f"not say how many {missing} it has (ImageJ's frames=, slices= and channels=); save it "
            "as a hyperstack, or split it into files of one axis"
        )
    names = "".join(letter for letter, _ in said)
    if asked is None:
        if "T" in names and _UNNAMED not in names:
            return said
        remedy = "give --axes TYX" if len(said) == 1 else "write them as frames"
        raise TrainingError(
            f"{path}: says that its pages are {_spelled(said)}, not shots of one scene (frames); "
            f"if they are, {remedy}, else learn from single pages with --self"
        )
    if len(names) == len(letters):  # what has no name is what it is asked to be
        names = "".join(a if a != _UNNAMED else b for a, b in zip(names, letters, strict=True))
    if "T" not in names or names != "".join(letter for letter in letters if letter in names):
        raise TrainingError(
            f"{path}: says that its pages are {_spelled(said)}, the slowest first, which --axes "
            f"{asked} contradicts; leave --axes out, or correct what the file says"
        )
    return [(letter, size) for letter, (_, size) in zip(names, said, strict=True)]


def scenes_of_pages(axes: Axes) -> list[list[int]]:
    """Group the numbers of pages by scene: pages that differ along T alone belong together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    places = itertools.product(*(range(size) for _, size in axes))
    for number, place in enumerate(places):
        scene = tuple(at for at, (letter, _) in zip(place, axes, strict=True) if letter != "T")
        groups.setdefault(scene, []).append(number)
    return [groups[scene] for scene in sorted(groups)]


def refuse_planes(path: Path, pages: Sequence[DecodedImage]) -> None:
    """Refuse a file that stores frames or slices as colours, as tifffile does with 3 or 4.

    Raises:
        TrainingError: it does, by its own description.
    """
    channels, sizes = pages[0].samples.shape[2], dict[str, int]()
    text = _description(pages)
    if re.search(r'\bDimensionOrder="XY[ZCT]{3}"', text):
        sizes = {one: int(size) for one, size in re.findall(r'\bSize([TZC])="(\d+)"', text)}
    else:
        with suppress(*_NOT_SHAPED):
            shaped = json.loads(text)
            sizes = dict(zip(shaped["axes"], map(int, shaped["shape"]), strict=True))
    shots = {one: size for one, size in sizes.items() if one in "TZ" and size > 1}
    is_coloured = sizes.get("C", 1) > 1 or "S" in sizes
    if shots and not is_coloured and math.prod(shots.values()) > len(pages) and channels > 1:
        raise TrainingError(
            f"{path}: says that its pages are {_spelled(list(shots.items()))}, but stores some of "
            "them as the colours of a page; write it with tifffile's photometric='minisblack'"
        )


def _description(pages: Sequence[DecodedImage]) -> str:
    text = next((tag.data for tag in pages[0].metadata.tags if tag.code == _DESCRIPTION), b"")
    return text.rstrip(b"\0").decode("utf-8", "replace")


def _said(pages: Sequence[DecodedImage]) -> Axes:
    """Return what the description of a file says that its pages run along; [] if nothing.

    ImageJ's order is TZC; OME says its own, the fastest first; tifffile's is that of an array.
    There may be fewer pages than it says.
    """
    said, count = _description(pages), len(pages)
    found: Axes = []
    if said.startswith("ImageJ="):
        sizes = dict(re.findall(r"^(\w+)=(\w+)\s*$", said, re.MULTILINE))
        found = [(letter, _number(sizes.get(_COUNTS[letter]))) for letter in "TZC"]
        if sizes.get("hyperstack") != "true" and [one for one, size in found if size > 1] == ["Z"]:
            found = []  # any stack is one of slices to ImageJ
    elif order := re.search(r'\bDimensionOrder="XY([ZCT]{3})"', said):
        images = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", said)
        sizes = dict(re.findall(r'\bSize([TZC])="(\d+)"', images[0] if images else ""))
        found = [("S", len(images)), *((one, _number(sizes.get(one))) for one in order[1][::-1])]
    else:
        with suppress(*_NOT_SHAPED):
            shaped = json.loads(said)
            shape = [int(size) for size in shaped["shape"]]
            letters = shaped.get("axes") or _UNNAMED * len(shape)
            found = [
                (letter if letter in _COUNTS else _UNNAMED, size)
                for letter, size in zip(letters, shape, strict=True)
            ]
            sizes_of = [math.prod(shape[:end]) for end in range(len(shape))]
            found = found[: sizes_of.index(count) if count in sizes_of else -2]
    found = [(letter, size) for letter, size in found if size > 1]
    # The samples of a pixel may be its channels; other files may hold the other scenes.
    apart = ([axis for axis in found if axis[0] not in without] for without in ("", "C", "S", "CS"))
    found = next((axes for axes in apart if _pages(axes) == count), found)
    if len(found) == 1 and (found[0][0] == _UNNAMED or _pages(found) != count):
        return []
    return found


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _pages(axes: Axes) -> int:
    return math.prod(size for _, size in axes)


def _spelled(axes: Axes) -> str:
    return " × ".join(f"{size} {_COUNTS.get(letter, '')}".strip() for letter, size in axes)
