"""The course's two-tensor files: what is in them, and what is refused."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise_batch.kernels import TrainingError
from denoise_batch.training.two_tensors import load_two_tensors


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_the_courses_file_is_two_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    first = torch.randint(256, (6, 3, 32, 32)).to(dtype)
    torch.save((first, 255 - first), tmp_path / "train.pkl")
    one, other = load_two_tensors(tmp_path / "train.pkl")
    assert one.dtype == torch.uint8
    assert torch.equal(one.to(dtype), first)
    assert torch.equal(other, 255 - one)


class Danger:
    """Pickled, this would run a command on loading."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_file_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save((Danger(tmp_path / "ran"), torch.zeros(1)), tmp_path / "evil.pkl")
    with pytest.raises(TrainingError, match=r"evil\.pkl"):
        load_two_tensors(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), (torch.zeros(1, 3, 4, 4),), (torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
     (torch.zeros(2, 1, 4, 4),) * 2, "text", (torch.zeros(0, 3, 4, 4),) * 2],
    ids=["one-tensor", "one-in-a-tuple", "shapes-differ", "gray", "text", "empty"],
)  # fmt: skip
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(TrainingError, match="two tensors"):
        load_two_tensors(tmp_path / "x.pt")


def test_a_file_that_torch_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match=r"x\.pt"):
        load_two_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_noise_beyond_0_and_1_does_not_change_the_scale(tmp_path: Path, dtype: torch.dtype) -> None:
    """Its largest values are above 1.5, and one tensor's alone."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 3, 16, 16, generator=generator)
    noisy = clean + 0.25 * torch.randn(clean.shape, generator=generator)
    assert noisy.max() > 1.5
    torch.save((noisy.to(dtype), clean.to(dtype)), tmp_path / "train.pt")
    for loaded, values in zip(load_two_tensors(tmp_path / "train.pt"), (noisy, clean), strict=True):
        expected = 255 * values.to(dtype).float().clamp(0, 1)
        assert (loaded.float() - expected).abs().max() <= 0.501


def test_integers_are_levels_of_8_bits_however_wide(tmp_path: Path) -> None:
    levels = torch.randint(2, (2, 3, 4, 4))  # nearly black, no floats in [0, 1]
    torch.save((levels, levels.to(torch.int16)), tmp_path / "dark.pt")
    for loaded in load_two_tensors(tmp_path / "dark.pt"):
        assert torch.equal(loaded, levels.to(torch.uint8))


@pytest.mark.parametrize(
    "dtype", [torch.uint16, torch.bool, torch.int8, torch.complex64, torch.float8_e5m2], ids=str
)
def test_other_types_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save((torch.zeros(2, 3, 8, 8).to(dtype),) * 2, tmp_path / "x.pt")
    with pytest.raises(TrainingError, match=r"x\.pt: tensors of \w+ are .*save them as uint8"):
        load_two_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 40_000.0])
def test_values_of_another_range_are_refused(tmp_path: Path, value: float) -> None:
    torch.save((torch.rand(2, 3, 8, 8), torch.full((2, 3, 8, 8), value)), tmp_path / "x.pt")
    with pytest.raises(TrainingError, match=r"x\.pt: values of mean .*rescale"):
        load_two_tensors(tmp_path / "x.pt")


def test_foreign_bytes_are_refused_whatever_torch_makes_of_them(tmp_path: Path) -> None:
    """torch.load ends in IndexError, UnicodeDecodeError, struct.error, KeyError, ValueError …"""
    generator = random.Random(0)
    contents = [
        b"",
        b"name,value\n",
        b"time,value\n",
        b"<html>",
        b"{}",
        b"\x89PNG\r\n",
        b"PK\3\4abc",
    ]
    contents += [
        b"\x80\x02" * generator.randint(0, 1) + generator.randbytes(generator.randint(1, 40))
        for _ in range(100)
    ]
    for content in contents:
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(TrainingError, match=r"x\.pkl: not a file of two tensors \(.+\)$"):
            load_two_tensors(tmp_path / "x.pkl")
