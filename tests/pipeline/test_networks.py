"""The architectures: any image size, gray or RGB, the course paper's layers."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody uses)
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_parity
from torch import Tensor

from denoise_batch.kernels import OptionError, ShapeError
from denoise_batch.models import ARCHITECTURES, Network

MEAN, STD = (0.4, 0.5, 0.6), 0.2

names = pytest.mark.parametrize("name", list(ARCHITECTURES))


@names
@given(height=st.integers(1, 41), width=st.integers(1, 41), channels=st.sampled_from([1, 3]))
def test_any_size_goes_in_and_the_same_comes_out(
    name: str, height: int, width: int, channels: int
) -> None:
    network = Network(name).eval()
    output = network(torch.rand(2, channels, height, width))
    assert output.shape == (2, channels, height, width)
    assert torch.isfinite(output).all()


def test_tconv_has_the_parameters_of_table_1() -> None:
    shapes = {name: tuple(p.shape) for name, p in Network("tconv").named_parameters()}
    assert shapes == {
        "0.weight": (24, 3, 4, 4), "0.bias": (24,), "2.weight": (48, 24, 3, 3), "2.bias": (48,),
        "4.weight": (48, 24, 3, 3), "4.bias": (24,), "6.weight": (24, 3, 4, 4), "6.bias": (3,),
    }  # fmt: skip


def test_upsample_has_no_transposed_convolution() -> None:
    shapes = {name: tuple(p.shape) for name, p in Network("upsample").named_parameters()}
    assert shapes["4.1.weight"] == (24, 48, 3, 3)
    assert shapes["6.1.weight"] == (3, 24, 3, 3)


@names
def test_images_of_a_batch_do_not_touch_each_other(name: str) -> None:
    network = Network(name).eval()
    images = torch.rand(3, 3, 17, 23)
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def unet_twin(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """What unet's layers predict, in torch's own operations."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    def body(x: Tensor, name: str) -> Tensor:
        first = conv(x, f"{name}.body.0", padding=1).relu()
        return x + conv(first, f"{name}.body.2", padding=1)

    def level(x: Tensor, name: str, depth: int) -> Tensor:
        if depth == 3:
            return body(body(x, f"{name}.0"), f"{name}.1")
        encoded = body(x, f"{name}.encoder")
        inner = level(conv(encoded, f"{name}.down", stride=2), f"{name}.inner", depth + 1)
        up = F.conv_transpose2d(inner, p[f"{name}.up.weight"], p[f"{name}.up.bias"], stride=2)
        return body(encoded + up, f"{name}.decoder")

    x = conv(F.pixel_unshuffle(x, 2), "1", padding=1)
    return F.pixel_shuffle(conv(level(x, "2", 0), "3", padding=1), 2)


def torch_twin(name: str, p: dict[str, Tensor], image: Tensor) -> Tensor:
    """The architecture in torch's own operations, for images that need no more than the margin."""
    rgb = image.expand(-1, 3, -1, -1)
    x = (image.expand(-1, 3, -1, -1) - torch.tensor(MEAN, dtype=image.dtype).view(1, 3, 1, 1)) / STD
    if name == "tconv":
        x = F.pad(x, (4, 4, 4, 4), mode="reflect")
        x = F.conv2d(x, p["0.weight"], p["0.bias"], stride=2).relu()
        x = F.conv2d(x, p["2.weight"], p["2.bias"], stride=2).relu()
        x = F.conv_transpose2d(x, p["4.weight"], p["4.bias"], stride=2).relu()
        x = F.conv_transpose2d(x, p["6.weight"], p["6.bias"], stride=2)[:, :, 4:-4, 4:-4]
        x = x.sigmoid()
    elif name == "unet":
        x = F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16), mode="reflect")
        x = rgb + unet_twin(p, x)[:, :, : image.shape[2], : image.shape[3]]
    else:
        x = F.conv2d(x, p["0.weight"], p["0.bias"], stride=2, padding=1).relu()
        x = F.conv2d(x, p["2.weight"], p["2.bias"], stride=2, padding=1).relu()
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.conv2d(x, p["4.1.weight"], p["4.1.bias"], padding=1).relu()
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.conv2d(x, p["6.1.weight"], p["6.1.bias"], padding=1).sigmoid()
    return x.mean(1, keepdim=True) if image.shape[1] == 1 else x


@names
@pytest.mark.parametrize("channels", [1, 3])
def test_output_and_all_gradients_agree_with_torch(name: str, channels: int) -> None:
    generator = torch.Generator().manual_seed(3)
    network = Network(name, MEAN, STD, generator).to(dtype=torch.float64)
    image = torch.rand(2, channels, 12, 28, dtype=torch.float64, generator=generator)
    leaf = image.clone().requires_grad_()
    twins = {k: p.clone().requires_grad_() for k, p in network.named_parameters()}
    expected = torch_twin(name, twins, leaf)
    grad_output = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    expected.backward(grad_output)

    assert_parity(network(image), expected.detach())
    assert_parity(network.backward(grad_output), leaf.grad, "grad_input")
    for key, parameter in network.named_parameters():
        assert_parity(parameter.grad, twins[key].grad, key)


@names
def test_a_gray_image_is_an_rgb_image_without_colour(name: str) -> None:
    network = Network(name).eval()
    gray = torch.rand(1, 1, 16, 16)
    expected = network(gray.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    assert torch.equal(network(gray), expected)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="tconv"):
        Network("resnet")


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        Network("tconv")(torch.zeros(shape))
