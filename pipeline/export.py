"""A network as an ONNX file: what denoise-batch computes before it rounds, for any runtime.

The graph pads, so that it takes images of any size. ONNX is protobuf, of which a graph needs a
handful of messages: they are written here (https://onnx.ai/onnx/repo-docs/IR.html), so that no
package is needed, and torch.onnx, which traces torch.nn, is not either.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoise_batch.kernels import (
    AppendLevel,
    Block,
    ConfidentMean,
    Conv2d,
    ConvTranspose2d,
    LevelGate,
    NearestUpsample2d,
    Normalize,
    OptionError,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
)

from .files.atomic import atomic_write
from .files.scratch import memory
from .models import LARGEST_LEVEL, LevelEstimator, Network, Weights

OPSET, IR_VERSION = 17, 8  # ONNX 1.12, 2022
IMAGE, LEVEL, DENOISED = "image", "noise_level", "denoised"

_FLOAT, _INT64 = 1, 7  # types of tensors
_END = 2**31  # beyond the end of any axis
_TYPES = {torch.float32: _FLOAT, torch.int64: _INT64}
_OF_FLOAT, _OF_INT, _OF_STRING, _OF_INTS = 1, 2, 3, 7  # types of attributes


def export(weights: Weights, file: Path, name: str) -> None:
    """Write a network and its padding as an ONNX model.

    Its input `image` is float32 (N, 3, H, W) in [0, 1] of any size, its output `denoised` the same.
    A network that is told the noise level has a second input, `noise_level`, (N,), for values in
    [0, 1]; below 0 it is estimated, if the weights can.

    Args:
        weights: what to write.
        file: its name ends with .onnx; an existing file is replaced.
        name: of the weights, for the model's metadata.

    Raises:
        OptionError: the file cannot be written.
    """
    said = {"weights": name, "weights_sha256": weights.sha256}
    try:
        atomic_write(file, model(weights.network, said))
    except OSError as error:
        raise OptionError(f"{file}: cannot be written: {error.strerror}") from error


def model(network: Network, said: Mapping[str, str]) -> bytes:
    """The ONNX model of a network.

    Args:
        network: in float32, on the CPU.
        said: the model's metadata.
    """
    graph = _Graph({id(value): key for key, value in network.named_parameters()})
    inputs = [_value(IMAGE, ["N", 3, "H", "W"])]
    margin = network.margin
    padded = IMAGE
    for axis in (2, 3):
        frame = network.frame
        padded = graph.reflected(padded, axis, margin, frame.multiple, frame.minimum)
    level = ""
    if network.spec.takes_level:
        inputs.append(_value(LEVEL, ["N"]))
        level = _level(graph, network, padded)
    output = _block(graph, network.normalize, padded, level)
    output = _block(graph, network.layers, output, level)
    if network.spec.is_residual:
        output = graph.add("Add", padded, output)
    ends = graph.add("Add", graph.add("Shape", IMAGE, start=2), graph.ints(margin))
    places = graph.ints(margin, margin), ends, graph.ints(2, 3)
    graph.add("Slice", output, *places, output=DENOISED)
    body = b"".join(
        [
            *(_field(1, node) for node in graph.nodes),
            _field(2, network.architecture),
            *(_field(5, tensor) for tensor in graph.tensors),
            *(_field(11, value) for value in inputs),
            _field(12, _value(DENOISED, ["N", 3, "H", "W"])),
        ]
    )
    return b"".join(
        [
            _field(1, IR_VERSION),
            _field(2, "denoise-batch"),
            _field(3, version("denoise-batch")),
            _field(7, body),
            _field(8, _field(2, OPSET)),
            *(_field(14, _field(1, key) + _field(2, value)) for key, value in said.items()),
        ]
    )


class _Graph:
    """Nodes and constant tensors, as protobuf messages.

    Args:
        names: of the tensors that are parameters, by their `id`.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.nodes: list[bytes] = []
        self.tensors: list[bytes] = []
        self._names = names

    def add(
        self,
        kind: str,
        *inputs: str,
        output: str = "",
        **attributes: int | float | str | Sequence[int],
    ) -> str:
        """Add a node of one output; return the output's name."""
        output = output or f"{kind}_{len(self.nodes)}"
        fields = [_field(1, name) for name in inputs]
        fields += [_field(2, output), _field(3, output), _field(4, kind)]
        fields += [_field(5, _attribute(key, value)) for key, value in attributes.items()]
        self.nodes.append(b"".join(fields))
        return output

    def tensor(self, values: Tensor) -> str:
        """Add a constant; return its name, that of the parameter if it is one."""
        name = self._names.get(id(values), f"constant_{len(self.tensors)}")
        values = values.contiguous()
        fields = [_field(1, extent) for extent in values.shape]
        fields += [_field(2, _TYPES[values.dtype]), _field(8, name)]
        fields.append(_field(9, bytes(memory(values))))
        self.tensors.append(b"".join(fields))
        return name

    def ints(self, *values: int) -> str:
        """Add a row of integers."""
        return self.tensor(torch.tensor(values))

    def number(self, value: float | int) -> str:
        """Add a scalar."""
        return self.tensor(torch.tensor(value))

    def reflected(self, image: str, axis: int, margin: int, multiple: int, minimum: int) -> str:
        """Pad an axis as `ReflectPadded` does."""
        size = self.add("Gather", self.add("Shape", image), self.number(axis))
        one, framed = self.number(1), self.add("Add", size, self.number(2 * margin))
        framed = self.add("Max", framed, self.number(minimum))
        framed = self.add("Add", framed, self.number(multiple - 1))
        framed = self.add("Div", framed, self.number(multiple))
        framed = self.add("Mul", framed, self.number(multiple))
        stop = self.add("Sub", framed, self.number(margin))
        positions = self.add("Range", self.number(-margin), stop, one)
        there = self.add("Mul", self.add("Sub", size, one), self.number(2))  # and back
        positions = self.add("Mod", positions, self.add("Max", there, one))
        positions = self.add("Min", positions, self.add("Sub", there, positions))
        return self.add("Gather", image, positions, axis=axis)


def _level(graph: _Graph, network: Network, padded: str) -> str:
    """The levels that the layers are told, (N, 1, 1, 1), in units of 1/255."""
    level = graph.add("Reshape", LEVEL, graph.ints(-1, 1, 1, 1))
    level = graph.add("Mul", level, graph.number(255.0))
    if network.estimator is not None:
        told = _estimate(graph, network.estimator, padded)
        level = graph.add("Where", graph.add("Less", level, graph.number(0.0)), told, level)
    return graph.add("Clip", level, graph.number(0.0), graph.number(255 * LARGEST_LEVEL))


def _estimate(graph: _Graph, estimator: LevelEstimator, padded: str) -> str:
    """What `LevelEstimator` tells of padded images, (N, 1, 1, 1), in units of 1/255."""

    def total(values: str) -> str:
        return graph.add("ReduceSum", values, graph.ints(2, 3), keepdims=1)

    cells = _block(graph, estimator.cells, padded, "")
    value = graph.add("Softplus", _channel(graph, cells, 0))
    limits = graph.number(-ConfidentMean.LIMIT), graph.number(ConfidentMean.LIMIT)
    confidence = graph.add("Exp", graph.add("Clip", _channel(graph, cells, 1), *limits))
    is_strong = graph.add("Greater", value, graph.number(math.sqrt(estimator.STRONG_255)))
    alike = _alike(graph, estimator, padded)
    is_drawn = graph.add("Greater", alike, graph.number(estimator.MOST_ALIKE))
    is_drawn = graph.add("And", is_drawn, is_strong)
    counted = total(graph.add("Where", is_drawn, graph.number(0.0), confidence))
    drawn = total(graph.add("Where", is_drawn, confidence, graph.number(0.0)))
    valued = graph.add("Mul", confidence, value)
    root = graph.add("Where", is_drawn, graph.number(0.0), valued)
    root = graph.add("Div", total(root), graph.add("Max", counted, graph.number(1e-9)))
    is_gray = graph.add("Equal", _channel(graph, padded, 0), _channel(graph, padded, 2))
    colours = total(graph.add("Cast", graph.add("Not", is_gray), to=_FLOAT))
    reserves = graph.number(estimator.RESERVE_255), graph.number(estimator.GRAY_RESERVE_255)
    has_colour = graph.add("Greater", colours, graph.number(0.0))
    reserve = graph.add("Where", has_colour, *reserves)
    power = graph.add("Pow", root, graph.number(4.0))
    told = graph.add("Sqrt", graph.add("Add", power, graph.add("Mul", reserve, reserve)))
    most = graph.add("Mul", graph.add("Add", drawn, counted), graph.number(estimator.MOST_DRAWN))
    is_all_drawn = graph.add("Greater", drawn, most)
    return graph.add("Where", is_all_drawn, graph.number(0.0), told)


def _alike(graph: _Graph, estimator: LevelEstimator, padded: str) -> str:
    """The shares of equal neighbours that `LevelEstimator` looks at, (N, 1, h, w)."""
    first, last = (estimator.CELL_PX * (lost - 1) for lost in estimator.LOST)
    inner = graph.ints(first, first), graph.ints(-last, -last), graph.ints(2, 3)
    inside = graph.add("Slice", padded, *inner)
    end, steps = graph.ints(_END, _END), graph.ints(2, 2)
    a, b, c, d = (
        graph.add("Slice", inside, graph.ints(down, across), end, graph.ints(2, 3), steps)
        for down in (0, 1)
        for across in (0, 1)
    )
    shares, side = [], estimator.CELL_PX // 2
    for one, other in ((a, b), (a, c), (b, c), (a, d)):
        equal = graph.add("Cast", graph.add("Equal", one, other), to=_FLOAT)
        share = graph.add("AveragePool", equal, kernel_shape=(side, side), strides=(side, side))
        share = graph.add("AveragePool", share, kernel_shape=(3, 3))
        shares.append(graph.add("Min", *(_channel(graph, share, number) for number in range(3))))
    return graph.add("Max", *shares)


def _channel(graph: _Graph, image: str, number: int) -> str:
    """One channel of (N, C, H, W), (N, 1, H, W)."""
    return graph.add("Slice", image, *(graph.ints(end) for end in (number, number + 1, 1)))


def _block(graph: _Graph, block: Block, image: str, level: str) -> str:
    """Add what a block computes; return its output's name."""

    def of(*blocks: Block, of: str) -> str:
        for block in blocks:
            of = _block(graph, block, of, level)
        return of

    match block:
        case Conv2d() | ConvTranspose2d():
            return _convolution(graph, block, image)
        case Sequential():  # also UNetLevel and UpsampleConv2d
            return of(*block.blocks, of=image)
        case Residual():
            return graph.add("Add", image, of(block.body, of=image))
        case Normalize():
            mean, std = (
                graph.tensor(torch.tensor(values).view(-1, 1, 1))
                for values in (block.mean, block.std)
            )
            return graph.add("Div", graph.add("Sub", image, mean), std)
        case ReLU():
            return graph.add("Relu", image)
        case Sigmoid():
            return graph.add("Sigmoid", image)
        case PixelShuffle():
            return graph.add("DepthToSpace", image, blocksize=block.upscale_factor, mode="CRD")
        case PixelUnshuffle():
            return _unshuffled(graph, block.downscale_factor, image)
        case NearestUpsample2d():
            scales = graph.tensor(torch.tensor([1.0, 1.0, *block.scale_factor]))
            return graph.add(
                "Resize", image, "", scales,
                mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )  # fmt: skip
        case AppendLevel():
            scaled = graph.add("Div", level, graph.number(50.0))
            planes = graph.add("Concat", scaled, graph.add("Sqrt", scaled), axis=1)
            size = graph.add("Concat", graph.ints(1, 1), graph.add("Shape", image, start=2), axis=0)
            return graph.add("Concat", image, graph.add("Expand", planes, size), axis=1)
        case LevelGate():
            gate = graph.add("Div", level, graph.add("Add", level, graph.number(1.0)))
            return graph.add("Mul", image, gate)
    raise TypeError(f"{type(block).__name__} has no ONNX equivalent: add one to {__file__}")


def _convolution(graph: _Graph, block: Conv2d | ConvTranspose2d, image: str) -> str:
    if block.input_padding is not None:
        raise TypeError(f"padding_mode {block.padding_mode!r} has no ONNX equivalent yet")
    geometry = block.geometry
    inputs = [image, graph.tensor(block.weight)]
    if block.bias is not None:
        inputs.append(graph.tensor(block.bias))
    settings: dict[str, Any] = {
        "kernel_shape": block.kernel_size,
        "strides": geometry.stride,
        "pads": geometry.padding * 2,
        "dilations": geometry.dilation,
        "group": geometry.groups,
    }
    if isinstance(block, Conv2d):
        return graph.add("Conv", *inputs, **settings)
    return graph.add("ConvTranspose", *inputs, output_padding=geometry.output_padding, **settings)


def _unshuffled(graph: _Graph, factor: int, image: str) -> str:
    """Three channels in torch's order: ONNX puts a channel's neighbours apart."""
    channels = torch.arange(3 * factor * factor).view(factor * factor, 3).T.flatten()
    blocks = graph.add("SpaceToDepth", image, blocksize=factor)
    return graph.add("Gather", blocks, graph.tensor(channels), axis=1)


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """A float32 input or output; extents with a name may be any."""
    dims = b"".join(
        _field(1, _field(2 if isinstance(extent, str) else 1, extent)) for extent in shape
    )
    tensor = _field(1, _FLOAT) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def _attribute(name: str, value: int | float | str | Sequence[int]) -> bytes:
    if isinstance(value, str):
        content = _field(4, value) + _field(20, _OF_STRING)
    elif isinstance(value, int):
        content = _field(3, value) + _field(20, _OF_INT)
    elif isinstance(value, float):
        content = _field(2, value) + _field(20, _OF_FLOAT)
    else:
        content = b"".join(_field(8, number) for number in value) + _field(20, _OF_INTS)
    return _field(1, name) + content


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a protobuf message: its number and type, then the value."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64 bits."""
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
