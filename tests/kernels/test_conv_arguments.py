"""What Conv2d and ConvTranspose2d accept and refuse, beside what torch does."""

import pytest
import torch
from torch import nn

from denoise_batch.kernels import Conv2d, ConvTranspose2d, OptionError, ShapeError

OURS = {"conv": Conv2d, "transposed": ConvTranspose2d}
TORCH = {"conv": nn.Conv2d, "transposed": nn.ConvTranspose2d}
IMAGE = (1, 3, 8, 8)

# kind, keywords after (3, 4, kernel_size=3), shape of the input, what the message must name.
REFUSED = {
    "kernel-larger-than-input": ("conv", {"kernel_size": 7, "padding": 1}, (1, 3, 4, 9), "4x9"),
    "kernel-larger-than-width": ("conv", {"kernel_size": (1, 5)}, (1, 3, 9, 4), r"\(1, 5\)"),
    "dilated-kernel-too-large": ("conv", {"dilation": 4}, IMAGE, "dilation"),
    "wrong-channels": ("conv", {}, (1, 4, 8, 8), "4 channels.*expected 3"),
    "stride0": ("conv", {"stride": 0}, IMAGE, "stride=0"),
    "stride-negative-across": ("conv", {"stride": (1, -2)}, IMAGE, r"stride=\(1, -2\)"),
    "stride-of-three": ("conv", {"stride": (1, 2, 3)}, IMAGE, r"stride=\(1, 2, 3\)"),
    "padding-negative": ("conv", {"padding": -1}, IMAGE, "padding=-1"),
    "dilation0": ("conv", {"dilation": 0}, IMAGE, "dilation=0"),
    "in-channels-negative": ("conv", {"in_channels": -1}, IMAGE, "in_channels=-1"),
    "input-2d": ("conv", {}, (8, 8), r"\(8, 8\)"),
    "input-3d-wrong-channels": ("conv", {}, (2, 8, 8), r"\(2, 8, 8\)"),
    "input-5d": ("conv", {}, (1, 1, 3, 8, 8), r"\(1, 1, 3, 8, 8\)"),
    "empty-image": ("conv", {}, (1, 3, 0, 8), r"\(1, 3, 0, 8\)"),
    "groups0": ("conv", {"groups": 0}, IMAGE, "groups=0"),
    "groups-negative": ("conv", {"groups": -1}, IMAGE, "groups=-1"),
    "in-channels-not-of-groups": ("conv", {"groups": 2}, IMAGE, "in_channels=3.*groups=2"),
    "out-channels-not-of-groups": ("conv", {"groups": 3}, IMAGE, "out_channels=4.*groups=3"),
    "padding-unknown-word": ("conv", {"padding": "full"}, IMAGE, "padding='full'.*'same'"),
    "padding-empty-word": ("conv", {"padding": ""}, IMAGE, "padding=''"),
    "same-with-stride": ("conv", {"padding": "same", "stride": (1, 2)}, IMAGE, r"\(1, 2\)"),
    "padding-mode-unknown": ("conv", {"padding_mode": "mirror"}, IMAGE, "'mirror'.*'reflect'"),
    "padding-mode-constant": ("conv", {"padding_mode": "constant"}, IMAGE, "'constant'"),
    "reflect-beyond": (
        "conv",
        {"padding": (0, 8), "padding_mode": "reflect"},
        IMAGE,
        "8 with padding_mode='reflect' takes an image of at least 9 pixels, not 8x8",
    ),
    "reflect-one-pixel": ("conv", {"padding": 1, "padding_mode": "reflect"}, (1, 3, 8, 1), "8x1"),
    "circular-beyond": (
        "conv",
        {"padding": (9, 0), "padding_mode": "circular"},
        IMAGE,
        "9 with padding_mode='circular' takes an image of at least 9 pixels, not 8x8",
    ),
    "reflect-beyond-unbatched": (
        "conv",
        {"padding": 8, "padding_mode": "reflect"},
        (3, 8, 8),
        "not 8x8",
    ),
    "transposed-groups0": ("transposed", {"groups": 0}, IMAGE, "groups=0"),
    "transposed-channels-not-of-groups": ("transposed", {"groups": 3}, IMAGE, "out_channels=4"),
    "transposed-padding-mode": (
        "transposed",
        {"padding_mode": "reflect"},
        IMAGE,
        "'reflect'.*zeros",
    ),
    "transposed-padding-word": ("transposed", {"padding": "same"}, IMAGE, "padding='same'"),
    "transposed-wrong-channels": ("transposed", {}, (1, 4, 8, 8), "4 channels.*expected 3"),
    "transposed-stride0": ("transposed", {"stride": 0}, IMAGE, "stride=0"),
    "transposed-padding-negative": ("transposed", {"padding": (0, -1)}, IMAGE, r"\(0, -1\)"),
    "transposed-dilation0": ("transposed", {"dilation": 0}, IMAGE, "dilation=0"),
    "output-padding-negative": ("transposed", {"output_padding": -1}, IMAGE, "output_padding=-1"),
    "output-padding-equals-stride": (
        "transposed",
        {"stride": 2, "output_padding": 2},
        IMAGE,
        r"output_padding \(2, 2\)",
    ),
    "output-padding-equals-dilation": (
        "transposed",
        {"stride": 2, "dilation": 2, "output_padding": (0, 2)},
        IMAGE,
        r"output_padding \(0, 2\)",
    ),
    "output-negative": ("transposed", {"kernel_size": 1, "padding": 1}, (1, 3, 1, 1), "-1x-1"),
    "output-empty": ("transposed", {"kernel_size": 1, "padding": 1}, (1, 3, 3, 2), "1x0"),
    "transposed-input-2d": ("transposed", {}, (8, 8), r"\(8, 8\)"),
    "transposed-input-5d": ("transposed", {}, (1, 1, 3, 8, 8), r"\(1, 1, 3, 8, 8\)"),
    "transposed-empty-image": ("transposed", {}, (1, 3, 0, 8), r"\(1, 3, 0, 8\)"),
}


@pytest.mark.parametrize(
    ("kind", "keywords", "shape", "named"), list(REFUSED.values()), ids=list(REFUSED)
)
def test_what_torch_refuses_is_refused_with_the_value_named(
    kind: str, keywords: dict, shape: tuple[int, ...], named: str
) -> None:
    arguments = {"in_channels": 3, "out_channels": 4, "kernel_size": 3} | keywords
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        TORCH[kind](**arguments)(torch.zeros(shape))
    with pytest.raises(ShapeError, match=named):
        OURS[kind](**arguments)(torch.zeros(shape))


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    "keywords",
    [{"in_channels": 0}, {"out_channels": 0}, {"kernel_size": 0}, {"kernel_size": (3, 0)}],
    ids=lambda keywords: "-".join(f"{name}={value}" for name, value in keywords.items()),
)
def test_an_empty_weight_is_refused_where_torch_only_warns(kind: str, keywords: dict) -> None:
    name = next(iter(keywords))
    with pytest.raises(ShapeError, match=name):
        OURS[kind](**{"in_channels": 3, "out_channels": 4, "kernel_size": 3} | keywords)


@pytest.mark.parametrize("value", [1.5, None], ids=str)
@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
def test_an_argument_that_is_no_integer_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises((ShapeError, OptionError), match=f"{name}={value}"):
        Conv2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3} | {name: value})


def test_a_failed_forward_keeps_nothing_for_backward() -> None:
    block = Conv2d(3, 4, 3)
    with pytest.raises(ShapeError):
        block(torch.zeros(1, 3, 2, 2))
    with pytest.raises(RuntimeError, match="call forward"):
        block.backward(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("kind", OURS)
def test_an_integer_means_both_axes(kind: str) -> None:
    torch.manual_seed(0)
    short = OURS[kind](3, 4, 3, stride=2, padding=1, dilation=2)
    torch.manual_seed(0)
    long = OURS[kind](3, 4, [3, 3], stride=(2, 2), padding=[1, 1], dilation=torch.Size((2, 2)))
    input = torch.randn(2, 3, 9, 7)
    assert torch.equal(short(input), long(input))
    grad_output = torch.randn_like(short(input))
    assert torch.equal(short.backward(grad_output), long.backward(grad_output))


@pytest.mark.parametrize("kind", OURS)
def test_positional_arguments_stand_in_torchs_order(kind: str) -> None:
    positional = {
        "conv": (4, 6, (3, 2), (2, 1), (1, 0), (2, 1), 2, False, "reflect"),
        "transposed": (4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, False, (2, 1), "zeros"),
    }[kind]
    block, module = OURS[kind](*positional), TORCH[kind](*positional)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    for name in (*names, "groups", "padding_mode", "transposed"):
        assert getattr(block, name) == getattr(module, name)
    assert block.weight.shape == module.weight.shape
    assert block.bias is None
    if kind == "transposed":
        assert block.output_padding == module.output_padding


@pytest.mark.parametrize("padding", ["same", "valid", (2, 0), 1])
def test_padding_is_kept_as_torch_keeps_it(padding: object) -> None:
    assert Conv2d(3, 4, 3, padding=padding).padding == nn.Conv2d(3, 4, 3, padding=padding).padding


@pytest.mark.parametrize("kind", OURS)
def test_gradients_of_one_image_have_its_shape_alone(kind: str) -> None:
    block = OURS[kind](3, 4, 3)
    output = block(torch.zeros(3, 8, 8))
    with pytest.raises(ShapeError, match="the output had"):
        block.backward(torch.zeros(1, *output.shape))
    assert block.backward(output).shape == (3, 8, 8)
