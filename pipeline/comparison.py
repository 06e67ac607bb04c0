"""Two weights on the same noisy images: a paired comparison, image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluate import Score
from .metrics import psnr_of_mse

SIGNIFICANT_P = 0.05
FEWEST_IMAGES = 6  # with five, all alike, Wilcoxon's p is 0.0625
LARGEST_PSNR = 100.0  # dB; of a perfect image too
RESAMPLES = 10_000
_EXACT_COUNT = 200  # images; beyond, ranks are nearly normal


@dataclass(frozen=True)
class Comparison:
    """How much better the second weights are than the first, with one noise model.

    Attributes:
        noise: the model, as spelled in `--noise`.
        images: number of images.
        difference: of the PSNR, second − first, in dB, averaged over images.
        low: lower end of the difference's 95 % interval, by bootstrap over images.
        high: upper end.
        p: of Wilcoxon's signed-rank test, two-sided: how often differences whose signs are due to
            chance are as one-sided as these.
        wins: images on which the second is better.
        losses: images on which the first is better.
    """

    noise: str
    images: int
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int

    def verdict(self, first: str, second: str) -> str:
        """Say in a sentence which weights are better, by how much and how surely."""
        if self.wins == self.losses == 0:
            return f"{first} and {second} score the same on every image."
        better, worse, sign = (second, first, 1) if self.difference > 0 else (first, second, -1)
        low, high = sorted((sign * self.low, sign * self.high))
        wins, losses = (self.wins, self.losses)[::sign]
        images = f"{self.images} image{'s' if self.images > 1 else ''}"
        figures = (
            f"by {abs(self.difference):.2f} dB on average (95 % interval {low:.2f} to {high:.2f} "
            f"dB, p = {self.p:.2g}; {images}, better on {wins}, worse on {losses})"
        )
        if self.images < FEWEST_IMAGES:
            return (
                f"{better} scores higher {figures}, but that are too few images to tell; take "
                f"{FEWEST_IMAGES} or more."
            )
        if self.p >= SIGNIFICANT_P or low <= 0:
            return f"No clear difference: {better} scores higher {figures}."
        return f"{better} is better than {worse} {figures}."


def compare(first: Sequence[Score], second: Sequence[Score]) -> list[Comparison]:
    """Compare two weights for every noise model.

    Args:
        first: scores of `evaluate`.
        second: those of other weights, of the same images with the same noise in the same order.
    """
    comparisons = []
    for noise in dict.fromkeys(score.noise for score in first):
        pairs = zip(first, second, strict=True)
        values = [difference(one, other) for one, other in pairs if one.noise == noise]
        differences = torch.tensor(values, dtype=torch.float64)
        low, high = bootstrap_interval(differences)
        comparisons.append(
            Comparison(
                noise=noise,
                images=len(values),
                difference=differences.mean().item(),
                low=low,
                high=high,
                p=signed_rank_p(differences),
                wins=int((differences > 0).sum()),
                losses=int((differences < 0).sum()),
            )
        )
    return comparisons


def difference(first: Score, second: Score) -> float:
    """Return the second PSNR minus the first, in dB, each at most `LARGEST_PSNR`."""
    one, other = (min(psnr_of_mse(score.mse_out), LARGEST_PSNR) for score in (first, second))
    return other - one


def bootstrap_interval(values: Tensor, share: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds this share of the means of resampled values.

    Efron, "Bootstrap methods: another look at the jackknife" (1979): its percentile interval.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (RESAMPLES // 20, len(values))
    means = [
        values[torch.randint(len(values), shape, generator=generator)].mean(1) for _ in range(20)
    ]
    tails = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=values.dtype)
    low, high = torch.cat(means).quantile(tails).tolist()
    return low, high


def signed_rank_p(values: Tensor) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test that values are symmetric about 0.

    Wilcoxon, "Individual comparisons by ranking methods" (1945); zeros are left out, ties share
    their ranks. Exact up to `_EXACT_COUNT` values, normal beyond.
    """
    values = values[values != 0]
    if not len(values):
        return 1.0
    _, places, counts = torch.unique(values.abs(), return_inverse=True, return_counts=True)
    # Twice the rank, since ties share half ranks.
    ranks = (2 * counts.cumsum(0) - counts + 1)[places]
    positive, whole = int(ranks[values > 0].sum()), int(ranks.sum())
    if len(values) > _EXACT_COUNT:
        deviation = ranks.double().square().sum().sqrt().item() / 2
        return math.erfc(abs(positive - whole / 2) / deviation / math.sqrt(2))
    chances = torch.zeros(whole + 1, dtype=torch.float64)  # of every sum of positive ranks
    chances[0] = 1
    for rank in ranks.tolist():
        moved = torch.zeros_like(chances)
        moved[rank:] = chances[: whole + 1 - rank]
        chances = (chances + moved) / 2
    tail = min(chances[: positive + 1].sum().item(), chances[positive:].sum().item())
    return min(1.0, 2 * tail)
