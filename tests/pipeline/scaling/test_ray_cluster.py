"""A real Ray cluster of two nodes on this machine, one of which is killed in the middle."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import picture

from denoise_batch.pipeline.cli.batch import main
from denoise_batch.pipeline.scaling.ray_workers import shares

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores for workers, and two nodes of one each."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    head = {"num_cpus": 0, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.ours = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


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

    def lose_a_node() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not (written := manifests(out)):
            time.sleep(0.01)  # until some worker has written something
        number = int(written[0].stem.rpartition("-")[2])
        node = shares(ray.nodes(), "auto")[number].node
        lost_at.append(len(outputs(out)))
        (lost,) = (ours for ours in cluster.ours if ours.node_id == node)
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=lose_a_node)
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
    assert events[0]["device"] == "Ray, 2 CPU workers"


def manifests(out: Path) -> list[Path]:
    return [p for p in (out / ".denoise-batch").glob("manifest*.jsonl") if p.stat().st_size]
