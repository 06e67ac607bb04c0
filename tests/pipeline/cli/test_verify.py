"""--verify: every output is read back, on disks and in stores."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from denials import deny
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.scaling import objects
from denoise_batch.streaming import verify as verify_module


class Place:
    """An output, on a disk or in a store."""

    def __init__(self, url: str, files: Any) -> None:
        self.url, self.files = url, files

    def read(self, name: str) -> bytes:
        data: bytes = self.files.cat_file(f"{self.url}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        self.files.makedirs(f"{self.url}/{name}".rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(f"{self.url}/{name}", data)

    def delete(self, name: str) -> None:
        self.files.rm_file(f"{self.url}/{name}".removeprefix("memory://"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/0.png … imgs/5.png, imgs/sub/6.png."""
    root = tmp_path / "imgs"
    (root / "sub").mkdir(parents=True)
    for index in range(7):
        picture(60, 50, index).save(root / ("sub" if index == 6 else "") / f"{index}.png")
    return root


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    fsspec = pytest.importorskip("fsspec")
    if request.param == "folder":
        yield Place(str(tmp_path / "out"), fsspec.filesystem("file"))
        return
    monkeypatch.setattr(objects, "_PAUSE_S", 0.0)
    files = fsspec.filesystem("memory")
    yield Place("memory://bucket/out", files)
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def verify(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exit code, state by name, and the last event."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--verify", "--log", "json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = {event["name"]: event["status"] for event in events if event["event"] == "verify"}
    return code, states, events[-1]


ALL = [*(f"{index}.png" for index in range(6)), "sub/6.png"]


def test_what_is_not_as_it_was_written_is_told(
    folder: Path, place: Place, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (folder, "-o", place.url)
    assert main([*map(str, command), "-w", str(weights), "-d", "cpu"]) == 0
    code, states, end = verify(capsys, *command)
    assert (code, states) == (0, dict.fromkeys(ALL, "whole"))
    assert end["whole"] == 7
    assert end["megabytes"] > 0

    data = [place.read(name) for name in ALL]
    place.delete("0.png")
    place.write("1.png", data[1][:-20])
    place.write("2.png", data[2][:-20] + bytes(20))
    place.write("3.png", data[4])
    place.write("5.png", b"")
    place.write("sub/other.jpg", b"mine")
    place.write("sub/notes.txt", b"mine")
    expected = dict.fromkeys(ALL, "whole") | {
        "0.png": "missing", "1.png": "truncated", "2.png": "changed", "3.png": "changed",
        "5.png": "truncated", "sub/other.jpg": "unknown",
    }  # fmt: skip
    code, states, end = verify(capsys, *command)
    assert (code, states) == (1, expected)
    counts = {"whole": 2, "missing": 1, "truncated": 2, "changed": 2, "unreadable": 0, "unknown": 1}
    assert counts.items() <= end.items()
    assert end["exit_code"] == 1

    assert main([*map(str, command), "--verify"]) == 1
    out = capsys.readouterr().out
    assert "missing" in out
    assert "2 whole, 1 missing, 2 truncated, 2 changed, 1 unknown; " in out
    assert f"{len(data[1]) - 20} of {len(data[1])} bytes" in " ".join(out.split())
    assert "delete what is not whole and run again" in out

    for name in ("2.png", "3.png"):
        place.delete(name)
    assert main([*map(str, command), "-w", str(weights), "-d", "cpu"]) == 0
    code, states, _ = verify(capsys, *command)
    assert (code, states) == (0, {**dict.fromkeys(ALL, "whole"), "sub/other.jpg": "unknown"})


def test_neither_inputs_nor_weights_are_needed(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 0
    for path in folder.rglob("*.png"):
        path.unlink()
    weights.unlink()
    assert verify(capsys, folder, "-w", weights, "-d", "cuda:9")[0] == 0
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    assert verify(capsys, folder, "-o", folder.with_name("imgs-denoised"))[0] == 0
    assert verify(capsys, folder)[0] == 2


def test_bytes_that_rot_under_an_old_stat_are_found(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 0
    rotten = folder.with_name("imgs-denoised") / "3.png"
    with rotten.open("r+b") as file:
        file.seek(99)
        file.write(b"\0\0")
    code, states, _ = verify(capsys, folder)
    assert (code, states["3.png"]) == (1, "changed")
    deny(monkeypatch, "open", PermissionError, lambda path: path.endswith("denoised/4.png"))
    assert verify(capsys, folder)[1]["4.png"] == "unreadable"


def test_outputs_beside_their_inputs(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(folder / "0.png"), str(folder / "1.png")]
    assert main([*inputs, "-w", str(weights), "-d", "cpu"]) == 0
    whole = dict.fromkeys(["0-denoised.png", "1-denoised.png"], "whole")
    assert verify(capsys, *inputs)[:2] == (0, whole)
    assert verify(capsys, f"{folder}/*.png")[:2] == (0, whole)
    assert main([inputs[0], "-o", str(folder / "x.png"), "-w", str(weights), "-d", "cpu"]) == 0
    found = verify(capsys, inputs[0], "-o", folder / "x.png")[:2]
    assert found == (0, {**whole, "x.png": "whole"})


def test_shards_verify_their_shares(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 0
    shares = [verify(capsys, folder, "--shard", f"{number}/2")[1] for number in (1, 2)]
    assert sorted([*shares[0], *shares[1]]) == ALL


@pytest.mark.parametrize("more", [("--watch", "1"), ("--dry-run",), ("--report", "r.json")])
def test_it_goes_alone(
    folder: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--verify", *more]) == 2
    assert "--verify: goes without" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["none", "empty"])
def test_an_output_without_a_manifest_is_a_usage_error(
    folder: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an output that is not mounted."""
    if state == "empty":
        (folder.with_name("imgs-denoised") / ".denoise-batch").mkdir(parents=True)
    assert main([str(folder), "--verify"]) == 2
    assert "imgs-denoised: no manifest" in capsys.readouterr().err
    assert main([f"{folder}/*.gif", "--verify"]) == 2


def test_quiet_tells_of_what_is_bad_only(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu", "--quiet"]) == 0
    assert main([str(folder), "--verify", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    (folder.with_name("imgs-denoised") / "2.png").unlink()
    assert main([str(folder), "--verify", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "2.png" in out
    assert "3.png" not in out


def test_a_signal_ends_it(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 0
    check: Callable[..., Any] = verify_module._unknown

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return check(*arguments)

    monkeypatch.setattr(verify_module, "_unknown", interrupted)
    code, _, end = verify(capsys, folder)
    assert (code, end["signal"], end["exit_code"]) == (143, signal.SIGTERM, 143)


def test_a_run_at_the_same_time_is_no_fault(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It replaces all outputs after their entries were read."""
    command = [str(folder), "-w", str(weights), "-d", "cpu", "--quiet"]
    assert main(command) == 0
    runs = [["--strength", "0.5"]]
    original = verify_module.is_in_shard

    def during(*arguments: Any) -> bool:
        if runs:
            assert main([*command, *runs.pop()]) == 0
        return original(*arguments)

    monkeypatch.setattr(verify_module, "is_in_shard", during)
    assert verify(capsys, folder)[:2] == (0, dict.fromkeys(ALL, "whole"))
