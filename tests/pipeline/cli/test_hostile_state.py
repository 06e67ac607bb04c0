"""State and weights that somebody else wrote: nothing hangs, crashes or leaves the output."""

import json
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from denials import deny
from pictures import picture

from denoise_batch.cli import evaluate, train
from denoise_batch.cli.batch import main
from denoise_batch.streaming.manifest import Manifest

ALL = ["0.png", "1.png", "2.png"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/0.png … imgs/2.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(3):
        picture(24, 20, index).save(root / f"{index}.png")
    return root


def run(capsys: pytest.CaptureFixture[str], folder: Path, weights: Path, *more: str) -> Any:
    """Exit code, names by what became of them, and what was said."""
    capsys.readouterr()
    code = main([str(folder), "-w", str(weights), "-d", "cpu", "--log", "json", *more])
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    found: dict[str, list[str]] = {}
    for event in events:
        if event["event"] == "image":
            found.setdefault(event["status"], []).append(event["name"])
    return code, {key: sorted(names) for key, names in found.items()}, captured.out + captured.err


def state(folder: Path) -> Path:
    return folder.with_name("imgs-denoised") / ".denoise-batch"


GOOD = {
    "output": "0.png",
    "output_stamp": {"size": 1, "mtime_ns": 1},
    "output_sha256": "0" * 64,
    "source_stamp": {"size": 1, "mtime_ns": 1},
    "source_sha256": "0" * 64,
    "weights": "0" * 64,
    "options": "0" * 64,
    "source": "/x/0.png",
}
DEEP = "[" * 100_000
BAD_LINES = {
    "output-number": json.dumps({**GOOD, "output": 5}),
    "output-list": json.dumps({**GOOD, "output": ["0.png"]}),
    "output-object": json.dumps({**GOOD, "output": {}}),
    "output-null": json.dumps({**GOOD, "output": None}),
    "output-nul": json.dumps({**GOOD, "output": "0\0.png"}),
    "output-surrogate": json.dumps({**GOOD, "output": "\ud800.png"}),
    "output-above": json.dumps({**GOOD, "output": "../imgs/0.png"}),
    "output-dots-inside": json.dumps({**GOOD, "output": "a/../../imgs/0.png"}),
    "output-absolute": json.dumps({**GOOD, "output": "/etc/passwd"}),
    "output-empty": json.dumps({**GOOD, "output": ""}),
    "output-dot": json.dumps({**GOOD, "output": "."}),
    "output-long": json.dumps({**GOOD, "output": "a" * 100_000}),
    "size-text": json.dumps({**GOOD, "output_stamp": {"size": "1", "mtime_ns": 1}}),
    "size-list": json.dumps({**GOOD, "source_stamp": {"size": [1], "mtime_ns": 1}}),
    "stamp-null": json.dumps({**GOOD, "output_stamp": None}),
    "stamp-more": json.dumps({**GOOD, "output_stamp": {"size": 1, "mtime_ns": 1, "x": 1}}),
    "digest-list": json.dumps({**GOOD, "output_sha256": []}),
    "digest-object": json.dumps({**GOOD, "source_sha256": {}}),
    "weights-object": json.dumps({**GOOD, "weights": {}}),
    "source-nul": json.dumps({**GOOD, "source": "/x\0"}),
    "source-number": json.dumps({**GOOD, "source": 7}),
    "source-surrogate": json.dumps({**GOOD, "source": "\ud800"}),
    "more": json.dumps({**GOOD, "__class__": "x"}),
    "less": "{}",
    "list": "[]",
    "text": '"x"',
    "number": "1" * 10_000,
    "constant": "NaN",
    "deep": DEEP,
    "deep-inside": json.dumps(GOOD)[:-1] + ', "source": ' + DEEP,
    "no-text": "\udcff\udcfe",
    "zeros": "\0" * 100,
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_of_the_manifest_counts_as_none(
    line: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, folder, weights)[:2] == (0, {"done": ALL})
    manifest = state(folder) / "manifest.jsonl"
    good = manifest.read_bytes()
    many = (os.fsencode(line) + b"\n") * 100  # so many that they would be compacted
    manifest.write_bytes(many + good + many)
    assert run(capsys, folder, weights)[:2] == (0, {"skipped": ALL})
    assert run(capsys, folder, weights, "--dry-run")[0] == 0
    assert run(capsys, folder, weights, "--strength", "0.5")[:2] == (0, {"done": ALL})
    assert run(capsys, folder, weights, "--strength", "0.5")[:2] == (0, {"skipped": ALL})


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest-1-of-2.jsonl"])
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--verify",), ("--strength", "0.5")])
def test_a_manifest_that_cannot_be_read_is_an_error(
    name: str,
    more: tuple[str, ...],
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it, every output would be somebody else's, and be left as it is."""
    run(capsys, folder, weights)
    (state(folder) / "manifest.jsonl").rename(state(folder) / name)
    with monkeypatch.context() as denied:
        deny(denied, "open", PermissionError, lambda path: path.endswith(name))
        code, images, text = run(capsys, folder, weights, *more)
    assert (code, images) == (2, {})
    assert f"{state(folder) / name}: cannot be " in text
    assert run(capsys, folder, weights)[:2] == (0, {"skipped": ALL})


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["torn", "whole"])
def test_a_line_that_never_ends_takes_no_memory(
    end: bytes, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zeros are what a crashed machine leaves; here a hole of 256 MiB, before a good line."""
    run(capsys, folder, weights)
    manifest = state(folder) / "manifest.jsonl"
    good = manifest.read_bytes()
    with manifest.open("r+b") as file:
        file.seek(256 << 20)
        file.write(end + good)
    tracemalloc.start()
    names = Manifest(folder.with_name("imgs-denoised")).names()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(names) == ALL
    assert most < 8 << 20


def pipe(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def dangling(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere.with_name("new"))


def a_folder(path: Path, elsewhere: Path) -> None:
    path.mkdir()


def a_socket(path: Path, elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's name is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(before)


@posix_only
@pytest.mark.parametrize("make", [pipe, link, dangling, a_folder, a_socket])
@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest-1-of-2.jsonl", "lock"])
def test_what_is_no_file_in_its_place_is_refused(
    name: str,
    make: Callable[[Path, Path], None],
    folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine\n")
    os.utime(elsewhere, ns=(5, 5))
    state(folder).mkdir(parents=True)
    make(state(folder) / name, elsewhere)
    code, images, text = run(capsys, folder, weights)
    assert (code, images) == (2, {})
    assert name in text
    assert "remove it" in text
    assert elsewhere.read_bytes() == b"mine\n"
    assert elsewhere.stat().st_mtime_ns == 5
    assert not (tmp_path / "new").exists()
    assert [path.name for path in state(folder).parent.iterdir()] == [".denoise-batch"]
    if name != "lock":
        assert run(capsys, folder, weights, "--dry-run")[0] == 2


@posix_only
def test_a_linked_state_folder_is_refused(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    state(folder).parent.mkdir()
    state(folder).symlink_to(elsewhere)
    assert run(capsys, folder, weights)[:2] == (2, {})
    assert list(elsewhere.iterdir()) == []


@posix_only
@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_nothing_is_written_through_a_link_out_of_the_output(
    options: tuple[str, ...],
    folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("out", "deep/er", "in", "gone"):
        (folder / name).mkdir(parents=True)
        picture(24, 20, 4).save(folder / name / "a.png")
    elsewhere, output = tmp_path / "elsewhere", folder.with_name("imgs-denoised")
    elsewhere.mkdir()
    (output / "real").mkdir(parents=True)
    (output / "out").symlink_to(elsewhere)
    (output / "deep").symlink_to("..")
    (output / "in").symlink_to("real")  # stays below the output
    (output / "gone").symlink_to(tmp_path / "new")
    code, images, text = run(capsys, folder, weights, *options)
    bad = ["deep/er/a.png", "gone/a.png", "out/a.png"]
    assert (code, images) == (1, {"done": [*ALL, "in/a.png"], "failed": bad})
    assert text.count("link") >= 3
    assert list(elsewhere.iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "er").exists()
    assert (output / "real" / "a.png").exists()
    assert run(capsys, folder, weights, "--dry-run")[0] == 0


@posix_only
def test_a_linked_output_folder_itself_is_the_user_s(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    folder.with_name("imgs-denoised").symlink_to(tmp_path / "disk")
    assert run(capsys, folder, weights)[:2] == (0, {"done": ALL})
    assert sorted(path.name for path in (tmp_path / "disk").glob("*.png")) == ALL


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def with_entry(text: str) -> bytes:
    return safetensors(json.dumps({"__metadata__": {"denoise-batch": text}}).encode())


NEST = "[" * 5_000 + "]" * 5_000
OBJECTS = '{"a":' * 5_000 + "1" + "}" * 5_000
HEADERS = {
    "deep": with_entry(DEEP),
    "nest": with_entry(NEST),
    "objects": with_entry(OBJECTS),
    "nest-900": with_entry("[" * 900 + "]" * 900),
    "nest-in-network": with_entry('{"format": 1, "training": {}, "network": ' + NEST + "}"),
    "nest-in-mean": with_entry(
        '{"format": 1, "training": {}, "network": {"architecture": "tconv", "std": [1], "mean": '
        + "[" * 940 + "]" * 940 + "}}"
    ),
    "nest-in-format": with_entry('{"format": ' + "[" * 940 + "]" * 940 + "}"),
    "no-objects": with_entry('{"format": 1, "training": 5, "network": 5}'),
    "training-list": with_entry(
        '{"format": 1, "training": [], "network": {"architecture": "tconv", "mean": [0], "std": '
        "[1]}}"
    ),
    "deep-file-header": safetensors(DEEP.encode()),
    "nest-file-header": safetensors(NEST.encode()),
    "nest-metadata": safetensors(('{"__metadata__": ' + OBJECTS + "}").encode()),
    "not-text": with_entry("\ud800"),
}  # fmt: skip


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_any_header_of_weights_that_is_none_is_exit_5(
    data: bytes, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(data)
    code, images, text = run(capsys, folder, file)
    assert (code, images) == (5, {})
    assert str(file) in text
    assert evaluate.main([str(file), str(folder), "-d", "cpu"]) == 5
    arguments = [str(folder), "-o", str(tmp_path / "run"), "--init", str(file), "-d", "cpu"]
    assert train.main(arguments) == 5


def test_other_deep_json_is_an_error_too(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floors = tmp_path / "floors.json"
    floors.write_text(DEEP)
    arguments = [str(weights), str(folder), "-d", "cpu", "--suite", "--floors", str(floors)]
    assert evaluate.main(arguments) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(DEEP)
    assert train.main([str(folder), "-o", str(tmp_path / "run"), "--resume", "-d", "cpu"]) == 2


def test_deep_json_in_a_tiff_fails_no_folder(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(24, 20, 0).save(folder / "a.tif", tiffinfo={270: '{"shape"' + ":[" * 1 + "[" * 60_000})
    code, images, _ = run(capsys, folder, weights)
    assert (code, images) == (0, {"done": [*ALL, "a.tif"]})
