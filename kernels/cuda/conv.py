"""Convolution and transposed convolution, made of three kernels.

As in `gemm.conv`, both join a larger image L and a smaller image S by a kernel W (S, L, kh, kw):

    conv2d             S = conv_forward(L)      dL = conv_transpose(dS)   dW = windows(L)ᵀ · dS
    conv_transpose2d   L = conv_transpose(S)    dS = conv_forward(dL)     dW = windows(dL)ᵀ · S

Operands are float32, bfloat16 or float16, sums float32; weight and bias gradients come back in
float32 whatever the operands, since that is what parameters are kept in. float64, dilated
kernels and groups are declined: `gemm/` does those.
"""

from functools import cache

import torch
from torch import Tensor

from ..errors import NotCoveredError
from ..geometry import (
    Activation,
    ConvGeometry,
    FusedActivation,
    IntPair,
    Standard,
    lower_precision,
)
from ..weight_cache import kept
from .conv_forward import conv_forward
from .conv_transpose import conv_transpose
from .packed_weights import packed
from .relu_backward import relu_backward_bias_grad
from .tiles import is_shuffle
from .weight_grad import weight_grad

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Triton implementation of `reference.conv2d_forward`."""
    return conv2d_fused(input, weight, bias, geometry, activation)


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """Triton implementation of `gemm.fused.conv2d_fused`."""
    arguments = bias, geometry, activation, upsample, unshuffle, shuffle, residual
    return _conv2d(input.dtype, input, weight, *arguments)


def conv2d_image(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
    standard: Standard | None = None,
    planes: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Triton implementation of `gemm.fused.conv2d_image`."""
    dtype = lower_precision(input.dtype, weight.dtype)
    arguments = bias, geometry, activation, upsample, unshuffle, shuffle, residual
    return _conv2d(dtype, input, weight, *arguments, standard, planes, gate)


def _conv2d(
    dtype: torch.dtype,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation,
    upsample: IntPair,
    unshuffle: int,
    shuffle: int,
    residual: Tensor | None,
    standard: Standard | None = None,
    planes: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`conv2d_image`, computed in `dtype`."""
    _check_covered(input, geometry)
    if unshuffle > 1 and upsample != (1, 1):
        raise NotCoveredError("upsampling and unshuffling at once")
    height, width = (
        extent * up // unshuffle for extent, up in zip(input.shape[2:], upsample, strict=True)
    )
    size = geometry.conv2d_output_size((height, width), weight.shape[2:])
    channels = len(weight) // shuffle**2
    written = dtype if residual is None else torch.promote_types(dtype, residual.dtype)
    if written not in DTYPES:
        raise NotCoveredError(f"a residual of {written}")
    output = _new_image(input, channels, (size[0] * shuffle, size[1] * shuffle), written)
    if bias is not None and shuffle > 1:
        bias = _shuffled(bias, channels)
    conv_forward(
        _nhwc(input),
        packed(weight, dtype, shuffle),
        bias,
        output,
        geometry,
        kernel=_kernel(weight),
        weight_strides=(len(weight), 1),
        activation=activation,
        residual=_as_output(residual, output),
        upsample=upsample,
        unshuffle=unshuffle,
        shuffle=(shuffle, shuffle),
        standard=None if standard is None else _standard(*standard, input.shape[1], input.device),
        planes=None if planes is None else planes.float().contiguous(),
        gate=None if gate is None else gate.float().contiguous(),
    )
    return output.permute(0, 3, 1, 2)


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Triton implementation of `reference.conv2d_backward`, grad_weight and grad_bias float32."""
    _check_covered(input, geometry)
    grad, grad_bias = _relu_backward(grad_output, output)
    grad_input = None
    if needs_input_grad:
        image = _new_image(input, input.shape[1], (input.shape[2], input.shape[3]))
        _conv_transpose(grad, weight, None, image, geometry, residual=_as_output(residual, image))
        grad_input = image.permute(0, 3, 1, 2)
    return grad_input, weight_grad(_nhwc(input), grad, _kernel(weight), geometry), grad_bias


def conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Tensor:
    """Triton implementation of `reference.conv_transpose2d_forward`."""
    return conv_transpose2d_fused(input, weight, bias, geometry, activation)


def conv_transpose2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Triton implementation of `gemm.fused.conv_transpose2d_fused`."""
    _check_covered(input, geometry)
    size = geometry.conv_transpose2d_output_size(input.shape[2:], weight.shape[2:])
    output = _new_image(input, weight.shape[1], size)
    residual = _as_output(residual, output)
    _conv_transpose(_nhwc(input), weight, bias, output, geometry, activation, residual)
    return output.permute(0, 3, 1, 2)


def conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Triton implementation of `reference.conv_transpose2d_backward`, as `conv2d_backward`."""
    _check_covered(input, geometry)
    grad, grad_bias = _relu_backward(grad_output, output)
    grad_input = None
    if needs_input_grad:
        image = _new_image(input, len(weight), (input.shape[2], input.shape[3]))
        conv_forward(
            grad,
            packed(weight, grad.dtype),
            None,
            image,
            geometry,
            kernel=_kernel(weight),
            weight_strides=(len(weight), 1),
            residual=_as_output(residual, image),
        )
        grad_input = image.permute(0, 3, 1, 2)
    return grad_input, weight_grad(grad, _nhwc(input), _kernel(weight), geometry), grad_bias


def _conv_transpose(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    residual: Tensor | None = None,
) -> None:
    """L = conv_transpose(S) for images (N, H, W, C) and a weight (S, L, kh, kw).

    Where the kernels tile the output (kernel = stride, nothing cut off or added), all phases are
    the columns of one product of a single tap, whose result is shuffled: S is read once.
    """
    kernel, stride = _kernel(weight), geometry.stride
    sizes = [(image.shape[1], image.shape[2]) for image in (small, output)]
    weights = packed(weight, small.dtype)
    if is_shuffle(kernel, geometry, *sizes):
        conv_forward(
            small,
            weights,
            bias,
            output,
            ConvGeometry(),
            kernel=(1, 1),
            # (kh, kw, L) are the columns.
            weight_strides=(1, len(weight)),
            activation=activation,
            residual=residual,
            shuffle=stride,
        )
        return
    conv_transpose(
        small,
        weights,
        bias,
        output,
        geometry,
        kernel=kernel,
        weight_strides=(1, len(weight)),
        activation=activation,
        residual=residual,
    )


def _check_covered(input: Tensor, geometry: ConvGeometry) -> None:
    """Raise what sends a call to `gemm/`.

    Raises:
        NotCoveredError: float64, a dilated kernel, groups, or an empty batch.
    """
    if input.dtype not in DTYPES:
        raise NotCoveredError(f"{input.dtype}")
    if geometry.dilation != (1, 1):
        raise NotCoveredError(f"dilation {geometry.dilation}")
    if geometry.groups > 1:
        raise NotCoveredError(f"{geometry.groups} groups")
    if not input.numel():
        raise NotCoveredError("an empty batch")


def _relu_backward(grad_output: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
    """(dZ, grad_bias)."""
    return relu_backward_bias_grad(_nhwc(grad_output), None if output is None else _nhwc(output))


def _as_output(residual: Tensor | None, output: Tensor) -> Tensor | None:
    """The residual in the output's layout.

    Raises:
        NotCoveredError: it would have to be broadcast.
    """
    if residual is None:
        return None
    residual = _nhwc(residual)
    if residual.shape != output.shape:
        raise NotCoveredError(f"a residual {tuple(residual.shape)} of {tuple(output.shape)}")
    return residual


def _kernel(weight: Tensor) -> IntPair:
    return weight.shape[2], weight.shape[3]


def _nhwc(image: Tensor) -> Tensor:
    """(N, C, H, W) of any strides as (N, H, W, C) contiguous; no copy of a channels-last one."""
    return image.permute(0, 2, 3, 1).contiguous()


def _shuffled(bias: Tensor, channels: int) -> Tensor:
    """(c·r²,) in the order (r², c); kept while it does not change."""
    return kept(
        bias, ("shuffled", channels), lambda: bias.view(channels, -1).T.contiguous().flatten()
    )


def _new_image(
    like: Tensor, channels: int, size: IntPair, dtype: torch.dtype | None = None
) -> Tensor:
    """An uninitialised (N, H, W, C)."""
    return like.new_empty((len(like), *size, channels), dtype=dtype)


@cache
def _standard(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, device: torch.device
) -> Tensor:
    """(2, C) float32: the channels' means, and one by their deviations.

    Kept for good: on CUDA an upload waits, and a recorded graph reads it where it lies.
    """
    means, deviations = (torch.tensor(values).expand(channels) for values in (mean, std))
    return torch.stack([means, 1 / deviations]).to(device)
