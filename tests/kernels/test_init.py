"""A seed gives torch's weights, bit for bit."""

import pytest
import torch
from torch import nn

from denoise_batch.kernels import Conv2d, ConvTranspose2d, UpsampleConv2d

PAIRS = {"conv": (Conv2d, nn.Conv2d), "transposed": (ConvTranspose2d, nn.ConvTranspose2d)}

ARGUMENTS = {
    "3to24-k4": (3, 24, 4),
    "24to48-k3": (24, 48, 3),
    "1to1-k1": (1, 1, 1),
    "7to5-k2x5": (7, 5, (2, 5)),
}


@pytest.mark.parametrize("seed", [0, 1, 2022])
@pytest.mark.parametrize("arguments", list(ARGUMENTS.values()), ids=list(ARGUMENTS))
@pytest.mark.parametrize("kind", PAIRS)
def test_the_same_seed_gives_torchs_weight_and_bias(kind: str, arguments: tuple, seed: int) -> None:
    ours, oracle = PAIRS[kind]
    torch.manual_seed(seed)
    block = ours(*arguments)
    after = torch.rand(1)
    torch.manual_seed(seed)
    module = oracle(*arguments)
    assert torch.equal(block.weight, module.weight)
    assert torch.equal(block.bias, module.bias)
    assert torch.equal(after, torch.rand(1)), "as many random numbers are drawn"


@pytest.mark.parametrize("kind", PAIRS)
def test_without_bias_only_the_weight_is_drawn(kind: str) -> None:
    ours, oracle = PAIRS[kind]
    torch.manual_seed(3)
    block = ours(2, 3, 3, bias=False)
    after = torch.rand(1)
    torch.manual_seed(3)
    module = oracle(2, 3, 3, bias=False)
    assert block.bias is None
    assert torch.equal(block.weight, module.weight)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d, UpsampleConv2d])
def test_a_generator_replaces_the_global_one(kind: type) -> None:
    arguments = (2, 3, 4, 3) if kind is UpsampleConv2d else (3, 4, 3)
    before = torch.get_rng_state()
    first = kind(*arguments, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is untouched"
    torch.manual_seed(5)
    second = kind(*arguments)
    for ours, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("kind", PAIRS)
def test_parameters_are_plain_float32_tensors(kind: str) -> None:
    for parameter in PAIRS[kind][0](3, 4, 3).parameters():
        assert type(parameter) is torch.Tensor
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
        assert parameter.grad is None
