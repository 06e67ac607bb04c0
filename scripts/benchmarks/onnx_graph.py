"""Our blocks written down as an ONNX graph, by hand: what ONNX Runtime and OpenVINO are given.

torch's exporter would need onnxscript and writes the same few nodes less directly. The input and
the output are float32 whatever the layers compute in.
"""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from denoise_batch import kernels
from denoise_batch.kernels.layers import Convolution
from denoise_batch.models import Network

OPSET = 22  # the first in which Conv takes bfloat16
IR_VERSION = 10
ELEMENT = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
}


class Graph:
    """Nodes in the making.

    Args:
        dtype: precision of the layers' parameters.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: Tensor | Sequence[int]) -> str:
        """Add an initializer, from a tensor or integers; its name."""
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
        # numpy has no bfloat16: its bytes travel as int16.
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(
            helper.make_tensor(
                name,
                ELEMENT[tensor.dtype],
                list(tensor.shape),
                bits.contiguous().numpy().tobytes(),
                raw=True,
            )
        )
        return name

    def cast(self, input: str, dtype: torch.dtype) -> str:
        """To the precision, where it is another than float32."""
        if self.dtype == torch.float32:
            return input
        return self.add("Cast", input, to=ELEMENT[dtype])


def onnx_model(block: kernels.Block, shape: Sequence[int], dtype: torch.dtype) -> bytes:
    """The block as a serialised ONNX model with input "input" of that shape.

    Raises:
        TypeError: it holds a block that has no translation yet.
    """
    graph = Graph(dtype)
    output = translate(block, graph, graph.cast("input", dtype), tuple(shape[2:]))
    output = graph.cast(output, torch.float32)
    graph.nodes.append(helper.make_node("Identity", [output], ["output"]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "block",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    serialised: bytes = model.SerializeToString()
    return serialised


@singledispatch
def translate(block: kernels.Block, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    """Append the block's nodes to the graph; the name of its output.

    `size` is the image's, where a block needs to know it (Padded alone does).
    """
    raise TypeError(f"{type(block).__name__} has no ONNX translation: add one to {__file__}")


@translate.register
def _(block: Convolution, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    parameters = [graph.constant(value.to(graph.dtype)) for value in block.parameters()]
    attributes: dict[str, Any] = {
        "kernel_shape": block.kernel_size,
        "strides": block.stride,
        "pads": block.padding * 2,
        "dilations": block.dilation,
    }
    if isinstance(block, kernels.ConvTranspose2d):
        attributes["output_padding"] = block.output_padding
        return graph.add("ConvTranspose", input, *parameters, **attributes)
    return graph.add("Conv", input, *parameters, **attributes)


@translate.register
def _(block: kernels.ReLU, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    return graph.add("Relu", input)


@translate.register
def _(block: kernels.Sigmoid, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    return graph.add("Sigmoid", input)


@translate.register
def _(block: kernels.PixelShuffle, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    return graph.add("DepthToSpace", input, blocksize=block.upscale_factor, mode="CRD")


@translate.register
def _(block: kernels.PixelUnshuffle, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    """ONNX's SpaceToDepth orders the channels otherwise: (row, column, channel)."""
    r = block.downscale_factor
    n, c, h, w = 0, 3, size[0] // r, size[1] // r
    split = graph.add("Reshape", input, graph.constant([n, c, h, r, w, r]))
    moved = graph.add("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return graph.add("Reshape", moved, graph.constant([n, c * r * r, h, w]))


@translate.register
def _(block: kernels.Sequential, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    for child in block.blocks:
        input = translate(child, graph, input, size)
    return input


@translate.register
def _(block: kernels.Residual, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    return graph.add("Add", input, translate(block.body, graph, input, size))


@translate.register
def _(block: kernels.UNetLevel, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    encoded = translate(block.encoder, graph, input, size)
    coarse = encoded
    for child in (block.down, block.inner, block.up):
        coarse = translate(child, graph, coarse, size)
    return translate(block.decoder, graph, graph.add("Add", encoded, coarse), size)


@translate.register
def _(block: kernels.Normalize, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    (mean,), (std,) = block.mean, block.std
    centred = graph.add("Sub", input, graph.constant(torch.tensor(mean, dtype=graph.dtype)))
    return graph.add("Div", centred, graph.constant(torch.tensor(std, dtype=graph.dtype)))


@translate.register
def _(block: kernels.ReflectPadded, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    m = block.margin
    padded = tuple(block.padded_size(extent) for extent in size)
    ends = [whole - extent - m for whole, extent in zip(padded, size, strict=True)]
    is_padded = padded != size
    if is_padded:
        input = graph.add("Pad", input, graph.constant([0, 0, m, m, 0, 0, *ends]), mode="reflect")
    output = translate(block.body, graph, input, padded)
    if not is_padded:
        return output
    stops = [m + extent for extent in size]
    starts, axes = graph.constant([m, m]), graph.constant([2, 3])
    return graph.add("Slice", output, starts, graph.constant(stops), axes)


@translate.register
def _(block: Network, graph: Graph, input: str, size: tuple[int, ...]) -> str:
    ((_, body),) = block.named_children()
    return translate(body, graph, input, size)
