"""S = conv_forward(L): convolution as an implicit GEMM, with its neighbours in the same launch.

Rows are output positions, columns output channels, the depth runs over taps and channels of L. The
windows are never written: each step loads, for BLOCK_M positions, BLOCK_K channels of one tap,
which are contiguous in NHWC. An image of few channels is read with (tap, channel) as one flat axis.

On the way in: standardisation, nearest upsampling, pixel unshuffle, constant channels, conversion.
On the way out: bias, ReLU or sigmoid, a gate, a residual, pixel shuffle, conversion. A transposed
convolution whose stride is its kernel is a convolution of one tap with a shuffle behind it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotCoveredError
from ..geometry import ConvGeometry, IntPair
from .epilogue import ACTIVATIONS, activate, as_position
from .tiles import conv_tile

FLAT_BELOW = 16  # channels
LARGEST_BLOCK = 2048  # positions of one program: a count may go beyond the last by as much


@triton.jit(do_not_specialize=["positions", "height", "width", "out_height", "out_width"])
def conv_forward_kernel(
    x_ptr,  # (N, height/UP_H or ·IN, …, (CI − PLANES)/IN²) NHWC
    w_ptr,  # (KH, KW, CI, CO) by its strides
    bias_ptr,  # (BIAS,), column n takes n mod BIAS
    residual_ptr,  # as y
    standard_ptr,  # (2, (CI − PLANES)/IN²): means, 1/deviations
    planes_ptr,  # (N, PLANES): the last of CI channels
    gate_ptr,  # (N,)
    y_ptr,  # (N, out_height·OUT_H, out_width·OUT_W, CO/(OUT_H·OUT_W)) NHWC
    positions,  # N·out_height·out_width
    height,  # of L as the taps see it: upsampled, unshuffled
    width,
    out_height,
    out_width,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    UP_H: tl.constexpr,
    UP_W: tl.constexpr,
    IN: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    W_K: tl.constexpr,  # strides of w: along CI …
    W_N: tl.constexpr,  # … and along CO
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,  # 0 for none
    HAS_RESIDUAL: tl.constexpr,
    HAS_STANDARD: tl.constexpr,  # it and PLANES only if IS_FLAT
    PLANES: tl.constexpr,  # 0 for none
    HAS_GATE: tl.constexpr,
    IS_FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of positions × columns."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < positions
    image, oh, ow = as_position(m, out_height, out_width)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < CO
    top = oh * STRIDE_H - PAD_H
    left = ow * STRIDE_W - PAD_W
    # int64 up to the image, int32 inside it.
    X: tl.constexpr = (CI - PLANES) // (IN * IN)  # channels of x
    row_pitch = width // UP_W * IN * X
    x_image = x_ptr + image * (height // UP_H * IN * row_pitch)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if IS_FLAT:
        for start in range(0, KH * KW * CI, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask_k = k < KH * KW * CI
            tap = k // CI
            channel = k % CI
            y = top[:, None] + (tap // KW)[None, :]
            x = left[:, None] + (tap % KW)[None, :]
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            # Channel c·IN² + i·IN + j of (y, x) is channel c of pixel (y·IN + i, x·IN + j).
            i = channel // IN % IN
            j = channel % IN
            source = (y // UP_H * IN + i[None, :]) * row_pitch
            source += (x // UP_W * IN + j[None, :]) * X
            source += (channel // (IN * IN))[None, :]
            mask = inside & mask_m[:, None] & mask_k[None, :]
            of_x = channel < CI - PLANES
            mask_x = mask & of_x[None, :]
            a = tl.load(x_image[:, None] + source, mask=mask_x, other=0.0)  # [BLOCK_M, BLOCK_K]
            if HAS_STANDARD:
                c = channel // (IN * IN)
                mean = tl.load(standard_ptr + c, mask=of_x, other=0.0)
                scale = tl.load(standard_ptr + X + c, mask=of_x, other=0.0)
                a = tl.where(mask_x, (a.to(tl.float32) - mean[None, :]) * scale[None, :], 0.0)
            for plane in tl.static_range(PLANES):
                value = tl.load(planes_ptr + image * PLANES + plane, mask=mask_m, other=0.0)
                is_plane = mask & (channel == CI - PLANES + plane)[None, :]
                a = tl.where(is_plane, value[:, None], a.to(tl.float32))
            a = a.to(w_ptr.dtype.element_ty)
            b = tl.load(
                w_ptr + (tap * (CI * CO) + channel * W_K)[:, None] + (n * W_N)[None, :],
                mask=mask_k[:, None] & mask_n[None, :],
                other=0.0,
            )  # [BLOCK_K, BLOCK_N]
            acc = tl.dot(a, b, acc, input_precision="ieee")
    else:
        STEPS: tl.constexpr = (CI + BLOCK_K - 1) // BLOCK_K
        for step in range(KH * KW * STEPS):
            tap = step // STEPS
            channel = step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
            mask_k = channel < CI
            y = top + tap // KW
            x = left + tap % KW
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m
            source = (y // UP_H) * row_pitch + (x // UP_W) * CI
            a = tl.load(
                x_image[:, None] + source[:, None] + channel[None, :],
                mask=inside[:, None] & mask_k[None, :],
                other=0.0,
            )
            b = tl.load(
                w_ptr + tap * (CI * CO) + (channel * W_K)[:, None] + (n * W_N)[None, :],
                mask=mask_k[:, None] & mask_n[None, :],
                other=0.0,
            )
            acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS > 0:
        acc += tl.load(bias_ptr + n % BIAS, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    if HAS_GATE:
        acc *= tl.load(gate_ptr + image, mask=mask_m, other=0.0)[:, None]
    # Column n = (i·OUT_W + j)·(CO/OUT²) + c is channel c of pixel (oh·OUT_H + i, ow·OUT_W + j).
    PIXEL: tl.constexpr = CO // (OUT_H * OUT_W)
    out_pitch = out_width * OUT_W * PIXEL
    corner = oh * OUT_H * out_pitch + ow * OUT_W * PIXEL
    within = n // (OUT_W * PIXEL) * out_pitch + n % (OUT_W * PIXEL)
    target = (image * (out_height * OUT_H * out_pitch) + corner)[:, None] + within[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + target, acc.to(y_ptr.dtype.element_ty), mask=mask)


def conv_forward(
    large: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: ConvGeometry,
    *,
    kernel: IntPair,
    weight_strides: IntPair,
    activation: str | None = None,
    residual: Tensor | None = None,
    upsample: IntPair = (1, 1),
    unshuffle: int = 1,
    shuffle: IntPair = (1, 1),
    standard: Tensor | None = None,
    planes: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """Fill `output` with gate · act(conv_forward(large) + bias) + residual.

    Args:
        large: (N, H, W, C) contiguous: the image before upsampling and unshuffling.
        weight: packed; of large's dtype or, if there are a standard or planes, a lower one.
        bias: None, or one value for each column; if fewer, they repeat.
        output: (N, oh·r, ow·r, C') contiguous, r the shuffle.
        geometry: stride, and zeros around large as the taps see it.
        kernel: kh, kw.
        weight_strides: of weight, along the channels summed over and along the columns.
        activation: None, "relu" or "sigmoid".
        residual: as output, or None.
        upsample: whole factors.
        unshuffle: r of a pixel unshuffle of large.
        shuffle: r of output, down and across.
        standard: (2, C) float32: large − its first row, times its second, is what is seen.
        planes: (N, P) float32: constant channels behind the unshuffled ones.
        gate: (N,) float32.
    """
    batch, height, width, channels = large.shape
    height, width = height * upsample[0] // unshuffle, width * upsample[1] // unshuffle
    constant = 0 if planes is None else planes.shape[1]
    channels = channels * unshuffle**2 + constant
    out_height, out_width = output.shape[1] // shuffle[0], output.shape[2] // shuffle[1]
    columns = output.shape[3] * shuffle[0] * shuffle[1]
    positions = batch * out_height * out_width
    is_flat = channels < FLAT_BELOW or unshuffle > 1 or large.dtype != weight.dtype
    is_flat = is_flat or standard is not None or constant > 0
    depth = kernel[0] * kernel[1] * channels if is_flat else channels
    is_like = {"is_flat": is_flat, "has_planes": constant > 0}
    tile = conv_tile(weight.dtype, positions, depth, columns, **is_like)
    check_extents(large, output, positions)
    conv_forward_kernel[(triton.cdiv(positions, tile.m), triton.cdiv(columns, tile.n))](
        large,
        weight,
        large if bias is None else bias,
        large if residual is None else residual,
        large if standard is None else standard,
        large if planes is None else planes,
        large if gate is None else gate,
        output,
        positions,
        height,
        width,
        out_height,
        out_width,
        CI=channels,
        CO=columns,
        KH=kernel[0],
        KW=kernel[1],
        STRIDE_H=geometry.stride[0],
        STRIDE_W=geometry.stride[1],
        PAD_H=geometry.padding[0],
        PAD_W=geometry.padding[1],
        UP_H=upsample[0],
        UP_W=upsample[1],
        IN=unshuffle,
        OUT_H=shuffle[0],
        OUT_W=shuffle[1],
        W_K=weight_strides[0],
        W_N=weight_strides[1],
        ACTIVATION=ACTIVATIONS[activation],
        BIAS=0 if bias is None else len(bias),
        HAS_RESIDUAL=residual is not None,
        HAS_STANDARD=standard is not None,
        PLANES=constant,
        HAS_GATE=gate is not None,
        IS_FLAT=is_flat,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def check_extents(large: Tensor, small: Tensor, positions: int) -> None:
    """Raise unless int32 counts the positions of the batch, and the elements of one image.

    Raises:
        NotCoveredError: it does not.
    """
    most = max(large[0].numel(), small[0].numel(), positions + LARGEST_BLOCK)
    if most >= torch.iinfo(torch.int32).max:
        raise NotCoveredError(f"{most} elements of an image, or positions: more than int32 counts")
