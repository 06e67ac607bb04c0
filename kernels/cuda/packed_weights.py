"""Weights as the kernels read them: (kh, kw, L, S) contiguous, L the larger image's channels.

One layout serves both directions. `conv_forward` sums over L for every column S, `conv_transpose`
over S for every column L: the same memory with its two inner strides exchanged. Packing a weight
costs a launch, so a packed weight is kept as long as its weight lives and does not change.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# weight → its address and version, and what was made of it, by kind
_Entry = tuple[int, int, dict[Hashable, Tensor]]
_entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed(weight: Tensor, dtype: torch.dtype, shuffle: int = 1) -> Tensor:
    """(S, L, kh, kw) → (kh, kw, L, S), contiguous, in `dtype`.

    Args:
        weight: a convolution's, or a transposed one's, which is (S, L, kh, kw) too.
        dtype: of the result.
        shuffle: r of a pixel shuffle behind it: S, in the order (c, i, j), is put into the order
            (i, j, c) in which a block of r × r pixels is stored.
    """

    def pack() -> Tensor:
        s, large, kh, kw = weight.shape
        split = weight.view(s // shuffle**2, shuffle**2, large, kh, kw)
        return split.permute(3, 4, 2, 1, 0).to(dtype).contiguous().view(kh, kw, large, s)

    return kept(weight, (dtype, shuffle), pack)


def kept(weight: Tensor, kind: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """What `make` made of the weight as it is now, under the name `kind`; made once."""
    if weight.is_inference():  # its changes leave no trace
        return make()
    now = weight.data_ptr(), weight._version
    entry: _Entry | None = _entries.get(weight)
    if entry is None or entry[:2] != now:
        entry = (*now, {})
        _entries[weight] = entry
    made = entry[2].get(kind)
    if made is None:
        made = entry[2][kind] = make()
    return made
