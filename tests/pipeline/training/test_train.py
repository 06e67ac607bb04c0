"""Training: what a run leaves behind, that it learns, and that it is reproducible."""

import itertools
import json
import os
import re
import shutil
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
from matplotlib.figure import Figure
from PIL import Image

from denoise_batch.cli.train import main
from denoise_batch.cli.training_bar import training_bar
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
from denoise_batch.training.run_folder import RunFolder, TrainingState, ValidationResult
from denoise_batch.training.train import TrainStart, train


class Recorder(Progress[TrainStart, ValidationResult]):
    """Remembers what a run reports; interrupts it after a step, if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.starts: list[TrainStart] = []
        self.steps: list[tuple[int, int]] = []
        self.results: list[ValidationResult] = []
        self.were_deterministic: list[bool] = []

    def on_start(self, start: TrainStart) -> None:
        self.starts.append(start)

    def on_step(self, name: str, done: int, total: int) -> None:
        self.steps.append((done, total))
        self.were_deterministic.append(torch.are_deterministic_algorithms_enabled())
        if done == self.stop_at:
            raise KeyboardInterrupt

    def on_result(self, result: ValidationResult) -> None:
        self.results.append(result)


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
    others = {"config.json", "metrics.jsonl", "model-card.md", "curves.png", "samples.png"}
    assert files == others | weights
    with Image.open(options.output / "samples.png") as samples:
        assert samples.size == (3 * 128 + 8, 6 * 128 + 20)
        columns = [samples.crop((132 * i, 0, 132 * i + 128, 128)) for i in range(3)]
    assert len({column.tobytes() for column in columns}) == 3
    with Image.open(options.output / "curves.png") as curves:
        assert curves.width > 1000
    rows = list(map(json.loads, (options.output / "metrics.jsonl").read_text().splitlines()))
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert max(row["validation_psnr"] for row in rows) == outcome.best.validation_psnr
    config = json.loads((options.output / "config.json").read_text())
    assert config["noise"] == "gaussian:25"
    loaded = load_weights(outcome.weights)
    assert loaded.training["step"] == outcome.best.step
    assert loaded.training["noise"] == "gaussian:25"
    assert loaded.network.architecture == "tconv"


def test_without_matplotlib_a_run_has_no_curves(options: TrainOptions) -> None:
    train(options)
    assert not (options.output / "curves.png").exists()
    assert (options.output / "samples.png").exists()


@pytest.mark.usefixtures("curves")
@pytest.mark.parametrize("loss", ["mse", "log", "estimator"])
def test_curves_name_their_loss(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log loss may be negative, and is no validation error."""
    figures = []

    def watched(*arguments: object, **options: object) -> Figure:
        figures.append(Figure(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr("matplotlib.figure.Figure", watched)
    rows = [{"step": step, "training_loss": 1 - step, "validation_psnr": 30.0} for step in (1, 2)]
    assert run_folder.draw_curves(tmp_path / "curves.png", rows, 20.0, loss)
    losses, _ = figures[0].axes
    assert (losses.get_ylabel() == "mean squared error") == (loss == "mse")
    assert losses.get_yscale() == ("log" if loss == "mse" else "linear")
    assert len(losses.lines) == (2 if loss == "mse" else 1)


@pytest.mark.usefixtures("curves")
def test_curves_are_drawn_now_and_then_and_at_the_end(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    draw = run_folder.draw_curves

    def count(path: Path, rows: Sequence[dict[str, Any]], noisy_psnr: float, loss: str) -> bool:
        drawn.append([row["step"] for row in rows])
        return draw(path, rows, noisy_psnr, loss)

    monkeypatch.setattr(run_folder, "draw_curves", count)
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: 100.0))
    train(replace(options, epochs=4))
    assert drawn == [[2, 4, 6, 8, 10, 12, 14, 16]]

    stopped = replace(options, output=options.output / "stopped", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Recorder(stop_at=10))
    assert drawn[1:] == [[2, 4, 6, 8]]
    assert (stopped.output / "curves.png").exists()

    ticks = itertools.count(step=25.0)
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    train(replace(stopped, resume=True))
    whole = [2, 4, 6, 8, 10, 12, 14, 16]
    assert drawn[2:] == [whole[:5], whole[:6], whole[:7], whole]


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


@pytest.mark.usefixtures("curves")
def test_the_weights_that_a_run_starts_from_are_its_first_candidate(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training that makes them worse leaves them as the best, and says so."""
    init = find_weights("tconv")
    command = [str(options.data), "--noise", "gaussian:25", "--init", "tconv", "-d", "cpu"]
    short = ["--steps", "3", "--tiles", "16", "--validation-tiles", "8"]
    worse = tmp_path / "worse"
    assert main([*command, *short, "--lr", "50", "--clip-norm", "1", "-o", str(worse)]) == 0
    said = capsys.readouterr()
    first, *later = _rows(worse)
    assert (first["number"], first["step"], first["epoch"], first["lr"]) == (1, 0, 0.0, 0.0)
    assert first["training_loss"] is None
    assert first["is_best"]
    assert not any(row["is_best"] for row in later)
    assert max(row["validation_psnr"] for row in later) < first["validation_psnr"]
    kept, start = load_tensors(worse / "best.safetensors")[0], load_tensors(init)[0]
    assert all(torch.equal(kept[name], start[name]) for name in start)
    assert load_weights(worse / "best.safetensors").training["step"] == 0
    assert re.search(r"^step 0, --init tconv as it is: validation \S+ dB \(\+", said.err, re.M)
    assert said.out.startswith("best: step 0 ")
    assert "tile), +0.00 (+0.00) dB over the start: " in said.out
    assert "warning: training improved nothing: best.safetensors holds" in said.err
    assert "worse" not in said.err
    card = (worse / "model-card.md").read_text()
    assert re.search(r"^\| 0 \| 0\.00 \| – \| \*\*", card, re.M)
    assert "Training improved nothing" in card
    assert (worse / "curves.png").exists()


def test_a_run_says_what_it_gained_over_the_weights_that_it_started_from(
    options: TrainOptions, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(options.data), "--noise", "gaussian:50", "--init", str(weights), "-d", "cpu"]
    short = ["--steps", "96", "--tiles", "512", "--validation-tiles", "8"]
    assert main([*command, *short, "-o", str(options.output)]) == 0
    said = capsys.readouterr()
    start, *scores = [row["validation_psnr"] for row in _rows(options.output)]
    gain = max(scores) - start
    assert gain > 1
    assert re.search(rf"tile\), \+{gain:.2f} \(\+\S+\) dB over the start: ", said.out)
    assert "warning" not in said.err
    assert "Training improved nothing" not in (options.output / "model-card.md").read_text()


@pytest.mark.parametrize("loss", ["mse", "log"])
def test_weights_that_make_noisy_tiles_worse_are_not_passed_off_as_good(
    options: TrainOptions, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(options.data), "--noise", "gaussian:2", "--loss", loss, "-d", "cpu"]
    short = ["--steps", "2", "--tiles", "16", "--validation-tiles", "8"]
    assert main([*command, *short, "-o", str(options.output)]) == 0
    said = capsys.readouterr().err
    assert re.search(r"warning: the best weights make noisy tiles worse, by \d+\.\d\d dB", said)
    card = (options.output / "model-card.md").read_text()
    assert "make noisy tiles worse" in card


def test_progress_receives_the_start_every_step_and_validation(options: TrainOptions) -> None:
    recorder = Recorder()
    outcome = train(options, recorder)
    (start,) = recorder.starts
    assert start.counts.training + start.counts.validation == 10
    assert start.noisy_psnr == outcome.noisy_psnr
    assert recorder.steps == [(step, 8) for step in range(1, 9)]
    assert (start.tiles, start.step, start.steps, start.best) == (64, 0, 8, None)
    assert [result.step for result in recorder.results] == [2, 4, 6, 8]
    assert recorder.results[-1].lr < options.lr / 2


def test_a_run_may_be_measured_in_steps(options: TrainOptions) -> None:
    recorder = Recorder()
    train(replace(options, steps=6), recorder)
    results = recorder.results
    assert [result.step for result in results] == [2, 4, 6]
    assert results[-1].lr < 0.1 * options.lr  # the cosine ends with the steps
    assert all(result.images_per_s > 0 for result in results)


def test_a_run_may_be_measured_in_minutes(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=0.05)  # between two looks at the clock: a step takes as long
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0)
    monkeypatch.setattr("denoise_batch.training.train.time", clock)
    recorder = Recorder()
    train(replace(options, minutes=0.01), recorder)
    results = recorder.results
    # A twentieth of a second for each step and each wait for the device.
    assert 0.6 <= sum(result.seconds for result in results) < 0.75
    assert [result.step for result in results] == [2, 4, 6, 8]
    assert results[-1].lr < 0.1 * options.lr


@pytest.mark.parametrize(
    ("steps", "tiles", "warmup_epochs", "rising"),
    [
        (20, 50_000, 0.2, [0, 1 / 2]),  # 625 steps, if the run were long enough
        (20, 50_000, 0, []),
        (40, 160, 0.3, [0, 1 / 3, 2 / 3]),
    ],
)
def test_the_rate_rises_for_a_tenth_of_a_run_at_most(
    options: TrainOptions, steps: int, tiles: int, warmup_epochs: float, rising: list[float]
) -> None:
    recorder = Recorder()
    size = {"tiles": tiles, "tile_px": 8, "validation_tiles": 1}  # validates after every step
    train(replace(options, steps=steps, warmup_epochs=warmup_epochs, **size), recorder)
    rates = [result.lr / options.lr for result in recorder.results]
    assert rates[: len(rising)] == pytest.approx([(share + 0.01) / 1.01 for share in rising])
    falling = rates[len(rising) :]
    assert falling[0] == 1
    assert falling == sorted(falling, reverse=True)
    assert len(rates) == steps


def test_the_rate_rises_for_a_tenth_of_some_minutes_at_most(options: TrainOptions) -> None:
    class Steady(ProcessGroup):
        def broadcast_time(self, seconds: float) -> float:
            return 1.0  # for every step, and for the wait before every validation

    recorder = Recorder()
    size = {"tiles": 50_000, "tile_px": 8, "validation_tiles": 1}
    train(replace(options, minutes=1, **size), recorder, Steady())
    rates = {result.step: result.lr / options.lr for result in recorder.results}
    assert rates[2] == pytest.approx((1 / 6 + 0.01) / 1.01)
    assert rates[4] == pytest.approx((4 / 6 + 0.01) / 1.01)
    assert 0.9 < rates[6] < 1
    assert rates[max(rates)] < 0.01


def test_every_second_is_one_of_the_first_process_s_clock(options: TrainOptions) -> None:
    class Steady(ProcessGroup):
        def broadcast_time(self, seconds: float) -> float:
            return 1.0

    recorder = Recorder()
    train(options, recorder, Steady())
    # Two steps and the wait for the device.
    assert [result.seconds for result in recorder.results] == [3.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("batch_size", "validation_tiles", "steps", "expected"),
    [
        (16, 8, 100, list(range(2, 101, 2))),  # 2 % of the run
        (4, 9, 20, [7, 14, 20]),  # a tenth of its time
        (4, 400, 10, [10]),
    ],
)
def test_a_run_in_steps_validates_at_the_same_steps_every_time(
    options: TrainOptions, batch_size: int, validation_tiles: int, steps: int, expected: list[int]
) -> None:
    length = {"steps": steps, "batch_size": batch_size, "validation_tiles": validation_tiles}
    recorder = Recorder()
    train(replace(options, tile_px=8, **length), recorder)
    assert [result.step for result in recorder.results] == expected


class SlowClock(ProcessGroup):
    """Every step takes two seconds and a half."""

    def broadcast_time(self, seconds: float) -> float:
        return 2.5


def test_a_long_run_is_looked_at_after_ten_seconds(options: TrainOptions, tmp_path: Path) -> None:
    """The first look follows the clock, so it never decides which weights are the best."""
    options = replace(options, steps=24, validation_tiles=32, tile_px=16)
    first = Recorder()
    outcome = train(options, first, SlowClock())
    assert [result.step for result in first.results] == [4, 6, 12, 18, 24]
    assert not first.results[0].is_best
    assert (options.output / "samples.png").exists()
    calm = Recorder()
    expected = train(replace(options, output=tmp_path / "calm"), calm)
    assert [result.step for result in calm.results] == [6, 12, 18, 24]
    for name in ("best", "last"):
        ours, theirs = (load_tensors(run.weights.with_stem(name))[0] for run in (outcome, expected))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    exact = Recorder()
    exact_options = replace(options, output=tmp_path / "exact", deterministic=True)
    train(exact_options, exact, SlowClock())
    assert [result.step for result in exact.results] == [6, 12, 18, 24]
    short = Recorder()  # a look would take more than a tenth of it
    train(replace(options, output=tmp_path / "short", steps=5), short, SlowClock())
    assert [result.step for result in short.results] == [5]


def test_a_run_in_minutes_validates_by_its_clock(
    options: TrainOptions,
) -> None:
    recorder = Recorder()
    train(replace(options, minutes=5, validation_tiles=10, tile_px=16), recorder, SlowClock())
    # Two per cent are 6 seconds, which every third step reaches.
    steps = [result.step for result in recorder.results]
    assert steps[0] == 3
    assert {later - step for step, later in itertools.pairwise(steps[:-1])} == {3}
    assert any(result.is_best for result in recorder.results)


def test_how_often_a_run_validates_changes_nothing_in_its_weights(options: TrainOptions) -> None:
    often = replace(options, ema=0.9, optimizer="adamw", lr=1e-3, tiles=40, epochs=3, tile_px=16)
    train(often)
    recorder = Recorder()
    train(replace(often, output=options.output / "other", validation_tiles=100), recorder)
    assert [result.step for result in recorder.results] == [9]
    one, other = (
        load_tensors(folder / "last.safetensors")[0]
        for folder in (options.output, options.output / "other")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


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


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(
    "name", ["samples.png", "checkpoint.safetensors", "model-card.md", "thesis.docx"]
)
def test_files_of_other_origin_are_never_overwritten(
    options: TrainOptions, name: str, is_resumed: bool
) -> None:
    options.output.mkdir()
    (options.output / name).write_text("mine")
    with pytest.raises(OptionError, match=f"holds {re.escape(name)}, but no training run"):
        train(replace(options, resume=is_resumed, data=Path("misspelled")))
    assert {path.name: path.read_text() for path in options.output.iterdir()} == {name: "mine"}


def test_what_systems_leave_in_a_folder_does_not_fill_it(options: TrainOptions) -> None:
    options.output.mkdir()
    (options.output / ".DS_Store").touch()
    assert train(replace(options, steps=1)).weights.exists()


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "{}", "null"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_another_program_s_configuration_is_no_run(
    options: TrainOptions, content: str, is_resumed: bool
) -> None:
    options.output.mkdir()
    (options.output / "config.json").write_text(content)
    with pytest.raises(OptionError, match=r"config\.json: is no training run's; choose a new"):
        train(replace(options, resume=is_resumed))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([".", "-o", ""], "--output"),
        (["", "-o", "x"], "DATA"),
        ([".", "-o", "x", "--pairs", ""], "--pairs"),
    ],
    ids=str,
)
def test_an_empty_path_is_not_the_current_folder(
    arguments: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "is empty; name a folder" in said
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("chosen", "recipe"),
    [
        (["--network", "unet"], ("muon", 64, 0.99, 1e-3)),
        (["--init", "unet-level-10"], ("muon", 64, 0.99, 1e-3)),
        (["--network", "unet", "--optimizer", "sgd", "--ema", "0"], ("sgd", 64, 0.0, 0.1)),
        ([], ("sgd", 32, 0.0, 4.0)),
    ],
)
def test_a_u_net_learns_own_shots_with_muon(
    photographs: Path, tmp_path: Path, chosen: list[str], recipe: tuple[str, int, float, float]
) -> None:
    short = ["--tiles", "2", "--validation-tiles", "1", "--steps", "1", "--batch-size", "2"]
    second = tmp_path / "second"
    shutil.copytree(photographs, second)
    for path in filter(Path.is_file, second.rglob("*")):
        with Image.open(path) as image:
            image.point(lambda value: value ^ 1).save(path)  # no copies, which are refused
    command = [str(photographs), "--pairs", str(second), *short, "--device", "cpu"]
    assert main([*command, *chosen, "-o", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    names = ("optimizer", "tile_px", "ema", "lr")
    assert tuple(config[name] for name in names) == recipe


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
    assert config["network"] == load_weights(find_weights(None)).network.architecture
    still = ["--steps", "1", "--lr", "1e-12", "-o", str(tmp_path / "still")]
    assert main([*command, *short, *still]) == 0
    rows = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("run", "still")
    ]
    assert rows[0]["validation_psnr"] > rows[1]["validation_psnr"] - 0.5


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw-ema": {"optimizer": "adamw", "lr": 1e-3, "ema": 0.9},
    "muon": {"optimizer": "muon", "lr": 1e-3},
    "init": {"init": "tconv", "lr": 0.01},
    "subpixel": {"noise": "subpixel:2", "shuffle": False},
    "real": {"noise": "real", "targets": "clean", "gray_share": 0.3, "graphics_share": 0.3,
             "framed_share": 0.3},
}  # fmt: skip


def test_real_noise_brings_gray_and_drawn_tiles_unless_told_otherwise(
    photographs: Path, tmp_path: Path
) -> None:
    command = [str(photographs), "--noise", "real", "--steps", "2", "--tiles", "16", "-d", "cpu"]
    command += ["--validation-tiles", "2", "--validation-share", "0.3"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["gray_share"], config["graphics_share"]) == (0.12, 0.12)
    assert config["framed_share"] == 0.15
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
    # In the first epoch, at its end, where a validation is due, and near the end; for every other
    # recipe once, where optimiser and average hold most.
    places = {"sgd": (1, 5, 6, 11), "init": (1, 11)}.get(recipe, (11,))
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
    """Of an earlier release, which did not tell what files it began with."""
    _stopped(options, 6)
    config = json.loads((options.output / "config.json").read_text())
    del config["data_files"]
    (options.output / "config.json").write_text(json.dumps(config))
    before = load_weights(options.output / "last.safetensors").network.normalize
    for number in range(8):
        Image.new("RGB", (128, 128), (250,) * 3).save(photographs / f"white {number}.png")
    train(replace(options, resume=True))
    after = load_weights(options.output / "last.safetensors").network.normalize
    assert (after.mean, after.std) == (before.mean, before.std)


@pytest.mark.parametrize("change", ["removed", "added", "renamed", "redrawn"])
def test_a_run_does_not_go_on_with_other_photographs(
    options: TrainOptions, photographs: Path, change: str
) -> None:
    _stopped(options, 6)
    before = {path.name: path.read_bytes() for path in options.output.iterdir()}
    victim, *_, other = sorted(photographs.rglob("*.png"))
    if change == "removed":
        victim.unlink()
    elif change == "added":
        shutil.copy(victim, photographs / "added.png")
    elif change == "renamed":
        victim.rename(victim.with_stem("renamed"))
    else:
        shutil.copy(other, victim)
    count = {"removed": 9, "added": 11}.get(change, 10)
    said = rf"began \(were 10 files of .*, now {count} files of .*\); restore them, or .* --init"
    with pytest.raises(OptionError, match=said):
        train(replace(options, resume=True))
    assert {path.name: path.read_bytes() for path in options.output.iterdir()} == before


def test_a_run_goes_on_with_photographs_that_were_moved(
    options: TrainOptions, photographs: Path, tmp_path: Path
) -> None:
    _stopped(options, 6)
    (photographs / "notes.txt").write_text("no photograph")
    photographs.rename(tmp_path / "moved")
    assert train(replace(options, data=tmp_path / "moved", resume=True)).best.step


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


def test_a_checkpoint_of_another_network_says_how_to_go_on(options: TrainOptions) -> None:
    train(options)
    path = options.output / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    del tensors["network.0.bias"]
    save_tensors(path, tensors, header)
    with pytest.raises(TrainingError, match=r"another network .* --init .*best\.safetensors"):
        train(replace(options, resume=True))


def test_a_checkpoint_of_an_earlier_release_resumes_too(
    options: TrainOptions, tmp_path: Path
) -> None:
    """It validated after every epoch, and the oldest tell neither standardisation nor rate."""
    train(replace(options, output=tmp_path / "whole"))
    _stopped(options, 6)
    path = options.output / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    lacking = ("lr", "mean", "std", "validations", "validated_step")
    header = {name: value for name, value in header.items() if name not in lacking}
    del header["best"]["epoch"]
    header["best"] |= {"number": 1, "step": 4, "validation_psnr": 99.0}
    save_tensors(path, tensors, {**header, "epochs": 1, "epoch_start": 4})
    rows = (options.output / "metrics.jsonl").read_text().splitlines()
    old = {name: value for name, value in json.loads(rows[1]).items() if name != "epoch"}
    (options.output / "metrics.jsonl").write_text(json.dumps({**old, "number": 1}) + "\n")
    recorder = Recorder()
    outcome = train(replace(options, resume=True), recorder)
    assert [result.step for result in recorder.results] == [6, 8]
    assert (outcome.best.step, outcome.best.epoch) == (4, 1.0)
    assert [row["step"] for row in _rows(options.output)] == [4, 6, 8]
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

    def step_and_signal(self: Adam, *numbers: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(number)
        step(self, *numbers)

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

    def step_and_signals(self: Adam, *numbers: Any) -> None:
        nonlocal steps
        steps += 1
        step(self, *numbers)
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
    assert re.match(r"best: step [24] \(epoch \S+\), 20\.\d\d → ", captured.out)
    lines = captured.err.splitlines()
    assert re.match("tconv, fp32 on .*: ", lines[0])
    assert re.match(r"\d+ to train on, \d+ to validate on; noisy validation tiles: 20", lines[1])
    assert lines[2] == "4 steps, 8 tiles a step, 32 an epoch"
    assert re.match(r"step 2 \(epoch 0\.50\): training loss .* dB \([-+]\d+\.\d\d\), lr", lines[3])
    assert lines[4].startswith("step 4 (epoch 1.00)")
    card = (output / "model-card.md").read_text()
    assert f"`denoise-train {photographs} --tiles 32 --validation-tiles 4 --noise" in card
    assert len(re.findall(r"^\| [24] \| ", card, re.MULTILINE)) == 2
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


def test_resume_says_where_it_goes_on(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        str(photographs), "-o", str(tmp_path / "run"), "--noise", "gaussian:25", "--tiles", "32",
        "--validation-tiles", "4", "--epochs", "2", "--device", "cpu", "--no-augment",
    ]  # fmt: skip
    assert main([*command, "--resume"]) == 0
    assert "nothing to resume here: a new run begins" in capsys.readouterr().err
    assert "--resume" not in (tmp_path / "run" / "model-card.md").read_text()
    assert "--no-augment" in (tmp_path / "run" / "model-card.md").read_text()
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"goes on after step 8 \(epoch 2\.00\); best so far: \S+ dB at step \d", said)
    assert "\nstep" not in said


@pytest.mark.parametrize(
    ("lost", "start"), [("checkpoint", "best"), ("best", "last")], ids=["checkpoint", "best"]
)
def test_a_run_that_lost_a_file_is_not_begun_anew(
    photographs: Path, tmp_path: Path, lost: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        str(photographs), "-o", str(tmp_path / "run"), "--noise", "gaussian:25", "--tiles", "32",
        "--validation-tiles", "4", "--epochs", "1", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    (tmp_path / "run" / f"{lost}.safetensors").unlink()
    kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert main([*command, "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"{lost}.safetensors is missing" in said
    assert f"{start}.safetensors" in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept


def test_a_stop_before_anything_is_saved_promises_nothing(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("denoise_batch.training.train.load_data", stopped)
    assert main([str(photographs), "-o", str(tmp_path / "run"), "-d", "cpu"]) == 130
    said = capsys.readouterr().err
    assert said.endswith("stopped; nothing is saved yet\n")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device"), 1, "run: No space left on device; mend it"),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "use a smaller --batch-size (now 8)"),
    ],
    ids=["disk", "memory"],
)
def test_a_full_disk_and_full_memory_are_errors_of_one_line(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    words: str,
) -> None:
    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(RunFolder, "record", full)
    command = [str(photographs), "-o", str(tmp_path / "run"), "--noise", "gaussian:25"]
    short = ["--tiles", "16", "--validation-tiles", "4", "--steps", "2", "-d", "cpu"]
    assert main([*command, *short]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "It knows `gaussian:25`."),
        ({"targets": "clean"}, "the target is the clean tile"),
        ({"network": "unet-level", "lr": 0.1}, "cannot estimate it: give `--noise-level`"),
    ],
    ids=str,
)
def test_the_model_card_says_what_the_weights_are_and_their_limits(
    options: TrainOptions, changes: dict[str, Any], words: str
) -> None:
    small = replace(options, tile_px=16, tiles=32, **changes)
    outcome = train(small)
    card = (options.output / "model-card.md").read_text()
    assert words in card
    assert f"Network `{small.network}`" in card
    assert f"clean photographs in `{options.data}`" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len((options.output / "metrics.jsonl").read_text().splitlines())
    (best,) = [row for row in rows if "**" in row]
    assert best.startswith(f"| {outcome.best.step} |")
    assert "Command" not in card


def test_a_terminal_shows_the_tiles_and_keeps_nothing_of_a_bar_that_failed(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with training_bar(options) as progress:
        train(options, progress)
    said = capsys.readouterr().err
    assert said.count("▀") == 2 * 74 * 12
    assert "clean | noisy | output" in said
    assert "\x1b[38;2;" in said

    missing = replace(options, data=Path("misspelled"), output=options.output / "other")
    with pytest.raises(OptionError), training_bar(missing) as progress:
        train(missing, progress)
    said = capsys.readouterr().err
    assert said.endswith("\x1b[1A\x1b[2K")  # the line of the bar is erased

    monkeypatch.setenv("COLORTERM", "")
    plain = replace(options, output=options.output / "plain")
    with training_bar(plain) as progress:
        train(plain, progress)
    assert "▀" not in capsys.readouterr().err
