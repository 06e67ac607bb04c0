"""scripts/data/corpus.py on handmade packages: no download, no Debian needed."""

import importlib
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "scripts" / "data"


def load(name: str) -> ModuleType:
    """Import a module of scripts/data, which is a folder of scripts and no package."""
    sys.path.insert(0, str(DATA))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DATA))


corpus = load("corpus")
sources = load("corpus_sources")
Selection = load("corpus_selection").Selection

GARDEN = Selection(
    "garden", "usr/share/garden", ("*/images/*.png",), "GPL-2+", exclude=("*/logo*",), origin="art"
)
ABSENT = Selection("absent", "usr/share/absent", ("*.png",), "GPL-2+")
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: garden

Files: *
Copyright: 2020 Somebody
License: GPL-3+

Files: art/*/rose.png
       art/*/tulip[1].png
Copyright: 2021 Somebody: else
           2022 Third
License: CC-BY-4.0
 A licence's text may hold what looks like a field:
 Files: *
Comment: from afar

Files: art/wild/*
License: CC0-1.0

License: CC0-1.0
 No permission needed.
"""
README = """\
License: Public Domain
Source: somewhere
Files:
a.png
c.png

License: CC-BY 4.0
b.png
"""


def save(path: Path, width: int = 400, height: int = 300, *, alpha: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One colour: always below FINE_BITS_PER_PIXEL, whatever zlib Pillow was built with.
    image = Image.new("RGB", (width, height), (90, 120, 60))
    if alpha is not None:
        image.putalpha(alpha)
    image.save(path)


def bundle(version: int, files: dict[str, bytes], flags: int = 0) -> bytes:
    """A Qt resource of one folder, named "res", with these files in it."""
    names, name_offsets = b"", {}
    for name in ("res", *files):
        name_offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    stamp = b"" if version == 1 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + stamp
    tree += struct.pack(">IHII", name_offsets["res"], 2, len(files), 2) + stamp
    data = b""
    for name, content in files.items():
        tree += struct.pack(">IHHHI", name_offsets[name], flags, 0, 1, len(data)) + stamp
        if flags == 1:
            content = struct.pack(">I", len(content)) + zlib.compress(content)
        data += struct.pack(">I", len(content)) + content
    start = 24 if version == 3 else 20
    at = (start, start + len(tree), start + len(tree) + len(data))
    header = struct.pack(">4s4I", b"qres", version, *at) + bytes(start - 20)
    return header + tree + data + names


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two selections, of which only "garden" can be had; the list grows by each one asked for."""
    asked: list[str] = []

    def fetch(package: str, debs: Path, tree: Path) -> str:
        asked.append(package)
        if package != "garden":
            raise OSError("apt-get: Unable to locate package")
        root = tree / "usr/share/garden"
        for name in ("rose", "lily", "logo"):
            save(root / f"beds/images/{name}.png")
        save(root / "wild/images/rose.png", 1600, 1200)
        save(root / "wild/images/icon.png", 100, 100)
        save(root / "wild/images/ghost.png", alpha=128)
        (tree / "usr/share/doc/garden").mkdir(parents=True)
        (tree / "usr/share/doc/garden/copyright").write_text(COPYRIGHT)
        return "1.2-3"

    monkeypatch.setattr(corpus, "fetch", fetch)
    monkeypatch.setattr(corpus, "SELECTIONS", (ABSENT, GARDEN))
    return asked


@pytest.mark.parametrize("flags", [0, 1], ids=["plain", "zlib"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_bundle_gives_paths_and_contents(version: int, flags: int) -> None:
    files = {"a.webp": b"first" * 50, "b.webp": b"", "ü.webp": b"\0\xff"}
    read = dict(sources.read_bundle(bundle(version, files, flags)))
    assert read == {f"res/{name}": content for name, content in files.items()}


def test_bundle_leaves_zstandard_out() -> None:
    assert list(sources.read_bundle(bundle(3, {"a.webp": b"?"}, flags=4))) == []


@pytest.mark.parametrize("name", ["..", "a/../../b"])
def test_bundle_refuses_names_that_leave_the_folder(name: str) -> None:
    with pytest.raises(OSError, match="not a file name"):
        list(sources.read_bundle(bundle(3, {name: b"?"})))


def test_bundle_refuses_other_files() -> None:
    with pytest.raises(OSError, match="not a Qt resource"):
        list(sources.read_bundle(bytes(64)))


def test_bundle_unpacks_pictures_and_readmes_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "game.rcc"
    path.write_bytes(bundle(2, {"a.webp": b"1", "README": b"2", "main.qml": b"3"}))
    sources.unpack_bundle(path)
    assert {p.name for p in (tmp_path / "res").iterdir()} == {"a.webp", "README"}


def test_stanzas_are_the_files_stanzas_in_order(tmp_path: Path) -> None:
    (tmp_path / "copyright").write_text(COPYRIGHT)
    assert sources.read_stanzas(tmp_path / "copyright") == [
        (["*"], "GPL-3+"),
        (["art/*/rose.png", "art/*/tulip[1].png"], "CC-BY-4.0"),
        (["art/wild/*"], "CC0-1.0"),
    ]


@pytest.mark.parametrize("text", [None, "It may be copied under the GPL.\n\nSee below.\n"])
def test_no_stanzas_where_copyright_is_prose(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "copyright").write_text(text)
    assert sources.read_stanzas(tmp_path / "copyright") == []


@pytest.mark.parametrize(
    ("picture", "licence"),
    [
        ("beds/lily.png", "GPL-3+"),
        ("beds/rose.png", "CC-BY-4.0"),
        ("beds/tulip[1].png", "CC-BY-4.0"),
        ("beds/tulip1.png", "GPL-3+"),
        ("wild/deep/rose.png", "CC0-1.0"),
    ],
)
def test_last_matching_stanza_wins(tmp_path: Path, picture: str, licence: str) -> None:
    package = sources.Package(GARDEN, "1", tmp_path)
    package.copyright.parent.mkdir(parents=True)
    package.copyright.write_text(COPYRIGHT)
    stated = sources.licence_of(package.root / picture, package)
    assert stated == (licence, "usr/share/doc/garden/copyright")


def test_nearer_statements_go_before_debian_copyright(tmp_path: Path) -> None:
    selection = Selection("garden", "usr", ("*.png",), "GPL-2+", beside="*.desktop")
    package = sources.Package(selection, "1", tmp_path)
    package.copyright.parent.mkdir(parents=True)
    assert sources.licence_of(tmp_path / "usr/a.png", package)[0] == "GPL-2+"
    (tmp_path / "usr/a.desktop").write_text("X-KDE-PluginInfo-License=GNU-FDL\n")
    assert sources.licence_of(tmp_path / "usr/a.png", package) == ("GFDL", "usr/a.desktop")
    readme = (
        "License: Public Domain\nSource: x\nFiles:\na.png\nc.png\n\nLicense: CC-BY 4.0\nb.png\n"
    )
    (tmp_path / "usr/README").write_text(readme)
    assert sources.licence_of(tmp_path / "usr/a.png", package) == ("public-domain", "usr/README")
    assert sources.licence_of(tmp_path / "usr/b.png", package) == ("CC-BY-4.0", "usr/README")


@pytest.mark.parametrize(
    ("width", "height", "size_bytes", "factor"),
    [
        pytest.param(800, 600, 800 * 600 // 8, 2.0, id="coarse-is-halved"),
        pytest.param(800, 600, 800 * 600, 1.5, id="fine"),
        pytest.param(2400, 1600, 10, 3.0, id="long-side-to-800"),
        pytest.param(9000, 6000, 10, 6.0, id="no-more-than-6"),
        pytest.param(320, 240, 10, 1.5, id="short-side-stays-160"),
        pytest.param(300, 140, 10, 1.0, id="never-enlarged"),
    ],
)
def test_downscale_factor(width: int, height: int, size_bytes: int, factor: float) -> None:
    assert corpus.downscale_factor(width, height, size_bytes) == pytest.approx(factor)


def test_build_writes_what_the_manifest_says(tmp_path: Path, fetched: list[str]) -> None:
    assert corpus.main([str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/manifest.json").read_text())["photographs"]
    assert [(row["file"], row["licence"], row["native_size"], row["size"]) for row in rows] == [
        ("garden/beds-lily.png", "GPL-3+", [400, 300], [213, 160]),
        ("garden/beds-rose.png", "CC-BY-4.0", [400, 300], [213, 160]),
        ("garden/wild-rose.png", "CC0-1.0", [1600, 1200], [800, 600]),
    ]
    assert {(row["package"], row["version"]) for row in rows} == {("garden", "1.2-3")}
    assert rows[0]["source"] == "usr/share/garden/beds/images/lily.png"
    assert all(len(row["source_sha256"]) == len(row["pixels_sha256"]) == 64 for row in rows)
    for row in rows:
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert (image.mode, list(image.size)) == ("RGB", row["size"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"garden", "manifest.json"}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
@pytest.mark.parametrize(
    ("older", "newest"), [("1.9", "1.10"), ("2.0", "1:1.0"), ("2.0~rc1", "2.0")]
)
def test_of_two_versions_that_were_kept_the_newest_is_taken(
    tmp_path: Path, older: str, newest: str
) -> None:
    debs, tree = tmp_path / "packages", tmp_path / "tree"
    debs.mkdir()
    tree.mkdir()
    for version in (older, newest):
        root = tmp_path / version
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text(
            f"Package: garden\nVersion: {version}\nArchitecture: all\n"
            "Maintainer: Nobody <nobody@example.org>\nDescription: flowers\n"
        )
        (root / "version").write_text(version)
        deb = debs / f"garden_{version.replace(':', '%3a')}_all.deb"  # as apt-get names it
        corpus.run("dpkg-deb", "--build", str(root), str(deb), folder=tmp_path)
    assert corpus.fetch("garden", debs, tree) == newest
    assert (tree / "version").read_text() == newest


def test_missing_package_is_told_and_tolerated(
    tmp_path: Path, fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.main([str(tmp_path)]) == 0
    assert fetched == ["absent", "garden"]
    assert "absent: left out: apt-get: Unable to locate package" in capsys.readouterr().err


def test_nothing_to_be_had_is_a_failure(
    tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SELECTIONS", (ABSENT,))
    assert corpus.main([str(tmp_path)]) == 1


def test_second_run_over_a_whole_corpus_does_nothing(
    tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SELECTIONS", (GARDEN,))
    corpus.main([str(tmp_path)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    fetched.clear()
    assert corpus.main([str(tmp_path)]) == 0
    assert fetched == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("damage", ["lost", "emptied", "other-size"])
def test_second_run_mends_a_damaged_package(
    tmp_path: Path, fetched: list[str], damage: str
) -> None:
    corpus.main([str(tmp_path)])
    before = (tmp_path / "manifest.json").read_text()
    lily = tmp_path / "garden/beds-lily.png"
    if damage == "lost":
        lily.unlink()
    elif damage == "emptied":
        lily.write_bytes(b"")
    else:
        save(lily, 50, 50)
    corpus.main([str(tmp_path)])
    assert fetched.count("garden") == 2
    assert (tmp_path / "manifest.json").read_text() == before
    with Image.open(lily) as image:
        assert image.size == (213, 160)


def test_changed_selection_is_built_anew(
    tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.main([str(tmp_path)])
    wild = Selection("garden", "usr/share/garden", ("wild/images/*.png",), "GPL-2+")
    monkeypatch.setattr(corpus, "SELECTIONS", (wild,))
    corpus.main([str(tmp_path)])
    assert [path.name for path in (tmp_path / "garden").iterdir()] == ["wild-rose.png"]


def test_folder_of_someone_else_is_refused(tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / "garden").mkdir()
    with pytest.raises(SystemExit, match="2"):
        corpus.main([str(tmp_path)])
    assert fetched == []
    assert (tmp_path / "garden").is_dir()


def test_selections_take_each_package_once() -> None:
    packages = [selection.package for selection in load("corpus_selection").SELECTIONS]
    assert len(set(packages)) == len(packages)
