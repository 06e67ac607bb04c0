"""denoise-eval: scores that can be checked by hand, one seed one result, clear errors."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from pictures import blobs
from PIL import Image
from scipy.stats import rankdata, wilcoxon
from skimage.metrics import structural_similarity

from denoise_batch.cli.evaluate import main
from denoise_batch.comparison import Comparison, bootstrap_interval, signed_rank_p
from denoise_batch.evaluate import EvalOptions, Scorer
from denoise_batch.files.images import read_pages
from denoise_batch.kernels import ShapeError
from denoise_batch.metrics import psnr, ssim
from denoise_batch.models import Network, save_weights


@pytest.mark.parametrize("shape", [(3, 40, 33), (1, 11, 11), (1, 64, 20)], ids=str)
def test_ssim_agrees_with_scikit_image(shape: tuple[int, ...]) -> None:
    clean = torch.rand(shape, dtype=torch.float64)
    noisy = clean + 0.1 * torch.randn(shape, dtype=torch.float64)
    # scikit-image mirrors at the edges and crops them again: the same as windows that fit.
    expected = structural_similarity(
        noisy.numpy(), clean.numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(noisy, clean) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_an_image_with_itself_is_1() -> None:
    image = torch.rand(3, 20, 20)
    assert ssim(image, image) == pytest.approx(1.0)


def test_ssim_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ShapeError, match="equal shapes"):
        ssim(torch.rand(3, 20, 20), torch.rand(3, 20, 21))
    with pytest.raises(ShapeError, match="11 pixels"):
        ssim(torch.rand(3, 10, 20), torch.rand(3, 10, 20))


def scores(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
    result: dict = json.loads(capsys.readouterr().out)
    return result


def test_noise_of_sigma_25_stands_at_20_17_db(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = scores(capsys, weights, photographs, "--noise", "gaussian:25", "--noise", "poisson:9")
    assert len(result["images"]) == 20
    first = result["means"][0]
    assert first["noise"] == "gaussian:25"
    assert first["psnr_in"] == pytest.approx(20.17, abs=0.1)
    assert first["set_psnr_in"] == pytest.approx(20.17, abs=0.1)
    mean = sum(row["psnr_out"] for row in result["images"][::2]) / 10
    assert first["psnr_out"] == pytest.approx(mean)


def test_json_has_null_for_a_perfect_score(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(weights), str(photographs), "--noise", "gaussian:0", "--json", "-d", "cpu"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["images"][0]["psnr_in"] is None
    assert result["images"][0]["psnr_out"] > 0
    assert result["means"][0]["psnr_in"] is result["means"][0]["set_psnr_in"] is None


def test_the_seed_decides_the_noise(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scores(capsys, weights, photographs) == scores(capsys, weights, photographs)
    other = scores(capsys, weights, photographs, "--seed", 1)
    assert other != scores(capsys, weights, photographs)


def test_gray_works_too(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray, colour = (scores(capsys, weights, photographs, *a)["means"][0] for a in (["--gray"], []))
    assert gray["psnr_in"] == pytest.approx(colour["psnr_in"], abs=0.5)
    assert gray != colour


def test_low_precision_is_refused_on_a_processor(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(weights), str(photographs), "--precision", "bf16", "--device", "cpu"]
    assert main(arguments) == 2
    assert "--precision bf16 on a processor" in capsys.readouterr().err


def test_the_ensemble_of_eight_is_a_little_better(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = scores(capsys, "tconv", photographs)["means"][0]
    eight = scores(capsys, "tconv", photographs, "--tta")["means"][0]
    assert eight["psnr_in"] == one["psnr_in"]
    assert one["psnr_out"] + 0.005 < eight["psnr_out"] < one["psnr_out"] + 1


def test_the_table_ends_with_the_means(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(weights), str(photographs), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "PSNR out" in out
    assert "mean" in out
    assert "one MSE over all" in out


def test_the_table_takes_no_name_for_markup(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs / "set0"
    (folder / "0.png").rename(folder / "a[edited].png")
    (folder / "x[").mkdir()
    (folder / "2.png").rename(folder / "x[" / "y].png")
    assert main([str(weights), str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "a[edited].png" in out
    assert "x[/y].png" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["tconv", "none"], 2), (["tconv", "empty"], 3), (["none.safetensors", "imgs"], 5),
        (["tconv", "imgs", "--noise", "x"], 2), (["tconv", "imgs", "--device", "x"], 2),
        (["tconv", "imgs", "--precision", "x"], 2), (["tconv", "small"], 1), ([], 2), (["imgs"], 2),
        (["tconv", "tconv", "tconv", "imgs"], 2), (["tconv", "tconv", "imgs", "--suite"], 2),
        (["tconv", "none.safetensors", "imgs"], 5), (["tconv", "tconv", "empty"], 3),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_use_ends_with_the_documented_code(
    arguments: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("imgs", "empty", "small"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "imgs" / "a.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "small" / "a.png")
    assert main(arguments) == code
    assert capsys.readouterr().err


def test_two_weights_are_compared_image_by_image(
    weights: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it says of each is what each gets alone; the untrained one loses on every image."""
    result = scores(capsys, weights, "tconv", photographs, "--noise", "gaussian:25")
    alone = [scores(capsys, one, photographs)["images"] for one in (weights, "tconv")]
    expected = [b["psnr_out"] - a["psnr_out"] for a, b in zip(*alone, strict=True)]
    assert [row["difference"] for row in result["images"]] == pytest.approx(expected)
    (found,) = result["comparisons"]
    assert found["difference"] == pytest.approx(sum(expected) / 10)
    assert found["low"] < found["difference"] < found["high"]
    assert (found["images"], found["wins"], found["losses"]) == (10, 10, 0)
    assert found["p"] == pytest.approx(2 / 2**10)
    assert found["verdict"].startswith(f"tconv is better than {weights} by ")

    assert main(["tconv", str(weights), str(photographs), "-d", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"A: tconv\nB: {weights}\n")
    assert "B − A" in out
    *_, last = out.splitlines()
    assert last.startswith("gaussian:25: A is better than B by ")
    assert "10 images, better on 10, worse on 0)" in last


def test_the_same_weights_twice_are_no_better(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tconv", "tconv", str(photographs), "-d", "cpu"]) == 0
    assert "A and B score the same on every image." in capsys.readouterr().out


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder with one stack of three clean pictures, of 1000 to 4000 counts."""
    (tmp_path / "clean").mkdir()
    pages = np.stack([blobs(64, number)[0].numpy() for number in range(3)])
    pages = (1000 + 3000 * (pages - pages.min()) / np.ptp(pages)).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "clean" / "a.tif", pages, photometric="minisblack")
    return tmp_path / "clean"


def with_range(path: Path, low: float, high: float) -> Path:
    network = Network("tconv", generator=torch.Generator().manual_seed(0))
    save_weights(path, network, {"range": [low, high]})
    return path


def test_deep_pictures_are_scored_in_the_range_that_denoise_batch_finds(
    weights: Path, stack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every page is a picture; σ 25 is 25/255 of its file's range, not of 65535 counts."""
    found = scores(capsys, weights, stack, "--noise", "gaussian:25")["images"]
    assert [row["image"] for row in found] == [f"a.tif, page {number}" for number in (1, 2, 3)]
    scorer = Scorer(EvalOptions(str(weights), stack, (), device="cpu"))
    for row, page in zip(found, read_pages(stack / "a.tif"), strict=True):
        noisy, clean = scorer.add_noise("gaussian:25", row["image"], page.to_unit())
        assert clean.amax() - clean.amin() > 0.8
        denoised, _ = scorer.denoise(noisy)
        assert row["psnr_in"] == pytest.approx(psnr(noisy, clean))
        assert row["psnr_out"] == pytest.approx(psnr(denoised, clean))


def test_weights_with_a_range_and_without_see_the_same_pictures(
    weights: Path, stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranged = with_range(tmp_path / "ranged.safetensors", 500, 5500)
    result = scores(capsys, weights, ranged, stack)
    assert result["range"] == [500, 5500]
    assert [row["difference"] for row in result["images"]] == [0, 0, 0]
    alone = scores(capsys, ranged, stack)["images"]
    assert [row["psnr_second"] for row in result["images"]] == [row["psnr_out"] for row in alone]
    assert scores(capsys, weights, weights, stack)["range"] is None
    assert main([str(weights), str(ranged), str(stack), "-d", "cpu"]) == 0
    assert "500 is black, 5500 is white for both" in capsys.readouterr().out
    other = with_range(tmp_path / "other.safetensors", 0, 4095)
    assert main([str(other), str(ranged), str(stack), "-d", "cpu"]) == 2
    assert "other.safetensors with 0-4095, " in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 5, 12, 25, 150, 400])
def test_the_signed_rank_test_agrees_with_scipy(count: int) -> None:
    for shift in (0.0, 0.3, -1.0):
        values = torch.randn(count, dtype=torch.float64) + shift
        method = "exact" if count <= 200 else "approx"
        expected = wilcoxon(values.numpy(), method=method).pvalue
        assert signed_rank_p(values) == pytest.approx(expected, rel=1e-9)


def test_the_signed_rank_test_counts_ties_and_leaves_out_zeros() -> None:
    values = [0.5, 0.5, -0.5, 1.0, 1.0, 1.0, -2.0, 3.0]
    ranks = rankdata([abs(value) for value in values])
    found = sum(rank for rank, value in zip(ranks, values, strict=True) if value > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(values))
    ]
    tail = min(sum(s <= found for s in sums), sum(s >= found for s in sums)) / len(sums)
    tensor = torch.tensor([*values, 0.0, 0.0], dtype=torch.float64)
    assert signed_rank_p(tensor) == pytest.approx(2 * tail)
    assert signed_rank_p(torch.zeros(3, dtype=torch.float64)) == 1.0


def test_the_bootstrap_s_interval_is_that_of_a_mean() -> None:
    values = torch.randn(200, dtype=torch.float64) + 1
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 200**0.5
    assert low == pytest.approx(float(values.mean()) - half, abs=0.02)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {},
            "second is better than first by 0.30 dB on average (95 % interval 0.20 to 0.45 dB, "
            "p = 0.001; 24 images, better on 22, worse on 2).",
        ),
        (
            {"difference": -0.3, "low": -0.45, "high": -0.2, "wins": 3, "losses": 21},
            "first is better than second by 0.30 dB on average (95 % interval 0.20 to 0.45 dB, "
            "p = 0.001; 24 images, better on 21, worse on 3).",
        ),
        ({"p": 0.06}, "No clear difference: second scores higher by 0.30 dB"),
        ({"low": -0.1}, "No clear difference: second scores higher by 0.30 dB"),
        ({"images": 5}, "second scores higher by 0.30 dB"),
        ({"wins": 0, "losses": 0}, "first and second score the same on every image."),
    ],
    ids=str,
)
def test_the_verdict_is_a_plain_sentence(change: dict[str, Any], words: str) -> None:
    sure = Comparison("gaussian:25", 24, 0.3, 0.2, 0.45, 0.001, 22, 2)
    assert replace(sure, **change).verdict("first", "second").startswith(words)


def test_a_picture_that_says_nothing_is_refused(
    tmp_path: Path, stack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_range(tmp_path / "far.safetensors", -500, 500)
    assert main(["tconv", str(tmp_path / "far.safetensors"), str(stack), "-d", "cpu"]) != 0
    assert "nearly all samples lie beyond -500-500" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "empty").mkdir()
    nothing = np.full((40, 40), np.nan, np.float32)
    tifffile.imwrite(tmp_path / "empty" / "a.tif", nothing, photometric="minisblack")
    assert main(["tconv", str(tmp_path / "empty"), "-d", "cpu"]) != 0
    assert "has no pixel with a value" in " ".join(capsys.readouterr().err.split())
