"""Where a reproduction keeps what it made, and how its stages find it again."""

import json
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from protocol import Protocol, load_protocol
from recipes import Recipe
from scale import ValueRange
from training import train

from denoise_batch.files.atomic import atomic_write


@dataclass(frozen=True)
class Lab:
    """Folders and sizes of a reproduction.

    Attributes:
        scale: how much of it.
        corpus: folder of photographs.
        kodak: folder of the Kodak photographs, or None.
        authors: the report authors' published weights, or None.
        work: cached data and checkpoints.
        output: reproduction.md, and reproduction/ with figures and results.
    """

    scale: ValueRange
    corpus: Path
    kodak: Path | None
    authors: Path | None
    work: Path
    output: Path

    @cached_property
    def protocol(self) -> Protocol:
        """The report's data; minutes at the first time."""
        return load_protocol(self.corpus, self.work / "cache", self.scale)

    @property
    def figures(self) -> Path:
        """Folder of figures; results/ below it."""
        return self.output / "reproduction"

    def result(self, stage: str) -> dict[str, Any]:
        """What a stage has found so far; {} before it began."""
        file = self.figures / "results" / f"{stage}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def keep(self, stage: str, result: dict[str, Any]) -> None:
        """Write what a stage has found so far, whole or not at all."""
        file = self.figures / "results" / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_rounded(result), ensure_ascii=False, allow_nan=False)
        # A line for every row of a history: short enough to read, and to see what changed.
        text = text.replace('{"step"', '\n{"step"')
        atomic_write(file, text.encode() + b"\n")

    def run(self, stage: str, name: str, recipe: Recipe, steps: int, records: int) -> bool:
        """Train a run of a stage and add it to its results; False if one as long was there."""
        result = self.result(stage)
        runs = result.setdefault("runs", {})
        found = runs.get(name, {})
        if found and Recipe(**found["recipe"]) == recipe and found["steps"] >= steps:
            return False
        print(f"{time.strftime('%H:%M:%S')} {stage}/{name}: {steps} steps", flush=True)
        runs[name] = train(recipe, self.protocol, steps, records, self.checkpoint(stage, ""), name)
        self.keep(stage, result)
        return True

    def checkpoint(self, stage: str, name: str) -> Path:
        """A run's checkpoint, or with an empty name the folder of them."""
        folder = self.work / "checkpoints" / stage
        return folder / f"{name}.safetensors" if name else folder


def _rounded(value: Any) -> Any:
    """Floats with five significant digits, NaN and infinity as None: what JSON can say."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
