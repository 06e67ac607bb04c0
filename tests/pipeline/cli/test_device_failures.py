"""A GPU that is full, busy, unsupported or broken: one line and exit 4 in every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise_batch import Denoiser
from denoise_batch.cli import batch, doctor, evaluate, train
from denoise_batch.kernels import DeviceError
from denoise_batch.kernels.optim import Optimizer
from denoise_batch.models import Network

MORE = "\nCUDA kernel errors might be asynchronously reported at some other API call"
FULL = torch.AcceleratorError("CUDA error: out of memory" + MORE)
FAILURES = {
    "full": (FULL, "out of memory"),
    "busy": (
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        "another process",
    ),
    "unsupported": (
        torch.AcceleratorError(
            "CUDA error: no kernel image is available for execution on the device" + MORE
        ),
        "no code for this GPU",
    ),
    "old-torch": (RuntimeError("CUDA error: unknown error" + MORE), "nvidia-smi"),
    "driver": (RuntimeError("The NVIDIA driver on your system is too old"), "nvidia-smi"),
    "cublas": (RuntimeError("CUBLAS_STATUS_ARCH_MISMATCH when calling cublasCreate"), "nvidia-smi"),
    "built-without": (AssertionError("Torch not compiled with CUDA enabled"), "not compiled"),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """A GPU that torch lists and that fails at the first use."""
    ones = torch.ones

    def install(error: Exception) -> None:
        def fails(*size: Any, device: Any = "cpu", **options: Any) -> torch.Tensor:
            if torch.device(device).type == "cuda":
                raise error
            return ones(*size, device=device, **options)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch, "ones", fails)

    return install


def commands(photographs: Path, weights: Path, device: str) -> dict[str, Callable[[], int]]:
    data, run = str(photographs), str(photographs.parent / "run")
    short = ["--noise", "gaussian:25", "--tiles", "2", "--tile-px", "16", "--steps", "1"]
    short += ["--validation-tiles", "1", "--batch-size", "2"]
    return {
        "batch": lambda: batch.main([data, "--weights", str(weights), "--device", device]),
        "train": lambda: train.main([data, "-o", run, *short, "--device", device]),
        "eval": lambda: evaluate.main([str(weights), data, "--device", device]),
    }


@pytest.mark.parametrize("command", ["batch", "train", "eval"])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_gpu_that_fails_at_the_start_is_one_line_and_code_4(
    kind: str,
    command: str,
    gpu: Callable[[Exception], None],
    photographs: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error, says = FAILURES[kind]
    gpu(error)
    assert commands(photographs, weights, "cuda")[command]() == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: --device cuda: ")
    assert says in lines[0]
    assert "asynchronously" not in lines[0]


@pytest.mark.parametrize("kind", FAILURES)
def test_auto_takes_the_cpu_then_and_says_so(
    kind: str,
    gpu: Callable[[Exception], None],
    photographs: Path,
    weights: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error, says = FAILURES[kind]
    gpu(error)
    assert commands(photographs, weights, "auto")["batch"]() == 0
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "\n" not in record.getMessage()
    assert "on cpu" in capsys.readouterr().out


def test_the_doctor_says_it_too(
    gpu: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu(FULL)
    assert doctor.main(["--device", "cuda"]) == 4
    assert "out of memory" in capsys.readouterr().err


DURING = ["CUDA error: device-side assert triggered" + MORE, "Triton Error [CUDA]: misaligned"]


@pytest.mark.parametrize("text", [*DURING, "CUDA error: out of memory" + MORE])
@pytest.mark.parametrize("command", ["batch", "train", "eval"])
def test_a_device_that_fails_at_work_is_one_line_and_code_4(
    command: str,
    text: str,
    photographs: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(Network, "forward_padded", fails)
    monkeypatch.setattr(Optimizer, "step", fails)
    code = commands(photographs, weights, "cpu")[command]()
    said = capsys.readouterr().err
    if command == "batch" and "memory" in text:
        assert code == 6  # each image by itself
        return
    assert code == 4
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert text.partition("\n")[0] in line
    assert "asynchronously" not in said
    assert "Traceback" not in said
    if command != "eval":
        assert "kept" in line


@pytest.mark.parametrize("command", [["--dry-run"], ["--preview", "1"]], ids=lambda each: each[0])
def test_it_is_so_before_the_work_too(
    command: list[str],
    photographs: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(DURING[0])

    monkeypatch.setattr(Network, "forward_padded", fails)
    monkeypatch.chdir(tmp_path)
    given = [str(photographs), "--weights", str(weights), "--device", "cpu", *command]
    assert batch.main(given) == 4
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: --device cpu: it failed")]


def test_a_bug_is_no_failure_of_the_device(
    photographs: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu")

    monkeypatch.setattr(Network, "forward_padded", fails)
    with pytest.raises(RuntimeError, match="same device"):
        commands(photographs, weights, "cpu")["eval"]()


def test_the_log_ends_with_the_device_s_error(
    gpu: Callable[[Exception], None],
    photographs: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu(FULL)
    arguments = [str(photographs), "--weights", str(weights), "--device", "cuda", "--log", "json"]
    assert batch.main(arguments) == 4
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["error", "end"]
    assert "out of memory" in events[0]["reason"]


def test_the_python_interface_raises_device_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    denoiser = Denoiser("tconv", "cpu")
    monkeypatch.setattr(Network, "forward_padded", fails)
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        denoiser(torch.rand(3, 16, 16))
