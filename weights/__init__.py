"""Trained weights that ship with the tool, and manifest.json, which describes them.

The manifest holds, for every name: file, sha256, architecture, what it is for, the training
command, the data and the scores. A name's file never changes; better weights get a new name.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from denoise_batch.kernels import WeightsError

FOLDER = Path(__file__).parent


@cache
def manifest() -> dict[str, Any]:
    """The parsed manifest: `default` (a name) and `weights` (name → description)."""
    content: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return content


def names() -> list[str]:
    """Names of the shipped weights, the default first."""
    default = manifest()["default"]
    return [default, *sorted(set(manifest()["weights"]) - {default})]


def path(name: str) -> Path:
    """The file of shipped weights, its sha256 checked against the manifest.

    Raises:
        WeightsError: no such name, or the installed file is missing or damaged.
    """
    entry = manifest()["weights"].get(name)
    if entry is None:
        raise WeightsError(
            f"weights {name!r}: neither a file nor a shipped name ({', '.join(names())})"
        )
    file: Path = FOLDER / entry["file"]
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror}; reinstall denoise-batch") from error
    if digest != entry["sha256"]:
        raise WeightsError(f"{file}: damaged (sha256 differs); reinstall denoise-batch")
    return file
