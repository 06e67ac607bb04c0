"""denoise-export: the ONNX file computes what denoise-batch does, at any size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoise_batch import denoise, load
from denoise_batch.cli.export import main
from denoise_batch.models import LARGEST_LEVEL, Network, save_weights, shipped_names

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(1, 1), (3, 50), (16, 16), (37, 41), (64, 48)]


def session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(session: Any, **inputs: Tensor) -> Tensor:
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(output)


def expected(network: Network, image: Tensor, level: Tensor | None = None) -> Tensor:
    """What denoise-batch computes before it rounds: with context around the image."""
    (height, width), margin = image.shape[2:], network.margin
    whole = network.forward_padded(network.pad(image), level)
    return whole[:, :, margin : margin + height, margin : margin + width]


@pytest.mark.parametrize("name", shipped_names())
def test_the_file_computes_what_the_weights_do(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    assert main([name, str(file)]) == 0
    onnx.checker.check_model(str(file), full_check=True)
    network, ours = load(name), session(file)
    for height, width in SIZES:
        image = torch.rand(2, 3, height, width)
        told = {"noise_level": torch.full((2,), -1.0)} if network.spec.takes_level else {}
        output = run(ours, image=image, **told)
        torch.testing.assert_close(output, expected(network, image), rtol=0, atol=1e-5)
    if not network.spec.takes_level:  # nor a guard
        public = denoise(image, weights=name, device="cpu")
        torch.testing.assert_close(output, public, rtol=0, atol=1e-5)


@pytest.mark.parametrize("can_estimate", [True, False])
def test_a_network_that_takes_the_level_is_told(can_estimate: bool, tmp_path: Path) -> None:
    network = Network("unet-level", 0.45, [0.2, 0.25, 0.3]).eval()
    for value in network.parameters():
        value.add_(0.02 * torch.randn(value.shape))  # its head and its second layers start small
    network.estimator = network.estimator if can_estimate else None
    save_weights(tmp_path / "x.safetensors", network, {})
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.onnx")]) == 0
    ours, image = session(tmp_path / "x.onnx"), torch.rand(3, 3, 21, 40)
    level = torch.tensor([0.0, 0.05, 2 * LARGEST_LEVEL])
    output = run(ours, image=image, noise_level=level)
    torch.testing.assert_close(output[0], image[0])
    torch.testing.assert_close(output, expected(network, image, level), rtol=0, atol=1e-5)
    if can_estimate:
        output = run(ours, image=image, noise_level=torch.full((3,), -1.0))
        assert (output - image).abs().max() > 0.01
        torch.testing.assert_close(output, expected(network, image), rtol=0, atol=1e-5)


def test_gray_and_drawn_images_are_told_what_denoise_batch_tells_them(tmp_path: Path) -> None:
    network = load(shipped_names()[0])
    assert main([shipped_names()[0], str(tmp_path / "x.onnx")]) == 0
    ours, level = session(tmp_path / "x.onnx"), torch.tensor([-1.0])
    gray = torch.rand(1, 1, 128, 112)
    output = run(ours, image=gray.expand(-1, 3, -1, -1), noise_level=level).mean(1, keepdim=True)
    torch.testing.assert_close(output, expected(network, gray), rtol=0, atol=1e-5)
    quiet = 0.5 + 0.01 * torch.randn(1, 1, 128, 112)  # the reserve matters
    output = run(ours, image=quiet.expand(-1, 3, -1, -1), noise_level=level).mean(1, keepdim=True)
    torch.testing.assert_close(output, expected(network, quiet), rtol=0, atol=1e-5)
    drawn = torch.rand(1, 3, 128, 112).round()
    assert torch.equal(run(ours, image=drawn, noise_level=level), drawn)
    half = torch.cat([drawn, torch.rand(1, 3, 128, 112)], 3)
    output = run(ours, image=half, noise_level=level)
    torch.testing.assert_close(output, expected(network, half), rtol=0, atol=1e-5)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    assert main(["tconv", str(file)]) == 0
    model = onnx.load(file)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert (model.producer_name, said["weights"], len(said["weights_sha256"])) == (
        "denoise-batch", "tconv", 64,
    )  # fmt: skip
    names = [tensor.name for tensor in model.graph.initializer]
    assert set(load("tconv").state_dict()) <= set(names)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["tconv", "x.pt"], "ends with .onnx", 2),
        (["tconv", "missing/x.onnx"], "cannot be written: No such file", 2),
        (["tconv", "old.onnx"], "exists; take another name, or --overwrite", 2),
        (["no-such", "x.onnx"], "neither a file nor a shipped name", 5),
    ],
)
def test_what_cannot_be_exported_is_said(
    arguments: list[str],
    said: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.onnx").write_text("mine")
    assert main(arguments) == code
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"old.onnx"}
    assert Path("old.onnx").read_text() == "mine"
    assert main(["tconv", "old.onnx", "--overwrite"]) == 0
