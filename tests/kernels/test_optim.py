"""SGD against torch.optim.SGD, step for step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_parity, each_dtype
from torch import Tensor

from denoise_batch.kernels import SGD, OptionError

STEPS = 20
SHAPES = ((4, 3, 3, 3), (4,), (1,))

OPTIONS = {
    "plain": {},
    "weight-decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum-weight-decay": {"momentum": 0.5, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov-weight-decay": {"momentum": 0.7, "nesterov": True, "weight_decay": 0.05},
    "momentum1": {"momentum": 1.0},
}
each_option = pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))


def twins(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The same parameters, ours and torch's."""
    ours = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    return ours, [parameter.clone().requires_grad_() for parameter in ours]


def give_gradients(ours: list[Tensor], oracles: list[Tensor]) -> None:
    for parameter, oracle in zip(ours, oracles, strict=True):
        parameter.grad = torch.randn_like(parameter)
        oracle.grad = parameter.grad.clone()


def assert_same(ours: list[Tensor], oracles: list[Tensor]) -> None:
    for index, (parameter, oracle) in enumerate(zip(ours, oracles, strict=True)):
        assert_parity(parameter, oracle.detach(), f"parameter {index}")


@each_dtype
@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.3])
@each_option
def test_twenty_steps_match_torch(options: dict, lr: float, dtype: torch.dtype) -> None:
    ours, oracles = twins(dtype)
    optimizer, oracle = SGD(ours, lr, **options), torch.optim.SGD(oracles, lr, **options)
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


@each_option
def test_a_parameter_without_gradient_rests_as_in_torch(options: dict) -> None:
    ours, oracles = twins(torch.float64)
    optimizer, oracle = SGD(ours, 0.1, **options), torch.optim.SGD(oracles, 0.1, **options)
    for step in range(STEPS):
        give_gradients(ours, oracles)
        resting = step % len(ours)
        ours[resting].grad = oracles[resting].grad = None
        before = ours[resting].clone()
        optimizer.step()
        oracle.step()
        assert torch.equal(ours[resting], before)
    assert_same(ours, oracles)


@each_option
def test_a_step_moves_the_tensors_in_place_and_leaves_their_gradients_alone(options: dict) -> None:
    ours, oracles = twins(torch.float64)
    optimizer = SGD(iter(ours), 0.1, **options)
    addresses = [parameter.data_ptr() for parameter in ours]
    for _ in range(3):
        give_gradients(ours, oracles)
        optimizer.step()
        for parameter, oracle in zip(ours, oracles, strict=True):
            assert torch.equal(parameter.grad, oracle.grad)
    assert [parameter.data_ptr() for parameter in ours] == addresses


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


def test_nothing_to_optimise_is_refused() -> None:
    with pytest.raises(OptionError, match="parameters"):
        SGD([], lr=0.1)
