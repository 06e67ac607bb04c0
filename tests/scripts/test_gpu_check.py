"""scripts/gpu-check: rehearsed on the CPU, since no machine of ours has a GPU."""

import subprocess
import sys
import types
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_a_rehearsal_writes_the_whole_report_and_says_that_it_is_none(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [sys.executable, str(ROOT / "scripts" / "gpu"), "--device", "cpu", "--quick"]
    result = subprocess.run(
        [*command, "--output", str(report)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = report.read_text()
    assert "**A rehearsal without a GPU: no result, only the form of one.**" in text
    assert "WRONG" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Every kernel against gemm/, and gemm/ against the specification",
        "## Networks against float64",
        "## Time of a call, ms",
        "## Shares of this GPU's own limits, inference in bfloat16",
        "## Folders of 3 images, file to file",
    ]
    for row in ("conv2d_backward bfloat16 | gemm | ok", "| unet | float32 |", "one size, PNG |"):
        assert row in text


def test_the_report_does_without_git_and_with_triton_of_another_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = _report(monkeypatch)
    monkeypatch.setenv("PATH", "/nonexistent")  # no git
    # torch's nightly builds bring theirs as pytorch-triton.
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.9.1"))
    monkeypatch.setattr(metadata, "version", _unknown)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    name, facts = report.machine(torch.device("cpu"))
    assert name == "cpu"
    assert ", triton 3.9.1" in facts[0]
    assert facts[1] == "commit unknown"


def test_the_report_says_unknown_of_a_triton_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = _report(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    assert ", triton unknown" in report.machine(torch.device("cpu"))[1][0]


def _report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/gpu/report.py, whose bare name others have too."""
    name = "gpu_report"
    spec = util.spec_from_file_location(name, ROOT / "scripts" / "gpu" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _unknown(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_without_a_gpu_it_says_how_to_rehearse() -> None:
    if torch.cuda.is_available():
        return
    command = [sys.executable, str(ROOT / "scripts" / "gpu")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "torch sees no CUDA device here; --device cpu rehearses" in result.stderr
