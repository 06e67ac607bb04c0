"""Compare our layers and networks with their peers: equal results first, then speed.

    scripts/bench                       all cases
    scripts/bench 'train/*' infer/unet  cases by pattern, or by part of their name
    scripts/bench --list                list the cases
    scripts/bench folder                whole folders: stages, overlap, memory (folder --help)
    scripts/bench host                  the host's work beside a GPU, and Pillow's (host --help)
    scripts/bench training-peers        training on own shots beside peers (training-peers --help)

Every provider of a case computes in a process of its own, in turn.

Exit codes: 0 done, 1 wrong results or ours failed, 2 usage, 130 Ctrl-C. A missed speed target is no
failure.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import folder
import host
import torch
import training_peers
from bounds import measure_peaks
from measure import measure
from registry import PROVIDERS, Case, cases, quick, select
from report import Run, document, print_report
from rich.console import Console
from timing import use_device

from denoise_batch.device import cores

ROUNDS = 12
QUICK_ROUNDS = 2
# Fits the columns of all providers where the output is a file or a pipe.
PLAIN_WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that the arguments name; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["folder"]:
        return folder.main(arguments[1:])
    if arguments[:1] == ["host"]:
        return host.main(arguments[1:])
    if arguments[:1] == ["training-peers"]:
        return training_peers.main(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = select(cases(options.device.type), options.patterns)
    if not chosen:
        parser.error(f"no case matches {' '.join(options.patterns)}; --list shows all")
    if options.quick:
        chosen = quick(chosen)
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    unknown = set(options.providers) - set(PROVIDERS)
    if unknown:
        parser.error(f"--providers: {', '.join(sorted(unknown))} not one of {', '.join(PROVIDERS)}")
    try:
        return _run(chosen, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(chosen: Sequence[Case], options: argparse.Namespace) -> int:
    conditions = {
        "rounds": options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        "threads": options.threads,
    }
    use_device(options.device)
    dtypes = sorted({case.dtype for case in chosen})
    peaks = measure_peaks(options.device, dtypes, is_quick=options.quick, **conditions)
    run = Run(options.device, is_quick=options.quick, peaks=peaks, **conditions)
    progress = Console(stderr=True)
    outcomes = []
    for number, case in enumerate(chosen, 1):
        progress.print(f"{number}/{len(chosen)} {case.name}", highlight=False)
        outcomes.append(measure(case, options.providers, options.device, **conditions))
        if options.json:  # after every case, so that an interrupted run keeps its results
            options.json.write_text(json.dumps(document(run, outcomes), indent=2) + "\n")
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    print_report(console, document(run, outcomes))
    return 1 if any(outcome.is_red for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "patterns", nargs="*", metavar="CASE", help="glob, or part of a case's name"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: small shapes, no torch.compile"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", default=cores())
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument(
        "--device",
        type=_device,
        default=torch.device("cpu"),
        metavar="cpu|cuda",
        help="default cpu",
    )
    parser.add_argument(
        "--providers",
        type=lambda text: tuple(text.split(",")),
        default=PROVIDERS,
        metavar="NAME,…",
        help=f"choose from {', '.join(PROVIDERS)}; eager, the reference, always runs",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _device(text: str) -> torch.device:
    if text.partition(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text}: cpu or cuda")
    return torch.device(text)


if __name__ == "__main__":
    sys.exit(main())
