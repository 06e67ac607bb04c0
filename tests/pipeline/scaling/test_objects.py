"""Object stores: what is listed, fetched and delivered, and that nothing is half there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from denoise_batch.kernels import ImageError, OptionError
from denoise_batch.scaling import objects
from denoise_batch.scaling.mirror import LocalMirror, local_path
from denoise_batch.scaling.objects import ObjectStore, is_url

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
def store(memory: Any) -> ObjectStore:
    return ObjectStore("memory")


def test_urls_are_told_from_paths() -> None:
    for text in ("s3://b/k", "gs://b", "memory://x", "file:///tmp"):
        assert is_url(text)
    for text in ("imgs", "/abs/path", "C:\\imgs", "a:b", "dir//file", "*.png", "c://x"):
        assert not is_url(text)


def test_an_object_goes_and_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"pixels")
    store.upload(tmp_path / "a", "bucket/deep/a.png")
    fetched = store.fetch("bucket/deep/a.png", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"pixels"
    assert (fetched.size, store.read("bucket/deep/a.png")) == (6, b"pixels")
    status = (tmp_path / "new" / "b").stat()
    assert status.st_mtime_ns == fetched.modified_ns
    assert [(o.key, o.size) for o in store.listing("bucket")] == [("bucket/deep/a.png", 6)]
    assert store.listing("bucket/deep/a.png") == store.listing("bucket")
    assert store.listing("elsewhere") == []
    assert store.read("bucket/none") is None


def test_names_that_no_folder_can_hold_are_told(memory: Any, tmp_path: Path) -> None:
    for name in ("/b/ok.png", "/b//double.png", "/b/../up.png", "/b/./here.png"):
        memory.store[name] = fsspec.implementations.memory.MemoryFile(memory, name, b"x")
    shown, faults = LocalMirror(tmp_path).refresh(tmp_path / "memory" / "b")
    assert [o.key for o in shown] == ["b/ok.png"]
    assert set(faults) == {"b//double.png", "b/../up.png", "b/./here.png"}


def test_a_failing_upload_is_tried_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"pixels")
    failures = [OSError("connection reset"), TimeoutError("slow")]
    put = store._files.put_file

    def flaky(*arguments: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()
        put(*arguments, **options)

    monkeypatch.setattr(store._files, "put_file", flaky)
    store.upload(tmp_path / "a", "bucket/a.png")
    assert store.read("bucket/a.png") == b"pixels"
    assert not failures


def test_an_upload_that_fails_for_good_leaves_what_was_there(
    memory: Any, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    store.upload(tmp_path / "a", "bucket/a.png")
    (tmp_path / "a").write_bytes(b"much newer")

    def torn(local: str, key: str) -> None:
        with memory.open(key, "wb") as file:
            file.write(b"much")
        raise OSError("no space left")

    monkeypatch.setattr(store._files, "put_file", torn)
    with pytest.raises(ImageError, match=r"memory://bucket/a.png: cannot be written: .*no space"):
        store.upload(tmp_path / "a", "bucket/a.png")
    assert list(memory.store) == ["/bucket/a.png"]
    assert store.read("bucket/a.png") == b"old"


def test_a_torn_download_leaves_no_file(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"pixels")
    store.upload(tmp_path / "a", "bucket/a.png")
    monkeypatch.setattr(store._files, "get_file", lambda key, path: Path(path).write_bytes(b"pix"))
    with pytest.raises(ImageError, match="3 of 6 bytes"):
        store.fetch("bucket/a.png", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(ImageError, match="FileNotFoundError"):
        store.fetch("bucket/none.png", tmp_path / "b")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="knows no such protocol"):
        ObjectStore("nowhere")
    monkeypatch.setitem(os.sys.modules, "fsspec", None)  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"pip install 'denoise-batch\[cloud\]'"):
        ObjectStore("s3")


def test_a_mirror_shows_names_sizes_and_times_without_taking_space(
    memory: Any, store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10_000_000)
    for key in ("bucket/imgs/a.png", "bucket/imgs/deep/b.png", "bucket/other/c.png"):
        store.upload(tmp_path / "a", key)
    mirror = LocalMirror(tmp_path / "mirror")
    folder = mirror.path("memory://bucket/imgs")
    mirror.refresh(folder)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert found == ["a.png", "deep/b.png"]
    status = (folder / "a.png").stat()
    assert status.st_size == 10_000_000
    assert status.st_blocks * 512 < 100_000
    listed = store.listing("bucket/imgs/a.png")[0]
    assert status.st_mtime_ns == listed.modified_ns

    mirror.fetch(folder / "a.png")
    assert (folder / "a.png").read_bytes() == b"x" * 10_000_000
    mirror.release(folder / "a.png")
    assert (folder / "a.png").stat().st_size == 0

    memory.rm("/bucket/imgs/a.png")
    mirror.refresh(folder)
    assert not (folder / "a.png").exists()


def test_paths_and_urls_stand_for_each_other(memory: Any, tmp_path: Path) -> None:
    mirror = LocalMirror(tmp_path / "mirror")
    path = mirror.path("memory://bucket/imgs/")
    assert mirror.url(path / "a.png") == "memory://bucket/imgs/a.png"
    assert mirror.holds(path)
    assert not mirror.holds(tmp_path)
    assert mirror.url(tmp_path) == str(tmp_path)
    assert mirror.with_urls(f"{path / 'a.png'}: is empty") == "memory://bucket/imgs/a.png: is empty"
    assert local_path("imgs/*.png", mirror) == "imgs/*.png"
    assert local_path("file:///data/imgs", mirror) == "/data/imgs"
    for url in ("memory://", "memory://bucket/../x"):
        with pytest.raises(OptionError, match="name a bucket"):
            mirror.path(url)
