"""Blocks of a neural network, forward and backward written by hand.

    from denoise_batch.kernels import SGD, Conv2d, MSELoss, ReLU, Sequential

Everything here works on tensors (N, C, H, W) and knows nothing of images, files or screens.
"""

from .block import Block
from .container import Residual, Sequential, UNetLevel
from .errors import (
    DenoiseBatchError,
    DeviceError,
    ImageError,
    NoImagesError,
    OptionError,
    ShapeError,
    StateError,
    TrainingError,
    WeightsError,
)
from .layers import (
    Conv2d,
    ConvTranspose2d,
    NearestUpsample2d,
    Normalize,
    PixelShuffle,
    PixelUnshuffle,
    ReflectPadded,
    ReLU,
    Sigmoid,
)
from .level import AppendLevel, ConfidentMean, LevelGate
from .loss import LogMSELoss, MSELoss
from .optim import SGD, Adam, AdamW, ExponentialMovingAverage, Muon, clip_grad_norm_
from .upsample import UpsampleConv2d

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AppendLevel",
    "Block",
    "ConfidentMean",
    "Conv2d",
    "ConvTranspose2d",
    "DenoiseBatchError",
    "DeviceError",
    "ExponentialMovingAverage",
    "ImageError",
    "LevelGate",
    "LogMSELoss",
    "MSELoss",
    "Muon",
    "NearestUpsample2d",
    "NoImagesError",
    "Normalize",
    "OptionError",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReLU",
    "ReflectPadded",
    "Residual",
    "Sequential",
    "ShapeError",
    "Sigmoid",
    "StateError",
    "TrainingError",
    "UNetLevel",
    "UpsampleConv2d",
    "WeightsError",
    "clip_grad_norm_",
]
