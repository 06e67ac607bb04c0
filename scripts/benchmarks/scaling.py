"""Measure how training and denoising scale from 1 to N workers on this machine.

    scripts/scaling                 1 and 2 workers, all cases
    scripts/scaling --workers 1,2,4 train ray

Each worker computes on one thread, so N workers use N cores; run nothing else meanwhile. "apart" is
the machine's own limit: N independent trainings, each with its share of the tiles and of the batch.
Rates leave out the start: training counts the seconds of its steps, denoising the time from the
first file handed out to the last one written. The best of `--rounds` counts. Images are synthetic.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from denoise_batch.options import DenoiseOptions
from denoise_batch.scaling.engines import ProcessEngine, WorkersEngine
from denoise_batch.streaming.manifest import locked
from denoise_batch.streaming.session import Session

CASES = ("train", "apart", "processes", "ray")
TILES, TILE_PX, BATCH = 512, 64, 64
SIDE = 768


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; with --json write it too."""
    parser = argparse.ArgumentParser(
        prog="scripts/scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", help=f"choose from {', '.join(CASES)}; default: all")
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default: 1,2)")
    parser.add_argument("--images", type=int, default=48, help=f"of {SIDE}x{SIDE} (default: 48)")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    chosen = options.cases or list(CASES)
    if unknown := set(chosen) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    numbers = [int(number) for number in options.workers.split(",")]
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[str, dict[int, float]] = {case: {} for case in chosen}
    with tempfile.TemporaryDirectory() as folder:
        images = _pictures(Path(folder) / "images", options.images)
        measure: dict[str, Callable[[int, Path], float]] = {
            "train": lambda workers, out: _train(workers, images, out),
            "apart": lambda workers, out: _train_apart(workers, images, out),
            "processes": lambda workers, out: _denoise(workers, images, out, is_ray=False),
            "ray": lambda workers, out: _denoise(workers, images, out, is_ray=True),
        }
        for number in range(options.rounds):  # in turns, so that a slow minute affects all cases
            for case in chosen:
                for workers in numbers:
                    out = Path(folder) / f"{case}-{workers}-{number}"
                    rate = measure[case](workers, out)
                    rates[case][workers] = max(rate, rates[case].get(workers, 0.0))
    _print(rates)
    if options.json:
        figures = {"torch": torch.__version__, "cores": os.cpu_count(), "rates": rates}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _pictures(folder: Path, count: int) -> Path:
    """Create smooth images with noise, which take as long as photographs."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        coarse = torch.rand(3, 6, 6, generator=generator)
        places = torch.linspace(0, 5, SIDE).round().long()
        image = coarse[:, places][:, :, places]
        image = image + 0.1 * torch.randn(image.shape, generator=generator)
        pixels = (image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        picture = Image.frombytes("RGB", (SIDE, SIDE), bytes(pixels.flatten().tolist()))
        picture.save(folder / f"{number}.png", compress_level=1)
    return folder


def _train(workers: int, images: Path, out: Path) -> float:
    """Return tiles per second of the U-Net, `BATCH` tiles per step."""
    command = [sys.executable, "-m"]
    if workers > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
    command += _training(images, out, 1)
    subprocess.run(command, check=True, capture_output=True)
    return _tiles_a_second(out)


def _train_apart(workers: int, images: Path, out: Path) -> float:
    """Return tiles per second of several independent runs together."""
    runs = [out.with_name(f"{out.name}-{number}") for number in range(workers)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *_training(images, run, workers)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for run in runs
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a training failed")
    return sum(_tiles_a_second(run) for run in runs)


def _training(images: Path, out: Path, share: int) -> list[str]:
    """Return module and arguments of a training on 1/`share` of the work."""
    command = ["denoise_batch.training", str(images), "--network", "unet"]
    command += ["--noise", "gaussian:25", "--tiles", str(TILES // share), "--tile-px", str(TILE_PX)]
    command += ["--batch-size", str(BATCH // share), "--optimizer", "adamw", "--lr", "0.0005"]
    return [*command, "-d", "cpu", "--validation-tiles", "1", "--epochs", "2", "-o", str(out)]


def _tiles_a_second(out: Path) -> float:
    """Return tiles per second in the second epoch; the first warms up."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    second = [row for row in rows if row["epoch"] > 1]
    seconds = sum(row["seconds"] for row in second)
    return float(sum(row["images_per_s"] * row["seconds"] for row in second) / seconds)


def _denoise(workers: int, images: Path, out: Path, *, is_ray: bool) -> float:
    """Return images per second with the default weights and workers that are running."""
    options = DenoiseOptions((str(images),), out, device="cpu")
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if is_ray:
            address = stack.enter_context(_cluster(workers))
            options = replace(options, engine="ray", ray_address=address)
        with Session(options) as session:
            if not is_ray:
                devices = ["cpu"] * workers
                session.engine = ProcessEngine(options, session.storage, "", devices)
            assert isinstance(session.engine, WorkersEngine)
            jobs = session.jobs()
            # As a run does before it hands out jobs: Ray's workers look for the lock.
            for root in {job.root for job in jobs}:
                with locked(root):
                    session.engine.warm_up(jobs)
            summary = session.run(jobs)
    if summary.exit_code:
        raise SystemExit(f"{summary.results[0].reason or 'some images failed'}")
    return len(jobs) / summary.seconds


@contextmanager
def _cluster(nodes: int) -> Iterator[str]:
    """Run a Ray cluster of nodes with one core each on this machine."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**small)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def _print(rates: dict[str, dict[int, float]]) -> None:
    table = Table("case", "unit", *(f"{number}" for number in next(iter(rates.values()))), "gain")
    for case, found in rates.items():
        values = list(found.values())
        unit = "tiles/s" if case in ("train", "apart") else "images/s"
        cells = [f"{value:.2f}" for value in values]
        table.add_row(case, unit, *cells, f"{values[-1] / values[0]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
