"""scripts/gpu-check: rehearsed on the CPU, and as it would be on a GPU, with fakes."""

import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import types
from collections.abc import Callable
from importlib import util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
CHECK = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--quick"]
# The others are rehearsed where nothing is installed.
REHEARSED = ["correctness", "pixels", "forward", "folders", "training", "memory", "networks"]
NO_KERNELS = "torch matrix products compute, which are slower: no Triton kernels: no compiler"
TRITON = "Triton kernels (7 compiled in 9 s)"


@pytest.fixture(autouse=True)
def _siblings_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is no package: its files import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def sibling(name: str) -> ModuleType:
    return importlib.import_module(name)


NewReport = Callable[..., Any]


@pytest.fixture
def new_report(tmp_path: Path) -> NewReport:
    """A report on a GPU that is not there."""

    def make(device: str = "cuda", left_s: float = 1000.0) -> Any:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return sibling("gpu_report").Report(
            tmp_path / "report.md",
            ["# A GPU"],
            device=device,
            is_quick=False,
            deadline=time.monotonic() + left_s,
            scratch=scratch,
        )

    return make


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ended(*errors: str, code: int = 0, is_late: bool = False) -> Any:
    return sibling("gpu_report").Ended(code, [], errors, 1.0, is_late)


def states(text: str) -> dict[str, str]:
    """What became of each part, without the seconds."""
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("- ")]
    pairs = (line[2:].partition(": ") for line in lines)
    return {name: state.partition(",")[0] for name, _, state in pairs}


def test_a_rehearsal_says_that_it_is_none(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [*CHECK, "--parts", "environment,forward", "--output", str(report)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "**A rehearsal without a GPU: these figures are no result.**" in report.read_text()


@pytest.mark.slow
def test_a_rehearsal_goes_through_the_parts(tmp_path: Path) -> None:
    report = tmp_path / "new" / "report.md"
    command = [*CHECK, "--parts", ",".join(REHEARSED), "--output", str(report)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    text = report.read_text()
    assert states(text) == dict.fromkeys(REHEARSED, "ok")
    for row in (
        "| conv2d_backward float32 | ",
        "| fp32 --tile 96",
        "| fp32 by matrix products",
        "| 128² | ",
        "| 16×64² float32 | its first and last image alone | ",
        "| infer/conv3x3-32/1x32x16x16/float32 | ",
        "| png --no-measure --cuda-graphs",
        "| muon --cuda-graphs",
        "| a page of 768² | ",
        "| infer/tconv/1x3x32x32/float32",
    ):
        assert row in text
    assert text.partition("\n## ")[2].splitlines()[-1] in result.stdout


def test_without_an_installation_it_runs_the_tree_in_a_python_that_has_all_else(
    tmp_path: Path,
) -> None:
    root = tmp_path / "tree"
    (root / "scripts").mkdir(parents=True)
    for name in ("gpu-check", "link"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts" / name)
    (root / "scripts" / "benchmarks").symlink_to(BENCHMARKS)
    for name in ("pipeline", "kernels", "weights", "docs", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    home = Path(sys.base_prefix) / "bin"
    packages = tmp_path / "env" / "lib" / f"python{sysconfig.get_python_version()}"
    (packages / "site-packages").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text(f"home = {home}\n")
    (tmp_path / "env" / "bin").mkdir()
    interpreter = tmp_path / "env" / "bin" / "python"
    interpreter.symlink_to(Path(sys.executable).resolve())
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "denoise_batch" not in path.name:
            (packages / "site-packages" / path.name).symlink_to(path)
    environment = os.environ | {"PYTHON": str(interpreter)}
    environment.pop("PYTHONPATH", None)
    report = tmp_path / "report.md"
    command = [root / "scripts" / "gpu-check", "--device", "cpu", "--quick", "--output", report]
    result = subprocess.run(
        [*command, "--parts", "environment,fallbacks"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = report.read_text()
    assert states(text) == {"environment": "ok", "fallbacks": "ok"}
    assert f"denoise-batch {version('denoise-batch')}, torch {version('torch')}" in text
    assert "\n- commit " in text
    assert "| a compiler | 0 | " in text
    assert not (root / ".venv").exists()


def test_a_report_that_is_ended_early_says_how_far_it_came(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [*CHECK, "--parts", "environment,pixels", "--output", str(report)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("## One folder"):
            break
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert states(report.read_text()) == {"environment": "ok", "pixels": "began"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--parts", "pixels,speed"], "speed: choose from environment, correctness"),
        (["--parts", ""], "choose from environment"),
    ],
)
def test_a_part_that_is_none_is_a_usage_error(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        sibling("gpu_check").main(["--device", "cpu", *arguments])
    assert ending.value.code == 2
    assert says in capsys.readouterr().err


def test_parts_keep_their_order_fail_alone_and_are_left_out_when_time_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_check, Part = sibling("gpu_check"), sibling("gpu_parts").Part
    ran = []

    def part(name: str, least_s: float = 0, error: Exception | None = None) -> Any:
        def run(report: Any) -> None:
            ran.append(name)
            report.say("found something")
            if error:
                raise error

        return Part(name, name.title(), least_s, run)

    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    broken = part("broken", error=RuntimeError("CUDA error: an illegal memory access"))
    monkeypatch.setattr(gpu_check, "PARTS", (broken, part("long", least_s=61), part("short")))
    path = tmp_path / "report.md"
    code = gpu_check.main(["--device", "cpu", "--minutes", "1", "--output", str(path)])
    assert code == 1
    assert ran == ["broken", "short"]
    text = path.read_text()
    assert states(text) == {
        "broken": "WRONG",
        "long": "left out: 60 s were left; --parts long",
        "short": "ok",
    }
    assert "**WRONG**: RuntimeError: CUDA error: an illegal memory access" in text


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for processes")
def test_a_process_ends_with_its_time_and_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    heard: list[str] = []
    late = sibling("gpu_report").run(python(code), timeout_s=2, on_line=heard.append)
    assert late.is_late
    assert late.lines == heard
    state = Path(f"/proc/{heard[0]}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split(")")[-1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_found_until_then_stays_and_a_failure_says_why(new_report: NewReport) -> None:
    report = new_report()
    error = sibling("gpu_report").ChildError
    report.begin("part", "A part")
    report.table("what", "how much")
    slow = "import time; print('a row', flush=True); time.sleep(60)"
    with pytest.raises(error, match=r"slow: ended after its 2 s"):
        report.child("slow", python(slow), most_s=2, on_line=report.row)
    failing = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
    with pytest.raises(error, match=r"broken: exit code 3: out of luck"):
        report.child("broken", python(failing), most_s=60)
    text = report._path.read_text()
    assert text.endswith("| what | how much |\n|--|--|\n| a row |\n")
    assert states(text) == {"part": "began"}
    report.end(5.0)
    assert states(report._path.read_text()) == {"part": "incomplete"}


def test_no_process_takes_longer_than_what_is_left(new_report: NewReport) -> None:
    report = new_report(left_s=0)
    with pytest.raises(sibling("gpu_report").ChildError, match="ended after its 0 s"):
        report.child("late", python("import time; time.sleep(60)"), most_s=60)


@pytest.mark.parametrize(
    ("warning", "is_doubt"),
    [
        ("Triton kernel conv2d_fused bfloat16 is disabled on cuda (wrong results)", True),
        ("CUDA graphs are disabled (operation not permitted); launches go on one by one", True),
        (NO_KERNELS, True),
        ("Triton compiles the kernels, which takes a while", False),
    ],
)
def test_warnings_are_in_the_report_and_mark_their_row(
    warning: str, is_doubt: bool, new_report: NewReport
) -> None:
    report = new_report()
    report.begin("part", "A part")
    code = f"import sys; print('2/3 infer/unet', {warning!r}, sep='\\n', file=sys.stderr)"
    found = report.child("run", python(code), most_s=60)
    report.end(1.0)
    assert found.is_doubtful == is_doubt
    assert found.doubtful_cases() == ({"infer/unet"} if is_doubt else set())
    assert f"- run: {warning}" in report._path.read_text()
    assert "2/3" not in report._path.read_text()


def picture(folder: Path, value: int) -> None:
    folder.mkdir()
    Image.new("RGB", (4, 4), (value, 100, 100)).save(folder / "a.png")


def faked_denoise(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, int], says: dict[str, tuple[str, Any]]
) -> None:
    """`denoise` that writes a picture of a value, and says what computed and its warnings."""

    def denoise(report: Any, name: str, folder: Path, *arguments: str, **rest: Any) -> Any:
        output = report.scratch / f"out {name}"
        picture(output, values.get(name, 100))
        kernels, process = says.get(name, (TRITON, ended()))
        end = {"kernels": kernels}
        return sibling("gpu_runs").Denoised(output, process, end, 18, 2.5, 3.5)

    monkeypatch.setattr(sibling("gpu_parts"), "denoise", denoise)


def test_pixels_that_differ_are_wrong_and_other_kernels_show(
    monkeypatch: pytest.MonkeyPatch, new_report: NewReport
) -> None:
    values = {"fp32": 101, "fp32 --tile 96": 103, "bf16": 102, "bf16 --cuda-graphs": 150}
    graphs = ended("CUDA graphs are disabled (not permitted); launches go on one by one")
    says = {
        "fp32": ("torch matrix products (no Triton kernels: no compiler)", ended()),
        "fp32 --cuda-graphs": (TRITON, graphs),
    }
    faked_denoise(monkeypatch, values, says)
    report = new_report()
    report.begin("pixels", "Pixels")
    sibling("gpu_parts").pixels(report)
    report.end(1.0)
    text = report._path.read_text()
    assert states(text) == {"pixels": "WRONG ⚠"}
    assert "| fp32 ⚠ | torch matrix products" in text
    assert "| fp32 --cuda-graphs ⚠ |" in text
    assert f"| fp32 --tile 96 | {TRITON} | 2.5 | 3.5 | 3 | 33.33% | 43.4 |" in text
    wrong = [line for line in text.splitlines() if "**WRONG**" in line]
    assert [line.split(": ")[1] for line in wrong] == ["fp32 --tile 96", "bf16 --cuda-graphs"]


@pytest.mark.parametrize(
    ("process", "is_wrong"),
    [
        (ended, False),
        (lambda *lines: ended(), True),  # it must say so
        (lambda *lines: ended("Traceback (most recent call last):", *lines), True),
        (lambda *lines: ended(*lines, code=1), True),
    ],
    ids=["one line", "silent", "traceback", "failed"],
)
def test_without_a_compiler_one_line_is_right(
    process: Callable[..., Any],
    is_wrong: bool,
    monkeypatch: pytest.MonkeyPatch,
    new_report: NewReport,
) -> None:
    said = ("torch matrix products", process(NO_KERNELS))
    faked_denoise(monkeypatch, {}, {"a compiler": said, "a folder for TRITON_CACHE_DIR": said})
    report = new_report()
    report.begin("fallbacks", "Fallbacks")
    sibling("gpu_parts").fallbacks(report)
    assert report.wrong == ["fallbacks"] * is_wrong


def test_a_training_rate_is_the_median_of_later_parts(
    monkeypatch: pytest.MonkeyPatch, new_report: NewReport
) -> None:
    asked = []

    def rates(report: Any, name: str, *arguments: str, steps: int, **rest: Any) -> Any:
        asked.append((name, steps))
        warning = "CUDA graphs are disabled (wrong changes); launches go on one by one"
        return [1.0, 2.0, 3.0, 400.0, 410.0, 30.0, 400.0], ended(*[warning] * (name[0] == "m"))

    monkeypatch.setattr(sibling("gpu_parts"), "train_rates", rates)
    report = new_report()
    sibling("gpu_parts").training(report)
    assert asked[0] == ("warm-up", 20)
    names = [name for name, _ in asked[1:]]
    assert names == ["sgd", "sgd --cuda-graphs", "muon", "muon --cuda-graphs"]
    text = report._path.read_text()
    assert "| sgd | 400 | 40 | 5 |" in text
    assert "| muon --cuda-graphs ⚠ | 400 | 40 | 5 |" in text


def test_peers_are_measured_once(monkeypatch: pytest.MonkeyPatch, new_report: NewReport) -> None:
    asked = []

    def bench(report: Any, name: str, arguments: Any, kernels: str = "auto") -> Any:
        asked.append((kernels, arguments[-1], arguments[:-2]))
        ours = {"status": "ok", "error": 1e-3, "median_ms": 2.0, "bound_fraction": 0.5}
        case = {"name": "infer/x", "tolerance": 1e-2, "ratios": {"eager": 0.5}, "red": False}
        case["providers"] = {"ours": ours, "eager": {"status": "ok", "median_ms": 4.0}}
        return sibling("gpu_runs").Benched([case], {"infer/x"})

    monkeypatch.setattr(sibling("gpu_parts"), "bench", bench)
    report = new_report()
    sibling("gpu_parts").networks(report, ["infer/x*"])
    assert asked == [
        ("auto", "ours,eager,compile", ["infer/x*"]),
        ("gemm", "ours", ["infer/x*"]),
    ]
    row = "| infer/x ⚠ | 1.0e-03 of 1e-02 | 2 | 2 | 4 |  | 0.5 |  | 50% |"
    assert row in report._path.read_text()


def test_what_is_timed_is_the_gpu_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, timing = sibling("worker"), sibling("timing")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    timing.use_device(torch.device("cpu"))
    timing.use_device(torch.device("cuda"))  # the current one
    assert not chosen

    def start(case: object, provider: str, device: torch.device, results: Path) -> None:
        assert chosen == [torch.device("cuda:3")]
        raise worker.UnavailableError("that is all")

    sent: list[Any] = []
    monkeypatch.setattr(worker, "_start", start)
    monkeypatch.setattr(worker, "_same_conditions", lambda threads: None)
    monkeypatch.setattr(worker, "_is_command", lambda case, provider: False)
    monkeypatch.setattr(worker.signal, "signal", lambda number, handler: None)
    pipe = types.SimpleNamespace(send=sent.append)
    worker.serve(pipe, None, "ours", torch.device("cuda:3"), 1, tmp_path)
    assert [error.reason for error in sent] == ["that is all"]


def test_a_call_that_waits_for_the_gpu_is_an_error_in_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> None:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    timed = sibling("gpu_probe")._timed
    with pytest.raises(RuntimeError, match="synchronizing"):
        timed(wait, torch.device("cuda"))
    assert modes == ["default", "error", "default"]
    host_s, all_s = timed(lambda: None, torch.device("cuda"))
    assert host_s > 0
    assert all_s > 0


def test_a_probe_marks_the_rows_in_which_something_slower_computes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = sibling("gpu_probe")
    words = [TRITON]
    monkeypatch.setattr(probe, "ops_for", lambda device: types.SimpleNamespace(in_words=words[-1]))
    rows = probe.Rows(torch.device("cuda"))
    logger = logging.Logger("denoise_batch.kernels")
    logger.addHandler(rows)
    logger.warning("CUDA graphs are disabled (%s); launches go on one by one", "no reason")
    rows("64² graphs", 1.0)
    rows("128²", 1.0)
    words.append("Triton kernels, and torch matrix products for conv2d_fused (wrong results)")
    rows("256²", 1.0)
    names = [json.loads(line)["cells"][0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["64² graphs ⚠", "128²", "256² ⚠"]


def test_the_gpu_and_how_busy_it_is_come_from_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_report: NewReport
) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "nvidia-smi"
    said = tmp_path / "said"
    command.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'    "-i 2 "*) printf "0\\n80\\n[N/A]\\n90\\n"; : > {said}; exec sleep 60 ;;\n'
        '    *) echo "NVIDIA H200, 580.159.03" ;;\n'
        "esac\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    names = {"name": "NVIDIA H200", "major": 9, "minor": 0}
    sizes = {"multi_processor_count": 132, "total_memory": 139 << 30}
    properties = types.SimpleNamespace(**names, **sizes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    report = new_report("cuda:2")
    sibling("gpu_parts").environment(report)
    text = report._path.read_text()
    assert "- NVIDIA H200, compute capability 9.0, 132 SMs, 139 GiB" in text
    assert "power.limit): NVIDIA H200, 580.159.03" in text
    with sibling("gpu_runs").utilisation(report) as busy:
        deadline = time.monotonic() + 30
        while not said.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert busy == [80, 90]


def test_memory_is_short_for_the_drill_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    properties = types.SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    denoiser = types.SimpleNamespace(device=torch.device("cuda"))
    limited = sibling("gpu_probe")._limited
    with pytest.raises(KeyError), limited(denoiser, 300, 0):
        raise KeyError
    assert fractions == [0.4, 1.0]


@pytest.fixture
def report() -> ModuleType:
    return sibling("report")


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
