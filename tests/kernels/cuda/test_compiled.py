"""What would be launched, compiled to machine code for five chips, and what that code says."""

from typing import Any

import pytest
from triton_children.runs import CHIPS, RUNS

pytestmark = pytest.mark.child("compiled")

# Shared memory that a program may have, in bytes: 163, 99 and 227 KiB.
SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
PRODUCTS = {
    "correlate_kernel",
    "stamp_kernel",
    "weight_gradient_kernel",
    "encoder_kernel",
    "decoder_kernel",
}
POINTWISE = {"masked_sums_kernel", "mse_loss_kernel", "sgd_step_kernel", "adam_step_kernel"}
KERNELS = PRODUCTS | POINTWISE | {"sum_parts_kernel"}


@pytest.mark.parametrize("name", [run for run in RUNS if not run.endswith("limits")])
def test_no_spills_within_shared_memory_on_tensor_cores(name: str, children: Any) -> None:
    row = children.row("compiled", name)
    assert "raised" not in row, row["raised"]
    chip = int(name.partition("/")[0])
    for launch in row["launches"]:
        binary, what = launch["binary"], f"{name}: {launch}"
        assert binary["spills"] == 0, what
        assert binary["shared"] <= SHARED[chip], what
        if launch["kernel"] in PRODUCTS:
            is_half = "float32" not in name
            assert (binary["tensor_core"] > 0) == is_half, what
            assert (binary["scalar_fma"] > 0) != is_half or launch["kernel"] == "decoder_kernel", (
                what
            )
        elif launch["kernel"] in POINTWISE:
            assert binary["tensor_core"] == 0, what


@pytest.mark.parametrize("name", [f"{chip}/kernels" for chip in CHIPS])
def test_every_kernel_compiles_with_wide_loads(name: str, children: Any) -> None:
    launches = children.row("compiled", name)["launches"]
    assert {launch["kernel"] for launch in launches} == KERNELS
    for launch in launches:
        # Parts are added one by one, and 12-wide runs of an image's pixels are not aligned.
        if launch["kernel"] not in ("sum_parts_kernel", "encoder_kernel", "correlate_kernel"):
            assert launch["binary"]["wide_loads"] > 0, launch


@pytest.mark.parametrize("name", ["90/tconv-inference-bfloat16-1x1024x1024"])
def test_tconv_is_two_launches(name: str, children: Any) -> None:
    launches = children.row("compiled", name)["launches"]
    assert [launch["kernel"] for launch in launches] == ["encoder_kernel", "decoder_kernel"]


@pytest.mark.parametrize("name", ["90/unet-inference-bfloat16-1x1024x1024"])
def test_unet_is_one_launch_a_convolution(name: str, children: Any) -> None:
    """30 of them: stem, head, 3 levels of 2 bodies of 2 and a way down and up, 2 bodies below."""
    launches = children.row("compiled", name)["launches"]
    assert len(launches) == 2 + 3 * (4 + 2) + 4
    assert {launch["kernel"] for launch in launches} == {"correlate_kernel"}


@pytest.mark.parametrize("name", ["90/limits"])
def test_images_that_int32_cannot_count_are_declined(name: str, children: Any) -> None:
    assert children.row("compiled", name)["declined"] == [[1, 8192], [33, 8191]]
