"""The specification of every op in plain tensor arithmetic: slow, obvious, on any device.

What an op computes is documented here and nowhere else; the implementations in `gemm/` and `cuda/`
have the same names and signatures.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from .geometry import Activation, ConvGeometry, IntPair


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Y = W · unfold(X) + b, each group by itself, then the activation.

    Args:
        input: (N, in_channels, H, W).
        weight: (out_channels, in_channels / groups, kh, kw).
        bias: (out_channels,) or None.
        geometry: stride, padding, dilation and groups.
        activation: None, or "relu" applied to the output.

    Returns:
        (N, out_channels, oh, ow).
    """
    kernel_size = _kernel_size(weight)
    oh, ow = geometry.conv2d_output_size(input.shape[2:], kernel_size)
    columns = _unfold(input, kernel_size, geometry)  # (N, groups, C/groups·kh·kw, oh·ow)
    output = _matrices(weight, geometry) @ columns
    output = output.view(len(input), len(weight), oh, ow)
    if bias is not None:
        output += bias.view(1, -1, 1, 1)
    return _activate(output, activation)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """dX = fold(Wᵀ · dY), dW = Σ_n dY_n · unfold(X_n)ᵀ, db = Σ_{n,y,x} dY, each group by itself.

    Args:
        grad_output: shaped as the output.
        input: forward's.
        weight: forward's.
        geometry: forward's.
        output: what forward returned if its activation was "relu"; otherwise None.
        needs_input_grad: False saves the work where nothing before this layer learns.
        residual: added to grad_input.

    Returns:
        grad_input (None if not needed), grad_weight and grad_bias, shaped as input, weight, bias.
    """
    if output is not None:
        grad_output = relu_backward(grad_output, output)
    kernel_size = _kernel_size(weight)
    grad = _grouped(grad_output.flatten(2), geometry)  # (N, groups, out_channels/groups, oh·ow)
    columns = _unfold(input, kernel_size, geometry)
    grad_weight = torch.einsum("ngol,ngkl->gok", grad, columns).reshape(weight.shape)
    grad_input = None
    if needs_input_grad:
        size = (input.shape[2], input.shape[3])
        grad_columns = _matrices(weight, geometry).mT @ grad
        grad_input = _fold(grad_columns, size, kernel_size, geometry)
        grad_input = grad_input if residual is None else grad_input + residual
    return grad_input, grad_weight, grad_output.sum((0, 2, 3))


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Y = crop(fold(Wᵀ · X)) + b: every input pixel adds its weighted kernel to the output.

    Args:
        input: (N, in_channels, H, W).
        weight: (in_channels, out_channels / groups, kh, kw).
        bias: (out_channels,) or None.
        geometry: stride, padding, dilation, output_padding and groups.
        activation: None, or "relu" applied to the output.

    Returns:
        (N, out_channels, oh, ow).
    """
    kernel_size = _kernel_size(weight)
    output_size = geometry.conv_transpose2d_output_size(input.shape[2:], kernel_size)
    uncropped = replace(geometry, padding=(0, 0), output_padding=(0, 0))
    canvas_size = uncropped.conv_transpose2d_output_size(input.shape[2:], kernel_size)
    # (N, groups, out_channels/groups·kh·kw, H·W)
    columns = _matrices(weight, geometry).mT @ _grouped(input.flatten(2), geometry)
    canvas = _fold(columns, canvas_size, kernel_size, uncropped)
    output = _window(canvas, geometry.padding, output_size)
    if bias is not None:
        output += bias.view(1, -1, 1, 1)
    return _activate(output, activation)


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """With C = unfold(uncrop(dY)): dX = W · C, dW = Σ_n X_n · C_nᵀ, db = Σ_{n,y,x} dY.

    Arguments and results are those of `conv2d_backward`.
    """
    if output is not None:
        grad_output = relu_backward(grad_output, output)
    kernel_size = _kernel_size(weight)
    uncropped = replace(geometry, padding=(0, 0), output_padding=(0, 0))
    canvas_size = uncropped.conv_transpose2d_output_size(input.shape[2:], kernel_size)
    start = (-geometry.padding[0], -geometry.padding[1])
    canvas = _window(grad_output, start, canvas_size)
    columns = _unfold(canvas, kernel_size, uncropped)
    grad_input = None
    if needs_input_grad:
        grad_input = (_matrices(weight, geometry) @ columns).view_as(input)
        grad_input = grad_input if residual is None else grad_input + residual
    grouped = _grouped(input.flatten(2), geometry)
    grad_weight = torch.einsum("ngcl,ngkl->gck", grouped, columns).reshape(weight.shape)
    return grad_input, grad_weight, grad_output.sum((0, 2, 3))


def _kernel_size(weight: Tensor) -> IntPair:
    return weight.shape[2], weight.shape[3]


def _activate(output: Tensor, activation: Activation) -> Tensor:
    return relu_forward(output) if activation == "relu" else output


def _matrices(weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """A weight as one matrix for each group."""
    return weight.reshape(geometry.groups, len(weight) // geometry.groups, -1)


def _grouped(channels: Tensor, geometry: ConvGeometry) -> Tensor:
    """(N, channels, positions) as (N, groups, channels/groups, positions)."""
    n, c, positions = channels.shape
    return channels.reshape(n, geometry.groups, c // geometry.groups, positions)


def _unfold(image: Tensor, kernel_size: IntPair, geometry: ConvGeometry) -> Tensor:
    columns = unfold(image, kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    return _grouped(columns, geometry)


def _fold(columns: Tensor, size: IntPair, kernel_size: IntPair, geometry: ConvGeometry) -> Tensor:
    joined, padding = columns.flatten(1, 2), geometry.padding
    return fold(joined, size, kernel_size, geometry.dilation, padding, geometry.stride)


def _window(image: Tensor, start: IntPair, size: IntPair) -> Tensor:
    """A copy of `image` from `start` (may be negative), `size` tall and wide; zero outside."""
    output = image.new_zeros(*image.shape[:2], *size)
    source, target = [], []
    for extent, first, length in zip(image.shape[2:], start, size, strict=True):
        low, high = max(first, 0), max(min(extent, first + length), max(first, 0))
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    output[:, :, target[0], target[1]] = image[:, :, source[0], source[1]]
    return output


def relu_forward(input: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    return input.clamp_min(0)


def relu_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """0 where the output is 0, grad_output elsewhere (torch's choices at exactly 0 and at NaN)."""
    return torch.where(output <= 0, 0, grad_output)


def sigmoid_forward(input: Tensor) -> Tensor:
    """1/(1 + e^−x), from e^−|x| ≤ 1 so that no finite x overflows."""
    exp = input.abs().neg_().exp_()
    return torch.where(input >= 0, 1, exp) / (1 + exp)


def sigmoid_forward_(input: Tensor) -> Tensor:
    """The same in the place of x."""
    return input.copy_(sigmoid_forward(input))


def sigmoid_backward(grad_output: Tensor, output: Tensor) -> Tensor:
    """dσ/dx = σ·(1 − σ), from the saved output."""
    return grad_output * output * (1 - output)


def upsample_nearest2d_forward(input: Tensor, scale_factor: IntPair) -> Tensor:
    """Repeat every pixel sh times down and sw times across: (N, C, H, W) → (N, C, H·sh, W·sw)."""
    sh, sw = scale_factor
    return input.repeat_interleave(sh, dim=2).repeat_interleave(sw, dim=3)


def upsample_nearest2d_backward(grad_output: Tensor, scale_factor: IntPair) -> Tensor:
    """Each input pixel gets the sum of the gradients of its copies."""
    sh, sw = scale_factor
    n, c, oh, ow = grad_output.shape
    return grad_output.reshape(n, c, oh // sh, sh, ow // sw, sw).sum((3, 5))


def normalize(input: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean)/std, one value per channel or one for all."""
    shift, scale = (input.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (input - shift) / scale


def mse_loss(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L = Σ (x − y)²/n, n = N·C·H·W, and dL/dx = 2·(x − y)/n, from one difference.

    Args:
        input: any shape.
        target: the same shape.

    Returns:
        The loss, a 0-d tensor, and its gradient, shaped as input; of no elements the loss is NaN.
    """
    difference = input - target
    return difference.square().mean(), difference.mul_(2 / max(input.numel(), 1))


def sgd_step(
    parameters: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    lr: float | Tensor,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """p ← p − lr·v in place, for all parameters together, which are returned; see `optim.SGD`.

    Args:
        parameters: to move.
        grads: their gradients.
        velocities: changed in place; empty without momentum.
        lr: learning rate; a 0-d tensor where a CUDA graph replays the step at another.
        momentum: v = momentum·v + g.
        nesterov: move along g + momentum·v.
        weight_decay: g = grad + weight_decay·p.
    """
    steps = grads
    if weight_decay:
        steps = list(torch._foreach_add(grads, parameters, alpha=weight_decay))
    if velocities:
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, steps)
        along = torch._foreach_add(steps, velocities, alpha=momentum) if nesterov else velocities
        steps = list(along)
    if isinstance(lr, Tensor):
        torch._foreach_sub_(parameters, torch._foreach_mul(steps, lr))
    else:
        torch._foreach_sub_(parameters, steps, alpha=lr)
    return parameters


# Coefficients of x ← a·x + b·x³ + c·x⁵ on singular values (Jordan et al., 2024).
QUINTIC = (3.4445, -4.775, 2.0315)
LEAST_NORM = 1e-7


def orthogonalize(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """Return matrices with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Newton-Schulz: every step applies an odd quintic to the singular values of X, scaled to a
    Frobenius norm of 1. That is a polynomial in X·Xᵀ times X, so all but the last product work on
    the small square X·Xᵀ: two fifths of the multiplications for a 3×3 convolution. Matrices of one
    shape are multiplied together.

    Args:
        matrices: (R, C) each.
        steps: ≥ 1.
    """
    a, b, c = QUINTIC
    results: dict[int, Tensor] = {}
    shapes: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        shapes.setdefault(matrix.shape, []).append(index)
    for (rows, columns), indices in shapes.items():
        batch = torch.stack([matrices[index] for index in indices])
        wide = batch.mT if rows > columns else batch
        wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(LEAST_NORM)
        gram = wide @ wide.mT
        product = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).expand_as(gram)
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor @ product
            if step + 1 < steps:
                gram = factor @ gram @ factor
        result = product @ wide
        results.update(zip(indices, result.mT if rows > columns else result, strict=True))
    return [results[index] for index in range(len(results))]
