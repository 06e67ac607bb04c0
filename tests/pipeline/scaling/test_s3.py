"""A real S3 server on loopback, through s3fs: what the store promises, over HTTP."""

import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deaths import forked, is_over, kill
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.kernels import ImageError
from denoise_batch.models import Network, save_weights
from denoise_batch.scaling import objects
from denoise_batch.scaling.objects import ObjectStore
from denoise_batch.scaling.remote import RemoteManifest, RemoteStorage

for needed in ("moto", "flask", "s3fs"):
    pytest.importorskip(needed)

from s3_server import Server, s3_server  # noqa: E402 (needs moto)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(objects, "_PAUSE_S", 0.01)
    with s3_server() as server:
        yield server


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    store = ObjectStore("s3")
    store._files.mkdir("pictures")
    return store


def test_an_object_goes_and_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"pixels" * 1000)
    store.upload(tmp_path / "a", "pictures/deep/ä b.png")
    fetched = store.fetch("pictures/deep/ä b.png", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"pixels" * 1000
    assert store.listing("pictures/deep") == [fetched]
    assert fetched.modified_ns > 0
    assert store.read("pictures/none") is None
    store.delete(["pictures/deep/ä b.png", "pictures/none"])
    assert store.listing("pictures") == []


@pytest.mark.slow
def test_a_large_file_goes_in_parts_and_appears_whole(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * (110 * 4096)  # 110 MiB, above s3fs's part of 50
    (tmp_path / "a").write_bytes(data)
    store.upload(tmp_path / "a", "pictures/large.tif")
    assert store.read("pictures/large.tif") == data


def test_a_failing_upload_is_tried_again(
    store: ObjectStore, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"pixels")
    server.failures["PUT", "pictures/a.png"] = 2
    store.upload(tmp_path / "a", "pictures/a.png")
    assert store.read("pictures/a.png") == b"pixels"
    assert server.seen.count(("PUT", "pictures/a.png")) == 3


def test_an_upload_that_fails_for_good_leaves_what_was_there(
    store: ObjectStore, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    store.upload(tmp_path / "a", "pictures/a.png")
    (tmp_path / "a").write_bytes(b"newer")
    server.failures["PUT", "pictures/a.png"] = 1000
    with pytest.raises(ImageError, match=r"s3://pictures/a.png: cannot be written"):
        store.upload(tmp_path / "a", "pictures/a.png")
    assert store.read("pictures/a.png") == b"old"


def test_the_command_denoises_a_bucket_and_goes_on_where_it_failed(
    store: ObjectStore,
    server: Server,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of three outputs is tried again; one fails for good and comes next time."""
    for name in ("a.png", "b.png", "c.png"):
        picture(40, 30, ord(name[0])).save(tmp_path / name)
        store.upload(tmp_path / name, f"pictures/imgs/{name}")
    options = ["--weights", str(weights), "--device", "cpu"]
    assert main([f"{tmp_path}/?.png", "-o", str(tmp_path / "out"), *options]) == 0
    command = ["s3://pictures/imgs", "-o", "s3://pictures/out", *options]
    server.failures["PUT", "pictures/out/a.png"] = 1
    server.failures["PUT", "pictures/out/b.png"] = 1000
    assert main(command) == 1
    assert "s3://pictures/out/b.png: cannot be written" in capsys.readouterr().out
    server.failures.clear()
    server.seen.clear()
    assert main(command) == 0
    puts = [key for method, key in server.seen if method == "PUT" and "/." not in key]
    assert puts == ["pictures/out/b.png"]
    for name in ("a.png", "b.png", "c.png"):
        assert store.read(f"pictures/out/{name}") == (tmp_path / "out" / name).read_bytes()
    hidden = [o.key for o in store.listing("pictures/out") if "/." in o.key]
    assert hidden == ["pictures/out/.denoise-batch/manifest.jsonl"]


def statuses(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return {event["source"]: event["status"] for event in lines if event["event"] == "image"}


def put(server: Server, key: str, path: Path) -> None:
    """Put an object whatever its key is; s3fs changes some."""
    import boto3

    boto3.client("s3", endpoint_url=server.endpoint).put_object(
        Bucket="pictures", Key=key, Body=path.read_bytes()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["s3://gone/imgs", "-o", "s3://pictures/out"],
        ["s3://gone", "-o", "out"],
        ["s3://gone/*.png", "-o", "out"],
        ["s3://gone/imgs", "-o", "out", "--watch", "1"],
        ["s3://gone/imgs", "-o", "out", "--dry-run"],
        ["a.png", "-o", "s3://gone/out"],
        ["a.png", "-o", "s3://gone"],
    ],
    ids=" ".join,
)
def test_a_missing_bucket_is_told_before_anything_is_computed(
    store: ObjectStore,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(24, 20, 1).save("a.png")
    assert main([*arguments, "-w", str(weights), "-d", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: s3://gone: no such bucket; check the name, or make it\n"


def test_an_empty_bucket_holds_no_images(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["s3://pictures", "-o", str(tmp_path), "-d", "cpu"]) == 3
    assert main(["s3://pictures/none", "-o", str(tmp_path), "-d", "cpu"]) == 3


def test_a_store_that_is_not_there_is_a_line(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    assert main(["s3://pictures/imgs", "-o", str(tmp_path), "-d", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: s3://pictures/imgs: cannot be listed: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "key",
    ["x//a.png", "/a.png", "x/./a.png", "x/../a.png", "n" * 300 + ".png", "x/" + "ä" * 130 + ".png",
     "n" * 260 + "/a.png", "ok.png"],
)  # fmt: skip
@pytest.mark.parametrize("output", ["out", "s3://pictures/out"])
def test_a_key_that_is_no_path_fails_alone(
    store: ObjectStore,
    server: Server,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    output: str,
) -> None:
    """`ok.png` is a picture and, here, the folder of another."""
    monkeypatch.chdir(tmp_path)
    picture(24, 20, 1).save("a.png")
    for name in (key, "good.png", "ok.png/b.png", "data", "data/c.png", "/notes.txt"):
        put(server, f"imgs/{name}", tmp_path / "a.png")
    command = ["s3://pictures/imgs", "-o", output, "-w", str(weights), "-d", "cpu"]
    assert main([*command, "--log", "json"]) == 1
    assert statuses(capsys) == {
        "s3://pictures/imgs/good.png": "done",
        "s3://pictures/imgs/ok.png/b.png": "done",
        "s3://pictures/imgs/data/c.png": "done",
        f"s3://pictures/imgs/{key}": "failed",
    }
    assert main(command) == 1
    assert f"s3://pictures/imgs/{key}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["s3://pictures/imgs/*.png"], False), (["s3://pictures/imgs/*/*.png"], True),
     (["s3://pictures/imgs", "--no-recursive"], False), (["s3://pictures/imgs/**/*.png"], True),
     (["s3://pictures/imgs/x"], True)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_only_keys_that_were_asked_for_fail(
    store: ObjectStore,
    server: Server,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: bool,
) -> None:
    picture(24, 20, 1).save(tmp_path / "a.png")
    for key in ("imgs/good.png", "imgs/x/good.png", "imgs/x//bad.png", "imgs/.x//bad.png"):
        put(server, key, tmp_path / "a.png")
    command = [*arguments, "-o", str(tmp_path / "out"), "-w", str(weights), "-d", "cpu"]
    assert main([*command, "--log", "json"]) == int(told)
    failed = {name for name, status in statuses(capsys).items() if status == "failed"}
    assert failed == ({"s3://pictures/imgs/x//bad.png"} if told else set())


class Refusing(dict[tuple[str, str], int]):
    """Failures of every request of a kind."""

    def __init__(self, method: str, part: str) -> None:
        self.method, self.part = method, part

    def get(self, request: tuple[str, str], default: int = 0) -> int:  # type: ignore[override]
        method, key = request
        return int(method.startswith(self.method) and self.part in key)


@pytest.mark.parametrize(
    ("method", "part", "code"),
    [("PUT", "out/", 2), ("PUT", "out/p", 7), ("PUT", "/manifest-", 7), ("GET", "imgs/p", 7)],
    ids=["no output", "outputs", "entries", "inputs"],
)
def test_a_store_that_keeps_failing_ends_the_run(
    store: ObjectStore,
    server: Server,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    part: str,
    code: int,
) -> None:
    for index in range(40):
        picture(24, 20, index).save(tmp_path / "a.png")
        put(server, f"imgs/p{index:02}.png", tmp_path / "a.png")
    command = ["s3://pictures/imgs", "-o", "s3://pictures/out", "-w", str(weights), "-d", "cpu"]
    server.failures = Refusing(method, part)
    assert main([*command, "-b", "1", "--log", "json"]) == code
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    computed = [line for line in lines if line["event"] == "image"]
    assert len(computed) == (10 if code == 7 else 0)
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "told to fail" in said.err
    server.failures = {}
    server.seen.clear()
    assert main(command) == 0
    assert [o.key for o in store.listing("pictures/out") if "/." in o.key] == [
        "pictures/out/.denoise-batch/manifest.jsonl"
    ]


@pytest.mark.parametrize(
    ("part", "code", "told"), [("imgs/p", 6, 12), ("", 7, 10)], ids=["objects", "credentials"]
)
def test_what_no_object_may_be_read_with_is_the_store_s_fault(
    store: ObjectStore,
    server: Server,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    code: int,
    told: int,
) -> None:
    """Objects that are locked fail, each alone; where credentials end, none could be read."""
    picture(24, 20, 1).save(tmp_path / "a.png")
    for index in range(12):
        put(server, f"imgs/p{index:02}.png", tmp_path / "a.png")
    command = ["s3://pictures/imgs", "-o", str(tmp_path / "out"), "-w", str(weights), "-d", "cpu"]
    refresh = RemoteStorage.refresh

    def refreshed(*arguments: Any) -> Any:
        found = refresh(*arguments)
        server.failure, server.failures = ("403 Forbidden", "ExpiredToken"), Refusing("", part)
        return found

    monkeypatch.setattr(RemoteStorage, "refresh", refreshed)
    assert main([*command, "-b", "1", "--log", "json"]) == code
    assert list(statuses(capsys).values()) == ["failed"] * told
    monkeypatch.undo()


def networks(tmp_path: Path) -> tuple[Path, Path]:
    """Two weights files whose outputs differ."""
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for seed, file in enumerate(files):
        save_weights(file, Network("tconv", generator=torch.Generator().manual_seed(seed)), {})
    return files


@pytest.mark.parametrize("way", ["shards", "killed", "refused", "ended"])
def test_an_entry_stands_only_for_the_object_that_it_was_written_with(
    store: ObjectStore,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Weights A, B, then A: files without compression all have one size."""
    imgs, expected = tmp_path / "imgs", tmp_path / "expected"
    imgs.mkdir()
    for index in range(6):
        name = f"{index}{('.bmp', '.ppm', '.bmp')[index % 3]}"
        picture(24, 20, index).save(imgs / name)
    a, b = networks(tmp_path)
    main([str(imgs), "-o", str(expected), "-w", str(a), "-d", "cpu"])
    command = [str(imgs), "-o", "s3://pictures/out", "-d", "cpu", "-w"]
    shards = [["--shard", "1/2"], ["--shard", "2/2"]] if way == "shards" else [[]]
    for weights in (a, b):
        with monkeypatch.context() as context:
            if way == "killed":  # nothing is confirmed, nothing is merged
                context.setattr(RemoteManifest, "confirm", lambda *arguments: None)
                context.setattr(RemoteStorage, "end", lambda *arguments: None)
            if way == "refused" and weights == b:
                server.failures["PUT", "pictures/out/0.bmp"] = 1000
            for shard in shards:
                assert main([*command, str(weights), *shard]) == int(
                    way == "refused" and weights == b
                )
    server.failures.clear()
    if way == "refused":
        assert main([*command, str(b)]) == 0
    for shard in [*shards, []]:
        assert main([*command, str(a), *shard]) == 0
    for path in expected.glob("[0-9].*"):
        assert store.read(f"pictures/out/{path.name}") == path.read_bytes()
    capsys.readouterr()
    assert main([*command, str(a), "--log", "json"]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert {line["status"] for line in lines if line["event"] == "image"} == {"skipped"}


def test_what_shards_have_done_is_not_read_again(
    store: ObjectStore,
    server: Server,
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for index in range(4):
        picture(24, 20, index).save(tmp_path / f"{index}.png")
    command = [f"{tmp_path}/*.png", "-o", "s3://pictures/out", "-w", str(weights), "-d", "cpu"]
    assert main([*command, "--shard", "1/1"]) == 0
    for shard in ("1/2", "2/2"):
        assert main([*command, "--overwrite", "--shard", shard]) == 0
    server.seen.clear()
    assert main(command) == 0
    assert not [key for method, key in server.seen if method == "GET" and key.endswith(".png")]


def test_an_object_of_somebody_else_with_the_size_of_a_killed_run_s_is_kept(
    store: ObjectStore,
    server: Server,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture(24, 20, 1).save(tmp_path / "a.bmp")
    picture(24, 20, 2).save(tmp_path / "other.bmp")
    command = [f"{tmp_path}/a.bmp", "-o", "s3://pictures/out", "-w", str(weights), "-d", "cpu"]
    with monkeypatch.context() as context:
        context.setattr(RemoteManifest, "confirm", lambda *arguments: None)
        context.setattr(RemoteStorage, "end", lambda *arguments: None)
        assert main(command) == 0
    put(server, "out/a.bmp", tmp_path / "other.bmp")
    assert main([*command, "--strength", "0.5"]) == 0
    assert store.read("pictures/out/a.bmp") == (tmp_path / "other.bmp").read_bytes()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_request_then_resumed(
    kills: int,
    store: ObjectStore,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With weights that change between runs, and outputs that all have one size."""
    stages = tmp_path / "stages"
    stages.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(stages))
    count = 6
    for index in range(count):
        picture(24, 20, index).save(tmp_path / "a.bmp")
        store.upload(tmp_path / "a.bmp", f"pictures/imgs/{index}.bmp")

    def written() -> dict[str, bytes | None]:
        return {
            object.key.rpartition("/")[2]: store.read(object.key)
            for object in store.listing("pictures/out")
            if "/." not in object.key
        }

    def run(weights: Path) -> int:
        return main(
            ["s3://pictures/imgs", "-o", "s3://pictures/out", "-w", str(weights), "-d", "cpu"]
        )

    def clear() -> None:
        store.delete([object.key for object in store.listing("pictures/out")])

    expected, requests = {}, 0
    for weights in networks(tmp_path):
        before = len(server.seen)
        assert run(weights) == 0
        requests = len(server.seen) - before
        expected[weights] = written()
        assert len(expected[weights]) == count
        clear()
    chance = random.Random(0)
    interrupted = 0
    for _ in range(kills):
        weights = chance.choice(list(expected))
        enough = len(server.seen) + chance.randrange(1, requests)
        child = forked(lambda weights=weights: run(weights))  # type: ignore[misc]
        while len(server.seen) < enough and not is_over(child):
            time.sleep(0.001)
        kill(child)
        found = written()
        whole = [output.items() for output in expected.values()]
        assert all(any(item in output for output in whole) for item in found.items())
        interrupted += 0 < len(found) < count
        if len(found) == count and chance.random() < 0.5:
            clear()
    assert interrupted >= kills // 5
    for weights, output in expected.items():
        assert run(weights) == 0
        assert written() == output
    hidden = [o.key for o in store.listing("pictures/out") if "/." in o.key]
    assert hidden == ["pictures/out/.denoise-batch/manifest.jsonl"]
    assert list(stages.iterdir()) == []
