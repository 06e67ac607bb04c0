"""Counts what a GPU would launch: Triton kernels, which do not run here, and torch's operations."""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Launch:
    """A launch that was asked for."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Recording:
    """Stands in for a kernel."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self._name = name
        self._launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self._launches.append(Launch(self._name, grid, arguments, options))

        return launch


class Forgotten(list[Launch]):
    """Launches that nobody asks for, and whose tensors must not be kept alive."""

    def append(self, launch: Launch) -> None:
        """Drop it."""


def record_launches(
    monkeypatch: pytest.MonkeyPatch, found: list[Launch] | None = None
) -> list[Launch]:
    """What the launchers launch from now on, on tensors of any device: nothing runs."""
    pytest.importorskip("triton")
    from denoise_batch.kernels.cuda import (
        conv_forward,
        conv_transpose,
        guard,
        loss,
        relu_backward,
        samples,
        weight_grad,
    )

    found = [] if found is None else found
    modules = (conv_forward, conv_transpose, guard, loss, relu_backward, samples, weight_grad)
    for module in modules:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, _Recording(name, found))
    return found


# Operations that only make another view of memory, or take memory: no launch.
_FREE = {
    "alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand",
    "lift_fresh", "new_empty", "new_empty_strided", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
    "_reshape_alias",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts torch's operations on a device, those that launch something.

    Attributes:
        counts: by name.
        bytes: of the tensors that they read and write.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        given, made = (_tensors(value) for value in ((args, kwargs), result))
        is_here = any(tensor.device.type == self._device for tensor in [*given, *made])
        # In inference mode views have names of their own: "flatten", "to" of the same type.
        memory = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = bool(made) and all(x.untyped_storage()._cdata in memory for x in made)
        is_written = name.endswith("_") or "out" in (kwargs or {})
        if is_here and name not in _FREE and (is_written or not is_view):
            self.counts[name] += 1
            self.bytes += sum(x.numel() * x.itemsize for x in [*given, *made])
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class LiveBytes(TorchDispatchMode):
    """Memory of the tensors that live, as a caching allocator would hold it.

    Attributes:
        most: bytes at once, so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._owners: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in known:
                storage = leaf.untyped_storage()
                self._add(storage._cdata, storage.nbytes())
                weakref.finalize(leaf, self._remove, storage._cdata, storage.nbytes())
        return result

    def _add(self, storage: int, size: int) -> None:
        self._owners[storage] += 1
        if self._owners[storage] == 1:
            self._now += size
            self.most = max(self.most, self._now)

    def _remove(self, storage: int, size: int) -> None:
        self._owners[storage] -= 1
        if not self._owners[storage]:
            self._now -= size
