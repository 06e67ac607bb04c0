"""Training: what a run leaves behind, that it learns, and that it is reproducible."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from denoise_batch.cli.train import main
from denoise_batch.device import deterministic_algorithms
from denoise_batch.kernels import (
    Adam,
    DenoiseBatchError,
    DeviceError,
    ExponentialMovingAverage,
    OptionError,
    TrainingError,
)
from denoise_batch.models import (
    Network,
    find_weights,
    load_tensors,
    load_weights,
    save_tensors,
    save_weights,
)
from denoise_batch.progress import Progress
from denoise_batch.training import run_folder
from denoise_batch.training.distributed import ProcessGroup
from denoise_batch.training.options import LARGEST_SEED, TrainOptions
from denoise_batch.training.run_folder import Epoch, RunFolder, TrainingState
from denoise_batch.training.train import TrainStart, train


class Recorder(Progress[TrainStart, Epoch]):
    """Remembers what a run reports; interrupts it after a step, if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.starts: list[TrainStart] = []
        self.steps: list[tuple[int, int]] = []
        self.epochs: list[Epoch] = []
        self.were_deterministic: list[bool] = []

    def on_start(self, start: TrainStart) -> None:
        self.starts.append(start)

    def on_step(self, name: str, done: int, total: int) -> None:
        self.steps.append((done, total))
        self.were_deterministic.append(torch.are_deterministic_algorithms_enabled())
        if done == self.stop_at:
            raise KeyboardInterrupt

    def on_result(self, result: Epoch) -> None:
        self.epochs.append(result)


@pytest.fixture
def options(photographs: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        data=photographs,
        output=tmp_path / "run",
        network="tconv",
        noise="gaussian:25",
        tiles=64,
        tile_px=32,
        validation_tiles=8,
        validation_share=0.3,
        epochs=2,
        batch_size=16,
        lr=2.0,
        device="cpu",
    )


@pytest.mark.usefixtures("curves")
def test_a_run_leaves_weights_metrics_and_its_configuration(options: TrainOptions) -> None:
    outcome = train(options)
    files = {path.name for path in options.output.iterdir()}
    weights = {f"{name}.safetensors" for name in ("best", "last", "checkpoint")}
    assert files == {"config.json", "metrics.jsonl", "curves.png", "samples.png"} | weights
    with Image.open(options.output / "samples.png") as samples:
        assert samples.size == (3 * 128 + 8, 6 * 128 + 20)
        columns = [samples.crop((132 * i, 0, 132 * i + 128, 128)) for i in range(3)]
    assert len({column.tobytes() for column in columns}) == 3
    with Image.open(options.output / "curves.png") as curves:
        assert curves.width > 1000
    rows = list(map(json.loads, (options.output / "metrics.jsonl").read_text().splitlines()))
    assert [row["number"] for row in rows] == [1, 2]
    assert max(row["validation_psnr"] for row in rows) == outcome.best.validation_psnr
    config = json.loads((options.output / "config.json").read_text())
    assert config["noise"] == "gaussian:25"
    loaded = load_weights(outcome.weights)
    assert loaded.training["epoch"] == outcome.best.number
    assert loaded.training["noise"] == "gaussian:25"
    assert loaded.network.architecture == "tconv"


def test_without_matplotlib_a_run_has_no_curves(options: TrainOptions) -> None:
    train(options)
    assert not (options.output / "curves.png").exists()
    assert (options.output / "samples.png").exists()


@pytest.mark.usefixtures("curves")
def test_curves_are_drawn_now_and_then_and_at_the_end(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    draw = run_folder.draw_curves

    def count(path: Path, rows: Sequence[dict[str, Any]], noisy_psnr: float) -> bool:
        drawn.append([row["number"] for row in rows])
        return draw(path, rows, noisy_psnr)

    monkeypatch.setattr(run_folder, "draw_curves", count)
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: 100.0))
    train(replace(options, epochs=4))
    assert drawn == [[1, 2, 3, 4]]

    stopped = replace(options, output=options.output / "stopped", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Recorder(stop_at=10))
    assert drawn[1:] == [[1, 2]]
    assert (stopped.output / "curves.png").exists()

    ticks = itertools.count(step=25.0)
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    train(replace(stopped, resume=True))
    assert drawn[2:] == [[1, 2, 3], [1, 2, 3, 4]]


def test_training_on_noisy_targets_alone_lowers_the_error_to_the_clean_image(
    options: TrainOptions,
) -> None:
    strong = replace(options, noise="gaussian:50", tiles=256, epochs=8, batch_size=8, lr=4.0)
    outcome = train(strong)
    assert outcome.best.validation_psnr > outcome.noisy_psnr + 3.0


def test_one_seed_gives_one_result(options: TrainOptions, tmp_path: Path) -> None:
    first = train(options)
    second = train(replace(options, output=tmp_path / "again"))
    other = train(replace(options, output=tmp_path / "other", seed=1))
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert first.weights.read_bytes() != other.weights.read_bytes()


def test_the_network_is_standardised_by_the_noisy_tiles(options: TrainOptions) -> None:
    network = load_weights(train(options).weights).network
    assert len(network.normalize.mean) == 3
    assert all(0.2 < mean < 0.8 for mean in network.normalize.mean)
    assert all(25 / 255 < std < 0.6 for std in network.normalize.std)


def test_subpixel_noise_trains_too(options: TrainOptions) -> None:
    outcome = train(replace(options, noise="subpixel:2", epochs=1))
    assert outcome.best.validation_psnr > 0


def test_lost_pixels_teach_nothing_and_poison_nothing(options: TrainOptions) -> None:
    lossy = replace(options, noise="bernoulli:0.5", tiles=256, epochs=8, batch_size=8, lr=4.0)
    outcome = train(lossy)
    assert outcome.best.validation_psnr > outcome.noisy_psnr + 3.0


def test_training_goes_on_from_given_weights(options: TrainOptions, tmp_path: Path) -> None:
    first = train(replace(options, noise="gaussian:50", tiles=256, epochs=8, batch_size=8, lr=4.0))
    second = replace(options, noise="gaussian:50", output=tmp_path / "second", epochs=1, lr=0.01)
    fresh = train(replace(second, output=tmp_path / "fresh"))
    outcome = train(replace(second, init=str(first.weights)))
    assert outcome.best.validation_psnr > fresh.best.validation_psnr + 1
    network = load_weights(first.weights).network
    assert load_weights(outcome.weights).network.normalize.mean == network.normalize.mean
    other = replace(second, output=tmp_path / "other", network="upsample", init=str(first.weights))
    with pytest.raises(OptionError, match="--init"):
        train(other)


def test_progress_receives_the_start_every_step_and_epoch(options: TrainOptions) -> None:
    recorder = Recorder()
    outcome = train(options, recorder)
    (start,) = recorder.starts
    assert start.counts.training + start.counts.validation == 10
    assert start.noisy_psnr == outcome.noisy_psnr
    assert recorder.steps == [(step, 8) for step in range(1, 9)]
    assert [epoch.number for epoch in recorder.epochs] == [1, 2]
    assert recorder.epochs[-1].lr < options.lr / 2


def test_a_run_may_be_measured_in_steps(options: TrainOptions) -> None:
    recorder = Recorder()
    train(replace(options, steps=6), recorder)
    epochs = recorder.epochs
    assert [epoch.step for epoch in epochs] == [4, 6]
    assert epochs[-1].lr < 0.1 * options.lr  # the cosine ends with the steps
    assert all(epoch.images_per_s > 0 for epoch in epochs)


def test_a_run_may_be_measured_in_minutes(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=0.05)  # between two looks at the clock: a step takes as long
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0)
    monkeypatch.setattr("denoise_batch.training.train.time", clock)
    recorder = Recorder()
    train(replace(options, minutes=0.01), recorder)
    epochs = recorder.epochs
    assert 0.6 <= sum(epoch.seconds for epoch in epochs) < 0.8
    assert 10 <= epochs[-1].step <= 13
    assert epochs[-1].lr < 0.1 * options.lr


def test_every_second_is_one_of_the_first_process_s_clock(options: TrainOptions) -> None:
    class Steady(ProcessGroup):
        def broadcast_time(self, seconds: float) -> float:
            return 1.0

    recorder = Recorder()
    train(options, recorder, Steady())
    assert [epoch.seconds for epoch in recorder.epochs] == [
        5.0,
        5.0,
    ]  # four steps and the epoch's end


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"minutes": 0.0},
        {"minutes": float("nan")},
        {"steps": 1, "minutes": 1.0},
        {"minutes": 1.0, "deterministic": True},
    ],
    ids=str,
)
def test_lengths_that_contradict_are_refused(options: TrainOptions, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"--steps|--minutes"):
        replace(options, **wrong)


def test_a_deterministic_run_is_the_same_and_leaves_torch_as_it_was(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    recorder = Recorder()
    first = train(replace(options, deterministic=True), recorder)
    second = train(replace(options, deterministic=True, output=tmp_path / "again"))
    assert recorder.were_deterministic == [True] * 8
    assert not torch.are_deterministic_algorithms_enabled()
    assert first.weights.read_bytes() == second.weights.read_bytes()


def test_an_operation_without_a_deterministic_algorithm_is_a_clear_error() -> None:
    message = "put_ does not have a deterministic implementation"
    with pytest.raises(DeviceError, match="--deterministic"), deterministic_algorithms():
        raise RuntimeError(message)


def test_divergence_ends_the_run_and_says_how_to_mend(options: TrainOptions) -> None:
    with pytest.raises(TrainingError, match="smaller --lr"):
        train(replace(options, lr=1e38, warmup_epochs=0, clip_norm=0, momentum=0, nesterov=False))


def test_a_run_folder_is_never_overwritten(options: TrainOptions) -> None:
    train(options)
    before = (options.output / "best.safetensors").read_bytes()
    with pytest.raises(OptionError, match="already holds a run"):
        train(options)
    assert (options.output / "best.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "wrong", [{"data": Path("misspelled")}, {"tile_px": 90}, {"init": "misspelled"}], ids=str
)
def test_what_cannot_begin_leaves_no_run_behind(
    options: TrainOptions, wrong: dict[str, Any]
) -> None:
    with pytest.raises(DenoiseBatchError, match=r"misspelled|are smaller than"):
        train(replace(options, **wrong))
    assert not options.output.exists()


def test_a_run_folder_that_cannot_be_made_is_noticed_before_the_data_is_read(
    options: TrainOptions, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OptionError, match=f"--output {output}: "):
            train(replace(options, output=output, data=Path("misspelled")))


@pytest.mark.parametrize(
    ("chosen", "lr", "momentum"),
    [
        ([], 4.0, 0.9),
        (["--network", "upsample"], 1.5, 0.9),
        (["--network", "unet"], 0.1, 0.9),
        (["--optimizer", "adamw"], 1e-3, 0.9),
        (["--optimizer", "muon"], 1e-3, 0.95),
        (["--optimizer", "muon", "--lr", "0.01", "--momentum", "0.5"], 0.01, 0.5),
    ],
)
def test_the_default_rates_suit_optimiser_and_network(
    photographs: Path, tmp_path: Path, chosen: list[str], lr: float, momentum: float
) -> None:
    command = [str(photographs), "--noise", "gaussian:25", "--tiles", "2", "--tile-px", "16"]
    short = ["--validation-tiles", "1", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    assert main([*command, *short, *chosen, "-o", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lr"], config["momentum"]) == (lr, momentum)


def test_shipped_weights_bring_their_network_and_survive_the_default_rate(
    photographs: Path, tmp_path: Path
) -> None:
    """`--init` alone, as docs/training.md has it; at the rate of `tconv` 30.6 dB became 17.3."""
    command = [
        str(photographs),
        "--noise",
        "gaussian:25",
        "--init",
        str(find_weights(None)),
        "--device",
        "cpu",
    ]
    short = ["--steps", "20", "--tiles", "160", "--validation-tiles", "8"]
    assert main([*command, *short, "-o", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["network"] == "unet"
    still = ["--steps", "1", "--lr", "1e-12", "-o", str(tmp_path / "still")]
    assert main([*command, *short, *still]) == 0
    psnrs = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text())["validation_psnr"]
        for name in ("run", "still")
    ]
    assert psnrs[0] > psnrs[1] - 0.5


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw-ema": {"optimizer": "adamw", "lr": 1e-3, "ema": 0.9},
    "muon": {"optimizer": "muon", "lr": 1e-3},
    "subpixel": {"noise": "subpixel:2", "shuffle": False},
    "real": {"noise": "real", "targets": "clean", "gray_share": 0.3, "graphics_share": 0.3},
}


def test_real_noise_brings_gray_and_drawn_tiles_unless_told_otherwise(
    photographs: Path, tmp_path: Path
) -> None:
    command = [str(photographs), "--noise", "real", "--steps", "2", "--tiles", "16", "-d", "cpu"]
    command += ["--validation-tiles", "2", "--validation-share", "0.3"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["gray_share"], config["graphics_share"]) == (0.12, 0.12)
    assert main([*command, "-o", str(tmp_path / "plain"), "--graphics-share", "0"]) == 0
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (config["gray_share"], config["graphics_share"]) == (0.12, 0)
    assert main([*command, "-o", str(tmp_path / "none"), "--graphics-share", "2"]) == 2
    assert (
        main(
            [
                *command,
                "-o",
                str(tmp_path / "none"),
                "--pairs",
                str(photographs),
                "--graphics-share",
                "0.1",
            ]
        )
        == 2
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_stopped_anywhere_resumes_to_the_same_weights(
    options: TrainOptions, tmp_path: Path, recipe: str
) -> None:
    # In the first epoch, at its end, in the second one and near the end; for every other recipe
    # once, where optimiser and average hold most.
    places = (1, 5, 6, 11) if recipe == "sgd" else (11,)
    options = replace(options, epochs=3, tiles=72, batch_size=16, **RECIPES[recipe])
    whole = train(replace(options, output=tmp_path / "whole"))
    for stop_at in places:  # of 15 steps, 5 per epoch
        stopped = replace(options, output=tmp_path / f"stopped at {stop_at}")
        _stopped(stopped, stop_at)
        resumed = train(replace(stopped, resume=True))
        for name in ("best.safetensors", "last.safetensors"):
            expected = (tmp_path / "whole" / name).read_bytes()
            assert (stopped.output / name).read_bytes() == expected, stop_at
        assert resumed.best.validation_psnr == whole.best.validation_psnr
        assert _rows(stopped.output) == _rows(tmp_path / "whole"), stop_at


def _rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for what the clock says."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


def _stopped(options: TrainOptions, stop_at: int) -> None:
    """Train as far as this step."""
    with pytest.raises(KeyboardInterrupt):
        train(options, Recorder(stop_at))


def test_a_resumed_run_keeps_its_standardisation_whatever_became_of_the_photographs(
    options: TrainOptions, photographs: Path
) -> None:
    _stopped(options, 6)
    before = load_weights(options.output / "last.safetensors").network.normalize
    for number in range(8):
        Image.new("RGB", (128, 128), (250,) * 3).save(photographs / f"white {number}.png")
    train(replace(options, resume=True))
    after = load_weights(options.output / "last.safetensors").network.normalize
    assert (after.mean, after.std) == (before.mean, before.std)


def test_a_resumed_run_does_not_ask_the_weights_it_began_with_again(
    options: TrainOptions, tmp_path: Path
) -> None:
    init = tmp_path / "init.safetensors"
    started = replace(options, init=str(init))
    save_weights(init, Network("tconv", 0.5, 0.25, torch.Generator().manual_seed(0)), {})
    train(replace(started, output=tmp_path / "whole"))
    _stopped(started, 6)
    save_weights(init, Network("tconv", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)), {})
    train(replace(started, resume=True))
    expected = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert (options.output / "last.safetensors").read_bytes() == expected


def test_every_process_takes_standardisation_and_rate_of_the_first_one_s_checkpoint(
    tmp_path: Path,
) -> None:
    """Each measures its own, on a device that may round otherwise."""

    def state(network: Network) -> TrainingState:
        parameters = network.parameters()
        average = ExponentialMovingAverage(parameters)
        return TrainingState(network, Adam(parameters, 0.5), average, torch.zeros(()))

    first = state(Network("tconv", (0.1, 0.2, 1 / 3), (0.3, 0.2, 0.1)))
    first.optimizer.lr = 0.125
    RunFolder(tmp_path).save_checkpoint(first)

    class Second(ProcessGroup):
        rank = 1

        def on_first(self, action: Any) -> Any:
            return load_tensors(tmp_path / "checkpoint.safetensors")

    other = state(Network("tconv", 0.5, 0.25))
    RunFolder(tmp_path / "none", Second()).load_checkpoint(other)
    normalize = other.network.normalize
    assert (normalize.mean, normalize.std) == ((0.1, 0.2, 1 / 3), (0.3, 0.2, 0.1))
    assert other.optimizer.lr == 0.125


def test_a_checkpoint_of_an_earlier_release_resumes_too(
    options: TrainOptions, tmp_path: Path
) -> None:
    """It tells neither standardisation nor rate."""
    train(replace(options, output=tmp_path / "whole"))
    _stopped(options, 6)
    path = options.output / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {k: header[k] for k in header if k not in ("lr", "mean", "std")})
    train(replace(options, resume=True))
    expected = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert (options.output / "last.safetensors").read_bytes() == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_in_hand_finish(
    options: TrainOptions,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    """In the middle of an optimiser's step, where half of the parameters have moved."""
    command = [
        str(photographs), "--noise", "gaussian:25", "--tiles", "40", "--validation-tiles", "4",
        "--epochs", "2", "--device", "cpu", "--batch-size", "8", "--optimizer", "adam", "--lr",
        "0.001",
    ]  # fmt: skip
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    step, steps = Adam.step, 0

    def step_and_signal(self: Adam) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(number)
        step(self)

    monkeypatch.setattr(Adam, "step", step_and_signal)
    assert main([*command, "-o", str(options.output)]) == code
    assert "with --resume continues from here" in capsys.readouterr().err
    assert steps == 3
    assert main([*command, "-o", str(options.output), "--resume"]) == 0
    assert steps == 10  # none was done twice
    expected = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert (options.output / "last.safetensors").read_bytes() == expected


def test_a_second_signal_names_the_checkpoint_that_stays(
    options: TrainOptions,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The step that it cuts is lost, and those since the last checkpoint with it."""
    command = [
        str(photographs), "--noise", "gaussian:25", "--tiles", "40", "--validation-tiles", "4",
        "--epochs", "2", "--device", "cpu", "--batch-size", "8", "--optimizer", "adam", "--lr",
        "0.001", "-o", str(options.output),
    ]  # fmt: skip
    step, steps = Adam.step, 0

    def step_and_signals(self: Adam) -> None:
        nonlocal steps
        steps += 1
        step(self)
        if steps == 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Adam, "step", step_and_signals)
    assert main(command) == 130
    assert "with --resume continues from the last checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(Adam, "step", step)
    assert main([*command, "--resume"]) == 0


def test_an_interrupt_in_the_middle_of_a_step_keeps_the_last_whole_state(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, or the first one with several processes."""
    options = replace(
        options, tiles=24, tile_px=16, batch_size=8, optimizer="adam", lr=1e-3, ema=0.9
    )
    train(replace(options, output=tmp_path / "whole"))
    average = ExponentialMovingAverage
    places: list[tuple[Any, str, int]] = [
        (Adam, "step", 5), (average, "update", 2), (average, "update", 5),
        (Network, "forward", 1), (Network, "forward", 2),  # validation, on averaged weights
        (RunFolder, "save_weights", 2), (RunFolder, "record", 2),
    ]  # fmt: skip
    for owner, method, call in places:
        stopped = replace(options, output=tmp_path / f"{method} {call}")
        original, calls = getattr(owner, method), itertools.count(1)

        def interrupted(
            *arguments: Any, original: Any = original, calls: Any = calls, call: int = call
        ) -> Any:
            result = original(*arguments)
            if next(calls) == call:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(stopped)
        train(replace(stopped, resume=True))
        for name in ("best.safetensors", "last.safetensors", "checkpoint.safetensors"):
            whole = load_tensors(tmp_path / "whole" / name)[0]
            resumed = load_tensors(stopped.output / name)[0]
            assert whole.keys() == resumed.keys()
            same = {key: torch.equal(whole[key], resumed[key]) for key in whole}
            assert all(same.values()), (method, call, name)


def test_a_killed_run_resumes_to_the_same_weights(
    options: TrainOptions, photographs: Path, tmp_path: Path
) -> None:
    """kill -9 of a process of its own, somewhere after its first epoch."""
    arguments = [
        str(photographs), "--noise", "gaussian:25", "--tiles", "64", "--validation-tiles", "4",
        "--epochs", "6", "--device", "cpu", "--batch-size", "4", "--checkpoint-minutes", "0.001",
    ]  # fmt: skip
    assert main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    arguments += ["-o", str(options.output)]
    # One thread, as here.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "denoise_batch.training", *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as killed:
        while not (options.output / "best.safetensors").exists():
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    assert killed.returncode == -9
    assert main([*arguments, "--resume"]) == 0
    for name in ("best.safetensors", "last.safetensors"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (options.output / name).read_bytes() == expected


def test_resume_without_a_run_begins_one(options: TrainOptions) -> None:
    assert train(replace(options, resume=True)).weights.exists()


def test_resume_with_other_options_names_them(options: TrainOptions) -> None:
    train(options)
    with pytest.raises(OptionError, match=r"lr was 2\.0, now 3\.0"):
        train(replace(options, lr=3.0, resume=True))


def test_a_finished_run_has_nothing_to_resume(options: TrainOptions) -> None:
    first = train(options)
    before = first.weights.read_bytes()
    assert train(replace(options, resume=True)).best == first.best
    assert first.weights.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"network": "resnet"}, {"noise": "salt:1"}, {"epochs": 0}, {"batch_size": 0}, {"lr": -1.0},
        {"schedule": "steps"}, {"validation_share": 1.0}, {"tiles": 0}, {"lr": float("nan")},
        {"clip_norm": -1.0}, {"versions": 1}, {"targets": "none"},
        {"optimizer": "lion"}, {"precision": "fp8"}, {"ema": 1.0}, {"gray_share": 1.5},
        {"checkpoint_minutes": -1.0}, {"seed": 20261231235959},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options: TrainOptions, change: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(change)).replace('_', '-')}"):
        replace(options, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", ["gaussian:25", "subpixel:2"])
def test_the_largest_seed_trains(options: TrainOptions, noise: str) -> None:
    large = replace(options, seed=LARGEST_SEED, noise=noise, tiles=4, tile_px=16, epochs=1)
    assert train(replace(large, batch_size=2)).weights.exists()


def test_the_command_trains_and_says_what_came_of_it(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    code = main(
        [
            str(photographs), "-o", str(output), "--noise", "gaussian:25", "--tiles", "32",
            "--validation-tiles", "4", "--epochs", "1", "--device", "cpu",
        ]
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0
    assert "best: epoch 1" in captured.out
    assert "to train on" in captured.err
    assert (output / "best.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["none"], 2), ([], 2), (["."], 1), (["--network", "x", "."], 2),
        (["--epochs", "x", "."], 2), (["--device", "tpu", "."], 2),
    ],
    ids=str,
)  # fmt: skip
def test_the_command_ends_with_the_documented_code(
    arguments: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert capsys.readouterr().err


def test_cuda_that_is_missing_ends_with_code_4(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [str(photographs), "-o", str(tmp_path / "run"), "--device", "cuda"]
    assert main(arguments) == 4
    assert not (tmp_path / "run").exists()


def test_low_precision_on_a_processor_is_refused(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(photographs), "-o", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, "--precision", "bf16"]) == 2
    assert "--precision bf16 on a processor" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
