"""--engine ray, with a stand-in for Ray that runs actors in threads of this process.

Ray itself is too large for every checkout; `test_ray_cluster.py` has the real one, as `slow`.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.kernels import DeviceError, OptionError
from denoise_batch.scaling.ray_workers import Share, precision_there, shares


class ActorDiedError(Exception):
    """As ray.exceptions.RayActorError."""


class FakeRay(ModuleType):
    """As much of Ray as the engine uses.

    Args:
        nodes: machines with their cores.
        loses: told each result of an actor; True kills the actor before it is seen.
    """

    def __init__(self, nodes: dict[str, int], loses: Callable[[Any], bool]) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=ActorDiedError)
        self.is_up = False
        self.started: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self._nodes = nodes
        self._loses = loses

    def is_initialized(self) -> bool:
        return self.is_up

    def init(self, address: str | None, **options: Any) -> None:
        if address == "nowhere:1":
            raise ConnectionError("could not connect\nmore lines")
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeID": name, "Resources": {"CPU": float(cores)}}
            for name, cores in self._nodes.items()
        ]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(
            remote=lambda *arguments: self._new(kind(*arguments), options)
        )

    def _new(self, actor: Any, options: dict[str, Any]) -> Any:
        self.started.append(options)
        handle = SimpleNamespace(is_dead=False)

        def run(jobs: Any) -> Iterator[Any]:
            for result in actor.run(jobs):
                handle.is_dead |= self._loses(result)
                if handle.is_dead:
                    yield ActorDiedError("The actor died because of its node")
                yield result

        streaming = SimpleNamespace(remote=run)
        handle.run = SimpleNamespace(options=lambda num_returns: streaming)
        handle.problem = SimpleNamespace(remote=actor.problem)
        handle.stop = SimpleNamespace(remote=actor.stop)
        handle.clean = SimpleNamespace(remote=actor.clean)
        return handle

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, ActorDiedError):
            raise reference
        return reference

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """Puts a fake Ray in the place of the real one."""
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = (  # type: ignore[attr-defined]
        lambda node, soft: (node, soft)
    )

    def install(loses: Callable[[Any], bool] = lambda result: False) -> FakeRay:
        ray = FakeRay({"one": 1, "two": 1}, loses)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
        return ray

    return install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    folder.mkdir()
    for index in range(20):
        picture(48 + index, 48, index).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_cluster_tells_the_default_network_the_same_levels(
    cluster: Callable[..., FakeRay],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster()
    monkeypatch.chdir(tmp_path)
    found = []
    for name, where in (("one", ["--device", "cpu"]), ("two", ["--engine", "ray"])):
        given = ["-o", name, "--report", f"{name}.json", *where]
        assert main(["imgs", "--noise-level", "1.3x", *given]) == 1
        images = json.loads(Path(f"{name}.json").read_text())["images"]
        levels = {image["name"]: image.get("level_255") for image in images}
        assert levels["0.png"] > 0
        found.append((outputs(tmp_path / name), levels))
    assert found[0] == found[1]


@pytest.mark.parametrize("is_lost", [False, True], ids=["all-well", "one-lost"])
def test_a_cluster_writes_what_one_process_writes(
    cluster: Callable[..., FakeRay],
    folder: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_lost: bool,
) -> None:
    seen: list[Any] = []
    lock = threading.Lock()

    def third(result: Any) -> bool:
        with lock:
            seen.append(result)
            return is_lost and len(seen) == 3

    ray = cluster(third)
    monkeypatch.chdir(tmp_path)  # relative paths mean the same ones on every machine
    options = ["-w", weights.name]
    assert main(["imgs", "-o", "one", "--device", "cpu", *options]) == 1
    assert main(["imgs", "-o", "two", "--engine", "ray", *options]) == 1
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    assert len(outputs(tmp_path / "two")) == 20
    # On a busy machine one worker may have done all before the other one was up.
    assert len(ray.started) >= (2 if is_lost else 1)
    nodes = {options["scheduling_strategy"] for options in ray.started}
    assert nodes <= {("one", True), ("two", True)}
    assert len(ray.killed) == len(ray.started)
    assert not ray.is_up


def test_a_cluster_reads_and_writes_urls(
    cluster: Callable[..., FakeRay],
    folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"ray/imgs/{path.name}", path.read_bytes())
    try:
        cluster()
        command = ["memory://ray/imgs", "-w", str(weights), "-o"]
        assert main([*command, str(tmp_path / "one"), "--device", "cpu"]) == 1
        assert main([*command, "memory://ray/out", "--engine", "ray"]) == 1
        written = {
            name.rpartition("/")[2]: files.cat_file(name)
            for name in files.ls("ray/out", detail=False)
            if files.isfile(name)
        }
        assert written == outputs(tmp_path / "one")
        assert files.find("ray/out/.denoise-batch") == ["/ray/out/.denoise-batch/manifest.jsonl"]
        assert "memory://ray/imgs/broken.png: " in capsys.readouterr().out
    finally:
        files.store.clear()
        files.pseudo_dirs[:] = [""]


def test_a_machine_that_does_not_share_the_files_is_named(
    cluster: Callable[..., FakeRay],
    folder: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from denoise_batch.scaling import engines

    cluster()
    monkeypatch.setattr(engines, "FOLDER", "not-there")
    command = [str(folder), "-o", str(tmp_path / "out"), "--engine", "ray", "-w", str(weights)]
    assert main(command) == 2
    assert "workers need inputs and outputs on storage that all machines share" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--engine", "ray", "--ray-address", "nowhere:1"], 4, "could not connect; is the cluster"),
        (["--engine", "ray", "--device", "cuda"], 4, "the Ray cluster has no GPU"),
        (["--engine", "ray", "--device", "cuda:1"], 2, "choose auto, cuda or cpu"),
        (["--engine", "spark"], 2, "choose local or ray"),
        (["--ray-address", "auto"], 2, "goes with --engine ray"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_ends_with_the_documented_code(
    cluster: Callable[..., FakeRay],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    cluster()
    assert main([str(folder), *arguments]) == code
    assert said in capsys.readouterr().err


def test_without_ray_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(folder), "--engine", "ray"]) == 2
    assert "pip install 'denoise-batch[ray]'" in capsys.readouterr().err


def node(name: str, cores: float, gpus: float = 0, *, is_alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cores} | ({"GPU": gpus} if gpus else {})
    return {"NodeID": name, "Alive": is_alive, "Resources": resources}


def test_a_cluster_is_divided_by_gpus_or_by_cores() -> None:
    mixed = [node("a", 16, 2), node("b", 9), node("c", 8, 8, is_alive=False), node("d", 1, 1)]
    assert shares(mixed, "auto") == [Share(1, 4), Share(1, 4), Share(1, 1)]
    assert shares(mixed, "cuda") == shares(mixed, "auto")
    by_cores = [Share(0, 4, "a")] * 4 + [Share(0, 4, "b")] * 2 + [Share(0, 1, "d")]
    assert shares(mixed, "cpu") == by_cores
    assert shares([node("b", 2)], "auto") == [Share(0, 2, "b")]
    with pytest.raises(DeviceError, match="no GPU"):
        shares([node("b", 2)], "cuda")
    with pytest.raises(DeviceError, match="no free cores"):
        shares([node("b", 0)], "auto")
    with pytest.raises(OptionError, match="choose auto, cuda or cpu"):
        shares(mixed, "mps")


def test_a_cluster_whose_gpus_stay_taken_is_a_device_error() -> None:
    class RayError(Exception):
        """As ray.exceptions.RayError, of which GetTimeoutError is one."""

    def get(reference: str, timeout: float) -> None:
        raise RayError(f"Get timed out: {reference} not ready after {timeout:g} s")

    task = SimpleNamespace(remote=lambda: "task")
    ray = SimpleNamespace(
        exceptions=SimpleNamespace(RayError=RayError),
        get=get,
        cancel=lambda reference: None,
        remote=lambda **options: lambda function: task,
    )
    with pytest.raises(DeviceError, match=r"no GPU of the cluster.*task not ready after 600 s"):
        precision_there(ray, "auto", has_gpu=True)
    assert precision_there(ray, "auto", has_gpu=False) == "fp32"
    with pytest.raises(OptionError, match="precision bf16 on a processor"):
        precision_there(ray, "bf16", has_gpu=False)
