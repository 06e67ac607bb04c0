"""Weights files: round trip, and a clear error for everything that is not one."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from denoise_batch.kernels import WeightsError
from denoise_batch.models import (
    Network,
    find_weights,
    load_tensors,
    load_weights,
    save_tensors,
    save_weights,
    shipped_names,
)


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


def as_older(path: Path, levels: tuple[str, ...]) -> None:
    """Leave the bodies out that `unet-level` did not have behind these ways up."""
    tensors, header = load_tensors(path)
    for level in levels:
        tensors = {
            name.replace(f"{level}decoder.0.", f"{level}decoder."): value
            for name, value in tensors.items()
            if not name.startswith(f"{level}decoder.1.")
        }
    save_tensors(path, tensors, header)


@pytest.mark.parametrize("levels", [("3.inner.",), ("3.", "3.inner.")], ids=str)
def test_a_file_of_an_older_network_computes_what_it_did(
    levels: tuple[str, ...], tmp_path: Path
) -> None:
    network = Network("unet-level", 0.4, [0.2, 0.25, 0.3], torch.Generator().manual_seed(2)).eval()
    for parameter in network.layers.parameters():
        parameter.mul_(1.5)  # it begins near the identity
    save_weights(tmp_path / "older.safetensors", network, {})
    as_older(tmp_path / "older.safetensors", levels)
    loaded = load_weights(tmp_path / "older.safetensors").network
    for name, parameter in network.layers.named_parameters():
        if name.startswith(tuple(f"{level}decoder.1.body.2." for level in levels)):
            parameter.zero_()
    image = torch.rand(1, 3, 64, 112)
    torch.testing.assert_close(loaded(image), network(image), atol=1e-6, rtol=0)
    again = load_weights(tmp_path / "older.safetensors").network
    assert torch.equal(
        *(of.state_dict()["3.inner.decoder.1.body.0.weight"] for of in (again, loaded))
    )


def test_half_an_older_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "older.safetensors"
    save_weights(path, Network("unet-level"), {})
    as_older(path, ("3.inner.",))
    tensors, header = load_tensors(path)
    del tensors["3.inner.decoder.body.2.weight"]
    save_tensors(path, tensors, header)
    with pytest.raises(WeightsError, match=r"older\.safetensors: its tensors or header do not fit"):
        load_weights(path)


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
