"""Who takes part, by name; ours is measured against all the others."""

from collections.abc import Callable, Mapping

from ours import ours
from peers import compiled, eager
from problem import Problem, Runner
from runtimes import onnxruntime, openvino

PREPARE: Mapping[str, Callable[[Problem], Runner]] = {
    "ours": ours,
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
