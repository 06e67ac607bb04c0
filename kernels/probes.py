"""Small problems to try an op on: of the kind of a given call, or of the shipped networks' layers.

Everything is drawn from one fixed seed, on the host, so that every device tries the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import IntPair, conv2d_output_size, conv_transpose2d_output_size

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEED = 20220527
BATCH = 2
# Odd, unequal, and 286 positions: more than two tiles of 128.
EXTENTS = (13, 11)


def example_inputs(device: torch.device) -> Iterator[tuple[str, torch.dtype, list[Arguments]]]:
    """(op, precision, calls) for every op: the geometries of the shipped networks' layers."""
    for dtype in DTYPES:
        like = torch.empty(0, device=device, dtype=dtype)
        plain = [(12, 32, 3, 1, 1), (32, 64, 2, 2, 0), (3, 24, 4, 2, 0), (24, 48, 3, 2, 1)]
        transposed = [(64, 32, 2, 2, 0), (48, 24, 3, 2, 0), (24, 3, 4, 2, 0)]
        calls: dict[str, list[Arguments]] = {name: [] for name in SHRINK}
        for into, out, kernel, stride, padding in plain:
            options = _options(stride, padding)
            weight, image = like.new_empty(out, into, kernel, kernel), like.new_empty(1, into, 1, 1)
            grad, bias = like.new_empty(1, out, 1, 1), like.new_empty(out)
            forward = options | {"activation": "relu"}
            backward = options | {"output": grad, "needs_input_grad": True}
            calls["conv2d_forward"].append(((image, weight, bias), forward))
            calls["conv2d_backward"].append(((grad, image, weight), backward))
        for into, out, kernel, stride, padding in transposed:
            options = _options(stride, padding) | {"output_padding": (0, 0)}
            weight, image = like.new_empty(into, out, kernel, kernel), like.new_empty(1, into, 1, 1)
            grad, bias = like.new_empty(1, out, 1, 1), like.new_empty(out)
            forward = options | {"activation": "relu"}
            backward = options | {"output": grad, "needs_input_grad": True}
            calls["conv_transpose2d_forward"].append(((image, weight, bias), forward))
            calls["conv_transpose2d_backward"].append(((grad, image, weight), backward))
        _add_fused(calls, like)
        image = like.new_empty(1, 3, 1, 1)
        for name in ("upsample_nearest2d_forward", "upsample_nearest2d_backward"):
            calls[name].append(((image,), {"scale_factor": (2, 2)}))
        calls["sigmoid_forward"].append(((image,), {}))
        calls["sigmoid_backward"].append(((image, image), {}))
        calls["mse_loss"].append(((image, image), {}))
        for name, chosen in calls.items():
            if chosen:
                yield name, dtype, chosen


def _add_fused(calls: dict[str, list[Arguments]], like: Tensor) -> None:
    """The fused launches of the shipped networks: unet's stem, head and levels."""
    new = like.new_empty
    plain = _options(1, 1) | {"activation": None, "upsample": (1, 1), "unshuffle": 1, "shuffle": 1}
    plain |= {"residual": None}
    image = new(1, 3, 1, 1)
    calls["conv2d_fused"] = [
        ((image, new(32, 12, 3, 3), new(32)), plain | {"unshuffle": 2}),
        ((new(1, 32, 1, 1), new(12, 32, 3, 3), new(12)), plain | {"shuffle": 2}),
        ((new(1, 32, 1, 1), new(32, 32, 3, 3), new(32)), plain | {"residual": new(1, 32, 1, 1)}),
        (
            (new(1, 24, 1, 1), new(3, 24, 3, 3), new(3)),
            plain | {"upsample": (2, 2), "activation": "sigmoid"},
        ),
    ]
    options = _options(2, 0) | {"output_padding": (0, 0), "activation": None}
    options |= {"residual": new(1, 32, 1, 1)}
    calls["conv_transpose2d_fused"] = [
        ((new(1, 64, 1, 1), new(64, 32, 2, 2), new(32)), options),
        ((new(1, 48, 1, 1), new(48, 32, 3, 3), new(32)), options),
    ]


def _options(stride: int, padding: int) -> dict[str, Any]:
    return {"stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1)}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the host, so that every device checks the same numbers."""
    values = torch.randn(*shape, generator=generator)
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.to(like.device, like.dtype)


def _weight(weight: Tensor, generator: torch.Generator) -> Tensor:
    fan_in = max(weight.numel() / max(weight.shape[0], weight.shape[1]), 1)
    values = torch.randn(weight.shape, generator=generator) / math.sqrt(fan_in)
    return values.to(weight.device, weight.dtype)


def _conv2d_sizes(weight: Tensor, options: Mapping[str, Any]) -> tuple[IntPair, IntPair]:
    """(input, output): the smallest input with an output of EXTENTS, or one row and column more."""
    kernel = (weight.shape[2], weight.shape[3])
    stride, padding, dilation = options["stride"], options["padding"], options["dilation"]
    axes = zip(EXTENTS, kernel, stride, padding, dilation, strict=True)
    height, width = (max((o - 1) * s + d * (k - 1) + 1 - 2 * p, 1) for o, k, s, p, d in axes)
    size = (height, width)
    return size, conv2d_output_size(size, kernel, stride, padding, dilation)


def _conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
) -> Arguments:
    generator = _generator()
    size, _ = _conv2d_sizes(weight, options)
    image = _normal((BATCH, weight.shape[1], *size), input, generator)
    small_bias = None if bias is None else _normal(bias.shape, input, generator)
    return (image, _weight(weight, generator), small_bias), options


def _conv2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, **options: Any
) -> Arguments:
    generator = _generator()
    size, output_size = _conv2d_sizes(weight, options)
    image = _normal((BATCH, weight.shape[1], *size), input, generator)
    grad = _normal((BATCH, weight.shape[0], *output_size), input, generator)
    return (grad, image, _weight(weight, generator)), _with_output(options, grad, generator)


def _conv2d_fused(input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Arguments:
    generator = _generator()
    upsample, unshuffle = options["upsample"], options["unshuffle"]
    size, _ = _conv2d_sizes(weight, options)
    height, width = (
        -(-extent // up) * unshuffle for extent, up in zip(size, upsample, strict=True)
    )
    image = _normal((BATCH, input.shape[1], height, width), input, generator)
    seen = (height * upsample[0] // unshuffle, width * upsample[1] // unshuffle)
    kernel = (weight.shape[2], weight.shape[3])
    oh, ow = conv2d_output_size(
        seen, kernel, options["stride"], options["padding"], options["dilation"]
    )
    shuffle = options["shuffle"]
    shape = (BATCH, len(weight) // shuffle**2, oh * shuffle, ow * shuffle)
    return _fused(image, weight, bias, options, shape, generator)


def _conv_transpose2d_fused(
    input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
) -> Arguments:
    generator = _generator()
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    shape = (BATCH, weight.shape[1], *_transposed_size(weight, options))
    return _fused(image, weight, bias, options, shape, generator)


def _fused(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    options: Mapping[str, Any],
    output_shape: Sequence[int],
    generator: torch.Generator,
) -> Arguments:
    """The weight may be of a higher precision than the image, but its values are the image's."""
    drawn = _weight(weight, generator).to(image.dtype).to(weight.dtype)
    small_bias = None if bias is None else _normal(bias.shape, bias, generator)
    small = dict(options)
    if options["residual"] is not None:
        small["residual"] = _normal(output_shape, options["residual"], generator)
    return (image, drawn, small_bias), small


def _transposed_size(weight: Tensor, options: Mapping[str, Any]) -> IntPair:
    return conv_transpose2d_output_size(
        EXTENTS,
        (weight.shape[2], weight.shape[3]),
        options["stride"],
        options["padding"],
        options["output_padding"],
        options["dilation"],
    )


def _conv_transpose2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any
) -> Arguments:
    generator = _generator()
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    small_bias = None if bias is None else _normal(bias.shape, input, generator)
    return (image, _weight(weight, generator), small_bias), options


def _conv_transpose2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, **options: Any
) -> Arguments:
    generator = _generator()
    size = _transposed_size(weight, options)
    image = _normal((BATCH, weight.shape[0], *EXTENTS), input, generator)
    grad = _normal((BATCH, weight.shape[1], *size), input, generator)
    return (grad, image, _weight(weight, generator)), _with_output(options, grad, generator)


def _with_output(
    options: Mapping[str, Any], grad: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """A ReLU's output for a backward that was given one: half of it is 0."""
    if options.get("output") is None:
        return dict(options)
    return {**options, "output": _normal(grad.shape, grad, generator).clamp_min_(0)}


def _upsample_forward(input: Tensor, *, scale_factor: IntPair) -> Arguments:
    image = _normal((BATCH, input.shape[1], *EXTENTS), input, _generator())
    return (image,), {"scale_factor": scale_factor}


def _upsample_backward(grad_output: Tensor, *, scale_factor: IntPair) -> Arguments:
    size = (EXTENTS[0] * scale_factor[0], EXTENTS[1] * scale_factor[1])
    grad = _normal((BATCH, grad_output.shape[1], *size), grad_output, _generator())
    return (grad,), {"scale_factor": scale_factor}


def _elementwise(*images: Tensor) -> Arguments:
    generator = _generator()
    shape = (BATCH, 3, *EXTENTS)
    return tuple(_normal(shape, image, generator) for image in images), {}


SHRINK: Mapping[str, Callable[..., Arguments]] = {
    "conv2d_forward": _conv2d_forward,
    "conv2d_backward": _conv2d_backward,
    "conv_transpose2d_forward": _conv_transpose2d_forward,
    "conv_transpose2d_backward": _conv_transpose2d_backward,
    "conv2d_fused": _conv2d_fused,
    "conv_transpose2d_fused": _conv_transpose2d_fused,
    "upsample_nearest2d_forward": _upsample_forward,
    "upsample_nearest2d_backward": _upsample_backward,
    "sigmoid_forward": _elementwise,
    "sigmoid_backward": _elementwise,
    "mse_loss": _elementwise,
}

# Where a convolution's weights stand among its arguments.
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "conv2d_forward": (1,),
    "conv2d_backward": (2,),
    "conv_transpose2d_forward": (1,),
    "conv_transpose2d_backward": (2,),
    "conv2d_fused": (1,),
    "conv_transpose2d_fused": (1,),
}
