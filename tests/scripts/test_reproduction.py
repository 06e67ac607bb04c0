"""scripts/reproduction: initialisation, data, runs that resume, the document."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pictures import picture

from denoise_batch.kernels import Conv2d, ConvTranspose2d, ReLU, Sequential, UpsampleConv2d

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "reproduction"


@pytest.fixture(autouse=True)
def _siblings_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """These folders are no packages: their files import each other by their bare names."""
    for name in ("benchmarks", "data"):
        monkeypatch.syspath_prepend(str(ROOT / "scripts" / name))
    monkeypatch.syspath_prepend(str(FOLDER))


def sibling(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("architecture", ["tconv", "upsample", "unet-8"])
def test_torch_starts_from_the_same_network(architecture: str) -> None:
    recipe = sibling("config").Recipe(architecture)
    ours = sibling("config").layers(recipe)
    peer = sibling("torch_networks").torch_equivalent(sibling("config").layers(recipe))
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(image), peer(image).detach(), rtol=0, atol=1e-6)


def test_multiply_adds_are_those_of_the_convolutions() -> None:
    count = sibling("cost").multiply_adds
    assert count(Sequential(Conv2d(3, 8, 3, padding=1), ReLU())) == 3 * 8 * 9
    assert count(ConvTranspose2d(3, 4, 2, stride=2)) == 3 * 4 * 4
    assert count(UpsampleConv2d(2, 3, 5, 3, padding=1)) == 4 * 3 * 5 * 9


def test_he_keeps_the_deviation_through_every_layer() -> None:
    config = sibling("config")
    generator = torch.Generator().manual_seed(0)
    for block in (Conv2d(48, 64, 3), ConvTranspose2d(48, 24, 4, stride=2)):
        config.initialise(block, "he", generator)
        # ReLU's output of unit normal numbers has a mean square of 1/2, which He's factor undoes.
        input = torch.randn(4, 48, 24, 24, generator=generator).relu()
        inner = block(input)[:, :, 4:-4, 4:-4]
        assert inner.square().mean().item() == pytest.approx(1.0, rel=0.15)


def test_the_course_papers_initialisation_has_its_bounds() -> None:
    config = sibling("config")
    block = ConvTranspose2d(48, 24, 3, stride=2)
    config.initialise(block, "report", torch.Generator().manual_seed(0))
    bound = 1 / (2 * 48 * 3) ** 0.5
    for value in block.parameters():
        assert 0.8 * bound < value.abs().max().item() <= bound


@pytest.fixture
def dataset() -> Any:
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(256, (3, 10, 3, 32, 32), generator=generator, dtype=torch.uint8)
    clean = torch.rand(4, 3, 32, 32, generator=generator)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    return sibling("dataset").Dataset(*tiles, noisy, clean, (1, 1))


def test_a_longer_run_goes_on_where_the_shorter_one_ended(dataset: Any, tmp_path: Path) -> None:
    training = sibling("training")
    recipe = sibling("config").Recipe("tconv", momentum=0.9, is_shuffled=True)

    def train(steps: int, records: int, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = training.train(
            recipe, dataset, steps, records, folder / "run.safetensors"
        )
        return found

    train(4, 2, tmp_path / "two")
    longer = train(8, 4, tmp_path / "two")
    whole = train(8, 4, tmp_path / "one")
    assert [row["step"] for row in longer["rows"]] == [0, 2, 4, 6, 8]
    for row, expected in zip(longer["rows"], whole["rows"], strict=True):
        assert row["psnr"] == expected["psnr"]
        assert row["gradients"] == expected["gradients"]


def test_a_run_with_another_schedule_starts_anew(dataset: Any, tmp_path: Path) -> None:
    training = sibling("training")
    recipe = sibling("config").Recipe("upsample", schedule="cosine")
    training.train(recipe, dataset, 4, 1, tmp_path / "run.safetensors")
    anew = training.train(recipe, dataset, 6, 1, tmp_path / "run.safetensors")
    whole = training.train(recipe, dataset, 6, 1, tmp_path / "other.safetensors")
    assert anew["rows"][-1]["psnr"] == whole["rows"][-1]["psnr"]


@pytest.mark.parametrize("noise", ["gaussian:25", "bernoulli:0.5", "subpixel:8"])
def test_noisy_and_clean_targets_have_the_same_inputs(noise: str, dataset: Any) -> None:
    config, data = sibling("config"), sibling("training").Data
    chunks = [
        data(config.Recipe("tconv", noise=noise, targets=targets), dataset).chunk(2, 3)
        for targets in ("noisy", "clean")
    ]
    (noisy_input, noisy_target), (clean_input, clean_target) = chunks
    assert torch.equal(noisy_input, clean_input)
    assert not torch.equal(noisy_target, clean_target)
    order = torch.arange(8, 20) % 10  # sequential, without replacement, epoch after epoch
    assert torch.equal(clean_target, dataset.clean[order].float() / 255)


def test_everyone_is_compared_on_what_bm3d_has_done() -> None:
    tables = sibling("tables")
    errors = {"noisy": {"a": 0.1, "b": 0.1}, "tconv": {"a": 0.01, "b": 0.1}, "NLM": {"a": 0.01}}
    alone = tables.common_psnrs({"mse": errors | {"BM3D": {}}})
    assert alone == pytest.approx({"noisy": 10.0, "tconv": 15.0})
    beside = tables.common_psnrs({"mse": errors | {"BM3D": {"a": 0.001}}})
    assert beside == pytest.approx({"noisy": 10.0, "tconv": 20.0, "BM3D": 30.0})


def test_a_longer_run_of_the_same_recipe_stands(dataset: Any, tmp_path: Path) -> None:
    scale, folders = sibling("config").SCALES["tiny"], (tmp_path / "work", tmp_path / "out")
    reproduction = sibling("reproduction").Reproduction(scale, tmp_path, None, None, *folders)
    reproduction.__dict__["dataset"] = dataset  # instead of the cached property's
    recipe = sibling("config").Recipe("tconv")
    assert reproduction.run("stage", "run", recipe, 4, 1)
    before = reproduction.result("stage")
    assert not reproduction.run("stage", "run", recipe, 2, 1)
    assert reproduction.result("stage") == before
    assert reproduction.run("stage", "run", recipe, 6, 1)
    assert reproduction.result("stage")["runs"]["run"]["steps"] == 6


def reproduce(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_one_command_runs_every_stage_and_writes_the_document(tmp_path: Path) -> None:
    corpus, work = tmp_path / "corpus", tmp_path / "work"
    corpus.mkdir()
    for number in range(8):
        picture(280, 260, number).save(corpus / f"{number}.png")
    done = reproduce(corpus, "--scale", "tiny", "--work", work)
    assert done.returncode == 0, done.stderr

    output = work / "tiny"
    found = {file.stem for file in (output / "reproduction" / "results").glob("*.json")}
    stages = {
        "report",
        "repaired",
        "gradients",
        "ablation",
        "noise2noise",
        "parity",
        "cost",
        "protocol",
        "slow",
    }
    assert stages <= found
    figures = {file.name for file in (output / "reproduction").iterdir() if file.is_file()}
    assert figures == {"figure-1.svg", "figure-2.png", "figure-3.png", "gradients.svg"}
    text = (output / "reproduction.md").read_text()
    assert "$" not in text
    for name in figures:
        assert f"(reproduction/{name})" in text
    parity = json.loads((output / "reproduction" / "results" / "parity.json").read_text())
    assert parity["single"]["relative"] < 1e-5
    assert parity["double"]["relative"] < 1e-12
    assert f"{parity['single']['psnr']['torch']:.3f}" in text

    again = reproduce(corpus, "--scale", "tiny", "--work", work, "--only", "report,ablation")
    assert again.returncode == 0
    assert "steps" not in again.stdout  # nothing is trained twice


def test_wrong_usage_is_an_error(tmp_path: Path) -> None:
    stage = reproduce(tmp_path, "--only", "nonsense")
    assert stage.returncode == 2
    assert "nonsense" in stage.stderr
    missing = reproduce(tmp_path / "none", "--only", "report")
    assert missing.returncode == 2
    assert "none" in missing.stderr


def test_the_courses_interface_does_what_its_test_asks() -> None:
    """As the course's test calls it: uint8 tiles, floats of 0 … 255, blocks beside the model."""
    module = sibling("model")

    def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
        assert output.shape == target.shape
        error = (output.float() / 255 - target.float() / 255).square().mean((1, 2, 3))
        return (-10 * error.log10()).mean().item()

    rows = torch.linspace(40, 215, 32).view(1, 1, 32, 1).expand(96, 3, 32, 32)
    clean = (rows + 20 * torch.randn(96, 3, 1, 1)).clamp(0, 255)
    noisy, other = (
        (clean + 40 * torch.randn(clean.shape)).clamp(0, 255).to(torch.uint8) for _ in range(2)
    )
    before = psnr(noisy, clean)
    model = module.Model()
    output = model.predict(torch.rand(1, 3, 512, 512) * 255)
    assert output.shape == (1, 3, 512, 512)
    assert output.min() >= 0
    assert output.max() <= 255

    model.train(noisy, other, num_epochs=8)
    trained = model.predict(noisy)
    assert trained.dtype == torch.uint8
    assert psnr(trained, clean) > before + 3

    model.load_pretrained_model()
    pretrained = psnr(model.predict(noisy), clean)
    assert pretrained > before + 3
    model.train(noisy, other, num_epochs=1)
    assert psnr(model.predict(noisy), clean) > before

    conv, image = module.Conv2d(3, 3, 3), torch.randn(1, 3, 32, 32)
    expected = torch.nn.functional.conv2d(image, conv.weight, conv.bias)
    both = module.Sequential(conv, module.Sigmoid()).forward(image)
    torch.testing.assert_close(both, expected.sigmoid())
