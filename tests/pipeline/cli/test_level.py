"""`--noise-level` as its user sees it: pixels, table, reports, notes and errors."""

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch import Denoiser, denoise, models
from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_image
from denoise_batch.kernels import OptionError
from denoise_batch.models import Network, find_weights, load_weights, save_weights
from denoise_batch.streaming.denoiser import Forward


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/a.png, imgs/b.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    picture(48, 33, 1).save(root / "a.png")
    picture(64, 48, 2).convert("L").save(root / "b.png")
    return root


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Weights of a network that takes a level, large enough to change every pixel."""
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(0))
    for parameter in network.layers.parameters():
        parameter.normal_(0, 0.5 * max(parameter[0].numel(), 4) ** -0.5)
    save_weights(tmp_path / "told.safetensors", network, {})
    return tmp_path / "told.safetensors"


def estimating(sigma: float) -> Network:
    """A network that estimates this level, of 255, for every image that is not drawn."""
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(0))
    assert network.estimator is not None
    for parameter in network.estimator.parameters():
        parameter.zero_()
    network.estimator.parameters()[-1][0] = math.log(math.expm1(sigma**0.5))  # behind softplus
    return network


def run(*arguments: object, weights: Path | str) -> int:
    return main([*map(str, arguments), "-w", str(weights), "-d", "cpu"])


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def expected(image: torch.Tensor, weights: Path, level: float | None) -> torch.Tensor:
    network = load_weights(weights).network
    padded = network.pad(image[None])
    of_batch = None if level is None else torch.tensor([level])
    rows, columns = (slice(network.margin, network.margin + size) for size in image.shape[1:])
    return Forward(network)(padded, of_batch)[0, :, rows, columns]


@pytest.mark.parametrize(
    ("given", "level"), [("10", 10 / 255), ("0.5", 0.5 / 255), ("auto", None)], ids=str
)
def test_the_network_is_told_the_level(
    folder: Path, told: Path, tmp_path: Path, given: str, level: float | None
) -> None:
    out = tmp_path / "out"
    assert run(folder, "-o", out, "--noise-level", given, weights=told) == 0
    for name in ("a.png", "b.png"):
        before, after = (read_image(root / name).to_unit() for root in (folder, out))
        wanted = expected(before, told, level).clamp(0, 1)
        torch.testing.assert_close(after, wanted, atol=0.51 / 255, rtol=0)


def test_the_level_stands_in_table_and_reports(
    folder: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [f"--report={tmp_path / 'r'}.{kind}" for kind in ("json", "csv", "html")]
    assert run(folder, "--noise-level", "12.5", *reports, weights=told) == 0
    table = capsys.readouterr().out
    assert "level" in table
    assert table.count("12.5") == 3  # two images and their mean
    document = report(tmp_path / "r.json")
    assert document["options"]["noise_level"] == "12.5"
    assert document["totals"]["level_255"] == 12.5
    assert [image["level_255"] for image in document["images"]] == [12.5, 12.5]
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["level_255"] for row in rows] == ["12.5", "12.5"]
    page = (tmp_path / "r.html").read_text()
    assert "level <b>12.5</b>" in page
    assert ">Level<" in page


def test_a_factor_scales_every_image_s_estimate(folder: Path, told: Path, tmp_path: Path) -> None:
    levels = {}
    for given in ("auto", "1.3x"):
        json_file = tmp_path / f"{given}.json"
        options = ("-o", tmp_path / given, "--noise-level", given, "--report", json_file)
        assert run(folder, *options, weights=told) == 0
        levels[given] = [image["level_255"] for image in report(json_file)["images"]]
    network = load_weights(told).network
    image = read_image(folder / "a.png").to_unit()[None]
    estimate = network.estimate_level(network.pad(image))
    assert estimate is not None
    assert levels["auto"][0] == pytest.approx(255 * float(estimate), abs=1e-3)
    assert levels["1.3x"] == pytest.approx([1.3 * x for x in levels["auto"]], abs=2e-3)


def test_weights_that_take_no_level_have_none(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--report", tmp_path / "r.json", weights=weights) == 0
    assert "level" not in capsys.readouterr().out
    assert [image["level_255"] for image in report(tmp_path / "r.json")["images"]] == [None] * 2


def test_such_weights_refuse_one(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "-o", tmp_path / "out", "--noise-level", "1.3x", weights=weights) == 2
    said = capsys.readouterr().err
    assert "--noise-level 1.3x" in said
    assert "untrained" in said
    assert "leave it out" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["", "x", "-1", "nan", "inf", "256", "0x", "11x", "1.3 x", "1e3"])
def test_a_level_that_is_none_is_a_usage_error(
    folder: Path, told: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, f"--noise-level={given}", weights=told) == 2
    assert "--noise-level" in capsys.readouterr().err


def test_without_an_estimator_the_level_must_be_said(
    folder: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_weights(told)
    loaded.network.estimator = None
    save_weights(told, loaded.network, {})
    for given in ("auto", "1.3x"):
        assert run(folder, "--noise-level", given, weights=told) == 2
        assert "cannot estimate" in capsys.readouterr().err
    assert run(folder, "--noise-level", "10", weights=told) == 0


def test_level_0_keeps_every_pixel_and_says_so(
    folder: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "-o", tmp_path / "out", "--noise-level", "0", weights=told) == 0
    said = capsys.readouterr().out
    assert said.count("hardly changed") == 2
    for name in ("a.png", "b.png"):
        with Image.open(folder / name) as before, Image.open(tmp_path / "out" / name) as after:
            assert before.tobytes() == after.tobytes()


def test_a_level_beyond_the_training_s_is_said(
    folder: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for given in ("75", "120"):
        out = tmp_path / given
        options = ("-o", out, "--noise-level", given, "--report", tmp_path / f"{given}.json")
        assert run(folder, *options, weights=told) == 0
        with Image.open(out / "a.png") as image:
            outputs.append(image.tobytes())
        said = capsys.readouterr().out
        assert ("noise level 120 is beyond the 75" in said) == (given == "120")
        assert said.count("beyond") == 2 * (given == "120")
    assert report(tmp_path / "120.json")["images"][0]["level_255"] == 75
    assert outputs[0] == outputs[1]


def test_the_page_that_is_beyond_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "w.safetensors", estimating(100), {})
    noise = 50 * torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    noisy = Image.fromarray((128 + noise).clamp(0, 255).byte().numpy())
    dithered = picture(128, 128, 1).convert("1").convert("L")
    dithered.save(tmp_path / "two.tif", save_all=True, append_images=[noisy])
    command = (tmp_path / "two.tif", "-o", tmp_path / "o", "--report", tmp_path / "r.json")
    assert run(*command, weights=tmp_path / "w.safetensors") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "two.tif, page 2: noise level 100.1 is beyond the 75" in said
    assert report(tmp_path / "r.json")["images"][0]["level_255"] == pytest.approx(75 / 2)


def test_dithered_pictures_are_left_alone_and_it_is_said(
    told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imgs").mkdir()
    file = tmp_path / "imgs" / "fax.tif"
    picture(200, 160, 3).convert("1").save(file, compression="group4")
    options = ("-o", tmp_path / "o", "--report", tmp_path / "r.json")
    assert run(tmp_path / "imgs", *options, weights=told) == 0
    assert "taken for a drawing or dithering" in " ".join(capsys.readouterr().out.split())
    assert report(tmp_path / "r.json")["images"][0]["level_255"] == 0
    with Image.open(file) as before, Image.open(tmp_path / "o" / "fax.tif") as after:
        assert before.tobytes() == after.tobytes()
    assert run(file, "-o", tmp_path / "p", "--noise-level", "30", weights=told) == 0
    with Image.open(file) as before, Image.open(tmp_path / "p" / "fax.tif") as after:
        assert before.tobytes() != after.tobytes()


def test_why_a_picture_hardly_changed(
    folder: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, cause in (
        (("--strength", "0.0001"), "and --strength 0.0001"),
        (("--noise-level", "0.0001"), "as its noise level is 0.0"),
    ):
        assert run(folder, "-o", tmp_path / cause, *arguments, weights=told) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.count(cause) == 2


def test_what_is_left_of_noise_is_not_more_than_it_was(
    folder: Path, told: Path, tmp_path: Path
) -> None:
    """The two have different estimators; fine patterns mislead one of them."""
    checks = (torch.arange(448)[:, None] + torch.arange(448)) % 2
    Image.fromarray((255 * checks).byte().numpy()).save(folder / "checks.png")
    for strength in ("0", "1"):
        options = ("--strength", strength, "--noise-level", "0", "--report", tmp_path / "r.json")
        assert run(folder, "-o", tmp_path / strength, *options, weights=told) == 0
        for image in report(tmp_path / "r.json")["images"]:
            assert image["sigma_out_255"] <= image["sigma_in_255"]


def test_another_level_makes_the_images_anew(
    folder: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, count in (("10", 2), ("10", 0), ("20", 2), ("10.0", 2), ("10", 0)):
        assert run(folder, "-o", tmp_path / "o", "--noise-level", given, weights=told) == 0
        assert f"{count} done" in capsys.readouterr().out


def test_tiles_are_told_the_level_of_the_whole(folder: Path, told: Path, tmp_path: Path) -> None:
    levels = []
    for tile in ("off", "32"):
        options = ("-o", tmp_path / tile, "-t", tile, "--report", tmp_path / "r.json")
        assert run(folder, *options, weights=told) == 0
        levels.append([image["level_255"] for image in report(tmp_path / "r.json")["images"]])
    assert levels[0] == pytest.approx(levels[1], abs=2e-3)
    for name in ("a.png", "b.png"):
        whole, cut = (read_image(tmp_path / tile / name).to_unit() for tile in ("off", "32"))
        assert (whole - cut).abs().max() <= 1.01 / 255


def test_python_says_it_too(folder: Path, told: Path) -> None:
    image = read_image(folder / "a.png").to_unit()
    for given, level in ((10, 10 / 255), (12.5, 12.5 / 255), ("10", 10 / 255)):
        output = denoise(image, weights=told, device="cpu", noise_level=given)
        torch.testing.assert_close(output, expected(image, told, level))
    assert torch.equal(Denoiser(told, "cpu", noise_level=0)(image), image)
    assert not torch.equal(
        denoise(image, weights=told, device="cpu", noise_level="3x"),
        denoise(image, weights=told, device="cpu"),
    )
    with pytest.raises(OptionError, match="--noise-level"):
        Denoiser(told, "cpu", noise_level=-3)


def test_the_learned_level_is_the_noise_where_that_is_not_white(tmp_path: Path) -> None:
    """The estimators for white noise see a third of noise that went through a blur, both alike."""
    save_weights(tmp_path / "twelve.safetensors", estimating(12), {})
    folder = tmp_path / "imgs"
    folder.mkdir()
    normal = torch.randn(3, 402, 402, generator=torch.Generator().manual_seed(1))
    coarse = torch.nn.functional.avg_pool2d(normal, 3, 1)
    for name, noise in (("white", 20 * normal[:, :400, :400]), ("coarse", 36 * coarse)):
        values = (128 + noise).round().clamp(0, 255).byte().permute(1, 2, 0)
        Image.fromarray(values.numpy()).save(folder / f"{name}.png")

    def images(*arguments: str) -> dict[str, dict[str, Any]]:
        out = tmp_path / "r.json"
        command = (folder, "-o", tmp_path / "out", "--overwrite", "--report", out, *arguments)
        assert run(*command, weights=tmp_path / "twelve.safetensors") == 0
        return {image["name"]: image for image in report(out)["images"]}

    for found in (images(), images("--noise-level", "0.5x")):
        assert found["white.png"]["sigma_in_255"] == pytest.approx(20, rel=0.05)
        assert found["coarse.png"]["sigma_in_255"] == pytest.approx(12, rel=0.01)
        assert "not white" in found["coarse.png"]["psnr_reason"]
    told = images("--noise-level", "30")  # no estimate is made
    assert told["coarse.png"]["sigma_in_255"] < 7.5


def test_a_retired_name_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert run(folder, weights="unet-level-4") == 0
    assert caplog.text.count("weights unet-level-4 are retired") == 1


def test_a_retired_name_means_the_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = {**models.shipped_manifest(), "retired": ["unet-gaussian-1"]}
    monkeypatch.setattr(models, "shipped_manifest", lambda: manifest)
    with caplog.at_level(logging.WARNING):
        assert find_weights("unet-gaussian-1") == find_weights(None)
    assert "unet-gaussian-1" in caplog.text
    assert manifest["default"] in caplog.text
