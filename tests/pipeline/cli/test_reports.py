"""Measurements of `denoise-batch`: references, estimates, report files."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.doctor import synthetic_image
from denoise_batch.metrics import psnr
from denoise_batch.streaming.result import Summary
from denoise_batch.streaming.session import Session


def to_8_bit(image: torch.Tensor) -> torch.Tensor:
    return torch.round(image.clamp(0, 1) * 255) / 255


SIDE = 384  # more than 2¹⁷ pixels; smaller images get no estimate
SIGMA = 20


def save(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (to_8_bit(pixels) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    Image.fromarray(data.numpy()).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a folder with noisy/ and clean/ versions of one image."""
    clean = 0.25 + 0.5 * synthetic_image(SIDE)
    noisy = clean + SIGMA / 255 * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(1)
    )
    save(tmp_path / "noisy" / "a.png", noisy)
    save(tmp_path / "clean" / "a.png", clean)
    return tmp_path


def images(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(path.read_text())["images"]
    return found


def test_without_a_reference_psnr_is_estimated_and_marked(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = folders / "report.json"
    assert main([str(folders / "noisy"), "--device", "cpu", "--report", str(report)]) == 0
    assert "est." in capsys.readouterr().out
    (image,) = images(report)
    assert image["psnr_basis"] == "estimate"
    assert image["sigma_in_255"] == pytest.approx(SIGMA, rel=0.05)
    with Image.open(folders / "noisy-denoised" / "a.png") as opened:
        data = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8)
    denoised = data.view(SIDE, SIDE, 3).permute(2, 0, 1) / 255
    truth = psnr(denoised, to_8_bit(0.25 + 0.5 * synthetic_image(SIDE)))
    assert image["psnr_out"] == pytest.approx(truth, abs=2)  # a drawing, not a photograph
    assert image["psnr_in"] == pytest.approx(22.1, abs=0.2)


def test_with_a_reference_psnr_is_measured_and_reports_of_every_form_are_written(
    folders: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    paths = [folders / f"report.{kind}" for kind in ("json", "csv", "html")]
    options = [str(folders / "noisy"), "--reference", str(folders / "clean"), "-w", str(weights)]
    for path in paths:
        options += ["--report", str(path)]
    assert main(options) == 0
    captured = capsys.readouterr()
    assert "est." not in captured.out
    assert all(f"report: {path}" in captured.err for path in paths)
    (image,) = images(paths[0])
    assert image["psnr_basis"] == "reference"
    (row,) = csv.DictReader(paths[1].read_text().splitlines())
    assert float(row["psnr_out"]) == image["psnr_out"]
    assert paths[2].read_text().startswith("<!doctype html>")


def test_only_an_html_report_imports_jinja(folders: Path, weights: Path) -> None:
    arguments = [str(folders / "noisy"), "-d", "cpu", "-w", str(weights), "--overwrite"]
    data = [*arguments, "--report", str(folders / "r.json"), "--report", str(folders / "r.csv")]
    page = [*arguments, "--report", str(folders / "r.html")]
    code = (
        "import sys; from denoise_batch.cli.batch import main;"
        f"assert main({data}) == 0; assert 'jinja2' not in sys.modules;"
        f"assert main({page}) == 0; assert 'jinja2' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_log_json_and_a_report_say_the_same_of_an_image(
    folders: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folders / "noisy" / "small.png", torch.rand(3, 16, 16))
    (folders / "noisy" / "broken.png").write_text("no image")
    report = folders / "report.json"
    options = ["-d", "cpu", "-w", str(weights), "--log", "json", "--report", str(report)]
    assert main([str(folders / "noisy"), *options]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logged = {line.pop("name"): line for line in lines if line["event"] == "image"}
    assert len(logged) == 3
    assert all(line.pop("time") for line in logged.values())
    for image in images(report):
        assert {"event": "image", **image} == {"name": image["name"], **logged[str(image["name"])]}


def test_no_measure_measures_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    report = folders / "report.json"
    arguments = [
        str(folders / "noisy"),
        "--no-measure",
        "-w",
        str(weights),
        "--report",
        str(report),
    ]
    assert main(arguments) == 0
    assert "σ in" not in capsys.readouterr().out
    (image,) = images(report)
    assert image["sigma_in_255"] is None
    assert "measure" not in image["seconds"] or image["seconds"]["measure"] == 0  # type: ignore[index,operator]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--report", "report.txt"], ".html"),
        (["--report", "none/report.json"], "make it"),
        (["--report", "/proc/report.json"], "/proc cannot be written to: No such file"),
        (["--report", "r.json", "--watch", "1"], "--log json"),
    ],
    ids=str,
)
def test_unusable_reports_are_refused_before_the_run(
    folders: Path,
    arguments: list[str],
    says: str,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders)
    assert main(["noisy", "-w", str(weights), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (folders / "noisy-denoised").exists()


def test_a_gray_image_stored_in_colour_is_shown(tmp_path: Path, weights: Path) -> None:
    noisy, report = tmp_path / "noisy", tmp_path / "report.html"
    noisy.mkdir()
    picture(96, 64).convert("L").save(noisy / "a.png")
    options = ["--format", "webp", "-w", str(weights), "--report", str(report)]
    assert main([str(noisy), *options]) == 0
    with Image.open(tmp_path / "noisy-denoised" / "a.webp") as opened:
        assert opened.mode == "RGB"
    text = report.read_text()
    assert text.count('class="noisy" src="data:image') == 1
    assert "Cannot be shown" not in text


def test_a_report_that_fails_to_write_leaves_the_others(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "noisy" / "a.png", torch.rand(3, 16, 16))
    (tmp_path / "gone").mkdir()
    run = Session.run

    def run_and_lose_a_folder(*args: Any) -> Summary:
        summary = run(*args)
        (tmp_path / "gone").rmdir()
        return summary

    monkeypatch.setattr(Session, "run", run_and_lose_a_folder)
    arguments = [str(tmp_path / "noisy"), "-w", str(weights)]
    for report in ("gone/a.html", "b.json", "gone/c.csv", "d.csv"):
        arguments += ["--report", str(tmp_path / report)]
    assert main(arguments) == 2
    assert len(images(tmp_path / "b.json")) == 1
    assert (tmp_path / "d.csv").exists()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    for line, name in zip(errors, ("a.html", "c.csv"), strict=True):
        assert f"gone/{name}: cannot be written: No such file" in line


def test_large_images_are_estimated_from_tiles(
    folders: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise_batch.streaming import denoiser

    monkeypatch.setattr(denoiser, "WHOLE_PIXELS", 1 << 16)
    whole, tiled = folders / "whole.json", folders / "tiled.json"
    for report, tile in ((whole, "off"), (tiled, "128")):
        arguments = [str(folders / "noisy"), "--overwrite", "--tile", tile]
        assert main([*arguments, "--report", str(report)]) == 0
    (first,), (second,) = images(whole), images(tiled)
    assert first["psnr_basis"] == second["psnr_basis"] == "estimate"
    assert first["psnr_out"] == pytest.approx(second["psnr_out"], abs=0.1)


def test_running_out_of_memory_for_the_estimate_costs_only_the_estimate(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise_batch.streaming import denoiser

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(denoiser, "probe_images", full)
    report = folders / "report.json"
    assert main([str(folders / "noisy"), "--report", str(report)]) == 0
    (image,) = images(report)
    assert (image["status"], image["psnr_basis"]) == ("done", None)


def test_small_images_get_no_estimate_and_a_reason(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "noisy" / "a.png", torch.rand(3, 64, 64))
    report = tmp_path / "report.json"
    assert main([str(tmp_path / "noisy"), "-w", str(weights), "--report", str(report)]) == 0
    (image,) = images(report)
    assert (image["psnr_basis"], image["psnr_reason"]) == (None, "too small to estimate")


def test_pictures_that_are_hidden_in_part_get_no_estimate_and_a_reason(folders: Path) -> None:
    """What lies under alpha 0 is filled, without noise: it would count as denoised."""
    (file,) = (folders / "noisy").iterdir()
    report = folders / "report.json"
    for rows, reason in ((2, ""), (100, "too much of the picture is hidden")):
        with Image.open(file) as opened:
            image = opened.convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, image.width, rows))
        image.save(file)
        assert main([str(folders / "noisy"), "--overwrite", "--report", str(report)]) == 0
        (found,) = images(report)
        assert reason in (found["psnr_reason"] or "")
        assert found["psnr_basis"] == (None if reason else "estimate")


def test_a_page_of_a_finished_folder_shows_what_earlier_runs_made(
    folders: Path, weights: Path
) -> None:
    noisy, page = folders / "noisy", folders / "run.html"
    Image.new("L", (40, 30), 7).save(noisy / "b.png")
    (folders / "noisy-denoised").mkdir()
    Image.new("L", (40, 30), 9).save(folders / "noisy-denoised" / "b.png")  # not of this tool
    arguments = [str(noisy), "-d", "cpu", "-w", str(weights)]
    assert main(arguments) == 0
    assert main([*arguments, "--report", str(page), "--report", str(folders / "r.json")]) == 0
    text = page.read_text()
    assert text.count("<article") == 1
    assert "1 by earlier runs, 1 skipped" in text
    assert f'data-label="Size" data-v="{SIDE * SIDE}">{SIDE}×{SIDE}' in text
    assert "no PSNR: it is estimated only while an image is denoised" in text
    assert '<span class="chip skipped">done before</span>' in text
    assert ">Time<" not in text  # nobody measured it
    sigma = re.search(r'data-label="σ̂ in" data-v="([\d.]+)"', text)
    assert sigma is not None
    assert float(sigma[1]) == pytest.approx(SIGMA, rel=0.05)
    assert [image["width"] for image in images(folders / "r.json")] == [None, None]
    reference = [*arguments, "--reference", str(folders / "clean"), "--report", str(page)]
    assert main(reference) == 0
    assert "measured against references" in page.read_text()
    assert main([*reference, "--no-measure"]) == 0
    assert ">σ̂ in<" not in page.read_text()
