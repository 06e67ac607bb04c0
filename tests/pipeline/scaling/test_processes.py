"""A worker process for each device: the local run's outputs, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import picture

from denoise_batch.cli.batch import main
from denoise_batch.kernels import DeviceError
from denoise_batch.options import DenoiseOptions
from denoise_batch.scaling import engines
from denoise_batch.scaling.engines import ProcessEngine
from denoise_batch.scaling.processes import SharedStop
from denoise_batch.scaling.worker_session import WorkerConfig, WorkerSession
from denoise_batch.streaming.manifest import Storage
from denoise_batch.streaming.session import Session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    for index in range(12):
        path = folder / f"set{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(64 + index, 48, index).save(path)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda:all` means two workers on the CPU."""
    monkeypatch.setattr(engines, "_cuda_devices", lambda: ["cpu", "cpu"])


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.png")
        if not path.name.startswith(".")
    }


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("level", ["1.3x", "20"])
def test_workers_tell_the_default_network_the_same_levels(
    folder: Path, tmp_path: Path, level: str
) -> None:
    found = []
    for device in ("cpu", "cuda:all"):
        out, report = tmp_path / device, tmp_path / f"{device}.json"
        given = ["--device", device, "-o", str(out), "--report", str(report)]
        assert main([str(folder), "--noise-level", level, *given]) == 1
        images = json.loads(report.read_text())["images"]
        levels = {image["name"]: image.get("level_255") for image in images}
        assert levels["set0/0.png"] > 0
        found.append((outputs(out), levels))
    assert found[0] == found[1]


@pytest.mark.usefixtures("two_devices")
def test_two_workers_write_what_one_process_writes(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(folder), "-w", str(weights), "--log", "json"]
    assert main([*command, "-o", str(tmp_path / "one"), "--device", "cpu"]) == 1
    alone = capsys.readouterr().out.splitlines()
    shared = [*command, "-o", str(tmp_path / "two"), "--device", "cuda:all"]
    report = tmp_path / "report.json"
    assert main([*shared, "--report", str(report)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    assert len(lines) == len(alone)
    events = [json.loads(line) for line in lines]
    assert events[0]["device"] == "cpu, cpu"
    assert events[0]["kernels"] == "chosen by each worker"
    assert events[-1]["kernels"] == json.loads(alone[-1])["kernels"]  # as the workers said
    reported = json.loads(report.read_text())
    assert reported["device"]["name"] == "cpu, cpu"
    assert reported["device"]["description"].startswith("2 × ")
    assert len(reported["images"]) == 13
    failed = [event for event in events if event.get("status") == "failed"]
    assert [event["name"] for event in failed] == ["broken.png"]

    parts = {path.name for path in (tmp_path / "two" / ".denoise-batch").glob("manifest*")}
    assert parts  # a worker that was slow to start may have found nothing left to do
    assert parts <= {"manifest-worker-0.jsonl", "manifest-worker-1.jsonl"}
    assert main([*shared, "--dry-run"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plan = [event["status"] for event in events if event["event"] == "plan"]
    assert sorted(plan) == ["failed"] + ["skipped"] * 12


def test_without_a_gpu_all_of_them_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(folder), "--device", "cuda:all"]) == 4
    assert "--device cuda:all: PyTorch finds no usable NVIDIA GPU" in capsys.readouterr().err


def test_one_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    options = DenoiseOptions(("imgs",), weights=str(weights), device="cuda:all")
    engine = ProcessEngine(options, Storage(), "")
    assert (engine.device, engine.precision) == ("cuda:0, cuda:1, cuda:2", "bf16")
    names = [worker.name for worker in engine.new_workers([])]
    assert names == [f"worker {n} on cuda:{n}" for n in range(3)]
    assert [engine.config(f"cuda:{n}", n).options.device for n in range(3)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
    ]


RUN = """
import sys
from denoise_batch.cli.batch import main
from denoise_batch.scaling import engines
if __name__ == "__main__":
    engines._cuda_devices = lambda: ["cpu", "cpu"]
    sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    """kill -9 of one of two workers as soon as some file is written."""
    for index in range(12, 100):
        picture(96, 96, index).save(folder / f"{index}.png")
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(folder), "-w", str(weights)]
    command += ["--log", "json", "--device", "cuda:all", "-o", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **options) as run:  # type: ignore[call-overload]
        while not outputs(tmp_path / "two"):
            assert run.poll() is None
            time.sleep(0.002)
        workers = [pid for pid in children(run.pid) if b"spawn_main" in command_line(pid)]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        said, errors = run.communicate(timeout=300)
    assert run.returncode == 1, errors
    assert main([str(folder), "-w", str(weights), "-o", str(tmp_path / "one"), "-d", "cpu"]) == 1
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    events = [json.loads(line) for line in said.splitlines()]
    names = [event["name"] for event in events if event["event"] == "image"]
    assert len(names) == len(set(names)) == 101


def test_a_stopped_worker_leaves_the_rest(folder: Path, weights: Path, tmp_path: Path) -> None:
    options = DenoiseOptions((str(folder),), tmp_path / "out", weights=str(weights), device="cpu")
    with Session(options) as session:
        jobs = session.jobs()
    event = threading.Event()
    worker = WorkerSession(WorkerConfig(options, "-worker-0"))
    results = list(worker.run(jobs[:2], SharedStop(event)))  # type: ignore[arg-type]
    assert len(results) == 2
    event.set()
    results += worker.run(jobs[2:], SharedStop(event))  # type: ignore[arg-type]
    assert len(results) < len(jobs)
    assert set(outputs(tmp_path / "out")) == {r.job.name for r in results if r.status == "done"}


def test_a_worker_on_another_machine_needs_no_folder_for_the_reports(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    options = DenoiseOptions(
        (str(folder),), weights=str(weights), precision="fp32", reports=(Path("runs/r.json"),)
    )
    engine = ProcessEngine(options, Storage(), "", devices=["cpu"])
    config = replace(engine.config("cpu", 0), weights=weights.read_bytes())
    monkeypatch.chdir(folder)
    WorkerSession(config)


def test_a_worker_that_cannot_work_ends_the_run_with_its_error(folder: Path, weights: Path) -> None:
    inputs, file = (str(folder),), str(weights)
    options = DenoiseOptions(inputs, weights=file, device="cuda:all", precision="fp32")
    engine = ProcessEngine(options, Storage(), "", devices=["cuda:7"])
    worker = engine.new_workers([])[0]
    with pytest.raises(DeviceError, match="cuda:7"):
        worker.start(lambda: False)
    worker.close()


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for text in found for child in text.split()]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
