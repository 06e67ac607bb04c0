"""The report's Figures 2 and 3: clean | noisy | outputs, of held-out tiles chosen by a rule."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lab import Lab
from PIL import Image
from protocol import SOURCE_PX, VALIDATION_SHARE, Protocol
from recipes import Recipe
from score_protocol import load_any
from torch import Tensor
from trained import layers_of
from training import Data

from denoise_batch import weights as shipped
from denoise_batch.files.pixels import to_pil
from denoise_batch.metrics import psnr
from denoise_batch.training.data import VALIDATION_SEED, split_photographs

TILES = 8
ZOOM, GAP_PX = 3, 3
# Tiles whose clean version varies less than this show nothing.
FLAT = 0.04
FREE = ("public-domain", "CC0-1.0")


def score_protocol(lab: Lab) -> dict[str, Any]:
    """PSNR of one MSE over all validation tiles, and averaged, of the weights that are at hand."""
    files = {name: shipped.path(name) for name in shipped.names() if name in ("tconv", "upsample")}
    if lab.authors is not None:
        files["report authors"] = lab.authors
    protocol, scores = lab.protocol, {}
    for name, file in files.items():
        scores[name] = _score(_batched(load_any(file), protocol.validation_noisy), protocol)
    noisy = _score(protocol.validation_noisy, protocol)
    return {"scores": {"noisy": noisy} | scores, "photographs": list(protocol.photographs)}


def draw_pictures(lab: Lab) -> None:
    """figure-2.png: simple patterns, the tiles that gain most; figure-3.png: the worst outputs."""
    protocol = lab.protocol
    columns = [protocol.validation_clean, protocol.validation_noisy]
    for stage, name in (("report", "tconv"), ("repaired", "tconv"), ("repaired", "upsample")):
        run = lab.result(stage).get("runs", {}).get(name)
        if run is None or not lab.checkpoint(stage, name).exists():
            return
        columns.append(_denoised(run["recipe"], lab.checkpoint(stage, name), protocol))
    clean, noisy, output = columns[0], columns[1], columns[3]
    before, after = _each_psnr(noisy, clean), _each_psnr(output, clean)
    is_flat = clean.std((1, 2, 3)) < FLAT
    photographs, licences = _photographs(lab), _licences(lab.corpus)
    sources: dict[str, list[str]] = {}
    ranks = {"figure-2": torch.where(is_flat, -torch.inf, after - before)}
    ranks["figure-3"] = torch.where(is_flat, -torch.inf, -after)
    for figure, rank in ranks.items():
        chosen = _best(rank.tolist(), photographs, licences)
        _draw(lab.figures / f"{figure}.png", [images[chosen] for images in columns])
        sources[figure] = [photographs[tile] for tile in chosen]
    lab.keep("sources", sources)


def _photographs(lab: Lab) -> list[str]:
    """The photograph of every validation tile, as `map_tiles` deals them out."""
    files = split_photographs(lab.corpus, SOURCE_PX, VALIDATION_SHARE).validation
    count = len(lab.protocol.validation_clean)
    order = list(range(count))
    random.Random(VALIDATION_SEED).shuffle(order)
    names = [""] * count
    for position, tile in enumerate(order):
        names[tile] = files[position % len(files)].relative_to(lab.corpus).as_posix()
    return names


def _best(rank: list[float], photographs: Sequence[str], licences: Mapping[str, str]) -> list[int]:
    """The tiles that rank highest, one of a photograph, which anybody may show."""
    found: dict[str, int] = {}
    for tile in sorted(range(len(rank)), key=lambda tile: -rank[tile]):
        if licences.get(photographs[tile], FREE[0]) in FREE:
            found.setdefault(photographs[tile], tile)
    return list(found.values())[:TILES]


def _licences(corpus: Path) -> dict[str, str]:
    """Licence of every photograph, as the corpus's manifest has it."""
    file = corpus / "manifest.json"
    if not file.exists():
        return {}
    manifest = json.loads(file.read_text(encoding="utf-8"))
    return {photograph["file"]: photograph["licence"] for photograph in manifest["photographs"]}


def _denoised(recipe: dict[str, Any], file: Path, protocol: Protocol) -> Tensor:
    data, network = Data(Recipe(**recipe), protocol), layers_of(Recipe(**recipe), file)
    return _batched(lambda tiles: network(data.standardize(tiles)), data.noisy)


def _batched(denoise: Callable[[Tensor], Tensor], noisy: Tensor) -> Tensor:
    return torch.cat([denoise(part) for part in noisy.split(50)])


def _score(images: Tensor, protocol: Protocol) -> dict[str, float]:
    clean = protocol.validation_clean
    return {
        "psnr": psnr(images, clean),
        "psnr_mean": _each_psnr(images, clean).mean().item(),
    }


def _each_psnr(images: Tensor, clean: Tensor) -> Tensor:
    """dB of every tile."""
    error = (images.double() - clean.double()).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def _draw(path: Path, rows: Sequence[Tensor]) -> None:
    """A row for every version, a column for every tile."""
    side = rows[0].shape[3] * ZOOM
    size = (len(rows[0]) * (side + GAP_PX) - GAP_PX, len(rows) * (side + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            levels = (tile.clamp(0, 1) * 255).round().to(torch.uint8)
            image = to_pil(levels.permute(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (column * (side + GAP_PX), row * (side + GAP_PX)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
