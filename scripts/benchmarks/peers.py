"""The providers "eager" and "compile": torch.nn and autograd, as strong as users can have them.

Channels-last throughout, fused optimisers. In bfloat16, training has float32 parameters under
torch.autocast, and inference a module converted with `.to(torch.bfloat16)`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody uses)
from ours import LR, MOMENTUM, gradients, numbered, unet_parameters
from problem import Problem, Runner
from torch import Tensor, nn
from twins import twin

Options = dict[str, str | int | bool | Callable[..., Any]] | None
Compile = Callable[[nn.Module], Callable[[Tensor], Tensor]]


def eager(problem: Problem) -> Runner:
    """The twin as it is."""
    return _runner(problem, lambda module: module)


def compiled(problem: Problem) -> Runner:
    """The twin through torch.compile; the optimiser stays torch's fused one.

    Inference is compiled with frozen weights (prepacked, constants folded), inductor's best.
    """
    # Each case starts anew: beyond a few versions of one module, torch would fall back to eager
    # without a word.
    torch._dynamo.reset()
    options: Options = {"freezing": True} if problem.case.mode == "infer" else {}
    return _runner(
        problem,
        lambda module: torch.compile(module, fullgraph=True, dynamic=False, options=options),
    )


def _runner(problem: Problem, compile: Compile) -> Runner:
    mode = problem.case.mode
    if mode == "step":
        return _step(problem)
    block = problem.case.block()
    if mode == "infer":
        module = _channels_last(twin(block, problem.dtype).to(problem.device, problem.dtype))
        module.eval().requires_grad_(False)
        return _infer(problem, compile(module))
    module = _channels_last(twin(block).to(problem.device))
    if mode == "train":
        return _train(problem, module, compile(module))
    if mode == "forward":
        return _forward(problem, compile(module))
    return _backward(problem, module, compile(module))


def _train(problem: Problem, module: nn.Module, call: Callable[[Tensor], Tensor]) -> Runner:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    latest: dict[str, Tensor] = {}

    def run() -> None:
        with _precision(problem):
            output = call(problem.input)
        loss = F.mse_loss(output, problem.target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        latest.update(output=output.detach(), loss=loss.detach())

    return Runner(run, lambda: latest | gradients(list(module.parameters())))


def _infer(problem: Problem, call: Callable[[Tensor], Tensor]) -> Runner:
    latest: dict[str, Tensor] = {}

    def run() -> None:
        with torch.no_grad():
            latest["output"] = call(problem.input)

    return Runner(run, lambda: latest)


def _forward(problem: Problem, call: Callable[[Tensor], Tensor]) -> Runner:
    latest: dict[str, Tensor] = {}
    leaf = _leaf(problem)

    def run() -> None:
        with _precision(problem):
            latest["output"] = call(leaf)

    return Runner(run, lambda: {name: value.detach() for name, value in latest.items()})


def _backward(problem: Problem, module: nn.Module, call: Callable[[Tensor], Tensor]) -> Runner:
    leaf = _leaf(problem)
    with torch.no_grad(), _precision(problem):
        grad_output = problem.grad_of(module(leaf))
    latest: dict[str, Tensor] = {}

    def prepare() -> None:
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        with _precision(problem):
            latest["output"] = call(leaf)

    def run() -> None:
        torch.autograd.backward(latest["output"], grad_output)

    def results() -> dict[str, Tensor]:
        assert leaf.grad is not None  # it was asked for
        return {"grad_input": leaf.grad} | gradients(list(module.parameters()))

    return Runner(run, results, prepare)


def _step(problem: Problem) -> Runner:
    parameters = unet_parameters(problem)
    for parameter, grad in zip(parameters, problem.grads_of(parameters), strict=True):
        parameter.requires_grad_().grad = grad
    optimizer: torch.optim.Optimizer
    if problem.case.subject == "SGD":
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=LR, fused=True)

    def run() -> None:
        optimizer.step()

    return Runner(run, lambda: numbered("parameter", [p.detach() for p in parameters]))


def _channels_last(module: nn.Module) -> nn.Module:
    """Its parameters as channels-last, in place."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return module


def _leaf(problem: Problem) -> Tensor:
    return problem.input.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def _precision(problem: Problem) -> AbstractContextManager[None]:
    if problem.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(problem.device.type, problem.dtype)
