"""Training a network that is told the noise level, and the estimator that will tell it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoise_batch.cli.train import main
from denoise_batch.kernels import OptionError
from denoise_batch.models import (
    Network,
    load_tensors,
    load_weights,
    save_weights,
)
from denoise_batch.progress import Progress
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.run_folder import ValidationResult
from denoise_batch.training.train import TrainStart, train


class StopAt(Progress[TrainStart, ValidationResult]):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, name: str, done: int, total: int) -> None:
        if done == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def options(photographs: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        data=photographs,
        output=tmp_path / "run",
        network="unet-level",
        noise="gaussian:0-55",
        targets="clean",
        loss="log",
        tiles=32,
        tile_px=48,
        validation_tiles=8,
        validation_share=0.3,
        epochs=2,
        batch_size=4,
        optimizer="muon",
        lr=2e-3,
        momentum=0.95,
        clip_norm=1.0,
        ema=0.8,
        device="cpu",
    )


@pytest.fixture
def restorer(tmp_path: Path) -> Path:
    """Untrained weights without an estimator."""
    network = Network("unet-level", 0.5, 0.25, torch.Generator().manual_seed(0))
    network.estimator = None
    save_weights(tmp_path / "restorer.safetensors", network, {"noise": "real", "seed": 5})
    return tmp_path / "restorer.safetensors"


def rows(folder: Path) -> Iterator[dict[str, float]]:
    yield from map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())


def largest_difference(first: Path, second: Path) -> float:
    one, other = load_tensors(first)[0], load_tensors(second)[0]
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_few_steps_lower_the_loss_and_beat_the_identity(options: TrainOptions) -> None:
    outcome = train(replace(options, epochs=3, lr=4e-3))
    first, *_, last = rows(options.output)
    assert last["training_loss"] < first["training_loss"] - 0.2
    assert outcome.best.validation_psnr > outcome.noisy_psnr + 1
    weights = load_weights(outcome.weights)
    assert weights.network.estimator is None  # it was not trained
    assert weights.training["loss"] == "log"


def test_a_killed_run_resumes_bit_for_bit(options: TrainOptions, tmp_path: Path) -> None:
    options = replace(options, tiles=12, tile_px=16, checkpoint_minutes=0.0)
    train(replace(options, output=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(options, StopAt(4))
    train(replace(options, resume=True))
    expected = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert (options.output / "last.safetensors").read_bytes() == expected


def test_the_estimator_learns_alone(options: TrainOptions, restorer: Path, tmp_path: Path) -> None:
    options = replace(
        options, init=str(restorer), estimator=True, loss="mse", optimizer="adamw", lr=4e-3
    )
    outcome = train(replace(options, epochs=30))
    losses = [row["training_loss"] for row in rows(options.output) if row["step"]]
    assert losses[-1] < 0.5 * losses[0]
    made, before = load_weights(outcome.weights), load_weights(restorer)
    restored = before.network.state_dict()
    found = made.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in restored.items())
    assert made.network.normalize.mean == before.network.normalize.mean
    assert (made.training["noise"], made.training["seed"]) == ("real", 5)
    assert made.training["estimator"]["noise"] == "gaussian:0-55"
    assert made.training["estimator"]["loss"] == "mse of √level"
    again = replace(options, init=str(outcome.weights), estimator=False, output=tmp_path / "again")
    train(replace(again, epochs=1))
    kept = load_weights(tmp_path / "again" / "last.safetensors")
    assert kept.training["estimator"] == made.training["estimator"]
    # It tells weak noise from strong.
    flat = torch.full((2, 3, 64, 64), 0.5)
    noise = torch.tensor([4.0, 45.0]).view(2, 1, 1, 1) / 255 * torch.randn(2, 3, 64, 64)
    network = load_weights(options.output / "last.safetensors").network
    levels = network.estimate_level(network.pad(flat + noise))
    assert levels is not None
    assert float(levels[1]) > 1.5 * float(levels[0])

    # Training the other layers on keeps it.
    more = replace(
        options, init=str(outcome.weights), estimator=False, output=tmp_path / "more", steps=1
    )
    kept = load_weights(train(more).weights).network
    assert kept.estimator is not None
    assert made.network.estimator is not None
    expected = made.network.estimator.state_dict()
    assert all(torch.equal(kept.estimator.state_dict()[k], v) for k, v in expected.items())


def test_an_estimator_s_killed_run_resumes_bit_for_bit(
    options: TrainOptions, restorer: Path, tmp_path: Path
) -> None:
    options = replace(options, init=str(restorer), estimator=True, tiles=12, checkpoint_minutes=0.0)
    train(replace(options, output=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(options, StopAt(4))
    train(replace(options, resume=True))
    expected = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert (options.output / "last.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"init": None}, "needs --init"), ({"network": "unet"}, "takes no noise level")],
    ids=["alone", "blind"],
)
def test_an_estimator_needs_a_network_to_tell(
    options: TrainOptions, restorer: Path, changes: dict[str, str], reason: str
) -> None:
    with pytest.raises(OptionError, match=f"--estimator.*{reason}"):
        replace(options, **{"init": str(restorer), "estimator": True, **changes})


def test_the_command_trains_both_one_after_the_other(photographs: Path, tmp_path: Path) -> None:
    common = [
        str(photographs), "--noise", "gaussian:0-55", "--targets", "clean", "--tiles", "4",
        "--tile-px", "16", "--validation-tiles", "2", "--steps", "2", "--batch-size", "2",
        "--optimizer", "muon", "-d", "cpu",
    ]  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*common, "--network", "unet-level", "--loss", "log", "-o", str(first)]) == 0
    init = ["--init", str(first / "best.safetensors"), "--estimator"]
    assert main([*common, *init, "-o", str(second)]) == 0
    assert load_weights(second / "best.safetensors").network.estimator is not None


def test_the_loss_has_no_effect_on_an_estimator(
    photographs: Path, restorer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(photographs), "--init", str(restorer), "--estimator", "--loss", "log"]
    assert main(command) == 2
    assert "--loss: has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["log", "mse"])
def test_the_best_weights_are_those_of_the_measure_that_the_loss_lowers(
    loss: str, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of strong noise alone, one error over all tiles tells nearly nothing of weak noise."""
    scores = iter(range(100))

    def rising_and_falling(*tiles: object) -> tuple[float, float]:
        score = next(scores)
        return 10.0 + score, 60.0 - score  # over all tiles, mean over tiles

    monkeypatch.setattr("denoise_batch.training.train.psnrs_of_tiles", rising_and_falling)
    outcome = train(replace(options, loss=loss, steps=9))
    assert outcome.best.number == (1 if loss == "log" else next(scores) - 1)


@pytest.mark.parametrize(("sigma", "exact"), [(60, (0.2, 0.6)), (2, (0.0, 0.1))])
def test_levels_are_told_roughly_and_weak_ones_mostly_too_high(
    sigma: int, exact: tuple[float, float], options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tensor] = []
    set_level = Network.set_level

    def watched(self: Network, level: Tensor | None) -> None:
        assert level is not None
        if self.training:
            told.append(level)
        set_level(self, level)

    monkeypatch.setattr(Network, "set_level", watched)
    noise = f"gaussian:{sigma}"
    train(replace(options, noise=noise, tile_px=16, batch_size=32, tiles=96, epochs=1))
    levels = torch.cat(told) * 255 - sigma
    is_exact = levels.abs() < 1e-3
    assert exact[0] <= is_exact.float().mean() <= exact[1]
    rough = levels[~is_exact]
    if sigma == 2:
        assert (rough > 1).float().mean() > 0.6
        assert 0.02 < (rough > 15).float().mean() < 0.15  # as estimates of hatched drawings are
    else:
        assert (rough < -5).float().mean() > 0.1
        assert (rough > 0).float().mean() > 0.5


def test_an_earlier_release_s_run_resumes(options: TrainOptions) -> None:
    """Its config.json knows neither --loss nor --estimator."""
    options = replace(options, network="tconv", loss="mse", tile_px=16)
    with pytest.raises(KeyboardInterrupt):
        train(options, StopAt(10))
    config = options.output / "config.json"
    found = json.loads(config.read_text())
    del found["loss"], found["estimator"]
    config.write_text(json.dumps(found))
    train(replace(options, resume=True))


def test_two_shots_of_a_scene_tell_their_level(options: TrainOptions, tmp_path: Path) -> None:
    """Without clean images the level is that of the shots' difference."""
    options = replace(options, targets="noisy", loss="mse", tiles=8, tile_px=16, epochs=1)
    outcome = train(replace(options, output=tmp_path / "noisy"))
    assert outcome.best.validation_psnr > 0


def torchrun(arguments: list[str]) -> None:
    """Train with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "-m", "denoise_batch.training", *arguments]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}
    subprocess.run(
        command, env=kept | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=300
    )


@pytest.mark.slow
def test_two_processes_train_as_one_does(options: TrainOptions, tmp_path: Path) -> None:
    flags = [
        str(options.data), "--network", "unet-level", "--noise", "gaussian:0-55", "--targets",
        "clean", "--loss", "log", "--tiles", "8", "--tile-px", "16", "--validation-tiles", "3",
        "--epochs", "1", "--batch-size", "4", "--optimizer", "adamw", "-d", "cpu",
    ]  # fmt: skip
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert main([*flags, "-o", str(whole)]) == 0
    torchrun([*flags, "-o", str(shared)])
    assert largest_difference(whole / "last.safetensors", shared / "last.safetensors") < 1e-4
    init = ["--init", str(whole / "last.safetensors"), "--estimator"]
    flags.remove("--loss")
    flags.remove("log")
    assert main([*flags, *init, "-o", f"{whole}-estimator"]) == 0
    torchrun([*flags, *init, "-o", f"{shared}-estimator"])
    pair = (Path(f"{folder}-estimator") / "last.safetensors" for folder in (whole, shared))
    assert largest_difference(*pair) < 1e-4
