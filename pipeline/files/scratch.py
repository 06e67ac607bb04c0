"""Tensors that memory does not hold, in a file without a name: read when they are asked for."""

import ctypes
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from denoise_batch.kernels import ImageError
from denoise_batch.kernels.errors import StorageError, is_out_of_memory

from .atomic import lock, make_folder, temporary_name

S = TypeVar("S")
T = TypeVar("T")


class Lazy(Sequence[T], Generic[S, T]):
    """What a function makes of each item, anew whenever it is asked for.

    Args:
        make: of one item.
        items: of which.
    """

    def __init__(self, make: Callable[[S], T], items: Sequence[S]) -> None:
        self._make = make
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Lazy[S, T]": ...
    def __getitem__(self, place: int | slice) -> "T | Lazy[S, T]":
        if isinstance(place, slice):
            return Lazy(self._make, self._items[place])
        return self._make(self._items[place])


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a scratch file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


Places = tuple[Place | None, ...]


class Scratch:
    """A file for tensors that ends with this object, or with the process, killed or not.

    Any thread may use it. On Windows it keeps its name, and a killed process leaves it.

    Args:
        folder: whose file system it takes room on.
        mend: what to do, beside making room there, if it cannot be used.

    Attributes:
        on_use: called whenever it is written or read; what it raises ends that.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, folder: Path, mend: str = "choose another --output") -> None:
        self._mend = mend
        self.on_use: Callable[[], None] = lambda: None
        self._folder = folder
        self._path = temporary_name(folder / "pages")
        self._lock = threading.Lock()
        self._end = 0
        with self._failures():
            make_folder(folder)  # somebody may have removed it
            self._file: Any = self._path.open("x+b", buffering=0)
            lock(self._file.fileno())
            with suppress(
                OSError
            ):  # Windows, where an open file keeps its name; some shared folders
                self._path.unlink()

    def close(self) -> None:
        """Give the room back; nothing can be read any more."""
        with self._lock, suppress(OSError):
            self._file.close()
            self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def put(self, tensors: Sequence[Tensor | None], over: Places = ()) -> Places:
        """Store tensors, and return where they are.

        Args:
            tensors: on the CPU, of any shapes and types.
            over: places of as many that nobody needs any more, used again where there is room.

        Raises:
            StorageError: there is no room for them.
        """
        self.on_use()
        places: list[Place | None] = []
        for tensor, old in zip(tensors, over or [None] * len(tensors), strict=True):
            if tensor is None:
                places.append(None)
                continue
            whole = tensor.contiguous()
            size = whole.numel() * whole.element_size()
            with self._lock, self._failures():
                at = old.offset if old is not None and old.size >= size else self._end
                self._end = max(self._end, at + size)
                self._file.seek(at)
                left = memory(whole) if size else b""
                while left:
                    left = left[self._file.write(left) :]
            places.append(Place(at, whole.shape, whole.dtype))
        return tuple(places)

    def get(self, places: Places) -> tuple[Tensor | None, ...]:
        """Return the tensors at these places, in new memory.

        Raises:
            StorageError: they cannot be read.
        """
        self.on_use()
        return tuple(None if place is None else self._read(place) for place in places)

    def _read(self, place: Place) -> Tensor:
        try:
            tensor = torch.empty(place.shape, dtype=place.dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                "too little memory for a page; split it into smaller images"
            ) from error
        with self._lock, self._failures():
            self._file.seek(place.offset)
            left = memory(tensor) if place.size else memoryview(b"")
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise OSError(0, "it ended")
                left = left[count:]
        return tensor

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"its pages cannot be kept in {self._folder}: {error.strerror}; make room there, "
                f"or {self._mend}"
            ) from error


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable, not copied; valid as long as the tensor."""
    size = tensor.numel() * tensor.element_size()
    buffer = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return memoryview(buffer).cast("B")
