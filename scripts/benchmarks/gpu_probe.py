"""What scripts/gpu-check measures in processes of their own: gpu_probe.py PROBE --device cuda.

Each line of standard output is JSON: the cells of a row, and what is wrong with it, if anything.
A CUDA error, which is for good, so costs one part of the report and not the rest.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from gpu_report import DOUBTFUL, is_doubt
from measure import relative_error
from problem import pose
from providers import PREPARE
from registry import SHAPES, Case, Mode
from timing import alternate, turn, use_device
from torch import Tensor

from denoise_batch.device import precision_on, torch_dtype
from denoise_batch.doctor import computing, self_test
from denoise_batch.files.metadata import Metadata, StorageFormat
from denoise_batch.files.pixels import DecodedImage
from denoise_batch.files.ranges import BITS_8
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.errors import first_line, is_out_of_memory
from denoise_batch.kernels.selfcheck import planned_checks
from denoise_batch.models import Network, find_weights, load_weights
from denoise_batch.streaming.denoiser import BatchDenoiser, Forward

SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK_SIDES = (64, 128)
WARM_UPS = 4  # the second call records a graph and replays it beside the plain function
TIMED_S = 0.3
LEVEL = 0.1  # told to networks where two computations are compared
# Largest difference of two right results for values in [0, 1], as in the benchmarks.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
LAYERS = (
    "stem3x3-12-32",
    "conv3x3-32",
    "down2x2-32-64",
    "conv3x3-64",
    "conv3x3-128",
    "conv3x3-192",
    "up2x2-64-32",
    "head3x3-32-12",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a probe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="of the checks of kernels")
    options = parser.parse_args(arguments)
    use_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    logging.basicConfig(format="%(message)s")
    options.row = Rows(options.device)
    logging.getLogger().addHandler(options.row)
    PROBES[options.probe](options)
    return 0


class Rows(logging.Handler):
    """Prints rows, and marks those in which something slower computes than was to.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(logging.WARNING)
        self._device = device
        self._is_doubtful = False  # since the last row

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a warning, which goes to standard error too."""
        self._is_doubtful |= is_doubt(record.getMessage())

    def __call__(self, name: str, *cells: Any, wrong: str = "") -> None:
        """Print a row."""
        # Kernels that are off stay so, graphs are of one row.
        is_doubtful = self._is_doubtful or is_doubt(ops_for(self._device).in_words)
        self._is_doubtful = False
        named = f"{name} {DOUBTFUL}" if is_doubtful else name
        print(json.dumps({"cells": [named, *cells], "wrong": wrong}), flush=True)


def kernels(options: argparse.Namespace) -> None:
    """Every kernel beside the reference implementation, as denoise-doctor compares them."""
    index, count = map(int, options.share.split("/"))
    for run in planned_checks(options.device)[index::count]:
        check = run()
        status = check.status + (f": {check.reason}" if check.reason else "")
        is_wrong = check.status == "failed"
        error = None if check.error is None else f"{check.error:.1e}"
        allowed = f"{check.tolerance:.0e}"
        wrong = f"{check.name} by {check.implementation}: {status}" * is_wrong
        options.row(check.name, check.implementation, status, error, allowed, wrong=wrong)


def network(options: argparse.Namespace) -> None:
    """A synthetic image through the default network."""
    check = self_test(options.device)
    words = computing(options.device)
    options.row(words, check.state, check.detail, wrong=check.detail * (check.state == "problem"))


def forward(options: argparse.Namespace) -> None:
    """The default network at all sizes, with and without CUDA graphs, never waiting."""
    device = options.device
    net = _network(options)
    for side in QUICK_SIDES if options.quick else SIDES:
        for graphs in (False, True) if device.type == "cuda" else (False,):
            run = Forward(net, cuda_graphs=graphs)
            name, wrong = f"{side}²{' graphs' * graphs}", ""
            host_s = device_s = None
            try:
                padded = net.pad(torch.rand(1, 3, side, side, device=device))
                for _ in range(WARM_UPS):
                    run(padded)
                host_s, device_s = _timed(partial(run, padded), device)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    name += " (out of memory)"
                else:
                    wrong = f"{name}: {first_line(error)}"
            speed = side * side / 1e6 / device_s if device_s else None
            options.row(name, _ms(device_s), _ms(host_s), speed, wrong=wrong)
            del run


def tiles(options: argparse.Namespace) -> None:
    """The kernels of large images beside gemm's, and a batch beside its images alone."""
    device, side = options.device, 64 if options.quick else 4096
    for precision in dict.fromkeys((None, _precision(device))):
        net, dtype = _network(options), precision or torch.float32
        net.set_compute_dtype(precision)
        run, allowed = Forward(net), ALLOWED[dtype]
        for count, edge, what in (
            (1, side // 4, "gemm"),
            (1, side, "gemm"),
            (16, side, "its first and last image alone"),
        ):
            name = f"{count}×{edge}² {str(dtype).removeprefix('torch.')}"
            try:
                difference = _difference(run, _images(net, count, edge, device), device)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                options.row(name, what, None, f"{allowed:.0e}", "too large for the memory")
                difference = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if difference is None:
                continue
            is_wrong = not difference <= allowed
            wrong = f"{name}: {difference:.2g} from {what}, allowed {allowed:.0e}" * is_wrong
            state = "WRONG" if is_wrong else "ok"
            options.row(name, what, f"{difference:.1e}", f"{allowed:.0e}", state, wrong=wrong)


def layers(options: argparse.Namespace) -> None:
    """Each layer's time beside torch's own (cuDNN on a GPU), and the bytes that it moves."""
    device = options.device
    dtype = "bfloat16" if _precision(device) == torch.bfloat16 else "float32"
    modes: Sequence[Mode] = ("infer", "backward")
    for mode in modes:
        for subject in LAYERS[:2] if options.quick else LAYERS:
            training, inference = SHAPES[subject]
            shape = inference if mode == "infer" and inference else training
            if options.quick:
                shape = (1, shape[1], 16, 16)
            case = Case(mode, subject, shape, dtype)
            runners = {name: PREPARE[name](pose(case, device)) for name in ("ours", "eager")}
            for runner in runners.values():
                for _ in range(2):
                    runner.prepare()
                    runner.run()
            results = {name: runner.results() for name, runner in runners.items()}
            error = relative_error(results["ours"], results["eager"], case.norm)
            turns = {name: partial(turn, runner, device) for name, runner in runners.items()}
            medians = {n: timing.median for n, timing in alternate(turns, rounds=4).items()}
            moved = _moved_bytes(case, results["ours"]) if mode == "infer" else None
            is_wrong = not error <= case.tolerance
            options.row(
                case.name,
                *(_ms(medians[name]) for name in ("ours", "eager")),
                medians["ours"] / medians["eager"],
                moved / medians["ours"] / 1e9 if moved else None,
                f"{error:.1e} of {case.tolerance:.0e}",
                wrong=f"{case.name}: error {error:.2g}" * is_wrong,
            )


def memory(options: argparse.Namespace) -> None:
    """A batch that memory has no room for is halved, a page is cut into tiles."""
    device, side = options.device, 384 if options.quick else 2048
    for name, count, edge in (("a batch of 8 pages", 8, side // 2), ("a page", 1, 2 * side)):
        net = _network(options, precision=None)
        pages = [_page(edge, seed) for seed in range(count)]
        denoiser = BatchDenoiser(net, device, memory=1 << 60)
        if device.type == "cuda":
            _samples(denoiser, pages)  # compiles
        expected, peak = _peak_of(denoiser, pages)
        before = denoiser.most_pixels
        with _limited(denoiser, peak // 2, edge * edge * count // 2):
            found = _samples(denoiser, pages)
        difference = max(
            int((new.int() - old.int()).abs().max())
            for new, old in zip(found, expected, strict=True)
        )
        wrong = f"{name}: {difference} of 255 from what enough memory gives" * (difference > 1)
        did_learn = denoiser.most_pixels < before
        if not did_learn:
            wrong = f"{name}: nothing ran out of memory, so nothing was tried"
        least = f"{denoiser.most_pixels / 1e6:.2g} MP at once" if did_learn else ""
        options.row(f"{name} of {edge}²", f"{peak / 2**20:.0f} MiB", least, difference, wrong=wrong)


PROBES: dict[str, Callable[[argparse.Namespace], None]] = {
    "kernels": kernels,
    "network": network,
    "forward": forward,
    "tiles": tiles,
    "layers": layers,
    "memory": memory,
}


def _precision(device: torch.device) -> torch.dtype | None:
    return torch_dtype(precision_on("auto", device))


def _network(options: argparse.Namespace, **precision: torch.dtype | None) -> Network:
    """The default network, in the precision that the command takes, or another."""
    net = load_weights(find_weights(None)).network.to(options.device)
    net.set_compute_dtype(precision.get("precision", _precision(options.device)))
    return net


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of a call that the host takes, and in all; an error if it waits for the device."""
    started = time.perf_counter()
    call()
    _wait(device)
    calls = max(3, min(200, int(TIMED_S / (time.perf_counter() - started))))
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        started = time.perf_counter()
        host = []
        for _ in range(calls):
            begun = time.perf_counter()
            call()
            host.append(time.perf_counter() - begun)
    finally:
        if is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    _wait(device)
    return median(host), (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _images(net: Network, count: int, side: int, device: torch.device) -> Tensor:
    """Padded images, drawn where they are needed."""
    generator = torch.Generator(device).manual_seed(0)
    size = net.padded_size(side)
    shape = (count, size, size, 3)  # channels-last, as the command's
    return torch.rand(shape, device=device, generator=generator).permute(0, 3, 1, 2)


def _difference(run: Forward, padded: Tensor, device: torch.device) -> float:
    """Of an image: from gemm's result. Of a batch: of its first and last image's from theirs."""
    level = torch.full((len(padded),), LEVEL, device=device)
    output = run(padded, level)
    if len(padded) == 1:
        with _by_gemm():
            return (output - run(padded, level)).abs().max().item()
    return max(
        (output[i : i + 1] - run(padded[i : i + 1], level[:1])).abs().max().item()
        for i in (0, len(padded) - 1)
    )


@contextmanager
def _by_gemm() -> Iterator[None]:
    before = os.environ.get("DENOISE_BATCH_KERNELS")
    os.environ["DENOISE_BATCH_KERNELS"] = "gemm"
    ops_for.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("DENOISE_BATCH_KERNELS")
        if before is not None:
            os.environ["DENOISE_BATCH_KERNELS"] = before
        ops_for.cache_clear()


def _moved_bytes(case: Case, results: dict[str, Tensor]) -> int:
    """Bytes that an inference must read and write at least: input, weights, output."""
    size = torch.tensor([], dtype=next(iter(results.values())).dtype).element_size()
    weights = sum(parameter.numel() for parameter in case.block().parameters())
    images = torch.Size(case.shape).numel() + sum(x.numel() for x in results.values())
    return (images + weights) * size


def _page(side: int, seed: int) -> DecodedImage:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(side // 32, 2), max(side // 32, 2), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0]
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    samples = (noisy.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return DecodedImage(samples, None, BITS_8, StorageFormat("PNG", "RGB"), Metadata())


def _samples(denoiser: BatchDenoiser, pages: Sequence[DecodedImage]) -> list[Tensor]:
    found = []
    for output in denoiser.denoise(pages):
        if isinstance(output, Exception):
            raise output
        found.append(output.samples())
    return found


def _peak_of(denoiser: BatchDenoiser, pages: Sequence[DecodedImage]) -> tuple[list[Tensor], int]:
    """The pages' samples, and the GPU's memory that they took."""
    if denoiser.device.type != "cuda":
        return _samples(denoiser, pages), 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = _samples(denoiser, pages)
    return found, torch.cuda.max_memory_allocated() - before


@contextmanager
def _limited(denoiser: BatchDenoiser, most_bytes: int, most_pixels: int) -> Iterator[None]:
    """Leave so little memory inside; a rehearsal refuses passes of more pixels instead."""
    device = denoiser.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        most_bytes += torch.cuda.memory_reserved(device)
        total = torch.cuda.get_device_properties(device).total_memory
        # Of the current device, which is this one: "cuda" alone it would not take.
        torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = denoiser._forward  # private: only a GPU's own allocator could refuse otherwise
    launch = forward._run

    def refuse(padded: Tensor, *level: Tensor) -> Tensor:
        if padded.numel() // 3 > most_pixels:
            raise MemoryError
        return launch(padded, *level)

    forward._run = refuse
    try:
        yield
    finally:
        forward._run = launch


if __name__ == "__main__":
    sys.exit(main())
