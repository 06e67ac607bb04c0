"""Who computes a case: "ours" and its peers "eager", "compile", "onnxruntime" and "openvino".

"ours" is denoise_batch.kernels, without autograd. "eager" and "compile" are torch.nn and autograd
as strong as users can have them: channels-last, fused optimisers; in bfloat16, training has float32
parameters under torch.autocast and inference a module converted by `.to(torch.bfloat16)`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from problem import Problem, Runner
from registry import LossBlock, Mode
from runtimes import onnxruntime, openvino
from torch import Tensor, nn
from torch_networks import torch_equivalent

from denoise_batch.kernels import SGD, AdamW, Block, MSELoss
from denoise_batch.models import Network

# So small that thousands of steps leave the weights as they are; the time does not depend on it.
LR = 1e-6
MOMENTUM = 0.9

Call = Callable[[Tensor], Tensor]


def ours(problem: Problem) -> Runner:
    """Prepare our implementation of the case."""
    mode = problem.case.mode
    if mode == "step":
        parameters = _zero_parameters(problem)
        is_sgd = problem.case.subject == "SGD"
        optimizer = SGD(parameters, LR, MOMENTUM) if is_sgd else AdamW(parameters, LR)
        return Runner(optimizer.step, lambda: _numbered("parameter", parameters))
    block = problem.case.block().to(problem.device)
    latest: dict[str, Tensor] = {}
    if mode == "infer":
        block.eval().to(dtype=problem.dtype)
    else:
        block.set_compute_dtype(problem.dtype)
    if mode == "train":
        return _our_training(problem, block)

    def forward() -> None:
        latest["output"] = block(problem.input)

    if mode in ("infer", "forward"):
        return Runner(forward, lambda: latest)
    forward()
    grad_output = problem.grad_of(latest["output"])

    def prepare() -> None:
        block.zero_grad()
        forward()

    def backward() -> None:
        latest["grad_input"] = block.backward(grad_output)

    return _both(mode, Runner(backward, lambda: latest | _gradients(block.parameters()), prepare))


def _both(mode: Mode, backward: Runner) -> Runner:
    """Return a backward, which a forward prepares; in mode forward+backward both as one call."""
    if mode == "backward":
        return backward

    def run() -> None:
        backward.prepare()
        backward.run()

    return Runner(run, backward.results)


def _our_training(problem: Problem, network: Block) -> Runner:
    optimizer, criterion = SGD(network.parameters(), LR, MOMENTUM), MSELoss()
    latest: dict[str, Tensor] = {}

    def run() -> None:
        output = network(problem.input)
        latest.update(output=output, loss=criterion(output, problem.target))
        optimizer.zero_grad()
        network.backward(criterion.backward(), needs_input_grad=False)
        optimizer.step()

    return Runner(run, lambda: latest | _gradients(network.parameters()))


def eager(problem: Problem) -> Runner:
    """Prepare the torch equivalent."""
    return _torch(problem, lambda module: module)


def compiled(problem: Problem) -> Runner:
    """Prepare the torch equivalent under torch.compile; the optimiser stays torch's fused one.

    Inference is compiled with frozen weights (prepacked, constants folded), inductor's best.
    """
    freezing: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True}
    options = freezing if problem.case.mode == "infer" else {}
    return _torch(
        problem,
        lambda module: torch.compile(module, fullgraph=True, dynamic=False, options=options),
    )


def _torch(problem: Problem, compile: Callable[[nn.Module], Call]) -> Runner:
    mode = problem.case.mode
    if mode == "step":
        return _torch_step(problem)
    block = problem.case.block()
    dtype = problem.dtype if mode == "infer" else torch.float32
    module = _Loss() if isinstance(block, LossBlock) else torch_equivalent(block, dtype)
    module.to(problem.device, dtype, memory_format=torch.channels_last)
    latest: dict[str, Tensor] = {}
    if mode == "infer":
        module.eval().requires_grad_(False)
        call = compile(module)

        def infer() -> None:
            with torch.no_grad():
                latest["output"] = call(problem.input)

        return Runner(infer, lambda: latest)
    call, parameters = compile(module), list(module.parameters())
    if mode == "train":
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)

        def train() -> None:
            with _precision(problem):
                output = call(problem.input)
            loss = F.mse_loss(output, problem.target)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            latest.update(output=output.detach(), loss=loss.detach())

        return Runner(train, lambda: latest | _gradients(parameters))
    leaf = problem.input.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def forward() -> None:
        with _precision(problem):
            latest["output"] = call(leaf)

    if mode == "forward":
        return Runner(forward, lambda: {"output": latest["output"].detach()})
    with torch.no_grad(), _precision(problem):
        grad_output = problem.grad_of(module(leaf))

    def prepare() -> None:
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        forward()

    def results() -> dict[str, Tensor]:
        assert leaf.grad is not None
        return {"output": latest["output"].detach(), "grad_input": leaf.grad} | _gradients(
            parameters
        )

    def backward() -> None:
        torch.autograd.backward(latest["output"], grad_output)

    return _both(mode, Runner(backward, results, prepare))


def _torch_step(problem: Problem) -> Runner:
    parameters = _zero_parameters(problem, requires_grad=True)
    optimizer: torch.optim.Optimizer
    if problem.case.subject == "SGD":
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=LR, fused=True)

    def run() -> None:
        optimizer.step()

    return Runner(run, lambda: _numbered("parameter", [p.detach() for p in parameters]))


class _Loss(nn.Module):
    """The mean squared error against 0.5, as `LossBlock`."""

    def __init__(self) -> None:
        super().__init__()
        self.target: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.target is None:
            self.target = torch.full_like(input, 0.5, requires_grad=False)
        return F.mse_loss(input, self.target)


def _zero_parameters(problem: Problem, *, requires_grad: bool = False) -> list[Tensor]:
    """The unet's, all zero, so that the check sees the step itself; with gradients."""
    network = Network("unet").to(problem.device)
    parameters = [p.zero_().requires_grad_(requires_grad) for p in network.parameters()]
    for parameter, grad in zip(parameters, problem.grads_of(parameters), strict=True):
        parameter.grad = grad
    return parameters


def _precision(problem: Problem) -> AbstractContextManager[None]:
    if problem.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(problem.device.type, problem.dtype)


def _gradients(parameters: list[Tensor]) -> dict[str, Tensor]:
    return _numbered("gradient", [p.grad for p in parameters if p.grad is not None])


def _numbered(what: str, values: list[Tensor]) -> dict[str, Tensor]:
    return {f"{what} {index}": value for index, value in enumerate(values)}


PREPARE: Mapping[str, Callable[[Problem], Runner]] = {
    "ours": ours,
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
