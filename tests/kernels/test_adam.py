"""Adam, AdamW, clipping and averaging, held against torch."""

import pytest
import torch
from tolerances import assert_parity
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    ExponentialMovingAverage,
    OptionError,
    ShapeError,
    clip_grad_norm_,
)

PAIRS = {"adam": (Adam, torch.optim.Adam), "adamw": (AdamW, torch.optim.AdamW)}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 4), (5,), (1,))]


def gradient(step: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3},
                                     {"weight_decay": 0.1}], ids=str)  # fmt: skip
def test_twenty_steps_agree_with_torch(pair: tuple, options: dict) -> None:
    ours, theirs = parameters(), parameters()
    our_optimizer, torch_optimizer = pair[0](ours, **options), pair[1](theirs, **options)
    for step in range(20):
        our_optimizer.lr *= 0.95
        torch_optimizer.param_groups[0]["lr"] *= 0.95
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            # The last parameter misses every other gradient: its own step count must lag.
            missing = index == 2 and step % 2
            mine.grad = None if missing else gradient(step, mine)
            other.grad = None if missing else gradient(step, other)
        our_optimizer.step()
        torch_optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert_parity(mine, other)


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9), AdamW], ids=["sgd", "adamw"])
def test_an_optimizer_goes_on_from_its_saved_state(make: object) -> None:
    whole, halves = parameters(), parameters()
    optimizer = make(whole)  # type: ignore[operator]
    first = make(halves)  # type: ignore[operator]
    second = make(halves)  # type: ignore[operator]
    for step in range(10):
        for mine, other in zip(whole, halves, strict=True):
            mine.grad, other.grad = gradient(step, mine), gradient(step, other)
        optimizer.step()
        if step == 5:
            second.load_state_dict(first.state_dict())
        (first if step < 5 else second).step()
    for mine, other in zip(whole, halves, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("options", [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0},
                                     {"lr": -1.0}, {"weight_decay": -1.0}], ids=str)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Adam(parameters(), **options)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_agrees_with_torch(max_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad, other.grad = gradient(0, mine), gradient(0, other)
    assert_parity(clip_grad_norm_(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for mine, other in zip(ours, theirs, strict=True):
        assert_parity(mine.grad, other.grad)


def test_clipping_without_gradients_does_nothing() -> None:
    assert clip_grad_norm_(parameters(), 1.0) == 0


def test_the_average_follows_its_definition() -> None:
    values = [torch.zeros(2)]
    average = ExponentialMovingAverage(values, decay=0.5)
    expected = torch.zeros(2)
    for step in range(1, 30):
        values[0].fill_(step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.averages[0], expected)


def test_inside_applied_the_parameters_are_the_averages_and_then_come_back() -> None:
    values = parameters()
    average = ExponentialMovingAverage(values, decay=0.9)
    before = [value.clone() for value in values]
    for value in values:
        value += 1
    average.update()
    now = [value.clone() for value in values]

    def look_and_fail() -> None:
        with average.applied():
            for value, mean, old in zip(values, average.averages, before, strict=True):
                assert torch.equal(value, mean)
                assert not torch.equal(value, old)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        look_and_fail()
    for value, expected in zip(values, now, strict=True):
        assert torch.equal(value, expected)


def test_averages_are_saved_and_loaded() -> None:
    values = parameters()
    first = ExponentialMovingAverage(values, 0.9)
    for value in values:
        value += 1
    first.update()
    second = ExponentialMovingAverage(values, 0.9)
    second.load_state_dict(first.state_dict())
    assert second.steps == 1
    for mine, other in zip(first.averages, second.averages, strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(ShapeError, match="other parameters"):
        ExponentialMovingAverage(values[:1]).load_state_dict(first.state_dict())


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(OptionError, match="decay"):
        ExponentialMovingAverage(parameters(), 1.0)
