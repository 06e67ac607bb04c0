"""One launch moves all parameters: the twins of `reference.optim`.

A table on the device holds the addresses of every parameter, its gradient and its state; a program
takes one block of one of them. The table is uploaded once for given addresses: torch's allocator
hands out the same ones step after step.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from .packed_weights import forget
from .tiles import POINTWISE_BLOCK


@triton.jit
def _pointer(table_ptr, row, column, COLUMNS: tl.constexpr):
    """The float32 tensor whose address stands in the table; 16-byte aligned."""
    address = tl.load(table_ptr + row * COLUMNS + column)
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _load(pointer, offset, size, IS_WHOLE: tl.constexpr):
    """A block; without a mask, hence 128 bits wide, unless it is a tensor's last."""
    if IS_WHOLE:
        value = tl.load(pointer + offset)
    else:
        value = tl.load(pointer + offset, mask=offset < size, other=0.0)
    return value


@triton.jit
def _store(pointer, offset, value, size, IS_WHOLE: tl.constexpr):
    if IS_WHOLE:
        tl.store(pointer + offset, value)
    else:
        tl.store(pointer + offset, value, mask=offset < size)


@triton.jit
def _sgd_block(
    table_ptr,
    tensor,
    offset,
    size,
    lr,
    momentum,
    weight_decay,
    COLUMNS: tl.constexpr,
    NESTEROV: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    parameter_ptr = _pointer(table_ptr, tensor, 0, COLUMNS)
    grad_ptr = _pointer(table_ptr, tensor, 1, COLUMNS)
    parameter = _load(parameter_ptr, offset, size, IS_WHOLE)
    step = _load(grad_ptr, offset, size, IS_WHOLE) + weight_decay * parameter
    if COLUMNS == 3:
        velocity_ptr = _pointer(table_ptr, tensor, 2, COLUMNS)
        velocity = momentum * _load(velocity_ptr, offset, size, IS_WHOLE) + step
        _store(velocity_ptr, offset, velocity, size, IS_WHOLE)
        if NESTEROV:
            step += momentum * velocity
        else:
            step = velocity
    _store(parameter_ptr, offset, parameter - lr * step, size, IS_WHOLE)


@triton.jit
def sgd_step_kernel(
    table_ptr,  # (tensors, COLUMNS) int64: addresses of parameter, grad, with momentum velocity
    sizes_ptr,  # (tensors,) int64
    blocks_ptr,  # (programs, 2) int64: tensor, first element
    lr,
    momentum,
    weight_decay,
    COLUMNS: tl.constexpr,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one tensor."""
    tensor = tl.load(blocks_ptr + 2 * tl.program_id(0))
    start = tl.multiple_of(tl.load(blocks_ptr + 2 * tl.program_id(0) + 1), BLOCK)
    size = tl.load(sizes_ptr + tensor)
    offset = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        _sgd_block(
            table_ptr, tensor, offset, size, lr, momentum, weight_decay, COLUMNS, NESTEROV, True
        )
    else:
        _sgd_block(
            table_ptr, tensor, offset, size, lr, momentum, weight_decay, COLUMNS, NESTEROV, False
        )


@triton.jit
def _adam_block(
    table_ptr,
    tensor,
    offset,
    size,
    step_size,
    keep,
    beta1,
    beta2,
    root_correction,
    eps,
    weight_decay,
    IS_WHOLE: tl.constexpr,
):
    parameter_ptr = _pointer(table_ptr, tensor, 0, 4)
    mean_ptr = _pointer(table_ptr, tensor, 2, 4)
    square_ptr = _pointer(table_ptr, tensor, 3, 4)
    parameter = _load(parameter_ptr, offset, size, IS_WHOLE) * keep
    grad = _load(_pointer(table_ptr, tensor, 1, 4), offset, size, IS_WHOLE)
    grad += weight_decay * parameter
    mean = _load(mean_ptr, offset, size, IS_WHOLE)
    mean += (1.0 - beta1) * (grad - mean)
    square = beta2 * _load(square_ptr, offset, size, IS_WHOLE) + (1.0 - beta2) * grad * grad
    denominator = tl.sqrt_rn(square) / root_correction + eps
    _store(parameter_ptr, offset, parameter - step_size * mean / denominator, size, IS_WHOLE)
    _store(mean_ptr, offset, mean, size, IS_WHOLE)
    _store(square_ptr, offset, square, size, IS_WHOLE)


@triton.jit
def adam_step_kernel(
    table_ptr,  # (tensors, 4) int64: addresses of parameter, grad, mean and square
    sizes_ptr,  # (tensors,) int64
    blocks_ptr,  # (programs, 2) int64: tensor, first element
    step_size,  # lr/(1 − β₁ᵗ)
    keep,  # 1 − lr·weight_decay where decay is decoupled, else 1
    beta1,
    beta2,
    root_correction,  # √(1 − β₂ᵗ)
    eps,
    weight_decay,  # of the gradient
    BLOCK: tl.constexpr,
):
    """One block of one tensor."""
    tensor = tl.load(blocks_ptr + 2 * tl.program_id(0))
    start = tl.multiple_of(tl.load(blocks_ptr + 2 * tl.program_id(0) + 1), BLOCK)
    size = tl.load(sizes_ptr + tensor)
    offset = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        _adam_block(
            table_ptr, tensor, offset, size, step_size, keep, beta1, beta2, root_correction, eps,
            weight_decay, True,
        )  # fmt: skip
    else:
        _adam_block(
            table_ptr, tensor, offset, size, step_size, keep, beta1, beta2, root_correction, eps,
            weight_decay, False,
        )  # fmt: skip


def sgd_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """As `reference.optim.sgd_step`."""
    lists = [parameters, grads, velocities] if velocities else [parameters, grads]
    grid, table, sizes, blocks, _kept = _tables(lists)
    sgd_step_kernel[grid](
        table,
        sizes,
        blocks,
        lr,
        momentum,
        weight_decay,
        COLUMNS=len(lists),
        NESTEROV=nesterov,
        BLOCK=POINTWISE_BLOCK,
        num_warps=4,
    )
    forget(parameters)


def adam_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    is_decoupled: bool,
) -> None:
    """As `reference.optim.adam_step`, if all parameters have made as many steps."""
    if len(set(steps)) != 1:
        raise NotCoveredError(f"different step counts {sorted(set(steps))}")
    grid, table, sizes, blocks, _kept = _tables([parameters, grads, means, squares])
    beta1, beta2 = betas
    adam_step_kernel[grid](
        table,
        sizes,
        blocks,
        lr / (1 - beta1 ** steps[0]),
        1 - lr * weight_decay if is_decoupled else 1.0,
        beta1,
        beta2,
        (1 - beta2 ** steps[0]) ** 0.5,
        eps,
        0.0 if is_decoupled else weight_decay,
        BLOCK=POINTWISE_BLOCK,
        num_warps=4,
    )
    forget(parameters)


def _tables(
    lists: Sequence[Sequence[Tensor]],
) -> tuple[tuple[int], Tensor, Tensor, Tensor, list[list[Tensor]]]:
    """Grid, addresses, sizes, blocks, and the tensors that must live until the launch.

    Raises:
        NotCoveredError: a tensor that is not float32, contiguous and aligned.
    """
    # A gradient of other strides is copied; what is moved has to be contiguous as it is.
    rows = [list(lists[0]), [grad.contiguous() for grad in lists[1]], *map(list, lists[2:])]
    for tensors in rows:
        for tensor in tensors:
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise NotCoveredError(f"{tensor.dtype}, strides {tensor.stride()}")
            if tensor.data_ptr() % 16:
                raise NotCoveredError("an address that is no multiple of 16")
    addresses = tuple(tensor.data_ptr() for column in zip(*rows, strict=True) for tensor in column)
    device = lists[0][0].device
    table = _upload(addresses, device).view(-1, len(rows))
    sizes, blocks = _layout(tuple(parameter.numel() for parameter in lists[0]), device)
    return (len(blocks),), table, sizes, blocks, rows


@lru_cache(maxsize=8)
def _layout(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes, and (tensor, first element) of every block."""
    starts = [
        (tensor, start)
        for tensor, count in enumerate(counts)
        for start in range(0, count, POINTWISE_BLOCK)
    ]
    blocks = tuple(value for pair in starts for value in pair)
    return _upload(counts, device), _upload(blocks, device).view(-1, 2)


@lru_cache(maxsize=8)
def _upload(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 on the device, without waiting: from pinned memory, which torch keeps till then."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    pinned = torch.tensor(values, dtype=torch.int64, pin_memory=True)
    return pinned.to(device, non_blocking=True)
