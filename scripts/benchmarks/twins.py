"""Our blocks rebuilt from torch.nn, with the same parameters in the same order.

A twin is what a good torch programmer would write: channels-last, ReLU in place behind a
convolution, fused element-wise operations left to whoever compiles it.
"""

from functools import singledispatch

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody uses)
from registry import LossBlock
from torch import Tensor, nn

from denoise_batch import kernels
from denoise_batch.kernels.layers import Convolution
from denoise_batch.models import Network


@singledispatch
def twin(block: kernels.Block, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A torch module that computes what `block` computes.

    Args:
        block: ours.
        dtype: what a network's layers are to receive, float32 for autocast to decide.

    Raises:
        TypeError: a block that has no twin yet.
    """
    raise TypeError(f"{type(block).__name__} has no torch twin: add one to {__file__}")


@twin.register
def _(block: kernels.Conv2d, dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Conv2d(
        block.in_channels,
        block.out_channels,
        block.kernel_size,
        block.stride,
        block.padding,
        block.dilation,
        bias=block.bias is not None,
    )
    return _with_parameters(module, block)


@twin.register
def _(block: kernels.ConvTranspose2d, dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.ConvTranspose2d(
        block.in_channels,
        block.out_channels,
        block.kernel_size,
        block.stride,
        block.padding,
        block.output_padding,
        bias=block.bias is not None,
        dilation=block.dilation,
    )
    return _with_parameters(module, block)


@twin.register
def _(block: kernels.ReLU, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.ReLU()


@twin.register
def _(block: kernels.Sigmoid, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sigmoid()


@twin.register
def _(block: kernels.NearestUpsample2d, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Upsample(scale_factor=block.scale_factor, mode="nearest")


@twin.register
def _(block: kernels.PixelShuffle, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.PixelShuffle(block.upscale_factor)


@twin.register
def _(block: kernels.PixelUnshuffle, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.PixelUnshuffle(block.downscale_factor)


@twin.register
def _(block: kernels.Sequential, dtype: torch.dtype = torch.float32) -> nn.Module:
    modules: list[nn.Module] = []
    previous: kernels.Block | None = None
    for child in block.blocks:
        is_fusible = isinstance(child, kernels.ReLU) and isinstance(previous, Convolution)
        modules.append(nn.ReLU(inplace=True) if is_fusible else twin(child, dtype))
        previous = child
    return nn.Sequential(*modules)


class StandardizeTwin(nn.Module):
    """(x − mean)/std in float32, then the layers' precision."""

    def __init__(self, mean: float, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.mean, self.std, self.dtype = mean, std, dtype

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        return ((input - self.mean) / self.std).to(self.dtype)


@twin.register
def _(block: kernels.Normalize, dtype: torch.dtype = torch.float32) -> nn.Module:
    (mean,), (std,) = block.mean, block.std
    return StandardizeTwin(mean, std, dtype)


class ResidualTwin(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """The body keeps the shape."""
        predicted: Tensor = self.body(input)
        return input + predicted


@twin.register
def _(block: kernels.Residual, dtype: torch.dtype = torch.float32) -> nn.Module:
    return ResidualTwin(twin(block.body, dtype))


class SkipTwin(nn.Module):
    """A level of a U-Net."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, input: Tensor) -> Tensor:
        """decoder(e + up(inner(down(e)))) with e = encoder(x)."""
        parts = self.parts
        encoded = parts["encoder"](input)
        coarse = parts["up"](parts["inner"](parts["down"](encoded)))
        output: Tensor = parts["decoder"](encoded + coarse)
        return output


@twin.register
def _(block: kernels.UNetLevel, dtype: torch.dtype = torch.float32) -> nn.Module:
    return SkipTwin({name: twin(child, dtype) for name, child in block.named_children()})


class PaddedTwin(nn.Module):
    """Reflection, the body, and the crop."""

    def __init__(self, block: kernels.ReflectPadded, body: nn.Module) -> None:
        super().__init__()
        self.margin = block.margin
        self.padded_size = block.padded_size
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), larger than its padding."""
        height, width = input.shape[2:]
        m = self.margin
        bottom = self.padded_size(height) - height - m
        right = self.padded_size(width) - width - m
        if m or bottom or right:
            input = F.pad(input, (m, right, m, bottom), mode="reflect")
        output: Tensor = self.body(input)
        return output[:, :, m : m + height, m : m + width]


@twin.register
def _(block: kernels.ReflectPadded, dtype: torch.dtype = torch.float32) -> nn.Module:
    return PaddedTwin(block, twin(block.body, dtype))


class Float32Output(nn.Module):
    """A network whose output is float32 whatever its layers compute in."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """(N, 3, H, W) → the same."""
        output: Tensor = self.body(input)
        return output.float()


@twin.register
def _(block: Network, dtype: torch.dtype = torch.float32) -> nn.Module:
    ((_, body),) = block.named_children()
    return Float32Output(twin(body, dtype))


class LossTwin(nn.Module):
    """The mean squared error against 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.target: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """A 0-d tensor."""
        if self.target is None:
            self.target = torch.full_like(input, 0.5, requires_grad=False)
        return F.mse_loss(input, self.target)


@twin.register
def _(block: LossBlock, dtype: torch.dtype = torch.float32) -> nn.Module:
    return LossTwin()


def _with_parameters(module: nn.Conv2d | nn.ConvTranspose2d, block: Convolution) -> nn.Module:
    module.weight.data.copy_(block.weight)
    if module.bias is not None and block.bias is not None:
        module.bias.data.copy_(block.bias)
    return module
