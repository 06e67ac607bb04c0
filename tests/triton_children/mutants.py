"""A child process: kernels with a bug put in, and what the guarded interpreter says to them.

    python -m triton_children.mutants

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "DENOISE_BATCH_KERNELS": "triton"}

import torch
from triton_children import interpreted
from triton_children.cases import CASES

import denoise_batch.kernels

SOURCE = Path(denoise_batch.kernels.__file__).parent


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in a file of kernels/cuda; `cases` are what should notice."""

    name: str
    file: str
    old: str
    new: str
    cases: tuple[str, ...]


SMALL, FLAT = "k3-p1-33-to-40-forward-float32", "k4-s2-3-to-24-forward-float32"
UP, BACK = "transposed-k3-s2-p1-op1-forward-float32", "k2-s2-odd-image-backward-float32"
MUTANTS = (
    Mutant("nothing", "correlate.py", "", "", (SMALL, FLAT, UP, BACK)),
    Mutant(
        "correlate: positions beyond the last are read",
        "correlate.py",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)",
        (SMALL,),
    ),
    Mutant(
        "correlate: positions beyond the last are written",
        "correlate.py",
        "    mask = mask_m[:, None] & mask_n[None, :]\n",
        "    mask = mask_n[None, :] & (m >= 0)[:, None]\n",
        (SMALL,),
    ),
    Mutant(
        "correlate: the padding on top is not zero",
        "correlate.py",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m",
        "inside = (y < height) & (x >= 0) & (x < width) & mask_m",
        (SMALL,),
    ),
    Mutant(
        "correlate: channels beyond the last are undefined",
        "correlate.py",
        "mask=inside[:, None] & mask_k[None, :],\n                other=0.0,",
        "mask=inside[:, None] & mask_k[None, :],",
        (SMALL,),
    ),
    Mutant(
        "correlate: tiles of columns overlap",
        "correlate.py",
        "n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)",
        "n = tl.program_id(1) * (BLOCK_N - 1) + tl.arange(0, BLOCK_N)",
        ("k1-130-columns-forward-float32",),
    ),
    Mutant(
        "correlate: the flat axis mixes up row and column",
        "correlate.py",
        "y = top[:, None] + (tap // KW)[None, :]",
        "y = top[:, None] + (tap % KW)[None, :]",
        (FLAT,),
    ),
    Mutant(
        "correlate: shuffled columns in torch's order",
        "correlate.py",
        "within = n // (OUT_W * PIXEL) * out_pitch + n % (OUT_W * PIXEL)",
        "within = n % OUT_W * PIXEL + n // OUT_W % OUT_H * out_pitch + n // (OUT_H * OUT_W)",
        ("fused-head-shuffle2-float32",),
    ),
    Mutant(
        "stamp: phases start at the wrong tap",
        "stamp.py",
        "first_h = (phase_h + PAD_H) % STRIDE_H",
        "first_h = phase_h % STRIDE_H",
        (UP,),
    ),
    Mutant(
        "stamp: a phase's last row is beyond the image",
        "stamp.py",
        "& (oh < out_height) & (ow < out_width)",
        "& (ow < out_width)",
        (BACK,),
    ),
    Mutant(
        "weight gradient: parts overlap",
        "weight_gradient.py",
        "end = tl.minimum(start + part, positions)",
        "end = positions",
        ("split-weight-gradient-float32",),
    ),
    Mutant(
        "weight gradient: all parts at one address",
        "weight_gradient.py",
        "target = tl.program_id(2).to(tl.int64) * (ROWS * CS)",
        "target = tl.program_id(2).to(tl.int64) * 0",
        ("split-weight-gradient-float32",),
    ),
    Mutant(
        "weight gradient: in the kernel's layout, not the parameter's",
        "weight_gradient.py",
        "target = (small * CL + large) * TAPS + tap",
        "target = offset + 0 * (small + large + tap)",
        (BACK,),
    ),
    Mutant(
        "loss: every program's sum at one address",
        "loss.py",
        "tl.store(sums_ptr + tl.program_id(0), tl.sum(difference * difference, axis=0))",
        "tl.store(sums_ptr, tl.sum(difference * difference, axis=0))",
        ("mse-5003-float32",),
    ),
    Mutant(
        "mask: the gradient passes where the output is 0",
        "masked.py",
        "output <= 0.0",
        "output < 0.0",
        ("k4-s2-3-to-24-backward-float32",),
    ),
    Mutant(
        "optimiser: a tensor's last block is not masked",
        "optim.py",
        "if start + BLOCK <= size:",
        "if start <= size:",
        ("sgd-momentum-decay",),
    ),
    Mutant(
        "decoder: rows that do not exist have a bias",
        "pair.py",
        "hidden = tl.where(exists[:, None], hidden, 0.0).to(",
        "hidden = tl.where(exists[:, None] | True, hidden, 0.0).to(",
        ("tconv-decoder-float32",),
    ),
    Mutant(
        "encoder: half precision sums",
        "pair.py",
        'acc = tl.dot(hidden.to(w2_ptr.dtype.element_ty), w2, acc, input_precision="ieee")',
        "acc = tl.dot(hidden.to(tl.float16), w2.to(tl.float16), acc).to(tl.float16).to(tl.float32)",
        ("tconv-encoder-float32",),
    ),
)


def main() -> None:
    """Run every mutant, the unchanged source first."""
    torch.set_num_threads(1)
    interpreted.poison()
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        for index, mutant in enumerate(MUTANTS):
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
    load: Any = importlib.import_module(f"{package}.cuda.load")
    case = CASES[case_name]
    try:
        error = interpreted.error(case, load.load(torch.device("cpu")))
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    allowed = interpreted.tolerance(case_name)
    return "" if error <= allowed else f"error {error:.1e}, allowed {allowed:.1e}"


if __name__ == "__main__":
    main()
