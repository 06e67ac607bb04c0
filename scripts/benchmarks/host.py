"""Measure the host's work beside a GPU: `scripts/bench host`.

Folders of PNG and of JPEG files go through the stream as beside a GPU, but the network costs
nothing: pages come back as they are. What is left is decoding, packing, estimates, encoding and
writing. "ours" leaves the estimates out; "estimates" is the command's default. "pillow" is what
they are compared with: Pillow decodes and encodes the same files, with the same settings, in as
many processes as there are cores.

    scripts/bench host                  1 and 2 cores, 12 images of 1.5 megapixels a folder
    scripts/bench host --network 1400   also how many cores feed a network of 1400 MP/s
    scripts/bench host --cores 8 --images 64

Every provider is a process that is kept on its cores; they take turns, medians count. First all
pixels are compared: unless they are equal, there is no number, and the exit code is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from denoise_batch.process import tune_process

# The processes of Pillow fork, and must not have torch: it is imported where it is needed.

SAMPLES = Path(__file__).parents[2] / "docs" / "samples" / "noisy"
PILLOW, OURS, ESTIMATES = "pillow", "ours", "estimates"
PROVIDERS = (PILLOW, OURS, ESTIMATES)
TARGET = 0.85  # smallest wanted ratio of our megapixels per second to Pillow's
QUALITY, PNG_LEVEL = 95, 2  # the command's defaults
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    ".png": {"compress_level": PNG_LEVEL},
    ".jpg": {"quality": QUALITY, "subsampling": "4:4:4"},
}
WEIGHTS = "tconv"  # loaded, never run

Pass = Callable[[Path, Path], float]


@dataclass(frozen=True)
class Row:
    """What a provider reached.

    Attributes:
        kind: of the files: png or jpg.
        cores: that it had.
        provider: one of `PROVIDERS`.
        seconds: for the folder, the median.
        megapixels_per_s: the same as a rate.
        ratio: of that rate to Pillow's on as many cores.
    """

    kind: str
    cores: int
    provider: str
    seconds: float
    megapixels_per_s: float
    ratio: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Create the folders, measure every provider and print the rates."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.serve:
        return _serve(options.serve, max(options.cores))
    if not hasattr(os, "sched_setaffinity"):
        parser.error("needs Linux, which keeps a process on some cores")
    there = len(os.sched_getaffinity(0))
    if max(options.cores) > there:
        parser.error(f"--cores {max(options.cores)}: this process may use {there}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_folders(Path(scratch), options)
        passes = _measure(folders, Path(scratch), options)
        if not passes:
            return 1
    megapixels = options.images * options.megapixels
    rows = _rows(passes, megapixels)
    needed = cores_needed(rows, options.network) if options.network else {}
    if options.json:
        result = {
            "images": options.images,
            "megapixels": megapixels,
            "rounds": options.rounds,
            "rows": [asdict(row) for row in rows],
            "network_megapixels_per_s": options.network,
            "cores_needed": needed,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    _print(rows, options)
    for kind, cores in needed.items():
        print(f"a network of {options.network:g} MP/s takes {cores:.1f} cores for {kind} files")
    return 0


def cores_needed(rows: Sequence[Row], network: float) -> dict[str, float]:
    """Cores that feed a network, by kind of file: its rate by that of one core of the host.

    Args:
        rows: of the command's default; those of the most cores count.
        network: megapixels per second of the network alone.
    """
    most = max(row.cores for row in rows)
    return {
        row.kind: network / (row.megapixels_per_s / row.cores)
        for row in rows
        if row.provider == ESTIMATES and row.cores == most
    }


def make_folders(scratch: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Fill a folder of PNG and one of JPEG files with the same resized photographs."""
    sources = sorted(p for p in options.photographs.iterdir() if p.suffix.lower() in SETTINGS)
    if not sources:
        raise SystemExit(f"bench host: {options.photographs}: contains no .png or .jpg")
    folders = {suffix[1:]: scratch / suffix[1:] for suffix in SETTINGS}
    for folder in folders.values():
        folder.mkdir()
    height = round((options.megapixels * 1e6 / 1.5) ** 0.5)
    for number in range(options.images):
        with Image.open(sources[number % len(sources)]) as source:
            size = (round(1.5 * height), height)
            image = source.convert("RGB").resize(size, Image.Resampling.NEAREST)
        for kind, folder in folders.items():
            image.save(folder / f"{number:04}.{kind}", quality=92)
    return folders


def differing(one: Path, other: Path) -> list[str]:
    """Names of the images of one folder whose pixels are not those of the other's."""
    return [
        path.name
        for path in sorted(one.iterdir())
        if path.suffix in SETTINGS and not _are_equal(path, other / path.name)
    ]


def _are_equal(one: Path, other: Path) -> bool:
    if not other.exists():
        return False
    with Image.open(one) as left, Image.open(other) as right:
        return (
            left.mode == right.mode
            and left.size == right.size
            and (left.tobytes() == right.tobytes())
        )


Passes = dict[tuple[str, int, str], list[float]]


def _measure(folders: Mapping[str, Path], scratch: Path, options: argparse.Namespace) -> Passes:
    """Seconds of each pass by kind, cores and provider; none if pixels differ."""
    seconds: Passes = {}
    with ExitStack() as processes:
        workers = {
            (cores, provider): processes.enter_context(_Worker(provider, cores))
            for cores in options.cores
            for provider in PROVIDERS
        }
        for kind, folder in folders.items():
            outputs = {key: scratch / f"{kind}-{key[0]}-{key[1]}" for key in workers}
            for key, worker in workers.items():  # warms up
                worker.turn(folder, outputs[key])
            expected = outputs[options.cores[0], PILLOW]
            for (cores, provider), output in outputs.items():
                if wrong := differing(expected, output):
                    print(f"{kind}: {provider} on {cores} cores: other pixels in {wrong[0]}")
                    return {}
            order = list(workers)
            for number in range(options.rounds):
                first = number % len(order)
                for key in order[first:] + order[:first]:
                    with tempfile.TemporaryDirectory(dir=scratch) as empty:
                        spent = workers[key].turn(folder, Path(empty) / "out")
                    seconds.setdefault((kind, *key), []).append(spent)
    return seconds


def _rows(passes: Passes, megapixels: float) -> list[Row]:
    rates = {key: megapixels / median(seconds) for key, seconds in passes.items()}
    return [
        Row(kind, cores, name, megapixels / rate, rate, rate / rates[kind, cores, PILLOW])
        for (kind, cores, name), rate in sorted(rates.items())
    ]


def _print(rows: Sequence[Row], options: argparse.Namespace) -> None:
    print(f"{options.images} images of {options.megapixels:g} MP, {options.rounds} rounds")
    print(f"{'files':6}{'cores':>6}  {'provider':10}{'MP/s':>8}{'a core':>8}{'of Pillow':>11}")
    for row in rows:
        rate = row.megapixels_per_s
        print(
            f"{row.kind:6}{row.cores:6}  {row.provider:10}{rate:8.2f}{rate / row.cores:8.2f}"
            f"{row.ratio:11.2f}"
        )
    print(f"wanted of Pillow: {TARGET}")


class _Worker:
    """A provider's process, on the first of this process's cores. Leaving the context ends it."""

    def __init__(self, provider: str, cores: int) -> None:
        command = [sys.executable, __file__, "--serve", provider, "--cores", str(cores)]
        with _confined(cores):  # children begin with it
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    def turn(self, folder: Path, output: Path) -> float:
        """Return the seconds of a pass over a folder into a new one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), str(output)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench host: a process ended with {self._process.wait()}")
        return float(json.loads(answer))

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def _confined(cores: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _serve(provider: str, cores: int) -> int:
    """Be a provider's process: make a pass for each line, and answer with its seconds."""
    with ExitStack() as resources:
        if provider == PILLOW:
            pool = resources.enter_context(get_context("fork").Pool(cores))
            make: Pass = partial(_pillow_pass, pool)
        else:
            tune_process()  # as the command does
            make = partial(_our_pass, provider == ESTIMATES)
        for line in sys.stdin:
            folder, output = map(Path, json.loads(line))
            print(json.dumps(make(folder, output)), flush=True)
    return 0


def _pillow_pass(pool: Any, folder: Path, output: Path) -> float:
    output.mkdir(parents=True)
    started = time.perf_counter()
    pool.map(partial(_recode, output), sorted(folder.iterdir()), chunksize=1)
    return time.perf_counter() - started


def _recode(output: Path, path: Path) -> None:
    with Image.open(path) as image:
        image.save(output / path.name, **SETTINGS[path.suffix])


def _our_pass(is_measured: bool, folder: Path, output: Path) -> float:
    from free_network import free_session

    from denoise_batch.options import DenoiseOptions

    options = DenoiseOptions(
        (str(folder),),
        output,
        weights=WEIGHTS,
        device="cpu",
        quality=QUALITY,
        png_level=PNG_LEVEL,
        measure=is_measured,
    )
    with free_session(options) as session:
        summary = session.run(session.jobs())
    if summary.exit_code:
        raise SystemExit(f"bench host: exit code {summary.exit_code}")
    return summary.seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parser.add_argument("--images", type=int, default=12, help="in each folder")
    parser.add_argument("--megapixels", type=float, default=1.5, help="of an image")
    parser.add_argument("--photographs", type=Path, default=SAMPLES, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cores",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1, 2][:there],
        metavar="N,N",
        help="of each process (default 1,2)",
    )
    parser.add_argument(
        "--network", type=float, metavar="MP/S", help="of the network alone: how many cores feed it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--serve", choices=PROVIDERS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
