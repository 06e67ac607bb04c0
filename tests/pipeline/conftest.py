"""Small pictures and weights that the tests of the pipeline share."""

from pathlib import Path

import pytest
import torch
from pictures import picture

from denoise_batch.models import Network, save_weights


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with ten photographs of 96×80, in two sub-folders."""
    folder = tmp_path / "photographs"
    for index in range(10):
        path = folder / f"set{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(96, 80, index).save(path)
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Untrained tconv weights: any image comes out nearly flat gray."""
    path = tmp_path / "untrained.safetensors"
    save_weights(path, Network("tconv", generator=torch.Generator().manual_seed(0)), {})
    return path
