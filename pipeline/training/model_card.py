"""The model card of a run: what the weights are, learned from, score, and are not good for.

Mitchell et al., "Model cards for model reporting" (2019).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..models import Network
from .data import Counts
from .options import TrainOptions

_FEW = 5  # held-out images, below which their mean may be far from that of others


def model_card(
    options: TrainOptions,
    network: Network,
    counts: Counts,
    training: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    command: str,
) -> str:
    """Return the card as Markdown.

    Args:
        options: the run.
        network: that it trains.
        counts: size of its data.
        training: what the weights file says about its training.
        rows: the lines of metrics.jsonl.
        command: that began the run; "" if none did.
    """
    parameters = sum(math.prod(value.shape) for _, value in network.named_parameters())
    steps = f"{training['step']} steps of {options.batch_size} tiles"
    lines = [
        f"# {options.output.name or 'weights'}: a denoiser",
        "",
        f"Network `{network.architecture}` with {parameters} parameters, trained by denoise-train "
        f"{version('denoise-batch')}"
        + (": its noise estimator only." if options.estimator else ".")
        + " `best.safetensors` holds the weights of the best validation, `last.safetensors` those "
        "of the last one.",
        "",
        f"    denoise-batch FOLDER --weights {options.output / 'best.safetensors'}",
        "",
        "## Training",
        "",
        f"- **Data**: {_data(options)}: {counts.training} to train on, {counts.validation} held "
        "out" + (f", {counts.too_small} too small." if counts.too_small else "."),
        f"- **Noise**: {_noise(options)}",
        *_rules(training),
        f"- **Length**: {steps} of {training['tile_px']}×{training['tile_px']} pixels, "
        f"{training['epoch']:.2f} epochs of {training['tiles']} tiles.",
        f"- **Recipe**: {options.optimizer}, lr {options.lr:g}, loss {training['loss']}, "
        f"{options.precision}, seed {options.seed}"
        + (f", moving average {options.ema:g}" if options.ema else "")
        + (f", from `{options.init}`" if options.init else "")
        + "; all options are in `config.json`.",
        *([f"- **Command**: `{command}`"] if command else []),
        "",
        "## Scores",
        "",
        f"PSNR over {training['validation_tiles']} held-out tiles, of one mean squared error; the "
        f"noisy tiles have {training['noisy_psnr']:.2f} dB.",
        "",
        "| step | epoch | training loss | PSNR | gain |",
        "|--:|--:|--:|--:|--:|",
        *_scores(rows, training["noisy_psnr"]),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _failures(options, training, rows)),
        *(f"- {limit}" for limit in _limits(options, network, counts)),
    ]
    return "\n".join(lines) + "\n"


def _data(options: TrainOptions) -> str:
    if options.kind == "clean":
        return f"clean photographs in `{options.data}`"
    if options.kind == "pairs":
        return f"scenes with two noisy shots, in `{options.data}` and `{options.pairs}`"
    words = {
        "bursts": "bursts of noisy shots",
        "single": "single noisy images",
        "tensors": "pairs of noisy tiles",
    }
    return f"{words[options.kind]} in `{options.data}`"


def _noise(options: TrainOptions) -> str:
    if options.kind != "clean":
        return "that of the shots; no clean image was used."
    target = "the clean tile" if options.targets == "clean" else "a second noisy version"
    return f"`{options.noise}`, added to the photographs; the target is {target}."


def _rules(training: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the weights say of the files that they were trained on, and are for."""
    if "self" in training:
        yield f"- **Method**: `--self {training['self']}`, one noisy image at a time."
    if "axes" in training:
        yield f"- **Pages** of a file: `--axes {training['axes']}`."
    if "range" in training:
        black, white = training["range"]
        yield f"- **Range** of samples above 8 bits: black {black:g}, white {white:g}."


def _scores(rows: Sequence[Mapping[str, Any]], noisy_psnr: float) -> Iterator[str]:
    """Yield a row of the table for each validation, the best in bold."""
    best = max((row["number"] for row in rows if row["is_best"]), default=0)
    for row in rows:
        psnr = row["validation_psnr"]
        score = f"{psnr:.2f}"
        if row["number"] == best:
            score = f"**{score}**"
        epoch = row.get("epoch", row["number"])  # lines of earlier releases
        loss = f"{row['training_loss']:.6f}" if row["step"] else "–"
        yield f"| {row['step']} | {epoch:.2f} | {loss} | {score} | {psnr - noisy_psnr:+.2f} |"


def _failures(
    options: TrainOptions, training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what training did not reach so far."""
    best = next((row for row in reversed(rows) if row["is_best"]), None)
    if best is None:
        return
    if best["step"] == 0:
        yield (
            "Training improved nothing: `best.safetensors` holds the weights of "
            f"`--init {options.init}` as they were."
        )
    name = "psnr_mean" if options.ranks_by_mean else "psnr"
    if best[f"validation_{name}"] < training[f"noisy_{name}"]:
        yield "The best weights make noisy tiles worse, not better: do not use them."


def _limits(options: TrainOptions, network: Network, counts: Counts) -> Iterator[str]:
    if options.kind == "clean":
        yield (
            f"It knows `{options.noise}`. With other noise it may leave noise or remove detail: "
            "score it with `denoise-eval --noise`, or look at `denoise-batch --preview`."
        )
    else:
        yield (
            "It knows the noise of these shots: of one camera or microscope, at its gain and "
            "exposure. Other noise was not tried."
        )
        yield (
            "Validation compares with noisy shots, whose noise bounds the PSNR: compare the "
            "scores only with those of runs on the same data."
        )
    if options.kind == "single":
        yield "It takes noise that is alike in neighbouring pixels for detail, and keeps it."
    if counts.validation < _FEW:
        yield f"The scores rest on {counts.validation} held-out images or scenes only."
    yield (
        "The best weights were chosen by the same tiles that the scores come from: on new images "
        "expect a little less."
    )
    if network.spec.takes_level and network.estimator is None:
        yield "It is told the noise level and cannot estimate it: give `--noise-level`."
