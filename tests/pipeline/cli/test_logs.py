"""Logs: what happens where they cannot be written, and what of a file's name gets into them."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
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


# Each would do something to a terminal, to a mail or to a log of lines.
EVIL = {
    "\x1b[2Jescape": "\\x1b[2Jescape",
    "\x9b31mcontrol": "\\x9b31mcontrol",
    "carriage\rreturn": "carriage\\rreturn",
    "new\nfailed line": "new\\nfailed line",
    "\u202ereversed": "\\u202ereversed",
    "isolated\u2066": "isolated\\u2066",
    "next\x85line": "next\\x85line",
    "line\u2028separator": "line\\u2028separator",
    "bell\x07": "bell\\x07",
    "byte\udcff": "byte\\xff",
    "tag\U000e0041": "tag\\U000e0041",
    "\x9d0;title\x9c": "\\x9d0;title\\x9c",
}
LOOKS = {":smile: [red]", "می\u200cخواهم", "naïve ☕", "图像", "👩\u200d👧"}


def is_hidden(char: str) -> bool:
    from unicodedata import category

    return char not in "\n\u200c\u200d" and category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A picture and a damaged file of each name."""
    root = tmp_path / "imgs"
    root.mkdir()
    for name in (*EVIL, *LOOKS):
        picture(24, 20, 0).save(root / f"{name}.png")
        (root / f"{name}-bad.png").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    "options", [(), ("--dry-run",), ("--quiet",), ("--strength", "0"), ("--suffix", "\x1b[0m")]
)
def test_names_are_shown_and_command_nothing(
    options: tuple[str, ...], evil: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(evil, weights, *options))
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert not [char for char in text if is_hidden(char)]
    for name in (*EVIL.values(), *LOOKS):
        assert name in text
    assert not [line for line in text.splitlines() if line.startswith("failed line")]


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nerror: b", "\u202ex", "\udcfe"])
def test_errors_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        ["batch", str(tmp_path / name)],
        ["batch", str(tmp_path), "-w", str(tmp_path / f"{name}.safetensors")],
        ["batch", f"--{name}"],
        ["evaluate", str(tmp_path / f"{name}.safetensors"), str(tmp_path)],
        ["evaluate", "tconv", str(tmp_path / name)],
        ["train", str(tmp_path / name), "-o", str(tmp_path / "run")],
    ]
    from denoise_batch.cli import batch, train

    mains = {"batch": batch.main, "evaluate": evaluate.main, "train": train.main}
    for tool, *arguments in commands:
        assert mains[tool](arguments) != 0
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert text
        assert not [char for char in text if is_hidden(char)], (tool, arguments, text)
        assert not [line for line in text.splitlines() if line.startswith("error: b")]


def test_json_lines_are_unicode_whatever_the_names_are(
    evil: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evil.parent / "report.json"
    for options in (("--dry-run",), ("--report", str(report))):
        main(command(evil, weights, "--log", "json", *options))
        lines = capsys.readouterr().out.encode().decode("utf-8").split("\n")
        events = [json.loads(line) for line in lines if line]
        said = {event["name"]: event for event in events if "name" in event}
        for event in events:
            json.dumps(event, ensure_ascii=False).encode("utf-8")
        assert "byte\\xff.png" in said
        assert "\x1b[2Jescape.png" in said  # JSON has an escape of its own for it
        assert len(said) == 2 * len(EVIL) + 2 * len(LOOKS)
    document = json.loads(report.read_bytes().decode("utf-8"))
    json.dumps(document, ensure_ascii=False).encode("utf-8")
    assert {image["name"] for image in document["images"]} == set(said)


def test_csv_computes_nothing_and_html_shows_names(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, clean = tmp_path / "imgs", tmp_path / "clean"
    root.mkdir()
    clean.mkdir()
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1", "\n=1"]
    for name in [*formulas, "plain", "a=b"]:
        picture(24, 20, 0).save(root / f"{name}.png")
        picture(24, 20, 0).point(lambda v: max(v - 3, 0)).save(clean / f"{name}.png")
        (root / f"{name}-bad.png").write_bytes(b"")
        (root / f"{name}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    page, table = tmp_path / "r.html", tmp_path / "r.csv"
    reports = ["--report", str(page), "--report", str(table)]
    main(command(root, weights, *reports, "--reference", str(clean)))
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 9
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        for key in ("name", "source", "output", "reason", "notes"):
            assert not row[key].startswith(tuple("=+-@\t\r\n＝＋－＠")), row
    assert {f"'{name}.png" for name in formulas} <= set(by_name)
    assert {"plain.png", "a=b.png"} <= set(by_name)
    assert [row for row in rows if row["gain"] and float(row["gain"]) < 0]  # a number stays one
    assert not [c for c in page.read_text(encoding="utf-8").replace("\t", " ") if is_hidden(c)]


def lines_of(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> tuple[int, list[dict[str, object]], str]:
    """Exit code, the JSON lines of standard output, and standard error."""
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def spoilt(kind: str, folder: Path, weights: Path) -> tuple[list[str], int, str]:
    """Arguments of a run that ends before its first image, its exit code, a part of the reason."""
    empty = folder.parent / "empty"
    empty.mkdir()
    (folder.parent / "w.safetensors").write_bytes(b"no weights")
    device = "cuda:99" if torch.cuda.is_available() else "cuda"
    given = ["-w", str(weights), "-d", "cpu", "--log", "json"]
    return {
        "missing": ([str(folder / "x"), *given], 2, "no such file"),
        "empty": ([str(empty), *given], 3, "no images found"),
        "device": ([str(folder), *given, "-d", device], 4, "cuda"),
        "weights": ([str(folder), *given, "-w", f"{folder}/../w.safetensors"], 5, "safetensors"),
        "no-weights": ([str(folder), *given, "-w", "w.safetensors"], 5, "no such weights"),
        "shard": ([str(folder), *given, "--shard", "3/2"], 2, "shard"),
        "batch-size": ([str(folder), *given, "--batch-size", "x"], 2, "batch-size"),
        "reference": ([str(folder), *given, "--reference", ""], 2, "reference is empty"),
        "report": ([str(folder), *given, "--report", "x.txt"], 2, "x.txt"),
        "store": ([str(folder), *given, "-o", "nonsense://x"], 2, "nonsense"),
        "unknown-option": ([str(folder), *given, "--wat"], 2, "--wat"),
        "no-input": (given, 2, "INPUT"),
        "no-number": ([str(folder), "--log=json", "--limit", "many"], 2, "--limit"),
    }[kind]  # fmt: skip


KINDS = [
    "missing", "empty", "device", "weights", "no-weights", "shard", "batch-size", "reference",
    "report", "store", "unknown-option", "no-input", "no-number",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_errors_before_the_run_are_json_too(
    kind: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected, reason = spoilt(kind, folder, weights)
    code, events, err = lines_of(capsys, arguments)
    assert code == expected
    error, end = events
    assert (error["event"], error["exit_code"]) == ("error", expected)
    assert reason in str(error["reason"])
    assert (end["event"], end["exit_code"]) == ("end", expected)
    assert (end["done"], end["failed"], end["skipped"]) == (0, 0, 0)
    assert "Traceback" not in err


def test_an_error_after_images_counts_them(
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from denoise_batch.kernels import DeviceError
    from denoise_batch.streaming.stream import LocalEngine

    whole = LocalEngine.run

    def run(*arguments: object) -> Iterator[object]:
        results = whole(*arguments)  # type: ignore[arg-type]  # passed on
        yield next(results)
        results.close()
        raise DeviceError("the device fell over")

    monkeypatch.setattr(LocalEngine, "run", run)
    code, events, _ = lines_of(capsys, command(folder, weights, "--log", "json"))
    assert code == 4
    assert [event["event"] for event in events] == ["start", "image", "error", "end"]
    assert events[-1]["done"] == 1
    assert events[-1]["exit_code"] == 4


def test_a_report_that_cannot_be_written_ends_the_log_too(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "r.json").mkdir()
    arguments = command(folder, weights, "--log", "json", "--report", f"{folder.parent}/r.json")
    code, events, _ = lines_of(capsys, arguments)
    assert events[-1]["event"] == "end"
    assert events[-1]["exit_code"] == code
    assert [event["event"] for event in events].count("end") == 1
    if code:
        assert [event["event"] for event in events].count("error") == 1


def test_every_json_line_has_its_time(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = datetime.now(UTC)
    events = []
    for more in (["--dry-run"], [], ["--shard", "9/2"]):
        events += lines_of(capsys, command(folder, weights, "--log", "json", *more))[1]
    times = [str(event["time"]) for event in events]
    assert {event["event"] for event in events} == {
        "plan", "estimate", "start", "image", "end", "error"
    }  # fmt: skip
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert times == sorted(times)
    assert abs((datetime.fromisoformat(times[0]) - before).total_seconds()) < 60


@pytest.mark.parametrize("log", [(), ("--log", "json"), ("--log", "plain")])
def test_an_empty_folder_is_silent_where_quiet(
    log: tuple[str, ...], tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path / "empty", weights, "--quiet", *log)) == 3
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert main(command(tmp_path / "missing", weights, "--quiet", *log)) == 2
    captured = capsys.readouterr()
    assert "missing" in captured.out + captured.err
