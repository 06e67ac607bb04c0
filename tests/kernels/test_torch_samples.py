"""torch's own samples of conv2d and conv_transpose2d (OpInfo), through our blocks.

A child process makes them: importing torch's collection freezes the flags of torch.backends.
Complex numbers are not sampled: blocks take none.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import TOLERANCES, assert_parity, autograd
from torch import Tensor
from torch.nn import functional

from denoise_batch.kernels import Block, Conv2d, ConvTranspose2d, ShapeError, layers
from denoise_batch.kernels.dispatch import GEMM, REFERENCE, ops_for

# Said once by torch, of its own speed.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
BLOCKS = {"conv2d": Conv2d, "conv_transpose2d": ConvTranspose2d}
# (operation, tensors, keywords); of what torch refuses, its message, too.
Sample = tuple[str, list[Tensor | None], dict[str, Any], str]

SAVE_SAMPLES = """
import sys, types, unittest, torch
# Imported for torch's own tests; samples need nothing of it.
sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
from torch.testing._internal.common_methods_invocations import op_db

found = []
for op in op_db:
    name = op.name.removeprefix("nn.functional.")
    if name in ("conv2d", "conv_transpose2d"):
        precisions = torch.float64, torch.float32
        samples = [(s, "") for dtype in precisions for s in op.sample_inputs("cpu", dtype)]
        if op.error_inputs_func is not None:
            samples += [(e.sample_input, e.error_regex) for e in op.error_inputs("cpu")]
        found += [(name, [s.input, *s.args], s.kwargs, error) for s, error in samples]
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    path = Path(tmp_path_factory.mktemp("samples")) / "samples.pt"
    command = [sys.executable, "-c", SAVE_SAMPLES, str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return torch.load(path)


def block_of(name: str, weight: Tensor, bias: Tensor | None, keywords: dict[str, Any]) -> Block:
    channels = [len(weight), weight.shape[1] * keywords.get("groups", 1)]
    if name == "conv2d":
        channels.reverse()
    kernel = tuple(weight.shape[2:])
    block = BLOCKS[name](*channels, kernel, bias=bias is not None, **keywords)
    block.to(dtype=weight.dtype)
    parameters = {"weight": weight, "bias": bias}
    block.load_state_dict({k: value for k, value in parameters.items() if value is not None})
    return block


@pytest.mark.parametrize("table", [None, GEMM, REFERENCE], ids=["default", "gemm", "reference"])
def test_torchs_samples_give_what_torch_gives(
    table: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ops_for", lambda device: table or ops_for(device))
    good = [sample for sample in samples if not sample[3]]
    assert len(good) >= 84  # of torch 2.13: 30 and 12 in each precision
    assert {dtype for _, (input, *_), _, _ in good for dtype in [input.dtype]} == set(TOLERANCES)
    for name, (input, weight, bias), keywords, _ in good:
        what = f"{name} {tuple(input.shape)} {tuple(weight.shape)} {keywords} {input.dtype}"
        operands = [value.detach() for value in (input, weight, bias) if value is not None]

        def oracle(
            *tensors: Tensor, name: str = name, keywords: dict[str, Any] = keywords
        ) -> Tensor:
            return getattr(functional, name)(*tensors, **keywords)

        expected, gradients = autograd(oracle, *operands)
        block = block_of(name, weight, bias, keywords)
        assert_parity(block(operands[0]), expected, what, floor=1.0)
        grad_output = torch.randn_like(expected)
        ours = [block.backward(grad_output), *(p.grad for p in block.parameters())]
        for grad, theirs in zip(ours, gradients(grad_output), strict=True):
            assert_parity(grad, theirs, f"gradient of {what}", floor=1.0)
        assert_parity(block.eval()(operands[0]), expected, f"inference of {what}", floor=1.0)


def test_what_torch_refuses_is_refused(samples: list[Sample]) -> None:
    bad = [sample for sample in samples if sample[3]]
    assert len(bad) >= 10
    for name, (input, weight, bias), keywords, reason in bad:
        if "should be the same" in reason:
            continue  # precisions that differ: a block computes in its parameters'
        with pytest.raises(ShapeError):
            block_of(name, weight, bias, keywords)(input)
