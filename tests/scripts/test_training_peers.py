"""scripts/bench training-peers: its data, its table, and peers that are not there."""

import importlib
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
SMALL = ["--stacks", "2", "--shots", "3", "--unseen", "1", "--px", "32"]


@pytest.fixture(autouse=True)
def _siblings_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def sibling(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["photons", "white"])
def test_noise_has_the_mean_and_the_variance_that_it_says(name: str) -> None:
    microscope = sibling("microscope")
    camera = microscope.CAMERAS[name]
    scene = microscope.draw_scene("0", 24)
    shots = camera.shoot(scene, 4000, np.random.default_rng(0)).astype(np.float64)
    variance = np.full(scene.shape, float(camera.sigma) ** 2)
    if camera.photons:  # arrive by chance: their variance is their mean
        variance += scene * camera.photons * camera.gain**2
    off = np.abs(shots.mean(0) - microscope.to_counts(scene))
    assert scene.max() == 1
    assert off.max() < 5 * np.sqrt(variance.max() / 4000)
    np.testing.assert_allclose(shots.var(0), variance, rtol=0.15)


def test_stacks_of_photons_are_16_bit_of_a_microscopes_range(tmp_path: Path) -> None:
    microscope = sibling("microscope")
    camera = microscope.CAMERAS["photons"]
    clean = microscope.make_stacks(tmp_path / "unseen", camera, stacks=2, shots=20, px=256, seed=0)
    noisy = np.load(tmp_path / "unseen.npy")
    assert noisy.dtype == np.uint16
    assert noisy.shape == (2, 20, 256, 256)
    assert clean.shape == (2, 1, 256, 256)
    assert camera.photons == 40
    assert noisy.min() == pytest.approx(992, abs=30)
    assert noisy.max() == pytest.approx(5312, abs=400)
    with Image.open(tmp_path / "unseen" / "001.tif") as image:
        pages = [np.asarray(page) for page in ImageSequence.Iterator(image)]
    np.testing.assert_array_equal(np.stack(pages), noisy[1])


def test_seed_and_name_of_the_folder_decide_the_stacks(tmp_path: Path) -> None:
    microscope = sibling("microscope")
    first, again, part, seed = (
        microscope.make_stacks(
            tmp_path / str(number) / name, microscope.CAMERAS["white"],
            stacks=1, shots=2, px=32, seed=seed,
        )
        for number, (name, seed) in enumerate([("a", 0), ("a", 0), ("b", 0), ("a", 1)])
    )  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, part)
    assert not np.array_equal(first, seed)
    np.testing.assert_array_equal(np.load(tmp_path / "0/a.npy"), np.load(tmp_path / "1/a.npy"))


@pytest.mark.parametrize("photons", [2, 4, 10, 40])
def test_anscombe_makes_sigma_1_and_its_inverse_keeps_the_mean(photons: int) -> None:
    peers = sibling("denoising_peers")
    camera = (gain, offset, sigma) = (72.0, 1100.0, 24.0)
    chance = np.random.default_rng(photons)
    counts = chance.poisson(photons, 200_000) * gain + offset + chance.normal(0, sigma, 200_000)
    stable = peers.to_stable(counts, *camera)
    assert stable.std() == pytest.approx(1, abs=0.02)
    assert peers.from_stable(stable.mean(), *camera) == pytest.approx(counts.mean(), rel=0.005)
    assert peers.from_stable(np.array([0.0]), *camera) == pytest.approx(offset, abs=0.1 * gain)


def test_psnr_has_one_range_for_all() -> None:
    bench, microscope = sibling("training_peers"), sibling("microscope")
    clean = np.full((2, 1, 4, 4), 2000.0)
    tenth = (microscope.WHITE - microscope.BLACK) / 10
    noisy = clean + tenth * np.ones((2, 3, 1, 1))
    noisy[1] = clean[1] + tenth / 10
    assert bench.psnr(noisy, clean) == pytest.approx((20 + 40) / 2)


def entry(method: str, data: str, psnr: float, minutes: float | None = None) -> dict[str, Any]:
    return {"method": method, "data": data, "minutes": minutes, "psnr": psnr, "status": "ok"}


def test_the_table_has_the_results_figures() -> None:
    missing = {"status": "not installed", "reason": "ModuleNotFoundError: bm3d", "minutes": None}
    result = {
        "device": "a processor", "cores": 2, "versions": {"torch": "2.13"},
        "train": "--init mine",
        "data": {"photons": {}, "white": {}},
        "results": [
            entry("noisy", "photons", 21.004),
            entry("bursts", "photons", 31.5, 0.4),
            {"method": "bm3d", "data": "photons"} | missing,
            entry("noisy", "white", 20),
            entry("bursts", "white", 30.126, 0.4),
        ],
    }  # fmt: skip
    lines = sibling("training_peers").table(result).splitlines()
    assert lines[1:4] == [
        "|--|--|--|--|",
        "| noisy |  | 21.00 | 20.00 |",
        "| `denoise-train --bursts` | 0.4 | 31.50 | 30.13 |",
    ]
    assert lines[0].count("|") == lines[1].count("|")
    assert lines[-3:] == [
        "a processor, 2 cores, torch 2.13",
        "denoise-train --init mine",
        "BM3D, told σ: not installed: ModuleNotFoundError: bm3d",
    ]


def test_a_peer_that_is_not_installed_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    python.chmod(0o755)
    file = tmp_path / "result.json"
    arguments = ["--only", "noisy,n2v", "--peers-python", str(python), "--json", str(file)]
    assert sibling("training_peers").main([*SMALL, *arguments]) == 0
    result = json.loads(file.read_text())
    assert [r["status"] for r in result["results"]] == ["ok", "not installed", "ok"]
    out = capsys.readouterr().out
    assert out.count("CAREamics") == 1
    assert "CAREamics, Noise2Void: not installed: ModuleNotFoundError" in out


def test_ours_trains_and_denoises_beside_a_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    train = "--network tconv --tiles 64 --validation-tiles 4 --batch-size 2"
    arguments = ["--only", "noisy,gaussian,bursts", "--data", "photons", "--minutes", "0.005"]
    arguments += ["--train", train, "--json", str(file)]
    assert sibling("training_peers").main([*SMALL, *arguments]) == 0
    result = json.loads(file.read_text())
    noisy, gaussian, bursts = result["results"]
    assert gaussian["choice"].startswith("σ ")
    assert gaussian["psnr"] > noisy["psnr"] + 2
    assert "scikit-image" in result["versions"]
    assert bursts["minutes"] == 0.005
    assert f"| 0.005 | {bursts['psnr']:.2f} |" in capsys.readouterr().out


def test_ours_that_fails_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "bursts", "--data", "white", "--minutes", "1", "--train=--no-such"]
    assert sibling("training_peers").main([*SMALL, *arguments]) == 1
    out = capsys.readouterr().out
    assert "`denoise-train --bursts`: failed: " in out
    assert "No such option" in out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--only", "magic"], "unknown magic"),
        (["--peers-python", "no-such-python"], "no-such-python: no such program"),
    ],
)
def test_wrong_use_is_refused(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sibling("training_peers").main(wrong)
    assert message in capsys.readouterr().err
