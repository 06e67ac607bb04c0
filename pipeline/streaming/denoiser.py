"""The network with a run's settings: precision, strength, test-time augmentation, tiles, probe.

Pages go in as their files store them and come out the same way; between the two copies everything
happens on the device. When memory runs out, the batch is halved, then the page is cut into tiles,
then into smaller ones, and only then does that page fail.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError
from denoise_batch.kernels.buffer_pool import POOL
from denoise_batch.kernels.capture import Captured
from denoise_batch.kernels.dispatch import ops_for
from denoise_batch.kernels.errors import is_out_of_memory
from denoise_batch.kernels.work import WORK

from ..device import Download, Mark, Transfer
from ..files.pixels import DecodedImage
from ..files.ranges import BEYOND, BITS_8, ValueRange
from ..files.scratch import Scratch
from ..models import LARGEST_LEVEL, LevelEstimator, Network
from ..quality import MIN_PIXELS, WHOLE_PIXELS, Probe, probe_images, probe_tiles, tile_slices
from .guard import limit_residual
from .tiling import Grid, Span, automatic_grid, fixed_grid, span_around


@dataclass(frozen=True)
class Output:
    """A denoised page that is being copied back from the device.

    Attributes:
        download: the page's samples, then whether the network's output was finite.
        marks: before the upload, before and after the network, after the last conversion, after
            the probe.
        share: fraction of the time between the marks that belongs to this page.
        seconds: time by stage instead of marks, for pages that took several passes.
        probe: the network's response to a small change; on the host after `wait`.
        level: noise level that the network was told, 0-d, for values in [0, 1]; None if it takes
            none; on the host after `wait`.
    """

    download: Download
    marks: tuple[Mark, ...] = ()
    share: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)
    probe: Probe | None = None
    level: Tensor | None = None

    def wait(self) -> tuple[Tensor, bool, dict[str, float]]:
        """Return samples (H, W, C) on the host, whether all are finite, and seconds by stage."""
        return self.samples(), *self.outcome()

    def samples(self) -> Tensor:
        """Wait, and return samples (H, W, C) on the host."""
        return self.download.wait()[0]

    def outcome(self) -> tuple[bool, dict[str, float]]:
        """Wait, and return whether all samples are finite, and seconds by stage."""
        self.download.arrive()
        _, is_finite = self.download.tensors  # the samples may still be in parts
        if not self.marks:
            return bool(is_finite), self.seconds
        start, ready, made, done, probed = self.marks
        seconds = {
            "transfer": start.seconds_until(ready) + made.seconds_until(done),
            "compute": ready.seconds_until(made),
            "measure": done.seconds_until(probed),
        }
        return bool(is_finite), {k: v * self.share for k, v in seconds.items()}


class OutputOnDisk:
    """A denoised page in a scratch file: what an `Output` is, read when it is asked for.

    Args:
        output: waited for, then no longer needed.
        scratch: where its samples go.

    Attributes:
        level: as of an `Output`, as a number.

    Raises:
        StorageError: there is no room for them.
    """

    def __init__(self, output: Output, scratch: Scratch) -> None:
        self._outcome = output.outcome()
        self._scratch = scratch
        self._probe: tuple[bool, float] | None = None
        self._places = scratch.put([output.samples()])
        self.level = None if output.level is None else float(output.level)
        if (probe := output.probe) is not None:
            self._places += scratch.put([probe.responses, probe.spreads])
            self._probe = probe.is_whole, probe.strength

    def samples(self) -> Tensor:
        """Return samples (H, W, C)."""
        return _there(self._scratch.get(self._places[:1]))[0]

    def outcome(self) -> tuple[bool, dict[str, float]]:
        """Return whether all samples are finite, and seconds by stage."""
        return self._outcome

    @property
    def probe(self) -> Probe | None:
        """As of an `Output`."""
        if self._probe is None:
            return None
        responses, spreads = _there(self._scratch.get(self._places[1:]))
        return Probe(responses, spreads, *self._probe)


def _there(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def are_finite(values: Tensor) -> Tensor:
    """Whether all values are finite, for each image of (N, C, H, W)."""
    return torch.isfinite(values.amin((1, 2, 3))) & torch.isfinite(values.amax((1, 2, 3)))


@dataclass(frozen=True)
class _Alike:
    """Pages of one size, type and range, on a device that has kernels for their samples.

    Attributes:
        network: pads them.
        scale: their range.
        samples: (N, H, W, C), on the device.
    """

    network: Network
    scale: ValueRange
    samples: Tensor

    @classmethod
    def of(
        cls, network: Network, images: Sequence[DecodedImage], samples: Sequence[Tensor]
    ) -> "_Alike | None":
        """Those pages; None if they are no such pages."""
        first, scale = samples[0], images[0].value_range
        is_one = all(page.shape == first.shape for page in samples)
        is_one = is_one and all(image.value_range == scale for image in images)
        is_one = is_one and (first.dtype != torch.uint8 or scale == BITS_8)
        has_kernels = ops_for(first.device).has_sample_kernels
        is_plain = scale.curve is None and scale.is_exact_in_float32(first.dtype)
        if not (has_kernels and is_one and is_plain):
            return None
        return cls(network, scale, _stacked(samples))

    def padded(self) -> Tensor:
        """As `network.pad` pads them: (N, C, H, W) float32."""
        _, height, width, _ = self.samples.shape
        size = self.network.padded_size(height), self.network.padded_size(width)
        scale, ops = self.scale, ops_for(self.samples.device)
        arguments = self.samples, scale.offset, scale.span, BEYOND
        return ops.unit_padded(*arguments, size, self.network.margin)

    def stored(self, values: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each page's new samples, and whether its values are all finite, (N,)."""
        scale, dtype = self.scale, self.samples.dtype
        is_relative = dtype != torch.uint8
        stored, is_finite = ops_for(values.device).stored_samples(
            *(values, self.samples, scale.offset, scale.span, BEYOND),
            *(scale.levels(dtype), is_relative, self.network.margin),
        )
        return list(stored), is_finite


def _stacked(pages: Sequence[Tensor]) -> Tensor:
    """Pages of one shape as one tensor; no copy where they lie evenly in one block."""
    first = pages[0]
    if len(pages) == 1:
        return first[None]
    blocks = {page.untyped_storage().data_ptr() for page in pages}
    steps = {later.storage_offset() - page.storage_offset() for page, later in pairwise(pages)}
    is_even = len(blocks) == len(steps) == 1 and all(page.is_contiguous() for page in pages)
    if not is_even:
        return torch.stack(list(pages))
    return first.as_strided((len(pages), *first.shape), (*steps, *first.stride()))


class Forward:
    """Denoises padded images (N, C, H, W) in [0, 1] on the network's device.

    Args:
        network: in inference mode.
        strength: blend; 0 keeps the input, 1 is the network's output.
        tta: average over the eight rotated and flipped versions of every image.
        cuda_graphs: on CUDA, record the launches of recurring shapes and replay them.
    """

    def __init__(
        self,
        network: Network,
        *,
        strength: float = 1.0,
        tta: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.network = network
        self.strength = strength
        self.tta = tta
        self._run: Callable[..., Tensor] = self._launch
        if cuda_graphs:
            self._run = Captured(self._launch, lambda: self.network.compute_dtype)

    def __call__(self, padded: Tensor, level: Tensor | None = None) -> Tensor:
        """The network's output, averaged, guarded and blended as configured.

        Args:
            padded: the images.
            level: of their noise, (N,); estimated by default, for networks that take one.
        """
        level = self.network.estimate_level(padded) if level is None else level
        return self._run(padded) if level is None else self._run(padded, level)

    def _launch(self, padded: Tensor, *level: Tensor) -> Tensor:
        """`level`: one, or none for a network that takes none."""
        average = self._average if self.tta else self.network.forward_padded
        values = average(padded, *level)
        if level:
            values = limit_residual(padded, values, level[0].clamp(0, LARGEST_LEVEL))
        return values if self.strength == 1 else padded.lerp(values, self.strength)

    def _average(self, padded: Tensor, *level: Tensor) -> Tensor:
        total = torch.zeros_like(padded)
        for turns in range(4):
            for is_mirrored in (False, True):
                view = torch.rot90(padded, turns, (2, 3))
                view = view.flip(3) if is_mirrored else view
                view = view.contiguous(memory_format=torch.channels_last)
                output = self.network.forward_padded(view, *level)
                output = output.flip(3) if is_mirrored else output
                total += torch.rot90(output, -turns, (2, 3))
        return total.div_(8)


@dataclass(frozen=True)
class Levels:
    """The noise level that a network is told.

    Attributes:
        network: takes a level, or none.
        given: the level of all images, for values in [0, 1]; None: each image's estimate.
        factor: of the level that is told by the estimate.
    """

    network: Network
    given: float | None = None
    factor: float = 1.0

    @property
    def is_estimated(self) -> bool:
        """Whether the images' estimates are needed."""
        return self.network.spec.takes_level and self.given is None

    def of_images(self, padded: Tensor) -> Tensor | None:
        """The levels of padded images, (N,); None for a network that takes none."""
        estimate = self.network.estimate_level(padded) if self.is_estimated else None
        if estimate is None:
            return self.given_to(len(padded), padded.device)
        return estimate if self.factor == 1 else self.factor * estimate

    def given_to(self, count: int, device: torch.device) -> Tensor | None:
        """The level that is given, for this number of images."""
        if self.given is None or not self.network.spec.takes_level:
            return None
        return torch.full((count,), self.given, device=device)

    def of_sums(self, sums: Tensor, *, is_gray: bool) -> Tensor:
        """The level of an image whose tiles' sums, (1, 3), were added up: (1,)."""
        return self.factor * LevelEstimator.level(sums, is_gray=is_gray)


T = TypeVar("T")


_IN_FLIGHT = 2  # tiles behind the one that is queued


class Tiled:
    """Denoises pages tile by tile; on CUDA several tiles are in flight.

    Args:
        network: pads the pages.
        forward: denoises a padded tile.
        transfer: copies to the device and back.
        levels: what the network is told.
    """

    def __init__(
        self, network: Network, forward: Forward, transfer: Transfer, levels: Levels
    ) -> None:
        self.network = network
        self.forward = forward
        self.transfer = transfer
        self.levels = levels

    def denoise(self, image: DecodedImage, grid: Grid, on_pixels: Callable[[int], None]) -> Output:
        """Denoise a page; its output is on the host.

        Args:
            image: the page.
            grid: of the padded page.
            on_pixels: called with the number of pixels that are done, after each tile.
        """
        result = torch.empty_like(image.samples)
        is_finite = True
        started = time.perf_counter()
        level = self.level(image, grid)
        seconds = {"transfer": 0.0, "compute": time.perf_counter() - started}
        waiting: deque[tuple[Output, Span, Span]] = deque()
        done = 0
        is_asynchronous = self.transfer.device.type == "cuda"

        def finish(most_left: int) -> None:
            nonlocal is_finite, done
            while len(waiting) > most_left:
                tile, row, column = waiting.popleft()
                stored, is_tile_finite, tile_seconds = tile.wait()
                self._inside(result, row, column).copy_(stored)
                done += stored.shape[0] * stored.shape[1]
                is_finite &= is_tile_finite
                for stage, value in tile_seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
                on_pixels(done)

        for row, column in grid:
            if self._inside(result, row, column).numel() == 0:
                continue
            waiting.append((self._tile(image, row, column, level), row, column))
            # A copy to the host is behind the tiles that are queued after it.
            finish(_IN_FLIGHT if is_asynchronous else 0)
        finish(0)
        whole = Download((result, torch.tensor(is_finite)))
        return Output(whole, seconds=seconds, level=None if level is None else level[0].cpu())

    def part(
        self, image: DecodedImage, rows: slice, columns: slice, level: Tensor | None
    ) -> Tensor:
        """Return what denoising the page makes of these rows and columns, (H, W, C) on the host."""
        network, margin = self.network, self.network.margin
        row, column = (
            span_around(
                margin + part.start, margin + part.stop, network.padded_size(extent), network.spec
            )
            for part, extent in zip((rows, columns), image.size, strict=True)
        )
        stored, _ = self._tile(image, row, column, level).download.wait()
        top = rows.start - max(0, row.start - margin)
        left = columns.start - max(0, column.start - margin)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return stored[top : top + height, left : left + width]

    def level(self, image: DecodedImage, grid: Grid) -> Tensor | None:
        """The page's noise level, (1,), on the device; estimated tile by tile."""
        device = self.transfer.device
        if not self.levels.is_estimated:
            return self.levels.given_to(1, device)
        sums = torch.zeros(1, 3, device=device)
        for row, column in grid:
            _, padded, _, _ = self._upload(image, row, column)
            sums += self.network.level_sums(padded, _inner(row), _inner(column))
        return self.levels.of_sums(sums, is_gray=image.samples.shape[2] == 1)

    def _upload(
        self, image: DecodedImage, row: Span, column: Span
    ) -> tuple[Tensor, Tensor, int, int]:
        """A tile's samples on the device, what the network sees, and the samples' top and left."""
        height, width = image.size
        rows, top = self._positions(height, row)
        columns, left = self._positions(width, column)
        bottom, right = top + int(rows.max()) + 1, left + int(columns.max()) + 1
        (seen,) = self.transfer.upload([image.samples[top:bottom, left:right].contiguous()])
        unit = image.value_range.to_unit(seen)
        values = _selected(_selected(unit, 0, rows), 1, columns)
        return seen, values.permute(2, 0, 1)[None], top, left

    def _tile(self, image: DecodedImage, row: Span, column: Span, level: Tensor | None) -> Output:
        transfer, scale = self.transfer, image.value_range
        start = transfer.mark()
        seen, padded, top, left = self._upload(image, row, column)
        ready = transfer.mark()
        output = self.forward(padded, level)
        made = transfer.mark()
        core = output[0].permute(1, 2, 0)[_inner(row), _inner(column)]
        before = self._inside(image.samples, row, column)
        # A core may reach into the reflections, which nobody keeps.
        margin = self.network.margin
        skip_y, skip_x = max(0, margin - row.start), max(0, margin - column.start)
        kept = core[skip_y : skip_y + before.shape[0], skip_x : skip_x + before.shape[1]]
        top, left = max(0, row.start - margin) - top, max(0, column.start - margin) - left
        old = seen[top : top + before.shape[0], left : left + before.shape[1]]
        stored = scale.from_unit(kept, old)
        done = transfer.mark()
        marks = (start, ready, made, done, done)
        return Output(transfer.download([stored, are_finite(output)[0]]), marks)

    def _positions(self, size: int, span: Span) -> tuple[Tensor, int]:
        """Positions of an image's extent that a tile sees, counted from the first one."""
        positions = self.network.padded_indices(size, torch.device("cpu"))
        seen = positions[span.read_start : span.read_stop]
        first = int(seen.min())
        return seen - first, first

    def _inside(self, samples: Tensor, row: Span, column: Span) -> Tensor:
        """View of the part of an image (H, W, C) that a core covers."""
        margin, (height, width) = self.network.margin, samples.shape[:2]
        return samples[
            max(0, row.start - margin) : max(0, min(height, row.stop - margin)),
            max(0, column.start - margin) : max(0, min(width, column.stop - margin)),
        ]


def _inner(span: Span) -> slice:
    """The core of a tile, counted from where the tile begins."""
    return slice(span.start - span.read_start, span.stop - span.read_start)


def _selected(values: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Select rows or columns by position; returns the tensor itself if that changes nothing."""
    if len(positions) == values.shape[dim] and bool((positions.diff() == 1).all()):
        return values
    return values.index_select(dim, positions.to(values.device))


class BatchDenoiser:
    """A network on a device, with the settings of a run.

    Args:
        network: in inference mode, on the device.
        device: where it computes.
        memory: bytes that one pass may take.
        precision: of the convolutions; None: float32.
        strength: blend; 0 keeps the input, 1 is the network's output.
        level: noise level that the network is told, for values in [0, 1]; None: the estimate.
        level_factor: of the level that is told by the estimate.
        tta: average over the eight rotated and flipped versions of every image.
        tile_px: side of the tiles; None: as few tiles as memory allows; 0: no tiles.
        cuda_graphs: on CUDA, record the launches of recurring shapes and replay them.
        probe: run the network a second time for an estimate of its error (`quality`).
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        *,
        memory: int,
        precision: torch.dtype | None = None,
        strength: float = 1.0,
        level: float | None = None,
        level_factor: float = 1.0,
        tta: bool = False,
        tile_px: int | None = None,
        cuda_graphs: bool = False,
        probe: bool = False,
    ) -> None:
        self.network = network
        self.device = device
        self.precision = precision
        self.strength = strength
        self.tile_px = tile_px
        self.probe = probe
        where = network.parameters()[0].device
        self.most_pixels = max(1, memory // network.spec.bytes_on(where, precision))
        self._transfer = Transfer(device)
        self._forward = Forward(
            network,
            strength=strength,
            tta=tta,
            cuda_graphs=cuda_graphs and device.type == "cuda",
        )
        self._levels = Levels(network, level, level_factor)
        self._tiled = Tiled(network, self._forward, self._transfer, self._levels)

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device computes while the caller goes on."""
        return self.device.type == "cuda"

    def padded_shape(self, image: DecodedImage) -> tuple[int, int]:
        """Height and width of a page as the network sees it, padded."""
        height, width = image.size
        return self.network.padded_size(height), self.network.padded_size(width)

    def is_tiled(self, image: DecodedImage) -> bool:
        """Whether a page is denoised in tiles, and so alone."""
        height, width = self.padded_shape(image)
        if self.strength == 0:
            return False
        if self.tile_px is None:
            return height * width > self.most_pixels
        return self.tile_px > 0 and max(height, width) > self.tile_px

    def host_bytes(self, pixels: int) -> int:
        """Memory of the host that a pass over a page of so many pixels takes, about."""
        if self.device.type != "cpu" or self.strength == 0:
            return 0
        spec = self.network.spec
        if self.tile_px is None:
            pixels = min(pixels, self.most_pixels)
        elif self.tile_px > 0:
            pixels = min(pixels, (self.tile_px + 2 * spec.halo) ** 2)
        return pixels * spec.bytes_per_pixel

    def denoise(
        self,
        images: Sequence[DecodedImage],
        *,
        is_float32: bool = False,
        probe: bool = True,
        on_pixels: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Output | ImageError]:
        """Yield each page's output, in order, or the reason why there is none.

        Args:
            images: pages of one padded shape, number of channels and type; a tiled one alone.
            is_float32: compute in float32, whatever the precision.
            probe: probe these pages, if the run probes.
            on_pixels: called as the pages progress, with the number of their pixels that are done.
        """
        if self.strength == 0:
            for image in images:
                yield Output(Download((image.samples, torch.tensor(True))))
            return
        on_pixels = _rising(on_pixels)
        probe = probe and self.probe
        self.network.set_compute_dtype(None if is_float32 else self.precision)
        if len(images) == 1 and self.is_tiled(images[0]):
            yield self._in_tiles(images[0], probe, on_pixels)
            return
        outputs = self._or_none(lambda: self._whole(images, probe, on_pixels))
        if outputs is not None:
            yield from outputs
            return
        height, width = self.padded_shape(images[0])
        # The next batch need not fail first.
        self._learn(height * width * len(images))
        if len(images) > 1:
            middle = len(images) // 2
            for half in (images[:middle], images[middle:]):
                yield from self.denoise(half, is_float32=is_float32, probe=probe)
        elif self.tile_px == 0:
            yield ImageError(f"too large for the memory of {self.device}; allow tiles")
        else:
            yield self._in_tiles(images[0], probe, on_pixels)

    def level_of(self, image: DecodedImage) -> Tensor | None:
        """Return the noise level that the network is told for a page, (1,), or None."""
        height, width = self.padded_shape(image)
        spec = self.network.spec
        grid = automatic_grid(height, width, self.most_pixels, spec)
        return self._tiled.level(image, grid or fixed_grid(height, width, spec.halo, spec))

    def denoise_part(
        self, image: DecodedImage, rows: slice, columns: slice, level: Tensor | None
    ) -> Tensor:
        """Return a part of what `denoise` makes of a page, (H, W, C) as stored, for its level."""
        self.network.set_compute_dtype(self.precision)
        return self._tiled.part(image, rows, columns, level)

    def _or_none(self, run: Callable[[], T]) -> T | None:
        """Return `run()`, or None if memory ran out."""
        try:
            return run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Out here, where the exception and the tensors in its frames are gone.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _learn(self, too_many_pixels: int) -> None:
        self.most_pixels = max(1, min(self.most_pixels, too_many_pixels // 2))

    def _whole(
        self, images: Sequence[DecodedImage], probe: bool, on_pixels: Callable[[int], None]
    ) -> list[Output]:
        """Denoise all pages in one pass."""
        transfer, margin = self._transfer, self.network.margin
        start = transfer.mark()
        samples = transfer.upload([image.samples for image in images])
        alike = _Alike.of(self.network, images, samples)
        padded = self._padded(images, samples) if alike is None else alike.padded()
        ready = transfer.mark()
        with POOL.enabled():  # one for both: leaving it drops the buffers that were not used
            level = self._levels.of_images(padded)
            pixels = sum(math.prod(image.size) for image in images)
            with self._counted(len(padded) * math.prod(padded.shape[2:]), pixels, on_pixels):
                values = self._forward(padded, level)
            on_pixels(pixels)
        made = transfer.mark()
        stored: list[Tensor] = []
        if alike is not None:
            stored, is_finite = alike.stored(values)
        else:
            is_finite = are_finite(values)
            for index, (image, before) in enumerate(zip(images, samples, strict=True)):
                height, width = image.size
                inside = values[index, :, margin : margin + height, margin : margin + width]
                stored.append(image.value_range.from_unit(inside.permute(1, 2, 0), before))
        done = transfer.mark()
        probes: list[Probe] = []
        if probe:
            # The output is finished: running out of memory here costs only the estimate.
            probes = self._or_none(lambda: self._probes(images, padded, values, level)) or []
        marks = (start, ready, made, done, transfer.mark() if probe else done)
        answers = [tensor for probe in probes for tensor in (probe.responses, probe.spreads)]
        told = [] if level is None else [level]
        download = transfer.download([*stored, is_finite, *told, *answers])
        arrived = download.tensors
        flags, *rest = (each for each in arrived[len(stored) :] if isinstance(each, Tensor))
        answers = rest[len(told) :]
        total = sum(page.numel() for page in stored)
        return [
            Output(
                Download((page, flags[index]), download.event),
                marks,
                stored[index].numel() / total,
                probe=(
                    replace(
                        probes[index],
                        responses=answers[2 * index],
                        spreads=answers[2 * index + 1],
                    )
                    if probes
                    else None
                ),
                level=rest[0][index] if told else None,
            )
            for index, page in enumerate(arrived[: len(stored)])
        ]

    @contextmanager
    def _counted(
        self, padded: int, pixels: int, on_pixels: Callable[[int], None]
    ) -> Iterator[None]:
        """Inside, tell how many of so many pixels the network has done, by its multiply-adds.

        Args:
            padded: number of pixels that it sees.
            pixels: number of pixels of the images.
            on_pixels: called with the number of these that are done.
        """
        total = (8 if self._forward.tta else 1) * padded * self.network.multiply_adds
        done = 0

        def tell(multiply_adds: int) -> None:
            nonlocal done
            done += multiply_adds
            on_pixels(min(pixels, round(pixels * done / total)))

        with WORK.told(tell):
            yield

    def _probes(
        self, images: Sequence[DecodedImage], padded: Tensor, values: Tensor, level: Tensor | None
    ) -> list[Probe]:
        """Probe each page on the device: large pages by tiles, small ones not at all."""
        height, width = padded.shape[2:]
        if height * width < MIN_PIXELS:
            return []
        if height * width > WHOLE_PIXELS:
            levels = [None] * len(images) if level is None else torch.split(level, 1)
            return [self._probe_tiles(*pair) for pair in zip(images, levels, strict=True)]
        margin = self.network.margin
        insides = [
            tuple(slice(margin, margin + extent) for extent in image.size) for image in images
        ]

        def denoise(moved: Tensor) -> Tensor:
            return self._forward(moved, level)

        return probe_images(denoise, padded, values, insides, self.strength)

    def _probe_tiles(self, image: DecodedImage, level: Tensor | None) -> Probe:
        margin = self.network.margin
        tiles = [
            image.value_range.to_unit(image.samples[rows, columns])
            for rows, columns in tile_slices(*image.size)
        ]
        (stack,) = self._transfer.upload([torch.stack(tiles)])
        height, width = stack.shape[1:3]

        def denoise(images: Tensor) -> Tensor:
            told = None if level is None else level.expand(len(images))
            values = self._forward(self.network.pad(images), told)
            return values[:, :, margin : margin + height, margin : margin + width]

        return probe_tiles(denoise, stack.permute(0, 3, 1, 2), self.strength)

    def _probed(self, image: DecodedImage, output: Output) -> Output:
        """Add a probe to a tiled page's output, if the page is large enough for one."""
        height, width = image.size
        if height * width < MIN_PIXELS:
            return output
        started = time.perf_counter()
        level = None if output.level is None else output.level.to(self.device).view(1)
        there = self._or_none(lambda: self._probe_tiles(image, level))
        probe = there and replace(
            there, responses=there.responses.cpu(), spreads=there.spreads.cpu()
        )
        seconds = {**output.seconds, "measure": time.perf_counter() - started}
        return replace(output, seconds=seconds, probe=probe)

    def _padded(self, images: Sequence[DecodedImage], samples: Sequence[Tensor]) -> Tensor:
        """Stack pages as (N, C, H, W) float32 in [0, 1], each padded by its own reflections."""
        scales = {image.value_range for image in images}
        if len(scales) == 1 and len({page.shape for page in samples}) == 1:
            # Channels-last, as the pages are and the kernels like it.
            values = scales.pop().to_unit(torch.stack(list(samples)))
            return self.network.pad(values.permute(0, 3, 1, 2))
        pages = [
            self.network.pad(image.value_range.to_unit(page).permute(2, 0, 1)[None])
            for image, page in zip(images, samples, strict=True)
        ]
        return torch.cat(pages)

    def _in_tiles(
        self, image: DecodedImage, probe: bool, on_pixels: Callable[[int], None]
    ) -> Output | ImageError:
        """Denoise one page tile by tile, with smaller tiles whenever memory runs out."""
        height, width = self.padded_shape(image)
        spec = self.network.spec
        if self.tile_px:
            grid: Grid | None = fixed_grid(height, width, self.tile_px, spec)
        else:
            grid = automatic_grid(height, width, self.most_pixels, spec)
            grid = grid or fixed_grid(height, width, spec.halo, spec)
        while grid is not None:
            tiles = grid
            with self._counted(grid.pixels, math.prod(image.size), on_pixels):
                output = self._or_none(lambda: self._tiled.denoise(image, tiles, on_pixels))  # noqa: B023
            if output is not None:
                return self._probed(image, output) if probe else output
            self._learn(grid.most_pixels)
            grid = automatic_grid(height, width, grid.most_pixels // 2, spec)
        return ImageError(f"too large for the memory of {self.device}, even in tiles")


def _rising(on_pixels: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that passes on the numbers that are larger than all before."""
    most = 0

    def tell(pixels: int) -> None:
        nonlocal most
        if pixels > most:
            most = pixels
            on_pixels(pixels)

    return tell
