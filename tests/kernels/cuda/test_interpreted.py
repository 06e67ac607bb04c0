"""Every kernel and every network in the guarded interpreter, against float64."""

from typing import Any

import pytest
from triton_children.cases import CASES, NETWORKS, OFFSETS, TOLERANCES

pytestmark = pytest.mark.child("interpreted")


@pytest.mark.parametrize("name", [*CASES, *NETWORKS])
def test_results_are_those_of_float64(name: str, children: Any) -> None:
    """And no access out of bounds, no race, no overflow, nothing left unwritten."""
    row = children.row("interpreted", name)
    assert "raised" not in row, row["raised"]
    assert row["launches"] >= 1
    dtype = name.rpartition("-")[2]
    assert row["error"] <= TOLERANCES.get(dtype, TOLERANCES["float32"])


@pytest.mark.parametrize("name", OFFSETS)
def test_addresses_near_2_to_the_31_are_those_of_the_definition(name: str, children: Any) -> None:
    """Offsets of the last programs, against a table in Python's integers; nothing is in memory."""
    row = children.row("interpreted", name)
    assert "raised" not in row, row["raised"]
    assert row["wrong"] == ""


def test_every_kernel_is_among_the_cases() -> None:
    ops = {case.op for case in CASES.values()}
    assert ops == {
        "conv2d_forward",
        "conv2d_backward",
        "conv_transpose2d_forward",
        "conv_transpose2d_backward",
        "conv2d_fused",
        "conv_transpose2d_fused",
        "conv2d_image",
        "unit_padded",
        "stored_samples",
        "limit_residual",
        "mse_loss",
    }
