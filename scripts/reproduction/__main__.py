"""Reproduce the report, repair it, and write docs/reproduction.md with what came out.

Every stage leaves its results in OUTPUT/reproduction/results/STAGE.json. A run that is there is not
trained again, and a killed one goes on from its last checkpoint: call again until all is done.
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
# This folder and scripts/data are folders of scripts and no packages.
sys.path[:0] = [str(HERE), str(HERE.parent / "data")]

import torch  # noqa: E402 (after the path)
from document import write_document  # noqa: E402
from lab import Lab  # noqa: E402
from scale import SCALES  # noqa: E402
from stages import STAGES  # noqa: E402

from denoise_batch.kernels import DenoiseBatchError  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that are asked for, then write the document; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "corpus", type=Path, nargs="?", default=CORPUS, help="photographs; made if not there"
    )
    parser.add_argument(
        "--quick", action="store_true", help="less of everything, in less than 2 minutes"
    )
    parser.add_argument(
        "--scale", choices=SCALES, help="whole is the default; short: the whole data, less training"
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", help=f"of {', '.join(STAGES)}, document")
    parser.add_argument("--kodak", type=Path, help="folder of the Kodak photographs, for `cost`")
    parser.add_argument("--authors", type=Path, help="the report authors' published weights")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reproduction")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of reproduction.md (whole, short: docs; otherwise in --work)",
    )
    options = parser.parse_args(arguments)

    scale = options.scale or ("quick" if options.quick else "whole")
    asked = options.only.split(",") if options.only else [*STAGES, "document"]
    unknown = sorted(set(asked) - {*STAGES, "document"})
    if unknown:
        parser.error(f"--only: there is no stage {', '.join(unknown)}")
    if asked != ["document"]:
        if options.corpus == CORPUS and not CORPUS.is_dir():
            subprocess.run([ROOT / "scripts" / "corpus", CORPUS], check=True)
        for path in (options.corpus, options.kodak, options.authors):
            if path is not None and not path.exists():
                parser.error(f"{path}: there is no such file or folder")
    # The short scale is the whole one's beginning: a run that is only longer goes on from it.
    is_real = scale in ("whole", "short")
    work = options.work / ("whole" if is_real else scale)
    output = options.output or (ROOT / "docs" if is_real else work)
    lab = Lab(SCALES[scale], options.corpus, options.kodak, options.authors, work, output)
    # Tiny operations are slower on two threads, and the same on any machine on one.
    torch.set_num_threads(1)
    try:
        for name, stage in STAGES.items():
            if name in asked:
                stage(lab)
        write_document(lab)
    except DenoiseBatchError as error:
        print(f"scripts/reproduce: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"written: {os.path.relpath(lab.output / 'reproduction.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
