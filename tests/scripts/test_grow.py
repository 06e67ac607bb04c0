"""scripts/data/grow.py: what it makes computes what the blind network does."""

import subprocess
import sys
from pathlib import Path

import torch

from denoise_batch.models import Network, load_weights, save_weights

GROW = Path(__file__).parents[2] / "scripts" / "data" / "grow.py"
LEVEL = torch.tensor([20 / 255])
GATE = 20 / 21


def grown(smaller: Path) -> Network:
    start = smaller.with_name("start.safetensors")
    subprocess.run([sys.executable, GROW, smaller, start], check=True)
    return load_weights(start).network


def restless(name: str) -> Network:
    """A network whose body and head do not begin near the identity."""
    network = Network(name, 0.4, [0.2, 0.25, 0.3], torch.Generator().manual_seed(2)).eval()
    for parameter in network.layers.parameters():
        parameter.mul_(1.5)
    return network


def test_a_blind_network_goes_on_behind_an_open_gate(tmp_path: Path) -> None:
    blind, image = restless("unet"), torch.rand(1, 3, 48, 64)
    save_weights(tmp_path / "unet.safetensors", blind, {})
    network = grown(tmp_path / "unet.safetensors")
    assert network.estimator is None
    removed, expected = network.forward(image, LEVEL) - image, blind(image) - image
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(removed, GATE * expected, atol=1e-5, rtol=0)
