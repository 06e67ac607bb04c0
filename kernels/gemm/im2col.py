"""Small problems: one im2col for the whole batch, one product, one fold (course paper, II-A, II-B).

At a batch of 32×32 tiles a step is bound by the number of torch operations. The grid of `products`,
which cuts large images into chunks that fit the cache, needs about fifty per convolution; these
need five, and memory for all windows at once. They serve only where that is little and only
in training (`conv.is_small`): inference gives an image the same bits whatever its batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import ConvGeometry, IntPair


def conv_forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    geometry: ConvGeometry,
    *,
    relu: bool,
) -> None:
    """target = windows(image) · W + bias.

    Args:
        image: (N, H, W, L) of any strides.
        weight: (S, L, kh, kw).
        bias: (S,) or None.
        target: (N, oh, ow, S), contiguous.
        geometry: stride and padding of the windows.
        relu: whether negative results become 0.
    """
    kernel = (weight.shape[2], weight.shape[3])
    windows = windows_of(image, kernel, geometry, (target.shape[1], target.shape[2]))
    result = target.view(-1, len(weight))
    if bias is None:
        torch.mm(windows, matrix_of(weight), out=result)
    else:
        torch.addmm(bias, windows, matrix_of(weight), out=result)
    if relu:
        result.relu_()


def conv_transpose(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    geometry: ConvGeometry,
    *,
    relu: bool,
) -> None:
    """target = fold(small · Wᵀ) + bias, the adjoint of `conv_forward`.

    Args:
        small: (N, oh, ow, S) of any strides.
        weight: (S, L, kh, kw).
        bias: (L,) or None.
        target: (N, H, W, L), contiguous.
        geometry: stride, and padding that is cut off.
        relu: whether negative results become 0.
    """
    (kh, kw), padding = weight.shape[2:], geometry.padding
    around = (kh - 1 - padding[0], kw - 1 - padding[1])
    # What a convolution with so much padding gives; less than `target` if that has output padding.
    size = (small.shape[1] + around[0] - padding[0], small.shape[2] + around[1] - padding[1])
    if geometry.stride == (1, 1) and min(around) >= 0 and target.shape[1:3] == size:
        # With stride 1 the fold is itself a convolution, with the kernel turned by 180°.
        turned = weight.flip(2, 3).transpose(0, 1)
        conv_forward(small, turned, bias, target, ConvGeometry(padding=around), relu=relu)
        return
    columns = small.reshape(-1, len(weight)).mm(matrix_of(weight).T)
    target.copy_(fold(columns, small.shape, target.shape, (kh, kw), geometry, bias))
    if relu:
        target.relu_()


def weight_grad(large: Tensor, small: Tensor, kernel: IntPair, geometry: ConvGeometry) -> Tensor:
    """windows(large)ᵀ · small as (S, L, kh, kw), a view.

    Args:
        large: (N, H, W, L) of any strides.
        small: (N, oh, ow, S) of any strides.
        kernel: (kh, kw).
        geometry: stride and padding of the windows.
    """
    windows = windows_of(large, kernel, geometry, (small.shape[1], small.shape[2]))
    matrix = windows.T.mm(small.reshape(-1, small.shape[3]))
    return matrix.view(*kernel, large.shape[3], small.shape[3]).permute(3, 2, 0, 1)


def windows_of(image: Tensor, kernel: IntPair, geometry: ConvGeometry, size: IntPair) -> Tensor:
    """im2col: (N·oh·ow, kh·kw·C), a row for each window."""
    n, height, width, c = image.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, geometry.stride, geometry.padding
    if ph or pw:
        padded = image.new_zeros(n, height + 2 * ph, width + 2 * pw, c)
        padded[:, ph : ph + height, pw : pw + width] = image
    else:
        padded = image.contiguous()
    across, down = c, c * padded.shape[2]
    views = padded.as_strided(
        (n, *size, kh, kw, c),
        (down * padded.shape[1], sh * down, sw * across, down, across, 1),
    )
    return views.reshape(-1, kh * kw * c)


def fold(
    columns: Tensor,
    small: Sequence[int],
    large: Sequence[int],
    kernel: IntPair,
    geometry: ConvGeometry,
    bias: Tensor | None,
) -> Tensor:
    """The adjoint of `windows_of`, plus a bias: (N·oh·ow, kh·kw·L) → (N, H, W, L).

    Args:
        columns: what every position adds.
        small: (N, oh, ow, …).
        large: (N, H, W, L).
        kernel: (kh, kw).
        geometry: stride, and padding that is cut off.
        bias: (L,) or None.
    """
    n, height, width, c = large
    (kh, kw), (sh, sw), (ph, pw) = kernel, geometry.stride, geometry.padding
    # Room for every kernel, in whole strides, so that parts of s × s taps lie side by side.
    rows = max(height + 2 * ph, (small[1] - 1 + -(-kh // sh)) * sh)
    wide = max(width + 2 * pw, (small[2] - 1 + -(-kw // sw)) * sw)
    if bias is None:
        image = columns.new_zeros(n, rows, wide, c)
    else:
        image = bias.expand(n, rows, wide, c).contiguous()
    taps = columns.view(n, small[1], small[2], kh, kw, c)
    strides = image.stride()
    for top in range(0, kh, sh):
        for left in range(0, kw, sw):
            part = taps[:, :, :, top : top + sh, left : left + sw]
            image.as_strided(
                part.shape,
                (strides[0], sh * strides[1], sw * c, strides[1], c, 1),
                top * strides[1] + left * c,
            ).add_(part)
    return image[:, ph : ph + height, pw : pw + width]


def matrix_of(weight: Tensor) -> Tensor:
    """(S, L, kh, kw) as (kh·kw·L, S)."""
    return weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
