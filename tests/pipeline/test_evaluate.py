"""denoise-eval: scores that can be checked by hand, one seed one result, clear errors."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from denoise_batch.cli.evaluate import main
from denoise_batch.kernels import ShapeError
from denoise_batch.metrics import ssim


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
        (["tconv", "imgs", "--precision", "x"], 2), (["tconv", "small"], 1), ([], 2),
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
