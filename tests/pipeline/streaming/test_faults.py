"""What a run leaves behind when the machine does its worst: whole files, and a list of the rest."""

import contextlib
import errno
import itertools
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
import torch
from deaths import forked, is_over, kill
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files import atomic
from denoise_batch.options import DenoiseOptions
from denoise_batch.progress import Progress
from denoise_batch.streaming import stream as engine_module
from denoise_batch.streaming.result import Plan, Result, Summary
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.stream import Budget


def outputs(folder: Path) -> dict[str, bytes]:
    """Files by name, without what a run keeps for itself and removes later."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("*")
        if path.is_file() and not path.name.endswith(".tmp")
    }


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        picture(40 + index % 3, 32, index).save(folder / f"{index:03}.png")
    return folder


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_then_resumed(kills: int, weights: Path, tmp_path: Path) -> None:
    imgs = make_images(tmp_path / "imgs", 16)
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"

    def arguments(output: Path) -> list[str]:
        return [str(imgs), "-o", str(output), "-w", str(weights), "-d", "cpu"]

    assert main(arguments(undisturbed)) == 0
    expected = outputs(undisturbed)
    assert len(expected) == 16
    chance = random.Random(0)
    interrupted = 0
    for _ in range(kills):
        before = len(list(out.glob("*.png")))
        child = forked(lambda: main(arguments(out)))
        # Somewhere in the work on the next few files, however slow the machine is.
        enough = before + chance.randrange(4)
        while len(list(out.glob("*.png"))) < enough and not is_over(child):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        kill(child)
        written = outputs(out) if out.exists() else {}
        interrupted += 0 < len(written) < len(expected)
        assert written.items() <= expected.items()
        if len(written) == len(expected):
            shutil.rmtree(out)
    assert interrupted > kills // 3
    assert main(arguments(out)) == 0
    assert outputs(out) == expected
    assert not list(out.glob(".*.tmp"))
    entries = (out / ".denoise-batch" / "manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["output"] for line in entries} == set(expected)


def test_a_full_disk_fails_files_and_leaves_no_halves(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    imgs = make_images(tmp_path / "imgs", 12)
    sync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert main([str(imgs), "-w", str(weights), "-d", "cpu"]) == 1
    out = tmp_path / "imgs-denoised"
    assert "No space left on device" in capsys.readouterr().out
    assert len(outputs(out)) == 5
    assert not list(out.glob(".*.tmp"))
    monkeypatch.undo()
    assert main([str(imgs), "-w", str(weights), "-d", "cpu"]) == 0
    assert len(outputs(out)) == 12


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_writes_that_the_kernel_cuts_off_leave_no_halves(weights: Path, tmp_path: Path) -> None:
    """A limit on file sizes stops a write in its middle, as a full disk does."""
    imgs = make_images(tmp_path / "imgs", 6)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return main([str(imgs), "-w", str(weights), "-d", "cpu"])

    child = forked(limited)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    out = tmp_path / "imgs-denoised"
    assert outputs(out) == {}
    assert not list(out.glob(".*.tmp"))


def run_with_a_blow(
    imgs: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, blow: Callable[[], None]
) -> Summary:
    """A run in little memory, in which `blow` falls as soon as one file is done."""
    monkeypatch.setattr(engine_module, "Budget", lambda limit: Budget(60_000))
    session = Session(DenoiseOptions((str(imgs),), weights=str(weights), device="cpu"))
    is_struck = False

    class Blow(Progress[Plan, Result]):
        def on_result(self, result: Result) -> None:
            nonlocal is_struck
            if not is_struck:
                is_struck = True
                blow()

    return session.run(session.jobs(), Blow())


def test_inputs_that_vanish_or_shrink_midway(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgs = make_images(tmp_path / "imgs", 60)

    def blow() -> None:
        (imgs / "050.png").unlink()
        data = (imgs / "055.png").read_bytes()
        (imgs / "055.png").write_bytes(data[: len(data) // 2])

    summary = run_with_a_blow(imgs, weights, monkeypatch, blow)
    assert summary.exit_code == 1
    failed = {r.job.name: r.reason for r in summary.results if r.status == "failed"}
    assert set(failed) == {"050.png", "055.png"}
    assert "No such file" in failed["050.png"]
    assert "truncated" in failed["055.png"]
    assert len(outputs(tmp_path / "imgs-denoised")) == 58


def test_an_output_folder_that_is_lost_midway(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgs = make_images(tmp_path / "imgs", 60)
    out = tmp_path / "imgs-denoised"

    def blow() -> None:
        # Not permissions: root, as which CI runs, is not stopped by them. A write in flight makes
        # the folder anew; then the file does not fit in its place, and it is moved away again.
        in_the_way = tmp_path / "in-the-way"
        in_the_way.write_text("in the way")
        for attempt in itertools.count():
            out.rename(tmp_path / f"gone{attempt}")
            with contextlib.suppress(IsADirectoryError):
                in_the_way.rename(out)
                return

    summary = run_with_a_blow(imgs, weights, monkeypatch, blow)
    assert summary.exit_code == 1
    failed = [r for r in summary.results if r.status == "failed"]
    assert len(failed) > 20
    assert all(str(out) in r.reason for r in failed)
    assert out.read_text() == "in the way"


MAKERS = {
    ".png": ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"],
    ".jpg": ["L", "RGB", "CMYK"],
    ".webp": ["RGB", "RGBA"],
    ".tif": ["1", "L", "RGB", "RGBA", "P", "I;16", "F", "CMYK"],
    ".bmp": ["1", "L", "RGB", "P"],
    ".ppm": ["RGB"],
    ".gif": ["P"],
    ".tga": ["RGB"],
    ".jp2": ["RGB"],
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file after an accident."""
    kind = chance.randrange(6)
    at = chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    changed = bytearray(data)
    if kind == 1:
        changed[at:at] = chance.randbytes(chance.randrange(1, 9))
    elif kind == 2:
        del changed[at : at + chance.randrange(1, 9)]
    elif kind == 3:  # the head says most
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(min(80, len(changed)))] = chance.randrange(256)
    else:
        for _ in range(chance.randrange(1, 20)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_images_are_done_or_listed(
    count: int, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    chance = random.Random(2)  # makes no image of many megapixels, which would only take long
    whole = []
    for suffix, modes in MAKERS.items():
        for mode in modes:
            image = picture(19, 13, len(whole))
            if mode in {"I;16", "F"}:
                samples = torch.rand(19 * 13).numpy()
                data = (samples * 65535).astype("<u2") if mode == "I;16" else samples
                image = Image.frombytes(mode, (19, 13), data.tobytes())
            image.convert(mode).save(tmp_path / f"x{suffix}")
            whole.append((suffix, (tmp_path / f"x{suffix}").read_bytes()))
    suffixes = list(MAKERS)
    for number in range(count):
        suffix, data = chance.choice(whole)
        if number % 10 == 0:
            suffix = chance.choice(suffixes)  # what the name says is not what it is
        (imgs / f"{number:04}{suffix}").write_bytes(mutated(data, chance))
    bomb = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0" + bytes(4)
    )
    (imgs / "bomb.png").write_bytes(bomb)

    assert main([str(imgs), "-w", str(weights), "-d", "cpu", "--log", "json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    images = [event for event in events if event["event"] == "image"]
    assert sorted(e["name"] for e in images) == sorted(p.name for p in imgs.iterdir())
    done = {Path(e["output"]) for e in images if e["status"] == "done"}
    failed = [e for e in images if e["status"] == "failed"]
    assert len(done) > count // 10
    assert len(failed) > count // 10
    for event in failed:
        assert event["reason"].startswith((event["source"], event["output"]))
        assert "\n" not in event["reason"]
    out = tmp_path / "imgs-denoised"
    assert {p for p in out.iterdir() if p.is_file()} == done
    for path in done:
        if path.suffix == ".tif":  # bands of a kind that Pillow does not know come back, too
            tifffile.imread(path)
        else:
            with Image.open(path) as image:
                image.load()
