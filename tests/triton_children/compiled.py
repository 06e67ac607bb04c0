"""A child process: compile what the launchers would launch, a JSON line for each run.

    python -m triton_children.compiled ARCH/RUN …

A run is a network in inference or training at one size on meta tensors; "kernels": each kernel
once, with the largest tile that any layer uses; or "pages": between files' samples and networks.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

os.environ |= {"TRITON_INTERPRET": "0", "DENOISE_BATCH_KERNELS": "triton"}

import torch
from torch import Tensor
from triton_children.dry_run import dry_run

from denoise_batch.kernels import SGD, AdamW, MSELoss, dispatch
from denoise_batch.kernels.dispatch import launchers, ops_for
from denoise_batch.kernels.errors import NotCoveredError
from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.models import Network

META = torch.device("meta")


def main(names: Sequence[str]) -> None:
    """Run the named runs."""
    dispatch.load_kernels = lambda device: launchers()
    dispatch.may_have_kernels = lambda device: device.type == "meta"
    for name in names:
        started = time.process_time()
        arch, _, run = name.partition("/")
        row: dict[str, Any] = {"name": name}
        try:
            with dry_run(int(arch), is_disassembled=run == "kernels") as launches:
                row |= perform(run) or {}
            row["launches"] = [asdict(launch) for launch in launches]
        except Exception as failure:
            row["raised"] = f"{type(failure).__name__}: {failure}"
        row["seconds"] = round(time.process_time() - started, 2)
        print(json.dumps(row), flush=True)


def perform(run: str) -> dict[str, Any] | None:
    """A run by its name: kernels, pages, limits, or network-mode-dtype-BxHxW."""
    if run == "kernels":
        every_kernel()
        return None
    if run == "pages":
        between_files_and_networks()
        return None
    if run == "limits":
        return limits()
    architecture, mode, dtype, size = run.rsplit("-", 3)
    batch, height, width = map(int, size.split("x"))
    with META:  # nothing else moves to a device without memory
        network = Network(architecture, 0.5, 0.25)
    network.set_compute_dtype(None if dtype == "float32" else getattr(torch, dtype))
    image = torch.empty(batch, 3, height, width, device=META)
    (infer if mode == "inference" else train)(network, image)
    return None


def infer(network: Network, image: Tensor) -> None:
    """Inference."""
    with torch.inference_mode():
        output = network.eval()(image)
    assert output.shape == image.shape


def train(network: Network, image: Tensor) -> None:
    """A training step with SGD, and the step of AdamW."""
    parameters = network.parameters()
    optimizer, loss = SGD(parameters, 0.1, momentum=0.9, nesterov=True), MSELoss()
    loss(network.train()(image), torch.empty_like(image))
    network.backward(loss.backward(), needs_input_grad=False)
    optimizer.step()
    AdamW(parameters).step()


def every_kernel() -> None:
    """Each kernel, bfloat16, as its most demanding layer in a shipped network uses it."""

    def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, device=META, dtype=dtype)

    ops = ops_for(META)
    square, strided = ConvGeometry(padding=(1, 1)), ConvGeometry(stride=(2, 2))
    wide, image = new(192, 192, 3, 3), new(4, 192, 128, 128)
    ops.conv2d_forward(image, wide, new(192), square, "relu")
    ops.conv2d_backward(image, image, wide, square, image)
    ops.conv2d_forward(new(4, 3, 516, 516), new(24, 3, 4, 4), new(24), strided)
    ops.conv_transpose2d_forward(new(4, 48, 128, 128), new(48, 24, 3, 3), new(24), strided)
    pixels = new(4, 3, 512, 512, dtype=torch.float32)
    ops.mse_loss(pixels, pixels)


def between_files_and_networks() -> None:
    """Samples of every type to values and back; and the ends of each kind of network, bfloat16."""
    ops, square = ops_for(META), ConvGeometry(padding=(1, 1))
    for dtype in (torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32):
        samples = torch.empty(2, 1000, 990, 3, device=META, dtype=dtype)
        levels = None if dtype.is_floating_point else (0, 255)
        values = ops.unit_padded(samples, 0.0, 255.0, 0.5, (1024, 1024), 16)
        is_relative = dtype != torch.uint8
        ops.stored_samples(values, samples, 0.0, 255.0, 0.5, levels, is_relative, 16)
    ops.limit_residual(values, values, torch.empty(2, device=META), 2.0)
    standard = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    for width, planes in ((32, 0), (64, 2)):
        stem, head = (
            torch.empty(shape, device=META, dtype=torch.bfloat16)
            for shape in ((width, 12 + planes, 3, 3), (12, width, 3, 3))
        )
        level = torch.empty(2, planes, device=META) if planes else None
        gate = torch.empty(2, device=META) if planes else None
        inside = ops.conv2d_image(
            *(values, stem, None, square, None, (1, 1), 2, 1, None, standard, level)
        )
        ops.conv2d_image(
            *(inside, head, None, square, None, (1, 1), 1, 2, values, None, None, gate)
        )


def limits() -> dict[str, Any]:
    """What the launchers say to images that int32 can and cannot count."""
    weight = torch.empty(32, 32, 1, 1, device=META)
    conv: Callable[..., Tensor] = launchers()["conv2d_forward"]
    declined = []
    for batch, side in ((1, 8191), (31, 8191), (1, 8192), (33, 8191)):
        image = torch.empty(batch, 32, side, side, device=META)
        try:
            conv(image, weight, None, ConvGeometry())
        except NotCoveredError:
            declined.append([batch, side])
    return {"declined": declined}


if __name__ == "__main__":
    main(sys.argv[1:])
