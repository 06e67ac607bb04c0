"""The architectures: any image size, gray or RGB, the course paper's layers."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody uses)
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_parity
from torch import Tensor

from denoise_batch.kernels import Block, ConvTranspose2d, OptionError, ShapeError
from denoise_batch.kernels.layers import Convolution
from denoise_batch.models import ARCHITECTURES, LevelEstimator, Network

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


LEVEL = torch.tensor([2 / 255, 40 / 255])


def unet_twin(p: dict[str, Tensor], x: Tensor, level_255: Tensor | None = None) -> Tensor:
    """What unet's layers predict, in torch's own operations; unet-level's for two levels."""
    first = 1

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
        if depth < 2 and level_255 is not None:
            return body(body(encoded + up, f"{name}.decoder.0"), f"{name}.decoder.1")
        return body(encoded + up, f"{name}.decoder")

    x = F.pixel_unshuffle(x, 2)
    if level_255 is not None:
        planes = torch.cat([level_255 / 50, (level_255 / 50).sqrt()], 1)
        x = torch.cat([x, planes.expand(-1, -1, *x.shape[2:])], 1)
        first = 2
    x = level(conv(x, f"{first}", padding=1), f"{first + 1}", 0)
    x = F.pixel_shuffle(conv(x, f"{first + 2}", padding=1), 2)
    return x if level_255 is None else x * level_255 / (level_255 + 1)


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
    elif name.startswith("unet"):
        x = F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16), mode="reflect")
        level_255 = 255 * LEVEL.double().view(-1, 1, 1, 1) if name == "unet-level" else None
        x = rgb + unet_twin(p, x, level_255)[:, :, : image.shape[2], : image.shape[3]]
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

    assert_parity(network.forward(image, LEVEL), expected.detach())
    assert_parity(network.backward(grad_output), leaf.grad, "grad_input")
    for key, parameter in network.layers.named_parameters():
        assert_parity(parameter.grad, twins[key].grad, key)


@names
def test_a_gray_image_is_an_rgb_image_without_colour(name: str) -> None:
    network = Network(name).eval()
    gray = torch.rand(1, 1, 16, 16)
    told = torch.tensor([0.1]) if network.spec.takes_level else None
    expected = network.forward(gray.expand(-1, 3, -1, -1), told).mean(1, keepdim=True)
    assert torch.equal(network.forward(gray, told), expected)


def test_at_level_0_the_network_is_the_identity() -> None:
    network, images = Network("unet-level").eval(), torch.rand(2, 3, 21, 34)
    output = network.forward(images, torch.tensor([0.0, 0.1]))
    assert torch.equal(output[0], images[0])
    assert not torch.equal(output[1], images[1])
    padded = network.forward_padded(network.pad(images), torch.zeros(2))
    assert torch.equal(padded, network.pad(images))


def test_a_level_beyond_the_training_s_is_taken_for_its_largest() -> None:
    network, image = Network("unet-level").eval(), torch.rand(1, 3, 16, 16)
    largest = network.forward(image, torch.tensor([75 / 255]))
    assert torch.equal(network.forward(image, torch.tensor([0.9])), largest)


def test_unless_it_is_told_the_level_the_network_estimates_it() -> None:
    network, images = Network("unet-level").eval(), torch.rand(2, 3, 32, 48)
    level = network.estimate_level(network.pad(images))
    assert level is not None
    assert level.shape == (2,)
    assert torch.equal(network(images), network.forward(images, level))
    assert Network("unet").estimate_level(images) is None
    network.estimator = None
    with pytest.raises(OptionError, match="--noise-level"):
        network(images)


@pytest.mark.parametrize("is_gray", [False, True])
def test_what_is_told_keeps_a_reserve_for_weak_noise(is_gray: bool) -> None:
    root = torch.tensor([0.0, 1.0, 2.0, 5.0, 8.0])
    counted = torch.full_like(root, 3.0)
    sums = torch.stack([counted * root, counted, counted], 1)
    levels = LevelEstimator.level(sums, is_gray=is_gray)
    reserve = LevelEstimator.GRAY_RESERVE_255 if is_gray else LevelEstimator.RESERVE_255
    assert 255 * levels[0] == pytest.approx(reserve)
    assert levels[-1] == pytest.approx(64 / 255, rel=0.01)
    assert (levels.diff() > 0).all()
    noise = [LevelEstimator.noise(float(level), is_gray=is_gray) for level in levels]
    assert noise == pytest.approx((root.square() / 255).tolist(), abs=1e-4)
    assert LevelEstimator.noise(0.0, is_gray=is_gray) == 0


def test_a_drawn_image_has_no_noise_and_a_drawn_part_says_nothing() -> None:
    network = Network("unet-level", generator=torch.Generator().manual_seed(0))
    noisy = torch.rand(1, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    alone = network.estimate_level(network.pad(noisy))
    drawn = (noisy > 0.5).to(torch.float32)
    assert alone is not None
    assert network.estimate_level(network.pad(drawn)) == 0
    beside = network.estimate_level(network.pad(torch.cat([noisy, drawn], 3)))
    assert beside is not None
    assert beside.item() == pytest.approx(alone.item(), rel=0.05)


def estimator_twin(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """√level, in torch's own operations."""
    x = F.pixel_unshuffle((x - 0.5) / 0.25, 2)
    for index, stride in ((2, 1), (4, 2), (6, 1), (8, 2), (10, 1), (12, 2), (14, 1)):
        name = f"cells.{index}"
        x = F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride).relu()
    x = F.conv2d(x, p["cells.16.weight"], p["cells.16.bias"])
    value, confidence = F.softplus(x[:, :1]), x[:, 1:].clamp(-6, 6).exp()
    return (value * confidence).sum((2, 3), True) / confidence.sum((2, 3), True)


def test_the_estimator_and_all_its_gradients_agree_with_torch() -> None:
    estimator = LevelEstimator(torch.Generator().manual_seed(3)).to(dtype=torch.float64)
    image = torch.rand(2, 3, 112, 96, dtype=torch.float64)
    leaf = image.clone().requires_grad_()
    twins = {k: p.clone().requires_grad_() for k, p in estimator.named_parameters()}
    expected = estimator_twin(twins, leaf)
    grad_output = torch.randn_like(expected)
    expected.backward(grad_output)
    assert_parity(estimator(image), expected.detach())
    assert_parity(estimator.backward(grad_output), leaf.grad, "grad_input")
    for key, parameter in estimator.named_parameters():
        assert_parity(parameter.grad, twins[key].grad, key)


def multiply_adds(block: Block, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """Multiply-adds of the convolutions for each pixel of the image."""
    total, forward = 0, Convolution.forward

    def counted(self: Convolution, input: Tensor, *arguments: Tensor) -> Tensor:
        nonlocal total
        output = forward(self, input, *arguments)
        positions = input if isinstance(self, ConvTranspose2d) else output
        total += self.weight.numel() * positions[:, 0].numel()
        return output

    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "forward", counted)
        block.train()(image)
    return total / image[:, 0].numel()


def test_the_arithmetic_a_pixel_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = Network("unet-level"), torch.rand(1, 3, 32, 48)
    network.set_level(torch.tensor([0.1]))
    assert multiply_adds(network.restorer, image, monkeypatch) == 91_104
    assert network.estimator is not None
    large = torch.rand(1, 3, 384, 384)
    assert 2_400 < multiply_adds(network.estimator, large, monkeypatch) < 2_808.5
    assert multiply_adds(Network("unet").restorer, image, monkeypatch) == 37_376


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="tconv"):
        Network("resnet")


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        Network("tconv")(torch.zeros(shape))
