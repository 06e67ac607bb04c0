"""What would be launched, compiled to machine code for five chips, and what that code says."""

from typing import Any

import pytest
from triton_children.runs import CHIPS, RUNS

pytestmark = pytest.mark.child("compiled")

# Shared memory that a program may have, in bytes: 163, 99 and 227 KiB.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
PRODUCTS = {
    "conv_forward_kernel",
    "conv_transpose_kernel",
    "weight_grad_kernel",
}
POINTWISE = {
    "relu_backward_bias_grad_kernel",
    "mse_loss_kernel",
}


@pytest.mark.parametrize("name", [run for run in RUNS if not run.endswith("limits")])
def test_nothing_spills_and_shared_memory_suffices(name: str, children: Any) -> None:
    row = children.row("compiled", name)
    assert "raised" not in row, row["raised"]
    chip = int(name.partition("/")[0])
    assert row["launches"]
    for launch in row["launches"]:
        assert launch["binary"]["spills"] == 0, launch
        assert launch["binary"]["shared"] <= SHARED[chip], launch


@pytest.mark.parametrize("name", [f"{chip}/kernels" for chip in CHIPS])
def test_products_are_on_tensor_cores_and_loads_are_wide(name: str, children: Any) -> None:
    launches = children.row("compiled", name)["launches"]
    assert {launch["kernel"] for launch in launches} == PRODUCTS | POINTWISE | {"sum_parts_kernel"}
    for launch in launches:
        binary = launch["binary"]
        is_product = launch["kernel"] in PRODUCTS
        assert (binary["tensor_core"] > 0) == is_product, launch
        if is_product:
            assert binary["scalar_fma"] == 0, launch
        # The sum of parts is tiny.
        if launch["kernel"] != "sum_parts_kernel":
            assert binary["wide_loads"] > 0, launch


@pytest.mark.parametrize("name", ["90/unet-inference-bfloat16-1x1024x1024"])
def test_unet_is_one_launch_a_convolution(name: str, children: Any) -> None:
    """30 of them: stem, head, 3 levels of 2 bodies of 2 and a way down and up, 2 bodies below."""
    launches = children.row("compiled", name)["launches"]
    assert len(launches) == 2 + 3 * (4 + 2) + 4
    assert {launch["kernel"] for launch in launches} == {"conv_forward_kernel"}


@pytest.mark.parametrize("name", ["90/limits"])
def test_images_that_int32_cannot_count_are_declined(name: str, children: Any) -> None:
    assert children.row("compiled", name)["declined"] == [[1, 8192], [33, 8191]]
