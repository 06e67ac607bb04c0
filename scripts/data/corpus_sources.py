"""The packages' own formats: licence statements and Qt resource bundles."""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from corpus_selection import Selection

BESIDE = re.compile(r"(?:License\"?[=:]|Licensed under) ?\"?([^\"\n]+)")
SPELLINGS = {
    "fdl": "GFDL",
    "gnu-fdl": "GFDL",
    "gplv2+": "GPL-2+",
    "https://creativecommons.org/licenses/by-sa/3.0/": "CC-BY-SA-3.0",
    "lgplv3": "LGPL-3",
    "public domain": "public-domain",
}


@dataclass(frozen=True)
class Package:
    """A package, unpacked into `tree`."""

    selection: Selection
    version: str
    tree: Path

    @property
    def root(self) -> Path:
        """The folder that the selection's patterns start from."""
        return self.tree / self.selection.root

    @property
    def copyright(self) -> Path:
        """Debian's statement of the licences."""
        return self.tree / "usr/share/doc" / self.selection.package / "copyright"

    @cached_property
    def stanzas(self) -> list[tuple[list[str], str]]:
        """The stanzas of that statement."""
        return read_stanzas(self.copyright)


def licence_of(picture: Path, package: Package) -> tuple[str, str]:
    """Return a photograph's licence and the file that states it; the nearest file counts.

    debian/copyright comes last: in gcompris-qt-data it still describes photographs that upstream
    has replaced under the same names; the READMEs in the bundles describe the new ones.
    """
    tree, selection = package.tree, package.selection
    for folder in picture.relative_to(tree).parents:
        readme = tree / folder / "README"
        if readme.is_file():
            for names, licence in read_readme(readme):
                if matches(picture, readme.parent, names):
                    return spelled(licence), str(readme.relative_to(tree))
    if selection.beside:
        stated = picture.parent / selection.beside.replace("*", picture.stem)
        if stated.is_file() and (match := BESIDE.search(stated.read_text("utf-8"))):
            return spelled(match[1]), str(stated.resolve().relative_to(tree.resolve()))
    name = Path(selection.origin) / picture.relative_to(package.root)
    for patterns, licence in reversed(package.stanzas):
        if matches(name, Path(), patterns):
            return licence, str(package.copyright.relative_to(tree))
    return selection.licence, "the package as a whole"


def matches(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    """Whether `path` below `root` matches a pattern; * and ? match / too, as in DEP-5."""
    name = path.relative_to(root).as_posix()
    return any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns)


def spelled(licence: str) -> str:
    """Return the licence in debian/copyright's spelling."""
    licence = licence.strip()
    return SPELLINGS.get(licence.lower(), licence.replace(" ", "-"))


def read_stanzas(path: Path) -> list[tuple[list[str], str]]:
    """Return (patterns, licence) of each Files stanza of a debian/copyright (DEP-5).

    https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
    """
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    stanzas = []
    for paragraph in re.split(r"\n\s*\n", text):
        field = dict(re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", paragraph, re.MULTILINE))
        if "Files" in field and "License" in field:
            licence = field["License"].strip().partition("\n")[0]
            stanzas.append((field["Files"].split(), licence))
    return stanzas


def read_readme(path: Path) -> list[tuple[list[str], str]]:
    """Return (names, licence) of each paragraph of a GCompris README; one name per line."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", path.read_text("utf-8", errors="replace")):
        if licence := re.search(r"^License: *(.+)$", paragraph, re.MULTILINE):
            names = re.findall(r"^(?:Files: *)?(\S+\.\w+) *$", paragraph, re.MULTILINE)
            paragraphs.append((names, licence[1]))
    return paragraphs


def unpack_bundle(path: Path) -> None:
    """Unpack the WebP images and READMEs of a Qt resource bundle into its folder."""
    for name, data in read_bundle(path.read_bytes()):
        target = path.parent / name
        if target.suffix == ".webp" or target.name == "README":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def read_bundle(bundle: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of each file in a Qt binary resource of format 1 to 3; big endian.

    The header points to three tables. A tree of nodes, root first: name offset u32, flags u16;
    then for a folder the count and index of its children (u32, u32), for a file its locale (u16,
    u16) and data offset u32; from format 2 on a time stamp u64. Names: length u16, hash u32,
    UTF-16. Data: length u32 and content; compressed content is a length u32 and a zlib stream.
    Files compressed with Zstandard are skipped: rcc compresses text so, hardly ever images.

    Raises:
        OSError: not a Qt resource.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", bundle)
    if magic != b"qres" or version not in (1, 2, 3):
        raise OSError("not a Qt resource bundle of format 1 to 3")

    def walk(first: int, count: int, folder: str) -> Iterator[tuple[str, bytes]]:
        for node in range(first, first + count):
            offset = tree + node * (14 if version == 1 else 22)
            name_offset, flags, low, high = struct.unpack_from(">IHII", bundle, offset)
            (length,) = struct.unpack_from(">H", bundle, names + name_offset)
            start = names + name_offset + 6
            name = bundle[start : start + 2 * length].decode("utf-16-be")
            if name in (".", "..") or "/" in name:
                raise OSError(f"{name!r}: not a file name")
            if flags & 2:
                yield from walk(high, low, f"{folder}{name}/")
                continue
            if flags & 4:
                continue
            (size,) = struct.unpack_from(">I", bundle, data + high)
            start = data + high + 4
            content = bundle[start : start + size]
            yield folder + name, zlib.decompress(content[4:]) if flags & 1 else content

    count, first = struct.unpack_from(">II", bundle, tree + 6)
    yield from walk(first, count, "")
