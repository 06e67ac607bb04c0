"""Weights as the kernels read them: (kh, kw, L, S) contiguous, L the larger image's channels.

One layout serves both directions. `conv_forward` sums over L for every column S, `conv_transpose`
over S for every column L: the same memory with its two inner strides exchanged. Packing a weight
costs a launch, so a packed weight is kept as long as its weight lives and does not change.
"""

import torch
from torch import Tensor

from ..weight_cache import kept


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
