"""scripts/gpu-check, rehearsed on the CPU."""

import importlib
import subprocess
import sys
import types
from importlib import util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"


def test_a_rehearsal_writes_the_whole_report_and_says_that_it_is_none(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--quick"]
    result = subprocess.run(
        [*command, "--output", str(report)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = report.read_text()
    assert "**A rehearsal without a GPU: these figures are no result.**" in text
    assert "WRONG" not in text
    assert f"torch {version('torch')}" in text
    assert "\n- commit " in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Correctness: every kernel against the reference implementation",
        "## Speed",
        "## Training",
        "## Whole folders, file to file",
    ]
    rows = ("| conv2d_backward float32 |", "| infer/tconv/1x3x32x32/float32 |")
    for row in (*rows, "| muon --cuda-graphs |", "| stream |"):
        assert row in text


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


def test_versions_and_commit_without_git_and_with_any_triton(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # no git
    # torch's nightly builds bring their Triton as the distribution pytorch-triton.
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.9.1"))
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    assert report.versions()["triton"] == "3.9.1"
    assert report.commit() == "unknown"


def test_a_triton_that_cannot_be_imported_is_left_out(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    assert "triton" not in report.versions()


def test_without_a_gpu_it_says_how_to_rehearse() -> None:
    if torch.cuda.is_available():
        return
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "torch sees no CUDA device here; --device cpu rehearses" in result.stderr
