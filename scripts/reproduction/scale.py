"""How much of the reproduction is run.

whole: as the report did, two hours on one core. short: the whole data, fewer epochs and steps; the
document says which of the two it is of. quick: to see it work. tiny: for tests.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ValueRange:
    """Amounts of data and work.

    Attributes:
        tiles: training tiles of the protocol.
        validation_tiles: held-out tiles.
        report_epochs: epochs of the faithful runs, Architecture 1 and 2.
        repaired_epochs: epochs of the repaired runs.
        short_steps: steps of every run of the ablation.
        noise_steps: steps of every run of Noise2Noise against clean targets.
        parity_steps: steps beside torch.
        seeds: repetitions of Noise2Noise against clean targets.
        kodak: photographs that the quality-against-cost plot takes.
        slow_kodak: how many of them the slow peer (BM3D) takes.
        widths: of the U-Nets that are trained for the plot.
    """

    tiles: int
    validation_tiles: int
    report_epochs: tuple[int, int]
    repaired_epochs: int
    short_steps: int
    noise_steps: int
    parity_steps: int
    seeds: int
    kodak: int
    slow_kodak: int
    widths: tuple[int, ...]


SCALES = {
    "whole": ValueRange(50_000, 1_000, (15, 5), 12, 4_000, 2_500, 12_500, 3, 24, 8, (8, 16, 32)),
    "short": ValueRange(50_000, 1_000, (1, 1), 1, 500, 400, 12_500, 3, 6, 1, ()),
    "quick": ValueRange(1_200, 100, (2, 1), 2, 60, 40, 150, 2, 1, 0, ()),
    "tiny": ValueRange(24, 4, (1, 1), 1, 4, 4, 4, 2, 1, 1, (2,)),
}
