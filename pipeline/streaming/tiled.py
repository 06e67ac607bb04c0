"""A page that is too large for one piece, tile by tile; `tiling` says where the cuts are."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ..files.picture import Picture
from ..networks import Network
from .forward import Forward
from .output import Output, are_finite
from .tiling import Grid, Span
from .transfer import Download, Transfer

_IN_FLIGHT = 2  # tiles behind the one that is queued


class Tiled:
    """Denoises pages in tiles, several of them under way where the device computes while we go on.

    Args:
        network: says how pages are padded.
        forward: makes an output of a padded tile.
        transfer: to the device and back.
    """

    def __init__(self, network: Network, forward: Forward, transfer: Transfer) -> None:
        self.network = network
        self.forward = forward
        self.transfer = transfer

    def denoise(self, picture: Picture, grid: Grid, on_tile: Callable[[int, int], None]) -> Output:
        """A page's output, on the host.

        Args:
            picture: the page.
            grid: of the padded page.
            on_tile: told of every finished tile.
        """
        result = torch.empty_like(picture.samples)
        is_finite = True
        seconds = {"transfer": 0.0, "compute": 0.0}
        waiting: deque[tuple[Output, Span, Span]] = deque()
        done = 0
        is_asynchronous = self.transfer.device.type == "cuda"

        def finish(most_left: int) -> None:
            nonlocal is_finite, done
            while len(waiting) > most_left:
                tile, row, column = waiting.popleft()
                stored, is_tile_finite, tile_seconds = tile.wait()
                self._inside(result, row, column).copy_(stored)
                is_finite &= is_tile_finite
                for stage, value in tile_seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
                done += 1
                on_tile(done, len(grid))

        for row, column in grid:
            if self._inside(result, row, column).numel() == 0:
                done += 1
                continue
            waiting.append((self._tile(picture, row, column), row, column))
            # A copy to the host is behind the tiles that are queued after it.
            finish(_IN_FLIGHT if is_asynchronous else 0)
        finish(0)
        return Output(Download((result, torch.tensor(is_finite))), seconds=seconds)

    def _tile(self, picture: Picture, row: Span, column: Span) -> Output:
        transfer, scale = self.transfer, picture.layout.scale
        start = transfer.mark()
        height, width = picture.layout.size
        rows, top = self._positions(height, row)
        columns, left = self._positions(width, column)
        bottom, right = top + int(rows.max()) + 1, left + int(columns.max()) + 1
        (seen,) = transfer.upload([picture.samples[top:bottom, left:right].contiguous()])
        values = _selected(_selected(scale.to_unit(seen), 0, rows), 1, columns)
        padded = values.permute(2, 0, 1)[None]
        ready = transfer.mark()
        output = self.forward(padded)
        made = transfer.mark()
        inner_rows = slice(row.start - row.read_start, row.stop - row.read_start)
        inner_columns = slice(column.start - column.read_start, column.stop - column.read_start)
        core = output[0].permute(1, 2, 0)[inner_rows, inner_columns]
        before = self._inside(picture.samples, row, column)
        # A core may reach into the reflections, which nobody keeps.
        margin = self.network.spec.margin
        skip_y, skip_x = max(0, margin - row.start), max(0, margin - column.start)
        kept = core[skip_y : skip_y + before.shape[0], skip_x : skip_x + before.shape[1]]
        top, left = max(0, row.start - margin) - top, max(0, column.start - margin) - left
        old = seen[top : top + before.shape[0], left : left + before.shape[1]]
        stored = scale.from_unit(kept, old)
        done = transfer.mark()
        marks = (start, ready, made, done, done)
        return Output(transfer.download([stored, are_finite(output)[0]]), marks)

    def _positions(self, size: int, span: Span) -> tuple[Tensor, int]:
        """Which positions of an image's extent a tile sees, from the first one of them on."""
        positions = self.network.padded_indices(size, torch.device("cpu"))
        seen = positions[span.read_start : span.read_stop]
        first = int(seen.min())
        return seen - first, first

    def _inside(self, samples: Tensor, row: Span, column: Span) -> Tensor:
        """The part of an image (H, W, C) that a core covers."""
        margin, (height, width) = self.network.spec.margin, samples.shape[:2]
        return samples[
            max(0, row.start - margin) : max(0, min(height, row.stop - margin)),
            max(0, column.start - margin) : max(0, min(width, column.stop - margin)),
        ]


def _selected(values: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Rows or columns by position; the tensor itself where that changes nothing."""
    if len(positions) == values.shape[dim] and bool((positions.diff() == 1).all()):
        return values
    return values.index_select(dim, positions.to(values.device))
