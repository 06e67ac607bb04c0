"""The commands that scripts/gpu-check runs and reads: denoise-batch, denoise-train, bench."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import DOUBTFUL, Ended, Report, is_doubt

from denoise_batch.files.images import read_pages
from denoise_batch.metrics import psnr_of_mse

HERE = Path(__file__).parent
CLEAN = HERE.parents[1] / "docs" / "samples" / "clean"
# What denoise-train says of its progress, and of so short a run.
_STEPS = re.compile(r"step \d|\d+ steps|\d+ to train on|warning: the best weights")


@dataclass(frozen=True)
class Denoised:
    """What a run of denoise-batch left.

    Attributes:
        output: the folder of its pictures.
        ended: its process.
        end: the last event of its log.
        count: of its files.
        first_s: seconds from its start to its first file; None without any.
        whole_s: seconds from its start to its end.
    """

    output: Path
    ended: Ended
    end: Mapping[str, Any]
    count: int
    first_s: float | None
    whole_s: float

    @property
    def kernels(self) -> str:
        """What computed, in words."""
        return str(self.end.get("kernels", ""))

    @property
    def mark(self) -> str:
        """For its row: whether something else computed than it was to be."""
        return f" {DOUBTFUL}" * (self.ended.is_doubtful or is_doubt(self.kernels))


def denoise(
    report: Report,
    name: str,
    folder: Path,
    *arguments: str,
    device: str | None = None,
    environment: Mapping[str, str | None] | None = None,
    measure: bool = False,
    may_fail: bool = False,
) -> Denoised:
    """Run denoise-batch over a folder, into one of its own.

    Raises:
        ChildError: it failed, or took too long.
    """
    output = report.scratch / f"out-{len(list(report.scratch.iterdir()))}"
    command = [sys.executable, "-m", "denoise_batch", str(folder), "-o", str(output)]
    command += ["--device", device or report.device, "--log", "json"]
    command += [*([] if measure else ["--no-measure"]), *arguments]
    started, events, firsts = time.monotonic(), [], []

    def hear(line: str) -> None:
        with suppress(ValueError):
            events.append(json.loads(line))
            if events[-1]["event"] == "image":
                firsts.append(time.monotonic() - started)

    ended = report.child(
        name, command, most_s=120, on_line=hear, environment=environment, may_fail=may_fail
    )
    end: Mapping[str, Any] = next(
        (event for event in reversed(events) if event["event"] == "end"), {}
    )
    first_s = firsts[0] if firsts else None
    return Denoised(output, ended, end, len(firsts), first_s, ended.seconds)


def compare(expected: Path, found: Path) -> tuple[int, float, float]:
    """Largest difference of the pictures of two folders, share of samples that differ, PSNR.

    The PSNR of equal pictures is ∞.
    """
    most, differing, squares, count = 0, 0, 0.0, 0
    for path in sorted(expected.glob("*.png")):
        (left,), (right,) = read_pages(path), read_pages(found / path.name)
        difference = (left.samples.int() - right.samples.int()).abs()
        most = max(most, int(difference.max()))
        differing += int((difference > 0).sum())
        squares += float(difference.double().square().sum())
        count += difference.numel()
    return most, differing / count, psnr_of_mse(squares / (255**2 * count))


@contextmanager
def utilisation(report: Report) -> Iterator[list[float]]:
    """The GPU's utilisation in percent, while something runs; none where nvidia-smi is missing."""
    busy: list[float] = []
    index = report.device.partition(":")[2] or "0"
    fields = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    command = ["nvidia-smi", "-i", index, *fields, "-lms", "200"]
    if not report.is_gpu or not shutil.which("nvidia-smi"):
        yield busy
        return
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield busy
    finally:
        process.kill()
        said, _ = process.communicate()
        # Begin and end, where the command loads and leaves, are no work.
        busy += [float(word) for word in said.split() if word.isdecimal() and word != "0"]


def train_rates(
    report: Report,
    name: str,
    optimizer: str,
    *arguments: str,
    steps: int,
    precision: str,
    shape: Sequence[str],
) -> tuple[list[float], Ended]:
    """Images per second of each part of a run.

    Raises:
        ChildError: it failed, or took too long.
    """
    run = report.scratch / f"run-{len(list(report.scratch.iterdir()))}"
    command = [sys.executable, "-m", "denoise_batch.training", str(CLEAN)]
    command += ["-o", str(run), "--network", "unet-level", "--noise", "gaussian:0-55"]
    command += ["--loss", "log", "--targets", "clean", "--optimizer", optimizer]
    command += ["--precision", precision, "--device", report.device, "--steps", str(steps)]
    ended = report.child(name, [*command, *shape, *arguments], most_s=90, progress=_STEPS)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [float(json.loads(line)["images_per_s"]) for line in lines], ended


@dataclass(frozen=True)
class Benched:
    """Of scripts/bench: its cases, and the names of those in which something else computed."""

    cases: Sequence[Mapping[str, Any]]
    doubtful: set[str]


def bench(report: Report, name: str, arguments: Sequence[str], kernels: str = "auto") -> Benched:
    """Run scripts/bench; what it found until its time was over counts."""
    path = report.scratch / f"{name}.json"
    command = [sys.executable, str(HERE), *arguments]
    command += ["--device", report.device, "--json", str(path)]
    environment = {"DENOISE_BATCH_KERNELS": kernels}
    # Red cases are exit code 1 too, and say more.
    ended = report.child(name, command, most_s=240, environment=environment, may_fail=True)
    if not path.exists() or ended.is_late:
        last = " / ".join(ended.warnings[-3:])
        late = f"scripts/bench was ended after {ended.seconds:.0f} s: {last}"
        report.note(late) if ended.is_late else report.fail(f"scripts/bench: {last}")
    cases = json.loads(path.read_text())["cases"] if path.exists() else []
    return Benched(cases, ended.doubtful_cases())
