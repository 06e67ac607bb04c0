"""Are the kernels right here? Each alone, then whole networks at real sizes."""

import torch
from report import Section
from torch import Tensor

from denoise_batch.kernels import MSELoss
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.selfcheck import self_check
from denoise_batch.models import ARCHITECTURES, Network

# Against float64: roundings of up to 20 layers. Gradients by their Euclidean distance, since a ReLU
# near 0 flips.
ALLOWED = {None: (1e-4, 1e-3), torch.bfloat16: (5e-2, 1e-1), torch.float16: (1e-2, 5e-2)}


def check_section(device: torch.device) -> Section:
    """The self-check, as denoise-doctor shows it."""
    section = Section(
        "Every kernel against gemm/, and gemm/ against the specification",
        "Largest difference relative to the largest element of the float64 result.",
        ("op", "implementation", "status", "error", "allowed"),
    )
    for check in self_check(device):
        error = "" if check.error is None else f"{check.error:.1e}"
        status = check.status + (f": {check.reason}" if check.reason else "")
        section.rows.append(
            (check.name, check.implementation, status, error, f"{check.tolerance:.0e}")
        )
        section.is_wrong |= check.status == "failed"
    return section


def network_section(device: torch.device, *, is_quick: bool) -> Section:
    """Inference and a training step of every network, against gemm/ in float64."""
    section = Section(
        "Networks against float64",
        "Output of inference (largest difference) and gradients of a step (Euclidean distance).",
        ("network", "precision", "output", "gradients", "allowed"),
    )
    side = 40 if is_quick else 250
    for name in ARCHITECTURES:
        for precision, allowed in ALLOWED.items():
            if is_quick and precision is not None:
                continue
            errors = _errors(name, device, precision, side)
            section.rows.append(
                (
                    name,
                    str(precision or torch.float32).removeprefix("torch."),
                    *(f"{error:.1e}" for error in errors),
                    f"{allowed[0]:.0e}, {allowed[1]:.0e}",
                )
            )
            section.is_wrong |= not all(e <= a for e, a in zip(errors, allowed, strict=True))
    if disabled := ops_for(device).disabled:
        section.text += f" Disabled: {disabled}."
        section.is_wrong = True
    return section


def _errors(
    name: str, device: torch.device, precision: torch.dtype | None, side: int
) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    network = Network(name, 0.45, 0.25, generator)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            fan_in = parameter.numel() / max(parameter.shape[:2])
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    state = {key: value.double() for key, value in network.state_dict().items()}
    twin = Network(name, 0.45, 0.25).to(device, torch.float64)
    twin.load_state_dict(state)
    network.to(device).set_compute_dtype(precision)
    image, target = torch.rand(2, 2, 3, side, side + 7, generator=generator).to(device)
    with torch.inference_mode():
        ours, exact = network.eval()(image), twin.eval()(image.double())
    scale = exact.abs().max()
    output_error = ((ours.double() - exact).abs().max() / scale).item()
    gradients = _gradients(network.train(), image, target)
    exact_gradients = _gradients(twin.train(), image.double(), target.double())
    distance = (gradients - exact_gradients).norm() / exact_gradients.norm()
    return output_error, distance.item()


def _gradients(network: Network, image: Tensor, target: Tensor) -> Tensor:
    network.zero_grad()
    loss = MSELoss()
    loss(network(image), target)
    network.backward(loss.backward(), needs_input_grad=False)
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.cat([grad.double().flatten() for grad in grads])
