"""A child process: kernels with a bug put in, and what the guarded interpreter says to them.

    python -m triton_children.mutants NAME …

Each mutant is a copy of kernels/ with one piece of source replaced. Its cases must fail: by a wrong
result, by NaN where nothing was written, or by what the guard raises. A JSON line for each.
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "DENOISE_BATCH_KERNELS": "triton"}

import torch
from triton_children import interpreted, offsets
from triton_children.bugs import MUTANTS, Mutant
from triton_children.cases import CASES, OFFSETS

import denoise_batch.kernels

SOURCE = Path(denoise_batch.kernels.__file__).parent


def main(names: Sequence[str]) -> None:
    """Run the named mutants."""
    torch.set_num_threads(1)
    interpreted.poison()
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        chosen = [mutant for mutant in MUTANTS if mutant.name in names]
        for index, mutant in enumerate(chosen):
            started = time.process_time()
            said = [run(mutant, Path(folder), index, case) for case in mutant.cases]
            seconds = round(time.process_time() - started, 2)
            print(json.dumps({"name": mutant.name, "said": said, "seconds": seconds}), flush=True)


def run(mutant: Mutant, folder: Path, index: int, case_name: str) -> str:
    """What happened, "" if the case passed."""
    package = f"mutant_{index}"
    if not (folder / package).exists():
        shutil.copytree(SOURCE, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / package / "cuda" / mutant.file
        source = path.read_text()
        assert mutant.old in source, f"{mutant.name}: {mutant.file} has changed"
        path.write_text(source.replace(mutant.old, mutant.new))
        importlib.invalidate_caches()
    dispatch: Any = importlib.import_module(f"{package}.dispatch")
    try:
        kernels = dispatch.load_kernels(torch.device("cpu"))
        if case_name in OFFSETS:
            return offsets.difference(case_name, kernels)
        error = interpreted.error(CASES[case_name], kernels)
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    allowed = interpreted.tolerance(case_name)
    return "" if error <= allowed else f"error {error:.1e}, allowed {allowed:.1e}"


if __name__ == "__main__":
    main(sys.argv[1:])
