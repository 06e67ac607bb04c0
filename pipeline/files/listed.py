"""Lists of files, for `--files-from`: a name a line, or names that NUL ends."""

import codecs
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from denoise_batch.kernels.errors import OptionError


@dataclass(frozen=True)
class Listed:
    """One name.

    Attributes:
        path: as the list has it.
        where: the list and the line, for messages.
    """

    path: str
    where: str


@dataclass(frozen=True)
class FileList:
    """Names, in order.

    Attributes:
        name: of the list, for messages.
        files: without empty lines.
    """

    name: str
    files: tuple[Listed, ...]


def read_list(name: str, *, null: bool = False) -> FileList:
    """Read a list; names are bytes, as the file system has them, lines may end as on Windows.

    Args:
        name: a file, or "-" for standard input.
        null: names end with NUL, and may have line breaks.

    Raises:
        OptionError: it cannot be read, or is not such a list.
    """
    label = "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise OptionError(
            f"--files-from {name}: cannot be read: {error.strerror}; give a list of files, or - "
            "for standard input"
        ) from error
    if null:
        return FileList(label, _listed(content.split(b"\0"), label, "name"))
    if b"\0" in content and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OptionError(f"--files-from {name}: is UTF-16; save it as UTF-8")
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, 1):
        if b"\0" in line:
            raise OptionError(
                f"--files-from {name}: line {number} has a NUL byte; a list whose names end with "
                "NUL goes with --null"
            )
    return FileList(label, _listed([line.removesuffix(b"\r") for line in lines], label, "line"))


def _listed(names: list[bytes], label: str, unit: str) -> tuple[Listed, ...]:
    return tuple(
        Listed(os.fsdecode(name), f"{label}, {unit} {number}")
        for number, name in enumerate(names, 1)
        if name
    )
