"""Weights as the kernels read them: (kh, kw, L, S) contiguous, L the larger image's channels.

One layout serves both directions. `conv_forward` sums over L for every column S, `conv_transpose`
over S for every column L: the same memory with its two inner strides exchanged. Parameters on such
a device lie in memory so (`Block.to`), with their gradients: packing is a view. Where it costs a
launch, the packed weight is kept as long as its weight lives and does not change.
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
        split = as_packed.reshape(kh, kw, large, s // shuffle**2, shuffle**2)
        return split.transpose(3, 4).to(dtype).reshape(kh, kw, large, s).contiguous()

    as_packed = weight.permute(2, 3, 1, 0)
    if weight.dtype == dtype and shuffle == 1 and as_packed.is_contiguous():
        return as_packed
    return kept(weight, (dtype, shuffle), pack)
