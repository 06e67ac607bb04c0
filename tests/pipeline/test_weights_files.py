"""Weights files: round trip, and a clear error for everything that is not one."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from denoise_batch.kernels import WeightsError
from denoise_batch.models import Network, find_weights, load_weights, save_weights, shipped_names


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(path, Network("tconv", (0.1, 0.2, 0.3), 0.5), {"seed": 7})
    return path


def rewrite(path: Path, metadata: dict[str, str]) -> None:
    """Store the file's tensors again with other metadata."""
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)


def test_a_loaded_network_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    network = Network("upsample", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    save_weights(tmp_path / "net.safetensors", network, {"noise": "gaussian:25"})
    loaded = load_weights(tmp_path / "net.safetensors")
    image = torch.rand(1, 3, 19, 21)
    assert torch.equal(loaded.network(image), network.eval()(image))
    assert loaded.training == {"noise": "gaussian:25"}
    assert not loaded.network.training


def test_the_file_is_readable_by_any_safetensors_reader(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    assert tensors["0.weight"].shape == (24, 3, 4, 4)


def test_nothing_but_the_file_is_left_in_the_folder(saved: Path) -> None:
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        save_weights(tmp_path / "none" / "net.safetensors", Network("tconv"), {})


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x10" + b"\0" * 30], ids=repr)
def test_a_file_that_is_no_safetensors_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        load_weights(path)


def test_a_truncated_file_is_an_error(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a whole"):
        load_weights(saved)


def test_another_tools_file_is_an_error(saved: Path) -> None:
    rewrite(saved, {"format": "pt"})
    with pytest.raises(WeightsError, match="not weights of denoise-batch"):
        load_weights(saved)


def test_tensors_of_another_architecture_are_an_error(saved: Path) -> None:
    network = {"architecture": "upsample", "mean": [0.0], "std": [1.0]}
    header = {"format": 1, "network": network, "training": {}}
    rewrite(saved, {"denoise-batch": json.dumps(header)})
    with pytest.raises(WeightsError, match="do not fit"):
        load_weights(saved)


@pytest.mark.parametrize(
    "header",
    ["{}", "[1]", "nonsense", '{"format": 2}', '{"format": 1, "network": {}, "training": {}}'],
)
def test_a_broken_header_is_an_error(saved: Path, header: str) -> None:
    rewrite(saved, {"denoise-batch": header})
    with pytest.raises(WeightsError, match="do not fit"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ("[0.1, 0.2]", "[1.0]"),
        ("[0.1]", "[1.0, 1.0]"),
        ("[0.1, 0.2, 0.3, 0.4]", "[1.0]"),
        ("[]", "[1.0]"),
        ("[1" + 400 * "0" + "]", "[1.0]"),
        ("[NaN]", "[1.0]"),
        ("[0.1]", "[Infinity]"),
        ("[0.1]", "[0.1, 0, 0.1]"),
        ('["0.1"]', "[1.0]"),
        ("null", "[1.0]"),
    ],
    ids=[
        "two-means", "two-deviations", "four-means", "none", "beyond-float", "not-a-number",
        "infinite", "no-deviation", "text", "null",
    ],
)  # fmt: skip
def test_a_header_with_a_standardisation_that_cannot_be_is_an_error(
    saved: Path, mean: str, std: str
) -> None:
    network = f'{{"architecture": "tconv", "mean": {mean}, "std": {std}}}'
    rewrite(saved, {"denoise-batch": f'{{"format": 1, "network": {network}, "training": {{}}}}'})
    with pytest.raises(WeightsError, match="do not fit"):
        load_weights(saved)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    network = Network("tconv")
    for name in ("a", "b"):
        save_weights(tmp_path / name, network, {"seed": 1, "noise": "gaussian:25"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_and_files_are_told_apart(saved: Path) -> None:
    assert find_weights(str(saved)) == saved
    assert find_weights("tconv").name == "tconv.safetensors"
    assert find_weights(None) == find_weights(shipped_names()[0])
    with pytest.raises(WeightsError, match="no such weights file"):
        find_weights("gone.safetensors")
    with pytest.raises(WeightsError, match="tconv"):
        find_weights("nonsense")
