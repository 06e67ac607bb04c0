"""What signals do to a run, wherever it is; and what the killed ones leave is removed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.scaling.mirror import local_mirror
from denoise_batch.streaming import manifest as manifest_module
from denoise_batch.streaming import session as session_module
from denoise_batch.streaming.manifest import sha256_of

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/00.png … imgs/19.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(20):
        picture(24, 20, index).save(root / f"{index:02}.png")
    return root


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("what", ["inputs", "outputs"])
def test_sigterm_is_heard_while_changed_files_are_hashed(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    what: str,
) -> None:
    command = [str(folder), "-w", str(weights), "-d", "cpu", "--log", "json", *more]
    assert main(command[:7]) == 0
    place = folder if what == "inputs" else folder.with_name("imgs-denoised")
    for path in place.glob("*.png"):
        os.utime(path, ns=(5, 5))
    hashed = 0

    def counted(path: Path, *rest: object) -> str:
        nonlocal hashed
        hashed += 1
        if hashed == 3:
            signal.raise_signal(signal.SIGTERM)
        return sha256_of(path)

    module = session_module if what == "inputs" else manifest_module
    monkeypatch.setattr(module, "sha256_of", counted)
    capsys.readouterr()
    assert main(command) == 143
    assert hashed == 3
    if not more:
        end = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (end["done"], end["skipped"], end["left"]) == (0, 2, 18)
        monkeypatch.undo()
        assert main(command) == 0


def test_hashing_stops_in_the_midst_of_a_file(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    sha256_of(tmp_path / "large", is_stopped)
    assert asked == 4


def test_a_signal_that_the_caller_ignores_stays_ignored(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shell's `&` and `nohup` start a process so; Ctrl-C is not meant for it."""
    original = session_module.Session.run

    def interrupted(session: session_module.Session, *arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return original(session, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(session_module.Session, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(list(folder.with_name("imgs-denoised").glob("*.png"))) == 20


BUSY = """
import os, signal, sys, threading, time
import torch
from denoise_batch.cli.batch import main
from denoise_batch.streaming import stream

def busy(*arguments):
    begun.set()
    while True:  # in C++ code, like an estimate of noise
        torch.rand(1 << 20).sort()

def send():
    begun.wait()
    for _ in range(2):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

begun = threading.Event()
stream.decode_file = busy
threading.Thread(target=send, daemon=True).start()
sys.exit(main())
"""


@posix_only
def test_a_second_signal_ends_the_process_with_its_code(folder: Path, weights: Path) -> None:
    """Not with SIGABRT, as Python's end among threads in C++ code did in half of the tries."""
    command = [sys.executable, "-c", BUSY, str(folder), "-w", str(weights), "-d", "cpu"]
    started = time.monotonic()
    ended = subprocess.run([*command, "--log", "json"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 143, ended.stderr
    assert "interrupted" in ended.stderr
    assert "terminate" not in ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["exit_code"] == 143
    assert time.monotonic() - started < 40


@posix_only
def test_a_stage_keeps_its_lock_until_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed while it is removed leaves one that the next run removes."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    original = Path.rmdir

    def rmdir(path: Path) -> None:
        original(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, suppress(KeyboardInterrupt), local_mirror() as mirror:
        (mirror.root / "s3").mkdir()
        dying.setattr(Path, "rmdir", rmdir)
    assert [path.name for path in mirror.root.iterdir()] == ["lock"]
    with local_mirror():
        pass
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_the_stages_of_killed_runs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = [tmp_path / "denoise-batch-0123456789abcdef", tmp_path / "denoise-batch-abcdefgh"]
    for other in others:  # an older release's, or somebody's: nothing tells whether it is used
        (other / "s3").mkdir(parents=True)
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from denoise_batch.scaling.mirror import local_mirror\n"
        "with local_mirror() as mirror:\n"
        "    (mirror.root / 's3').mkdir(); (mirror.root / 's3' / 'a.png').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    begun = tmp_path / ".denoise-batch-0123456789abcdef"  # killed before it had its name
    begun.mkdir()
    (begun / "lock").touch()
    with local_mirror() as first, local_mirror() as second:
        assert sorted(tmp_path.iterdir()) == sorted([*others, first.root, second.root])
    assert sorted(tmp_path.iterdir()) == sorted(others)
