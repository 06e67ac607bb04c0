"""Blocks made of blocks: one after the other, around a shortcut, or as a level of a U-Net."""

from collections.abc import Iterator, Sequence
from typing import Self

from torch import Tensor

from . import fusion
from .block import Block, InputGrad, add
from .buffer_pool import POOL, shares_memory
from .dispatch import Ops, ops_for
from .geometry import Activation
from .layers import Convolution, ReLU


class Sequential(Block):
    """Blocks one after the other; backward runs them in reverse (the chain rule).

    A convolution and the ReLU after it run as one op, which saves a pass over memory. In inference
    an intermediate's memory goes back to the pool as soon as the next block has read it.
    """

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, input: Tensor) -> Tensor:
        """Apply every block in order."""
        return self._forward(input, None)

    def forward_plus(self, input: Tensor, residual: Tensor) -> Tensor:
        """Apply every block in order, and add `residual`."""
        return self._forward(input, residual)

    def _forward(self, input: Tensor, residual: Tensor | None) -> Tensor:
        if not self.training and ops_for(input.device).has_fused_kernels:
            return forward_fused([self], input, residual)
        output, steps = input, self._steps()
        for index, (block, activation) in enumerate(steps):
            before = output
            is_ours = not self.training and not shares_memory(before, input)
            if residual is not None and activation is None and index == len(steps) - 1:
                output, residual = block.forward_plus(before, residual), None
            elif isinstance(block, Convolution):
                output = block.forward(before, activation)
            else:
                output = block.forward_in_place(before) if is_ours else block.forward(before)
            if is_ours and not shares_memory(before, output):
                POOL.free(before)
        if residual is None:
            return output
        return output + residual if self.training and self.saves_output else add(output, residual)

    def backward_plus(self, grad_output: Tensor, residual: Tensor) -> Tensor:
        """Apply every block's backward in reverse order, and add `residual`."""
        steps = self._steps()
        for block, _ in reversed(steps[1:]):
            grad_output = block.backward(grad_output)
        if not steps:
            return grad_output + residual
        return steps[0][0].backward_plus(grad_output, residual)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Apply every block's backward in reverse order, down to the first that learns."""
        blocks = [block for block, _ in self._steps()]
        first = 0
        if not needs_input_grad:
            learning = (index for index, block in enumerate(blocks) if block.parameters())
            first = next(learning, len(blocks))
        for block in reversed(blocks[first + 1 :]):
            grad_output = block.backward(grad_output)
        if first < len(blocks):
            grad_output = blocks[first].backward(grad_output, needs_input_grad)
        for block in blocks[:first]:
            block.clear_saved()
        return grad_output if needs_input_grad else None

    @property
    def saves_output(self) -> bool:
        """Whether its last block, or the activation fused with it, does."""
        steps = self._steps()
        return not steps or steps[-1][1] is not None or steps[-1][0].saves_output

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the blocks, named by their position: "0", "1", …"""
        for index, block in enumerate(self.blocks):
            yield str(index), block

    def launched(self, ops: Ops) -> Sequence[Block]:
        """Return the blocks that `forward_fused` runs instead of this one."""
        return self.blocks

    def _steps(self) -> list[tuple[Block, Activation]]:
        """What runs: nested blocks in one row, without the ReLUs that convolutions include."""
        steps: list[tuple[Block, Activation]] = []
        for block in self.blocks:
            if isinstance(block, Sequential):
                steps += block._steps()
            elif isinstance(block, ReLU) and steps and isinstance(steps[-1][0], Convolution):
                steps[-1] = (steps[-1][0], "relu")
            else:
                steps.append((block, None))
        return steps

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return self.blocks[index]


class Residual(Block):
    """x + body(x) (He et al., "Deep residual learning", 2016).

    Args:
        body: a block whose output has its input's shape.
    """

    def __init__(self, body: Block) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """Return the input plus the body's output."""
        return self.body.forward_plus(input, input)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """d(x + f(x))/dx = 1 + f'(x)."""
        if not needs_input_grad:
            return self.body.backward(grad_output, needs_input_grad)
        return self.body.backward_plus(grad_output, grad_output)

    @property
    def saves_output(self) -> bool:
        """A sum's gradient needs neither its terms nor its value."""
        return False

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the body, named "body"."""
        yield "body", self.body


class UNetLevel(Sequential):
    """A level of a U-Net: decoder(e + up(inner(down(e)))) with e = encoder(x).

    Ronneberger et al. (2015), with the skip connection added rather than concatenated, which costs
    no channels. `inner` may be another UNetLevel.

    Args:
        encoder: keeps the size.
        down: to the inner level's size and channels.
        inner: the coarser level.
        up: back to this level's size and channels.
        decoder: keeps the size.
    """

    def __init__(
        self, encoder: Block, down: Block, inner: Block, up: Block, decoder: Block
    ) -> None:
        super().__init__(encoder, Residual(Sequential(down, inner, up)), decoder)
        self.encoder = encoder
        self.down = down
        self.inner = inner
        self.up = up
        self.decoder = decoder

    def train(self, mode: bool = True) -> Self:
        """Switch the parts, and what holds them together."""
        for block in self.blocks:
            block.train(mode)
        return super().train(mode)

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the five parts by their names."""
        yield "encoder", self.encoder
        yield "down", self.down
        yield "inner", self.inner
        yield "up", self.up
        yield "decoder", self.decoder


def forward_fused(blocks: Sequence[Block], input: Tensor, residual: Tensor | None = None) -> Tensor:
    """Apply the blocks in order as the fewest launches, in inference; then add `residual`.

    An intermediate's memory goes back to the pool as soon as nothing reads it.
    """
    ops = ops_for(input.device)
    steps = fusion.plan(_flat(blocks, ops), has_ends=ops.has_fused_ends)
    output = input
    for index, step in enumerate(steps):
        before, is_last = output, index == len(steps) - 1
        if isinstance(step, fusion.Launch):
            output, is_added = fusion.launch(step, before, residual if is_last else None)
            residual = None if is_added else residual
        elif isinstance(step, Residual):
            output = _residual_fused(step, before)
        elif is_last and residual is not None:
            output, residual = step.forward_plus(before, residual), None
        else:
            output = step.forward(before)
        _free(before, input, output)
    return output if residual is None else output + residual


def _residual_fused(block: Residual, input: Tensor) -> Tensor:
    """x + body(x), as one call where there is one for two convolutions."""
    ops = ops_for(input.device)
    is_large = input.numel() >= fusion.LEAST_PAIR
    steps = fusion.plan(_flat([block.body], ops)) if ops.has_residual_pair and is_large else []
    pair = fusion.as_pair(steps)
    if pair is None:
        return forward_fused([block.body], input, residual=input)
    return fusion.launch_pair(pair, input)


def _free(tensor: Tensor, *kept: Tensor) -> None:
    """Give a tensor's memory back to the pool, unless it is also that of one that is kept."""
    if not any(shares_memory(tensor, other) for other in kept):
        POOL.free(tensor)


def _flat(blocks: Sequence[Block], ops: Ops) -> list[Block]:
    """The blocks in one row, those of a Sequential in its place."""
    row: list[Block] = []
    for block in blocks:
        row += _flat(block.launched(ops), ops) if isinstance(block, Sequential) else [block]
    return row
