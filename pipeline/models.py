"""Networks: architectures composed of the blocks of denoise_batch.kernels, and their weights files.

A weights file is a safetensors file that describes itself. Its metadata has one entry,
`denoise-batch`: JSON with `format` (1), `network` (architecture, mean, std) and `training` (noise,
seed, scores and more; keys are free). One entry, because safetensors writes several in random
order, and equal weights must give equal files.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError, TensorSpec, safe_open
from torch import Tensor

from denoise_batch.kernels import (
    AppendLevel,
    Block,
    ConfidentMean,
    Conv2d,
    ConvTranspose2d,
    DenoiseBatchError,
    LevelGate,
    Normalize,
    OptionError,
    PixelShuffle,
    PixelUnshuffle,
    ReflectPadded,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    UNetLevel,
    UpsampleConv2d,
    WeightsError,
)
from denoise_batch.kernels.block import InputGrad
from denoise_batch.kernels.buffer_pool import POOL
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.geometry import check_nchw
from denoise_batch.kernels.layers import kaiming_normal_
from denoise_batch.kernels.level import LevelBlock
from denoise_batch.kernels.work import WORK

from . import weights
from .files.atomic import atomic_write
from .options import check_range

logger = logging.getLogger("denoise_batch.models")

SHIPPED = Path(weights.__file__).parent
LARGEST_LEVEL = 75 / 255  # of training; a network that is told more takes it for this
Layers = Callable[[torch.Generator | None], Sequence[Block]]


@dataclass(frozen=True)
class Architecture:
    """A network's layers and the image sizes that they accept.

    Attributes:
        layers: makes the blocks between normalised input and output, freshly initialised.
        multiple: image height and width must be multiples of this; others are padded by reflection.
        minimum: smallest height and width, reached by the same padding.
        halo: pixels on every side of a tile that its output depends on; a multiple of `multiple`.
        bytes_per_pixel: approximate peak memory of float32 inference per padded pixel, on a
            processor.
        gpu_bytes_per_pixel: the same on a GPU, beside the images: of the Triton kernels, and of
            torch's matrix products.
        margin: pixels of reflected context around every image, for layers that do not pad.
        context: more of them where `Network.pad` pads: zeros, which the layers pad with, would
            change colours by up to 24 levels at the edges.
        is_residual: the layers predict what to add to the image, not the image.
        takes_level: the layers are told how much noise there is.
    """

    layers: Layers
    multiple: int
    minimum: int
    halo: int
    bytes_per_pixel: int
    gpu_bytes_per_pixel: tuple[int, int]
    margin: int = 0
    context: int = 0
    is_residual: bool = False
    takes_level: bool = False

    def bytes_on(self, device: torch.device, precision: torch.dtype | None) -> int:
        """Approximate peak memory of inference per padded pixel on a device, images included."""
        if device.type == "cpu":
            return self.bytes_per_pixel
        layers = self.gpu_bytes_per_pixel[ops_for(device).implementation != "triton"]
        return IMAGE_BYTES + layers // (1 if precision is None else 2)


# Of a pixel's samples, in float32 and back, on a GPU.
IMAGE_BYTES = 48


class LevelEstimator(Block):
    """The noise level of images: 2.8 k multiply-adds per pixel, 0.12 M parameters.

    Every cell of `CELL_PX` pixels gives the square root of a level and its confidence in it; the
    confident mean over the image is the estimate. One number an image is enough, and an image has
    some cells where noise shows. The convolutions do not pad, as a network that saw padding while
    it was trained on small tiles would read large images too high: five cells are lost.

    Args:
        generator: source of the initial weights.
    """

    CELL_PX = 16
    LOST = 2, 3  # cells at the beginning and at the end of rows and columns
    MINIMUM_PX = CELL_PX * (sum(LOST) + 1)
    # What is told beside the estimate: one number does not tell weak noise from grain and texture,
    # but a network that is told too much looks for itself. Also where the estimate is 0: one part
    # of a picture without noise, such as white paper, is enough for that. In gray pictures it sees
    # less, for texture differs from noise also in that it has the same colour everywhere.
    RESERVE_255, GRAY_RESERVE_255 = 4.75, 3.5
    # Noise leaves hardly any neighbours alike: about 0.28/σ of them, or a quarter where white or
    # black cuts off half of it. So where more than this share are, what looks like stronger noise
    # than this is drawn, or dithered. If this share of what was looked at is, all the image is.
    MOST_ALIKE, STRONG_255, MOST_DRAWN = 0.45, 2.0, 0.9

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()

        def conv(channels: int, out_channels: int, stride: int = 1) -> Sequence[Block]:
            conv = Conv2d(channels, out_channels, 3, stride, generator=generator)
            kaiming_normal_(conv.weight, generator)
            return conv, ReLU()

        last = Conv2d(64, 2, 1, generator=generator)
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.copy_(torch.tensor([3.5, 0.0]))
        self.cells = Sequential(
            Normalize(0.5, 0.25),
            PixelUnshuffle(2),
            *conv(12, 32),
            *conv(32, 32, stride=2),
            *conv(32, 32),
            *conv(32, 48, stride=2),
            *conv(48, 48),
            *conv(48, 64, stride=2),
            *conv(64, 64),
            last,
        )
        self.mean = ConfidentMean()

    def forward(self, input: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 1, 1, 1): √level, level in units of 1/255.

        H and W are multiples of a cell and at least `MINIMUM_PX`.
        """
        return self.mean.forward(self.cells.forward(input))

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Add to the layers' `.grad` and return the gradient of the input."""
        return self.cells.backward(self.mean.backward(grad_output), needs_input_grad)

    def sums(self, input: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return what these rows and columns of pixels add to the sums of an image, (N, 3).

        They are those of the mean, where cells that are drawn are left out.
        """
        rows, columns = (
            slice(*(max(0, at // self.CELL_PX - self.LOST[0]) for at in (span.start, span.stop)))
            for span in (rows, columns)
        )
        cells = self.cells.forward(input)
        first, last = (self.CELL_PX * (lost - 1) for lost in self.LOST)
        is_drawn = self._alike(input[:, :, first:-last, first:-last]) > self.MOST_ALIKE
        is_drawn &= cells[:, :1] > math.log(math.expm1(math.sqrt(self.STRONG_255)))
        sums = self.mean.sums(cells[:, :, rows, columns], is_drawn[:, :, rows, columns])
        if not self.training:
            POOL.free(cells)
        return sums

    @classmethod
    def level(cls, sums: Tensor, *, is_gray: bool) -> Tensor:
        """Return the levels to tell of images with these sums, (N, 3): √(s² + reserve²)/255, (N,).

        s is the estimate. An image that is drawn has no noise, and needs no reserve.
        """
        total, counted, drawn = sums.unbind(1)
        power = (total / counted).pow(4).add(cls._reserve_255(is_gray) ** 2)
        is_drawn = drawn > cls.MOST_DRAWN / (1 - cls.MOST_DRAWN) * counted
        return (power.sqrt() / 255).masked_fill(is_drawn, 0)

    @classmethod
    def noise(cls, level: float, *, is_gray: bool) -> float:
        """Return the noise level s that was estimated where this level is told."""
        return math.sqrt(max(0.0, (255 * level) ** 2 - cls._reserve_255(is_gray) ** 2)) / 255

    @classmethod
    def _reserve_255(cls, is_gray: bool) -> float:
        return cls.GRAY_RESERVE_255 if is_gray else cls.RESERVE_255

    @classmethod
    def _alike(cls, input: Tensor) -> Tensor:
        """The largest share of equal neighbours around each inner cell, in one of four directions.

        Of the channel that has the fewest: noise may be in one only. (N, C, H, W) → (N, 1, h, w),
        for images of (h + 2)×(w + 2) cells.
        """
        side = cls.CELL_PX // 2
        a, b, c, d = (input[:, :, down::2, across::2] for down in (0, 1) for across in (0, 1))
        equal = torch.stack([a == b, a == c, b == c, a == d])
        *others, height, width = equal.shape
        cells = equal.view(*others, height // side, side, width // side, side)
        around = cells.sum((4, 6), dtype=input.dtype).unfold(3, 3, 1).unfold(4, 3, 1)
        shares: Tensor = around.mean((5, 6)).amin(2, keepdim=True).amax(0) / side**2
        return shares

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the layers, and the mean, which has no parameters."""
        yield "cells", self.cells
        yield "mean", self.mean


class Network(Block):
    """An architecture with its normalisation: any H×W ≥ 1, gray or RGB, values in [0, 1].

    A gray image is fed to all three channels and the three outputs are averaged.

    Args:
        architecture: a name in `ARCHITECTURES`.
        mean: subtracted from the input; one value or three.
        std: divides the input; one value or three.
        generator: source of the initial weights.

    Attributes:
        layers: between normalised image and output.
        restorer: the layers with normalisation and padding; what is trained, on RGB images.
        frame: what `pad` adds to an image.
        estimator: tells the layers how much noise there is; None if they take no level, or if it
            has not been trained.

    Raises:
        OptionError: no such architecture.
    """

    def __init__(
        self,
        architecture: str,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise OptionError(f"unknown network {architecture!r}; choose from {known}")
        self.architecture = architecture
        spec = ARCHITECTURES[architecture]
        self.normalize = Normalize(mean, std)
        self.layers = Sequential(*spec.layers(generator))
        self._padded = ReflectPadded(
            self.layers, multiple=spec.multiple, minimum=spec.minimum, margin=spec.margin
        )
        least = max(spec.minimum, LevelEstimator.MINIMUM_PX if spec.takes_level else 0)
        self.frame = ReflectPadded(
            self.layers, multiple=spec.multiple, minimum=least, margin=self.margin
        )
        body = Sequential(self.normalize, self._padded)
        self.restorer: Block = Residual(body) if spec.is_residual else body
        bare = Sequential(self.normalize, self.layers)  # for inference only
        self._bare: Block = Residual(bare) if spec.is_residual else bare
        self._bare.training = bare.training = False
        self._told = [block for block in self.layers.blocks if isinstance(block, LevelBlock)]
        self.estimator = LevelEstimator(generator) if spec.takes_level else None

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Normalisation and padded layers, as one body, and the estimator."""
        yield "restorer", self.restorer
        if self.estimator is not None:
            yield "estimator", self.estimator

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), named by the layer's position: "0.weight", "0.bias", "2.weight", …

        Those of the estimator follow: "estimator.cells.2.weight", …
        """
        yield from self.layers.named_parameters(prefix)
        if self.estimator is not None:
            yield from self.estimator.named_parameters(f"{prefix}estimator.")

    @property
    def spec(self) -> Architecture:
        """The architecture's requirements on sizes, tiles and memory."""
        return ARCHITECTURES[self.architecture]

    @property
    def margin(self) -> int:
        """Where an image begins in what `pad` returns, in pixels."""
        return self.spec.margin + self.spec.context

    @cached_property
    def multiply_adds(self) -> float:
        """Multiply-adds of the layers' convolutions for each padded pixel, far from the edges."""
        side = 8 * max(self.spec.multiple, self.spec.minimum)
        weight = self.layers.parameters()[0]
        counted: list[int] = []
        with POOL.enabled(), WORK.told(counted.append):
            self.set_level(weight.new_zeros(1))
            self._bare.forward(weight.new_zeros(1, 3, side, side))
        return sum(counted) / side**2

    def padded_size(self, size: int) -> int:
        """Padded extent for an image of extent `size`."""
        return self.frame.padded_size(size)

    def padded_indices(self, size: int, device: torch.device) -> Tensor:
        """Index into the image for every padded position of an extent."""
        return self.frame.indices(size, device)

    def pad(self, input: Tensor) -> Tensor:
        """Pad (N, C, H, W) by reflection: to the sizes that the layers accept, and by a context."""
        return self.frame.pad(input)

    def set_level(self, level: Tensor | None) -> None:
        """Tell the layers the images' noise levels, (N,), for values in [0, 1].

        A level beyond `LARGEST_LEVEL` is taken for it.
        """
        told = None if level is None else level.clamp(0, LARGEST_LEVEL)
        for block in self._told:
            block.level = told

    def estimate_level(self, padded: Tensor) -> Tensor | None:
        """Return the levels to tell of padded images, (N,); None if the layers take none.

        Raises:
            OptionError: the network has no estimator.
        """
        if not self.spec.takes_level:
            return None
        height, width = padded.shape[2:]
        sums = self.level_sums(padded, slice(0, height), slice(0, width))
        return LevelEstimator.level(sums, is_gray=padded.shape[1] == 1)

    def level_sums(self, padded: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return what this part of padded images adds to the sums of `LevelEstimator`, (N, 3).

        Raises:
            OptionError: the network has no estimator.
        """
        if self.estimator is None:
            raise OptionError(
                "these weights cannot estimate the noise level; give it (--noise-level), or train "
                "the estimator (denoise-train --estimator --init)"
            )
        with POOL.enabled():
            return self.estimator.sums(padded.expand(-1, 3, -1, -1), rows, columns)

    def forward_padded(self, padded: Tensor, level: Tensor | None = None) -> Tensor:
        """Inference on images that `pad` returned, or on aligned tiles of them.

        Cropped to the image (from `margin` on), the result equals `forward`'s, but for the context
        at the edges. Images of different sizes can share a batch if their padded sizes agree.

        Args:
            padded: (N, 1 or 3, H, W); H and W multiples of `spec.multiple`, not below
                `spec.minimum`.
            level: of the noise, (N,); estimated by default where the layers take it.

        Raises:
            OptionError: the level is neither given nor can it be estimated.
        """
        is_gray = padded.shape[1] == 1
        with POOL.enabled():  # one for both: leaving it drops the buffers that were not used
            self.set_level(self.estimate_level(padded) if level is None else level)
            output = self._bare.forward(padded.expand(-1, 3, -1, -1) if is_gray else padded)
        return (output.mean(1, keepdim=True) if is_gray else output).to(padded.dtype)

    def forward(self, input: Tensor, level: Tensor | None = None) -> Tensor:
        """Denoise (N, 1 or 3, H, W).

        Args:
            input: the images.
            level: of the noise, (N,); estimated by default where the layers take it.

        Raises:
            ShapeError: neither one nor three channels, or an empty image.
            OptionError: the level is neither given nor can it be estimated.
        """
        is_gray = input.ndim == 4 and input.shape[1] == 1
        check_nchw(input.shape, 1 if is_gray else 3, "Network input")
        image = input.expand(-1, 3, -1, -1) if is_gray else input
        with nullcontext() if self.training else POOL.enabled():
            if level is None and self.spec.takes_level:
                level = self.estimate_level(self.pad(input))
            self.set_level(level)
            output = self.restorer.forward(image)
        output = (output.mean(1, keepdim=True) if is_gray else output).to(input.dtype)
        self._save((is_gray,), output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Add to the layers' `.grad` and return the gradient of the input, at a fixed level."""
        (is_gray,) = self._pop_saved(grad_output)
        grad_output = grad_output.expand(-1, 3, -1, -1) / 3 if is_gray else grad_output
        grad = self.restorer.backward(grad_output, needs_input_grad)
        return grad.sum(1, keepdim=True) if is_gray and needs_input_grad else grad


def _tconv(generator: torch.Generator | None) -> Sequence[Block]:
    """Architecture 1 of the course paper (Table I): sizes 32 → 15 → 7 → 15 → 32, 23 139 parameters.

    Without padding, a border pixel depends on far fewer inputs than an inner one; the margin adds
    reflected inputs.
    """
    return (
        Conv2d(3, 24, 4, stride=2, generator=generator),
        ReLU(),
        Conv2d(24, 48, 3, stride=2, generator=generator),
        ReLU(),
        ConvTranspose2d(48, 24, 3, stride=2, generator=generator),
        ReLU(),
        ConvTranspose2d(24, 3, 4, stride=2, generator=generator),
        Sigmoid(),
    )


def _upsample(generator: torch.Generator | None) -> Sequence[Block]:
    """Architecture 2 of the course paper: upsampling + convolution; 32 → 16 → 8 → 16 → 32."""
    return (
        Conv2d(3, 24, 4, stride=2, padding=1, generator=generator),
        ReLU(),
        Conv2d(24, 48, 3, stride=2, padding=1, generator=generator),
        ReLU(),
        UpsampleConv2d(2, 48, 24, 3, padding=1, generator=generator),
        ReLU(),
        UpsampleConv2d(2, 24, 3, 3, padding=1, generator=generator),
        Sigmoid(),
    )


def unet(
    generator: torch.Generator | None, width: int = 32, *, is_told: bool = False
) -> Sequence[Block]:
    """The U-Net without a full-size layer: 2.4 M parameters, 37 k multiply-adds per pixel.

    Four levels of 1, 2, 4 and 6 times `width` channels at 1/2, 1/4, 1/8 and 1/16 of the size. The
    second convolution of every residual body and the head start small, so that the network starts
    close to the identity: with plain initialisation training stalls.

    Args:
        generator: source of the initial weights.
        width: channels of the finest level, blind.
        is_told: the layers take the noise level, the finest level has twice the channels, and the
            two finest have a second body behind the way up: 91 k multiply-adds per pixel.
    """

    def body(channels: int) -> Block:
        second = Conv2d(channels, channels, 3, padding=1, generator=generator)
        second.weight.mul_(0.1)
        first = Conv2d(channels, channels, 3, padding=1, generator=generator)
        kaiming_normal_(first.weight, generator)
        return Residual(Sequential(first, ReLU(), second))

    def two(channels: int) -> Block:
        return Sequential(body(channels), body(channels))

    def level(
        channels: int, inner_channels: int, inner: Block, decoder: Callable[[int], Block] = body
    ) -> Block:
        down = Conv2d(channels, inner_channels, 2, stride=2, generator=generator)
        up = ConvTranspose2d(inner_channels, channels, 2, stride=2, generator=generator)
        return UNetLevel(body(channels), down, inner, up, decoder(channels))

    finest, decoder = (2 * width, two) if is_told else (width, body)
    levels = level(4 * width, 6 * width, two(6 * width))
    levels = level(2 * width, 4 * width, levels, decoder)
    levels = level(finest, 2 * width, levels, decoder)
    head = Conv2d(finest, 12, 3, padding=1, generator=generator)
    head.weight.mul_(0.1)
    stem = Conv2d(14 if is_told else 12, finest, 3, padding=1, generator=generator)
    if is_told:
        return PixelUnshuffle(2), AppendLevel(), stem, levels, head, PixelShuffle(2), LevelGate()
    return PixelUnshuffle(2), stem, levels, head, PixelShuffle(2)


def _unet_level(generator: torch.Generator | None) -> Sequence[Block]:
    """The production network: `unet`, told the noise level and wider."""
    return unet(generator, is_told=True)


ARCHITECTURES = {
    "tconv": Architecture(
        _tconv,
        multiple=4,
        minimum=8,
        halo=4,
        bytes_per_pixel=80,
        gpu_bytes_per_pixel=(36, 184),
        margin=4,
    ),
    "upsample": Architecture(
        _upsample,
        multiple=4,
        minimum=4,
        halo=8,
        bytes_per_pixel=192,
        gpu_bytes_per_pixel=(40, 184),
        context=8,
    ),
    "unet": Architecture(
        unet,
        multiple=16,
        minimum=16,
        halo=128,
        bytes_per_pixel=288,
        gpu_bytes_per_pixel=(164, 484),
        context=16,
        is_residual=True,
    ),
    "unet-level": Architecture(
        _unet_level,
        multiple=16,
        minimum=16,
        halo=144,
        bytes_per_pixel=512,
        gpu_bytes_per_pixel=(324, 964),
        context=16,
        is_residual=True,
        takes_level=True,
    ),
}


KEY = "denoise-batch"
FORMAT = 1


@dataclass(frozen=True)
class Weights:
    """A loaded weights file.

    Attributes:
        network: in inference mode, on the CPU, float32.
        training: how the weights were trained.
        sha256: digest of the file.
    """

    network: Network
    training: dict[str, Any]
    sha256: str

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Black and white of samples above 8 bits that the network was trained with, if given."""
        found = self.training.get("range")
        return None if found is None else (found[0], found[1])


def save_weights(path: Path, network: Network, training: Mapping[str, Any]) -> None:
    """Write the network to `path`, whole or not at all.

    Raises:
        WeightsError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "network": {
            "architecture": network.architecture,
            "mean": network.normalize.mean,
            "std": network.normalize.std,
        },
        "training": dict(training),
    }
    tensors = {name: value.float() for name, value in network.named_parameters()}
    save_tensors(path, tensors, header)


def load_weights(path: Path) -> Weights:
    """Read a file that `save_weights` wrote.

    Raises:
        WeightsError: the file is missing, damaged, not of this tool, or its tensors do not fit
            the architecture that it names.
    """
    tensors, header = load_tensors(path)
    try:
        if header["format"] != FORMAT:
            raise WeightsError(f"format {header['format']!r}, this version reads {FORMAT}")
        spec, training = header["network"], header["training"]
        if not isinstance(training, dict):
            raise WeightsError(f"training is a {type(training).__name__}, not an object")
        _check_range(training.get("range"))
        mean, std = _one_or_three(spec["mean"]), _one_or_three(spec["std"])
        network = Network(spec["architecture"], mean, std, torch.Generator())
        if spec["architecture"] == "unet-level":
            tensors = _with_second_bodies(tensors, network)
        if not any(name.startswith("estimator.") for name in tensors):
            network.estimator = None
        network.load_state_dict(tensors)
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        DenoiseBatchError,
    ) as error:
        raise WeightsError(f"{path}: its tensors or header do not fit: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(network.eval(), training, digest)


def _with_second_bodies(tensors: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Give an older `unet-level`, of one body behind a way up, second ones that add nothing."""
    result = dict(tensors)
    for decoder in ("3.decoder.", "3.inner.decoder."):
        if f"{decoder}body.0.weight" not in result:
            continue
        for name, parameter in network.layers.named_parameters():
            if name.startswith(f"{decoder}0."):
                result[name] = result.pop(name.replace(f"{decoder}0.", decoder))
            elif name.startswith(f"{decoder}1."):
                result[name] = torch.zeros_like(parameter) if ".body.2." in name else parameter
    return result


def _one_or_three(numbers: list[float]) -> list[float]:
    """Check a mean or std; 10⁴⁰⁰, for example, raises OverflowError."""
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise WeightsError(f"mean or std {numbers!r:.50}: expected one finite number, or three")
    return numbers


def _check_range(found: Any) -> None:
    """Check what a file says of its range of values: nothing, or two ascending numbers."""
    if found is None:
        return
    if not (isinstance(found, list) and len(found) == 2):
        raise WeightsError(f"range {found!r:.50}: expected black and white")
    check_range(*map(float, found))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to a safetensors file, whole or not at all.

    Raises:
        WeightsError: the file cannot be written.
    """
    # safetensors.torch imports numpy, which is not a dependency. The plain tensors must outlive
    # serialize, which reads their memory.
    plain = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=str(value.dtype).removeprefix("torch."),
            shape=list(value.shape),
            data_ptr=value.data_ptr(),
            data_len=value.numel() * value.element_size(),
        )
        for name, value in plain.items()
    }
    metadata = {KEY: json.dumps(dict(header), sort_keys=True)}
    try:
        atomic_write(path, safetensors.serialize(specs, metadata))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror}") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors, on the CPU, and the header.

    Raises:
        WeightsError: the file is missing, damaged or not of this tool.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error
    if KEY not in metadata:
        raise WeightsError(
            f"{path}: not weights of denoise-batch; take a file that denoise-train wrote, "
            "or a name of the shipped ones"
        )
    try:
        header = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its tensors or header do not fit: {error}") from error
    if not isinstance(header, dict):
        kind = type(header).__name__
        raise WeightsError(f"{path}: its tensors or header do not fit: a {kind}, not an object")
    return tensors, header


def find_weights(name_or_file: str | None) -> Path:
    """The file that `--weights` means: a path, a shipped name, or the default.

    A name that is no longer shipped means the default, which the log says.

    Raises:
        WeightsError: neither a file nor a shipped name.
    """
    default = shipped_names()[0]
    if name_or_file is None:
        return shipped_file(default)
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    if name_or_file in shipped_manifest().get("retired", ()):
        logger.warning("weights %s are retired: %s takes their place", name_or_file, default)
        return shipped_file(default)
    if Path(name_or_file).suffix:
        raise WeightsError(f"{name_or_file}: there is no such weights file")
    return shipped_file(name_or_file)


@cache
def shipped_manifest() -> dict[str, Any]:
    """Return weights/manifest.json: `default` (a name) and `weights` (name → description)."""
    content: dict[str, Any] = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    return content


def shipped_names() -> list[str]:
    """Return the names of the shipped weights, the default first."""
    default = shipped_manifest()["default"]
    return [default, *sorted(set(shipped_manifest()["weights"]) - {default})]


def shipped_file(name: str) -> Path:
    """Return the file of shipped weights, its sha256 checked against the manifest.

    Raises:
        WeightsError: no such name, or the installed file is missing or damaged.
    """
    entry = shipped_manifest()["weights"].get(name)
    if entry is None:
        raise WeightsError(
            f"weights {name!r}: neither a file nor a shipped name ({', '.join(shipped_names())})"
        )
    file: Path = SHIPPED / entry["file"]
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror}; reinstall denoise-batch") from error
    if digest != entry["sha256"]:
        raise WeightsError(f"{file}: damaged (sha256 differs); reinstall denoise-batch")
    return file
