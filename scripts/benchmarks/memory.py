"""Peak memory of a training step, measured in a process of its own: `memory.py CASE PROVIDER`.

On the CPU this is the growth of the resident set: its high-water mark over three steps (VmHWM,
reset through /proc/self/clear_refs) minus what was resident before, when parameters and images
existed and a small step had loaded the code. It counts memory whoever allocates it (torch, oneDNN,
the optimiser), which a profiler of torch's allocator does not. On CUDA it is the allocator's peak.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from problem import pose
from providers import PREPARE
from registry import Case, cases, select

STEPS = 3
TIMEOUT_S = 300


def peak_bytes(case: Case, provider: str, *, device: torch.device, threads: int) -> int | None:
    """Return the bytes that training steps need beside parameters and images; None if unknown."""
    command = [sys.executable, __file__, case.name, provider]
    command += ["--device", str(device), "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    measured: int | None = json.loads(done.stdout)
    return measured


def main() -> int:
    """Print the peak of one provider in this process, in bytes; null where it cannot be known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("provider", choices=PREPARE)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (case,) = select(cases(), [options.case])
    small = replace(case, shape=(1, case.shape[1], 32, 32))
    PREPARE[options.provider](pose(small, options.device)).run()
    runner = PREPARE[options.provider](pose(case, options.device))
    is_cuda, reset = options.device.type == "cuda", Path("/proc/self/clear_refs")
    if not is_cuda and not reset.exists():
        print("null")
        return 0
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset.write_text("5")
        before = _status_bytes("VmRSS")
    for _ in range(STEPS):
        runner.run()
    peak = torch.cuda.max_memory_allocated() if is_cuda else _status_bytes("VmHWM")
    print(peak - before)
    return 0


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    sys.exit(main())
