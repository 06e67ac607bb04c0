"""OpenEXR, as renderers write it: half and float RGB, RGBA or Y, with the extra `render`.

Other channels (depth, normals, layers) and the header go along unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from denoise_batch.kernels.errors import ImageError

from .complaints import printed_complaints
from .footprint import Footprint, PageSize
from .metadata import Metadata, StorageFormat
from .pixels import DecodedImage
from .ranges import BITS_8

MODES = ["F", *(f"{bands};{kind}" for bands in ("L", "RGB", "RGBA") for kind in ("F16", "F32"))]

_HALF_LIMIT = 65504.0
_KINDS = {"float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Companions:
    """What a file holds beside the picture.

    Attributes:
        header: its attributes.
        channels: by name, numpy (H, W).
    """

    header: Mapping[str, Any]
    channels: Mapping[str, Any]


def read(path: Path, on_size: Callable[[Footprint], object]) -> DecodedImage:
    """Read a file.

    Args:
        path: the file.
        on_size: called with what the file takes, before it is decoded.

    Raises:
        ImageError: several parts, deep or subsampled pixels, or no such channels.
    """
    import OpenEXR

    with OpenEXR.File(str(path), header_only=True) as file:
        if len(file.parts) > 1:
            raise ImageError(f"has {len(file.parts)} parts; save each as a file of its own")
        low, high = file.header()["dataWindow"]
        width, height = (int(extent) for extent in high - low + 1)
        on_size(Footprint([PageSize(width * height, 4, 4, has_holes=True)], "OPENEXR"))
        if "deep" in str(file.header()["type"]):
            raise ImageError("has deep pixels; flatten it first")
    with printed_complaints("Warning: Exception raised", "(EXR_ERR_") as complaints:
        file = OpenEXR.File(str(path), separate_channels=True)
    if complaints:  # the file then has no parts
        raise ImageError(f"is damaged ({complaints[0]}); copy it again from its source")
    with file:
        header, found = dict(file.header()), dict(file.channels())
    if any(channel.xSampling != 1 or channel.ySampling != 1 for channel in found.values()):
        raise ImageError("has subsampled channels (luminance and chroma); save it as RGB")
    channels = {name: channel.pixels for name, channel in found.items()}
    names = "RGB" if {"R", "G", "B"} <= channels.keys() else "Y"
    kinds = {channels[name].dtype.name for name in names if name in channels}
    if len(kinds) != 1 or not kinds <= _KINDS.keys():
        raise ImageError(
            f"has the channels {', '.join(sorted(channels))}; R, G and B, or Y, are needed, all "
            "half or all float"
        )
    (kind,) = kinds
    planes = [torch.from_numpy(channels.pop(name)).to(torch.float32) for name in names]
    has_alpha = "A" in channels and channels["A"].dtype.name == kind and names == "RGB"
    alpha = torch.from_numpy(channels.pop("A")).to(torch.float32)[:, :, None] if has_alpha else None
    mode = ("L" if names == "Y" else "RGBA" if has_alpha else "RGB") + f";{_KINDS[kind]}"
    storage = StorageFormat("OPENEXR", "F" if mode == "L;F32" else mode)
    metadata = Metadata(companions=Companions(header, channels))
    more = len(channels)
    note = f"{more} further channel{'s' * (more > 1)} kept as they are" if more else ""
    samples = torch.stack(planes, 2).contiguous()
    return DecodedImage(samples, alpha, BITS_8, storage, metadata, note)


def write(file: BinaryIO, page: DecodedImage, samples: Tensor, mode: str) -> None:
    """Write a page, with what its source held beside it.

    Args:
        file: open for reading and writing, empty.
        page: the source.
        samples: as `page.stored` returned them.
        mode: one of `MODES`.
    """
    import OpenEXR

    def stored(plane: Tensor) -> Any:
        if mode.endswith("F16"):
            limited = plane.clamp(-_HALF_LIMIT, _HALF_LIMIT)
            plane = torch.where(plane.isinf(), plane, limited).to(torch.float16)
        return plane.contiguous().numpy()

    beside = page.metadata.companions or Companions({}, {})
    header = {name: value for name, value in beside.header.items() if name != "channels"}
    names = "RGB" if samples.shape[2] == 3 else "Y"
    channels = {name: stored(samples[:, :, index]) for index, name in enumerate(names)}
    if page.alpha is not None:
        channels["A"] = stored(page.alpha[:, :, 0])
    OpenEXR.File(
        header or {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage},
        {**channels, **beside.channels},
    ).write(file)
