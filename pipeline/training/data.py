"""What a run trains on and validates with, of whatever kind its data is."""

from dataclasses import dataclass

import torch

from .options import TrainOptions
from .pairs import Pairs, Validation, training_pairs, validation_tiles
from .photographs import split_photographs
from .scenes import (
    ScenePairs,
    load_bursts,
    load_paired_folders,
    load_single_images,
    scene_validation,
)
from .two_tensors import tensor_pairs

VALIDATION_SEED = 1_000_003  # the same held-out tiles whatever the training seed


@dataclass(frozen=True)
class Counts:
    """Photographs, scenes or stored pairs on each side, and those too small for a tile."""

    training: int
    validation: int
    too_small: int = 0


def load_data(options: TrainOptions, device: torch.device) -> tuple[Pairs, Validation, Counts]:
    """The data as pairs to train on and tiles to validate with, on the device.

    Raises:
        TrainingError: nothing usable is there.
    """
    tile_px, share = options.tile_px, options.validation_share
    if options.kind == "tensors":
        loaded = tensor_pairs(options.data, options.validation_file, share, device)
        return *loaded, Counts(len(loaded[0]), len(loaded[1].noisy))
    if options.kind != "clean":
        if options.kind == "pairs" and options.pairs is not None:
            scenes = load_paired_folders(options.data, options.pairs, tile_px, share)
        elif options.kind == "bursts":
            scenes = load_bursts(options.data, tile_px, share)
        else:
            scenes = load_single_images(options.data, 2 * tile_px, share)
        training = [scene.to(device) for scene in scenes.training]
        validation = scene_validation(
            scenes.validation, tile_px, options.validation_tiles, VALIDATION_SEED, device
        )
        counts = Counts(len(scenes.training), len(scenes.validation), scenes.too_small)
        return ScenePairs(training, tile_px, options.tiles), validation, counts
    noise = options.noise_model
    split = split_photographs(options.data, tile_px * noise.factor, share)
    validation = validation_tiles(
        split.validation,
        noise,
        count=options.validation_tiles,
        tile_px=tile_px,
        seed=VALIDATION_SEED,
        device=device,
    )
    pairs = training_pairs(
        split.training,
        noise,
        count=options.tiles,
        tile_px=tile_px,
        versions=options.versions,
        seed=options.seed,
        device=device,
        has_clean_targets=options.targets == "clean",
        gray_share=options.gray_share,
    )
    return pairs, validation, Counts(len(split.training), len(split.validation), split.too_small)
