"""What a run says of its size before it begins."""

import json
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files.footprint import Footprint, PageSize
from denoise_batch.streaming import estimate
from denoise_batch.streaming.stream import LocalEngine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 2400 pixels in all, of 600, 800 and 1000: PNG, JPEG, TIFF of two pages."""
    root = tmp_path / "imgs"
    root.mkdir()
    picture(30, 20, 0).save(root / "a.png")
    picture(40, 20, 1).save(root / "b.jpg")
    pages = [picture(25, 20, index) for index in (2, 3)]
    pages[0].save(root / "c.tif", save_all=True, append_images=pages[1:])
    return root


def run(
    capsys: pytest.CaptureFixture[str], folder: Path, weights: Path, *more: str
) -> tuple[str, list[dict[str, object]]]:
    """All that was said, and its JSON lines."""
    capsys.readouterr()
    assert main([str(folder), "-w", str(weights), "-d", "cpu", *more]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("{")]
    return captured.out + captured.err, [json.loads(line) for line in lines]


def of_plan(events: list[dict[str, object]]) -> dict[str, object]:
    (found,) = (event for event in events if event["event"] == "estimate")
    return found


def test_a_dry_run_tells_size_bytes_and_time(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    _, events = run(capsys, folder, weights, "--dry-run", "--log", "json")
    found = of_plan(events)
    assert (found["images"], found["looked_at"], found["megapixels"]) == (3, 3, 0.002)
    assert (found["input_bytes"], found["output_bytes"]) == (size, size)
    assert found["basis"] == "network"
    text, _ = run(capsys, folder, weights, "--dry-run")
    assert "estimate: 3 images, 0.0 MP, " in text
    assert " kB to read, about " in text
    assert " for the network alone" in text
    text, _ = run(capsys, folder, weights, "--dry-run", "--format", "png")
    assert "to write" not in text  # in another format it would be a guess


def test_the_last_run_s_speed_counts_for_runs_like_it(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, folder, weights, "--limit", "1")
    assert not list(folder.with_name("imgs-denoised").glob("*/speed.json"))  # too short to tell
    monkeypatch.setattr(estimate, "_LEAST_S", 0.0)
    text, events = run(capsys, folder, weights, "--log", "json")
    (start,) = (event["estimate"] for event in events if event["event"] == "start")
    assert isinstance(start, dict)
    assert (start["images"], start["seconds"]) == (2, None)  # too short to measure first
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    found = of_plan(run(capsys, folder, weights, "--dry-run", "--log", "json")[1])
    assert (found["images"], found["basis"]) == (1, "last run")
    read = (folder / "d.png").stat().st_size
    assert found["output_bytes"] != read
    text, _ = run(capsys, folder, weights, "--dry-run")
    assert "estimate: 1 image, " in text
    assert " at the last run's speed" in text
    other = of_plan(run(capsys, folder, weights, "--dry-run", "--log", "json", "--tta")[1])
    assert other["basis"] == "network"


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[1]", b"{}", b'{"run": 1, "megapixels_per_second": "x", "bytes_ratio": 1}',
     b"[" * 4000, b"\xff", b" " * 5000],
)  # fmt: skip
def test_hostile_state_is_no_speed(
    content: bytes,
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "_LEAST_S", 0.0)
    run(capsys, folder, weights)
    file = folder.with_name("imgs-denoised") / ".denoise-batch" / "speed.json"
    assert file.exists()
    file.write_bytes(content)
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    found = of_plan(run(capsys, folder, weights, "--dry-run", "--log", "json")[1])
    assert found["basis"] == "network"


def test_plain_runs_and_bars_tell_it_and_quiet_ones_look_at_nothing(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = run(capsys, folder, weights, "--log", "plain")
    assert text.count("estimate: 3 images, 0.0 MP, ") == 1
    monkeypatch.setattr(estimate, "read_head", None)
    text, _ = run(capsys, folder, weights, "--quiet", "--overwrite")
    assert text == ""


def test_of_many_files_a_sample_is_looked_at_and_told_so(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        picture(24, 20, number).save(folder / f"{number}.png")
    monkeypatch.setattr(estimate, "MOST_HEADS", 10)
    text, _ = run(capsys, folder, weights, "--dry-run")
    assert "estimate (by 10 of them): 43 images, 0.0 MP" in text
    monkeypatch.setattr(estimate, "MOST_HEADS", 40)
    monkeypatch.setattr(estimate, "_LOOK_S", 0.0)  # a slow file system
    text, _ = run(capsys, folder, weights, "--dry-run")
    assert "estimate (by 16 of them): 43 images" in text


def test_heads_tell_the_pixels_of_every_format(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing else of the file is whole."""
    folder = tmp_path / "imgs"
    folder.mkdir()
    suffixes = ("png", "jpg", "webp", "bmp", "ppm", "tga", "jp2", "avif", "gif", "tif")
    for suffix in suffixes:
        Image.effect_noise((200, 100), 40).convert("RGB").save(folder / f"a.{suffix}")
    (folder / "bad.png").write_bytes(b"no picture")
    found = of_plan(run(capsys, folder, weights, "--dry-run", "--log", "json")[1])
    assert found["megapixels"] == pytest.approx(0.02 * (len(suffixes) + 1))


def test_a_large_run_measures_the_network_first(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Footprint([PageSize(50_000_000, 3, 1)])
    monkeypatch.setattr(estimate, "read_head", lambda path: large)
    monkeypatch.setattr(LocalEngine, "megapixels_per_second", lambda engine: 0.01)
    text, _ = run(capsys, folder, weights, "--log", "plain")
    assert "estimate: 3 images, 150.0 MP, " in text
    assert "about 4.2 h for the network alone" in text
