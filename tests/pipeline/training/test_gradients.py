"""Bucketed sums of gradients, in a process group of one (test_distributed runs two)."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from denoise_batch.kernels import Block, Conv2d, MSELoss, ReLU, Sequential, StateError
from denoise_batch.models import ARCHITECTURES, Network
from denoise_batch.training.distributed import GradientReducer


@pytest.fixture
def group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def plain_backward(network: Block, noisy: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient of the output), after a forward in training mode."""
    criterion = MSELoss()
    loss = criterion(network.train()(noisy), target)
    return loss, criterion.backward()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bucket_bytes", [1, 20_000, 2**30], ids=["each", "several", "one"])
@pytest.mark.usefixtures("group")
def test_one_process_gets_its_own_gradients(architecture: str, bucket_bytes: int) -> None:
    whole = Network(architecture, generator=torch.Generator().manual_seed(0))
    whole.set_level(torch.tensor([0.05, 0.1]))
    network = whole.restorer
    noisy, target = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss, grad = plain_backward(network, noisy, target)
    network.backward(grad, needs_input_grad=False)
    expected = [parameter.grad for parameter in network.parameters()]

    reducer = GradientReducer(network, bucket_bytes)
    for _ in range(2):  # a second step fills the same buckets
        network.zero_grad()
        loss, grad = plain_backward(network, noisy, target)
        assert reducer.backward(loss, grad) == loss
        found = [parameter.grad for parameter in network.parameters()]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Noted(Block):
    """The identity; notes when backward passes it."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def forward(self, input: Tensor) -> Tensor:
        return input

    def backward(self, grad_output: Tensor) -> Tensor:
        self._events.append("first layer")
        return grad_output


@pytest.mark.usefixtures("group")
def test_a_bucket_is_sent_while_backward_still_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bucket per layer, the last layer's is on its way before the first layer's backward."""
    events: list[str] = []
    all_reduce = distributed.all_reduce

    def noted_all_reduce(*arguments: Any, **options: Any) -> Any:
        events.append("send")
        return all_reduce(*arguments, **options)

    monkeypatch.setattr(distributed, "all_reduce", noted_all_reduce)
    network = Sequential(Conv2d(3, 4, 3), Noted(events), ReLU(), Conv2d(4, 3, 3))
    sizes = [parameter.numel() * 4 for parameter in network.blocks[3].parameters()]
    reducer = GradientReducer(network, bucket_bytes=sum(sizes))
    loss, grad = plain_backward(network, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4))
    reducer.backward(loss, grad)
    assert events == ["send", "first layer", "send"]


@pytest.mark.usefixtures("group")
def test_a_shared_parameter_waits_for_its_last_use() -> None:
    network = Sequential(Conv2d(3, 3, 3, padding=1), Conv2d(3, 3, 3, padding=1))
    network.blocks[1].weight = network.blocks[0].weight  # type: ignore[attr-defined]
    noisy, target = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    network.backward(plain_backward(network, noisy, target)[1], needs_input_grad=False)
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    reducer = GradientReducer(network, bucket_bytes=1)
    reducer.backward(*plain_backward(network, noisy, target))
    torch.testing.assert_close([p.grad for p in network.parameters()], expected, rtol=0, atol=0)


@pytest.mark.usefixtures("group")
def test_a_block_that_announces_nothing_is_an_error_and_no_endless_wait() -> None:
    network = Sequential(Conv2d(3, 3, 3, padding=1), Conv2d(3, 3, 3, padding=1))
    reducer = GradientReducer(network, bucket_bytes=1)
    network.blocks[0].register_grad_ready_hook(None)
    with pytest.raises(StateError, match="does not announce"):
        reducer.backward(*plain_backward(network, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)))
