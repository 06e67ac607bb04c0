"""Does a kernel give the right results for calls of a kind? One small problem of that kind decides.

Numbers are drawn from one fixed seed, on the host, so that every device tries the same ones;
expected results are computed on the host in float64, from the very numbers that the kernel got.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import NotCoveredError, UncheckableError, first_line, is_out_of_memory
from .geometry import Activation, ConvGeometry, FusedActivation, IntPair, Standard

Op = Callable[..., Any]
Arguments = tuple[Any, ...]
Status = Literal["ok", "failed", "unavailable"]

# Largest difference relative to the largest expected element. Each result rounds once (2⁻⁹ for
# bfloat16, 2⁻¹² for float16), its sum is float32.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SEED = 20220527
BATCH = 2
# Odd, unequal, and 286 positions: more than two tiles of 128.
EXTENTS = (13, 11)


@dataclass(frozen=True)
class KernelCheck:
    """The result of checking one op.

    Attributes:
        name: the op and the precision, as in "conv2d_forward bfloat16".
        implementation: "triton" (compared with gemm), "gemm" or "native" (with reference).
        status: ok; failed: wrong results, or it raised; unavailable: there is none here.
        error: largest difference relative to the largest expected element, the worst tensor's;
            None if there was no result.
        tolerance: the largest `error` allowed.
        reason: why the status is not ok.
    """

    name: str
    implementation: str
    status: Status
    error: float | None
    tolerance: float
    reason: str = ""


def check_call(
    name: str,
    implementation: str,
    kernel: Op,
    expected_op: Op,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> KernelCheck:
    """Compare `kernel` with `expected_op` on a small problem of the kind of `kernel(*args)`.

    Exceptions of `kernel` make the check fail, except out of memory, which is raised.

    Raises:
        NotCoveredError: `kernel` declines calls of this kind.
        UncheckableError: `expected_op` raises too, or there is no small problem like this call.
    """
    try:
        small = SMALL_PROBLEM_FOR[name](*args, **kwargs)
        expected = list(_tensors(expected_op(*map(_as_float64, small))))
    except Exception as cause:  # whatever a wrong call raises
        if is_out_of_memory(cause):
            raise
        raise UncheckableError(name) from cause
    try:
        error = _error(list(_tensors(kernel(*small))), expected)
    except NotCoveredError:
        raise
    except Exception as failure:  # whatever a compiler or a driver raises is the kernel's failure
        if is_out_of_memory(failure):
            raise
        return failed_check(name, implementation, small, in_words(failure))
    label, tolerance = _label(name, small)
    if error <= tolerance:
        return KernelCheck(label, implementation, "ok", error, tolerance)
    reason = f"wrong results: error {error:.2g}, allowed {tolerance:.2g}"
    return KernelCheck(label, implementation, "failed", error, tolerance, reason)


def failed_check(name: str, implementation: str, args: Sequence[Any], reason: str) -> KernelCheck:
    """The row of an op that gave no result for a call."""
    label, tolerance = _label(name, args)
    return KernelCheck(label, implementation, "failed", None, tolerance, reason)


def in_words(failure: BaseException) -> str:
    """An exception's type and first line."""
    return f"{type(failure).__name__}: {first_line(failure)}"


def _label(name: str, args: Sequence[Any]) -> tuple[str, float]:
    """(Op and precision, the largest error allowed)."""
    dtype = _precision(args)
    tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
    return f"{name} {str(dtype).removeprefix('torch.')}", tolerance


def kind_in_words(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The kind of a call for the user: op, precision and, of a convolution, the weight's shape."""
    precision = _precision([*args, *kwargs.values()])
    words = f"{name} {str(precision).removeprefix('torch.')}"
    if name in WEIGHT:
        words += " " + "×".join(map(str, args[WEIGHT[name]].shape))
    return words


def signature(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """The kind of a call: equal for calls that one check speaks for."""
    if name in SAMPLES:  # whose numbers differ with every file
        given = [*args, *kwargs.values()]
        return name, *(each.dtype if isinstance(each, Tensor) else each is None for each in given)
    weight = WEIGHT.get(name)
    traits = (_trait(value, index == weight) for index, value in enumerate(args))
    return name, *traits, *((key, _trait(value, False)) for key, value in kwargs.items())


def example_inputs(
    device: torch.device, dtypes: Sequence[torch.dtype]
) -> Iterator[tuple[str, torch.dtype, list[Arguments]]]:
    """Yield (op, precision, calls) for every op: the geometries of the shipped networks' layers.

    Only shapes and precisions count; `check_call` draws the numbers.
    """
    square = ConvGeometry(padding=(1, 1))
    stride = ConvGeometry(stride=(2, 2))
    strided = ConvGeometry(stride=(2, 2), padding=(1, 1))
    plain = [(12, 32, 3, square), (32, 64, 2, stride), (3, 24, 4, stride), (24, 48, 3, strided)]
    plain += [(14, 64, 3, square), (64, 64, 2, stride), (64, 2, 1, ConvGeometry())]
    transposed = [(64, 32, 2, stride), (64, 64, 2, stride), (48, 24, 3, stride), (24, 3, 4, stride)]
    for dtype in dtypes:
        new = torch.empty(0, device=device, dtype=dtype).new_empty
        calls: dict[str, list[Arguments]] = {name: [] for name in SMALL_PROBLEM_FOR}
        for into, out, kernel, geometry in plain:
            weight, image = new(out, into, kernel, kernel), new(1, into, 1, 1)
            grad, bias = new(1, out, 1, 1), new(out)
            calls["conv2d_forward"].append((image, weight, bias, geometry, "relu"))
            calls["conv2d_backward"].append((grad, image, weight, geometry, grad, True, image))
        for into, out, kernel, geometry in transposed:
            weight, image = new(into, out, kernel, kernel), new(1, into, 1, 1)
            grad, bias = new(1, out, 1, 1), new(out)
            calls["conv_transpose2d_forward"].append((image, weight, bias, geometry, "relu"))
            calls["conv_transpose2d_backward"].append((grad, image, weight, geometry, grad))
        image, wide, wider = (new(1, channels, 1, 1) for channels in (3, 32, 64))
        none = (1, 1)  # no upsampling
        calls["conv2d_fused"] = [
            # unet's stem, head and bodies; unet-level's; the estimator's; upsample's last layer.
            (image, new(32, 12, 3, 3), new(32), square, None, none, 2),
            (wide, new(12, 32, 3, 3), new(12), square, None, none, 1, 2),
            (wide, new(32, 32, 3, 3), new(32), square, None, none, 1, 1, wide),
            (new(1, 14, 1, 1), new(64, 14, 3, 3), new(64), square),
            (wider, new(12, 64, 3, 3), new(12), square, None, none, 1, 2),
            (wider, new(64, 64, 3, 3), new(64), square, None, none, 1, 1, wider),
            (image, new(32, 12, 3, 3), new(32), square, "relu", none, 2),
            (wide, new(32, 32, 3, 3), new(32), strided, "relu"),
            (wider, new(2, 64, 1, 1), new(2), ConvGeometry()),
            (new(1, 24, 1, 1), new(3, 24, 3, 3), new(3), square, "sigmoid", (2, 2)),
        ]
        # The ends, between them and images in float32.
        single = torch.empty(0, device=device).new_empty
        pixels, standard = single(1, 3, 1, 1), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        stem, told, level = new(32, 12, 3, 3), new(64, 14, 3, 3), single(1, 2)
        calls["conv2d_image"] = [
            (pixels, stem, new(32), square, None, none, 2, 1, None, standard),
            (pixels, stem, new(32), square, "relu", none, 2, 1, None, ((0.5,), (0.25,))),
            (pixels, told, new(64), square, None, none, 2, 1, None, standard, level),
            (pixels, new(24, 3, 4, 4), new(24), stride, "relu", none, 1, 1, None, standard),
            (wide, single(12, 32, 3, 3), new(12), square, None, none, 1, 2, pixels),
            (
                *(wider, single(12, 64, 3, 3), new(12), square, None, none, 1, 2, pixels),
                *(None, None, single(1)),
            ),
        ]
        calls["conv_transpose2d_fused"] = [
            (new(1, 64, 1, 1), new(64, 32, 2, 2), new(32), stride, None, wide),
            (new(1, 48, 1, 1), new(48, 32, 3, 3), new(32), stride, None, wide),
        ]
        for name in ("upsample_nearest2d_forward", "upsample_nearest2d_backward"):
            calls[name] = [(image, (2, 2))]
        calls["sigmoid_forward"] = [(image,)]
        calls["sigmoid_forward_"] = [(image,)]
        calls["sigmoid_backward"] = [(image, image)]
        calls["mse_loss"] = [(image, image)]
        calls["normalize"] = [(image, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))]
        calls["pixel_unshuffle"] = [(image, 2)]
        calls["pixel_shuffle"] = [(new(1, 12, 1, 1), 2)]
        stored = [single(1, 8, 8, 3).to(kind) for kind in (torch.uint8, torch.uint16)]
        stored.append(single(1, 8, 8, 3))
        calls["unit_padded"] = [(each, 0.0, 1.0, 0.5, (32, 32), 4) for each in stored]
        calls["stored_samples"] = [
            (pixels, stored[0], 0.0, 1.0, 0.5, (0, 255), False, 4),
            (pixels, stored[1], 0.0, 1.0, 0.5, (0, 255), True, 4),
            (pixels, stored[2], 0.0, 1.0, 0.5, None, True, 4),
        ]
        calls["limit_residual"] = [(pixels, pixels, single(1), 2.0)]
        vectors = [new(5), new(1000)]
        calls["sgd_step"] = [
            (vectors, vectors, vectors, 0.1, 0.9, True, 1e-2),
            (vectors, vectors, [], 0.1),
        ]
        calls["orthogonalize"] = [([new(32, 9), new(24, 108)], 5)]
        calls["residual_pair"] = []
        for hidden in (wide, wider):
            weight, bias = new(hidden.shape[1], hidden.shape[1], 3, 3), new(hidden.shape[1])
            calls["residual_pair"].append((hidden, weight, bias, weight, bias))
        for name, chosen in calls.items():
            yield name, dtype, chosen


def _trait(value: Any, is_weight: bool) -> Hashable:
    if not isinstance(value, Tensor):
        return value  # type: ignore[no-any-return]
    return (value.dtype, value.shape) if is_weight else value.dtype


def _as_float64(value: Any) -> Any:
    """Tensors, alone or in lists, as float64 copies on the host; anything else as it is."""
    if isinstance(value, list):
        return [_as_float64(item) for item in value]
    return value.to("cpu", torch.float64, copy=True) if isinstance(value, Tensor) else value


def _precision(arguments: Sequence[Any]) -> torch.dtype:
    """That of a call's arithmetic: the lowest of its tensors', of equal ones the first's."""
    return min((each.dtype for each in _tensors(arguments)), key=lambda dtype: dtype.itemsize)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    worst = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        theirs = theirs.to(torch.float64)  # flags, too
        scale = theirs.abs().max().clamp_min(1e-30)
        error = ((ours.to("cpu", torch.float64) - theirs).abs().max() / scale).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(*shape, generator=generator)
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.to(like.device, like.dtype)


def _weight(weight: Tensor, generator: torch.Generator) -> Tensor:
    fan_in = max(weight.numel() / max(weight.shape[0], weight.shape[1]), 1)
    values = torch.randn(weight.shape, generator=generator) / math.sqrt(fan_in)
    return values.to(weight.device, weight.dtype)


def _bias(bias: Tensor | None, like: Tensor, generator: torch.Generator) -> Tensor | None:
    return None if bias is None else _normal(bias.shape, like, generator)


def _relu_output(output: Tensor | None, grad: Tensor, generator: torch.Generator) -> Tensor | None:
    """A ReLU's output for a backward that was given one: half of it is 0."""
    return None if output is None else _normal(grad.shape, grad, generator).clamp_min_(0)


def _conv2d_sizes(weight: Tensor, geometry: ConvGeometry) -> tuple[IntPair, IntPair]:
    """(input, output): the smallest input with an output of EXTENTS, or one row and column more."""
    axes = zip(
        EXTENTS,
        weight.shape[2:],
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        strict=True,
    )
    height, width = (max((o - 1) * s + d * (k - 1) + 1 - 2 * p, 1) for o, k, s, p, d in axes)
    return (height, width), geometry.conv2d_output_size((height, width), weight.shape[2:])


def _conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Arguments:
    generator = _generator()
    size, _ = _conv2d_sizes(weight, geometry)
    image = _normal((BATCH, weight.shape[1] * geometry.groups, *size), input, generator)
    small_bias = _bias(bias, input, generator)
    return image, _weight(weight, generator), small_bias, geometry, activation


def _conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> Arguments:
    generator = _generator()
    size, output_size = _conv2d_sizes(weight, geometry)
    image = _normal((BATCH, weight.shape[1] * geometry.groups, *size), input, generator)
    grad = _normal((BATCH, weight.shape[0], *output_size), input, generator)
    small_weight = _weight(weight, generator)
    relu_output = _relu_output(output, grad, generator)
    added = None if residual is None else _normal(image.shape, residual, generator)
    return grad, image, small_weight, geometry, relu_output, needs_input_grad, added


def _conv_transpose2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: Activation = None,
) -> Arguments:
    generator = _generator()
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    small_bias = _bias(bias, input, generator)
    return image, _weight(weight, generator), small_bias, geometry, activation


def _conv_transpose2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    output: Tensor | None = None,
    needs_input_grad: bool = True,
    residual: Tensor | None = None,
) -> Arguments:
    generator = _generator()
    size = geometry.conv_transpose2d_output_size(EXTENTS, weight.shape[2:])
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    grad = _normal((BATCH, weight.shape[1] * geometry.groups, *size), input, generator)
    small_weight = _weight(weight, generator)
    relu_output = _relu_output(output, grad, generator)
    added = None if residual is None else _normal(image.shape, residual, generator)
    return grad, image, small_weight, geometry, relu_output, needs_input_grad, added


def _conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
) -> Arguments:
    generator = _generator()
    size, _ = _conv2d_sizes(weight, geometry)
    height, width = (
        -(-extent // up) * unshuffle for extent, up in zip(size, upsample, strict=True)
    )
    image = _normal((BATCH, input.shape[1], height, width), input, generator)
    seen = (height * upsample[0] // unshuffle, width * upsample[1] // unshuffle)
    oh, ow = geometry.conv2d_output_size(seen, weight.shape[2:])
    shape = (BATCH, len(weight) // shuffle**2, oh * shuffle, ow * shuffle)
    parameters = _fused_parameters(image, weight, bias, generator)
    small_residual = None if residual is None else _normal(shape, residual, generator)
    return image, *parameters, geometry, activation, upsample, unshuffle, shuffle, small_residual


def _conv2d_image(
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
) -> Arguments:
    between = activation, upsample, unshuffle, shuffle, residual
    drawn = _conv2d_fused(input, weight, bias, geometry, *between)
    generator = _generator()
    if planes is not None:
        planes = _normal((BATCH, planes.shape[1]), planes, generator)
    if gate is not None:
        gate = _normal((BATCH,), gate, generator)
    return *drawn, standard, planes, gate


def _conv_transpose2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    activation: FusedActivation = None,
    residual: Tensor | None = None,
) -> Arguments:
    generator = _generator()
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    size = geometry.conv_transpose2d_output_size(EXTENTS, weight.shape[2:])
    parameters = _fused_parameters(image, weight, bias, generator)
    small_residual = None
    if residual is not None:
        shape = (BATCH, weight.shape[1] * geometry.groups, *size)
        small_residual = _normal(shape, residual, generator)
    return image, *parameters, geometry, activation, small_residual


def _fused_parameters(
    image: Tensor, weight: Tensor, bias: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """The weight may be of a higher precision than the image, but its values are the image's."""
    drawn = _weight(weight, generator).to(image.dtype).to(weight.dtype)
    return drawn, None if bias is None else _normal(bias.shape, bias, generator)


def _upsample_forward(input: Tensor, scale_factor: IntPair) -> Arguments:
    return _normal((BATCH, input.shape[1], *EXTENTS), input, _generator()), scale_factor


def _upsample_backward(grad_output: Tensor, scale_factor: IntPair) -> Arguments:
    size = (EXTENTS[0] * scale_factor[0], EXTENTS[1] * scale_factor[1])
    shape = (BATCH, grad_output.shape[1], *size)
    return _normal(shape, grad_output, _generator()), scale_factor


def _elementwise(*images: Tensor) -> Arguments:
    """More than a pointwise kernel's block of 2048 elements, and not a whole number of them."""
    generator = _generator()
    size = [2 * extent for extent in EXTENTS]
    return tuple(_normal((BATCH, 3, *size), image, generator) for image in images)


def _normalize(input: Tensor, mean: Sequence[float], std: Sequence[float]) -> Arguments:
    return _normal((BATCH, input.shape[1], *EXTENTS), input, _generator()), mean, std


def _pixel_unshuffle(input: Tensor, factor: int) -> Arguments:
    size = (EXTENTS[0] * factor, EXTENTS[1] * factor)
    return _normal((BATCH, input.shape[1], *size), input, _generator()), factor


def _pixel_shuffle(input: Tensor, factor: int) -> Arguments:
    return _normal((BATCH, input.shape[1], *EXTENTS), input, _generator()), factor


def _limit_residual(input: Tensor, output: Tensor, level: Tensor, most: float) -> Arguments:
    generator = _generator()
    shape = (BATCH, input.shape[1], 24, 40)
    before, noise = (_normal(shape, input, generator) for _ in range(2))
    levels = torch.tensor([0.3, 0.9]).to(level.device, level.dtype)  # some blocks are limited
    return before, (before + noise).to(output.dtype), levels, most


# Of a small problem: any, within 8 bits, and what reflects to and fro.
_OFFSET, _SPAN, _MARGIN = 20.0, 200.0, 14


def _unit_padded(
    samples: Tensor, offset: float, span: float, beyond: float, size: IntPair, margin: int
) -> Arguments:
    drawn = _samples(samples, _generator())
    size = (EXTENTS[0] + 2 * _MARGIN + 3, EXTENTS[1] + 2 * _MARGIN + 5)
    return drawn, _OFFSET, _SPAN, beyond, size, _MARGIN


def _stored_samples(
    values: Tensor,
    samples: Tensor,
    offset: float,
    span: float,
    beyond: float,
    levels: IntPair | None,
    is_relative: bool,
    margin: int,
) -> Arguments:
    generator = _generator()
    drawn = _samples(samples, generator)
    shape = (BATCH, *(extent + 2 * _MARGIN + 3 for extent in EXTENTS), drawn.shape[3])
    # Off the middle between two levels, where a rounding decides.
    new = torch.randint(0, 256, shape, generator=generator)
    new = new + 0.6 * (torch.rand(shape, generator=generator) - 0.5)
    offset = _OFFSET if is_relative else 0.0
    small = ((new - offset) / _SPAN).permute(0, 3, 1, 2).to(values.device, values.dtype)
    levels = None if levels is None else (0, 255)
    return small, drawn, offset, _SPAN, beyond, levels, is_relative, _MARGIN


def _samples(samples: Tensor, generator: torch.Generator) -> Tensor:
    shape = (BATCH, *EXTENTS, samples.shape[3])
    return torch.randint(0, 256, shape, generator=generator).to(samples.device, samples.dtype)


def _residual_pair(
    input: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> Arguments:
    generator = _generator()
    image = _normal((BATCH, input.shape[1], *EXTENTS), input, generator)
    first = _fused_parameters(image, weight1, bias1, generator)
    return image, *first, *_fused_parameters(image, weight2, bias2, generator)


def _sgd_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *options: float,
) -> Arguments:
    generator = _generator()
    drawn = (
        [_normal(tensor.shape, tensor, generator) for tensor in tensors]
        for tensors in (parameters, grads, velocities)
    )
    return *drawn, *options


def _orthogonalize(matrices: Sequence[Tensor], steps: int) -> Arguments:
    generator = _generator()
    return [_normal(matrix.shape, matrix, generator) for matrix in matrices], steps


# For each op: from the arguments of a call to those of a small problem of the same kind.
SMALL_PROBLEM_FOR: Mapping[str, Callable[..., Arguments]] = {
    "conv2d_forward": _conv2d_forward,
    "conv2d_backward": _conv2d_backward,
    "conv_transpose2d_forward": _conv_transpose2d_forward,
    "conv_transpose2d_backward": _conv_transpose2d_backward,
    "conv2d_fused": _conv2d_fused,
    "conv_transpose2d_fused": _conv_transpose2d_fused,
    "conv2d_image": _conv2d_image,
    "upsample_nearest2d_forward": _upsample_forward,
    "upsample_nearest2d_backward": _upsample_backward,
    "sigmoid_forward": _elementwise,
    "sigmoid_forward_": _elementwise,
    "sigmoid_backward": _elementwise,
    "mse_loss": _elementwise,
    "normalize": _normalize,
    "pixel_unshuffle": _pixel_unshuffle,
    "pixel_shuffle": _pixel_shuffle,
    "unit_padded": _unit_padded,
    "stored_samples": _stored_samples,
    "limit_residual": _limit_residual,
    "residual_pair": _residual_pair,
    "sgd_step": _sgd_step,
    "orthogonalize": _orthogonalize,
}

# Ops on files' samples: every file has its own range and size, which kernels take as they are.
SAMPLES = ("unit_padded", "stored_samples")

# Where a convolution's weight stands among its arguments: its whole shape belongs to the kind.
WEIGHT: Mapping[str, int] = {
    "conv2d_forward": 1,
    "conv2d_backward": 2,
    "conv_transpose2d_forward": 1,
    "conv_transpose2d_backward": 2,
    "conv2d_fused": 1,
    "conv2d_image": 1,
    "conv_transpose2d_fused": 1,
}
