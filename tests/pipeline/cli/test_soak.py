"""Very many images: memory stays flat, and what is done costs next to nothing from then on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import picture

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
TICKS = os.sysconf("SC_CLK_TCK")


def resident_kib(process: int) -> int:
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") // 1024


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def started(folder: Path, weights: Path, *more: str) -> subprocess.Popen[str]:
    command = ["-m", "denoise_batch", str(folder), "-w", str(weights), "-d", "cpu"]
    options = ["--log", "json", "--no-measure", *more]
    return subprocess.Popen([sys.executable, *command, *options], stdout=subprocess.PIPE, text=True)


def naps_of(process: int) -> int:
    """How often its main thread has waited; a watch of so short pauses does so once a look."""
    status = Path(f"/proc/{process}/task/{process}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_and_a_look_is_cheap(count: int, weights: Path, tmp_path: Path) -> None:
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    pictures = []
    for index in range(20):
        picture(24, 20, index).save(tmp_path / "a.png")
        pictures.append((tmp_path / "a.png").read_bytes())
    for index in range(count):
        (imgs / f"{index:05}.png").write_bytes(pictures[index % len(pictures)])

    began, memory = time.monotonic(), []
    with started(imgs, weights) as run:
        assert run.stdout is not None
        done = 0
        for line in run.stdout:
            done += '"status": "done"' in line
            if '"status": "done"' in line and done % (count // 4) == 0:
                memory.append(resident_kib(run.pid))
    print(f"{count} images in {time.monotonic() - began:.0f} s; KiB by quarter: {memory}")
    assert (run.returncode, done) == (0, count)
    # What is told of each image is kept until the end.
    assert memory[3] - memory[0] < 20_000 + 2 * count

    pause = 0.05
    with started(imgs, weights, "--watch", str(pause)) as look:
        began, told = time.monotonic(), []
        assert look.stdout is not None
        for line in look.stdout:
            told.append(json.loads(line))
            if told[-1]["event"] == "end":
                break
        print(f"all of it again: {time.monotonic() - began:.1f} s, {told[-1]['seconds']} s to plan")
        assert told[-1]["skipped"] == count
        time.sleep(0.5)
        before, naps = processor_seconds(look.pid), naps_of(look.pid)
        time.sleep(2.0 if count < 1000 else 20.0)
        spent, looks = processor_seconds(look.pid) - before, naps_of(look.pid) - naps
        look.send_signal(signal.SIGTERM)
    print(f"watch: {spent / looks * 1000:.1f} ms of processor time a look")
    assert look.returncode == 143
    assert spent / looks < 0.02 + count * 1e-5
