"""The providers "onnxruntime" and "openvino": inference on the CPU, where they are installed.

Both read the same ONNX graph, get their input in their own layout (planar, laid out beforehand)
and hand out a fresh or shared output, whichever is faster for them.
"""

import importlib
import io
from types import ModuleType
from typing import Any

import torch
from problem import Problem, Runner, UnavailableError


def onnxruntime(problem: Problem) -> Runner:
    """ONNX Runtime with all graph optimisations, `threads` threads, one operator at a time."""
    runtime = _installed("onnxruntime")
    model = _model(problem)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Its threads may spin while it works, but not on into the next provider's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # one class of its own for every status code
        raise UnavailableError(_first_line(error)) from error
    feed = {"input": _planar(problem)}
    latest: dict[str, Any] = {}

    def run() -> None:
        (latest["output"],) = session.run(None, feed)

    return Runner(run, lambda: {"output": torch.from_numpy(latest["output"])})


def openvino(problem: Problem) -> Runner:
    """OpenVINO's CPU plug-in for latency, told the precision (its own choice would be bfloat16)."""
    vino = _installed("openvino")
    core = vino.Core()
    precision = "f32" if problem.dtype == torch.float32 else "bf16"
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("this CPU has no bfloat16")
    # float32 in the graph: the plug-in converts by the hint.
    model = core.read_model(io.BytesIO(_model(problem, torch.float32)))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()
    feed = [_planar(problem)]
    latest: dict[str, Any] = {}

    def run() -> None:
        latest["output"] = request.infer(feed, share_inputs=True, share_outputs=True)[0]

    return Runner(run, lambda: {"output": torch.from_numpy(latest["output"]).clone()})


def _installed(name: str) -> ModuleType:
    for needed in (name, "onnx"):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            raise UnavailableError(f"{needed} is not installed (extra: bench)") from error
    return importlib.import_module(name)


def _model(problem: Problem, dtype: torch.dtype | None = None) -> bytes:
    if problem.device.type != "cpu":
        raise UnavailableError("measured on the CPU only")
    from onnx_graph import onnx_model  # needs onnx, which is optional

    return onnx_model(problem.case.block(), problem.case.shape, dtype or problem.dtype)


def _planar(problem: Problem) -> Any:
    return problem.input.float().contiguous().numpy()


def _first_line(error: Exception) -> str:
    """Without the status in front and the node's name behind, which say nothing here."""
    return str(error).partition("\n")[0].rpartition(" : ")[2].partition(" node with name")[0]
