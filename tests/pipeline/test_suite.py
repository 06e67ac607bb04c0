"""denoise-eval --suite: its rows, pairs and floors; the floors of the default weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from pictures import picture
from PIL import Image

from denoise_batch import suite as rows_of_suite
from denoise_batch.cli.evaluate import main
from denoise_batch.files.images import read_image
from denoise_batch.models import ARCHITECTURES, Network, save_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(64, 48, 0).save(folder / "a.png")
    picture(48, 49, 1).convert("L").save(folder / "b.png")
    return folder


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Two pairs; the first one's noisy shot is its clean one, the second one's is 10 levels off."""
    folder = tmp_path / "shots"
    for part in ("noisy", "clean"):
        (folder / part).mkdir(parents=True)
        picture(40, 32, 2).save(folder / part / "same.png")
        Image.new("RGB", (40, 32), (110 if part == "noisy" else 100,) * 3).save(
            folder / part / "off.png"
        )
    return folder


def suite(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    assert main([*map(str, arguments), "--suite", "--json", "-d", "cpu"]) == code
    result: dict = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return result


def test_every_row_says_what_came_in_and_what_came_out(
    photos: Path, shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = suite(capsys, "tconv", photos, "--pairs", shots)
    rows = {row["row"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    for sigma in (2, 5, 15, 25, 50, 75):
        row = rows[f"white {sigma}"]
        assert row["images"] == 2
        noisy = -20 * torch.tensor(sigma / 255).log10().item()
        assert row["psnr_in"] == pytest.approx(noisy, abs=0.2)
    assert rows["white 25"]["psnr_out"] > rows["white 25"]["psnr_in"] + 1
    assert rows["8-bit 75"]["psnr_in"] > rows["white 75"]["psnr_in"] + 0.5
    assert rows["gray 25"]["images"] == rows["gray clean"]["images"] == 1
    # The margins, an eighth of the shorter side, have no noise.
    assert rows["framed 25"]["psnr_in"] > rows["8-bit 25"]["psnr_in"] + 1
    assert rows["clean"]["psnr_in"] == rows["flat"]["psnr_in"] == 100
    assert rows["clean"]["psnr_out"] < 60
    assert rows["graphics 10"]["images"] >= 12
    assert rows["graphics clean"]["lowest"] <= rows["graphics clean"]["psnr_out"]
    assert rows["flat"]["images"] >= 9
    assert {"camera", "raw", "JPEG 75", "coarse 15", "photons 30", "signal-dependent"} <= set(rows)
    pairs = rows["pairs shots"]
    assert pairs["images"] == 2
    off = -20 * torch.tensor(10 / 255).log10().item()
    assert pairs["psnr_in"] == pytest.approx((100 + off) / 2, abs=0.01)
    assert pairs["worst"] == "same.png"
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert result["missed"] == []


def test_the_rows_of_white_noise_are_those_of_the_command_without_suite(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["row"]: row for row in suite(capsys, "tconv", photos)["rows"]}
    arguments = ["tconv", str(photos), "--noise", "gaussian:25", "--noise", "camera", "--json"]
    assert main([*arguments, "-d", "cpu"]) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    for row, mean in zip(("white 25", "camera"), means, strict=True):
        assert rows[row]["psnr_out"] == pytest.approx(mean["psnr_out"], abs=1e-6)


def test_missed_floors_are_named_and_end_with_1(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floors = tmp_path / "floors.json"
    wanted = {"white 25": {"psnr_out": 99, "worst_gain": -99}, "flat": {"largest": 0.001}}
    floors.write_text(json.dumps(wanted | {"pairs none": {"psnr_out": 1}}))
    result = suite(capsys, "tconv", photos, "--floors", floors, code=1)
    missed = {(line["row"], line["field"]) for line in result["missed"]}
    assert missed == {("white 25", "psnr_out"), ("flat", "largest"), ("pairs none", "psnr_out")}
    assert main(["tconv", str(photos), "--suite", "--floors", str(floors), "-d", "cpu"]) == 1
    output = capsys.readouterr()
    assert "white 25: psnr_out is" in output.err
    assert "the floor is 99" in output.err
    assert "pairs none: psnr_out is not scored" in output.err
    assert "worst gain" in output.out


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"clean": {"psnr": 1}}', '{"clean": {"bias": "x"}}']
)
def test_a_file_that_holds_no_floors_is_refused_before_anything_is_scored(
    content: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floors = tmp_path / "floors.json"
    floors.write_text(content)
    assert main(["tconv", str(photos), "--suite", "--floors", str(floors)]) == 2
    assert "--floors" in capsys.readouterr().err


def test_wrong_use_is_said(photos: Path, shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        code = main(["tconv", str(photos), *map(str, arguments), "-d", "cpu"])
        return f"{code} {capsys.readouterr().err}"

    assert error("--pairs", shots).startswith("2 error: --pairs")
    assert error("--suite", "--noise", "camera").startswith("2 error: --suite")
    assert "noisy and clean" in error("--suite", "--pairs", photos)
    both = ("--pairs", shots, "--pairs", shots / ".." / shots.name)
    assert f"two folders are named {shots.name}" in error("--suite", *both)
    (shots / "clean" / "off.png").unlink()
    assert "off.png: no clean image" in error("--suite", "--pairs", shots)
    picture(20, 20, 3).save(shots / "clean" / "off.png")
    assert "off.png: differs in size" in error("--suite", "--pairs", shots)


def test_deep_pairs_are_scored_in_one_range(
    photos: Path, shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strong noise makes the range of its file wider than that of the clean one."""
    for part in ("noisy", "clean"):
        for path in (shots / part).iterdir():
            path.unlink()
    random = np.random.default_rng(0)
    clean = random.integers(500, 2500, (8, 8)).repeat(8, 0).repeat(8, 1)
    noisy = clean + random.normal(0, 200, clean.shape).clip(-450, 450)
    for part, values in (("clean", clean), ("noisy", noisy)):
        tifffile.imwrite(shots / part / "a.tif", values.round().astype(np.uint16))
    (row,) = (
        row
        for row in suite(capsys, "tconv", photos, "--pairs", shots)["rows"]
        if row["row"] == "pairs shots"
    )
    low, high = np.quantile(noisy, [0, 1])
    rms = np.sqrt(((noisy - clean) ** 2).mean())
    assert row["psnr_in"] == pytest.approx(20 * np.log10((high - low) / rms), abs=0.5)


def test_the_default_weights_hold_their_floors_on_the_samples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = ROOT / "docs" / "samples"
    default = json.loads((ROOT / "weights" / "manifest.json").read_text())["default"]
    assert read_image(samples / "clean" / "chelsea.png").size == (213, 320)
    arguments = [
        default,
        str(samples / "clean"),
        "--suite",
        "--floors",
        str(samples / "floors.json"),
    ]
    assert main([*arguments, "-d", "cpu"]) == 0, capsys.readouterr().err


def test_the_network_is_told_the_level_that_is_asked_for(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = [row for row in rows_of_suite.ROWS if row.name in ("clean", "flat", "white 25")]
    monkeypatch.setattr(rows_of_suite, "ROWS", few)
    path = tmp_path / "told.safetensors"
    told = next(name for name, spec in ARCHITECTURES.items() if spec.takes_level)
    save_weights(path, Network(told, generator=torch.Generator().manual_seed(0)), {})

    def rows(level: str) -> dict[str, dict[str, float]]:
        found = suite(capsys, path, photos, "--noise-level", level)["rows"]
        return {row["row"]: row for row in found}

    nothing, estimated, doubled = rows("0"), rows("auto"), rows("2x")
    assert nothing["clean"]["psnr_out"] == 100
    assert nothing["flat"]["largest"] == 0
    assert nothing["white 25"]["level"] == 0
    assert estimated["white 25"]["level"] > 0
    assert doubled["clean"]["level"] == pytest.approx(2 * estimated["clean"]["level"])
    assert main([str(path), str(photos), "--suite", "--noise-level", "x"]) == 2
    assert "--noise-level" in capsys.readouterr().err
