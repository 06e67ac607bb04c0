"""Blocks made of blocks: one after the other, around a shortcut, or as a level of a U-Net."""

from collections.abc import Iterator

from torch import Tensor

from . import ops
from .block import Block
from .buffer_pool import release, shares_memory
from .conv import Convolution
from .geometry import Activation
from .layers import ReLU


class Sequential(Block):
    """Blocks one after the other; backward runs them in reverse (the chain rule).

    A convolution and the ReLU behind it run as one op, which saves a pass over memory. In inference
    an intermediate's memory goes back to the workspace as soon as the next block has read it.
    """

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, input: Tensor) -> Tensor:
        """Apply every block in order."""
        if not self.training and ops.has_fused_kernels(input.device):
            from . import fusion  # which knows the containers

            return fusion.forward(self.blocks, input)
        output = input
        for block, activation in self._stages():
            before = output
            is_ours = not self.training and not shares_memory(before, input)
            output = _forward(block, before, activation, may_destroy=is_ours)
            if is_ours and not shares_memory(before, output):
                release(before)
        return output

    @property
    def saves_output(self) -> bool:
        """As its last block, or the activation that this took along."""
        stages = self._stages()
        return not stages or stages[-1][1] is not None or stages[-1][0].saves_output

    def backward(self, grad_output: Tensor) -> Tensor:
        """Apply every block's backward in reverse order."""
        for block, _ in reversed(self._stages()):
            grad_output = block.backward(grad_output)
        return grad_output

    def backward_parameters(self, grad_output: Tensor) -> None:
        """Stop at the first block that has parameters; nothing before it learns."""
        stages = [block for block, _ in self._stages()]
        first = next((i for i, block in enumerate(stages) if block.parameters()), len(stages))
        for block in reversed(stages[first + 1 :]):
            grad_output = block.backward(grad_output)
        if first < len(stages):
            stages[first].backward_parameters(grad_output)
        for block in stages[:first]:
            block.forget()

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Blocks named by their position: "0", "1", …"""
        for index, block in enumerate(self.blocks):
            yield str(index), block

    def _stages(self) -> list[tuple[Block, Activation]]:
        """What runs: nested blocks in one row, without the ReLUs that convolutions take along."""
        stages: list[tuple[Block, Activation]] = []
        for block in self.blocks:
            if isinstance(block, Sequential):
                stages += block._stages()
            elif isinstance(block, ReLU) and stages and isinstance(stages[-1][0], Convolution):
                stages[-1] = (stages[-1][0], "relu")
            else:
                stages.append((block, None))
        return stages

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
        """The input plus what the body makes of it."""
        output = self.body.forward(input)
        if self.training and self.body.saves_output:
            return output + input
        return _add(output, input)

    @property
    def saves_output(self) -> bool:
        """A sum needs neither its terms nor its value."""
        return False

    def backward(self, grad_output: Tensor) -> Tensor:
        """d(x + f(x))/dx = 1 + f'(x)."""
        return _add(self.body.backward(grad_output), grad_output)

    def backward_parameters(self, grad_output: Tensor) -> None:
        """The shortcut has no parameters."""
        self.body.backward_parameters(grad_output)

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """The body, under the name "body"."""
        yield "body", self.body


class UNetLevel(Block):
    """A level of a U-Net: decoder(e + up(inner(down(e)))) with e = encoder(x).

    Ronneberger et al. (2015), with the skip connection added rather than concatenated, which costs
    no channels. `inner` may be a Skip again.

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
        super().__init__()
        self.encoder = encoder
        self.down = down
        self.inner = inner
        self.up = up
        self.decoder = decoder
        self._below = Sequential(down, inner, up)  # for inference only
        self._below.training = False

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), H and W multiples of what `down` divides by; the same shape."""
        if self.training:
            encoded = self.encoder.forward(input)
            coarse = self.up.forward(self.inner.forward(self.down.forward(encoded)))
            merged = coarse + encoded if self.up.saves_output else _add(coarse, encoded)
            return self.decoder.forward(merged)
        encoded = self.encoder.forward(input)
        merged = self._below.forward(encoded)
        merged = _add(merged, encoded)
        if not shares_memory(encoded, input) and not shares_memory(encoded, merged):
            release(encoded)
        output = self.decoder.forward(merged)
        if not any(shares_memory(merged, kept) for kept in (input, output)):
            release(merged)
        return output

    def backward(self, grad_output: Tensor) -> Tensor:
        """The encoder's gradient comes along the skip and up from the inner level."""
        return self.encoder.backward(self._backward_to_encoder(grad_output))

    def backward_parameters(self, grad_output: Tensor) -> None:
        """As backward, without the input's gradient."""
        self.encoder.backward_parameters(self._backward_to_encoder(grad_output))

    def _backward_to_encoder(self, grad_output: Tensor) -> Tensor:
        grad_merged = self.decoder.backward(grad_output)
        grad_coarse = self.inner.backward(self.up.backward(grad_merged))
        return _add(self.down.backward(grad_coarse), grad_merged)

    @property
    def saves_output(self) -> bool:
        """As the decoder."""
        return self.decoder.saves_output

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """The five parts by their names."""
        yield "encoder", self.encoder
        yield "down", self.down
        yield "inner", self.inner
        yield "up", self.up
        yield "decoder", self.decoder


def _add(fresh: Tensor, other: Tensor) -> Tensor:
    """Their sum, in the place of `fresh` (which nobody else reads) unless it views `other`."""
    if fresh.dtype != other.dtype or shares_memory(fresh, other):
        return fresh + other
    return fresh.add_(other)


def _forward(block: Block, input: Tensor, activation: Activation, *, may_destroy: bool) -> Tensor:
    if isinstance(block, Convolution):
        return block.forward(input, activation)
    return block.forward_in_place(input) if may_destroy else block.forward(input)
