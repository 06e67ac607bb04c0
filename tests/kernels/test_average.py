"""ExponentialMovingAverage: its definition, its use in validation, and its checkpoint."""

import pytest
import torch
from torch import Tensor

from denoise_batch.kernels import ExponentialMovingAverage, OptionError, ShapeError


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 4), (5,), (1,))]


@pytest.mark.parametrize("is_tensor", [False, True])
def test_the_average_follows_its_definition(is_tensor: bool) -> None:
    values = [torch.zeros(2)]
    average = ExponentialMovingAverage(values, decay=0.5)
    expected = torch.zeros(2)
    for step in range(1, 30):
        values[0].fill_(step)
        average.update(torch.tensor(average.count_step()) if is_tensor else None)
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
