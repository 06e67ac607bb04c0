"""A real Ray cluster of two nodes on this machine, one of which is killed in the middle."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.files.scan import Job
from denoise_batch.scaling.engines import WorkersEngine
from denoise_batch.scaling.ray_workers import shares

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.second = cluster.add_node(**small)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is handed out before all workers are up."""
    run = WorkersEngine.run

    def run_warm(engine: WorkersEngine, jobs: Sequence[Job], *rest: Any) -> None:
        engine.warm_up(jobs)
        run(engine, jobs, *rest)

    monkeypatch.setattr(WorkersEngine, "run", run_warm)


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.usefixtures("all_at_once")
def test_a_node_is_killed_and_nothing_is_lost_or_written_twice(
    cluster: Any, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "imgs", tmp_path / "two"
    folder.mkdir()
    for index in range(120):
        picture(192 + index, 160, index).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    assert main([str(folder), "-w", str(weights), "-o", str(tmp_path / "one"), "-d", "cpu"]) == 1
    capsys.readouterr()
    lost_at: list[int] = []

    def lose_the_second_node() -> None:
        deadline = time.monotonic() + 240
        while not ray.is_initialized() and time.monotonic() < deadline:
            time.sleep(0.1)
        places = [share.node for share in shares(ray.nodes(), "auto")]
        number = places.index(cluster.second.node_id)
        notes = out / ".denoise-batch" / f"manifest-worker-{number}.jsonl"
        while not notes.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        lost_at.append(len(outputs(out)))
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=lose_the_second_node)
    killer.start()
    command = [str(folder), "-w", str(weights), "-o", str(out), "--log", "json"]
    code = main([*command, "--engine", "ray", "--ray-address", cluster.address])
    killer.join()
    said = capsys.readouterr()
    assert code == 1, said.err
    assert 0 < lost_at[0] < 120  # it was in the middle
    assert outputs(out) == outputs(tmp_path / "one")
    events = [json.loads(line) for line in said.out.splitlines()]
    images = [event for event in events if event["event"] == "image"]
    assert len({event["name"] for event in images}) == len(images) == 121
    assert [event["name"] for event in images if event["status"] == "failed"] == ["broken.png"]
    assert events[0]["device"] == "Ray (2 × CPU)"
