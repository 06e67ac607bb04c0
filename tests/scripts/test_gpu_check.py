"""scripts/gpu-check: rehearsed on the CPU, since no machine of ours has a GPU."""

import subprocess
import sys
from pathlib import Path

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


def test_without_a_gpu_it_says_how_to_rehearse() -> None:
    if torch.cuda.is_available():
        return
    command = [sys.executable, str(ROOT / "scripts" / "gpu")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "torch sees no CUDA device here; --device cpu rehearses" in result.stderr
