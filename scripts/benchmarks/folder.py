"""Measure whole folders, file to file: `scripts/bench folder`.

Times each stage alone (decoding; the network with its conversions; encoding; each with the threads
that the stream gives it), then the stream, in which they overlap: its wall time against the slowest
stage, images and megapixels per second. Then the stream with the quality estimates that
`denoise-batch` makes by default, on CUDA also with CUDA graphs; and the command's peak memory for a
small and a large folder of the same images, which should not differ.

    scripts/bench folder                                200 mixed images; 50 and 2000 for memory
    scripts/bench folder --images 40 --memory 50,400
    scripts/bench folder --photographs DIR --weights tconv --json folder.json

The images are resized photographs (by default the samples) of 0.05 to 1.5 megapixels; every third
is a PNG, the others JPEG.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from denoise_batch.device import compute_bytes, cores, precision_on, torch_dtype
from denoise_batch.files.images import read_pages, write_pages
from denoise_batch.models import find_weights, load_weights, shipped_names
from denoise_batch.options import DenoiseOptions
from denoise_batch.streaming.denoiser import BatchDenoiser
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.stream import worker_threads

SAMPLES = Path(__file__).parents[2] / "docs" / "samples" / "noisy"
TARGET = 1.15  # largest wanted wall time of the stream / slowest stage alone
FLAT = 0.05  # largest wanted growth of peak memory between the two folders
# Run the command and print its peak in KiB. wait4's peak would begin at this process's size.
_PEAK = """
import sys
from denoise_batch.cli.batch import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
CHUNK = 16  # images that go through the stages together


def main(arguments: Sequence[str] | None = None) -> int:
    """Create a folder of images, measure it and print the results."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        megapixels = make_images(folder, options.images, options.photographs)
        alone = stages_alone(folder, Path(scratch) / "alone", options)
        wall = stream_seconds(folder, options, measure=False)
        rows = {"stream": wall, "stream with estimates": stream_seconds(folder, options)}
        if options.device.type == "cuda":
            changes = {"measure": False, "cuda_graphs": True}
            rows["stream with CUDA graphs"] = stream_seconds(folder, options, **changes)
        peaks = dict(memory_peaks(folder, Path(scratch), options))
    slowest = max(alone.values())
    result = {
        "images": options.images,
        "megapixels": megapixels,
        "device": str(options.device),
        "weights": options.weights,
        "threads": options.threads,
        "stages_alone_s": alone,
        "stream_s": wall,
        "measured_stream_s": rows["stream with estimates"],
        "graphs_stream_s": rows.get("stream with CUDA graphs"),
        "images_per_s": options.images / wall,
        "megapixels_per_s": megapixels / wall,
        "wall_over_slowest": wall / slowest,
        "sum_over_wall": sum(alone.values()) / wall,
        "peak_bytes": peaks,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"{options.images} images, {megapixels:.1f} MP, {options.weights}")
    for heading in ("", "seconds", "images/s", "MP/s"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {f"{stage} alone": seconds for stage, seconds in alone.items()} | rows
    for name, seconds in rows.items():
        row = (options.images / seconds, megapixels / seconds)
        table.add_row(name, f"{seconds:.2f}", *(f"{value:.2f}" for value in row))
    console.print(table)
    console.print(
        f"wall over slowest stage: {wall / slowest:.2f} (target {TARGET}); "
        f"all stages over wall: {sum(alone.values()) / wall:.2f}",
        highlight=False,
    )
    if peaks:
        shown = ", ".join(f"{count} images {peak / 2**20:.0f} MiB" for count, peak in peaks.items())
        growth = max(peaks.values()) / min(peaks.values()) - 1
        console.print(f"peak memory: {shown}: ±{growth:.1%} (target {FLAT:.0%})", highlight=False)
    return 0


def make_images(folder: Path, count: int, photographs: Path) -> float:
    """Fill a folder with images of mixed sizes and formats; return their megapixels."""
    folder.mkdir()
    sources = sorted(p for p in photographs.iterdir() if p.suffix.lower() in {".png", ".jpg"})
    if not sources:
        raise SystemExit(f"bench folder: {photographs}: contains no .png or .jpg")
    chance = random.Random(0)
    pixels = 0
    for number in range(count):
        side = chance.uniform(0.05e6, 1.5e6) ** 0.5
        shape = chance.choice([4 / 3, 3 / 4, 3 / 2, 2 / 3, 1.0])
        size = (round(side * shape**0.5), round(side / shape**0.5))
        with Image.open(chance.choice(sources)) as source:
            image = source.convert("RGB").resize(size, Image.Resampling.NEAREST)
        suffix = ".png" if number % 3 == 0 else ".jpg"
        image.save(folder / f"{number:05}{suffix}", quality=92)
        pixels += size[0] * size[1]
    return pixels / 1e6


def stages_alone(folder: Path, output: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of each stage over the whole folder while no other stage runs."""
    network = load_weights(find_weights(options.weights)).network.to(options.device)
    precision = torch_dtype(precision_on("auto", options.device))
    denoiser = BatchDenoiser(
        network, options.device, memory=compute_bytes(options.device), precision=precision
    )
    workers = worker_threads(denoiser)
    seconds = {"decode": 0.0, "network": 0.0, "encode": 0.0}
    paths = sorted(folder.iterdir())
    list(denoiser.denoise(read_pages(paths[0])))  # warm up
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            began = time.perf_counter()
            files = list(pool.map(read_pages, chunk))
            decoded = time.perf_counter()
            outputs = [next(denoiser.denoise(pages)) for pages in files]
            samples = [output.wait()[0] for output in outputs if not isinstance(output, Exception)]
            denoised = time.perf_counter()
            targets = [output / path.name for path in chunk]
            list(pool.map(write_pages, targets, files, [[pixels] for pixels in samples]))
            encoded = time.perf_counter()
            seconds["decode"] += decoded - began
            seconds["network"] += denoised - decoded
            seconds["encode"] += encoded - denoised
    return seconds


def stream_seconds(folder: Path, options: argparse.Namespace, **changes: bool) -> float:
    """Return the stream's wall time over the folder, without loading the network."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as output:
        session = Session(
            DenoiseOptions(
                (str(folder),),
                Path(output),
                weights=options.weights,
                device=str(options.device),
                **changes,
            )
        )
        summary = session.run(session.jobs())
    if summary.exit_code:
        raise SystemExit(f"bench folder: exit code {summary.exit_code}")
    return summary.seconds


def memory_peaks(
    folder: Path, scratch: Path, options: argparse.Namespace
) -> Iterator[tuple[int, int]]:
    """Yield (images, peak resident bytes) of the command for folders of several sizes."""
    if not Path("/proc/self/status").exists():
        return
    paths = sorted(folder.iterdir())
    for count in options.memory:
        many = scratch / f"many-{count}"
        many.mkdir()
        chosen = _spread(paths, count) if count < len(paths) else paths
        for number in range(count):
            source = chosen[number % len(chosen)]
            (many / f"{number:06}{source.suffix}").hardlink_to(source)
        command = [sys.executable, "-c", _PEAK, str(many), "--quiet"]
        command += ["-w", options.weights, "-d", str(options.device)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench folder: denoise-batch ended with {done.returncode}")
        shutil.rmtree(scratch / f"many-{count}-denoised")
        yield count, int(done.stdout.splitlines()[-1]) * 1024


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Choose images of all sizes, including the largest, which needs the most memory."""

    def pixels(path: Path) -> int:
        with Image.open(path) as image:
            return image.width * image.height

    by_size = sorted(paths, key=pixels)
    return sorted(by_size[(number + 1) * len(paths) // count - 1] for number in range(count))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench folder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--photographs", type=Path, default=SAMPLES, metavar="DIR")
    parser.add_argument("--weights", default=shipped_names()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument(
        "--memory",
        type=lambda text: [int(part) for part in text.split(",") if part],
        default=[50, 2000],
        metavar="N,N",
        help="folder sizes for the peak memory; '' measures none",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
