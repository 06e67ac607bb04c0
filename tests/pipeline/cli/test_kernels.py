"""What the log, every report and the doctor say of the kernels that compute on a processor."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.cli.doctor import main as doctor
from denoise_batch.kernels import dispatch
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.gemm.fused import conv2d_fused
from denoise_batch.kernels.native import library
from denoise_batch.kernels.native.ops import NativeOps

MEND = "install a C++ compiler (apt install g++, or xcode-select --install) and reinstall"


@pytest.fixture(autouse=True)
def _decided_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DENOISE_BATCH_KERNELS", raising=False)
    ops_for.cache_clear()
    yield
    ops_for.cache_clear()


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    (tmp_path / "imgs").mkdir()
    picture(24, 20).save(tmp_path / "imgs" / "a.png")
    return tmp_path / "imgs"


def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "instruction_sets", lambda: ("avx2",))
    monkeypatch.setattr(library, "is_supported", lambda name: True)


def on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "instruction_sets", lambda: ())
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")


def without_avx2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "instruction_sets", lambda: ("avx2",))
    monkeypatch.setattr(library, "is_supported", lambda name: False)


class Wrong(NativeOps):
    """Native kernels of which one, or every one, raises."""

    def __init__(self, names: str) -> None:
        self.instruction_set = "avx2"
        self.names = names

    def __getattribute__(self, name: str) -> Any:
        if name in dispatch.NATIVE_OPS:
            if name in self.names or self.names == "all":
                return _raise
            return getattr(dispatch.GEMM, name)
        return super().__getattribute__(name)


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("illegal instruction")


def all_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dispatch, "load_native", lambda: Wrong("all"))


def one_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dispatch, "load_native", lambda: Wrong("conv2d_backward"))


_WRONG = "RuntimeError: illegal instruction: update the C++ compiler and reinstall"
MACHINES: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], None], str]] = {
    "no-compiler": (
        without_library,
        f"torch matrix products (no native kernels: the library was not compiled: {MEND})",
    ),
    "windows": (
        on_windows,
        "torch matrix products (no native kernels: there are none for Windows on AMD64)",
    ),
    "below-avx2": (
        without_avx2,
        "torch matrix products (no native kernels: the processor has no AVX2)",
    ),
    "self-check-failed": (
        all_wrong,
        f"torch matrix products (native kernels are disabled: {_WRONG})",
    ),
    "self-check-failed-once": (
        one_wrong,
        f"native kernels (avx2), and torch matrix products for conv2d_backward ({_WRONG})",
    ),
}


@pytest.mark.parametrize("name", list(MACHINES))
def test_log_and_reports_say_in_one_line_what_computes_and_how_to_mend_it(
    name: str,
    imgs: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arrange, words = MACHINES[name]
    arrange(monkeypatch, imgs.parent)
    reports = {kind: imgs.parent / f"report.{kind}" for kind in ("json", "csv", "html")}
    arguments = [str(imgs), "-w", str(weights), "-d", "cpu", "--log", "json"]
    for path in reports.values():
        arguments += ["--report", str(path)]
    assert main(arguments) == 0
    start = json.loads(capsys.readouterr().out.splitlines()[0])
    assert start["kernels"] == words
    assert json.loads(reports["json"].read_text())["device"]["kernels"] == words
    assert words in reports["csv"].read_text()
    assert words in reports["html"].read_text()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "\n" not in record.getMessage()
    reason = words.partition("kernels: ")[2] if "disabled" not in words else _WRONG
    assert reason.rstrip(")") in record.getMessage()


def test_quiet_is_quiet_of_it(
    imgs: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_library(monkeypatch, imgs.parent)
    assert main([str(imgs), "-w", str(weights), "-d", "cpu", "--quiet"]) == 0
    assert not caplog.records


@pytest.mark.parametrize("name", list(MACHINES))
def test_the_doctor_says_it_too(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrange, words = MACHINES[name]
    arrange(monkeypatch, tmp_path)
    assert doctor(["--device", "cpu", "--no-kernels"]) == 0
    assert f"Computing on cpu: {words}" in capsys.readouterr().out.splitlines()
    assert doctor(["--device", "cpu", "--no-kernels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computing"] == words


def test_a_terminal_sees_it_once_and_the_run_goes_on(imgs: Path, weights: Path) -> None:
    """`default` is what torch calls a processor without AVX2."""
    command = [sys.executable, "-m", "denoise_batch", str(imgs), "-w", str(weights), "-d", "cpu"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "native kernels" in line]
    assert len(lines) == 1
    assert lines[0].startswith("torch matrix products compute, which are slower: no native kernels")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("gemm", "torch matrix products (DENOISE_BATCH_KERNELS=gemm)"),
        ("reference", "the reference implementation (DENOISE_BATCH_KERNELS=reference)"),
    ],
)
def test_one_can_be_forced(
    choice: str,
    words: str,
    imgs: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", choice)
    arguments = [str(imgs), "-w", str(weights), "-d", "cpu", "--log", "json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["kernels"] == words


def test_native_kernels_that_are_asked_for_and_missing_are_an_error(
    imgs: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_library(monkeypatch, imgs.parent)
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", "native")
    assert main([str(imgs), "-w", str(weights), "-d", "cpu"]) == 4
    error = capsys.readouterr().err
    assert "DENOISE_BATCH_KERNELS=native" in error
    assert MEND in error
    assert not imgs.with_name("imgs-denoised").exists()
    assert doctor(["--device", "cpu", "--no-kernels"]) == 1
    assert MEND in " ".join(capsys.readouterr().out.split())


def test_what_a_run_switches_off_stands_at_its_end(
    imgs: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton's kernels are checked at their first call, which the start of the log cannot know."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        return conv2d_fused(*arguments, **options) * 1.01

    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: {"conv2d_fused": wrong})
    report = imgs.parent / "report.json"
    arguments = [str(imgs), "-w", str(weights), "-d", "cpu", "--overwrite"]
    assert main([*arguments, "--log", "json", "--report", str(report)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    off = "Triton kernels, and torch matrix products for conv2d_fused float32 24×3×4×4"
    assert events[0]["kernels"] == "Triton kernels"
    assert events[-1]["kernels"].startswith(off)
    assert json.loads(report.read_text())["device"]["kernels"] == events[-1]["kernels"]
    assert main(arguments) == 0
    assert f"computed by {off}" in capsys.readouterr().out


def test_a_terminal_is_told_how_long_kernels_took_to_compile(
    imgs: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compilations = dispatch.Compilations()
    monkeypatch.setattr(dispatch, "COMPILATIONS", compilations)
    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: True)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: {"conv2d_fused": compiling})
    seconds = [3.4]

    def compiling(*arguments: Any, **options: Any) -> Any:
        if seconds:  # at the first call
            compilations(times=SimpleNamespace(total=seconds.pop() * 1e6), cache_hit=False)
        return conv2d_fused(*arguments, **options)

    arguments = [str(imgs), "-w", str(weights), "-d", "cpu", "--overwrite"]
    assert main(arguments) == 0
    words = "computed by Triton kernels (1 compiled in 3 s)"
    assert words in capsys.readouterr().out.splitlines()
    ops_for.cache_clear()
    monkeypatch.setattr(dispatch, "COMPILATIONS", dispatch.Compilations())
    assert main(arguments) == 0
    assert "computed by" not in capsys.readouterr().out
