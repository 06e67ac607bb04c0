"""The parts of scripts/gpu-check, the most important first.

Everything that computes does so in a process of its own: commands (`gpu_runs`) where these can
tell, else `gpu_probe`.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_report import DOUBTFUL, ChildError, Report
from gpu_runs import bench, compare, denoise, train_rates, utilisation
from host import make_folders
from PIL import Image
from report import commit, versions

from denoise_batch.device import cores, describe_device

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "docs" / "samples"
MOST_PROCESSES = 8  # that compile kernels at once
MOST_DIFFERENCE = 1  # of 255, between two float32 computations
LEAST_PSNR = 45.0  # dB, between bfloat16, which has 57 on a processor, and float32
CASES = ("infer/unet-level/*/bfloat16", "train/unet-level/16x3x96x96/bfloat16")
REHEARSED_CASES = ("infer/tconv/*/float32",)


@dataclass(frozen=True)
class Part:
    """A section of the report.

    Attributes:
        name: for `--parts`.
        title: its heading.
        least_s: seconds, under which it is not begun.
        run: does it.
    """

    name: str
    title: str
    least_s: float
    run: Callable[[Report], None]


def environment(report: Report) -> None:
    """What there is: versions, the GPU, and what Triton needs."""
    report.say(f"- {', '.join(f'{name} {version}' for name, version in versions().items())}")
    report.say(f"- commit {commit()}, {cores()} cores, {describe_device('cpu')}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    cache = os.environ.get("TRITON_CACHE_DIR", "~/.triton")
    report.say(
        f"- C compiler: {compiler or 'none'}; Python.h: {'there' if header.exists() else 'missing'}"
        f"; Triton's cache: {cache}"
    )
    if report.is_gpu:
        device = torch.device(report.device)
        properties = torch.cuda.get_device_properties(device)
        report.say(
            f"- {properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB, "
            f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    fields = "name,driver_version,memory.used,memory.total,utilization.gpu,clocks.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        report.say(*(f"- nvidia-smi ({fields}): {line}" for line in said.stdout.splitlines()))


def correctness(report: Report) -> None:
    """Each kernel's self-check, in several processes, since each compiles what it checks."""
    report.table("a whole network", "state", "")
    _probe(report, "network", most_s=120)
    count = 1 if report.is_quick else min(MOST_PROCESSES, cores())
    report.say("", "Error: largest difference relative to the largest element in float64.")
    report.table("kernel", "implementation", "status", "error", "allowed")
    with ThreadPoolExecutor(count) as pool:
        check = partial(_probe, report, "kernels", "--share", most_s=180)
        checks = [pool.submit(check, f"{index}/{count}") for index in range(count)]
        try:
            for each in checks:
                each.result()
        except BaseException:  # Ctrl-C: the pool would wait for them
            report.end_processes()
            raise


def pixels(report: Report) -> None:
    """The sample pictures on the GPU and on the processor; and how soon the first file is there."""
    folder = report.scratch / "noisy"
    folder.mkdir()
    for path in sorted((SAMPLES / "noisy").iterdir())[: 2 if report.is_quick else None]:
        for number in range(3):  # so that shapes recur, which graphs wait for
            copy = folder / f"{path.stem}-{number}.png"
            if not report.is_quick:
                shutil.copy(path, copy)
                continue
            with Image.open(path) as image:
                image.crop((0, 0, 96, 80)).save(copy)
    low = "bf16" if report.is_gpu else "fp32"
    empty = {"TRITON_CACHE_DIR": str(report.scratch / "cold")}
    graphs = ("--cuda-graphs", "--batch-size", "1")
    runs: Sequence[tuple[str, Sequence[str], Mapping[str, str]]] = (
        ("fp32, Triton's cache empty", ("-p", "fp32"), empty),
        ("fp32", ("-p", "fp32"), {}),
        ("fp32 --cuda-graphs", ("-p", "fp32", *graphs), {}),
        ("fp32 --tile 96", ("-p", "fp32", "--tile", "96"), {}),
        ("fp32 by matrix products", ("-p", "fp32"), {"DENOISE_BATCH_KERNELS": "gemm"}),
        (low, ("-p", low), {}),
        (f"{low} --cuda-graphs", ("-p", low, *graphs), {}),
    )
    expected = denoise(report, "cpu", folder, "-p", "fp32", device="cpu")
    report.say(
        f"{expected.count} pictures on {report.device} beside those of the processor "
        f"({expected.kernels}, {expected.whole_s:.1f} s). First file: seconds from the command's "
        "start."
    )
    head = ("run", "computed by", "first file, s", "all, s", "of 255", "differ", "PSNR, dB")
    report.table(*head)
    for name, arguments, environment in runs[2:5] if report.is_quick else runs:
        try:
            found = denoise(report, name, folder, *arguments, environment=environment)
        except ChildError as error:
            report.give_up(error)
            continue
        most, share, psnr = compare(expected.output, found.output)
        is_low = not name.startswith("fp32")
        if (psnr < LEAST_PSNR) if is_low else (most > MOST_DIFFERENCE):
            report.fail(f"{name}: up to {most} of 255 from the processor's, {psnr:.1f} dB")
        is_meant = "DENOISE_BATCH_KERNELS" in environment
        mark = "" if is_meant else found.mark
        times = (found.first_s, found.whole_s)
        report.row(name + mark, found.kernels, *times, most, f"{share:.2%}", f"{psnr:.1f}")


def forward(report: Report) -> None:
    """The network at all sizes; the kernels of large images; each layer beside cuDNN."""
    report.say(
        "One image, noise estimate included. Launch: what the host takes. A call that waits for "
        "the device is an error."
    )
    report.table("size", "ms", "launch, ms", "MP/s")
    _probe(report, "forward", most_s=120)
    report.table("images", "beside", "difference", "allowed", "")
    _probe(report, "tiles", most_s=120)
    report.table("layer", "ours, ms", "torch, ms", "ours/torch", "GB/s", "error")
    _probe(report, "layers", most_s=120)


def folders(report: Report) -> None:
    """Whole folders of PNG and of JPEG files, and how busy they keep the GPU."""
    count, megapixels, copies = (2, 0.01, 1) if report.is_quick else (12, 1.5, 8)
    sizes = Namespace(photographs=SAMPLES / "noisy", images=count, megapixels=megapixels)
    report.say(
        f"{count * copies} files of {megapixels:g} MP. Busy: median of nvidia-smi's utilisation. "
        "Stages: seconds of all files together, on several threads."
    )
    report.table("folder", "MP/s", "seconds", "command, s", "busy", "computed by", "stages, s")
    runs = [("--no-measure",), ("--no-measure", "--cuda-graphs"), ()]
    kinds = make_folders(report.scratch, sizes)
    for kind, folder in list(kinds.items())[: 1 if report.is_quick else None]:
        for path in sorted(folder.iterdir()):
            for number in range(1, copies):
                path.with_stem(f"{path.stem}-{number}").hardlink_to(path)
        for arguments in runs[1:2] if report.is_quick else runs:
            name = " ".join((kind, *arguments))
            try:
                with utilisation(report) as busy:
                    found = denoise(report, name, folder, *arguments, measure=True)
            except ChildError as error:
                report.give_up(error)
                continue
            seconds, stages = found.end["seconds"], found.end["stage_seconds"]
            report.row(
                name + found.mark,
                found.end["megapixels"] / max(seconds, 1e-9),
                seconds,
                found.whole_s,
                f"{median(busy):.0f} %" if busy else None,
                found.kernels,
                ", ".join(f"{stage} {spent:.2g}" for stage, spent in stages.items()),
            )


def training(report: Report) -> None:
    """Steps of training, after a run that compiles what they need."""
    precision = "bf16" if report.is_gpu else "fp32"
    batch, size, steps = 16, 96, 240
    tiles = ["--tiles", "2000", "--validation-tiles", "64"]
    if report.is_quick:
        batch, size, steps = 2, 32, 6
        tiles = ["--tiles", "8", "--validation-tiles", "2"]
    shape = ["--batch-size", str(batch), "--tile-px", str(size), *tiles]
    report.say(
        f"unet-level in {precision}, {' '.join(shape)}. Medians over parts of {steps} steps, "
        "without the first third; a run before them compiles."
    )
    runs = [(o, *g) for o in ("sgd", "muon") for g in ((), ("--cuda-graphs",))]
    train = partial(train_rates, report, precision=precision, shape=shape)
    try:
        train("warm-up", "muon", steps=max(steps // 12, 1))
    except ChildError as error:
        report.give_up(error)
    report.table("optimizer", "images/s", "ms a step", "parts")
    for optimizer, *graphs in runs[3:] if report.is_quick else runs:
        name = " ".join([optimizer, *graphs])
        try:
            rates, ended = train(name, optimizer, *graphs, steps=steps)
        except ChildError as error:
            report.give_up(error)
            continue
        later = rates[len(rates) // 3 :]
        mark = f" {DOUBTFUL}" * ended.is_doubtful
        report.row(name + mark, median(later), 1e3 * batch / median(later), len(later))


def memory(report: Report) -> None:
    """The drill: half of the memory that a batch and a page take."""
    report.say("With half of the memory that it took before; float32.")
    report.table("", "took", "then", "of 255")
    _probe(report, "memory", most_s=120)


def fallbacks(report: Report) -> None:
    """Without a compiler, or a folder to keep kernels in: one line, and torch's products."""
    folder = report.scratch / "one"
    folder.mkdir()
    with Image.open(SAMPLES / "noisy" / "coffee.png") as image:
        image.crop((0, 0, 96, 80)).save(folder / "coffee.png")
    file = report.scratch / "file"
    file.touch()
    nowhere = report.scratch / "nowhere"
    nowhere.mkdir()
    new = {"TRITON_CACHE_DIR": str(report.scratch / "new"), "PATH": str(nowhere), "CC": None}
    report.table("without", "exit code", "computed by", "lines that say so")
    cases: Sequence[tuple[str, Mapping[str, str | None]]] = (
        ("a compiler", new),
        # Root may write into any folder, but nobody below a file.
        ("a folder for TRITON_CACHE_DIR", {"TRITON_CACHE_DIR": str(file / "cache")}),
    )
    for name, environment in cases:
        try:
            found = denoise(report, name, folder, environment=environment, may_fail=True)
        except ChildError as error:
            report.give_up(error)
            continue
        ended = found.ended
        lines = [line for line in ended.warnings if "no Triton kernels" in line]
        report.row(name, ended.code, found.kernels, len(lines))
        if ended.code or any("Traceback" in line for line in ended.errors):
            report.fail(f"without {name}: exit code {ended.code}, or a traceback")
        elif report.is_gpu and len(lines) != 1:
            report.fail(f"without {name}: not one line that says so")


def networks(report: Report, patterns: Sequence[str] = ()) -> None:
    """Networks beside torch eager and torch.compile: scripts/bench."""
    cases = patterns or (CASES if report.is_gpu else REHEARSED_CASES)
    quick = ["--quick", "--rounds", "1", "--threads", "1"] if report.is_quick else []
    chosen = bench(report, "networks", [*cases, *quick, "--providers", "ours,eager,compile"])
    # The reference always runs; torch.compile need not again.
    gemm = bench(report, "gemm", [*cases, *quick, "--providers", "ours"], kernels="gemm")
    portable = {case["name"]: case for case in gemm.cases}
    report.say("Medians, ms. Below 1: ours is faster.")
    head = ("case", "error", "ours", "by matrix products", "eager", "compile", "ours/eager")
    report.table(*head, "ours/compile", "of torch.mm's rate")
    for case in chosen.cases:
        name, ours, ratios = case["name"], case["providers"]["ours"], case["ratios"]
        error, share = ours["error"], ours["bound_fraction"]
        report.row(
            name + f" {DOUBTFUL}" * (name in chosen.doubtful),
            None if error is None else f"{error:.1e} of {case['tolerance']:.0e}",
            _median(case, "ours"),
            _median(portable.get(name), "ours"),
            *(_median(case, peer) for peer in ("eager", "compile")),
            *(ratios.get(peer) for peer in ("eager", "compile")),
            f"{share:.0%}" if share else None,
        )
        if case["red"]:
            report.fail(f"{name}: {ours['status']}: {ours['reason']}")


PARTS = (
    Part("environment", "What there is", 0, environment),
    Part("correctness", "Correctness: every kernel beside the reference", 40, correctness),
    Part("pixels", "One folder on the GPU and on the processor", 40, pixels),
    Part("forward", "Forward: sizes, large images, layers", 40, forward),
    Part("folders", "Whole folders, file to file", 40, folders),
    Part("training", "Training", 40, training),
    Part("memory", "When memory runs out", 20, memory),
    Part("fallbacks", "Without compiler or cache", 20, fallbacks),
    Part("networks", "Networks beside torch eager and torch.compile", 60, networks),
)


def _probe(report: Report, name: str, *arguments: str, most_s: float) -> None:
    """Add the rows of a probe of gpu_probe.py to the table, as they come."""

    def add(line: str) -> None:
        try:
            found = json.loads(line)
            report.row(*found["cells"])
        except (ValueError, TypeError, KeyError):  # some library's words
            report.note(f"{name}: {line}")
            return
        if found["wrong"]:
            report.fail(found["wrong"])

    command = [sys.executable, str(HERE / "gpu_probe.py"), name, "--device", report.device]
    command += ["--quick"] * report.is_quick
    try:
        report.child(name, [*command, *arguments], most_s=most_s, on_line=add)
    except ChildError as error:
        report.give_up(error)


def _median(case: Mapping[str, Any] | None, provider: str) -> str | float | None:
    entry = case and case["providers"].get(provider)
    if not entry:
        return None
    median_ms = entry["median_ms"]
    return float(median_ms) if median_ms else str(entry["status"])
