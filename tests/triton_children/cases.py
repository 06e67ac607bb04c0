"""What the interpreter runs: every kernel on odd shapes. Knows nothing of Triton.

A case draws its arguments; the child runs the Triton kernel of that name on them, and the
specification in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels.geometry import ConvGeometry

Pair = tuple[int, int]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Relative to the largest element: float32 sums of up to 2000 terms; one rounding of bfloat16
# (2⁻⁹) or float16 (2⁻¹²) for each layer.
TOLERANCES = {"float32": 3e-6, "bfloat16": 6e-3, "float16": 8e-4}


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        rows: of its convolution's tile, if not as the image's size has it.
        has_nan: results have NaN, where the specification's have.
    """

    name: str
    op: str
    dtype: str
    make: Callable[[torch.dtype], Arguments]
    rows: int = 0
    has_nan: bool = False

    def arguments(self) -> Arguments:
        """The same every time."""
        torch.manual_seed(len(self.name))
        return self.make(getattr(torch, self.dtype))


@dataclass(frozen=True)
class Layer:
    """A convolution's sizes, or a transposed one's if it has an output_padding."""

    batch: int
    channels: Pair
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    output_padding: Pair | None = None

    @property
    def options(self) -> dict[str, Any]:
        output_padding = self.output_padding or (0, 0)
        return {"geometry": ConvGeometry(self.stride, self.padding, (1, 1), output_padding)}

    @property
    def output_size(self) -> Pair:
        geometry: ConvGeometry = self.options["geometry"]
        if self.output_padding is None:
            return geometry.conv2d_output_size(self.size, self.kernel)
        return geometry.conv_transpose2d_output_size(self.size, self.kernel)

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        into, out = self.channels
        shape = (out, into) if self.output_padding is None else (into, out)
        weight = torch.randn(*shape, *self.kernel) / (into * self.kernel[0] * self.kernel[1]) ** 0.5
        image = torch.randn(self.batch, into, *self.size)
        return image.to(dtype), weight.to(dtype), torch.randn(out).to(dtype)


LAYERS = {
    "k4-s2-3-to-24": Layer(1, (3, 24), (19, 23), (4, 4), (2, 2)),
    "k3-p1-12-to-32": Layer(2, (12, 32), (9, 7), (3, 3), (1, 1), (1, 1)),
    "k3-p1-14-to-64": Layer(1, (14, 64), (7, 9), (3, 3), (1, 1), (1, 1)),
    "k3-s2-24-to-48": Layer(1, (24, 48), (15, 13), (3, 3), (2, 2)),
    "k3-p1-33-to-40": Layer(1, (33, 40), (9, 11), (3, 3), (1, 1), (1, 1)),
    "k2-s2-32-to-17": Layer(1, (32, 17), (12, 10), (2, 2), (2, 2)),
    "k2-s2-odd-image": Layer(1, (16, 18), (7, 9), (2, 2), (2, 2)),
    "k3x2-s2x1-p1x0": Layer(2, (5, 7), (8, 6), (3, 2), (2, 1), (1, 0)),
    "k1-130-columns": Layer(1, (16, 130), (5, 6), (1, 1)),
    "one-pixel": Layer(1, (2, 3), (1, 1), (3, 3), (1, 1), (1, 1)),
    "transposed-k3-s2-48-to-24": Layer(1, (48, 24), (6, 5), (3, 3), (2, 2), output_padding=(0, 0)),
    "transposed-k4-s2-24-to-3": Layer(1, (24, 3), (7, 6), (4, 4), (2, 2), output_padding=(0, 0)),
    "transposed-k2-s2-64-to-32": Layer(2, (64, 32), (5, 3), (2, 2), (2, 2), output_padding=(0, 0)),
    "transposed-k3-s2-p1-op1": Layer(
        1, (20, 18), (5, 4), (3, 3), (2, 2), (1, 1), output_padding=(1, 1)
    ),
    "transposed-k2x1-s3x2-gaps": Layer(1, (6, 5), (4, 5), (2, 1), (3, 2), output_padding=(1, 0)),
}
# Where other precisions do nothing new they are left out: the interpreter takes its time.
HALF = {
    "k4-s2-3-to-24",
    "k3-p1-33-to-40",
    "transposed-k3-s2-48-to-24",
    "transposed-k2-s2-64-to-32",
}


# In the tiles of large images, several of them: 286 positions, and more of the larger image.
LARGE_TILES = {
    "k3-p1-17-to-18": Layer(2, (17, 18), (13, 11), (3, 3), (1, 1), (1, 1)),
    "k4-s2-3-to-24": Layer(2, (3, 24), (28, 24), (4, 4), (2, 2)),
    "transposed-k3-s2-18-to-16": Layer(
        2, (18, 16), (13, 11), (3, 3), (2, 2), output_padding=(0, 0)
    ),
    "transposed-k2-s2-18-to-16": Layer(
        2, (18, 16), (13, 11), (2, 2), (2, 2), output_padding=(0, 0)
    ),
}


def _forward(layer: Layer, activation: str | None) -> Callable[[torch.dtype], Arguments]:
    return lambda dtype: (layer.operands(dtype), layer.options | {"activation": activation})


def _nan(layer: Layer) -> Callable[[torch.dtype], Arguments]:
    def make(dtype: torch.dtype) -> Arguments:
        args, options = _forward(layer, "relu")(dtype)
        args[0][0, 3, 4, 5] = torch.nan
        return args, options

    return make


def _backward(layer: Layer, has_mask: bool) -> Callable[[torch.dtype], Arguments]:
    def make(dtype: torch.dtype) -> Arguments:
        image, weight, _ = layer.operands(dtype)
        shape = (layer.batch, layer.channels[1], *layer.output_size)
        # Not channels-last, as an image that was cut out of another is not.
        grad = torch.randn(shape).to(dtype)
        output = torch.randn(shape).to(dtype).clamp_min(0) if has_mask else None
        if output is not None:
            output[0, 0, 0, 0] = torch.nan  # the gradient passes
        return (grad, image, weight), layer.options | {"output": output}

    return make


def _layer_cases() -> list[Case]:
    cases = []
    for name, layer in LAYERS.items():
        op = "conv2d" if layer.output_padding is None else "conv_transpose2d"
        for dtype in TOLERANCES if name in HALF else ("float32",):
            # Every other layer has a ReLU, so each direction is seen with and without.
            relu = list(LAYERS).index(name) % 2 == 0
            forward = _forward(layer, "relu" if relu else None)
            cases.append(Case(f"{name}-forward-{dtype}", f"{op}_forward", dtype, forward))
            backward = _backward(layer, relu)
            cases.append(Case(f"{name}-backward-{dtype}", f"{op}_backward", dtype, backward))
    for name, layer in LARGE_TILES.items():
        op = "conv2d" if layer.output_padding is None else "conv_transpose2d"
        for way, make in (("forward", _forward(layer, None)), ("backward", _backward(layer, True))):
            case = f"tile128-{name}-{way}-bfloat16"
            cases.append(Case(case, f"{op}_{way}", "bfloat16", make, rows=128))
    layer = LAYERS["k3-p1-33-to-40"]
    cases.append(Case("nan-relu-float32", "conv2d_forward", "float32", _nan(layer), has_nan=True))
    # 768 pixels are enough for the weight gradient's sums to be split.
    large = Layer(1, (9, 20), (24, 32), (1, 1))
    name = "split-weight-gradient-float32"
    cases.append(Case(name, "conv2d_backward", "float32", _backward(large, False)))
    return cases


def _fused(
    layer: Layer, *, shuffle: int = 1, has_residual: bool = False, **options: Any
) -> Callable[[torch.dtype], Arguments]:
    """`layer` is the convolution itself; the image is what upsampling or unshuffling is given."""

    def make(dtype: torch.dtype) -> Arguments:
        image, weight, bias = layer.operands(dtype)
        channels, (height, width) = image.shape[1], layer.size
        unshuffle, upsample = options.get("unshuffle", 1), options.get("upsample", (1, 1))
        image = torch.randn(
            layer.batch,
            channels // unshuffle**2,
            height * unshuffle // upsample[0],
            width * unshuffle // upsample[1],
        ).to(dtype)
        given = layer.options | options
        if layer.output_padding is None:
            given |= {"shuffle": shuffle}
        if has_residual:
            oh, ow = layer.output_size
            out = layer.channels[1] // shuffle**2
            given["residual"] = torch.randn(layer.batch, out, oh * shuffle, ow * shuffle).to(dtype)
        return (image, weight.float(), bias.float()), given

    return make


def _fused_cases() -> list[Case]:
    padded: Any = {"kernel": (3, 3), "padding": (1, 1)}
    conv = {
        "stem-unshuffle2": _fused(Layer(1, (12, 32), (5, 7), **padded), unshuffle=2),
        "head-shuffle2": _fused(Layer(1, (20, 12), (7, 5), **padded), shuffle=2),
        "head-shuffle3-residual": _fused(
            Layer(1, (16, 18), (3, 4), **padded), shuffle=3, has_residual=True
        ),
        "upsample2-sigmoid": _fused(
            Layer(1, (24, 3), (10, 14), **padded), upsample=(2, 2), activation="sigmoid"
        ),
        "upsample2x3-few-channels": _fused(
            Layer(2, (5, 6), (6, 9), **padded), upsample=(2, 3), activation="relu"
        ),
        "residual": _fused(Layer(2, (32, 32), (7, 5), **padded), has_residual=True),
    }
    transposed = {
        "up-k2-residual": _fused(
            Layer(1, (48, 32), (4, 5), (2, 2), (2, 2), output_padding=(0, 0)), has_residual=True
        ),
        "up-k3-residual-sigmoid": _fused(
            Layer(1, (20, 6), (4, 5), (3, 3), (2, 2), output_padding=(0, 0)),
            has_residual=True,
            activation="sigmoid",
        ),
    }
    return [
        Case(f"fused-{name}-{dtype}", op, dtype, make)
        for op, makes in (("conv2d_fused", conv), ("conv_transpose2d_fused", transposed))
        for name, make in makes.items()
        for dtype in (("float32", "bfloat16") if "residual" in name else ("float32",))
    ]


def _ends(
    layer: Layer, *, shuffle: int = 1, has_gate: bool = False, **options: Any
) -> Callable[[torch.dtype], Arguments]:
    """A network's first or last convolution, between float32 images and layers in `dtype`."""

    def make(dtype: torch.dtype) -> Arguments:
        planes = torch.rand(layer.batch, options.get("planes", 0))
        unshuffle = options.get("unshuffle", 1)
        channels = (layer.channels[0] - planes.shape[1]) // unshuffle**2
        image = torch.rand(layer.batch, channels, *(unshuffle * side for side in layer.size))
        _, weight, bias = layer.operands(dtype)
        given = layer.options | options | {"planes": planes if "planes" in options else None}
        if has_gate:
            size = [shuffle * side for side in layer.output_size]
            given["residual"] = torch.rand(layer.batch, layer.channels[1] // shuffle**2, *size)
            given |= {"gate": torch.rand(layer.batch), "shuffle": shuffle}
            image = image.to(dtype)
        return (image, weight, bias.float()), given

    return make


def _end_cases() -> list[Case]:
    padded: Any = {"kernel": (3, 3), "padding": (1, 1)}
    colours = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    makes = {
        "stem": _ends(Layer(2, (12, 32), (5, 7), **padded), unshuffle=2, standard=colours),
        "stem-told": _ends(
            Layer(2, (14, 34), (5, 4), **padded), unshuffle=2, standard=colours, planes=2
        ),
        "told": _ends(Layer(2, (18, 20), (4, 5), **padded), planes=2),
        "first": _ends(Layer(1, (3, 24), (9, 10), (4, 4), (2, 2)), standard=((0.5,), (0.25,))),
        "head-gate": _ends(Layer(2, (20, 12), (4, 5), **padded), shuffle=2, has_gate=True),
    }
    return [
        Case(f"end-{name}-{dtype}", "conv2d_image", dtype, make)
        for name, make in makes.items()
        for dtype in ("float32", "bfloat16")
    ]


def _pages(dtype: torch.dtype) -> tuple[Tensor, float, float]:
    """Two images that lie apart in memory, (N, H, W, C), with offset and span of their range."""
    size = (2, 7, 5, 3)
    if dtype.is_floating_point:
        block, offset, span = torch.randn(2, 120).to(dtype), -0.7, 2.3
    elif dtype == torch.uint8:
        block, offset, span = torch.randint(0, 256, (2, 112)).to(dtype), 0.0, 255.0
    else:
        block, offset, span = torch.randint(0, 4096, (2, 112)).to(dtype), 130.0, 3900.0
    return block.as_strided(size, (block.stride(0), 15, 3, 1)), offset, span


def _unit(dtype: torch.dtype) -> Arguments:
    samples, offset, span = _pages(dtype)
    return (samples, offset, span, 0.5, (37, 24), 11), {}


def _stored(dtype: torch.dtype) -> Arguments:
    samples, offset, span = _pages(dtype)
    new = torch.randint(-50, 4200, (2, 3, 37, 24)) * (span / 3900)
    if not dtype.is_floating_point:  # off the middle between two levels
        new = new.round() + 0.6 * (torch.rand(new.shape) - 0.5)
    levels = {torch.uint8: (0, 255), torch.uint16: (0, 4095), torch.int16: (-40, 4000)}
    return (
        *((new - offset) / span, samples, offset, span, 0.5),
        *(levels.get(dtype), dtype != torch.uint8, 11),
    ), {}


def _limit(channels: int, size: Pair) -> Callable[[torch.dtype], Arguments]:
    def make(dtype: torch.dtype) -> Arguments:
        image, noise = torch.randn(2, 2, channels, *size, dtype=dtype)
        return (image, image + noise, torch.tensor([0.4, 0.7]), 2.0), {}

    return make


def _sample_cases() -> list[Case]:
    return [
        Case("limit-residual-float32", "limit_residual", "float32", _limit(3, (24, 40))),
        Case("limit-residual-gray-float32", "limit_residual", "float32", _limit(1, (8, 272))),
    ] + [
        Case(f"{op.replace('_', '-')}-{dtype}", op, dtype, make)
        for op, make in (("unit_padded", _unit), ("stored_samples", _stored))
        for dtype in ("uint8", "uint16", "int16", "float16", "float32")
    ]


def _loss(*shape: int) -> Callable[[torch.dtype], Arguments]:
    def make(dtype: torch.dtype) -> Arguments:
        image, target = torch.randn(2, *shape).to(dtype)
        if len(shape) == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        return (image, target), {}

    return make


def _pointwise_cases() -> list[Case]:
    losses = {"1": (1,), "2048": (2048,), "5003": (5003,), "mixed-strides": (2, 3, 11, 13)}
    return [
        Case(f"mse-{name}-{dtype}", "mse_loss", dtype, _loss(*shape))
        for name, shape in losses.items()
        for dtype in (TOLERANCES if name == "mixed-strides" else ("float32",))
    ]


_ALL = [*_layer_cases(), *_fused_cases(), *_end_cases(), *_sample_cases(), *_pointwise_cases()]
CASES = {case.name: case for case in _ALL}
# The third learns for two steps, so that the second's weights are not the first's.
NETWORKS = (
    "tconv-bfloat16",
    "upsample-float32",
    "tconv_steps-float32",
    "unet-bfloat16",
    "unet-level-float32",
)
LIMIT = 2**31 - 1


def _of_pages(op: str, shape: tuple[int, ...], padded: Pair | None = None) -> Callable[[], Any]:
    """Arguments of a call on files' samples or on images, (N, H, W, C), without memory."""

    def make() -> tuple[Any, ...]:
        meta = torch.device("meta")
        if op == "limit_residual":
            image = torch.empty(shape, device=meta).permute(0, 3, 1, 2)
            return image, image, torch.empty(shape[0], device=meta), 2.0
        samples = torch.empty(shape, dtype=torch.uint16, device=meta)
        size = padded or (shape[1], shape[2])
        if op == "unit_padded":
            return samples, 0.0, 1.0, 0.5, size, 0
        values = torch.empty(shape[0], *size, shape[3], device=meta).permute(0, 3, 1, 2)
        return values, samples, 0.0, 1.0, 0.5, (0, 255), True, 0

    return make


# (op, arguments of the largest call that it takes, of the least that it declines).
DECLINED: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
    f"declined-{name.replace('_', '-').replace(' ', '-')}": (
        name.partition(" ")[0],
        *(_of_pages(name.partition(" ")[0], *shapes) for shapes in calls),
    )
    for name, calls in {
        "unit_padded elements": (
            ((1, 64, 33554415, 1), (64, 33554415)),
            ((1, 64, 33554416, 1), (8, 8)),
        ),
        "unit_padded padded elements": (
            ((1, 8, 8, 1), (64, 33554415)),
            ((1, 8, 8, 1), (64, 33554416)),
        ),
        "unit_padded rows": (((LIMIT - 1, 1, 1, 1),), ((LIMIT, 1, 1, 1),)),
        "unit_padded padded rows": (((2**20, 1, 1, 1), (2047, 1)), ((2**20, 1, 1, 1), (2048, 1))),
        "unit_padded height": (((1, 2**29 - 1, 1, 1),), ((1, 2**29, 1, 1), (8, 8))),
        "unit_padded width": (((1, 1, 65535 * 1024, 1),), ((1, 1, 65535 * 1024 + 1, 1), (8, 8))),
        "stored_samples elements": (
            ((1, 64, 33554415, 1),),
            ((1, 64, 33554416, 1), (8, 8)),
        ),
        "stored_samples padded elements": (
            ((1, 8, 8, 1), (64, 33554415)),
            ((1, 8, 8, 1), (64, 33554416)),
        ),
        "limit_residual elements": (((1, 256, 8388600, 1),), ((1, 256, 8388608, 1),)),
        "limit_residual rows": (((2**28 - 1, 8, 8, 1),), ((2**28, 8, 8, 1),)),
        "limit_residual width": (((1, 8, 65535 * 256, 1),), ((1, 8, 65535 * 256 + 8, 1),)),
    }.items()
}
# Addresses near 2³¹; see `offsets`.
OFFSETS = (
    "offsets-conv-many-images",
    "offsets-conv-large-image",
    "offsets-conv-flat-many-images",
    "offsets-conv-flat-large-image",
    "offsets-conv-unshuffle",
    "offsets-conv-upsample",
    "offsets-conv-shuffle",
    "offsets-transposed-many-images",
    "offsets-transposed-large-image",
    "offsets-weight-gradient-large",
    "offsets-weight-gradient-small",
    "offsets-relu-many-rows",
    "offsets-relu-many-channels",
    "offsets-loss",
    "offsets-unit-many-images",
    "offsets-unit-large-image",
    "offsets-stored-many-images",
    "offsets-stored-large-image",
    "offsets-stored-many-padded-images",
    "offsets-stored-many-flags",
    "offsets-limit-many-images",
    "offsets-limit-large-image",
    *DECLINED,
)
