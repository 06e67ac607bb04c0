"""Cutting an image that is too large for one piece, so that the pieces make the same image.

The padded image is cut into cores whose corners are multiples of the network's stride. The network
sees each core with a halo around it, as far as its receptive field reaches (none beyond the padded
image's own edge). Then a core's output is what the network makes of the whole image, and cores are
put together without blending.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..networks import Architecture


@dataclass(frozen=True)
class Span:
    """A tile's extent along one axis, in padded positions.

    Attributes:
        start: first position of the core.
        stop: behind the core's last one.
        read_start: first position that the network sees.
        read_stop: behind the last one.
    """

    start: int
    stop: int
    read_start: int
    read_stop: int


@dataclass(frozen=True)
class Grid:
    """How a padded image is cut.

    Attributes:
        rows: along the height.
        columns: along the width.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    @property
    def most_pixels(self) -> int:
        """Pixels that the network sees of the largest tile."""
        return _most(self.rows) * _most(self.columns)

    @property
    def pixels(self) -> int:
        """Pixels that the network sees of all tiles together."""
        return _sum(self.rows) * _sum(self.columns)


def automatic_grid(height: int, width: int, most_pixels: int, spec: Architecture) -> Grid | None:
    """The grid of least work whose tiles the network sees in at most `most_pixels` each.

    Args:
        height: of the padded image.
        width: of the padded image.
        most_pixels: with their halos.
        spec: says what a tile needs.

    Returns:
        one tile where the image fits as a whole; None if no grid is fine enough.
    """
    best: Grid | None = None
    all_columns = _cuts(width, spec)
    for rows in _cuts(height, spec):
        fitting = (c for c in all_columns if _most(rows) * _most(c) <= most_pixels)
        # The coarsest that fits: every further cut is another pair of halos.
        if columns := next(fitting, None):
            grid = Grid(rows, columns)
            if best is None or grid.pixels < best.pixels:
                best = grid
            if len(columns) == 1:
                break
    return best


def fixed_grid(height: int, width: int, tile_px: int, spec: Architecture) -> Grid:
    """Cores of `tile_px` a side, rounded up to the stride; those at the end are smaller."""
    core = -(-tile_px // spec.multiple) * spec.multiple
    return Grid(_spans(height, core, spec.halo), _spans(width, core, spec.halo))


def _cuts(size: int, spec: Architecture) -> list[tuple[Span, ...]]:
    """An extent in one piece, in two, …, each as even as the stride allows."""
    cuts = []
    units = size // spec.multiple
    core_units = units
    while core_units >= 1:
        cuts.append(_spans(size, core_units * spec.multiple, spec.halo))
        pieces = -(-units // core_units)
        finer = -(-units // (pieces + 1))
        core_units = finer if finer < core_units else core_units - 1
        # Cores much smaller than their halos help nobody.
        if core_units * spec.multiple * 8 < spec.halo:
            break
    return cuts


def _spans(size: int, core: int, halo: int) -> tuple[Span, ...]:
    return tuple(
        Span(start, stop, max(0, start - halo), min(size, stop + halo))
        for start in range(0, size, core)
        for stop in [min(size, start + core)]
    )


def _most(spans: tuple[Span, ...]) -> int:
    return max(span.read_stop - span.read_start for span in spans)


def _sum(spans: tuple[Span, ...]) -> int:
    return sum(span.read_stop - span.read_start for span in spans)
