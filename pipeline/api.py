"""The Python interface: denoise arrays, images, tensors and folders without the command line."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from denoise_batch.kernels import ImageError, OptionError, ShapeError

from .device import device_failures
from .files.images import read_image
from .files.metadata import Metadata, StorageFormat
from .files.pixels import DecodedImage, as_written, decode, encode, prepare, target_mode
from .files.ranges import BITS_8
from .models import Network, find_weights, load_weights
from .options import DenoiseOptions
from .progress import Progress, Stop
from .streaming.manifest import Storage
from .streaming.result import Plan, Result, Summary
from .streaming.session import Session, open_storage
from .streaming.stream import LocalEngine, with_stored_range

if TYPE_CHECKING:
    import numpy as np

_RANGES = {torch.uint8: None, torch.uint16: (0.0, 65535.0), torch.float32: (0.0, 1.0)}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PILLOW_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16", "F")


def denoise(
    image: Any,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    strength: float = 1.0,
    noise_level: float | str = "auto",
    tta: bool = False,
    tile: int | str = "auto",
    precision: str = "auto",
) -> Any:
    """Denoise one image and return the same kind of image; nothing is written.

    `Denoiser` takes the same arguments and keeps the network loaded for many images.

    Args:
        image: a NumPy array (H, W) or (H, W, C); a PIL image; a torch tensor (H, W), (C, H, W) or
            (N, C, H, W); or a path. C is 1 or 3, or 2 or 4 with alpha, which is returned as it is.
            Arrays and tensors are uint8, uint16 (of the range that the weights were trained with,
            or all 16 bits), or float in [0, 1].
        weights: a safetensors file, a shipped name, or None for the default.
        device: auto (the first available of CUDA, XPU, MPS, CPU), cpu, cuda, cuda:N, mps or xpu.
        strength: blend; 0 returns the input, 1 the network's output.
        noise_level: that the network is told: σ in units of 1/255 of the image's range, "auto"
            (estimated, with a reserve), or a factor of what auto tells it ("1.3x").
        tta: average over the eight rotated and flipped versions of the image.
        tile: side of the tiles in pixels, "auto" (tile only if memory demands it) or "off".
        precision: auto (bf16 on GPUs, on V100 and T4 fp16; else fp32), fp32, bf16, fp16.

    Returns:
        The denoised image with the type, shape and device of `image`; for a path a PIL image,
        rotated upright. PIL images in modes other than 1, L, LA, RGB, RGBA, I;16 and F come back as
        the nearest of these, such as RGB for a palette.

    Raises:
        ShapeError: an array or tensor of another shape or type.
        ImageError: a file or PIL image that cannot be denoised, or values that are not finite or
            far outside [0, 1].
        OptionError: an argument out of range.
        DeviceError: the device does not exist, or failed.
        WeightsError: the weights cannot be used.
    """
    denoiser = Denoiser(
        weights,
        device,
        strength=strength,
        noise_level=noise_level,
        tta=tta,
        tile=tile,
        precision=precision,
    )
    return denoiser(image)


class Denoiser:
    """A loaded network that denoises one image after another; arguments as of `denoise`."""

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        *,
        strength: float = 1.0,
        noise_level: float | str = "auto",
        tta: bool = False,
        tile: int | str = "auto",
        precision: str = "auto",
    ) -> None:
        options = DenoiseOptions(
            inputs=("an image",),
            weights=None if weights is None else str(weights),
            device=_device_name(device),
            strength=strength,
            noise_level=str(noise_level),
            tta=tta,
            tile=str(tile),
            precision=precision,
            measure=False,
        )
        options = with_stored_range(options)
        engine = LocalEngine(options, Storage())
        self._value_range = options.value_range
        self.device = torch.device(engine.device)
        self._denoiser = engine.denoiser

    def __call__(self, image: Any) -> Any:
        """Denoise one image; see `denoise`."""
        if isinstance(image, (str, Path)):
            try:
                return ImageOps.exif_transpose(
                    self._page_to_pillow(read_image(Path(image), self._value_range))
                )
            except ImageError as error:
                if str(error).startswith(str(image)):
                    raise
                raise ImageError(f"{image}: {error}") from error
        if isinstance(image, Image.Image):
            return self._pillow(image)
        if isinstance(image, Tensor):
            return self._tensor(image)
        if _is_array(image):
            return self._array(image)
        raise ShapeError(
            f"denoise takes a path, a PIL image, a NumPy array or a torch tensor, not "
            f"{type(image).__name__}"
        )

    def map(self, images: Iterable[Any]) -> Iterator[Any]:
        """Denoise images one after the other, as they are asked for."""
        return map(self, images)

    def _pillow(self, image: Image.Image) -> Image.Image:
        if 0 in image.size:
            raise ShapeError(f"PIL image of {image.width}x{image.height}: has no pixels")
        image.load()
        if image.mode == "I":
            low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]
            if not 0 <= low <= high <= 65535:
                raise ImageError(
                    f"PIL image of mode I with values from {low} to {high}: only 0 to 65535 can be "
                    "denoised; rescale it, or convert it to mode F"
                )
        samples, alpha, mode = decode(image)
        storage = StorageFormat(image.format or "PNG", mode)
        metadata = Metadata(icc_profile=image.info.get("icc_profile"))
        page = DecodedImage(samples, alpha, BITS_8, storage, metadata)
        (page,) = prepare([page], self._value_range)
        info = {k: v for k, v in image.info.items() if k != "transparency"}
        if image.mode == "CMYK":  # whose profile does not describe the RGB image
            info.pop("icc_profile", None)
        result = self._page_to_pillow(page)
        result.info = info
        return result

    def _page_to_pillow(self, page: DecodedImage) -> Image.Image:
        if page.storage.mode in {"RGB;16", "RGBA;16"}:
            raise ImageError(
                "16-bit colour: Pillow has no such mode; pass a NumPy array, or use denoise_folder"
            )
        (samples,) = self._denoise([page])
        mode = target_mode(page.storage.mode, "Pillow", _PILLOW_MODES)
        result = encode(*as_written(page, samples, "Pillow", mode), mode)
        known = {"exif": page.metadata.exif, "icc_profile": page.metadata.icc_profile}
        result.info |= {key: value for key, value in known.items() if value}
        return result

    def _array(self, array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        import numpy as np

        kinds = ("uint8", "uint16", "float16", "float32", "float64")
        if array.dtype.name not in kinds or array.ndim not in (2, 3):
            raise ShapeError(
                f"array of {array.dtype}, shape {array.shape}: give (H, W) or (H, W, C) of uint8, "
                "uint16, or float in [0, 1]"
            )
        native = array.dtype.newbyteorder("=")  # torch knows no other byte order
        whole = torch.from_numpy(np.array(array, dtype=native, copy=True))
        result = self._images(whole[None] if whole.ndim == 3 else whole[None, :, :, None])
        return result.reshape(whole.shape).numpy().astype(array.dtype, copy=False)

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.ndim not in (2, 3, 4) or tensor.dtype not in (*_RANGES, *_FLOATS):
            raise ShapeError(
                f"tensor of {tensor.dtype}, shape {tuple(tensor.shape)}: give (H, W), (C, H, W) or "
                "(N, C, H, W) of uint8, uint16, or float in [0, 1]"
            )
        nchw = tensor.detach().reshape(*(1,) * (4 - tensor.ndim), *tensor.shape)
        result = self._images(nchw.permute(0, 2, 3, 1).cpu())
        return result.permute(0, 3, 1, 2).reshape(tensor.shape).to(tensor.device)

    def _images(self, nhwc: Tensor) -> Tensor:
        """(N, H, W, C) on the CPU, denoised; alpha, the last of 2 or 4 channels, stays."""
        channels = nhwc.shape[3]
        if not nhwc.numel():
            n, height, width, _ = nhwc.shape
            raise ShapeError(f"{n} images of {height}x{width}: give at least one pixel")
        if channels not in (1, 2, 3, 4):
            raise ShapeError(f"{channels} channels: give 1 or 3, or 2 or 4 with alpha")
        if self._denoiser.strength == 0:
            return nhwc.clone()  # float64 keeps every bit
        stored = nhwc.to(torch.float32) if nhwc.dtype in _FLOATS else nhwc
        colours = channels - 1 if channels in (2, 4) else channels
        scale = _RANGES[stored.dtype]
        if stored.dtype == torch.uint16:
            scale = self._value_range or scale
        pages = prepare([_page(image, colours) for image in stored], scale)
        denoised = torch.stack(self._denoise(pages)).to(nhwc.dtype)
        return torch.cat([denoised, nhwc[..., colours:]], 3) if colours < channels else denoised

    def _denoise(self, pages: Sequence[DecodedImage]) -> list[Tensor]:
        """The pages' samples, denoised; in batches as memory allows."""
        with device_failures(self.device):
            return self._in_batches(pages)

    def _in_batches(self, pages: Sequence[DecodedImage]) -> list[Tensor]:
        height, width = self._denoiser.padded_shape(pages[0])
        size = max(1, self._denoiser.most_pixels // (height * width))
        samples: list[Tensor] = []
        for start in range(0, len(pages), size):
            batch = pages[start : start + size]
            for page, output in zip(batch, self._denoiser.denoise(batch), strict=True):
                if isinstance(output, ImageError):
                    raise output
                values, is_finite, _ = output.wait()
                if not is_finite and self._denoiser.precision is not None:
                    (again,) = self._denoiser.denoise([page], is_float32=True)
                    if isinstance(again, ImageError):
                        raise again
                    values, is_finite, _ = again.wait()
                if not is_finite:
                    raise ImageError("the network's output is not finite")
                samples.append(page.stored(values))
        return samples


def load(name_or_file: str | Path | None = None) -> Network:
    """Load a network: a shipped name, a safetensors file, or the default.

    Returns:
        The network in inference mode, float32, on the CPU.

    Raises:
        WeightsError: the weights cannot be used.
    """
    return load_weights(find_weights(None if name_or_file is None else str(name_or_file))).network


def denoise_folder(
    src: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    reference: str | Path | None = None,
    format: str = "preserve",
    quality: int = 95,
    png_level: int = 2,
    suffix: str = "",
    recursive: bool = True,
    overwrite: bool = False,
    times: bool = True,
    provenance: bool = True,
    strength: float = 1.0,
    noise_level: float | str = "auto",
    tta: bool = False,
    tile: int | str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    measure: bool = True,
    value_range: tuple[float, float] | None = None,
    progress: Progress[Plan, Result] | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Denoise folders as `denoise-batch` does, with its manifest and metadata.

    Args:
        src: folder, file, glob pattern or URL, or several of them.
        out: output folder or URL; None puts the outputs beside the input, in `SRC-denoised`.
        weights: a safetensors file, a shipped name, or None for the default.
        device: auto, cpu, cuda, cuda:N, cuda:all, mps or xpu.
        reference: folder of clean images with the same names: adds PSNR to the results.
        format: preserve, png, jpeg, webp, tiff, bmp, ppm, avif, jp2, heic or jxl.
        quality: of JPEG, WebP and AVIF, 1 to 100.
        png_level: compression of PNG, 0 to 9.
        suffix: appended to each output's name, before the dot.
        recursive: search sub-folders too.
        overwrite: denoise everything again, and replace files that this tool did not write.
        times: give each output its input's file times.
        provenance: say in each output's EXIF which version and weights made it.
        strength: blend; 0 keeps the input, 1 is the network's output.
        noise_level: as of `denoise`, one for all images.
        tta: average over the eight rotated and flipped versions of every image.
        tile: side of the tiles in pixels, "auto" or "off".
        precision: auto, fp32; on a GPU bf16 or fp16.
        batch_size: images per batch; None chooses by their size.
        limit: stop after this many images have been denoised.
        measure: estimate the noise and, without a reference, the PSNR.
        value_range: black and white of samples above 8 bits; None: as each file says or shows.
        progress: receives what the run reports.
        stop: set it from another thread to end the run after the files in flight.

    Returns:
        What became of every image; a file that fails is in it, and never stops the rest.

    Raises:
        OptionError: an argument out of range, an input that does not exist, or an output that
            another run is writing to.
        NoImagesError: the inputs hold no image.
        DeviceError: the device does not exist, or failed.
        WeightsError: the weights cannot be used.
    """
    if reference == "":  # which `Path` takes for the current folder
        raise OptionError("reference is empty; name a folder, or leave it out")
    inputs = [str(src)] if isinstance(src, (str, Path)) else [str(path) for path in src]
    with open_storage(inputs, None if out is None else str(out)) as (names, output, storage):
        options = DenoiseOptions(
            inputs=names,
            output=output,
            weights=None if weights is None else str(weights),
            device=_device_name(device),
            reference=None if reference is None else Path(reference),
            batch_size=batch_size,
            recursive=recursive,
            overwrite=overwrite,
            times=times,
            provenance=provenance,
            quality=quality,
            png_level=png_level,
            format=format,
            suffix=suffix,
            strength=strength,
            noise_level=str(noise_level),
            tta=tta,
            precision=precision,
            tile=str(tile),
            limit=limit,
            measure=measure,
            value_range=value_range,
        )
        with Session(with_stored_range(options), storage) as session:
            return session.run(session.jobs(), progress, stop)


def _page(image: Tensor, colours: int) -> DecodedImage:
    """An array or tensor (H, W, C) of this many colours, and alpha if C is one more."""
    samples = image[:, :, :colours].contiguous()
    if samples.dtype == torch.float32:
        low, high = samples.aminmax()
        if not torch.isfinite(torch.stack([low, high])).all():
            raise ImageError("holds NaN or infinite values; replace them first")
        if low < -1 or high > 2:
            raise ImageError(
                f"float values from {float(low):g} to {float(high):g}: expected [0, 1]; divide by "
                "the largest value, or pass uint8 or uint16"
            )
    alpha = image[:, :, colours:] if image.shape[2] > colours else None
    storage = StorageFormat("array", "L" if colours == 1 else "RGB")
    return DecodedImage(samples, alpha, BITS_8, storage, Metadata())


def _is_array(image: object) -> bool:
    """Whether `image` is a NumPy array or of a subclass, without importing NumPy."""
    return any(f"{t.__module__}.{t.__name__}" == "numpy.ndarray" for t in type(image).__mro__)


def _device_name(device: str | torch.device) -> str:
    """A device as the command line spells it: torch's cpu:0 is cpu."""
    name = str(device)
    is_single = isinstance(device, torch.device) and device.type in ("cpu", "mps")
    return name.partition(":")[0] if is_single else name
