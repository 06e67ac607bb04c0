"""What `denoise-train` reaches beside its peers: `scripts/bench training-peers`.

Makes 16-bit stacks of microscope-like scenes (microscope.py), with the noise of photons and camera
and with white noise; trains on some, denoises shots of others and prints PSNR as Markdown.

    scripts/bench training-peers        about an hour on two cores
    scripts/bench training-peers --minutes 0.4 --only bursts,blind-spot,bm3d
    python -m venv peers && peers/bin/pip install careamics bm3d
    scripts/bench training-peers --peers-python peers/bin/python --json peers.json

PSNR is the mean over the unseen shots of 10·log10((white − black)² / MSE) against the truth, with
the same white and black for all. Every method runs in a process of its own, in turn, with its
defaults and, of denoise-train, --train. Gaussian blur and non-local means get the best of a few
strengths, BM3D the true noise. A peer that is not installed is left out.

Exit codes: 0 done, 1 ours failed, 2 usage, 130 Ctrl-C.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from denoising_peers import PACKAGES
from microscope import BLACK, CAMERAS, WHITE, make_stacks
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from report import commit, device_name, versions

from denoise_batch.device import cores
from denoise_batch.models import shipped_names

UNSEEN_SHOTS = 4
DEFAULT_WEIGHTS = shipped_names()[0]
WAYS = {
    "bursts": "--bursts",
    "recorrupted": "--self recorrupted",
    "neighbor": "--self neighbor",
    "blind-spot": "--self blind-spot",
}
OURS = (*WAYS, "default")
TRAINED = (*WAYS, "n2v", "n2n")
TITLES = {
    "noisy": "noisy",
    "gaussian": "Gaussian blur, best σ",
    "nlm": "non-local means, best strength",
    "bm3d": "BM3D, told σ",
    "anscombe-bm3d": "Anscombe and BM3D, told the camera",
    "n2v": "CAREamics, Noise2Void",
    "n2n": "CAREamics, Noise2Noise",
    "default": f"`{DEFAULT_WEIGHTS}`, not trained",
    **{way: f"`denoise-train {arguments}`" for way, arguments in WAYS.items()},
}
HEADINGS = {
    "photons": f"{CAMERAS['photons'].photons:g} photons, read noise",
    "white": f"white noise, σ {CAMERAS['white'].sigma / (WHITE - BLACK):.1%}",
}


class FailedError(Exception):
    """A process ended with an error; the message is its last line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all methods and print the table; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not shutil.which(options.peers_python):
        parser.error(f"--peers-python {options.peers_python}: no such program")
    result: dict[str, Any] = {
        "version": 1, "commit": commit(), "device": device_name(torch.device("cpu")),
        "cores": cores(), "versions": versions(), "train": options.train,
        "stacks": {name: getattr(options, name) for name in ("stacks", "shots", "px", "seed")},
        "data": {}, "results": [],
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name in options.data:
                _measure(name, Path(scratch) / name, options, result)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(table(result))
    return int(any(r["status"] == "failed" and r["method"] in OURS for r in result["results"]))


def table(result: Mapping[str, Any]) -> str:
    """Return the Markdown table of a result, and a line for each method without figures."""
    rows: dict[tuple[str, float | None], dict[str, str]] = {}
    left_out: dict[str, None] = {}
    for r in result["results"]:
        if r["status"] == "ok":
            rows.setdefault((r["method"], r["minutes"]), {})[r["data"]] = f"{r['psnr']:.2f}"
        else:
            left_out[f"{TITLES[r['method']]}: {r['status']}: {r['reason']}"] = None
    data = list(result["data"])
    lines = [f"| PSNR in dB | minutes | {' | '.join(HEADINGS[name] for name in data)} |"]
    lines.append("|--" * (2 + len(data)) + "|")
    for (method, minutes), cells in rows.items():
        shown = ["" if minutes is None else f"{minutes:g}", *(cells.get(n, "") for n in data)]
        lines.append(f"| {TITLES[method]} | {' | '.join(shown)} |")
    found = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{result['device']}, {result['cores']} cores, {found}"]
    lines += [f"denoise-train {result['train']}", *left_out]
    return "\n".join(lines)


def psnr(pages: NDArray[Any], clean: NDArray[Any]) -> float:
    """Return the mean PSNR in dB of pages (stacks, shots, H, W) in counts."""
    mse = ((pages.astype(np.float64) - clean) ** 2).mean((2, 3))
    return float((10 * np.log10((WHITE - BLACK) ** 2 / mse)).mean())


def _measure(name: str, folder: Path, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Add the results of all methods on one kind of noise."""
    camera, same = CAMERAS[name], {"px": options.px, "seed": options.seed}
    parts = {"training": (options.stacks, options.shots), "unseen": (options.unseen, UNSEEN_SHOTS)}
    for part, (stacks, shots) in parts.items():
        clean = make_stacks(folder / part, camera, stacks=stacks, shots=shots, **same)
    noisy = np.load(folder / "unseen.npy")
    rms = float(np.sqrt(((noisy - clean) ** 2).mean()))
    told = {"gain": camera.gain, "offset": BLACK, "sigma": camera.sigma, "rms": rms}
    (folder / "told.json").write_text(json.dumps(told))
    ends = {"lowest": int(noisy.min()), "highest": int(noisy.max()), "white": WHITE}
    result["data"][name] = asdict(camera) | told | ends
    missing = {r["method"] for r in result["results"] if r["status"] == "not installed"}
    for method in options.only:
        for minutes in options.minutes if method in TRAINED else [None]:
            if method in missing or (method == "anscombe-bm3d" and camera.gain is None):
                continue
            length = f", {minutes:g} minutes" if minutes else ""
            print(f"{name}: {TITLES[method]}{length}", file=sys.stderr)
            entry = {"data": name, "method": method, "minutes": minutes, "status": "ok"}
            started = time.perf_counter()
            try:
                if method in PACKAGES:
                    entry |= _peer(method, minutes, folder, options, clean, result["versions"])
                else:
                    pages = noisy if method == "noisy" else _ours(method, minutes, folder, options)
                    entry["psnr"] = psnr(pages, clean)
            except FailedError as error:
                is_missing = str(error).startswith(("ModuleNotFoundError", "ImportError"))
                entry["status"] = "not installed" if is_missing else "failed"
                entry["reason"] = str(error)
                if is_missing:
                    missing.add(method)
            entry["seconds"] = time.perf_counter() - started
            result["results"].append(entry)
            if options.json:  # after every method, so that an interrupted run keeps its results
                options.json.write_text(json.dumps(result, indent=2) + "\n")


def _ours(
    method: str, minutes: float | None, folder: Path, options: argparse.Namespace
) -> NDArray[Any]:
    """Train, but for "default", and denoise, as a user would; return (stacks, shots, H, W)."""
    weights, run = DEFAULT_WEIGHTS, folder / f"{method}-{minutes}"
    if method in WAYS:
        arguments = [str(folder / "training"), "-o", str(run), "--minutes", str(minutes)]
        arguments += shlex.split(f"{WAYS[method]} {options.train}")
        _run([sys.executable, "-m", "denoise_batch.training", *arguments])
        weights = str(run / "best.safetensors")
    arguments = [str(folder / "unseen"), "-o", str(run / "out"), "-w", weights, "--quiet"]
    _run([sys.executable, "-m", "denoise_batch", *arguments])
    stacks = []
    for path in sorted((run / "out").glob("*.tif")):
        with Image.open(path) as image:
            stacks.append(np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)]))
    return np.stack(stacks)


def _peer(
    method: str, minutes: float | None, folder: Path, options: argparse.Namespace,
    clean: NDArray[Any], found: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Return the PSNR of a peer's best candidate and its name; add the peer's version."""
    program, seconds = Path(__file__).with_name("denoising_peers.py"), 60 * (minutes or 0)
    _run([str(options.peers_python), str(program), method, str(folder), str(seconds)])
    about = json.loads((folder / "denoised.json").read_text())
    found[about["package"]] = about["version"]
    scores = [psnr(pages, clean) for pages in np.load(folder / "denoised.npy")]
    return {"psnr": max(scores), "choice": about["candidates"][int(np.argmax(scores))]}


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        words = [line.strip(" │") for line in done.stderr.splitlines() if re.search(r"\w", line)]
        raise FailedError(words[-1] if words else f"exit code {done.returncode}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench training-peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=_numbers, default=[0.4, 4.0], metavar="M,…", help="default 0.4,4")
    for name, known in {"data": [*CAMERAS], "only": [*TITLES]}.items():
        choices = f"choose from {', '.join(known)}"
        add(f"--{name}", type=_some_of(known), default=known, metavar="NAME,…", help=choices)
    add(
        "--train",
        default=f"--init {DEFAULT_WEIGHTS}",
        metavar="'ARGUMENTS'",
        help="further arguments of denoise-train (default: %(default)s)",
    )
    python = "the Python that has the peers (default: this one)"
    add("--peers-python", type=Path, default=sys.executable, metavar="PATH", help=python)
    add("--stacks", type=int, default=12, help="to train on (default: 12)")
    add("--shots", type=int, default=20, help="of each of them (default: 20)")
    add("--unseen", type=int, default=4, help=f"stacks of {UNSEEN_SHOTS} shots (default: 4)")
    add("--px", type=int, default=256, help="side of a shot (default: 256)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _some_of(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(sorted(unknown))}")
        return text.split(",")

    return parse
