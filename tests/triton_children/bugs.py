"""Bugs to put into the kernels, as replacements of source. Knows nothing of Triton."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in a file of kernels/cuda; `cases` are what should notice."""

    name: str
    file: str
    old: str
    new: str
    cases: tuple[str, ...]


SMALL, FLAT = "k3-p1-33-to-40-forward-float32", "k4-s2-3-to-24-forward-float32"
UP, BACK = "transposed-k3-s2-p1-op1-forward-float32", "k2-s2-odd-image-backward-float32"
LARGE, LARGE_UP = (
    "tile128-k3-p1-17-to-18-forward-bfloat16",
    "tile128-transposed-k3-s2-18-to-16-forward-bfloat16",
)
DROPPED = "mask_m = (m < positions) & ((BLOCK_M < 128) | (m % BLOCK_M < BLOCK_M - 1))"
MUTANTS = (
    Mutant(
        "nothing",
        "conv_forward.py",
        "",
        "",
        (
            *(SMALL, FLAT, UP, BACK, LARGE, LARGE_UP, "end-stem-told-float32", "offsets-loss"),
            *("offsets-unit-many-images", "offsets-stored-many-flags", "declined-unit-padded-rows"),
        ),
    ),
    Mutant(
        "conv_forward: positions beyond the last are read",
        "conv_forward.py",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)",
        (SMALL,),
    ),
    Mutant(
        "conv_forward: positions beyond the last are written",
        "conv_forward.py",
        "    mask = mask_m[:, None] & mask_n[None, :]\n",
        "    mask = mask_n[None, :] & (m >= 0)[:, None]\n",
        (SMALL,),
    ),
    Mutant(
        "conv_forward: the last row of a large tile is dropped",
        "conv_forward.py",
        "mask_m = m < positions",
        DROPPED,
        (LARGE,),
    ),
    Mutant(
        "conv_forward: the padding on top is not zero",
        "conv_forward.py",
        "inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & mask_m",
        "inside = (y < height) & (x >= 0) & (x < width) & mask_m",
        (SMALL,),
    ),
    Mutant(
        "conv_forward: channels beyond the last are undefined",
        "conv_forward.py",
        "mask=inside[:, None] & mask_k[None, :],\n                other=0.0,",
        "mask=inside[:, None] & mask_k[None, :],",
        (SMALL,),
    ),
    Mutant(
        "conv_forward: tiles of columns overlap",
        "conv_forward.py",
        "n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)",
        "n = tl.program_id(1) * (BLOCK_N - 1) + tl.arange(0, BLOCK_N)",
        ("k1-130-columns-forward-float32",),
    ),
    Mutant(
        "conv_forward: the flat axis mixes up row and column",
        "conv_forward.py",
        "y = top[:, None] + (tap // KW)[None, :]",
        "y = top[:, None] + (tap % KW)[None, :]",
        (FLAT,),
    ),
    Mutant(
        "conv_forward: shuffled columns in torch's order",
        "conv_forward.py",
        "within = n // (OUT_W * PIXEL) * out_pitch + n % (OUT_W * PIXEL)",
        "within = n % OUT_W * PIXEL + n // OUT_W % OUT_H * out_pitch + n // (OUT_H * OUT_W)",
        ("fused-head-shuffle2-float32",),
    ),
    Mutant(
        "conv_forward: the padding of what is standardised is not zero",
        "conv_forward.py",
        "a = tl.where(mask_x, (a.to(tl.float32) - mean[None, :]) * scale[None, :], 0.0)",
        "a = (a.to(tl.float32) - mean[None, :]) * scale[None, :]",
        ("end-stem-float32",),
    ),
    Mutant(
        "conv_forward: constant channels go on beyond the image",
        "conv_forward.py",
        "is_plane = mask & (channel",
        "is_plane = mask_m[:, None] & (channel",
        ("end-stem-told-float32",),
    ),
    Mutant(
        "conv_forward: the first image's gate for all",
        "conv_forward.py",
        "acc *= tl.load(gate_ptr + image,",
        "acc *= tl.load(gate_ptr + image * 0,",
        ("end-head-gate-float32",),
    ),
    Mutant(
        "conv_transpose: phases start at the wrong tap",
        "conv_transpose.py",
        "first_h = (phase_h + PAD_H) % STRIDE_H",
        "first_h = phase_h % STRIDE_H",
        (UP,),
    ),
    Mutant(
        "conv_transpose: a phase's last row is beyond the image",
        "conv_transpose.py",
        "& (oh < out_height) & (ow < out_width)",
        "& (ow < out_width)",
        (BACK,),
    ),
    Mutant(
        "samples: one reflection only",
        "samples.py",
        "return tl.minimum(inside, period - inside)",
        "return tl.minimum(tl.maximum(position, -position), size - 1)",
        ("unit-padded-uint8",),
    ),
    Mutant(
        "samples: images one after the other",
        "samples.py",
        "source = image * image_stride",
        "source = image * height * width * C",
        ("unit-padded-uint16",),
    ),
    Mutant(
        "samples: every row's flag at one address",
        "samples.py",
        "flags_ptr + row.to(tl.int64) * tl.num_programs(1)",
        "flags_ptr + row.to(tl.int64) * 0",
        ("stored-samples-uint8",),
    ),
    Mutant(
        "guard: blocks beyond the edge count",
        "guard.py",
        "count += is_there.to(tl.float32)",
        "count += 1.0",
        ("limit-residual-float32",),
    ),
    Mutant(
        "guard: the first image's level for all",
        "guard.py",
        "tl.load(level_ptr + band // rows)",
        "tl.load(level_ptr + band // rows * 0)",
        ("limit-residual-float32",),
    ),
    Mutant(
        "guard: factors are not between the blocks' centres",
        "guard.py",
        "offset = (position % SIDE + 0.5) / SIDE - 0.5",
        "offset = (position % SIDE) / SIDE - 0.5",
        ("limit-residual-gray-float32",),
    ),
    Mutant(
        "weight gradient: parts overlap",
        "weight_grad.py",
        "end = tl.minimum(start + part, positions)",
        "end = positions",
        ("split-weight-gradient-float32",),
    ),
    Mutant(
        "weight gradient: all parts at one address",
        "weight_grad.py",
        "target = tl.program_id(2).to(tl.int64) * (ROWS * CS)",
        "target = tl.program_id(2).to(tl.int64) * 0",
        ("split-weight-gradient-float32",),
    ),
    Mutant(
        "weight gradient: rows and columns of the kernel exchanged",
        "weight_grad.py",
        "grad.permute(3, 2, 0, 1)",
        "grad.permute(3, 2, 1, 0)",
        (BACK,),
    ),
    Mutant(
        "loss: every program's sum at one address",
        "loss.py",
        "tl.store(sums_ptr + tl.program_id(0), tl.sum(difference * difference, axis=0))",
        "tl.store(sums_ptr, tl.sum(difference * difference, axis=0))",
        ("mse-5003-float32",),
    ),
    Mutant(
        "activations: NaN becomes 0",
        "epilogue.py",
        "tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)",
        "tl.maximum(acc, 0.0)",
        ("nan-relu-float32",),
    ),
    Mutant(
        "positions: an image's offset in int32",
        "epilogue.py",
        "return (row // height).to(tl.int64), row % height, m % width",
        "return row // height, row % height, m % width",
        (
            "offsets-conv-many-images",
            "offsets-conv-flat-many-images",
            "offsets-conv-large-image",
            "offsets-transposed-many-images",
            "offsets-weight-gradient-large",
        ),
    ),
    Mutant(
        "weight gradient: the small image's offset in int32",
        "weight_grad.py",
        "k.to(tl.int64) * CS",
        "k * CS",
        ("offsets-weight-gradient-small",),
    ),
    Mutant(
        "relu_backward: a row's offset in int32",
        "relu_backward.py",
        "row.to(tl.int64)[:, None] * C",
        "row[:, None] * C",
        ("offsets-relu-many-rows", "offsets-relu-many-channels"),
    ),
    Mutant(
        "loss: a block's offset in int32",
        "loss.py",
        "tl.program_id(0).to(tl.int64) * BLOCK",
        "tl.program_id(0) * BLOCK",
        ("offsets-loss",),
    ),
    Mutant(
        "samples: the offset of an image in int32",
        "samples.py",
        "image = (row // padded_height).to(tl.int64)",
        "image = row // padded_height",
        ("offsets-unit-many-images",),
    ),
    Mutant(
        "samples: the offset of a padded row in int32",
        "samples.py",
        "target = row.to(tl.int64) * padded_width * C",
        "target = row * padded_width * C",
        ("offsets-unit-many-images", "offsets-unit-large-image"),
    ),
    Mutant(
        "samples: the offset of an image's values in int32",
        "samples.py",
        "image = (row // height).to(tl.int64)",
        "image = row // height",
        (
            "offsets-stored-many-images",
            "offsets-stored-many-padded-images",
            "offsets-stored-large-image",
        ),
    ),
    Mutant(
        "samples: the offset of a row in int32",
        "samples.py",
        "target = row.to(tl.int64) * width * C",
        "target = row * width * C",
        ("offsets-stored-many-images", "offsets-stored-large-image"),
    ),
    Mutant(
        "samples: a flag's offset in int32",
        "samples.py",
        "flags_ptr + row.to(tl.int64) * tl",
        "flags_ptr + row * tl",
        ("offsets-stored-many-flags",),
    ),
    Mutant(
        "samples: images of any size are taken",
        "samples.py",
        "    check_extent(*samples.shape)",
        "    pass",
        (
            "declined-unit-padded-elements",
            "declined-unit-padded-height",
            "declined-unit-padded-width",
            "declined-stored-samples-elements",
        ),
    ),
    Mutant(
        "samples: images are padded to any size",
        "samples.py",
        "    check_extent(*output.shape)",
        "    pass",
        ("declined-unit-padded-padded-elements", "declined-unit-padded-padded-rows"),
    ),
    Mutant(
        "samples: values of any size are taken",
        "samples.py",
        "    check_extent(*values.shape)",
        "    pass",
        ("declined-stored-samples-padded-elements",),
    ),
    Mutant(
        "samples: any number of rows is taken",
        "samples.py",
        "count * height, 4 * height",
        "0",
        (
            "declined-unit-padded-rows",
            "declined-unit-padded-height",
            "declined-limit-residual-rows",
        ),
    ),
    Mutant(
        "samples: rows of any length are taken",
        "samples.py",
        "if width * channels > MOST_BLOCKS * BLOCK:",
        "if False:",
        ("declined-unit-padded-width",),
    ),
    Mutant(
        "guard: the offset of a block's pixels in int32",
        "guard.py",
        "band = tl.program_id(0).to(tl.int64)",
        "band = tl.program_id(0)",
        ("offsets-limit-many-images", "offsets-limit-large-image"),
    ),
    Mutant(
        "guard: the offset of the power beside a block in int32",
        "guard.py",
        "(band + down).to(tl.int64) * columns",
        "(band + down) * columns",
        ("offsets-limit-many-images",),
    ),
    Mutant(
        "guard: the offset of a block's factor in int32",
        "guard.py",
        "factor_ptr + band.to(tl.int64) * columns",
        "factor_ptr + band * columns",
        ("offsets-limit-many-images",),
    ),
    Mutant(
        "guard: the offset of an image's factors in int32",
        "guard.py",
        "(line // height).to(tl.int64) * rows",
        "(line // height) * rows",
        ("offsets-limit-many-images",),
    ),
    Mutant(
        "guard: the offset of a row in int32",
        "guard.py",
        "at = line.to(tl.int64) * width * C",
        "at = line * width * C",
        ("offsets-limit-many-images", "offsets-limit-large-image"),
    ),
    Mutant(
        "guard: images of any size are taken",
        "guard.py",
        "    check_extent(count, height, width, channels)",
        "    pass",
        ("declined-limit-residual-elements", "declined-limit-residual-rows"),
    ),
    Mutant(
        "guard: rows of any length are taken",
        "guard.py",
        "if width > MOST_BLOCKS * BLOCKS * BLOCK_PX:",
        "if False:",
        ("declined-limit-residual-width",),
    ),
    Mutant(
        "relu_backward: no gradient where the output is NaN",
        "relu_backward.py",
        "tl.where(output <= 0.0, 0.0, grad.to(tl.float32))",
        "tl.where(output > 0.0, grad.to(tl.float32), 0.0)",
        ("k4-s2-3-to-24-backward-float32",),
    ),
    Mutant(
        "relu_backward: the gradient passes where the output is 0",
        "relu_backward.py",
        "output <= 0.0",
        "output < 0.0",
        ("k4-s2-3-to-24-backward-float32",),
    ),
)
