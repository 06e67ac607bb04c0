"""`--preview`: a sheet to choose a level or a strength by, and nothing else."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from pictures import picture
from PIL import Image, ImageChops

from denoise_batch.cli.batch import main
from denoise_batch.models import Network, save_weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """imgs/ with a large image in colour, one in gray, and a small one; another current folder."""
    root = tmp_path / "imgs"
    root.mkdir()
    picture(500, 420, 1).save(root / "a.png")
    picture(420, 401, 2).convert("L").save(root / "b.png")
    picture(60, 50, 3).save(root / "c.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return root


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Weights of a network that takes a level."""
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(0))
    save_weights(tmp_path / "told.safetensors", network, {})
    return tmp_path / "told.safetensors"


def run(*arguments: object, weights: Path) -> int:
    return main([*map(str, arguments), "-w", str(weights), "-d", "cpu"])


class _Sheet(HTMLParser):
    """The page's pictures by their alternative texts, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, Image.Image] = {}
        self.references: list[str] = []
        self.feed(Path("denoise-preview.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.references += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            data = base64.b64decode(found["src"].partition(",")[2])
            self.pictures[found["alt"]] = Image.open(io.BytesIO(data))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def place_of(crop: Image.Image, whole: Image.Image) -> tuple[int, int]:
    """Where a crop was cut from an image of noise."""
    row = crop.convert("RGB").crop((0, 0, crop.width, 1)).tobytes()
    step = 3 * whole.width
    at = next(
        found
        for match in re.finditer(b"(?=" + re.escape(row) + b")", whole.convert("RGB").tobytes())
        if (found := match.start()) % 3 == 0
    )
    return at % step // 3, at // step


@pytest.mark.parametrize("kind", ["level", "strength"])
def test_crops_are_those_of_the_batch(
    kind: str, folder: Path, told: Path, weights: Path, tmp_path: Path
) -> None:
    chosen = told if kind == "level" else weights
    assert run(folder, "--preview", "3", weights=chosen) == 0
    sheet = _Sheet()
    name, values = {
        "level": ("noise-level", ("0.7x", "1x", "1.4x")),
        "strength": ("strength", ("0.5", "0.75", "1")),
    }[kind]
    seen = 0
    for value in values:
        out = tmp_path / value
        assert run(folder, "-o", out, f"--{name}", value, weights=chosen) == 0
        for file in ("a.png", "b.png", "c.png"):
            for what in ("detail", "smooth", "whole image"):
                crop = sheet.pictures.get(f"{file}, {what}: --{name} {value}")
                if crop is None:
                    continue
                seen += 1
                before = sheet.pictures[f"{file}, {what}: Input"]
                with Image.open(folder / file) as whole, Image.open(out / file) as after:
                    left, top = place_of(before, whole)
                    box = left, top, left + crop.width, top + crop.height
                    difference = ImageChops.difference(after.crop(box), crop.convert(after.mode))
                    most = max(high for _, high in _extrema(difference))
                    assert most <= 1, (file, what)  # rounding
    assert seen >= 3 * 4


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    found = image.getextrema()
    return [found] if isinstance(found[0], (int, float)) else list(found)  # type: ignore[list-item,arg-type]


def test_nothing_but_the_sheet_is_written(folder: Path, weights: Path, tmp_path: Path) -> None:
    before = files_of(tmp_path)
    assert run(folder, "--preview", "2", "-o", tmp_path / "out", weights=weights) == 0
    after = files_of(tmp_path)
    assert (
        after.keys() - before.keys()
        == {
            "here/denoise-preview.html",
            "here/denoise-preview.png",
            "untrained.safetensors",
        }
        - before.keys()
    )
    assert not (tmp_path / "out").exists()
    assert {name: after[name] for name in before} == before


def test_the_sheet_stands_alone_and_says_what_it_shows(
    folder: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--preview", "1", "--noise-level", "20", weights=told) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == [
        "denoise-preview.html",
        "denoise-preview.png",
    ]
    sheet = _Sheet()
    assert all(reference.startswith("data:") for reference in sheet.references)
    assert sorted({alt.partition(": ")[2] for alt in sheet.pictures}) == [
        "--noise-level 14",
        "--noise-level 20",
        "--noise-level 28",
        "Input",
    ]
    text = Path("denoise-preview.html").read_text(encoding="utf-8")
    assert "level 14.0" in text
    assert "<script" not in text
    with Image.open("denoise-preview.png") as shown:
        assert shown.width == 4 * 330 + 10
        assert shown.height > 320


def test_what_others_wrote_is_kept_and_an_older_sheet_replaced(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("denoise-preview.html", "denoise-preview.png"):
        Path(name).write_text("mine")
        assert run(folder, "--preview", "1", weights=weights) == 2
        assert "was not written by --preview" in capsys.readouterr().err
        assert Path(name).read_text() == "mine"
        Path(name).unlink()
    assert list(Path().iterdir()) == []
    for _ in range(2):
        assert run(folder, "--preview", "1", weights=weights) == 0


def test_images_that_fail_are_named_and_others_take_their_place(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    assert run(folder, "--preview", "2", "--log", "json", weights=weights) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["warning", "preview"]
    assert "a.png" in events[0]["reason"]
    assert {alt.partition(",")[0] for alt in _Sheet().pictures} == {"b.png", "c.png"}
    assert "a.png" in Path("denoise-preview.html").read_text(encoding="utf-8")


def test_no_sheet_without_any_image(folder: Path, weights: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    assert run(folder, "--preview", "2", weights=weights) == 6
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preview", "0"], "from 1 to 50"),
        (["--preview", "51"], "from 1 to 50"),
        (["--preview", "2", "--dry-run"], "leave out --dry-run"),
        (["--preview", "2", "--watch", "5"], "leave out --dry-run"),
        (["--preview", "2", "--report", "r.json"], "leave out --dry-run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], says: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *arguments, weights=weights) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert list(Path().iterdir()) == []


def test_a_batch_passes_the_sheet_over(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    assert run(".", "--preview", "1", weights=weights) == 0
    for source in (".", "*.png"):
        out = tmp_path / f"out{len(source)}"
        assert run(source, "-o", out, weights=weights) == 0
        assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "b.png", "c.png"]


def test_an_upright_crop_of_a_turned_photograph(folder: Path, weights: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    exif = Image.Exif()
    exif[274] = 6
    picture(300, 200, 4).save(folder / "turned.jpg", exif=exif)
    assert run(folder, "--preview", "1", weights=weights) == 0
    assert _Sheet().pictures["turned.jpg, whole image: Input"].size == (200, 300)


def test_urls_are_previewed_and_stay_as_they_are(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pytest.importorskip("fsspec").filesystem("memory")
    (folder / "b.png").write_bytes(b"no picture")
    for path in folder.iterdir():
        files.pipe_file(f"bucket/imgs/{path.name}", path.read_bytes())
    try:
        before = files.find("bucket")
        urls = "memory://bucket/imgs", "-o", "memory://bucket/out"
        assert run(*urls, "--preview", "3", weights=weights) == 1
        assert files.find("bucket") == before
    finally:
        files.store.clear()
        files.pseudo_dirs[:] = [""]
    assert "memory://bucket/imgs/b.png: " in capsys.readouterr().err
    assert {alt.partition(",")[0] for alt in _Sheet().pictures} == {"a.png", "c.png"}
