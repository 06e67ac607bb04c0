"""The checks of denoise-doctor: what this machine can do and whether the installation works."""

import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import features

from denoise_batch.kernels import DenoiseBatchError
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.kernel_check import KernelCheck, in_words
from denoise_batch.kernels.selfcheck import self_check

from .device import APPLE_GPU, available_host_bytes, describe_device
from .metrics import psnr
from .models import find_weights, load_weights, shipped_file, shipped_manifest, shipped_names

State = Literal["ok", "note", "problem"]

MIN_PYTHON = (3, 11)
MIN_GAIN_DB = 5.0  # in the self-test; the shipped weights reach more than twice that
TEST_PX = 192
TEST_SIGMA_255 = 25
MIN_MEMORY_GB = 1.0
_CODECS = {"webp": "WebP", "avif": "AVIF", "jpg_2000": "JPEG 2000", "libtiff": "TIFF"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's output.

    Attributes:
        topic: software, devices, extras, weights or self-test.
        name: what was checked.
        state: ok; note (something optional is missing) or problem (something will not work).
        detail: what was found and, for a problem, how to fix it.
    """

    topic: str
    name: str
    state: State
    detail: str


def examine(device: torch.device) -> Iterator[Check]:
    """Run every check except the kernels'; the self-test runs on `device`."""
    yield from _software()
    yield from _devices(device)
    yield from _extras()
    yield from _weights()
    yield self_test(device)


def kernel_checks(device: torch.device) -> list[KernelCheck]:
    """Compare every kernel that computes on `device` with the reference implementation."""
    return self_check(device)


def computing(device: torch.device) -> str:
    """Say in one line which kernels compute on the device, and why no faster ones do."""
    try:
        return ops_for(device).in_words
    except DenoiseBatchError as error:
        return f"nothing ({error})"
    except Exception as error:  # a full or broken device's; what is known is printed all the same
        return f"nothing ({in_words(error)})"


def is_healthy(checks: Sequence[Check], kernels: Sequence[KernelCheck]) -> bool:
    """Whether nothing that is needed fails; a missing optional part is no failure."""
    return not any(check.state == "problem" for check in checks) and not any(
        kernel.status == "failed" for kernel in kernels
    )


def self_test(device: torch.device, name: str | None = None) -> Check:
    """Denoise a synthetic image with known noise and compare the result with the clean image.

    Args:
        device: where to compute.
        name: name or file of the weights; None for the default weights.
    """
    title = f"{name or shipped_names()[0]} on {device}"
    started = time.perf_counter()
    try:
        network = load_weights(find_weights(name)).network.to(device)
        clean = synthetic_image(TEST_PX)
        generator = torch.Generator().manual_seed(0)
        noisy = clean + TEST_SIGMA_255 / 255 * torch.randn(clean.shape, generator=generator)
        denoised = network(noisy[None].to(device)).to("cpu")[0]
    except DenoiseBatchError as error:
        return Check("self-test", title, "problem", str(error))
    except Exception as error:  # drivers and compilers raise anything
        lines = str(error).strip().splitlines() or [""]
        return Check("self-test", title, "problem", f"{type(error).__name__}: {lines[0]}")
    before, after = psnr(noisy, clean), psnr(denoised, clean)
    seconds = time.perf_counter() - started
    detail = f"PSNR {before:.2f} → {after:.2f} dB in {seconds:.1f} s"
    if not after - before >= MIN_GAIN_DB:  # NaN fails as well
        hint = "results are wrong; compare with --device cpu"
        return Check("self-test", title, "problem", f"{detail}: {hint}")
    return Check("self-test", title, "ok", detail)


def synthetic_image(side_px: int) -> torch.Tensor:
    """Return a clean image, (3, side_px, side_px) in [0, 1]: shaded background, discs, stripes."""
    axis = torch.linspace(0, 1, side_px)
    y, x = axis[:, None], axis[None, :]
    background = torch.stack([0.3 + 0.4 * x + 0 * y, 0.5 - 0.2 * y + 0 * x, 0.6 - 0.3 * x * y])
    for row, column, radius, colour in (
        (0.3, 0.3, 0.18, (0.8, 0.3, 0.25)),
        (0.65, 0.7, 0.22, (0.2, 0.55, 0.75)),
        (0.75, 0.25, 0.12, (0.85, 0.8, 0.4)),
    ):
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        background = torch.where(inside, torch.tensor(colour)[:, None, None], background)
    stripes = (x * 24).floor() % 2 == 0
    band = (y > 0.44) & (y < 0.52) & (x > 0.45)
    return torch.where(stripes & band, 0.15, background)


def _software() -> Iterator[Check]:
    is_new = sys.version_info[:2] >= MIN_PYTHON
    python = f"{platform.python_version()}, {platform.platform()}"
    yield Check("software", "Python", "ok" if is_new else "problem", python)
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Check("software", "torch", "ok", f"{torch.__version__}, {cuda}")
    yield Check("software", "denoise-batch", "ok", importlib.metadata.version("denoise-batch"))
    missing = [name for codec, name in _CODECS.items() if not features.check(codec)]
    found = [name for name in _CODECS.values() if name not in missing]
    detail = f"{features.version('pil')} with {', '.join(found) or 'no optional format'}"
    if missing:
        detail += f"; without {', '.join(missing)}"
    yield Check("software", "Pillow", "note" if missing else "ok", detail)


def _devices(chosen: torch.device) -> Iterator[Check]:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    detail = f"{describe_device('cpu')} of {cores}"
    yield Check("devices", "cpu", "ok" if threads <= cores else "note", detail)
    available = available_host_bytes() / 1e9
    is_enough = available >= MIN_MEMORY_GB
    hint = "" if is_enough else "; large images will be processed in small tiles"
    yield Check(
        "devices", "memory", "ok" if is_enough else "note", f"{available:.1f} GB available{hint}"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(f"cuda:{index}", _cuda_words)
    else:
        reason = (
            "PyTorch finds no usable NVIDIA GPU"
            if torch.version.cuda
            else "this PyTorch was built without CUDA; install a CUDA build to use an NVIDIA GPU"
        )
        yield Check("devices", "cuda", "note", reason)
    for index in range(torch.xpu.device_count() if torch.xpu.is_available() else 0):
        yield _gpu(f"xpu:{index}", _xpu_words)
    if torch.backends.mps.is_available():
        yield Check("devices", "mps", "ok", APPLE_GPU)
    yield Check("devices", "chosen", "ok", f"{chosen} (--device)")


def _gpu(name: str, words: Callable[[str], str]) -> Check:
    try:
        return Check("devices", name, "ok", words(name))
    except Exception as error:  # a driver that fails at the first question
        return Check("devices", name, "problem", in_words(error))


def _cuda_words(name: str) -> str:
    properties = torch.cuda.get_device_properties(name)
    return (
        f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, "
        f"compute capability {properties.major}.{properties.minor}"
    )


def _xpu_words(name: str) -> str:
    memory = torch.xpu.get_device_properties(name).total_memory / 1e9
    return f"{torch.xpu.get_device_name(name)}, {memory:.1f} GB, untested"


def _extras() -> Iterator[Check]:
    """Check each optional extra that the package's metadata names."""
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("denoise-batch") or ():
        package, _, condition = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", condition)
        name = re.match(r"[\w.-]+", package.strip())
        if extra and name:
            extras.setdefault(extra[1], []).append(name[0])
    for kind, packages in extras.items():
        missing = [package for package in packages if not _is_installed(package)]
        detail = ", ".join(packages)
        if missing:
            detail = f"missing: {', '.join(missing)}; pip install 'denoise-batch[{kind}]'"
        yield Check("extras", kind, "note" if missing else "ok", detail)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _weights() -> Iterator[Check]:
    for name in shipped_names():
        try:
            shipped_file(name)
        except DenoiseBatchError as error:
            yield Check("weights", name, "problem", str(error))
        else:
            digest = shipped_manifest()["weights"][name]["sha256"]
            yield Check("weights", name, "ok", f"sha256 {digest[:16]}… matches the manifest")
