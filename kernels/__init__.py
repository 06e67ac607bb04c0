"""Blocks of a neural network, forward and backward written by hand.

    from denoise_batch.kernels import SGD, Conv2d, MSELoss, ReLU, Sequential

Knows tensors (N, C, H, W); nothing of images, files or screens.
"""

from .activation import ReLU, Sigmoid
from .block import Block, Sequential
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
from .optim import SGD
from .pad import Padded
from .standardize import Standardize
from .upsample import NearestUpsample2d, UpsampleConv2d

__all__ = [
    "SGD",
    "Block",
    "Conv2d",
    "ConvTranspose2d",
    "DenoiseBatchError",
    "DeviceError",
    "ImageError",
    "MSELoss",
    "NearestUpsample2d",
    "NoImagesError",
    "OptionError",
    "Padded",
    "ReLU",
    "Sequential",
    "ShapeError",
    "Sigmoid",
    "Standardize",
    "StateError",
    "TrainingError",
    "UpsampleConv2d",
    "WeightsError",
]
