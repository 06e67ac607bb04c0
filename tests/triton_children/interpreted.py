"""A child process: kernels and networks in the guarded interpreter, a JSON line for each.

python -m triton_children.interpreted [NAME …]
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "DENOISE_BATCH_KERNELS": "triton"}

import torch
from torch import Tensor
from triton_children import guard, offsets
from triton_children.cases import CASES, NETWORKS, OFFSETS, TOLERANCES, Case

GUARD = guard.install()
Op = Callable[..., Any]


def main(names: Sequence[str]) -> None:
    """Run the named cases, or all."""
    from denoise_batch.kernels.dispatch import load_kernels

    torch.set_num_threads(1)
    poison()
    kernels = load_kernels(torch.device("cpu"))
    for name in names or [*CASES, *NETWORKS, *OFFSETS]:
        started, launches = time.process_time(), GUARD.launches
        row: dict[str, Any] = {"name": name}
        try:
            if name in OFFSETS:
                row["wrong"] = offsets.difference(name, kernels)
            else:
                row["error"] = (
                    network_error(name) if name in NETWORKS else error(CASES[name], kernels)
                )
        except Exception as failure:
            row["raised"] = f"{type(failure).__name__}: {failure}"
        row["launches"] = GUARD.launches - launches
        row["seconds"] = round(time.process_time() - started, 2)
        print(json.dumps(row), flush=True)


def poison() -> None:
    """Uninitialised memory is NaN, so that what a kernel leaves unwritten shows."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    Tensor.new_empty = lambda *a, **k: fill(new_empty(*a, **k))  # type: ignore[method-assign]
    torch.empty_like = lambda *a, **k: fill(empty_like(*a, **k))


def error(case: Case, kernels: Mapping[str, Op]) -> float:
    """Of the kernel's results, relative to the largest element of the specification's."""
    args, options = case.arguments()
    kernel = kernels[case.op]
    # A mutant's tiles, not ours.
    tiles = sys.modules[f"{kernel.__module__.rpartition('.')[0]}.tiles"]
    expected = list(results(_specification(case.op), *_doubled(args, options)))
    with tiles.trial(case.rows) if case.rows else nullcontext():
        actual = list(results(kernel, args, options))
    pairs = list(zip(actual, expected, strict=True))
    if case.has_nan:
        if not all(torch.equal(a.isnan(), e.isnan()) and e.isnan().any() for a, e in pairs):
            return float("inf")
        pairs = [(a.nan_to_num(), e.nan_to_num()) for a, e in pairs]
    return max(_error(a, e) for a, e in pairs)


def network_error(name: str) -> float:
    """Of a whole network's inference and training step, against the same in float64 by gemm/."""
    from denoise_batch.kernels import SGD, MSELoss
    from denoise_batch.models import Network

    kind, _, dtype = name.rpartition("-")
    architecture, _, steps = kind.partition("_")
    torch.manual_seed(1)
    network = Network(architecture, 0.45, 0.25, torch.Generator().manual_seed(0))
    for parameter in network.parameters():  # such as a trained network's, exact in bfloat16
        if parameter.ndim == 4:
            fan_in = parameter.numel() / max(parameter.shape[:2])
            parameter.normal_(0, fan_in**-0.5)
        parameter.copy_(parameter.to(torch.bfloat16))
    twin = Network(architecture, 0.45, 0.25, torch.Generator().manual_seed(0)).to(
        dtype=torch.float64
    )
    twin.load_state_dict({n: p.double() for n, p in network.state_dict().items()})
    network.set_compute_dtype(getattr(torch, dtype))
    image, target = torch.rand(2, 1, 3, 9, 14)
    errors = []
    with torch.inference_mode():
        network.eval(), twin.eval()
        level = torch.tensor([0.1]) if network.spec.takes_level else None
        padded = torch.rand(1, 3, 16, 16)  # as files' pages are denoised
        ours = network.forward_padded(padded, level)
        errors.append(_error(ours, twin.forward_padded(padded.double(), level)))
    if network.spec.is_residual:  # its step's 100 launches would take half a minute
        return max(errors) / NETWORK_LAYERS
    outputs = []
    network.to("cpu")  # its weights now lie in memory as the kernels read them
    for each, convert in ((network, Tensor.float), (twin, Tensor.double)):
        each.train()
        optimizer, loss = SGD(each.parameters(), 0.5, momentum=0.9, nesterov=True), MSELoss()
        for step in range(2 if steps else 1):
            if step:
                optimizer.step()
                optimizer.zero_grad()
            output = each(convert(image))
            loss(output, convert(target))
            each.backward(loss.backward(), needs_input_grad=False)
        outputs.append(output)
    errors.append(_error(*outputs))
    # In half precision a ReLU near 0 flips; what is asked is that gradients point the same way.
    ours, theirs = (
        torch.cat([p.grad.double().flatten() for p in each.parameters() if p.grad is not None])
        for each in (network, twin)
    )
    distance = ((ours - theirs).norm() / theirs.norm()).item()
    allowed = 1.0 if dtype == "float32" else 20.0
    return max(*errors, distance / allowed) / NETWORK_LAYERS


# Roundings add up through a network's layers: about 20 of them in the deepest.
NETWORK_LAYERS = 5


def _specification(op: str) -> Op:
    from denoise_batch.kernels import guard, reference, samples
    from denoise_batch.kernels.gemm import fused

    modules = (reference, fused, samples, guard)
    found: Op = next(getattr(module, op) for module in modules if hasattr(module, op))
    return found


def _doubled(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) else value

    return tuple(map(double, args)), {name: double(value) for name, value in options.items()}


def results(op: Op, args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[Tensor]:
    """The op's tensors."""
    output = op(*args, **options)
    yield from output if isinstance(output, tuple) else (output,)


def _error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double(), expected.double()  # flags and samples, too
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    scale = expected.abs().max().clamp_min(1e-30)
    return ((actual - expected).abs().max() / scale).item()


def tolerance(name: str) -> float:
    """What a case's error may be."""
    dtype = name.rpartition("-")[2]
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


if __name__ == "__main__":
    main(sys.argv[1:])
