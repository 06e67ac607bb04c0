"""The provider "ours": the blocks of denoise_batch.kernels, without autograd."""

from problem import Problem, Runner
from torch import Tensor

from denoise_batch.kernels import SGD, AdamW, Block, MSELoss
from denoise_batch.kernels.optim import Optimizer
from denoise_batch.models import Network

# Small, so that thousands of steps leave the weights what they are; the time does not depend on it.
LR = 1e-6
MOMENTUM = 0.9


def ours(problem: Problem) -> Runner:
    """Our implementation of the case."""
    mode = problem.case.mode
    if mode == "step":
        return _step(problem)
    block = problem.case.block().to(problem.device)
    if mode == "train":
        return _train(problem, block)
    if mode == "backward":
        return _backward(problem, block.set_compute_dtype(problem.dtype))
    if mode == "infer":
        return _forward(problem, block.eval().to(dtype=problem.dtype))
    return _forward(problem, block.set_compute_dtype(problem.dtype))


def _train(problem: Problem, network: Block) -> Runner:
    network.set_compute_dtype(problem.dtype)
    optimizer = SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    criterion = MSELoss()
    latest: dict[str, Tensor] = {}

    def run() -> None:
        output = network(problem.input)
        latest.update(output=output, loss=criterion(output, problem.target))
        optimizer.zero_grad()
        network.backward(criterion.backward(), needs_input_grad=False)
        optimizer.step()

    return Runner(run, lambda: latest | gradients(network.parameters()))


def _forward(problem: Problem, block: Block) -> Runner:
    latest: dict[str, Tensor] = {}

    def run() -> None:
        latest["output"] = block(problem.input)

    return Runner(run, lambda: latest)


def _backward(problem: Problem, block: Block) -> Runner:
    grad_output = problem.grad_of(block(problem.input))
    latest: dict[str, Tensor] = {}

    def prepare() -> None:
        block.zero_grad()
        block(problem.input)

    def run() -> None:
        latest["grad_input"] = block.backward(grad_output)

    return Runner(run, lambda: latest | gradients(block.parameters()), prepare)


def _step(problem: Problem) -> Runner:
    parameters = unet_parameters(problem)
    for parameter, grad in zip(parameters, problem.grads_of(parameters), strict=True):
        parameter.grad = grad
    optimizer: Optimizer
    if problem.case.subject == "SGD":
        optimizer = SGD(parameters, lr=LR, momentum=MOMENTUM)
    else:
        optimizer = AdamW(parameters, lr=LR)
    return Runner(optimizer.step, lambda: numbered("parameter", parameters))


def unet_parameters(problem: Problem) -> list[Tensor]:
    """All zero, so that the gate sees the step itself rather than what it is added to."""
    network = Network("unet").to(problem.device)
    return [parameter.zero_() for parameter in network.parameters()]


def gradients(parameters: list[Tensor]) -> dict[str, Tensor]:
    """The gradients that there are, by position."""
    return numbered("gradient", [p.grad for p in parameters if p.grad is not None])


def numbered(what: str, values: list[Tensor]) -> dict[str, Tensor]:
    """ "what 0", "what 1", …"""
    return {f"{what} {index}": value for index, value in enumerate(values)}
