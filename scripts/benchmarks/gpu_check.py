"""Check the CUDA path on this machine's GPU and write a Markdown report to send us.

    scripts/gpu-check                           all parts that fit into 9 minutes
    scripts/gpu-check --parts pixels,forward    these alone
    scripts/gpu-check --minutes 30 --cases 'infer/*'    also more cases of scripts/bench
    scripts/gpu-check --device cpu --quick      a rehearsal without a GPU

Parts, in this order: {parts}. The report is written with every line, so that one that was ended
early is one too. Where no .venv is and python3 has all that it takes, nothing is installed
(docs/gpu.md).

Exit codes: 0 done, 1 something was wrong, 2 usage, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from gpu_parts import PARTS, networks
from gpu_report import LEGEND, Report
from report import device_name

ROOT = Path(__file__).parents[2]
MINUTES = 9.0  # of the ten that a GPU may be lent for


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; a part that fails says so and does not stop the others."""
    parser = _parser()
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu rehearses the command")
    name = device_name(device)
    path = options.output or _default_path(name, is_gpu=device.type == "cuda")
    head = [f"# denoise-batch on {name}", ""]
    if device.type != "cuda":
        head += ["**A rehearsal without a GPU: these figures are no result.**", ""]
    head += [f"`scripts/gpu-check {' '.join(sys.argv[1:])}`, {datetime.now(UTC):%Y-%m-%d %H:%M}"]
    head += [f"UTC. {LEGEND}"]
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory() as scratch:
        report = Report(
            path,
            head,
            device=options.device,
            is_quick=options.quick,
            deadline=time.monotonic() + 60 * options.minutes,
            scratch=Path(scratch),
        )
        try:
            _check(report, options)
        except KeyboardInterrupt:
            return 130
        finally:
            report.end_processes()
            print(f"written to {path}", file=sys.stderr)
    return 1 if report.wrong else 0


def _check(report: Report, options: argparse.Namespace) -> None:
    for part in PARTS:
        if part.name not in options.parts:
            continue
        if report.left_s < (0 if options.quick else part.least_s):
            report.skip(part.name, f"{max(report.left_s, 0):.0f} s were left; --parts {part.name}")
            continue
        report.begin(part.name, part.title)
        run = partial(networks, patterns=options.cases) if part.name == "networks" else part.run
        started = time.monotonic()
        try:
            run(report)
        except Exception as error:  # the other parts are still worth having
            report.give_up(error)
        report.end(time.monotonic() - started)


def _default_path(name: str, *, is_gpu: bool) -> Path:
    if not is_gpu:
        return ROOT / "runs" / "gpu-check.md"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return ROOT / "docs" / "gpu-results" / f"{slug}-{datetime.now(UTC):%Y-%m-%d-%H%M}.md"


def _end(number: int, frame: Any) -> NoReturn:
    """End the processes too, on the way out."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description=(__doc__ or "").format(parts=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def parts(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            known = ", ".join(names)
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {known}")
        return chosen

    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--parts", type=parts, default=names, metavar="NAME,…", help="these alone")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"of all parts together ({MINUTES:g})"
    )
    parser.add_argument(
        "--cases",
        type=lambda text: text.split(","),
        default=(),
        metavar="CASE,…",
        help="of scripts/bench, for the last part",
    )
    parser.add_argument("--quick", action="store_true", help="smoke test with small shapes")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: in docs/gpu-results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
