"""Which addresses the last programs of huge launches read and write: where int32 would overflow.

Tensors of 2³¹ elements without memory: the interpreter runs the last program of each axis, what it
loads is 0, and the offsets of its loads and stores are compared with a table that is computed from
the definition of the op, in Python's integers. Runs inside the interpreted children.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton_children.cases import DECLINED, OFFSETS

from denoise_batch.kernels.geometry import ConvGeometry
from denoise_batch.kernels.guard import BLOCK_PX

META = torch.device("meta")
_SPACING = 1 << 44  # bytes between two tensors
_BUILDER = interpreter.interpreter_builder


class _Address:
    """What the interpreter sees of a tensor."""

    def __init__(self, tensor: Tensor, base: int) -> None:
        self.dtype, self.shape, self._base = tensor.dtype, tensor.shape, base

    def data_ptr(self) -> int:
        return self._base


@dataclass
class Record:
    """What one program touched: offsets by the kernel's argument, in elements."""

    kernel: str
    program: tuple[int, int, int]
    blocks: dict[str, int]
    offsets: dict[str, set[int]] = field(default_factory=dict)


@contextmanager
def recording() -> Iterator[list[Record]]:
    """Inside, kernels touch no memory; the last program of each launch is recorded."""
    records: list[Record] = []
    names: list[tuple[str, int]] = []  # of the running launch's tensors, with their item sizes
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    before = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def note(pointers: Any, mask: Any) -> None:
        data = pointers.data
        active = data[np.broadcast_to(np.asarray(mask.data).astype(bool), data.shape)]
        owner, inside = np.divmod(active.astype(np.int64), _SPACING)
        for index in set(owner.tolist()):
            if not 1 <= index <= len(names):
                raise AssertionError(f"an address outside of every tensor: {index}")
            name, size = names[index - 1]
            offsets = set((inside[owner == index] // size).tolist())
            records[-1].offsets.setdefault(name, set()).update(offsets)

    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        note(pointers, mask)
        dtype = pointers.get_element_ty()
        zeros = np.zeros(pointers.data.shape, interpreter._get_np_dtype(dtype))
        return interpreter.TensorHandle(zeros, dtype)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        note(pointers, mask)

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        known = inspect.getfullargspec(self.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in known}
        given = inspect.getcallargs(self.fn, *args, **kwargs)
        names[:] = [
            (name, value.element_size())
            for name, value in given.items()
            if isinstance(value, Tensor)
        ]
        bases = {name: (1 + index) * _SPACING for index, (name, _) in enumerate(names)}
        values = {
            name: _Address(value, bases[name]) if name in bases else value
            for name, value in given.items()
        }
        blocks = {name: value for name, value in given.items() if isinstance(value, int)}
        arguments = {
            name: value if name in self.constexprs else interpreter._implicit_cvt(value)
            for name, value in values.items()
        }
        grid = (*self.grid, 1, 1)[:3]
        scope = interpreter._patch_lang(self.fn)
        try:
            _BUILDER.set_grid_dim(*grid)
            last = tuple(extent - 1 for extent in grid)
            records.append(Record(self.fn.__name__, last, blocks))
            _BUILDER.set_grid_idx(*last)
            self.fn(**arguments)
        finally:
            scope.restore()

    builder.create_masked_load, builder.create_masked_store = load, store
    executor.__call__ = call
    try:
        yield records
    finally:
        builder.create_masked_load, builder.create_masked_store, executor.__call__ = before


def difference(name: str, kernels: Mapping[str, Callable[..., Any]]) -> str:
    """What the last programs touch and should not, or should and do not; "" if nothing."""
    with recording() as records:
        expected = _CASES[name](kernels)
    problems = []
    for kernel, tables in expected.items():
        record = next(record for record in records if record.kernel == kernel)
        for argument, table in tables(record).items():
            found = record.offsets.get(argument, set())
            if wrong := found ^ table:
                example = min(wrong)
                problems.append(f"{kernel} {argument}: {len(wrong)} offsets, such as {example}")
    return "; ".join(problems)


Tables = dict[str, Callable[[Record], dict[str, set[int]]]]


def _new(*shape: int) -> Tensor:
    """(N, H, W, C) in memory, as (N, C, H, W)."""
    return torch.empty(shape, dtype=torch.float16, device=META).permute(0, 3, 1, 2)


def _weight(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16, device=META)


def _positions(record: Record, batch: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(image, row, column) of the program's positions."""
    rows, count = record.blocks["BLOCK_M"], batch * size[0] * size[1]
    return [_place(m, size) for m in _block(record.program[0], rows, count)]


def _place(position: int, size: tuple[int, int]) -> tuple[int, int, int]:
    image, inside = divmod(position, size[0] * size[1])
    return image, *divmod(inside, size[1])


def _offset(shape: tuple[int, ...], image: int, row: int, column: int, channel: int) -> int:
    _, height, width, channels = shape
    return ((image * height + row) * width + column) * channels + channel


def _conv(
    shape: tuple[int, int, int, int],
    columns: int,
    kernel: int,
    geometry: ConvGeometry,
    *,
    upsample: int = 1,
    unshuffle: int = 1,
    shuffle: int = 1,
    has_residual: bool = False,
) -> Callable[[Mapping[str, Callable[..., Any]]], Tables]:
    """conv2d_fused of an image (N, H, W, C)."""
    batch, height, width, channels = shape
    seen = (height * upsample // unshuffle, width * upsample // unshuffle)
    size = geometry.conv2d_output_size(seen, (kernel, kernel))
    out = (batch, size[0] * shuffle, size[1] * shuffle, columns // shuffle**2)

    def tables(record: Record) -> dict[str, set[int]]:
        loads, stores = set(), set()
        for image, row, column in _positions(record, batch, size):
            for i, j in product(range(kernel), repeat=2):
                y = row * geometry.stride[0] - geometry.padding[0] + i
                x = column * geometry.stride[1] - geometry.padding[1] + j
                if not (0 <= y < seen[0] and 0 <= x < seen[1]):
                    continue
                for down, across in product(range(unshuffle), repeat=2):
                    place = y // upsample * unshuffle + down, x // upsample * unshuffle + across
                    loads |= {_offset(shape, image, *place, c) for c in range(channels)}
            for down, across in product(range(shuffle), repeat=2):
                place = row * shuffle + down, column * shuffle + across
                stores |= {_offset(out, image, *place, c) for c in range(out[3])}
        return {"x_ptr": loads, "y_ptr": stores} | (
            {"residual_ptr": stores} if has_residual else {}
        )

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        weight = _weight(columns, channels * unshuffle**2, kernel, kernel)
        residual = _new(*out) if has_residual else None
        kernels["conv2d_fused"](
            *(_new(*shape), weight, None, geometry, "relu"),
            *((upsample, upsample), unshuffle, shuffle, residual),
        )
        return {"conv_forward_kernel": tables}

    return run


def _conv_transpose(
    shape: tuple[int, int, int, int], columns: int, kernel: int, geometry: ConvGeometry
) -> Callable[[Mapping[str, Callable[..., Any]]], Tables]:
    """conv_transpose2d_forward of an image (N, h, w, C); the last phase of each stride."""
    batch, height, width, channels = shape
    size = geometry.conv_transpose2d_output_size((height, width), (kernel, kernel))
    stride, out = geometry.stride, (batch, *size, columns)

    def tables(record: Record) -> dict[str, set[int]]:
        loads, stores = set(), set()
        grid = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
        for image, i, j in _positions(record, batch, grid):
            row, column = i * stride[0] + stride[0] - 1, j * stride[1] + stride[1] - 1
            if row >= size[0] or column >= size[1]:
                continue
            stores |= {_offset(out, image, row, column, c) for c in range(columns)}
            for down, across in product(range(kernel), repeat=2):
                y, above = divmod(row + geometry.padding[0] - down, stride[0])
                x, beside = divmod(column + geometry.padding[1] - across, stride[1])
                if not above and not beside and 0 <= y < height and 0 <= x < width:
                    loads |= {_offset(shape, image, y, x, c) for c in range(channels)}
        return {"x_ptr": loads, "y_ptr": stores}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        weight = _weight(channels, columns, kernel, kernel)
        kernels["conv_transpose2d_forward"](_new(*shape), weight, None, geometry)
        return {"conv_transpose_kernel": tables}

    return run


def _weight_grad(
    shape: tuple[int, int, int, int], columns: int, kernel: int, geometry: ConvGeometry
) -> Callable[[Mapping[str, Callable[..., Any]]], Tables]:
    """conv2d_backward without the input's gradient: few positions, since the program reads all."""
    batch, height, width, channels = shape
    size = geometry.conv2d_output_size((height, width), (kernel, kernel))
    out, rows = (batch, *size, columns), kernel * kernel * channels

    def tables(record: Record) -> dict[str, set[int]]:
        x, y, z = record.program
        of_rows = _block(x, record.blocks["BLOCK_M"], rows)
        of_columns = _block(y, record.blocks["BLOCK_N"], columns)
        part = _block(z, record.blocks["part"], batch * size[0] * size[1])
        large, small = set(), set()
        for image, row, column in (_place(k, size) for k in part):
            small |= {_offset(out, image, row, column, c) for c in of_columns}
            for tap, channel in (divmod(m, channels) for m in of_rows):
                down = row * geometry.stride[0] - geometry.padding[0] + tap // kernel
                across = column * geometry.stride[1] - geometry.padding[1] + tap % kernel
                if 0 <= down < height and 0 <= across < width:
                    large.add(_offset(shape, image, down, across, channel))
        stores = {(z * rows + m) * columns + c for m in of_rows for c in of_columns}
        return {"large_ptr": large, "small_ptr": small, "parts_ptr": stores}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        weight = _weight(columns, channels, kernel, kernel)
        kernels["conv2d_backward"](_new(*out), _new(*shape), weight, geometry, None, False)
        return {"weight_grad_kernel": tables}

    return run


def _relu_backward(shape: tuple[int, int, int, int]) -> Callable[..., Tables]:
    channels = shape[3]

    def tables(record: Record) -> dict[str, set[int]]:
        rows = _block(record.program[0], record.blocks["BLOCK_R"], shape[0] * shape[1] * shape[2])
        of = _block(record.program[1], record.blocks["BLOCK_C"], channels)
        touched = {row * channels + c for row in rows for c in of}
        sums = {record.program[0] * channels + c for c in of}
        names = ("grad_ptr", "output_ptr", "masked_ptr")
        return {**dict.fromkeys(names, touched), "sums_ptr": sums}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        package = kernels["conv2d_backward"].__module__.rpartition(".")[0]
        grad = _new(*shape).permute(0, 2, 3, 1)
        sys.modules[f"{package}.relu_backward"].relu_backward_bias_grad(grad, grad)
        return {"relu_backward_bias_grad_kernel": tables}

    return run


def _block(program: int, block: int, count: int) -> range:
    return range(program * block, min((program + 1) * block, count))


def _loss(numel: int) -> Callable[[Mapping[str, Callable[..., Any]]], Tables]:
    def tables(record: Record) -> dict[str, set[int]]:
        touched = set(_block(record.program[0], record.blocks["BLOCK"], numel))
        names = ("input_ptr", "target_ptr", "grad_ptr")
        return {**dict.fromkeys(names, touched), "sums_ptr": {record.program[0]}}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        kernels["mse_loss"](_weight(numel), _weight(numel))
        return {"mse_loss_kernel": tables}

    return run


def _mirrored(position: int, size: int) -> int:
    """Where a position outside of [0, size) is reflected to."""
    inside = position % max(2 * size - 2, 1)
    return min(inside, 2 * size - 2 - inside) if size > 1 else 0


def _unit(
    shape: tuple[int, int, int, int], size: tuple[int, int], margin: int
) -> Callable[..., Tables]:
    """unit_padded of samples (N, H, W, C)."""
    out = (shape[0], *size, shape[3])

    def tables(record: Record) -> dict[str, set[int]]:
        image, row = divmod(record.program[0], size[0])
        y = _mirrored(row - margin, shape[1])
        loads, stores = set(), set()
        for k in _block(record.program[1], record.blocks["BLOCK"], size[1] * shape[3]):
            column, channel = divmod(k, shape[3])
            x = _mirrored(column - margin, shape[2])
            loads.add(_offset(shape, image, y, x, channel))
            stores.add(_offset(out, image, row, column, channel))
        return {"samples_ptr": loads, "y_ptr": stores}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        samples = torch.empty(shape, dtype=torch.uint8, device=META)
        kernels["unit_padded"](samples, 0.0, 255.0, 0.5, size, margin)
        return {"unit_padded_kernel": tables}

    return run


def _stored(
    shape: tuple[int, int, int, int], size: tuple[int, int], margin: int
) -> Callable[..., Tables]:
    """stored_samples of values (N, *size, C) in the place of samples (N, H, W, C)."""
    padded = (shape[0], *size, shape[3])

    def tables(record: Record) -> dict[str, set[int]]:
        (line, block, _), (image, row) = record.program, divmod(record.program[0], shape[1])
        loads, stores = set(), set()
        for k in _block(block, record.blocks["BLOCK"], shape[2] * shape[3]):
            column, channel = divmod(k, shape[3])
            loads.add(_offset(padded, image, row + margin, column + margin, channel))
            stores.add(_offset(shape, image, row, column, channel))
        blocks = -(-shape[2] * shape[3] // record.blocks["BLOCK"])
        of = {"values_ptr": loads, "samples_ptr": stores, "y_ptr": stores}
        return {**of, "flags_ptr": {line * blocks + block}}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        samples = torch.empty(shape, dtype=torch.uint16, device=META)
        values = torch.empty(padded, device=META).permute(0, 3, 1, 2)
        kernels["stored_samples"](values, samples, 0.0, 1.0, 0.5, (0, 65535), True, margin)
        return {"stored_samples_kernel": tables}

    return run


def _limit(shape: tuple[int, int, int, int]) -> Callable[..., Tables]:
    """limit_residual of images (N, H, W, C): all its three launches."""
    count, height, width, channels = shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX

    def power(record: Record) -> dict[str, set[int]]:
        band = record.program[0]
        blocks = _block(record.program[1], record.blocks["BLOCKS"], columns)
        across = range(blocks[0] * BLOCK_PX * channels, (blocks[-1] + 1) * BLOCK_PX * channels)
        lines = range(band * BLOCK_PX, (band + 1) * BLOCK_PX)
        loads = {line * width * channels + k for line in lines for k in across}
        stores = {band * columns + block for block in blocks}
        return {"input_ptr": loads, "output_ptr": loads, "power_ptr": stores}

    def factor(record: Record) -> dict[str, set[int]]:
        image, row = divmod(record.program[0], rows)
        blocks = _block(record.program[1], record.blocks["BLOCKS"], columns)
        loads = {
            (image * rows + row + down) * columns + block + across
            for block in blocks
            for down, across in product((-1, 0, 1), repeat=2)
            if 0 <= row + down < rows and 0 <= block + across < columns
        }
        stores = {record.program[0] * columns + block for block in blocks}
        return {"power_ptr": loads, "level_ptr": {image}, "factor_ptr": stores}

    def limit(record: Record) -> dict[str, set[int]]:
        image, row = divmod(record.program[0], height)
        touched, factors = set(), set()
        for k in _block(record.program[1], record.blocks["BLOCK"], width * channels):
            column = k // channels
            touched.add(_offset(shape, image, row, column, k % channels))
            factors |= {
                (image * rows + y) * columns + x
                for y in _beside(row, rows)
                for x in _beside(column, columns)
            }
        images = dict.fromkeys(("input_ptr", "output_ptr", "y_ptr"), touched)
        return {**images, "factor_ptr": factors}

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        image = torch.empty(shape, device=META).permute(0, 3, 1, 2)
        kernels["limit_residual"](image, image, torch.empty(count, device=META), 2.0)
        return {
            "residual_power_kernel": power,
            "residual_factor_kernel": factor,
            "limit_residual_kernel": limit,
        }

    return run


def _beside(position: int, extent: int) -> set[int]:
    """A pixel's block, and the nearest other one."""
    block, offset = divmod(position, BLOCK_PX)
    other = block + 1 if offset >= BLOCK_PX // 2 else block - 1
    return {block, min(max(other, 0), extent - 1)}


def _declined(name: str) -> Callable[..., Tables]:
    op, _, beyond = DECLINED[name]

    def run(kernels: Mapping[str, Callable[..., Any]]) -> Tables:
        try:
            kernels[op](*beyond())
        except Exception as error:
            if type(error).__name__ == "NotCoveredError":  # a mutant has a class of its own
                return {}
            raise
        raise AssertionError("it was not declined")

    return run


SQUARE, HALVED = ConvGeometry(padding=(1, 1)), ConvGeometry(stride=(2, 2))
# 2³¹ − 4096 positions in images of 64×64: the most that is not declined, but for one image.
MANY = (2**31 - 4096) // 4096
WIDE = 2**19 + 2**14  # channels that take 4096 positions, and 63 of 64 images, beyond 2³¹ elements
_CASES = {
    "offsets-conv-many-images": _conv((MANY, 64, 64, 32), 32, 1, ConvGeometry()),
    "offsets-conv-large-image": _conv((3, 8191, 8191, 32), 32, 3, SQUARE, has_residual=True),
    "offsets-conv-flat-many-images": _conv((MANY, 64, 64, 3), 12, 3, SQUARE),
    "offsets-conv-flat-large-image": _conv((2, 26752, 26752, 3), 12, 4, HALVED),
    "offsets-conv-unshuffle": _conv((2, 26752, 26752, 3), 12, 3, SQUARE, unshuffle=2),
    "offsets-conv-upsample": _conv((2, 8190, 8190, 16), 8, 3, SQUARE, upsample=2),
    "offsets-conv-shuffle": _conv((2, 8190, 8190, 32), 32, 3, SQUARE, shuffle=2, has_residual=True),
    "offsets-transposed-many-images": _conv_transpose((MANY, 63, 63, 16), 8, 3, HALVED),
    "offsets-transposed-large-image": _conv_transpose((3, 4095, 4095, 32), 32, 3, HALVED),
    "offsets-weight-gradient-large": _weight_grad((64, 8, 8, WIDE), 16, 1, ConvGeometry()),
    "offsets-weight-gradient-small": _weight_grad((64, 8, 8, 16), WIDE, 1, ConvGeometry()),
    "offsets-relu-many-rows": _relu_backward((MANY, 64, 64, 16)),
    "offsets-relu-many-channels": _relu_backward((64, 8, 8, WIDE)),
    "offsets-loss": _loss(2**31 + 5000),
    "offsets-unit-many-images": _unit((2**20, 32, 32, 3), (61, 48), 9),
    "offsets-unit-large-image": _unit((2, 26720, 26720, 3), (26752, 26752), 16),
    "offsets-stored-many-images": _stored((2**20, 32, 40, 3), (48, 48), 5),
    "offsets-stored-large-image": _stored((2, 26720, 26720, 3), (26752, 26752), 16),
    # More than 2³¹ values, of fewer samples.
    "offsets-stored-many-padded-images": _stored((2**21, 16, 8, 1), (48, 48), 30),
    "offsets-stored-many-flags": _stored((2**20, 1025, 1025, 1), (1025, 1025), 0),
    # More than 2³¹ blocks.
    "offsets-limit-many-images": _limit((2**26, 16, 256, 3)),
    "offsets-limit-large-image": _limit((2, 26752, 26752, 3)),
    **{name: _declined(name) for name in DECLINED},
}
assert tuple(_CASES) == OFFSETS
