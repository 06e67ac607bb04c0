"""What a GPU would launch, and move, around a network's convolutions: on meta tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from launches import Launch, Operations, record_launches
from torch import Tensor

from denoise_batch.device import Download, Transfer
from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import BITS_8, ValueRange
from denoise_batch.kernels import dispatch
from denoise_batch.models import Network
from denoise_batch.streaming import denoiser as denoising
from denoise_batch.streaming.denoiser import BatchDenoiser, Output

META = torch.device("meta")
SIDE = 480  # 512 with the context


class MetaTransfer(Transfer):
    """Copies that cost nothing here, and arrive as meta tensors."""

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(tensor, device=META) for tensor in tensors]

    def download(self, tensors: Sequence[Tensor]) -> Download:
        return Download(tuple(tensors))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    found = record_launches(monkeypatch)
    monkeypatch.setenv("DENOISE_BATCH_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "may_have_kernels", lambda device: device == META)
    monkeypatch.setattr(dispatch, "load_kernels", lambda device: dispatch.launchers())
    monkeypatch.setattr(denoising, "Transfer", MetaTransfer)
    dispatch.ops_for.cache_clear()
    yield found
    dispatch.ops_for.cache_clear()


def page(dtype: torch.dtype) -> DecodedImage:
    scale = BITS_8 if dtype == torch.uint8 else ValueRange(0.0, 65535.0)
    samples = torch.zeros(SIDE, SIDE, 3, dtype=dtype)
    return DecodedImage(samples, None, scale, StorageFormat("PNG", "RGB"), Metadata())


def around(found: Sequence[Launch], operations: Operations) -> tuple[int, float]:
    """(Launches that are no convolution's, bytes a pixel that they and the ends' images move)."""
    others = [launch for launch in found if not launch.kernel.startswith("conv_")]
    moved = operations.bytes
    for launch in found:
        images = [x for x in launch.arguments if isinstance(x, Tensor) and x.ndim == 4]
        unique = {id(x): x for x in images if launch in others or x.shape[-1] <= 4}
        moved += sum(x.numel() * x.itemsize for x in unique.values())
    return len(others) + operations.counts.total(), moved / SIDE**2


# Launches, and bytes a pixel of 8 bits: samples to values, the ends' images, values to samples and
# their flags. unet-level's output is guarded, and its level estimated by torch's operations.
MOST = {"tconv": (5, 72), "unet": (4, 78), "unet-level": (47, 196)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=["8-bits", "16-bits"])
@pytest.mark.parametrize("name", list(MOST))
def test_little_is_launched_and_moved_around_the_convolutions(
    name: str, dtype: torch.dtype, launches: list[Launch]
) -> None:
    with META:
        network = Network(name).eval().to(META)
    denoiser = BatchDenoiser(network, META, memory=1 << 40, precision=torch.bfloat16)
    pages = [page(dtype)]
    with torch.inference_mode():
        list(denoiser.denoise(pages))  # packs the weights
        launches.clear()
        with Operations() as operations:
            (output,) = denoiser.denoise(pages)
    assert isinstance(output, Output)
    count, moved = around(launches, operations)
    assert count <= MOST[name][0]
    assert moved <= MOST[name][1] + (9 if dtype == torch.uint16 else 0)


@dataclass
class Needs:
    """What convolutions need; bytes are of half precision.

    Attributes:
        multiply_adds: as defined.
        maps: bytes of feature maps read and written once a launch; images are not among them.
        fetched: bytes that programs load: the input anew for every tap and tile of columns, the
            weights for every tile of positions. L2 holds most of them.
    """

    multiply_adds: int = 0
    maps: int = 0
    fetched: int = 0

    def add(self, launch: Launch) -> None:
        options, (x, weight) = launch.options, launch.arguments[:2]
        if launch.kernel == "conv_forward_kernel":
            residual, y, positions = launch.arguments[3], *launch.arguments[7:9]
        else:
            residual, y = launch.arguments[3:5]
            stride = options["STRIDE_H"] * options["STRIDE_W"]
            positions = y.numel() // y.shape[-1] // stride
        images = [x, y, *[residual] * options["HAS_RESIDUAL"]]
        depth, columns = options["KH"] * options["KW"] * options["CI"], options["CO"]
        self.multiply_adds += positions * depth * columns
        self.maps += sum(each.numel() * each.itemsize for each in images if each.shape[-1] > 4)
        taps = positions * x.itemsize * launch.grid[1]
        columns = min(columns, launch.grid[1] * options["BLOCK_N"])
        self.fetched += depth * (taps + launch.grid[0] * columns * weight.itemsize)


# By NVIDIA's data sheets and white papers: 10¹² operations a second of tensor cores (dense,
# bfloat16, T4: float16, with float32 sums), 10⁹ bytes of memory a second. A T4 runs no kernels of
# ours.
GPUS = {"H100": (989, 3350), "A100": (312, 2039), "RTX 4090": (165, 1008), "T4": (65, None)}
A100_L2 = 5120 * 1.41e9  # bytes a clock, clocks a second
LAUNCH_S = 5e-6


def test_the_page_s_bounds_are_this_arithmetic(launches: list[Launch]) -> None:
    side, beside = 4096, MOST["unet-level"]
    with META:
        network = Network("unet-level").eval().to(META).set_compute_dtype(torch.bfloat16)
    with torch.inference_mode():
        network(torch.empty(1, 3, side, side, device=META))
    needs, convolutions = Needs(), [x for x in launches if x.kernel.startswith("conv_")]
    for launch in convolutions:
        needs.add(launch)
    adds, maps, fetched = (n / side**2 for n in (needs.multiply_adds, needs.maps, needs.fetched))
    times = [round(2 * adds / each, -1) for each, _ in GPUS.values()]
    moved = [round((maps + beside[1]) / each * 1e3, -1) for _, each in GPUS.values() if each]
    count = len(convolutions) + beside[0]
    page = (Path(__file__).parents[3] / "docs/gpu.md").read_text()
    for cells in (
        ["bound by", *GPUS],
        [f"tensor cores: {adds / 1e3:.0f} thousand multiply-adds", *(f"{t:.0f}" for t in times)],
        [
            f"memory: {maps:.0f} B of feature maps, {beside[1]} B beside",
            *(f"{t:.0f}" for t in moved),
        ],
        [f"L2: {fetched / 1e3:.1f} kB", "?", f"{round(fetched / A100_L2 * 1e12, -1):.0f}"],
        [
            f"the host, an image: {count} launches",
            *3 * [f"{round(count * LAUNCH_S * 1e6, -1):.0f}"],
        ],
    ):
        assert "| " + " | ".join(cells) in page
