"""One bad item fails alone, with its name; a faulty output ends the run, or is waited for."""

import errno
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from denials import deny
from pictures import picture

from denoise_batch.cli.batch import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/0.png … imgs/3.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(4):
        picture(24, 20, index).save(root / f"{index}.png")
    return root


def run(
    capsys: pytest.CaptureFixture[str], weights: Path, *arguments: object
) -> tuple[int, dict[str, str], dict[str, str]]:
    """Exit code; names of images → status; names → reason."""
    capsys.readouterr()
    code = main([*map(str, arguments), "-w", str(weights), "-d", "cpu", "--log", "json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    images = [event for event in events if event["event"] == "image"]
    return (
        code,
        {event["name"]: event["status"] for event in images},
        {event["name"]: event["reason"] for event in images if event.get("reason")},
    )


DONE = dict.fromkeys(["0.png", "1.png", "2.png", "3.png"], "done")


@pytest.mark.parametrize("name", ["lost+found", "deep/er/locked", "zz"])
def test_a_folder_that_cannot_be_listed_fails_alone(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (folder / name).mkdir(parents=True)
    picture(9, 9, 7).save(folder / name / "unseen.png")
    deny(monkeypatch, "scandir", PermissionError, lambda path: path.endswith(name))
    code, statuses, reasons = run(capsys, weights, folder)
    assert (code, statuses) == (1, {**DONE, name: "failed"})
    assert str(folder / name) in reasons[name]
    assert "cannot be listed: Permission denied" in reasons[name]


def test_folders_that_cannot_be_listed_are_told_by_a_dry_run(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "locked").mkdir()
    deny(monkeypatch, "scandir", PermissionError, lambda path: path.endswith("locked"))
    assert main([str(folder), "-w", str(weights), "-d", "cpu", "--dry-run"]) == 0
    assert f"{folder}/locked: cannot be listed" in capsys.readouterr().out


def test_a_folder_of_nothing_but_a_locked_one_fails(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "imgs" / "lost+found").mkdir(parents=True)
    deny(monkeypatch, "scandir", PermissionError, lambda path: path.endswith("lost+found"))
    code, statuses, _ = run(capsys, weights, tmp_path / "imgs")
    assert (code, statuses) == (6, {"lost+found": "failed"})


def test_images_in_a_folder_that_cannot_be_entered_fail_alone(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "listed").mkdir()
    for name in ("a.png", "a-denoised.png"):
        picture(9, 9, 7).save(folder / "listed" / name)
    deny(monkeypatch, "stat", PermissionError, lambda path: "imgs/listed/" in path)
    code, statuses, reasons = run(capsys, weights, folder)
    assert code == 1
    assert statuses["listed/a.png"] == "failed"
    assert "Permission denied" in reasons["listed/a.png"]
    assert DONE.items() <= statuses.items()


@pytest.fixture
def bottomless(tmp_path: Path) -> Iterator[Path]:
    """A folder that may nest deeper than pytest's own clean-up, which recurses, can follow."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


@pytest.mark.parametrize("depth", [1200, 1900])
def test_a_picture_below_very_many_folders_is_done(
    folder: Path, bottomless: Path, weights: Path, capsys: pytest.CaptureFixture[str], depth: int
) -> None:
    """Made and looked at step by step: the tests' own calls have limits too."""
    name = "d/" * depth + "deep.png"
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=place)
        place, above = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(above)
    with os.fdopen(os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=place), "wb") as file:
        file.write((folder / "0.png").read_bytes())
    os.close(place)
    out = bottomless / "o"
    code, statuses, _ = run(capsys, weights, folder, "-o", out)
    assert (code, statuses) == (0, {**DONE, name: "done"})
    assert (out / name).is_file()
    assert set(run(capsys, weights, folder, "-o", out)[1].values()) == {"skipped"}


def test_a_folder_whose_path_is_too_long_fails_alone(
    folder: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = os.open(folder, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=place)
        place, above = os.open("d" * 200, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)
    code, statuses, reasons = run(capsys, weights, folder, "-o", tmp_path / "out")
    assert code == 1
    assert DONE.items() <= statuses.items()
    ((name, reason),) = reasons.items()
    assert statuses[name] == "failed"
    assert "File name too long" in reason


def fill(monkeypatch: pytest.MonkeyPatch, number: int, is_full: Callable[[int], bool]) -> None:
    """Let the flush of every output fail with this errno while `is_full(calls so far)`."""
    original, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if is_full(calls[0]):
            raise OSError(number, os.strerror(number))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """imgs/00.png … imgs/39.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(40):
        picture(24, 20, index).save(root / f"{index:02}.png")
    return root


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EDQUOT", "EIO", "ESTALE"])
def test_a_run_gives_up_after_ten_faults_of_the_output_in_a_row(
    many: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    number = getattr(errno, name)
    with monkeypatch.context() as full:
        fill(full, number, lambda calls: calls > 3)
        code = main([str(many), "-w", str(weights), "-d", "cpu", "-b", "1", "--log", "json"])
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert code == events[-1]["exit_code"] == 7
    assert events[-1]["done"] == 3
    assert 10 <= events[-1]["failed"] < 30  # of 40: what is done may be told late
    assert events[-1]["left"] == 37 - events[-1]["failed"]
    assert said.err.startswith("error: the output or a store failed ")
    assert os.strerror(number) in said.err
    assert run(capsys, weights, many)[0] == 0
    assert len(list(many.with_name("imgs-denoised").glob("*.png"))) == 40


def test_a_run_that_gives_up_tells_what_its_writers_finish(
    many: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first output is flushed a moment after ten others have failed."""
    original, calls, have_failed = os.fsync, itertools.count(), threading.Event()

    def fsync(descriptor: int) -> None:
        call = next(calls)
        if call == 0:
            assert have_failed.wait(60)
            time.sleep(0.2)
            original(descriptor)
            return
        if call == 10:
            have_failed.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        some = ["-b", "1", "--workers", "3", "--log", "json"]
        assert main([str(many), "-w", str(weights), "-d", "cpu", *some]) == 7
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = list(many.with_name("imgs-denoised").glob("*.png"))
    assert end["done"] == len(written) == 1
    assert end["left"] == 39 - end["failed"]


NETWORKS = ["ETIMEDOUT", "EHOSTDOWN", "ENETRESET", "ECONNREFUSED", "ECONNABORTED", "ENOTCONN"]
DISKS = ["EMFILE", "ENFILE", "ENOLCK", "ENXIO", "EACCES", "EPERM"]


def test_other_faults_of_the_output_count_too(
    many: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each once, in a row; rights are lost for the whole output."""
    left = [getattr(errno, name) for name in NETWORKS + DISKS]
    monkeypatch.setattr(os, "access", lambda path, mode: path != many.with_name("imgs-denoised"))

    def fsync(descriptor: int) -> None:
        if left:
            number = left.pop()
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    assert run(capsys, weights, many, "-b", "1")[0] == 7
    assert len(left) <= 2


def test_faults_that_are_not_in_a_row_do_not_end_a_run(
    many: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(monkeypatch, errno.ENOSPC, lambda calls: calls % 2 == 1)
    code, statuses, _ = run(capsys, weights, many, "-b", "1")
    assert code == 1
    assert len(statuses) == 40


@pytest.mark.parametrize("broken", ["unreadable", "output too long"])
def test_faults_of_the_images_themselves_never_end_a_run(
    many: Path, weights: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    for index in range(30):
        if broken == "unreadable":
            (many / f"bad{index}.png").write_bytes(b"no picture")
        else:
            picture(9, 9, 1).save(many / f"bad{index}{'x' * 240}.png")
    code, statuses, _ = run(capsys, weights, many, "--suffix", "_denoised")
    assert code == 1
    assert len(statuses) == 70
    assert sum(status == "failed" for status in statuses.values()) == 30


def watched(
    capsys: pytest.CaptureFixture[str], weights: Path, folder: Path, is_over: Callable[[], bool]
) -> tuple[list[dict[str, str]], str]:
    """Events of images, and stderr, of a watch that SIGTERM ends."""

    def end() -> None:
        deadline = time.monotonic() + 60
        while not is_over() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)  # what else it would do
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    options = ["-w", str(weights), "-d", "cpu", "-b", "1", "--log", "json", "--watch", "0.1"]
    code = main([str(folder), *options])
    thread.join()
    said = capsys.readouterr()
    assert code == 143
    events = [json.loads(line) for line in said.out.splitlines()]
    return [event for event in events if event["event"] == "image"], said.err


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EDQUOT", "EIO"])
def test_a_watch_tries_again_what_failed_with_the_output(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Unreadable images are told once."""
    (folder / "bad.png").write_bytes(b"no picture")
    fill(monkeypatch, getattr(errno, name), lambda calls: calls <= 6)
    out = folder.with_name("imgs-denoised")
    events, _ = watched(capsys, weights, folder, lambda: len(list(out.glob("?.png"))) == 4)
    told = Counter((event["name"], event["status"]) for event in events)
    assert told["bad.png", "failed"] == 1
    for image in DONE:
        assert told[image, "done"] == 1
    assert sum(told.values()) == 4 + 6 + 1


def test_a_watch_that_gives_up_a_round_goes_on(
    many: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(monkeypatch, errno.ENOSPC, lambda calls: calls <= 25)
    out = many.with_name("imgs-denoised")
    events, error = watched(capsys, weights, many, lambda: len(list(out.glob("*.png"))) == 40)
    assert "the output or a store failed 10 times in a row" in error
    assert {path.name for path in out.glob("*.png")} == {f"{index:02}.png" for index in range(40)}
    assert any(event["status"] == "done" for event in events)


def test_a_watch_tells_of_a_locked_folder_once(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "lost+found").mkdir()
    deny(monkeypatch, "scandir", PermissionError, lambda path: path.endswith("lost+found"))
    out = folder.with_name("imgs-denoised")
    events, _ = watched(capsys, weights, folder, lambda: len(list(out.glob("?.png"))) == 4)
    assert Counter(event["name"] for event in events) == Counter([*DONE, "lost+found"])
