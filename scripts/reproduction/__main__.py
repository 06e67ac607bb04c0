"""Reproduce the course paper, repair its networks and write docs/reproduction.md.

Every experiment writes its results to OUTPUT/reproduction/results/EXPERIMENT.json. Finished runs
are not repeated, and an interrupted one resumes from its last checkpoint: call it again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = ROOT / "corpus"
# These folders are no packages: their files import each other by their bare names.
sys.path[:0] = [str(HERE), str(HERE.parent / "data"), str(HERE.parent / "benchmarks")]

import torch  # noqa: E402 (after the path)
from config import SCALES  # noqa: E402
from document import write_document  # noqa: E402
from experiments import EXPERIMENTS  # noqa: E402
from reproduction import Reproduction  # noqa: E402

from denoise_batch.kernels import DenoiseBatchError  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments, then write the document; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "corpus",
        type=Path,
        nargs="?",
        default=CORPUS,
        help="folder of photographs; built by scripts/corpus if missing",
    )
    parser.add_argument("--quick", action="store_true", help="smoke test, about 2 minutes")
    parser.add_argument(
        "--scale", choices=SCALES, help="default: whole; short: all data, less training"
    )
    choices = ", ".join([*EXPERIMENTS, "document"])
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"choose from {choices}")
    parser.add_argument("--kodak", type=Path, help="folder of the Kodak photographs, for `cost`")
    parser.add_argument("--authors", type=Path, help="the course paper's published weights")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reproduction")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for reproduction.md (default: docs for whole and short, else in --work)",
    )
    options = parser.parse_args(arguments)

    scale = options.scale or ("quick" if options.quick else "whole")
    asked = options.only.split(",") if options.only else [*EXPERIMENTS, "document"]
    unknown = sorted(set(asked) - {*EXPERIMENTS, "document"})
    if unknown:
        parser.error(f"--only: unknown experiment {', '.join(unknown)}")
    if asked != ["document"]:
        if options.corpus == CORPUS and not CORPUS.is_dir():
            subprocess.run([ROOT / "scripts" / "corpus", CORPUS], check=True)
        for path in (options.corpus, options.kodak, options.authors):
            if path is not None and not path.exists():
                parser.error(f"{path}: no such file or folder")
    # The short scale is the beginning of the whole one, which resumes from it.
    is_real = scale in ("whole", "short")
    work = options.work / ("whole" if is_real else scale)
    output = options.output or (ROOT / "docs" if is_real else work)
    reproduction = Reproduction(
        SCALES[scale], options.corpus, options.kodak, options.authors, work, output
    )
    # Tiny operations are slower on two threads; on one, results do not depend on the machine.
    torch.set_num_threads(1)
    try:
        for name, experiment in EXPERIMENTS.items():
            if name in asked:
                experiment(reproduction)
        write_document(reproduction)
    except DenoiseBatchError as error:
        print(f"scripts/reproduce: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"written: {os.path.relpath(reproduction.output / 'reproduction.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
