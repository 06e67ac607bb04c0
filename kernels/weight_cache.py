"""What kernels make of a weight (another layout, a transform), kept while it does not change.

Packing a weight costs a launch or a pass over it. In inference it is done once; in training every
step changes the weights, so `kept_from_second_use` holds no memory for what is used once.
"""

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# weight → its address and version, and what was made of it, by kind
_Entry = tuple[int, int, dict[Hashable, Tensor | None]]
_entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def kept(weight: Tensor, kind: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """What `make` made of the weight as it is now, under the name `kind`; made once."""
    made = _made_of(weight)
    result = made.get(kind)
    if result is None:
        result = made[kind] = make()
    return result


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in a precision, kept; itself in its own."""
    return weight if weight.dtype == dtype else kept(weight, dtype, lambda: weight.to(dtype))


def renew(weights: Iterable[Tensor]) -> None:
    """Cast what `cast` has of weights that were moved anew, all together; drop all else."""
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for weight in weights:
        entry: _Entry | None = _entries.get(weight)  # type: ignore[no-untyped-call]
        if entry is None or entry[0] != weight.data_ptr():
            continue
        casts: dict[Hashable, Tensor | None] = {}
        for dtype, copy in entry[2].items():
            if isinstance(dtype, torch.dtype) and copy is not None:
                casts[dtype] = copy
                pairs.setdefault(dtype, []).append((copy, weight))
        if casts:
            _entries[weight] = (weight.data_ptr(), weight._version, casts)
    for both in pairs.values():
        copies, sources = map(list, zip(*both, strict=True))
        torch._foreach_copy_(copies, sources)


def kept_from_second_use(
    weight: Tensor, kind: Hashable, make: Callable[[], Tensor]
) -> Tensor | None:
    """The same, but None at the first use of a weight as it is now: it may be the only one."""
    made = _made_of(weight)
    if kind not in made:
        made[kind] = None
        return None
    return kept(weight, kind, make)


def forget(weights: Iterable[Tensor]) -> None:
    """Drop all that was made of weights which a kernel wrote to, unknown to torch."""
    for weight in weights:
        _entries.pop(weight, None)  # type: ignore[no-untyped-call]


def _made_of(weight: Tensor) -> dict[Hashable, Tensor | None]:
    if weight.is_inference():  # its changes leave no trace
        return {}
    now = weight.data_ptr(), weight._version
    entry: _Entry | None = _entries.get(weight)  # type: ignore[no-untyped-call]
    if entry is None or entry[:2] != now:
        entry = (*now, {})
        _entries[weight] = entry
    return entry[2]
