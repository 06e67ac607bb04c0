"""denoise-doctor: a sound installation is healthy; each fault is named and sets the exit code."""

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from denoise_batch import doctor, models
from denoise_batch.cli.doctor import main
from denoise_batch.doctor import Check, is_healthy, self_test
from denoise_batch.kernels.kernel_check import KernelCheck
from denoise_batch.models import Network, save_weights, shipped_manifest, shipped_names

CPU = torch.device("cpu")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernel_checks", lambda device: [])


def test_a_sound_installation_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for topic in ("software", "devices", "extras", "weights", "self-test"):
        assert topic in out
    for found in ("torch", "memory", *shipped_names(), "conv2d_forward", "healthy"):
        assert found in out
    assert "Computing on cpu: " in out
    assert "not healthy" not in out


@pytest.mark.usefixtures("no_kernels")
def test_json_has_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "denoise-batch doctor"
    assert document["schema"] == 1
    assert document["healthy"] is True
    by_name = {check["name"]: check for check in document["checks"]}
    assert by_name["plots"]["topic"] == "extras"
    assert "sha256" in by_name[shipped_names()[0]]["detail"]
    assert "→" in by_name[f"{shipped_names()[0]} on cpu"]["detail"]


@pytest.mark.usefixtures("no_kernels")
def test_damaged_weights_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in shipped_names():
        (tmp_path / shipped_manifest()["weights"][name]["file"]).write_bytes(b"damaged")
    monkeypatch.setattr(models, "SHIPPED", tmp_path)
    assert main(["--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "reinstall" in out
    assert "not healthy" in out


def test_wrong_results_are_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "untrained.safetensors"
    save_weights(path, Network("tconv", generator=torch.Generator().manual_seed(0)), {})
    check = self_test(CPU, str(path))
    assert check.state == "problem"
    assert "results are wrong" in check.detail


def test_an_exception_of_a_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Network, device: object) -> Network:
        raise RuntimeError("CUDA error: no kernel image\nfor this device")

    monkeypatch.setattr(Network, "to", broken)
    check = self_test(CPU)
    assert (check.state, check.detail) == ("problem", "RuntimeError: CUDA error: no kernel image")


def test_what_computes_is_told_where_the_device_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' table is not lost over it."""

    def broken(device: torch.device) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nmore")

    monkeypatch.setattr(doctor, "ops_for", broken)
    words = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 MiB."
    assert doctor.computing(CPU) == f"nothing ({words})"


def test_a_failing_kernel_is_unhealthy_and_a_missing_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = KernelCheck(
        "conv2d_forward float32", "triton", "unavailable", None, 1e-5, "no triton"
    )
    failed = KernelCheck("conv2d_forward float32", "triton", "failed", 0.3, 1e-5, "wrong results")
    fine = [Check("software", "torch", "ok", ""), Check("extras", "plots", "note", "")]
    assert is_healthy(fine, [missing])
    assert not is_healthy(fine, [failed])
    monkeypatch.setattr(doctor, "kernel_checks", lambda device: [failed])
    assert main(["--device", "cpu"]) == 1
    assert "wrong results" in capsys.readouterr().out


def test_a_missing_device_is_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 4
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.usefixtures("no_kernels")
def test_missing_extras_are_a_note_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda package: package != "matplotlib")
    assert main(["--device", "cpu"]) == 0
    # A narrow terminal may fold the command.
    assert "pip install 'denoise-batch[plots]'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("no_kernels")
def test_intel_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc A770")
    of = SimpleNamespace(total_memory=16e9)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: of)
    found = {check.name: check.detail for check in doctor._devices(CPU)}
    assert found["xpu:0"] == found["xpu:1"] == "Arc A770, 16.0 GB, untested"


def test_a_gpu_that_fails_at_the_first_question_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> object:
        raise torch.cuda.DeferredCudaCallError("CUDA call failed lazily\n\nat …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    (check,) = (check for check in doctor._devices(CPU) if check.name == "cuda:0")
    assert check.state == "problem"
    assert check.detail == "DeferredCudaCallError: CUDA call failed lazily"


def test_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_host_bytes", lambda: 400_000_000)
    (check,) = (check for check in doctor.examine(CPU) if check.name == "memory")
    assert check.state == "note"
    assert "0.4 GB available; large images will be processed in small tiles" in check.detail


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    out = capsys.readouterr().out
    assert version("denoise-batch") in out if option == "--version" else "Exit codes" in out
