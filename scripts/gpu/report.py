"""The report: the machine, then sections of text and tables, in Markdown."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

import torch

from denoise_batch.kernels.dispatch import chosen_kernels


@dataclass
class Section:
    """A heading, a paragraph, a table.

    Attributes:
        title: of the section.
        text: a paragraph; may be empty.
        header: of the table's columns.
        rows: of the table.
        is_wrong: whether it makes the command fail.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    is_wrong: bool = False


def machine(device: torch.device) -> tuple[str, list[str]]:
    """(device's name, facts that figures depend on)."""
    versions = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    if util.find_spec("triton"):
        versions.append(f"triton {_triton_version()}")
    facts = [
        ", ".join(versions),
        f"commit {_commit()}",
        f"DENOISE_BATCH_KERNELS={chosen_kernels()}",
    ]
    if device.type != "cuda":
        return "cpu", facts
    properties = torch.cuda.get_device_properties(device)
    facts.append(
        f"compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
    return properties.name, facts


def render(name: str, facts: Sequence[str], sections: Sequence[Section], is_rehearsal: bool) -> str:
    """The whole report."""
    lines = [f"# denoise-batch on {name}", ""]
    if is_rehearsal:
        lines += ["**A rehearsal without a GPU: no result, only the form of one.**", ""]
    lines += [f"- {fact}" for fact in facts]
    for section in sections:
        mark = " — WRONG" if section.is_wrong else ""
        lines += ["", f"## {section.title}{mark}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.rows:
            lines.append("| " + " | ".join(section.header) + " |")
            lines.append("|" + "--|" * len(section.header))
            lines += ["| " + " | ".join(row) + " |" for row in section.rows]
    return "\n".join(lines) + "\n"


def _triton_version() -> str:
    """Asked of the module: distributions that bring it have various names."""
    try:
        import triton
    except ImportError:
        return "unknown"
    return str(triton.__version__)


def _commit() -> str:
    root = Path(__file__).parents[2]
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return result.stdout.strip() or "unknown"
