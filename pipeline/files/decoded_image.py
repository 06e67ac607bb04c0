"""One page of a file, decoded, with all that its output needs to keep."""

from dataclasses import dataclass

from torch import Tensor

from .metadata import Metadata
from .pixels import StorageFormat


@dataclass(frozen=True)
class DecodedImage:
    """One decoded page of a file.

    Attributes:
        samples: (H, W, C) as stored: uint8, uint16 or float32, C = 1 or 3.
        alpha: (H, W, 1) of that type, not to be denoised; None for opaque files.
        layout: how the samples were stored.
        metadata: what the file says beside its pixels.
    """

    samples: Tensor
    alpha: Tensor | None
    layout: StorageFormat
    metadata: Metadata

    @property
    def pixels(self) -> Tensor:
        """float32 (C, H, W) in [0, 1], stored as (H, W, C); made anew at every call."""
        return self.layout.scale.to_unit(self.samples).permute(2, 0, 1)
