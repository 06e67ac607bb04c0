"""What this machine can do, and whether what is installed works: the checks of denoise-doctor."""

import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import features

from denoise_batch.kernels import DenoiseBatchError
from denoise_batch.kernels.kernel_check import KernelCheck
from denoise_batch.kernels.selfcheck import self_check

from . import weights as shipped
from .device import describe_device
from .metrics import psnr
from .models import find_weights, load_weights

State = Literal["ok", "note", "problem"]

LEAST_PYTHON = (3, 11)
LEAST_GAIN_DB = 5.0  # of the self-test; the shipped weights reach more than twice that
TEST_PX = 192
TEST_SIGMA_255 = 25
LEAST_MEMORY_GB = 1.0
_CODECS = {"webp": "WebP", "avif": "AVIF", "jpg_2000": "JPEG 2000", "libtiff": "TIFF"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        topic: what it belongs to: software, devices, extras, weights, self-test.
        name: what was looked at.
        state: ok; note: something optional is missing; problem: something will not work.
        detail: what was found, and for a problem how to mend it.
    """

    topic: str
    name: str
    state: State
    detail: str


def examine(device: torch.device) -> Iterator[Check]:
    """All checks but the kernels', in the order to show them; the self-test runs on `device`."""
    yield from _software()
    yield from _devices(device)
    yield from _extras()
    yield from _weights()
    yield self_test(device)


def kernel_checks(device: torch.device) -> list[KernelCheck]:
    """Every operation that has a faster implementation, held against the plain one."""
    return self_check(device)


def is_healthy(checks: list[Check], kernels: list[KernelCheck]) -> bool:
    """Nothing that is needed fails; what is merely not there does not count."""
    return not any(check.state == "problem" for check in checks) and not any(
        kernel.status == "failed" for kernel in kernels
    )


def self_test(device: torch.device, name: str | None = None) -> Check:
    """Denoise a made-up picture with known noise, and compare with the clean one.

    Args:
        device: where.
        name: weights; None: the default ones.
    """
    title = f"{name or shipped.names()[0]} on {device}"
    started = time.perf_counter()
    try:
        network = load_weights(find_weights(name)).network.to(device)
        clean = made_up_picture(TEST_PX)
        generator = torch.Generator().manual_seed(0)
        noisy = clean + TEST_SIGMA_255 / 255 * torch.randn(clean.shape, generator=generator)
        denoised = network(noisy[None].to(device)).to("cpu")[0]
    except DenoiseBatchError as error:
        return Check("self-test", title, "problem", str(error))
    except Exception as error:  # whatever a driver or a compiler raises is what is looked for
        lines = str(error).strip().splitlines() or [""]
        return Check("self-test", title, "problem", f"{type(error).__name__}: {lines[0]}")
    before, after = psnr(noisy, clean), psnr(denoised, clean)
    seconds = time.perf_counter() - started
    detail = f"PSNR {before:.2f} → {after:.2f} dB in {seconds:.1f} s"
    if not after - before >= LEAST_GAIN_DB:  # NaN fails as well
        hint = "its results are wrong; compare with --device cpu"
        return Check("self-test", title, "problem", f"{detail}: {hint}")
    return Check("self-test", title, "ok", detail)


def made_up_picture(side_px: int) -> torch.Tensor:
    """(3, side_px, side_px) in [0, 1]: a shaded background, discs, stripes; no noise."""
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
    is_new = sys.version_info[:2] >= LEAST_PYTHON
    python = f"{platform.python_version()}, {platform.platform()}"
    yield Check("software", "Python", "ok" if is_new else "problem", python)
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Check("software", "torch", "ok", f"{torch.__version__}, {cuda}")
    yield Check("software", "denoise-batch", "ok", importlib.metadata.version("denoise-batch"))
    missing = [name for codec, name in _CODECS.items() if not features.check(codec)]
    found = [name for name in _CODECS.values() if name not in missing]
    detail = f"{features.version('pil')} with {', '.join(found) or 'none of the optional formats'}"
    if missing:
        detail += f"; without {', '.join(missing)}"
    yield Check("software", "Pillow", "note" if missing else "ok", detail)


def _devices(chosen: torch.device) -> Iterator[Check]:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    detail = f"{describe_device('cpu')} of {cores}"
    yield Check("devices", "cpu", "ok" if threads <= cores else "note", detail)
    memory = _memory()
    if memory is not None:
        total, free = memory
        detail = f"{total:.1f} GB, {free:.1f} GB of them free"
        is_enough = free >= LEAST_MEMORY_GB
        hint = "" if is_enough else "; large images will be cut into small tiles"
        yield Check("devices", "memory", "ok" if is_enough else "note", detail + hint)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            detail = (
                f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, "
                f"compute capability {properties.major}.{properties.minor}"
            )
            yield Check("devices", f"cuda:{index}", "ok", detail)
    else:
        reason = (
            "no GPU that PyTorch can use"
            if torch.version.cuda
            else "this PyTorch cannot use NVIDIA GPUs; install a CUDA build for that"
        )
        yield Check("devices", "cuda", "note", reason)
    if torch.backends.mps.is_available():
        yield Check("devices", "mps", "ok", "Apple GPU")
    yield Check("devices", "chosen", "ok", f"{chosen} (--device)")


def _memory() -> tuple[float, float] | None:
    """Gigabytes of main memory, in all and available; None where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    available = free * page
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:  # noqa: PTH123 (no real file)
            lines = dict(line.split(":", 1) for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    return total * page / 1e9, available / 1e9


def _extras() -> Iterator[Check]:
    """Each optional extra, by the package's own metadata."""
    extras: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("denoise-batch") or ():
        package, _, condition = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", condition)
        name = re.match(r"[\w.-]+", package.strip())
        if extra and name and extra[1] != "dev":
            extras.setdefault(extra[1], []).append(name[0])
    for kind, packages in extras.items():
        missing = [package for package in packages if not _is_installed(package)]
        detail = ", ".join(packages)
        if missing:
            detail = f"without {', '.join(missing)}; pip install 'denoise-batch[{kind}]' adds them"
        yield Check("extras", kind, "note" if missing else "ok", detail)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _weights() -> Iterator[Check]:
    for name in shipped.names():
        try:
            shipped.path(name)
        except DenoiseBatchError as error:
            yield Check("weights", name, "problem", str(error))
        else:
            digest = shipped.manifest()["weights"][name]["sha256"]
            yield Check("weights", name, "ok", f"sha256 {digest[:16]}… as it was shipped")
