"""Training by several processes: the weights of one, whatever their number, and after a loss."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise_batch.cli.train import main
from denoise_batch.kernels import DeviceError, OptionError
from denoise_batch.models import load_tensors
from denoise_batch.training.distributed import ProcessGroup, TorchProcessGroup
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.train import train

MODULE = "denoise_batch.training"


def environment() -> dict[str, str]:
    """Without what an outer torchrun may have set, and without GPUs; one thread a process."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")
    }
    return {**ours, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(processes: int, arguments: Sequence[str | Path], *options: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *options, "-m", MODULE]
    return [*command, *map(str, arguments)]


def run(command: list[str], code: int = 0) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def recipe(photographs: Path) -> list[str]:
    """Five steps an epoch; the last one's single tile leaves one process without any."""
    return [
        str(photographs), "--noise", "gaussian:25", "--tiles", "29", "--tile-px", "16",
        "--validation-tiles", "5", "--epochs", "2", "--batch-size", "7", "--lr", "1",
        "--optimizer", "sgd", "--device", "cpu", "--ema", "0.9",
    ]  # fmt: skip


def largest_difference(first: Path, second: Path) -> float:
    one, other = load_tensors(first)[0], load_tensors(second)[0]
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.usefixtures("curves")
def test_two_processes_reach_the_weights_of_one_with_the_joint_batch(
    photographs: Path, tmp_path: Path
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert main([*recipe(photographs), "-o", str(whole)]) == 0
    automatic = [*recipe(photographs), "--device", "auto"]  # which all processes agree on
    said = run(torchrun(2, [*automatic, "-o", shared]))
    for name in ("last.safetensors", "best.safetensors", "checkpoint.safetensors"):
        assert largest_difference(whole / name, shared / name) < 1e-6
    rows = [
        list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        for folder in (whole, shared)
    ]
    for one, other in zip(*rows, strict=True):
        for key in ("training_loss", "validation_psnr", "validation_psnr_mean"):
            assert other[key] == pytest.approx(one[key], abs=1e-5)
    assert len(re.findall(r"step 3 \(", said)) == 1  # only the first process prints
    assert {path.name for path in whole.iterdir()} == {path.name for path in shared.iterdir()}


def test_a_lost_process_is_replaced_and_the_run_goes_on_from_its_checkpoint(
    photographs: Path, tmp_path: Path
) -> None:
    """kill -9 of one of two processes; torchrun starts both anew, without any --resume."""
    long = [*recipe(photographs), "--epochs", "12", "--checkpoint-minutes", "0.0005"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*long, "-o", str(whole)]) == 0
    command = torchrun(2, [*long, "-o", broken], "--max-restarts", "1", "--monitor-interval", "0.1")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment()
    ) as launcher:
        # The second line comes after the checkpoint of the first validation.
        metrics = broken / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            assert launcher.poll() is None
            time.sleep(0.005)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert load_tensors(broken / "checkpoint.safetensors")[1]["step"] == 12 * 5
    assert "step 60 (epoch 12.00)" in said
    assert len(re.findall(r"step 3 \(", said)) == 1  # it went on; it did not begin anew
    assert len(re.findall("to train on", said)) == 2
    assert largest_difference(whole / "last.safetensors", broken / "last.safetensors") < 1e-5
    rows = (broken / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == list(range(3, 61, 3))


def test_an_error_of_the_first_process_ends_all(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = {"data": "photographs", "output": "run", "network": "tconv"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    said = run(torchrun(2, [*recipe(photographs), "-o", tmp_path / "run"]), code=1)
    assert "error: " in said
    assert "already holds a run" in said


def test_more_processes_than_tiles_in_a_batch_are_refused() -> None:
    TorchProcessGroup(0, 4, 0, 4).check_batch_size(4)
    with pytest.raises(OptionError, match="--batch-size 3: is shared by 4 processes"):
        TorchProcessGroup(0, 4, 0, 4).check_batch_size(3)
    ProcessGroup().check_batch_size(1)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 11])
def test_rows_are_split_without_overlap(size: int, count: int) -> None:
    rows = torch.arange(count).view(count, 1)
    owners = torch.zeros(count)
    for rank in range(size):
        group = TorchProcessGroup(rank, size, rank, size)
        local = group.local_rows(rows)
        assert len(local) >= 1
        restored = group.scatter_back(local + 100, rows)
        is_own = (restored == rows + 100).flatten()
        assert torch.equal(restored[~is_own], rows[~is_own])
        if is_own.any():
            assert torch.equal(rows[is_own], local)
        owners += is_own
    assert (owners == 1).all()


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "ones", lambda size, device, ones=torch.ones: ones(size))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda usable, op: None)
    group = TorchProcessGroup(5, 8, 1, 4)
    assert group.device("auto") == group.device("cuda") == torch.device("cuda:1")
    assert taken == [torch.device("cuda:1")] * 2
    assert group.device("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match="is one device"):
        group.device("cuda:0")
    assert TorchProcessGroup(1, 2, 0, 1).device("cuda:1") == torch.device("cuda:1")


def test_processes_without_gpus_are_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda usable, op: None)
    assert TorchProcessGroup(1, 2, 1, 2).device("auto") == torch.device("cpu")


@pytest.mark.parametrize("is_mine", [False, True])
def test_where_a_gpu_of_one_process_fails_auto_takes_the_cpu_in_all(
    is_mine: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a single process does; with `cuda` it is an error."""

    def ones(size: int, device: torch.device, ones: Any = torch.ones) -> torch.Tensor:
        if is_mine and device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ones(size)  # type: ignore[no-any-return]

    def least(usable: torch.Tensor, op: object) -> None:
        assert bool(usable) == (not is_mine)
        usable.zero_()  # another process's

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.distributed, "all_reduce", least)
    group = TorchProcessGroup(0, 2, 0, 2)
    assert group.device("auto") == torch.device("cpu")
    said = [record.getMessage() for record in caplog.records]
    assert ["auto takes the CPU in every process" in line for line in said] == [True] * is_mine
    if is_mine:
        with pytest.raises(DeviceError, match="out of memory"):
            group.device("cuda")


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda usable, op: None)
    with pytest.raises(DeviceError, match="2 CUDA devices"):
        TorchProcessGroup(2, 3, 2, 3).device("auto")


def test_half_an_environment_is_a_clear_error(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert main([str(photographs)]) == 2
    assert "start with torchrun" in capsys.readouterr().err


def test_one_process_uses_no_torch_distributed(photographs: Path, tmp_path: Path) -> None:
    """Not even an import: some builds of torch come without it."""
    code = (
        "import sys, torch; del torch.distributed; sys.modules['torch.distributed'] = None;"
        "from denoise_batch.cli.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *recipe(photographs), "-o", str(tmp_path / "run")]
    unset = {name: value for name, value in environment().items() if name != "WORLD_SIZE"}
    subprocess.run(command, capture_output=True, check=True, env=unset, timeout=300)


def test_a_group_of_one_changes_nothing(photographs: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        photographs, tmp_path / "one", "tconv", "gaussian:25", tiles=16, epochs=1, device="cpu",
        validation_tiles=2,
    )  # fmt: skip
    first = train(options)
    second: Any = train(replace(options, output=tmp_path / "two"), group=ProcessGroup())
    assert first.weights.read_bytes() == second.weights.read_bytes()


def test_a_run_in_minutes_ends_at_the_same_step_for_all_processes(
    photographs: Path, tmp_path: Path
) -> None:
    """The first process's clock counts; if each followed its own, one would wait forever."""
    command = [*recipe(photographs), "--minutes", "0.01", "-o", tmp_path / "run"]
    command += ["--init", "tconv"]
    run(torchrun(2, [argument for argument in command if argument not in ("--epochs", "2")]))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] >= 1
