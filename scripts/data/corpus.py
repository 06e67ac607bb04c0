"""Build the training corpus: freely licensed photographs out of Debian packages, taken by name.

The photographs are downscaled with a Lanczos filter, which takes away the artefacts of JPEG and
WebP and the noise of the sensor: what is left is clean enough to add noise to. OUT/manifest.json
says for each one where it came from and under which licence; the photographs themselves are not
redistributed with this project. Needs apt-get and dpkg-deb, so Debian or a descendant of it.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from corpus_selection import SELECTIONS, Selection
from corpus_sources import Package, licence_of, matches, unpack_bundle
from PIL import Image

# An icon teaches nothing, and no photograph is made smaller than MIN_SIDE_PX on its short side.
MIN_AREA_PX = 40_000
MIN_SIDE_PX = 160
LONG_SIDE_PX = 800
MAX_DOWNSCALE = 6.0
# Below this many bits a pixel, compression has left traces that only halving removes.
FINE_BITS_PER_PIXEL = 1.5
# Raise it when the same selection begins to give other pixels or other rows.
RECIPE = 1

# Folders that tell nothing about the photograph do not enter its name.
SILENT_FOLDERS = frozenset({"contents", "image", "images", "resource"})


@dataclass(frozen=True)
class Photograph:
    """One row of the manifest: sources are paths within the package, sizes (width, height)."""

    file: str
    package: str
    version: str
    licence: str
    licence_source: str
    source: str
    source_sha256: str
    pixels_sha256: str
    native_size: tuple[int, int]
    size: tuple[int, int]
    recipe: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what OUT lacks; 1 if not one photograph could be had, 2 if OUT is something else."""
    parser = argparse.ArgumentParser(prog="corpus", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the corpus: new, or an earlier run's")
    parser.add_argument("--keep-packages", action="store_true", help="keep them in OUT/packages")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    if out.exists() and not (out / "manifest.json").exists() and any(out.iterdir()):
        # Folders named like a package are replaced, so they must be known to be the corpus's own.
        parser.error(f"{out}: has files but no manifest.json; name an empty or new folder")
    rows = build(out, keep_packages=options.keep_packages)
    megapixels = sum(row.size[0] * row.size[1] for row in rows) / 1e6
    print(f"{out}: {len(rows)} photographs, {megapixels:.1f} MP")
    return 0 if rows else 1


def build(out: Path, *, keep_packages: bool = False) -> list[Photograph]:
    """Build the packages that out lacks, or holds by another recipe; return the whole manifest."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for selection in SELECTIONS for row in verified(out, selection)]
    missing = [s for s in SELECTIONS if s.package not in {row.package for row in rows}]
    if missing:
        write_manifest(out, rows)
    staging = out / ".partial"
    for selection in missing:
        shutil.rmtree(staging, ignore_errors=True)
        try:
            debs = out / "packages" if keep_packages else staging / "packages"
            rows += build_package(selection, out, staging, debs)
        except OSError as error:
            print(f"{selection.package}: left out: {error}", file=sys.stderr)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        write_manifest(out, rows)
    return rows


def build_package(selection: Selection, out: Path, staging: Path, debs: Path) -> list[Photograph]:
    """Fetch one package and put its photographs into out, all or none.

    Raises:
        OSError: the package cannot be had, or holds nothing of the selection.
    """
    tree, ready = staging / "tree", staging / "ready"
    for folder in (tree, ready, debs):
        folder.mkdir(parents=True, exist_ok=True)
    package = Package(selection, fetch(selection.package, debs, tree), tree)
    for bundle in sorted(tree.glob(selection.bundles)) if selection.bundles else ():
        unpack_bundle(bundle)
    found = {path for pattern in selection.patterns for path in package.root.glob(pattern)}
    chosen = [path for path in sorted(found) if not matches(path, package.root, selection.exclude)]
    convert = partial(photograph, package=package, ready=ready)
    with ThreadPoolExecutor() as pool:
        rows = [row for row in pool.map(convert, chosen) if row]
    if not rows:
        raise OSError(f"version {package.version} holds none of the photographs selected")
    shutil.rmtree(out / selection.package, ignore_errors=True)
    ready.rename(out / selection.package)
    print(f"{selection.package} {package.version}: {len(rows)} photographs", file=sys.stderr)
    return rows


def fetch(package: str, debs: Path, tree: Path) -> str:
    """Download a package into debs unless it lies there, extract it into tree; its version."""
    if not list(debs.glob(f"{package}_*.deb")):
        run("apt-get", "download", package, folder=debs)
    deb, version = "", ""
    for path in sorted(debs.glob(f"{package}_*.deb")):
        found = run("dpkg-deb", "--field", str(path), "Version", folder=debs).strip()
        if not deb or is_newer(found, version):
            deb, version = str(path), found
    run("dpkg-deb", "--extract", deb, str(tree), folder=debs)
    return version


def is_newer(version: str, other: str) -> bool:
    """In Debian's order, in which 1.10 comes after 1.9 and 1:1.0 after both."""
    command = ["dpkg", "--compare-versions", version, "gt", other]
    return subprocess.run(command, check=False).returncode == 0


def run(*command: str, folder: Path) -> str:
    """What the command prints, run in folder; OSError if it fails or is not installed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def photograph(picture: Path, package: Package, ready: Path) -> Photograph | None:
    """Write one photograph, downscaled, into ready; None if it is too small or see-through."""
    selection = package.selection
    data = picture.read_bytes()
    with Image.open(picture) as image:
        native = image.size
        if native[0] * native[1] < MIN_AREA_PX or is_see_through(image):
            return None
        factor = selection.downscale or downscale_factor(*native, len(data))
        size = (round(native[0] / factor), round(native[1] / factor))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    relative = picture.relative_to(package.root).with_suffix("")
    parts = [part for part in relative.parts if part not in SILENT_FOLDERS]
    name = "-".join(parts) + ".png"
    # Level 1: a quarter of the time of 6 for 6 % more disk.
    small.save(ready / name, compress_level=1)
    licence, licence_source = licence_of(picture, package)
    return Photograph(
        file=f"{selection.package}/{name}",
        package=selection.package,
        version=package.version,
        licence=licence,
        licence_source=licence_source,
        source=str(picture.relative_to(package.tree)),
        source_sha256=hashlib.sha256(data).hexdigest(),
        pixels_sha256=hashlib.sha256(small.tobytes()).hexdigest(),
        native_size=native,
        size=size,
        recipe=recipe(selection),
    )


def is_see_through(image: Image.Image) -> bool:
    """Whether any pixel is less than opaque: a cut-out or a drawing, not a photograph."""
    if not image.has_transparency_data:
        return False
    return min(image.convert("RGBA").getchannel("A").tobytes()) < 255


def downscale_factor(width: int, height: int, size_bytes: int) -> float:
    """Factor that brings the long side to LONG_SIDE_PX, and is at least what compression asks."""
    fine = size_bytes * 8 / (width * height) >= FINE_BITS_PER_PIXEL
    factor = max(max(width, height) / LONG_SIDE_PX, 1.5 if fine else 2.0)
    return max(1.0, min(factor, MAX_DOWNSCALE, min(width, height) / MIN_SIDE_PX))


def recipe(selection: Selection) -> str:
    """Changes whenever the photographs of a selection may."""
    return hashlib.sha256(f"{RECIPE} {selection}".encode()).hexdigest()[:12]


def verified(out: Path, selection: Selection) -> list[Photograph]:
    """The package's rows of out's manifest; none unless made by this recipe and all there."""
    rows = [row for row in read_manifest(out) if row.package == selection.package]
    for row in rows:
        try:
            with Image.open(out / row.file) as image:
                intact = image.size == row.size and row.recipe == recipe(selection)
        except OSError:
            intact = False
        if not intact:
            return []
    return rows


def read_manifest(out: Path) -> list[Photograph]:
    """The rows of out's manifest; none where there is no manifest yet."""
    path = out / "manifest.json"
    rows = json.loads(path.read_text("utf-8"))["photographs"] if path.exists() else []
    sizes = ("native_size", "size")
    return [Photograph(**row | {key: tuple(row[key]) for key in sizes}) for row in rows]


def write_manifest(out: Path, rows: Sequence[Photograph]) -> None:
    """Replace out's manifest in one step."""
    ordered = sorted(rows, key=lambda row: row.file)
    text = json.dumps({"photographs": [asdict(row) for row in ordered]}, indent=1)
    draft = out / ".manifest.json"
    draft.write_text(text + "\n", "utf-8")
    draft.replace(out / "manifest.json")


if __name__ == "__main__":
    sys.exit(main())
