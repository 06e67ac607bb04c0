"""The cases that scripts/bench measures, as data.

A case is a subject (a layer, a network or an optimiser) in one mode, shape and dtype:

- `forward`: a layer's forward in training mode, at the size of a training step;
- `backward`: its backward; the forward before it is not timed;
- `step`: an optimiser's step of the unet's parameters;
- `train`: a network's forward, MSE loss, backward and step of SGD with momentum;
- `infer`: forward in inference mode, at 1 megapixel;
- `forward+backward`: of "blocks", three convolutions with ReLU, as a library user has them.

On a processor we compute in float32 alone; peers that may compute in bfloat16 have names like
"eager-bf16".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from denoise_batch.kernels import (
    Block,
    Conv2d,
    ConvTranspose2d,
    MSELoss,
    NearestUpsample2d,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Sequential,
    Sigmoid,
)
from denoise_batch.kernels.block import InputGrad
from denoise_batch.models import Network

Mode = Literal["forward", "backward", "forward+backward", "step", "train", "infer"]
Norm = Literal["max", "euclidean"]
Shape = tuple[int, ...]
MODES: tuple[Mode, ...] = ("train", "infer", "forward+backward", "forward", "backward", "step")
REFERENCE = "eager"
TORCH = ("ours", "eager", "compile")
TORCH_BF16 = ("eager-bf16", "compile-bf16")
PROVIDERS = (*TORCH, "onnxruntime", "openvino", *TORCH_BF16, "openvino-bf16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Largest allowed difference from torch eager in the same dtype, ‖actual − expected‖/‖expected‖: by
# the largest element, or for training steps by the Euclidean norm, because a gradient jumps where a
# ReLU's input is within rounding of 0 (2 of the unet's 4.3 million at 16×3×96×96: 0.0025 of the
# largest element, 0.0006 of the Euclidean norm). Two correct bfloat16 results differ by some
# roundings where partial sums are rounded too (0.011 measured, reference transposed convolution),
# and by more after 20 layers: with AVX2 alone the unet's gradient is 0.081 (torch) and 0.079 (ours)
# from its float32 value, and the two are 0.066 apart (2×3×32×32).
TOLERANCES = {
    "float32": {"block": 1e-5, "infer": 1e-4, "train": 2e-3},
    "bfloat16": {"block": 2e-2, "infer": 5e-2, "train": 1e-1},
}

# Largest wanted ratio of our median time to the peer's, by device; "fastest" is the fastest peer
# that computes in the case's precision.
TARGETS: Mapping[str, Mapping[tuple[Mode, str], Mapping[str, float]]] = {
    "cpu": {
        ("train", "tconv"): {"eager": 0.7},
        ("train", "unet"): {"eager": 0.45, "eager-bf16": 0.85},
        ("infer", "tconv"): {"fastest": 0.7},
        ("infer", "unet"): {"fastest": 0.42, "openvino-bf16": 0.85},
        ("infer", "blocks"): {"eager": 0.5},
        ("forward+backward", "blocks"): {"eager": 0.6},
    },
    "cuda": {
        ("train", "tconv"): {"eager": 0.7},
        ("train", "unet"): {"eager": 1.0},
        ("infer", "tconv"): {"eager": 0.5, "fastest": 1.0},
        ("infer", "unet"): {"eager": 0.8, "fastest": 1.0},
    },
}
MEMORY_TARGET = 1.0  # the same for peak memory, ours/eager


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        mode: what is timed.
        subject: a key of `SUBJECTS`, or an optimiser.
        shape: the input's (N, C, H, W), or a step's (number of parameters,).
        dtype: dtype of the arithmetic; parameters in training stay float32.
        providers: who takes part, ours first.
    """

    mode: Mode
    subject: str
    shape: Shape
    dtype: str
    providers: tuple[str, ...] = field(default=TORCH, compare=False)

    @property
    def name(self) -> str:
        """Such as `infer/unet/1x3x1024x1024/float32`; patterns on the command line match it."""
        return f"{self.mode}/{self.subject}/{'x'.join(map(str, self.shape))}/{self.dtype}"

    @property
    def is_network(self) -> bool:
        """Whether the subject is a whole network."""
        return self.subject in NETWORKS

    @property
    def tolerance(self) -> float:
        """Largest allowed difference from torch eager's results."""
        kind: str = self.mode if self.is_network else "block"
        return TOLERANCES[self.dtype]["train" if self.has_relu_gradients else kind]

    @property
    def has_relu_gradients(self) -> bool:
        """Whether gradients of ReLUs are compared, which jump."""
        return self.mode in ("train", "forward+backward")

    @property
    def norm(self) -> Norm:
        """The norm of that difference."""
        return "euclidean" if self.has_relu_gradients else "max"

    @property
    def parts(self) -> tuple["Case", ...]:
        """The cases that a call runs one after the other: itself, but for "blocks"."""
        if self.subject != "blocks":
            return (self,)
        n, c, height, width = self.shape
        return tuple(
            replace(self, subject=f"block-{c << i}", shape=(n, c << i, height >> i, width >> i))
            for i in range(3)
        )

    def targets(self, device: str) -> Mapping[str, float]:
        """Return the largest wanted ratios ours/peer, by peer; none for most cases."""
        return TARGETS[device].get((self.mode, self.subject), {})

    def computed_by(self, provider: str) -> "Case":
        """Return the case in the precision in which a provider computes it."""
        return replace(self, dtype="bfloat16") if provider.endswith("-bf16") else self

    def block(self) -> Block:
        """Create the subject, with the same parameters every time."""
        return SUBJECTS[self.subject](torch.Generator().manual_seed(0))


class LossBlock(Block):
    """MSELoss against a constant target, as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = MSELoss()
        self.target: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the loss, a 0-d tensor."""
        if self.target is None:
            self.target = torch.full_like(input, 0.5)
        return self.loss(input, self.target)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> Tensor:
        """Return the gradient of the input; `grad_output` is 1."""
        return self.loss.backward()


class ToldNetwork(Block):
    """A network that is told a level of noise, as in training, and does not estimate it."""

    LEVEL = 0.1

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        network.estimator = None

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the network."""
        yield "network", self.network

    def forward(self, input: Tensor) -> Tensor:
        """(N, 3, H, W); the same shape."""
        return self.network.forward(input, input.new_full(input.shape[:1], self.LEVEL))

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Add to the layers' `.grad` and return the gradient of the input."""
        return self.network.backward(grad_output, needs_input_grad)


def _network(architecture: str) -> Callable[[torch.Generator], Network]:
    """Create a network whose weights are as large as trained ones.

    The unet's initial weights predict almost no noise, so a wrong layer would hardly show.
    """

    def build(generator: torch.Generator) -> Network:
        network = Network(architecture, mean=0.45, std=0.25, generator=generator)
        for name, value in network.named_parameters():
            if name.endswith("weight"):
                fan_in = value.numel() / max(value.shape[0], value.shape[1])
                value.normal_(0, fan_in**-0.5, generator=generator)
        return network

    return build


def _block(channels: int) -> Callable[[torch.Generator], Block]:
    return lambda g: Sequential(Conv2d(channels, channels, 3, padding=1, generator=g), ReLU())


NETWORKS: Mapping[str, Callable[[torch.Generator], Block]] = {
    "tconv": _network("tconv"),
    "unet": _network("unet"),
    "unet-level": lambda g: ToldNetwork(_network("unet-level")(g)),
}
SUBJECTS: Mapping[str, Callable[[torch.Generator], Block]] = {
    **NETWORKS,
    "block-32": _block(32),  # the parts of "blocks"
    "block-64": _block(64),
    "block-128": _block(128),
    "conv3x3-32": lambda g: Conv2d(32, 32, 3, padding=1, generator=g),
    "conv3x3-64": lambda g: Conv2d(64, 64, 3, padding=1, generator=g),
    "conv3x3-128": lambda g: Conv2d(128, 128, 3, padding=1, generator=g),
    "conv3x3-192": lambda g: Conv2d(192, 192, 3, padding=1, generator=g),
    "stem3x3-12-32": lambda g: Conv2d(12, 32, 3, padding=1, generator=g),
    "head3x3-32-12": lambda g: Conv2d(32, 12, 3, padding=1, generator=g),
    "down2x2-32-64": lambda g: Conv2d(32, 64, 2, stride=2, generator=g),
    "up2x2-64-32": lambda g: ConvTranspose2d(64, 32, 2, stride=2, generator=g),
    "tconv.0-conv4x4s2-3-24": lambda g: Conv2d(3, 24, 4, stride=2, generator=g),
    "tconv.2-conv3x3s2-24-48": lambda g: Conv2d(24, 48, 3, stride=2, generator=g),
    "tconv.4-up3x3s2-48-24": lambda g: ConvTranspose2d(48, 24, 3, stride=2, generator=g),
    "tconv.6-up4x4s2-24-3": lambda g: ConvTranspose2d(24, 3, 4, stride=2, generator=g),
    "ReLU": lambda g: ReLU(),
    "Sigmoid": lambda g: Sigmoid(),
    "NearestUpsample2d": lambda g: NearestUpsample2d(2),
    "PixelShuffle": lambda g: PixelShuffle(2),
    "PixelUnshuffle": lambda g: PixelUnshuffle(2),
    "MSELoss": lambda g: LossBlock(),
}

# Subject → its input in a training step (unet at 16×3×96×96, tconv at 64×3×32×32 with its margin)
# and at 1 megapixel; None where the two would measure the same.
SHAPES: Mapping[str, tuple[Shape, Shape | None]] = {
    "conv3x3-32": ((16, 32, 48, 48), (1, 32, 512, 512)),
    "conv3x3-64": ((16, 64, 24, 24), (1, 64, 256, 256)),
    "conv3x3-128": ((16, 128, 12, 12), (1, 128, 128, 128)),
    "conv3x3-192": ((16, 192, 6, 6), (1, 192, 64, 64)),
    "stem3x3-12-32": ((16, 12, 48, 48), (1, 12, 512, 512)),
    "head3x3-32-12": ((16, 32, 48, 48), (1, 32, 512, 512)),
    "down2x2-32-64": ((16, 32, 48, 48), (1, 32, 512, 512)),
    "up2x2-64-32": ((16, 64, 24, 24), (1, 64, 256, 256)),
    "tconv.0-conv4x4s2-3-24": ((64, 3, 40, 40), (1, 3, 1032, 1032)),
    "tconv.2-conv3x3s2-24-48": ((64, 24, 19, 19), (1, 24, 515, 515)),
    "tconv.4-up3x3s2-48-24": ((64, 48, 9, 9), (1, 48, 257, 257)),
    "tconv.6-up4x4s2-24-3": ((64, 24, 19, 19), (1, 24, 515, 515)),
    "ReLU": ((16, 32, 48, 48), None),
    "Sigmoid": ((64, 3, 40, 40), None),
    "NearestUpsample2d": ((16, 32, 24, 24), None),
    "PixelShuffle": ((16, 12, 48, 48), None),
    "PixelUnshuffle": ((16, 3, 96, 96), None),
    "MSELoss": ((16, 3, 96, 96), None),
}
OPTIMIZERS = ("SGD", "AdamW")
TRAINING_SHAPES: Sequence[Shape] = ((16, 3, 96, 96), (64, 3, 32, 32))
INFERENCE_SHAPE: Shape = (1, 3, 1024, 1024)
# torch.compile of a single layer calls the same kernel as eager; the runtimes only infer.
LAYER_PROVIDERS = ("ours", "eager")
LAYER_INFERENCE_PROVIDERS = (*LAYER_PROVIDERS, "onnxruntime", "openvino")


def cases(device: str) -> list[Case]:
    """Return every case that a "cpu" or "cuda" computes, networks first."""
    found = [*_network_cases(), *_blocks_cases(), *_layer_cases(), *_optimizer_cases()]
    if device == "cuda":
        return [
            replace(case, providers=tuple(name for name in case.providers if name in TORCH))
            for case in found
        ]
    return [case for case in found if case.dtype == "float32"]


def select(found: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the cases whose name matches a glob (`infer/*`) or contains a text (`unet`).

    Without patterns, return all.
    """
    if not patterns:
        return list(found)
    globs = [pattern if set(pattern) & set("*?[") else f"*{pattern}*" for pattern in patterns]
    return [case for case in found if any(fnmatchcase(case.name, glob) for glob in globs)]


def quick(chosen: Sequence[Case]) -> list[Case]:
    """Return the same cases, small, once each and without torch.compile, which is slow to start."""
    return list(dict.fromkeys(map(_quick, chosen)))


def _network_cases() -> Iterator[Case]:
    for subject in NETWORKS:
        for shape in TRAINING_SHAPES:
            for dtype in DTYPES:
                yield Case("train", subject, shape, dtype, (*TORCH, *TORCH_BF16))
    for subject in NETWORKS:
        for dtype in DTYPES:
            yield Case("infer", subject, INFERENCE_SHAPE, dtype, PROVIDERS)


def _blocks_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield Case("infer", "blocks", (1, 32, 512, 512), dtype)
        yield Case("forward+backward", "blocks", (16, 32, 48, 48), dtype)


def _layer_cases() -> Iterator[Case]:
    modes: Sequence[Mode] = ("forward", "backward")
    for subject, (training_shape, inference_shape) in SHAPES.items():
        for dtype in DTYPES:
            if subject == "MSELoss" and dtype != "float32":
                continue  # the loss is always float32
            for mode in modes:
                yield Case(mode, subject, training_shape, dtype, LAYER_PROVIDERS)
            if inference_shape:
                yield Case("infer", subject, inference_shape, dtype, LAYER_INFERENCE_PROVIDERS)


def _optimizer_cases() -> Iterator[Case]:
    count = sum(parameter.numel() for parameter in Network("unet").parameters())
    for subject in OPTIMIZERS:
        yield Case("step", subject, (count,), "float32", LAYER_PROVIDERS)


def _quick(case: Case) -> Case:
    providers = tuple(name for name in case.providers if not name.startswith("compile"))
    if case.mode == "step":
        return replace(case, providers=providers)
    n, c, height, width = case.shape
    side = 32 if case.is_network else min(height, width, 16)
    return replace(case, shape=(min(n, 2), c, side, side), providers=providers)
