"""The shipped weights are what the manifest says."""

import hashlib
from pathlib import Path

import pytest
from typer.main import get_command

from denoise_batch import weights
from denoise_batch.cli import batch
from denoise_batch.kernels import WeightsError
from denoise_batch.models import load_weights

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"


@pytest.mark.parametrize("name", weights.names())
def test_every_name_loads_and_is_what_the_manifest_says(name: str) -> None:
    entry = weights.manifest()["weights"][name]
    path = weights.path(name)
    loaded = load_weights(path)
    assert loaded.sha256 == entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.network.architecture == entry["architecture"]
    assert loaded.training["noise"] == entry["noise"]
    for key in ("for", "command", "data", "scores"):
        assert entry[key]


def test_no_file_lies_about_unlisted() -> None:
    listed = {entry["file"] for entry in weights.manifest()["weights"].values()}
    assert {path.name for path in weights.FOLDER.glob("*.safetensors")} == listed


def test_the_default_is_a_shipped_name() -> None:
    assert weights.names()[0] == weights.manifest()["default"]


def test_help_names_what_is_shipped_and_the_default() -> None:
    options = {option.name: option for option in get_command(batch.app).params}
    told = options["weights"].help
    assert all(name in told for name in weights.names())
    assert f"{weights.names()[0]} (the default" in told


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="tconv"):
        weights.path("nonsense")


def test_a_damaged_installation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = weights.names()[0]
    good = weights.path(name)
    (tmp_path / good.name).write_bytes(good.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(WeightsError, match="damaged"):
        weights.path(name)
    (tmp_path / good.name).unlink()
    with pytest.raises(WeightsError, match="reinstall"):
        weights.path(name)
