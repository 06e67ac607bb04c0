"""Cut an image into tiles whose outputs together equal the output of the whole image.

The padded image is cut into cores whose corners are multiples of the network's stride. The network
sees each core with a halo as wide as its receptive field (none beyond the padded image's edge). A
core's output then equals that part of the whole image's output, and cores need no blending.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..models import Architecture


@dataclass(frozen=True)
class Span:
    """A tile's extent along one axis, in padded positions.

    Attributes:
        start: first position of the core.
        stop: one past the core's last position.
        read_start: first position that the network sees.
        read_stop: one past the last position that it sees.
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
        """Pixels of the largest tile, halo included."""
        return _most(self.rows) * _most(self.columns)

    @property
    def pixels(self) -> int:
        """Pixels of all tiles together, halos included."""
        return _sum(self.rows) * _sum(self.columns)


def automatic_grid(height: int, width: int, most_pixels: int, spec: Architecture) -> Grid | None:
    """Find the grid of least work whose tiles have at most `most_pixels` each.

    Args:
        height: of the padded image.
        width: of the padded image.
        most_pixels: limit for a tile with its halo.
        spec: the network's stride and halo.

    Returns:
        A grid of one tile if the image fits as a whole; None if no grid is fine enough.
    """
    best: tuple[int, _Cut, _Cut] | None = None
    all_columns = _cuts(width, spec)
    for rows in _cuts(height, spec):
        fitting = (cut for cut in all_columns if rows.most * cut.most <= most_pixels)
        # The coarsest that fits: every further cut is another pair of halos.
        if columns := next(fitting, None):
            work = rows.total * columns.total
            if best is None or work < best[0]:
                best = (work, rows, columns)
            if columns.pieces == 1:
                break
    if best is None:
        return None
    _, rows, columns = best
    return Grid(_spans(height, rows.core, spec.halo), _spans(width, columns.core, spec.halo))


def fixed_grid(height: int, width: int, tile_px: int, spec: Architecture) -> Grid:
    """Make a grid of cores of `tile_px` a side, rounded up to the stride; the last are smaller."""
    core = -(-tile_px // spec.multiple) * spec.multiple
    return Grid(_spans(height, core, spec.halo), _spans(width, core, spec.halo))


def span_around(start: int, stop: int, size: int, spec: Architecture) -> Span:
    """Return the smallest core that holds [start, stop) of a padded extent, with its halo."""
    start -= start % spec.multiple
    stop = min(size, -(-stop // spec.multiple) * spec.multiple)
    return Span(start, stop, max(0, start - spec.halo), min(size, stop + spec.halo))


@dataclass(frozen=True)
class _Cut:
    """One way to cut an extent: number of pieces, and the largest and total extent they read."""

    pieces: int
    core: int
    most: int
    total: int


def _cuts(size: int, spec: Architecture) -> list[_Cut]:
    """Cut an extent into one piece, two, …, as evenly as the stride allows, down to the halo."""
    cuts: list[_Cut] = []
    units, halo = size // spec.multiple, spec.halo
    wanted = 1
    while True:
        core = -(-units // wanted) * spec.multiple
        if cuts and core * 8 < halo:
            return cuts
        if not cuts or core < cuts[-1].core:
            pieces = -(-size // core)
            halos = min(pieces - 1, 2)  # around the piece that has most
            most = min(size, core + halos * halo)
            cuts.append(_Cut(pieces, core, most, size + 2 * halo * (pieces - 1)))
        if core == spec.multiple:
            return cuts
        wanted = max(wanted + 1, wanted * 9 // 8)  # of many pieces, not every number


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
