"""Blocks of a neural network, forward and backward written by hand.

    from denoise_batch.kernels import SGD, Conv2d, MSELoss, ReLU, Sequential

Knows tensors (N, C, H, W); nothing of images, files or screens.
"""

from .activation import ReLU, Sigmoid
from .block import Block
from .container import Residual, Sequential, Skip
from .conv import Conv2d, ConvTranspose2d
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
from .loss import MSELoss
from .muon import Muon
from .optim import SGD, Adam, AdamW, ExponentialMovingAverage, clip_grad_norm_
from .pad import Padded
from .shuffle import PixelShuffle, PixelUnshuffle
from .standardize import Standardize
from .upsample import NearestUpsample2d, UpsampleConv2d

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Block",
    "Conv2d",
    "ConvTranspose2d",
    "DenoiseBatchError",
    "DeviceError",
    "ExponentialMovingAverage",
    "ImageError",
    "MSELoss",
    "Muon",
    "NearestUpsample2d",
    "NoImagesError",
    "OptionError",
    "Padded",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReLU",
    "Residual",
    "Sequential",
    "ShapeError",
    "Sigmoid",
    "Skip",
    "Standardize",
    "StateError",
    "TrainingError",
    "UpsampleConv2d",
    "WeightsError",
    "clip_grad_norm_",
]
