"""denoise-batch on URLs: the same outputs, resume, errors and exit codes as on folders."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.scaling import objects

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's file system in memory, empty; no pauses between tries."""
    monkeypatch.setattr(objects, "_PAUSE_S", 0.0)
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of them broken."""
    folder = tmp_path / "imgs"
    for index, name in enumerate(["a.png", "deep/b.png", "deep/ä c.jpg"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(40 + index, 30, index).save(path)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def outputs(files: Any, prefix: str) -> dict[str, bytes]:
    """Name below the prefix → bytes, without hidden ones."""
    found = files.find(prefix)
    names = {name: name.removeprefix(f"/{prefix.strip('/')}/") for name in found}
    return {n: files.cat_file(name) for name, n in names.items() if not n.startswith(".")}


def local_outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu"])


def upload(files: Any, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_urls_give_what_folders_give(
    memory: Any, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(memory, folder, "bucket/imgs")
    assert run(folder, "-o", tmp_path / "out", "-w", weights) == 1
    capsys.readouterr()
    assert run("memory://bucket/imgs", "-o", "memory://bucket/out", "-w", weights) == 1
    said = capsys.readouterr()
    assert outputs(memory, "bucket/out") == local_outputs(tmp_path / "out")
    assert len(outputs(memory, "bucket/out")) == 3
    assert "memory://bucket/imgs/broken.png: " in said.out
    assert "denoise-batch-" not in said.out + said.err  # nothing of the stage shows
    assert sorted(name.rpartition("/")[2] for name in memory.find("bucket/out/.denoise-batch")) == [
        "manifest.jsonl"
    ]


@pytest.mark.parametrize("direction", ["to", "from"])
def test_one_side_may_be_a_folder(
    memory: Any, folder: Path, weights: Path, tmp_path: Path, direction: str
) -> None:
    upload(memory, folder, "bucket/imgs")
    run(folder, "-o", tmp_path / "expected", "-w", weights)
    expected = local_outputs(tmp_path / "expected")
    if direction == "to":
        assert run(folder, "-o", "memory://bucket/out", "-w", weights) == 1
        assert outputs(memory, "bucket/out") == expected
    else:
        assert run("memory://bucket/imgs", "-o", f"file://{tmp_path}/out", "-w", weights) == 1
        assert local_outputs(tmp_path / "out") == expected


def statuses(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return {event["name"]: event["status"] for event in lines if event["event"] == "image"}


def test_a_second_run_does_what_is_new_or_changed(
    memory: Any, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").unlink()
    upload(memory, folder, "bucket/imgs")
    command = ("memory://bucket/imgs", "-o", "memory://bucket/out", "-w", weights, "--log", "json")
    assert run(*command) == 0
    assert set(statuses(capsys).values()) == {"done"}
    assert run(*command) == 0
    assert set(statuses(capsys).values()) == {"skipped"}

    picture(50, 50, 9).save(folder / "new.png")
    memory.pipe_file("bucket/imgs/new.png", (folder / "new.png").read_bytes())
    memory.pipe_file("bucket/imgs/a.png", (folder / "new.png").read_bytes())
    memory.rm_file("bucket/out/deep/b.png")
    assert run(*command) == 0
    found = statuses(capsys)
    assert {name for name, status in found.items() if status == "done"} == {
        "a.png",
        "new.png",
        "deep/b.png",
    }
    assert found["deep/ä c.jpg"] == "skipped"


@pytest.mark.parametrize("output_is_url", [True, False], ids=["prefix", "folder"])
def test_an_output_of_another_image_that_is_still_there_is_kept(
    memory: Any,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output_is_url: bool,
) -> None:
    """Two prefixes with the same names, denoised into one output."""
    for index, prefix in enumerate(("monday", "tuesday")):
        picture(40, 30, index).save(tmp_path / "a.png")
        memory.pipe_file(f"bucket/{prefix}/a.png", (tmp_path / "a.png").read_bytes())
    output = "memory://bucket/out" if output_is_url else tmp_path / "out"

    def bytes_there() -> bytes:
        files = fsspec.filesystem("memory" if output_is_url else "file")
        there: bytes = files.cat_file(f"{output}/a.png")
        return there

    def denoise(prefix: str, *more: str) -> int:
        return run(f"memory://bucket/{prefix}", "-o", output, "-w", weights, *more)

    assert denoise("monday") == 0
    first = bytes_there()
    capsys.readouterr()
    assert denoise("tuesday") == 6
    assert "is the output of memory://bucket/monday/a.png" in capsys.readouterr().err
    assert bytes_there() == first
    assert denoise("tuesday", "--overwrite") == 0
    second = bytes_there()
    assert second != first
    assert denoise("tuesday") == 0  # up to date

    with pytest.MonkeyPatch.context() as patch:  # whether the other is gone, cannot be told

        def info(path: str, **options: object) -> dict[str, object]:
            if "tuesday" in path:
                raise PermissionError(path)
            return real_info(path, **options)

        real_info = memory.info
        patch.setattr(memory, "info", info)
        assert denoise("monday") == 6
    memory.rm_file("bucket/tuesday/a.png")
    assert denoise("monday") == 0  # nobody's any more
    assert bytes_there() == first


def test_what_others_put_there_is_kept(
    memory: Any, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.pipe_file("bucket/out/a.png", b"somebody's own")
    run(folder, "-o", "memory://bucket/out", "-w", weights, "--log", "json")
    assert statuses(capsys)["a.png"] == "skipped"
    assert memory.cat_file("bucket/out/a.png") == b"somebody's own"


def test_a_killed_run_is_gone_on_with(
    memory: Any, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kill leaves it: one output written and noted, one noted and not written."""
    from denoise_batch.scaling.remote import RemoteManifest

    command = (folder, "-o", "memory://bucket/out", "-w", weights, "--log", "json")
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(RemoteManifest, "collect", lambda manifest: None)
        run(*command)
    entries = memory.find("bucket/out/.denoise-batch")
    assert len(entries) == 3
    before = outputs(memory, "bucket/out")
    memory.rm_file("bucket/out/deep/b.png")
    capsys.readouterr()
    run(*command)
    found = statuses(capsys)
    assert found.pop("broken.png") == "failed"
    assert {name for name, status in found.items() if status == "done"} == {"deep/b.png"}
    assert outputs(memory, "bucket/out") == before
    assert len(memory.find("bucket/out/.denoise-batch")) == 1


def test_an_upload_that_fails_is_that_files_failure(
    memory: Any,
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put = type(memory).put_file

    def refused(files: Any, local: str, key: str, *rest: Any, **options: Any) -> None:
        if "deep/.b.png" in key:
            raise OSError("quota exceeded")
        put(files, local, key, *rest, **options)

    monkeypatch.setattr(type(memory), "put_file", refused)
    assert run(folder, "-o", "memory://bucket/out", "-w", weights) == 1
    said = capsys.readouterr().out
    assert "memory://bucket/out/deep/b.png: cannot be written: OSError: quota exceeded" in said
    assert set(outputs(memory, "bucket/out")) == {"a.png", "deep/ä c.jpg"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["memory://bucket/imgs"], 2, "give --output"),
        (["memory://bucket/none", "-o", "out"], 3, "memory://bucket/none: no images found"),
        (["nowhere://x", "-o", "out"], 2, "no such protocol"),
        (["memory://bucket/imgs", "-o", "memory://bucket/imgs"], 2, "would overwrite the input"),
        (["memory://bucket/../x", "-o", "out"], 2, "name a bucket"),
        (["memory://bucket/imgs/*.tif", "-o", "memory://bucket/out"], 3, "no images found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_urls_end_with_the_documented_code(
    memory: Any,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    upload(memory, folder, "bucket/imgs")
    assert run(*arguments) == code
    error = capsys.readouterr().err
    assert said in error
    assert "denoise-batch-" not in error


def test_a_prefix_may_be_watched_before_anything_is_there(
    memory: Any, folder: Path, weights: Path, tmp_path: Path
) -> None:
    """A picture comes, is done once it has stayed the same, and the run is ended by SIGTERM."""

    def come_and_stop() -> None:
        time.sleep(0.3)
        memory.pipe_file("bucket/drop/a.png", (folder / "a.png").read_bytes())
        deadline = time.monotonic() + 60
        while not memory.exists("bucket/out/a.png") and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=come_and_stop)
    thread.start()
    command = ("memory://bucket/drop", "-o", "memory://bucket/out", "-w", weights)
    assert run(*command, "--watch", "0.1") == 143
    thread.join()
    assert set(outputs(memory, "bucket/out")) == {"a.png"}


def test_a_report_names_urls(memory: Any, folder: Path, weights: Path, tmp_path: Path) -> None:
    upload(memory, folder, "bucket/imgs")
    command = ("memory://bucket/imgs", "-o", "memory://bucket/out", "-w", weights)
    assert run(*command, "--report", tmp_path / "r.json", "--report", tmp_path / "r.csv") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["options"]["inputs"] == ["memory://bucket/imgs"]
    assert report["options"]["output"] == "memory://bucket/out"
    found = {image["source"]: image["output"] for image in report["images"]}
    assert found["memory://bucket/imgs/deep/b.png"] == "memory://bucket/out/deep/b.png"
    assert "denoise-batch-" not in (tmp_path / "r.csv").read_text()


def test_a_file_url_is_a_plain_path(folder: Path, weights: Path) -> None:
    (folder / "broken.png").unlink()
    assert run(f"file://{folder}", "-w", weights) == 0
    assert (folder.with_name("imgs-denoised") / "a.png").exists()


def test_a_list_names_objects_below_an_input(
    memory: Any, folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(memory, folder, "bucket/imgs")
    (tmp_path / "list").write_text("deep/ä c.jpg\ngone.png\n")
    command = ("memory://bucket/imgs", "-o", "memory://bucket/out", "-w", weights)
    assert run(*command, "--files-from", tmp_path / "list") == 1
    assert set(outputs(memory, "bucket/out")) == {"deep/ä c.jpg"}
    said = capsys.readouterr()
    assert "line 2: gone.png: no such file" in said.out
    assert "denoise-batch-" not in said.out + said.err


def test_globs_and_dry_runs_name_urls(
    memory: Any, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(memory, folder, "bucket/imgs")
    command = ("memory://bucket/imgs/d*/*.png", "-o", "memory://bucket/out", "-w", weights)
    assert run(*command, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would denoise memory://bucket/imgs/deep/b.png → memory://bucket/out/deep/b.png" in said
    assert not memory.exists("bucket/out")
    assert run(*command) == 0
    assert set(outputs(memory, "bucket/out")) == {"deep/b.png"}


def test_the_stage_is_gone_in_the_end(
    memory: Any, folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    upload(memory, folder, "bucket/imgs")
    run("memory://bucket/imgs", "-o", "memory://bucket/out", "-w", weights)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(("name", "code"), [("report.html", 2), ("report.json", 1)])
def test_a_report_of_urls_is_data_not_a_page(
    memory: Any, folder: Path, tmp_path: Path, name: str, code: int
) -> None:
    report = tmp_path / name
    assert run(folder, "-o", "memory://out", "--report", report) == code
    assert report.exists() == (code == 1)
    if report.exists():
        assert len(json.loads(report.read_text())["images"]) == 4
