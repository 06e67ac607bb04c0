"""Our layers and networks rebuilt from torch.nn, with the same parameters in the same order.

A torch equivalent is what a good torch programmer would write: ReLU in place behind a convolution;
fusing other element-wise operations is left to whoever compiles it.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from registry import ToldNetwork
from torch import Tensor, nn

from denoise_batch import kernels
from denoise_batch.models import LARGEST_LEVEL, LevelEstimator, Network


def torch_equivalent(block: kernels.Block, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a torch module that computes what `block` computes.

    Args:
        block: one of our layers, containers or networks.
        dtype: what a network's layers receive after normalisation; float32 leaves it to autocast.

    Raises:
        TypeError: `block` has no torch equivalent yet.
    """
    match block:
        case kernels.Conv2d() | kernels.ConvTranspose2d():
            return _convolution(block)
        case kernels.ReLU():
            return nn.ReLU()
        case kernels.Sigmoid():
            return nn.Sigmoid()
        case kernels.NearestUpsample2d():
            return nn.Upsample(scale_factor=block.scale_factor, mode="nearest")
        case kernels.PixelShuffle():
            return nn.PixelShuffle(block.upscale_factor)
        case kernels.PixelUnshuffle():
            return nn.PixelUnshuffle(block.downscale_factor)
        case kernels.UpsampleConv2d():
            return nn.Sequential(torch_equivalent(block.upsample), torch_equivalent(block.conv))
        case kernels.Sequential():  # also UNetLevel
            return nn.Sequential(*(_child(block, i, dtype) for i in range(len(block.blocks))))
        case kernels.Normalize():
            return Normalize(block, dtype)
        case kernels.Residual():
            return Residual(torch_equivalent(block.body, dtype))
        case kernels.ReflectPadded():
            return ReflectPadded(block, torch_equivalent(block.body, dtype))
        case kernels.AppendLevel() | kernels.LevelGate():
            return AppendLevel() if isinstance(block, kernels.AppendLevel) else LevelGate()
        case kernels.ConfidentMean():
            return ConfidentMean()
        case LevelEstimator():
            parts = (torch_equivalent(child, dtype) for _, child in block.named_children())
            return nn.Sequential(*parts)
        case Network() if block.estimator is not None:
            parts = (torch_equivalent(part, dtype) for part in (block.restorer, block.estimator))
            return Told(*parts, ReflectPadded(block.frame, nn.Identity()))
        case ToldNetwork():
            return Told(torch_equivalent(block.network.restorer, dtype))
        case Network():
            return Float32Output(torch_equivalent(block.restorer, dtype))
    raise TypeError(f"{type(block).__name__} has no torch equivalent: add one to {__file__}")


def _convolution(block: kernels.Conv2d | kernels.ConvTranspose2d) -> nn.Module:
    sizes = (block.in_channels, block.out_channels, block.kernel_size, block.stride, block.padding)
    options = {
        "dilation": block.dilation,
        "groups": block.groups,
        "bias": block.bias is not None,
        "padding_mode": block.padding_mode,
    }
    if isinstance(block, kernels.ConvTranspose2d):
        options["output_padding"] = block.output_padding
        module: nn.Conv2d | nn.ConvTranspose2d = nn.ConvTranspose2d(*sizes, **options)
    else:
        module = nn.Conv2d(*sizes, **options)
    module.weight.data = block.weight.detach().clone()
    if block.bias is not None:
        module.bias.data = block.bias.detach().clone()
    return module


def _child(sequence: kernels.Sequential, index: int, dtype: torch.dtype) -> nn.Module:
    child, previous = sequence.blocks[index], sequence.blocks[index - 1] if index else None
    is_behind_convolution = isinstance(previous, kernels.Conv2d | kernels.ConvTranspose2d)
    if isinstance(child, kernels.ReLU) and is_behind_convolution:
        return nn.ReLU(inplace=True)
    return torch_equivalent(child, dtype)


class Normalize(nn.Module):
    """(x − mean)/std in float32, then the layers' dtype."""

    def __init__(self, block: kernels.Normalize, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        # No buffers: module.to(bfloat16) must not round them.
        self.mean, self.std = (
            values[0] if len(values) == 1 else torch.tensor(values).view(1, -1, 1, 1)
            for values in (block.mean, block.std)
        )

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        output: Tensor = (input - self.mean) / self.std
        return output.to(self.dtype)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        output: Tensor = input + self.body(input)
        return output


class ReflectPadded(nn.Module):
    """Pad by reflection, apply the body, crop."""

    def __init__(self, block: kernels.ReflectPadded, body: nn.Module) -> None:
        super().__init__()
        self.margin = block.margin
        self.padded_size = block.padded_size
        self.body = body

    def pad(self, input: Tensor) -> Tensor:
        """Pad (N, C, H, W), larger than its padding."""
        height, width, m = int(input.shape[2]), int(input.shape[3]), self.margin
        bottom = self.padded_size(height) - height - m
        right = self.padded_size(width) - width - m
        if m or bottom or right:
            input = F.pad(input, (m, right, m, bottom), mode="reflect")
        return input

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), larger than its padding; the same size."""
        height, width, m = int(input.shape[2]), int(input.shape[3]), self.margin
        output: Tensor = self.body(self.pad(input))
        return output[:, :, m : m + height, m : m + width]


class Float32Output(nn.Module):
    """A network whose output is float32 whatever its layers compute in."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        """(N, 3, H, W); the same shape."""
        output: Tensor = self.body(input)
        return output.float()


class LevelModule(nn.Module):
    """A module that `Told` tells the levels, (N, 1, 1, 1), in units of 1/255."""

    level: Tensor


class AppendLevel(LevelModule):
    """Append a plane of the level and one of its square root, both of unit 50."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + 2, H, W)."""
        scaled = self.level / 50
        planes = torch.cat([scaled, scaled.sqrt()], 1).expand(-1, -1, *input.shape[2:])
        return torch.cat([input, planes.to(input.dtype)], 1)


class LevelGate(LevelModule):
    """s/(s + 1)·x for the level s."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        return input * (self.level / (self.level + 1))


class ConfidentMean(nn.Module):
    """The mean of softplus(x₀), weighted by exp(x₁)."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 1, 1, 1)."""
        value, confidence = F.softplus(input[:, :1]), input[:, 1:].clamp(-6, 6).exp()
        sums = (value * confidence).sum((2, 3), True), confidence.sum((2, 3), True)
        return sums[0] / sums[1]


class Told(nn.Module):
    """Estimate the noise level, or without an estimator know it, then restore."""

    def __init__(
        self,
        restorer: nn.Module,
        estimator: nn.Module | None = None,
        frame: ReflectPadded | None = None,
    ) -> None:
        super().__init__()
        self.restorer = restorer
        self.estimator = estimator
        self.frame = frame

    def forward(self, input: Tensor) -> Tensor:
        """(N, 3, H, W), larger than its padding; the same shape."""
        level = torch.full((len(input), 1, 1, 1), 255 * ToldNetwork.LEVEL, device=input.device)
        if self.estimator is not None and self.frame is not None:
            # Of pictures with colours that are not drawn.
            power = self.estimator(self.frame.pad(input)).float().pow(4)
            level = (power + LevelEstimator.RESERVE_255**2).sqrt()
        for module in self.restorer.modules():
            if isinstance(module, LevelModule):
                module.level = level.clamp_max(255 * LARGEST_LEVEL)
        output: Tensor = self.restorer(input)
        return output.float()
