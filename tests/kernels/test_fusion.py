"""Which blocks become one launch, and that the launches give what the blocks give.

On the CPU the launches are done by gemm.fused, one op after the other; the kernels' own results are
in cuda/test_interpreted.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tolerances import assert_parity
from torch import Tensor

from denoise_batch.kernels import (
    Block,
    Conv2d,
    ConvTranspose2d,
    NearestUpsample2d,
    Normalize,
    PixelShuffle,
    PixelUnshuffle,
    ReflectPadded,
    ReLU,
    Residual,
    Sequential,
    ShapeError,
    Sigmoid,
    UpsampleConv2d,
    container,
    fusion,
)
from denoise_batch.kernels.container import forward_fused
from denoise_batch.kernels.dispatch import GEMM
from denoise_batch.kernels.fusion import Launch, plan
from denoise_batch.kernels.gemm.fused import conv2d_image
from denoise_batch.models import ARCHITECTURES, Network


def layers(name: str) -> Sequential:
    network = Network(name, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():  # as large as a trained network's
        parameter.normal_(0, max(parameter[0].numel(), 4) ** -0.5)
    network.set_level(torch.tensor([0.1]))  # of one image
    return network.layers.eval()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_launches_give_what_the_blocks_give(name: str) -> None:
    row = layers(name).to(dtype=torch.float64)
    image = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    assert_parity(forward_fused(row.blocks, image), row.train()(image))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_in_half_precision_too(name: str) -> None:
    row = layers(name).set_compute_dtype(torch.bfloat16)
    image = torch.rand(1, 3, 32, 32)
    output, expected = forward_fused(row.blocks, image), row.train()(image)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_unet_is_one_launch_a_convolution() -> None:
    stem, level, head = plan(layers("unet").blocks)
    assert isinstance(stem, Launch)
    assert isinstance(stem.before, PixelUnshuffle)
    assert not isinstance(level, Launch)  # a U-Net level, which is walked into
    assert isinstance(head, Launch)
    assert head.shuffle == 2


def test_a_residual_branch_may_end_in_a_gate() -> None:
    network = Network("unet-level", generator=torch.Generator().manual_seed(0)).eval()
    image, level = torch.rand(2, 3, 32, 32), torch.tensor([0.0, 0.1])
    network.set_level(level)
    added = forward_fused(network.layers.blocks, image, residual=image)
    assert torch.equal(added[0], image[0])
    torch.testing.assert_close(added, image + forward_fused(network.layers.blocks, image))


@pytest.fixture
def has_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a launch for a network's ends, which does what the specification does."""
    table = replace(GEMM, conv2d_image=_sound(conv2d_image))
    for module in (fusion, container):
        monkeypatch.setattr(module, "ops_for", lambda device: table)


def test_what_stands_between_images_and_layers_is_part_of_the_launches_at_the_ends() -> None:
    normalize = Normalize((0.4, 0.5, 0.6), 0.2)
    stem, level, head = plan([normalize, *layers("unet-level").blocks], has_ends=True)
    assert isinstance(stem, Launch)
    assert stem.normalize is normalize
    assert isinstance(stem.before, PixelUnshuffle)
    assert stem.append is not None
    assert not isinstance(level, Launch)
    assert isinstance(head, Launch)
    assert head.shuffle == 2
    assert head.gate is not None
    first, *_ = plan([normalize, *layers("tconv").blocks], has_ends=True)
    assert isinstance(first, Launch)
    assert first.normalize is normalize
    (alone,) = plan([normalize], has_ends=True)
    assert alone is normalize


@pytest.mark.usefixtures("has_ends")
@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_launches_at_the_ends_give_what_the_blocks_give(
    name: str, dtype: torch.dtype | None
) -> None:
    body = Sequential(Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), layers(name))
    network = Residual(body) if ARCHITECTURES[name].is_residual else body
    network.eval().set_compute_dtype(dtype)
    image = torch.rand(1, 3, 32, 48)
    output, expected = forward_fused([network], image), network.train()(image)
    assert output.dtype == expected.dtype
    scale = float(expected.abs().max())
    allowed = (1e-5 if dtype is None else 0.02) * scale
    torch.testing.assert_close(output, expected, rtol=0, atol=allowed)


def test_tconv_is_four_launches() -> None:
    steps = plan(layers("tconv").blocks)
    assert [type(step) for step in steps] == [Launch] * 4
    assert [getattr(s, "activation", None) for s in steps] == ["relu"] * 3 + ["sigmoid"]


def test_upsampling_and_sigmoid_are_part_of_the_launch() -> None:
    conv, sigmoid = Conv2d(24, 3, 3, padding=1), Sigmoid()
    (last,) = plan([NearestUpsample2d(2), conv, sigmoid])
    assert isinstance(last, Launch)
    assert isinstance(last.before, NearestUpsample2d)
    assert last.activation == "sigmoid"


ROWS: dict[str, list[Block]] = {
    "nothing-to-fuse": [ReLU(), Sigmoid()],
    "upsampling-without-a-convolution": [NearestUpsample2d(2), ReLU(), Conv2d(3, 3, 1)],
    "unshuffle-at-the-end": [Conv2d(3, 3, 1), PixelUnshuffle(2)],
    "upsampling-before-a-transposed-one": [NearestUpsample2d(2), ConvTranspose2d(3, 3, 2)],
    "two-activations": [Conv2d(3, 4, 3), ReLU(), Sigmoid(), Conv2d(4, 3, 1, bias=False)],
    "shuffle-behind-a-transposed-one": [ConvTranspose2d(3, 4, 2, stride=2), PixelShuffle(2)],
    "sequences-in-sequences": [Sequential(UpsampleConv2d(2, 3, 4, 3)), ReLU(), Conv2d(4, 3, 1)],
    "residual-of-a-pointwise-block": [Residual(ReLU())],
    "residual-of-two-convolutions": [Residual(Sequential(Conv2d(3, 4, 1), Conv2d(4, 3, 1)))],
    "residual-in-a-residual": [Residual(Residual(Conv2d(3, 3, 3, padding=1)))],
    "padded": [ReflectPadded(Conv2d(3, 3, 3, padding=1), multiple=8), ReLU()],
    "not-quite-tconv": [Conv2d(3, 5, 4, 2, padding=1), ReLU(), Conv2d(5, 4, 3, 2), ReLU()],
    "groups": [PixelUnshuffle(2), Conv2d(12, 4, 3, groups=4), ReLU(), Conv2d(4, 8, 1, groups=2)],
    "reflected": [Conv2d(3, 4, 3, padding=2, padding_mode="reflect"), ReLU(), Conv2d(4, 3, 1)],
    "reflected-between-shuffles": [
        PixelUnshuffle(2),
        Conv2d(12, 12, 3, padding=1, padding_mode="circular"),
        Sigmoid(),
        PixelShuffle(2),
    ],
    "same-of-an-even-kernel": [NearestUpsample2d(2), Conv2d(3, 3, 4, padding="same"), Sigmoid()],
    "residual-of-padded-ones": [
        Residual(
            Sequential(
                Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
                ReLU(),
                Conv2d(4, 3, 2, padding="same"),
            )
        )
    ],
    "nothing": [],
}


@pytest.mark.parametrize("name", list(ROWS))
def test_any_row_of_blocks_gives_what_the_blocks_give(name: str) -> None:
    row = Sequential(*ROWS[name]).eval().to(dtype=torch.float64)
    image = torch.randn(2, 3, 12, 14, dtype=torch.float64)
    kept = image.clone()
    assert_parity(forward_fused(row.blocks, image), row(image.clone()))
    assert torch.equal(image, kept)


def test_an_image_without_a_batch_gives_what_it_gives_in_one() -> None:
    pair = Residual(Sequential(Conv2d(8, 8, 3, padding=1), ReLU(), Conv2d(8, 8, 3, padding=1)))
    row = Sequential(Conv2d(3, 8, 3), ReLU(), pair, ConvTranspose2d(8, 3, 2, stride=2), Sigmoid())
    row.eval()
    image = torch.rand(3, 12, 14)
    expected = row(image[None])[0]
    for output in (row(image), forward_fused(row.blocks, image), row.train()(image)):
        assert output.shape == expected.shape
        assert_parity(output, expected)


def test_a_large_residual_body_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Residual(Sequential(Conv2d(8, 8, 3, padding=1), ReLU(), Conv2d(8, 8, 3, padding=1)))
    image = torch.rand(1, 8, 20, 24)
    expected = pair.train()(image)
    pair.eval()
    for least in (0, image.numel() + 1):
        monkeypatch.setattr(fusion, "LEAST_PAIR", least)
        assert_parity(forward_fused([pair], image), expected)


def test_a_sum_with_a_float32_image_stays_float32() -> None:
    row = Sequential(Residual(Conv2d(3, 3, 3, padding=1))).eval().set_compute_dtype(torch.bfloat16)
    image = torch.rand(1, 3, 8, 8)
    assert forward_fused(row.blocks, image).dtype == row(image).dtype == torch.float32


# A row, and what it cannot take.
MISFITS: dict[str, tuple[list[Block], tuple[int, ...]]] = {
    "too-many-channels": ([Conv2d(3, 4, 3), ReLU()], (1, 4, 6, 6)),
    "too-few-channels": ([Conv2d(3, 4, 3), ReLU()], (1, 2, 6, 6)),
    "two-dimensions": ([Conv2d(3, 4, 3)], (6, 6)),
    "five-dimensions": ([Conv2d(3, 4, 3)], (1, 1, 3, 6, 6)),
    "merged-three-dimensions": ([UpsampleConv2d(2, 3, 4, 3)], (3, 6, 6)),
    "shuffled-three-dimensions": ([Conv2d(3, 8, 3), PixelShuffle(2)], (3, 6, 6)),
    "reflected-beyond": ([Conv2d(3, 4, 3, padding=3, padding_mode="reflect")], (1, 3, 3, 6)),
    "smaller-than-the-kernel": ([Conv2d(3, 4, 3)], (1, 3, 2, 6)),
    "an-empty-image": ([Conv2d(3, 4, 3, padding=2)], (1, 3, 0, 6)),
    "between-layers": ([Conv2d(3, 4, 3), ReLU(), Conv2d(3, 4, 3)], (1, 3, 6, 6)),
    "transposed-channels": ([ConvTranspose2d(3, 4, 2), Sigmoid()], (1, 4, 6, 6)),
    "transposed-to-nothing": ([ConvTranspose2d(3, 4, 2, padding=4)], (1, 3, 6, 6)),
    "unshuffled-odd": ([PixelUnshuffle(2), Conv2d(12, 4, 3, padding=1)], (2, 3, 7, 8)),
    "unshuffled-channels": ([PixelUnshuffle(2), Conv2d(12, 4, 3, padding=1)], (2, 2, 8, 8)),
    "unshuffled-three-dimensions": ([PixelUnshuffle(2), Conv2d(12, 4, 1)], (3, 8, 8)),
    "upsampled-channels": ([NearestUpsample2d(2), Conv2d(3, 4, 3)], (1, 4, 6, 6)),
    "upsampled-three-dimensions": ([NearestUpsample2d(2), Conv2d(3, 4, 3)], (3, 6, 6)),
    "shuffled-channels": ([Conv2d(3, 6, 3), PixelShuffle(2)], (1, 3, 6, 6)),
    "standardised-channels": (
        [Normalize(0.5, (1.0, 2.0, 3.0)), PixelUnshuffle(2), Conv2d(12, 4, 3)],
        (1, 2, 8, 8),
    ),
    "encoder-channels": ([Conv2d(3, 5, 4, 2), ReLU(), Conv2d(5, 4, 3, 2), ReLU()], (1, 4, 16, 16)),
    "encoder-too-small": ([Conv2d(3, 5, 4, 2), ReLU(), Conv2d(5, 4, 3, 2), ReLU()], (1, 3, 7, 16)),
    "encoder-of-two": ([Conv2d(3, 5, 4, 2), ReLU(), Conv2d(6, 4, 3, 2), ReLU()], (1, 3, 16, 16)),
    "decoder-channels": (
        [ConvTranspose2d(5, 4, 3, 2), ReLU(), ConvTranspose2d(4, 3, 4, 2), Sigmoid()],
        (1, 4, 6, 6),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ends", [(), ("conv2d_image",)], ids=["layers", "ends"])
@pytest.mark.parametrize("name", list(MISFITS))
def test_what_a_block_refuses_no_launch_is_given(
    name: str, ends: tuple[str, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch reads where the shapes say: on a GPU a wrong one goes out of bounds, unnoticed."""
    blocks, shape = MISFITS[name]
    row = Sequential(*blocks).eval().set_compute_dtype(dtype)
    image = torch.ones(shape)
    with pytest.raises(ShapeError) as expected:
        row.train()(image)
    row.eval()
    names = ("conv2d_fused", "conv_transpose2d_fused", *ends)
    sound = replace(GEMM, **{name: _sound(getattr(GEMM, name)) for name in names})
    for module in (fusion, container):
        monkeypatch.setattr(module, "ops_for", lambda device: sound)
    with pytest.raises(ShapeError) as caught:
        forward_fused(row.blocks, image)
    assert str(caught.value) == str(expected.value)


def _sound(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op, which must not be given what it cannot do."""

    def launch(*args: Any, **kwargs: Any) -> Tensor:
        try:
            return op(*args, **kwargs)
        except RuntimeError as error:
            pytest.fail(f"launched: {error}")

    return launch


def test_gemm_does_not_go_this_way() -> None:
    assert not GEMM.has_fused_kernels
