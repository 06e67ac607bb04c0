"""Logs: what happens where they cannot be written, and what of a file's name gets into them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import picture

from denoise_batch.cli import doctor, evaluate
from denoise_batch.cli.batch import main

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/0.png … imgs/5.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(6):
        picture(24, 20, index).save(root / f"{index}.png")
    return root


def names(folder: Path) -> list[str]:
    output = folder.with_name("imgs-denoised")
    return sorted(path.name for path in output.glob("*.png"))


ALL = [f"{index}.png" for index in range(6)]


def command(folder: Path, weights: Path, *more: str) -> list[str]:
    return [str(folder), "-w", str(weights), "-d", "cpu", *more]


@needs_full
@pytest.mark.parametrize("log", ["--log=json", "--log=plain", "--quiet"])
@pytest.mark.parametrize("lost", ["stdout", "stderr"])
def test_a_full_disk_of_the_log_costs_the_log_only(
    lost: str,
    log: str,
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "bad.png").write_bytes(b"")
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, lost, full)
        assert main(command(folder, weights, log)) == 1
        monkeypatch.undo()
    assert names(folder) == ALL
    captured = capsys.readouterr()
    other = captured.err if lost == "stdout" else captured.out
    stream = "standard output" if lost == "stdout" else "standard error"
    is_silent = (lost, log) in (("stdout", "--quiet"), ("stderr", "--log=json"))
    assert other.count(f"{stream} cannot be written (No space left") == (not is_silent)
    if log == "--log=json":
        assert all(json.loads(line)["event"] for line in captured.out.splitlines())


def run_shell(script: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "denoise_batch", *arguments]
    shell = ["bash", "-o", "pipefail", "-c", script, "bash", *program]
    return subprocess.run(shell, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("script", "log"),
    [
        ('"$@" | head -n 1', "json"),
        ('"$@" 2>&1 | head -n 1', "plain"),
        ('"$@" >&- 2>&-', "plain"),
        ('"$@" <&- >&- 2>&-', "json"),
    ],
)
def test_a_log_that_nobody_reads_costs_no_picture(
    script: str, log: str, folder: Path, weights: Path
) -> None:
    done = run_shell(script, command(folder, weights, "--log", log))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert names(folder) == ALL


LOUD = """
import os, sys
from denoise_batch.cli.batch import main
from denoise_batch.streaming import steps
read_pages = steps.read_pages
def loud(*arguments):
    for number in (1, 2):
        os.write(number, b"a C library complains\\n")
    return read_pages(*arguments)
steps.read_pages = loud
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_c_libraries_print_gets_into_no_file(closed: str, folder: Path, weights: Path) -> None:
    script = f'"$@" {closed}'
    program = [sys.executable, "-c", LOUD, *command(folder, weights)]
    assert subprocess.run(["bash", "-c", script, "bash", *program], check=False).returncode == 0
    state = folder.with_name("imgs-denoised") / ".denoise-batch"
    assert (state / "lock").read_bytes() == b""
    assert len([json.loads(s) for s in (state / "manifest.jsonl").read_text().splitlines()]) == 6
    assert names(folder) == ALL


def test_children_see_descriptors_0_to_2(tmp_path: Path) -> None:
    code = (
        "from denoise_batch.cli.streams import standard_streams\n"
        "import os, subprocess, sys\n"
        "with standard_streams():\n"
        "    assert [os.readlink(f'/proc/self/fd/{n}') for n in range(3)] == ['/dev/null'] * 3\n"
        "    assert os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY) == 3\n"
        "    print('x'); print('y', file=sys.stderr); assert sys.stdin.read() == ''\n"
        "    subprocess.run(['true'], check=True)\n"
    )
    shell = ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code]
    done = subprocess.run([*shell, str(tmp_path / "file")], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@needs_full
def test_a_result_that_cannot_be_written_is_a_failure(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where standard output is not a log but all that the command makes."""
    commands = {
        "plan": lambda: main(command(folder, weights, "--dry-run")),
        "doctor": lambda: doctor.main(["--no-kernels", "--device", "cpu", "--json"]),
        "scores": lambda: evaluate.main([str(weights), str(folder), "-d", "cpu", "--json"]),
    }
    codes = {}
    for name, run in commands.items():
        with FULL.open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            codes[name] = run()
            monkeypatch.undo()
    assert codes == {"plan": 1, "doctor": 1, "scores": 1}
