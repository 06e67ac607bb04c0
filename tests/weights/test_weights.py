"""The shipped weights are what the manifest says."""

import hashlib
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from denoise_batch import models
from denoise_batch.cli import batch
from denoise_batch.files.images import read_image
from denoise_batch.kernels import WeightsError
from denoise_batch.models import (
    LevelEstimator,
    load_weights,
    shipped_file,
    shipped_manifest,
    shipped_names,
)
from denoise_batch.training.graphics import draw_graphic

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"


@pytest.mark.parametrize("name", shipped_names())
def test_every_name_loads_and_is_what_the_manifest_says(name: str) -> None:
    entry = shipped_manifest()["weights"][name]
    path = shipped_file(name)
    loaded = load_weights(path)
    assert loaded.sha256 == entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.network.architecture == entry["architecture"]
    assert loaded.training["noise"] == entry["noise"]
    for key in ("for", "command", "data", "scores"):
        assert entry[key]


def test_no_file_lies_about_unlisted() -> None:
    listed = {entry["file"] for entry in shipped_manifest()["weights"].values()}
    assert {path.name for path in models.SHIPPED.glob("*.safetensors")} == listed


def test_the_default_is_a_shipped_name() -> None:
    assert shipped_names()[0] == shipped_manifest()["default"]


def test_help_names_what_is_shipped_and_the_default() -> None:
    options = {option.name: option for option in get_command(batch.app).params}
    told = options["weights"].help
    assert all(name in told for name in shipped_names())
    assert f"{shipped_names()[0]} (default" in told


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="tconv"):
        shipped_file("nonsense")


def test_a_damaged_installation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = shipped_names()[0]
    good = shipped_file(name)
    (tmp_path / good.name).write_bytes(good.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(models, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="damaged"):
        shipped_file(name)
    (tmp_path / good.name).unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        shipped_file(name)


def test_white_paper_beside_a_noisy_picture_does_not_keep_its_noise() -> None:
    """The estimate of such a scan is near 0: what is told must not be."""
    clean = read_image(SAMPLES / "clean" / "astronaut.png").to_unit()[:, :160]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (255 * clean + 5 * noise).clamp(0, 255).round() / 255
    scan = torch.cat([noisy, torch.ones_like(noisy)], 1)[None]
    denoised = load_weights(shipped_file(shipped_names()[0])).network(scan)[0, :, :160]
    before, after = ((image - clean).square().mean().sqrt() for image in (noisy, denoised))
    assert after < 0.75 * before


@pytest.mark.parametrize("sigma", [10, 25, 50])
@pytest.mark.parametrize("around", ["paper", "bars", "screen"])
def test_the_noise_of_a_part_is_estimated_whatever_has_none_around_it(
    around: str, sigma: int
) -> None:
    """Scans on white paper, bars above and below a film, a window beside it on a screen."""
    clean = read_image(SAMPLES / "clean" / "astronaut.png").to_unit()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (255 * clean + sigma * noise).clamp(0, 255).round() / 255
    _, height, width = clean.shape
    if around == "screen":
        beside = draw_graphic("screen", "beside", height) / 255
        picture = torch.cat([noisy, beside], 2)
    else:
        margin = height // 6
        across = margin if around == "paper" else 0
        colour = 1.0 if around == "paper" else 0.0
        picture = clean.new_full((3, height + 2 * margin, width + 2 * across), colour)
        picture[:, margin : margin + height, across : across + width] = noisy
    network = load_weights(shipped_file(shipped_names()[0])).network
    level = network.estimate_level(network.pad(picture[None]))
    assert level is not None
    found = 255 * LevelEstimator.noise(level.item())
    least = 0.4 if around == "screen" else 0.7  # beside clean text it is read too low
    assert least * sigma < found < 1.3 * sigma


@pytest.mark.parametrize("kind", ["text", "code", "chart", "screen", "gradient"])
def test_clean_drawings_have_no_noise(kind: str) -> None:
    network = load_weights(shipped_file(shipped_names()[0])).network
    for number in range(3):
        drawing = draw_graphic(kind, f"clean {number}", 256)[None] / 255
        level = network.estimate_level(network.pad(drawing))
        assert level is not None
        assert 255 * LevelEstimator.noise(level.item()) < 5
