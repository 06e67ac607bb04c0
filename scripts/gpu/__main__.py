"""Is the CUDA path right on this GPU, and how fast? A Markdown report, to paste into an issue.

    scripts/gpu-check                   everything, about 15 minutes
    scripts/gpu-check --quick           a smoke test, small shapes
    scripts/gpu-check --output FILE     default: gpu-check-<device>.md

Parity of every kernel and of whole networks against gemm/; training steps, inference and a folder
beside torch/cuDNN (eager and compiled, bfloat16, channels-last); shares of what this GPU's own
matrix product and copy reach. Exit code 0, or 1 if anything was wrong.

`--device cpu` rehearses the command without a GPU; its report says that it is no result.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from folder import folder_section
from parity import check_section, network_section
from report import Section, machine, render
from speed import speed_sections


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all sections; one that fails is a section that says so."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        _parser().error("torch sees no CUDA device here; --device cpu rehearses the command")
    name, facts = machine(device)  # first: should it fail, no quarter of an hour is lost
    sections: list[Section] = []
    for make in (
        lambda: [check_section(device)],
        lambda: [network_section(device, is_quick=options.quick)],
        lambda: speed_sections(device, is_quick=options.quick),
        lambda: [folder_section(device, is_quick=options.quick)],
    ):
        try:
            sections += make()
        except Exception as error:  # the rest of the report is worth having
            lines = str(error).strip().splitlines() or [""]
            sections.append(Section("A part that failed", f"{type(error).__name__}: {lines[-1]}"))
            sections[-1].is_wrong = True
    text = render(name, facts, sections, is_rehearsal=device.type != "cuda")
    path = options.output or Path(f"gpu-check-{_slug(name)}.md")
    path.write_text(text)
    print(text)
    print(f"written to {path}", file=sys.stderr)
    return 1 if any(section.is_wrong for section in sections) else 0


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small shapes")
    parser.add_argument("--output", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
