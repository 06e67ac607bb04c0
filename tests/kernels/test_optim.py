"""SGD, Adam and AdamW against torch.optim, step for step; clipping and averaging."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import give_gradients
from tolerances import assert_parity, each_dtype
from torch import Tensor

from denoise_batch.kernels import (
    SGD,
    Adam,
    AdamW,
    Conv2d,
    ExponentialMovingAverage,
    OptionError,
    Sequential,
    clip_grad_norm_,
)

STEPS = 20
SHAPES = ((4, 3, 3, 3), (4,), (1,))

# Ours, torch's, options of both.
OPTIMIZERS: dict[str, tuple[type, type, dict[str, Any]]] = {
    name: (SGD, torch.optim.SGD, options)
    for name, options in {
        "sgd": {},
        "sgd-decay": {"weight_decay": 0.1},
        "momentum": {"momentum": 0.9},
        "momentum-decay": {"momentum": 0.5, "weight_decay": 0.01},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "nesterov-decay": {"momentum": 0.7, "nesterov": True, "weight_decay": 0.05},
        "momentum1": {"momentum": 1.0},
    }.items()
} | {
    "adam": (Adam, torch.optim.Adam, {}),
    "adam-decay": (Adam, torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.9)}),
    "adamw": (AdamW, torch.optim.AdamW, {}),
    "adamw-decay": (AdamW, torch.optim.AdamW, {"weight_decay": 0.3, "eps": 1e-3}),
}
each_optimizer = pytest.mark.parametrize(
    ("kind", "oracle_kind", "options"), list(OPTIMIZERS.values()), ids=list(OPTIMIZERS)
)


def twins(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The same parameters, ours and torch's."""
    ours = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    return ours, [parameter.clone().requires_grad_() for parameter in ours]


def assert_same(ours: list[Tensor], oracles: list[Tensor]) -> None:
    for index, (parameter, oracle) in enumerate(zip(ours, oracles, strict=True)):
        assert_parity(parameter, oracle.detach(), f"parameter {index}")


@each_dtype
@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.3])
@each_optimizer
def test_twenty_steps_match_torch(
    kind: type, oracle_kind: type, options: dict[str, Any], lr: float, dtype: torch.dtype
) -> None:
    ours, oracles = twins(dtype)
    optimizer, oracle = kind(ours, lr, **options), oracle_kind(oracles, lr, **options)
    for _ in range(STEPS):
        give_gradients(ours, oracles)
        optimizer.step()
        oracle.step()
    assert_same(ours, oracles)


@given(
    lrs=st.lists(st.floats(0, 1), min_size=1, max_size=STEPS),
    momentum=st.floats(0, 0.99),
    weight_decay=st.floats(0, 0.5),
    nesterov=st.booleans(),
)
def test_a_changing_learning_rate_matches_torch(
    lrs: list[float], momentum: float, weight_decay: float, nesterov: bool
) -> None:
    options = {
        "momentum": momentum,
        "weight_decay": weight_decay,
        "nesterov": nesterov and momentum > 0,
    }
    ours, oracles = twins(torch.float64)
    optimizer, oracle = SGD(ours, lrs[0], **options), torch.optim.SGD(oracles, lrs[0], **options)
    for lr in lrs:
        optimizer.lr = oracle.param_groups[0]["lr"] = lr
        give_gradients(ours, oracles)
        optimizer.step()
        oracle.step()
    assert_same(ours, oracles)


@each_optimizer
def test_numbers_in_tensors_match_torch_too(
    kind: type, oracle_kind: type, options: dict[str, Any]
) -> None:
    """As a CUDA graph takes them, which would replay those of its recording."""
    ours, oracles = twins(torch.float64)
    optimizer, oracle = kind(ours, 0.1, **options), oracle_kind(oracles, 0.1, **options)
    for step in range(STEPS):
        optimizer.lr = oracle.param_groups[0]["lr"] = 0.1 / (1 + step)
        give_gradients(ours, oracles)
        optimizer.step(torch.tensor(optimizer.count_step(), dtype=torch.float64).unbind())
        oracle.step()
    assert_same(ours, oracles)


@each_optimizer
def test_a_parameter_without_gradient_rests_as_in_torch(
    kind: type, oracle_kind: type, options: dict[str, Any]
) -> None:
    ours, oracles = twins(torch.float64)
    optimizer, oracle = kind(ours, 0.1, **options), oracle_kind(oracles, 0.1, **options)
    for step in range(STEPS):
        give_gradients(ours, oracles)
        resting = step % len(ours)
        ours[resting].grad = oracles[resting].grad = None
        before = ours[resting].clone()
        optimizer.step()
        oracle.step()
        assert torch.equal(ours[resting], before)
    assert_same(ours, oracles)


@each_optimizer
def test_steps_move_the_tensors_in_place_and_leave_their_gradients_alone(
    kind: type, oracle_kind: type, options: dict[str, Any]
) -> None:
    """The same gradient tensors stay in place over the steps, as when gradients accumulate."""
    ours, oracles = twins(torch.float64)
    optimizer, oracle = kind(iter(ours), 0.1, **options), oracle_kind(oracles, 0.1, **options)
    addresses = [parameter.data_ptr() for parameter in ours]
    give_gradients(ours, oracles)
    for _ in range(3):
        optimizer.step()
        oracle.step()
        for parameter, other in zip(ours, oracles, strict=True):
            assert torch.equal(parameter.grad, other.grad)
            parameter.grad += 1
            other.grad += 1
    assert_same(ours, oracles)
    assert [parameter.data_ptr() for parameter in ours] == addresses


@each_optimizer
def test_a_restored_state_goes_on_as_if_nothing_had_happened(
    kind: type, oracle_kind: type, options: dict[str, Any]
) -> None:
    ours, oracles = twins(torch.float64)
    optimizer, oracle = kind(ours, 0.1, **options), oracle_kind(oracles, 0.1, **options)
    for _ in range(4):
        give_gradients(ours, oracles)
        optimizer.step()
        oracle.step()
        state = {name: value.clone() for name, value in optimizer.state_dict().items()}
        optimizer = kind(ours, 0.1, **options)
        optimizer.load_state_dict(state)
    assert_same(ours, oracles)


@each_optimizer
def test_a_parameter_that_two_blocks_share_is_moved_once_as_in_torch(
    kind: type, oracle_kind: type, options: dict[str, Any]
) -> None:
    ours, oracles = shared()
    optimizer, oracle = (
        kind(ours.parameters(), 0.1, **options),
        oracle_kind(oracles.parameters(), 0.1, **options),
    )
    for _ in range(3):
        give_gradients(ours.parameters()[:2], list(oracles.parameters()))
        optimizer.step()
        oracle.step()
    assert_same(ours.parameters()[:2], list(oracles.parameters()))


def test_the_gradient_of_a_parameter_that_two_blocks_share_is_clipped_once() -> None:
    ours, oracles = shared()
    give_gradients(ours.parameters()[:2], list(oracles.parameters()))
    norm = clip_grad_norm_(ours.parameters(), 0.1)
    assert_parity(norm, torch.nn.utils.clip_grad_norm_(oracles.parameters(), 0.1), "norm")
    for parameter, oracle in zip(ours.parameters()[:2], oracles.parameters(), strict=True):
        assert_parity(parameter.grad, oracle.grad, "gradient")


def shared() -> tuple[Sequential, torch.nn.Sequential]:
    """Two convolutions of one weight and one bias, ours and torch's."""
    first, second = Conv2d(3, 3, 3), Conv2d(3, 3, 3)
    second.weight, second.bias = first.weight, first.bias
    oracle, other = torch.nn.Conv2d(3, 3, 3), torch.nn.Conv2d(3, 3, 3)
    other.weight, other.bias = oracle.weight, oracle.bias
    oracle.load_state_dict(first.state_dict())
    ours, oracles = Sequential(first, second), torch.nn.Sequential(oracle, other)
    assert (len(ours.parameters()), len(list(oracles.parameters()))) == (4, 2)
    return ours, oracles


def test_zero_grad_forgets_the_gradients() -> None:
    ours, oracles = twins(torch.float32)
    give_gradients(ours, oracles)
    optimizer = SGD(ours, 1.0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in ours)
    before = [parameter.clone() for parameter in ours]
    optimizer.step()
    assert all(map(torch.equal, ours, before))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1e-3}, "lr=-0.001"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": 1.0, "momentum": -0.5}, "momentum=-0.5"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"lr": 1.0, "nesterov": True}, "nesterov needs momentum"),
    ],
    ids=["lr-negative", "lr-nan", "momentum-negative", "weight-decay-negative", "nesterov-alone"],
)
def test_an_option_out_of_range_is_refused_by_value(options: dict, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        SGD([torch.zeros(1)], **options)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"betas": (1.0, 0.9)}, r"betas=\(1.0, 0.9\)"),
        ({"betas": (0.9, -0.1)}, r"betas=\(0.9, -0.1\)"),
        ({"eps": -1e-8}, "eps=-1e-08"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
    ids=["lr-negative", "beta1", "beta-negative", "eps-negative", "weight-decay-negative"],
)
def test_an_adam_option_out_of_range_is_refused_by_value(
    kind: type, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        kind([torch.zeros(1)], **options)


@each_dtype
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3])
def test_clipping_matches_torch(max_norm: float, dtype: torch.dtype) -> None:
    ours, oracles = twins(dtype)
    give_gradients(ours, oracles)
    ours[1].grad = oracles[1].grad = None
    norm = clip_grad_norm_(iter(ours), max_norm)
    assert_parity(norm, torch.nn.utils.clip_grad_norm_(oracles, max_norm), "norm")
    for index in (0, 2):
        assert_parity(ours[index].grad, oracles[index].grad, "gradient")


def test_clipping_nothing_is_length_0() -> None:
    assert clip_grad_norm_([torch.ones(3)], 1.0) == 0


def test_a_moving_average_follows_and_gives_the_parameters_back() -> None:
    parameter = torch.zeros(2, dtype=torch.float64)
    average = ExponentialMovingAverage([parameter], decay=0.9)
    expected = 0.0
    for step in range(1, 200):
        parameter.fill_(step)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert_parity(parameter, torch.full_like(parameter, expected))
    assert parameter.tolist() == [199, 199]


def test_nothing_to_optimise_is_refused() -> None:
    with pytest.raises(OptionError, match="parameters"):
        SGD([], lr=0.1)


def test_clipping_and_averaging_together_are_bit_for_bit_those_of_each_tensor() -> None:
    """On a processor, where a resumed training continues an older version's."""
    shapes = [(64, 32, 3, 3), (64,), (12, 32, 3, 3), (7,), (1,), (192, 192, 3, 3)]
    for scale in (1e-3, 30.0):
        parameters = [torch.randn(shape) for shape in shapes]
        average = ExponentialMovingAverage(parameters, 0.999)
        expected = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter += torch.randn_like(parameter)
            parameter.grad = scale * torch.randn_like(parameter)
        for each, parameter in zip(expected, parameters, strict=True):
            each.lerp_(parameter, 1 - 2 / 11)
        average.update()
        assert all(map(torch.equal, average.averages, expected))
        grads = [parameter.grad.clone() for parameter in parameters]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        for grad in grads:
            grad *= (1.0 / (norm + 1e-6)).clamp(max=1.0)
        assert torch.equal(clip_grad_norm_(parameters, 1.0), norm)
        assert all(map(torch.equal, [parameter.grad for parameter in parameters], grads))
