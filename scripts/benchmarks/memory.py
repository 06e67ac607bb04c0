"""Peak memory of a training step, in a process of its own: `memory.py CASE PROVIDER`.

On the CPU it is the growth of the resident set: its high-water mark over three steps (VmHWM, reset
through /proc/self/clear_refs just before the first) less what was resident then, when parameters
and images were there already and a small step had loaded the code. So it counts what the user's
machine must have, whoever allocates it (torch, oneDNN, the optimiser's state, gradients), and not
what a profiler of torch's allocator happens to see. On CUDA it is the allocator's own peak.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from problem import Runner, pose
from providers import PREPARE
from registry import Case, cases, select

STEPS = 3
TIMEOUT_S = 300


def peak_bytes(case: Case, provider: str, *, device: torch.device, threads: int) -> int | None:
    """Bytes that training steps need beside parameters and images; None if it cannot be known."""
    command = [sys.executable, __file__, case.name, provider]
    command += ["--device", str(device), "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    measured: int | None = json.loads(done.stdout)["peak_bytes"]
    return measured


def main() -> int:
    """Measure one provider in this process and print {"peak_bytes": …}."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
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
    peak = _cuda_peak if options.device.type == "cuda" else _resident_peak
    print(json.dumps({"peak_bytes": peak(runner)}))
    return 0


def _resident_peak(runner: Runner) -> int | None:
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")
    before = _status_bytes("VmRSS")
    for _ in range(STEPS):
        runner.run()
    return _status_bytes("VmHWM") - before


def _cuda_peak(runner: Runner) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(STEPS):
        runner.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


if __name__ == "__main__":
    sys.exit(main())
