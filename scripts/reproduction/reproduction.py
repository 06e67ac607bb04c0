"""Where the experiments keep data, checkpoints and results, and how they find them again."""

import json
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from config import Recipe, Scale
from dataset import Dataset, load_dataset
from training import train

from denoise_batch.files.atomic import atomic_write


@dataclass(frozen=True)
class Reproduction:
    """Folders and amounts.

    Attributes:
        scale: how much data and work.
        corpus: folder of photographs.
        kodak: folder of the Kodak photographs, or None.
        authors: the course paper's published weights, or None.
        work: folder of cached data and checkpoints.
        output: folder of reproduction.md, and of reproduction/ with figures and results.
    """

    scale: Scale
    corpus: Path
    kodak: Path | None
    authors: Path | None
    work: Path
    output: Path

    @cached_property
    def dataset(self) -> Dataset:
        """The data; building it takes minutes."""
        return load_dataset(self.corpus, self.work / "cache", self.scale)

    @property
    def figures(self) -> Path:
        """Folder of the figures, with results/ below it."""
        return self.output / "reproduction"

    def result(self, experiment: str) -> dict[str, Any]:
        """Return an experiment's results so far; {} before it began."""
        file = self.figures / "results" / f"{experiment}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def keep(self, experiment: str, result: dict[str, Any]) -> None:
        """Write an experiment's results, wholly or not at all."""
        file = self.figures / "results" / f"{experiment}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_rounded(result), ensure_ascii=False, allow_nan=False)
        # One line per row of a history, for readable diffs.
        text = text.replace('{"step"', '\n{"step"')
        atomic_write(file, text.encode() + b"\n")

    def run(self, experiment: str, name: str, recipe: Recipe, steps: int, records: int) -> bool:
        """Train a run and add it to the results; False if one as long exists."""
        result = self.result(experiment)
        runs = result.setdefault("runs", {})
        found = runs.get(name, {})
        if found and Recipe(**found["recipe"]) == recipe and found["steps"] >= steps:
            return False
        print(f"{time.strftime('%H:%M:%S')} {experiment}/{name}: {steps} steps", flush=True)
        file = self.checkpoint(experiment, name)
        runs[name] = train(recipe, self.dataset, steps, records, file)
        self.keep(experiment, result)
        return True

    def checkpoint(self, experiment: str, name: str) -> Path:
        """Return the path of a run's checkpoint."""
        return self.work / "checkpoints" / experiment / f"{name}.safetensors"


def _rounded(value: Any) -> Any:
    """Round floats to five significant digits; NaN and infinity, unknown to JSON, become None."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
