"""Triton's interpreter made as strict as a GPU: for children that run with TRITON_INTERPRET=1.

The interpreter of Triton 3.7.1 multiplies bfloat16 as 16-bit integers, truncates where a GPU
rounds, keeps NaN where a GPU's maximum drops it, reads and writes outside of tensors, reads 0 where
a masked load leaves a lane undefined, and lets programs race in whatever order it runs them.
`install` mends the arithmetic and raises on the rest: out of bounds on every lane, two programs at
one address, integer overflow, depth < 16.

It replaces private functions, so it is pinned to the version that it was written for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

VERSION = "3.7.1"
BUILDER = interpreter.interpreter_builder
BF16 = tl.bfloat16


class GuardError(Exception):
    """What a GPU would have done silently wrong, or refused."""


class Memory:
    """The tensors of one launch, and which program wrote and read every element."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        spans: dict[int, tuple[int, int]] = {}
        for tensor in tensors:
            first = tensor.data_ptr()
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            end = first + (last + 1) * tensor.element_size() if tensor.numel() else first
            spans[first] = (max(end, spans.get(first, (end, 0))[0]), tensor.element_size())
        rows = sorted((first, end, size) for first, (end, size) in spans.items())
        self.first = np.array([row[0] for row in rows], np.uint64)
        self.end = np.array([row[1] for row in rows], np.uint64)
        self.item = [row[2] for row in rows]
        counts = [(end - first) // size for first, end, size in rows]
        self.writer = [np.full(count, -1, np.int64) for count in counts]
        self.reader = [np.full(count, -1, np.int64) for count in counts]

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        """Check one load, store or atomic of the running program."""
        pointers = np.asarray(pointers)
        active = pointers[np.broadcast_to(np.asarray(mask).astype(bool), pointers.shape)].ravel()
        if not active.size:
            return
        owner = np.searchsorted(self.first, active, side="right").astype(np.int64) - 1
        outside = (owner < 0) | (active >= self.end[np.maximum(owner, 0)])
        if outside.any():
            count = int(outside.sum())
            raise GuardError(f"{kind}: {count} of {active.size} lanes outside of every tensor")
        x, y, z = BUILDER.grid_idx
        program = (x * BUILDER.grid_dim[1] + y) * BUILDER.grid_dim[2] + z
        for index in np.unique(owner):
            bytes_in = active[owner == index] - self.first[index]
            elements = (bytes_in // np.uint64(self.item[index])).astype(np.int64)
            if kind == "load":
                self._load(program, elements, self.writer[index], self.reader[index])
            elif kind == "store":
                self._store(program, elements, self.writer[index], self.reader[index])

    def _load(self, program: int, elements: Any, writer: Any, reader: Any) -> None:
        wrote = writer[elements]
        if ((wrote != -1) & (wrote != program)).any():
            raise GuardError(f"race: program {program} reads what another wrote in this launch")
        read = reader[elements]
        reader[elements] = np.where((read == -1) | (read == program), program, -2)

    def _store(self, program: int, elements: Any, writer: Any, reader: Any) -> None:
        if np.unique(elements).size != elements.size:
            raise GuardError(f"race: two lanes of program {program} store to one address")
        wrote, read = writer[elements], reader[elements]
        if ((wrote != -1) & (wrote != program)).any():
            raise GuardError(f"race: program {program} stores where another stored")
        if ((read != -1) & (read != program)).any():
            raise GuardError(f"race: program {program} overwrites what another read")
        writer[elements] = program


class Guard:
    """What is installed, and the memory of the running launch."""

    def __init__(self) -> None:
        self.memory = Memory([])
        self.launches = 0

    def begin(self, args: Sequence[Any]) -> None:
        """A launch with these host arguments."""
        self.launches += 1
        self.memory = Memory([a for a in args if isinstance(a, Tensor)])


GUARD = Guard()


def install() -> Guard:
    """Replace the interpreter's arithmetic and memory accesses; once a process."""
    assert triton.__version__ == VERSION, f"look through the guard again for {triton.__version__}"
    BUILDER.options = interpreter.InterpreterOptions(sanitize_overflow=True, debug=True)
    BUILDER.codegen_fns["min_dot_size"] = lambda left, right: (1, 1, 16)
    _install_arithmetic(interpreter.InterpreterBuilder)
    _install_memory(interpreter.InterpreterBuilder)
    begin = interpreter.GridExecutor._init_args_hst

    def begin_guarded(self: Any, args: Any, kwargs: Any) -> Any:
        result = begin(self, args, kwargs)
        # What the programs see: copies on the host of a GPU's tensors, here the tensors.
        GUARD.begin([*result[0], *result[1].values()])
        return result

    interpreter.GridExecutor._init_args_hst = begin_guarded
    return GUARD


def bf16_to_float(bits: Any) -> Any:
    """uint16 bit patterns as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bf16(values: Any) -> Any:
    """float32 to the nearest bfloat16, ties to even, as bit patterns."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _install_arithmetic(builder: Any) -> None:
    cast, round_to, binary = builder.cast_impl, builder.create_fp_to_fp, builder.binary_op

    def cast_exactly(self: Any, source: Any, target: Any) -> Any:
        have, want = source.dtype.scalar, target.scalar
        if have == BF16 and want == BF16:
            return source
        if have == BF16:
            values = bf16_to_float(source.data)
            return interpreter.TensorHandle(values.astype(interpreter._get_np_dtype(want)), want)
        if want == BF16:
            return interpreter.TensorHandle(float_to_bf16(source.data.astype(np.float32)), want)
        return cast(self, source, target)

    def round_exactly(self: Any, source: Any, target: Any, mode: Any) -> Any:
        if BF16 in (source.dtype.scalar, target.scalar):
            return cast_exactly(self, source, target)
        return round_to(self, source, target, mode)

    def dot(self: Any, left: Any, right: Any, acc: Any, precision: Any, imprecise: Any) -> Any:
        operands = [
            bf16_to_float(side.data)
            if side.dtype.scalar == BF16
            else side.data.astype(acc.data.dtype)
            for side in (left, right)
        ]
        return interpreter.TensorHandle(np.matmul(*operands) + acc.data, acc.dtype.scalar)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar == BF16:
            raise GuardError("bfloat16 arithmetic in a kernel: convert to float32 first")
        return binary(self, left, right, op)

    builder.cast_impl, builder.create_fp_to_fp = cast_exactly, round_exactly
    builder.create_dot, builder.binary_op = dot, binary_op
    # A GPU's maximum of NaN and a number is the number, unless it is asked to pass NaN on.
    builder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, np.fmax)


def _install_memory(builder: Any) -> None:
    load, store = builder.create_masked_load, builder.create_masked_store

    def guarded_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        GUARD.memory.access("load", pointers.data, mask.data)
        if other is None and not np.all(mask.data):
            other = _undefined(pointers)
        return load(self, pointers, mask, other, *rest)

    def guarded_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        GUARD.memory.access("store", pointers.data, mask.data)
        return store(self, pointers, value, mask, *rest)

    def no_atomics(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise GuardError("an atomic: results would depend on the order of programs")

    builder.create_masked_load, builder.create_masked_store = guarded_load, guarded_store
    builder.create_atomic_rmw = no_atomics


def _undefined(pointers: Any) -> Any:
    """What a GPU leaves in a masked lane without `other`: anything, so NaN or the largest."""
    dtype = pointers.get_element_ty()
    kind = interpreter._get_np_dtype(dtype)
    value: Any = np.uint16(0x7FC0)
    if dtype != BF16:
        value = np.nan if kind.kind == "f" else np.iinfo(kind).max if kind.kind in "iu" else True
    return interpreter.TensorHandle(np.full(pointers.data.shape, value, kind), dtype)
