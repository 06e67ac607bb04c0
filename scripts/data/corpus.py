"""Build the training corpus: freely licensed photographs from named Debian packages.

Downscaling with a Lanczos filter removes compression artefacts and sensor noise, so that the
photographs are clean enough to add noise to. OUT/manifest.json gives the source and licence of each
one; this project does not redistribute them. Needs apt-get and dpkg-deb (Debian or a derivative).
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

# Smaller images are icons; no photograph is downscaled below MIN_SIDE_PX on its short side.
MIN_AREA_PX = 40_000
MIN_SIDE_PX = 160
LONG_SIDE_PX = 800
MAX_DOWNSCALE = 6.0
# Below this many bits per pixel, compression leaves artefacts that only halving removes.
FINE_BITS_PER_PIXEL = 1.5
# Raise it when a change of the code changes pixels or rows of the manifest.
RECIPE = 1

# Folders whose names say nothing about the photograph are left out of its file name.
SILENT_FOLDERS = frozenset({"contents", "image", "images", "resource"})


@dataclass(frozen=True)
class Photograph:
    """A row of the manifest; sources are paths in the package, sizes (width, height)."""

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
    """Build what OUT lacks; return 1 without any photograph, 2 if OUT is not a corpus."""
    parser = argparse.ArgumentParser(prog="corpus", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the corpus: new, or of an earlier run")
    parser.add_argument("--keep-packages", action="store_true", help="keep them in OUT/packages")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    if out.exists() and not (out / "manifest.json").exists() and any(out.iterdir()):
        # Folders named like a package are replaced, so they must belong to a corpus.
        parser.error(f"{out}: has files but no manifest.json; name an empty or new folder")
    rows = build(out, keep_packages=options.keep_packages)
    megapixels = sum(row.size[0] * row.size[1] for row in rows) / 1e6
    print(f"{out}: {len(rows)} photographs, {megapixels:.1f} MP")
    return 0 if rows else 1


def build(out: Path, *, keep_packages: bool = False) -> list[Photograph]:
    """Build the packages that `out` lacks or has by another recipe; return the whole manifest."""
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
    """Download one package and put its photographs into `out`, all or none.

    Raises:
        OSError: the package is not available, or contains nothing of the selection.
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
        raise OSError(f"version {package.version} contains none of the selected photographs")
    shutil.rmtree(out / selection.package, ignore_errors=True)
    ready.rename(out / selection.package)
    print(f"{selection.package} {package.version}: {len(rows)} photographs", file=sys.stderr)
    return rows


def fetch(package: str, debs: Path, tree: Path) -> str:
    """Download a package into `debs` unless it is there, extract it; return its version."""
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
    """Compare Debian versions: 1.10 is newer than 1.9, and 1:1.0 than both."""
    command = ["dpkg", "--compare-versions", version, "gt", other]
    return subprocess.run(command, check=False).returncode == 0


def run(*command: str, folder: Path) -> str:
    """Run the command in `folder` and return its output; OSError if it fails or is missing."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def photograph(picture: Path, package: Package, ready: Path) -> Photograph | None:
    """Downscale one photograph into `ready`; None if it is too small or transparent."""
    selection = package.selection
    data = picture.read_bytes()
    with Image.open(picture) as image:
        native = image.size
        if native[0] * native[1] < MIN_AREA_PX or is_transparent(image):
            return None
        factor = selection.downscale or downscale_factor(*native, len(data))
        size = (round(native[0] / factor), round(native[1] / factor))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    relative = picture.relative_to(package.root).with_suffix("")
    parts = [part for part in relative.parts if part not in SILENT_FOLDERS]
    name = "-".join(parts) + ".png"
    # Level 1 takes a quarter of the time of level 6, and 6 % more disk space.
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


def is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque: a cut-out or a drawing, not a photograph."""
    if not image.has_transparency_data:
        return False
    return min(image.convert("RGBA").getchannel("A").tobytes()) < 255


def downscale_factor(width: int, height: int, size_bytes: int) -> float:
    """Return the factor to LONG_SIDE_PX on the long side, at least what compression needs."""
    fine = size_bytes * 8 / (width * height) >= FINE_BITS_PER_PIXEL
    factor = max(max(width, height) / LONG_SIDE_PX, 1.5 if fine else 2.0)
    return max(1.0, min(factor, MAX_DOWNSCALE, min(width, height) / MIN_SIDE_PX))


def recipe(selection: Selection) -> str:
    """Return a hash that changes whenever the photographs of a selection may."""
    return hashlib.sha256(f"{RECIPE} {selection}".encode()).hexdigest()[:12]


def verified(out: Path, selection: Selection) -> list[Photograph]:
    """Return the package's rows of the manifest; none if one is missing or of another recipe."""
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
    """Return the rows of the manifest; none without a manifest."""
    path = out / "manifest.json"
    rows = json.loads(path.read_text("utf-8"))["photographs"] if path.exists() else []
    sizes = ("native_size", "size")
    return [Photograph(**row | {key: tuple(row[key]) for key in sizes}) for row in rows]


def write_manifest(out: Path, rows: Sequence[Photograph]) -> None:
    """Replace the manifest atomically."""
    ordered = sorted(rows, key=lambda row: row.file)
    text = json.dumps({"photographs": [asdict(row) for row in ordered]}, indent=1)
    draft = out / ".manifest.json"
    draft.write_text(text + "\n", "utf-8")
    draft.replace(out / "manifest.json")


if __name__ == "__main__":
    sys.exit(main())
