"""Linear light: whose samples are proportional to it, and the curve that sRGB stores it by.

Networks learn from pictures as screens show them. What is stored in linear light goes through the
curve on its way there, and back (ADR 31).
"""

import struct
from dataclasses import dataclass

from torch import Tensor, where

from .metadata import Metadata, StorageFormat
from .ranges import Curve

_STEEPEST = 12.92  # of the curve, which is a line up to `_LINE`
_LINE = 0.0031308
_CICP_LINEAR = 8  # transfer function, ITU-T H.273
_CURVES = {b"rTRC", b"gTRC", b"bTRC", b"kTRC"}
# No points; an exponent of 1, in both types.
_IDENTITIES = (b"curv" + bytes(8), b"curv" + bytes(7) + b"\1\1\0", b"para" + bytes(9) + b"\1\0\0")


@dataclass(frozen=True)
class SrgbCurve(Curve):
    """Light, 1 for white, as sRGB stores it; negative light as its mirror image."""

    def encoded(self, shares: Tensor) -> Tensor:
        """Return light as sRGB stores it."""
        size = shares.abs()
        curve = size.clamp_min(_LINE).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
        return where(size <= _LINE, shares * _STEEPEST, curve.copysign_(shares))

    def decoded(self, values: Tensor) -> Tensor:
        """Return the light that `encoded` made these values of."""
        size = values.abs()
        light = size.clamp_min(_STEEPEST * _LINE).add_(0.055).div_(1.055).pow_(2.4)
        return where(size <= _STEEPEST * _LINE, values / _STEEPEST, light.copysign_(values))


SRGB = SrgbCurve()


def is_linear(storage: StorageFormat, metadata: Metadata) -> bool:
    """Whether a file's samples are proportional to light, by its format, CICP or profile."""
    if storage.format == "OPENEXR":
        return True
    if metadata.cicp is not None:
        return metadata.cicp[1] == _CICP_LINEAR
    return has_linear_curves(metadata.icc_profile or b"")


def has_linear_curves(profile: bytes) -> bool:
    """Whether all curves of an ICC profile are the identity; False if it is damaged."""
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        entries = (struct.unpack_from(">4sII", profile, 132 + 12 * n) for n in range(count))
        found = {name: profile[at : at + size] for name, at, size in entries}
    except struct.error:
        return False
    curves = [curve for name, curve in found.items() if name in _CURVES]
    return bool(curves) and all(curve.startswith(_IDENTITIES) for curve in curves)
