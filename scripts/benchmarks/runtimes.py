"""The providers "onnxruntime" and "openvino": inference on the CPU, if they are installed.

Both read the torch equivalent in ONNX and get a planar input, laid out beforehand.
"""

import importlib
import io
import warnings
from types import ModuleType
from typing import Any

import torch
from problem import Problem, Runner, UnavailableError
from torch_networks import torch_equivalent


def onnxruntime(problem: Problem) -> Runner:
    """Prepare ONNX Runtime with all graph optimisations, one operator at a time."""
    runtime = _installed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Its threads may spin while it computes, but not into the next provider's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = onnx_model(problem)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"input": problem.input.float().contiguous().numpy()}
    latest: dict[str, Any] = {}

    def run() -> None:
        (latest["output"],) = session.run(None, feed)

    return Runner(run, lambda: {"output": torch.from_numpy(latest["output"])})


def openvino(problem: Problem) -> Runner:
    """Prepare OpenVINO's CPU plug-in for latency, in the case's precision (its own is bfloat16)."""
    core = _installed("openvino").Core()
    precision = "f32" if problem.dtype == torch.float32 else "bf16"
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    model = core.read_model(io.BytesIO(onnx_model(problem)))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feed = [problem.input.float().contiguous().numpy()]
    latest: dict[str, Any] = {}

    def run() -> None:
        latest["output"] = request.infer(feed, share_inputs=True, share_outputs=True)[0]

    return Runner(run, lambda: {"output": torch.from_numpy(latest["output"]).clone()})


def onnx_model(problem: Problem) -> bytes:
    """Export the torch equivalent, float32, with input "input" of the case's shape."""
    module = torch_equivalent(problem.case.block()).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that needs no onnxscript is deprecated; traced sizes become constants.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (problem.input.float().contiguous(),),
            buffer,
            input_names=["input"],
            output_names=["output"],
            opset_version=18,
            dynamo=False,
        )
    return buffer.getvalue()


def _installed(name: str) -> ModuleType:
    for needed in (name, "onnx"):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            raise UnavailableError(f"{needed} is not installed (extra: bench)") from error
    return importlib.import_module(name)
