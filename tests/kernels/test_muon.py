"""Muon: against the singular value decomposition, torch.optim.Muon (in bfloat16) and AdamW."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import Operations
from oracles import give_gradients
from tolerances import assert_parity, each_dtype
from torch import Tensor

from denoise_batch.kernels import AdamW, Muon, OptionError
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.gemm import optim

A, B, C = 3.4445, -4.775, 2.0315


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """As Muon has it: natively in float32, where there is a library."""
    return ops_for(matrix.device).orthogonalize([matrix], steps)[0]


def by_decomposition(matrix: Tensor, steps: int) -> Tensor:
    """The quintic on the singular values themselves."""
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt().clamp_min(1e-7)
    for _ in range(steps):
        values = A * values + B * values**3 + C * values**5
    return u @ values.diag() @ v


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), steps=st.integers(1, 6))
def test_orthogonalizing_applies_the_quintic_to_the_singular_values(
    rows: int, columns: int, steps: int
) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64)
    expected = by_decomposition(matrix, steps)
    torch.testing.assert_close(orthogonalized(matrix, steps), expected, rtol=0, atol=1e-10)


SHAPES = [(32, 108), (12, 288), (32, 288), (32, 288), (288, 32), (192, 400), (5, 1), (300, 310)]


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_gradient_may_lie_in_memory_unlike_its_weight(is_packed: bool) -> None:
    """A weight (L, S, kh, kw) beside its gradient as (kh, kw, S, L), or the other way round."""
    weight = torch.randn(6, 5, 3, 2, dtype=torch.float64)
    packed = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    weight, other = (packed, weight) if is_packed else (weight, packed)
    expected = weight.clone()
    expected.grad = torch.randn_like(weight)
    weight.grad = torch.empty_like(other).copy_(expected.grad)
    for parameter in (weight, expected):
        Muon([parameter], 0.1).step()
    torch.testing.assert_close(weight, expected)


@each_dtype
def test_matrices_of_all_shapes_are_orthogonalised_together(dtype: torch.dtype) -> None:
    matrices = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    if dtype != torch.float64:
        matrices[0] *= 1e-6
    with Operations("cpu") as operations:
        together = optim.orthogonalize(matrices, 5)
    for matrix, result in zip(matrices, together, strict=True):
        assert result.dtype == dtype
        expected = by_decomposition(matrix, 5)
        allowed = 1e-10 if dtype == torch.float64 else 2e-4
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=allowed)
    # Two batches: sides of up to 256, and one of 300.
    assert operations.counts["baddbmm"] == 2 * 18
    assert torch.equal(optim.orthogonalize([torch.zeros(3, 4)])[0], torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_matrices_of_low_precision_are_orthogonalised_in_float32(dtype: torch.dtype) -> None:
    matrix = torch.randn(12, 40).to(dtype)
    (result,) = optim.orthogonalize([matrix])
    expected = by_decomposition(matrix.float(), 5)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=4e-3)


def test_a_weight_that_is_packed_in_memory_moves_as_any_other() -> None:
    """As on a GPU: (kh, kw, L, S), its gradient and momentum too."""
    plain = torch.randn(6, 5, 3, 2, dtype=torch.float64)
    packed = plain.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    other = plain.clone()
    first, second = Muon([plain], 0.1), Muon([packed], 0.1)
    for step in range(4):
        plain.grad = torch.randn_like(plain)
        packed.grad = torch.empty_like(packed).copy_(plain.grad)
        first.step()
        second.step()
        if step == 1:
            state = {name: value.contiguous() for name, value in second.state_dict().items()}
            second = Muon([packed], 0.1)
            second.load_state_dict(state)
            assert second.state_dict()["momentum.0"].stride() == packed.stride()
    assert not torch.equal(plain, other)
    torch.testing.assert_close(packed, plain)


@each_dtype
@pytest.mark.parametrize("shape", [(32, 288), (288, 32), (192, 1728), (5, 1)])
def test_singular_values_come_near_1(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape, dtype=dtype)))
    assert 0.65 < values.min() <= values.max() < 1.25


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_a_gradient_does_not_matter(scale: float) -> None:
    matrix = torch.randn(6, 20, dtype=torch.float64)
    torch.testing.assert_close(orthogonalized(scale * matrix), orthogonalized(matrix))


def test_float32_suffices_for_gradients_of_low_rank() -> None:
    """Where singular values span six orders of magnitude, the small ones stay small."""
    u, _, v = torch.linalg.svd(torch.randn(64, 576, dtype=torch.float64), full_matrices=False)
    matrix = u @ torch.logspace(0, -6, 64, dtype=torch.float64).diag() @ v
    error = orthogonalized(matrix.float()) - by_decomposition(matrix, 5)
    assert error.norm() < 1e-3 * by_decomposition(matrix, 5).norm()


def test_no_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonalized(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False}, {"momentum": 0.5, "weight_decay": 0.3}, {"ns_steps": 3}],
    ids=["default", "plain", "decay", "three"],
)
def test_steps_match_torch_as_far_as_its_bfloat16_goes(options: dict[str, Any]) -> None:
    ours = [torch.randn(24, 40), torch.randn(40, 24)]
    oracles = [parameter.clone().requires_grad_() for parameter in ours]
    starts = [parameter.clone() for parameter in ours]
    optimizer = Muon(ours, 0.01, **options)
    oracle = torch.optim.Muon(oracles, 0.01, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(5):
        give_gradients(ours, oracles)
        optimizer.step()
        oracle.step()
    for parameter, other, start in zip(ours, oracles, starts, strict=True):
        moved = other.detach() - start
        assert (parameter - other.detach()).norm() < 0.02 * moved.norm()


@each_dtype
def test_a_convolution_moves_as_its_matrix_and_a_bias_as_in_adamw(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(4, 3, 3, 3, dtype=dtype), torch.randn(4, dtype=dtype)
    matrix, other = weight.flatten(1).clone(), bias.clone()
    optimizer = Muon([weight, bias], 0.01, weight_decay=0.2)
    twins = Muon([matrix], 0.01, weight_decay=0.2), AdamW([other], 0.01, weight_decay=0.2)
    for _ in range(3):
        weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
        matrix.grad, other.grad = weight.grad.flatten(1).clone(), bias.grad.clone()
        kept = weight.grad.clone()
        optimizer.step()
        for twin in twins:
            twin.step()
        assert torch.equal(weight.grad, kept)
    assert_parity(weight.flatten(1), matrix, "weight")
    assert_parity(bias, other, "bias")


def test_a_parameter_without_gradient_rests() -> None:
    still, moving = torch.randn(3, 4), torch.randn(3, 4)
    before = still.clone()
    moving.grad = torch.randn(3, 4)
    Muon([still, moving], 0.1).step()
    assert torch.equal(still, before)


def test_a_restored_state_goes_on_as_if_nothing_had_happened() -> None:
    one = [torch.randn(3, 4, 2, 2), torch.randn(3)]
    other = [parameter.clone() for parameter in one]
    first, second = Muon(one, 0.1), Muon(other, 0.1)
    for step in range(4):
        give_gradients(one, other)
        first.step()
        second.step()
        if step == 1:
            state = {name: value.clone() for name, value in second.state_dict().items()}
            second = Muon(other, 0.1)
            second.load_state_dict(state)
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"ns_steps": 0}, "ns_steps=0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_value(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        Muon([torch.zeros(2, 2)], **options)


def test_numbers_in_tensors_do_what_floats_do() -> None:
    """As a CUDA graph takes them, which would replay those of its recording."""
    floats = [torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    tensors = [parameter.clone() for parameter in floats]
    one, other = Muon(floats, 0.1), Muon(tensors, 0.1)
    for step in range(5):
        one.lr = other.lr = 0.1 / (1 + step)
        for ours, theirs in zip(floats, tensors, strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        one.step()
        other.step(torch.tensor(other.count_step(), dtype=torch.float64).unbind())
    for ours, theirs in zip(floats, tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
