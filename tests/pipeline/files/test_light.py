"""Linear light: which files are in it, and that the network sees them as screens show them."""

import math
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from denoise_batch import Denoiser
from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_image
from denoise_batch.files.light import SRGB as CURVE
from denoise_batch.files.light import has_linear_curves
from denoise_batch.files.pixels import from_pil, to_pil
from denoise_batch.files.ranges import ValueRange
from denoise_batch.files.raw import linear_srgb

SAMPLES = Path(__file__).parents[2] / "samples"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene() -> Tensor:
    """A gray picture (H, W, 1) in linear light, of edges and slopes, mostly dark."""
    y, x = torch.meshgrid(torch.arange(96) / 64, torch.arange(128) / 64, indexing="ij")
    shown = 0.4 + 0.2 * torch.sin(5 * x + 2 * y) + 0.15 * torch.cos(4 * y * x)
    shown = torch.where((x - 1) ** 2 + (y - 0.75) ** 2 < 0.16, 0.9 - 0.4 * y, shown)
    return CURVE.decoded(shown.clamp(0, 1))[..., None]


def shot() -> Tensor:
    """The scene with noise of photons and of reading out."""
    light = scene()
    noise = torch.randn(light.shape, generator=torch.Generator().manual_seed(0))
    return light + (0.01 * light + 0.01**2).sqrt() * noise


def psnr(image: Tensor) -> float:
    """dB of how a screen shows it."""
    return -10 * math.log10(float((CURVE.encoded(image) - CURVE.encoded(scene())).square().mean()))


def in_16_bits(light: Tensor) -> Tensor:
    return (light.clamp(0, 1) * 65535).round().to(torch.int32).to(torch.uint16)


def test_the_curve_is_that_of_srgb_and_has_an_inverse() -> None:
    light = torch.tensor([-0.18, 0.0, 0.001, 0.0031308, 0.18, 1.0, 4.0])
    shown = torch.tensor([-0.46136, 0.0, 0.01292, 0.04045, 0.46136, 1.0, 1.82479])
    torch.testing.assert_close(CURVE.encoded(light), shown, atol=1e-5, rtol=0)
    many = torch.linspace(-2, 20, 10001)
    torch.testing.assert_close(CURVE.decoded(CURVE.encoded(many)), many, atol=1e-6, rtol=1e-5)
    assert (CURVE.encoded(many).diff() > 0).all()


def profile(*curves: bytes) -> bytes:
    """An ICC profile of nothing but curves."""
    table, content = struct.pack(">I", len(curves)), b""
    for name, curve in zip((b"rTRC", b"gTRC", b"bTRC"), curves, strict=False):
        table += struct.pack(">4sII", name, 132 + 12 * len(curves) + len(content), len(curve))
        content += curve
    return bytes(128) + table + content


def test_a_profile_is_linear_if_all_its_curves_are() -> None:
    straight = b"curv" + bytes(8)
    gamma = [struct.pack(">4sIIHH", b"curv", 0, 1, value, 0) for value in (256, 563)]
    exponent = [struct.pack(">4sIHHI", b"para", 0, 0, 0, value) for value in (65536, 144179)]
    for curve in (straight, gamma[0], exponent[0]):
        assert has_linear_curves(profile(curve))
        assert has_linear_curves(profile(straight, curve, straight))
    for curve in (gamma[1], exponent[1], struct.pack(">4sII2H", b"curv", 0, 2, 0, 30000)):
        assert not has_linear_curves(profile(straight, curve))
    assert has_linear_curves(linear_srgb())
    for other in (SRGB, profile(), b"", linear_srgb()[:140], linear_srgb()[:-20], b"\xff" * 200):
        assert not has_linear_curves(other)


def test_what_does_not_change_comes_back_bit_for_bit() -> None:
    scale = ValueRange(-2.0, 40.0, curve=CURVE)
    samples = torch.linspace(-30, 90, 600).view(10, 20, 3)
    assert torch.equal(scale.from_unit(scale.to_unit(samples), samples), samples)
    inside = torch.linspace(-2, 38, 100).view(10, 10, 1)
    brighter = scale.from_unit(CURVE.encoded(CURVE.decoded(scale.to_unit(inside)) + 0.1), inside)
    torch.testing.assert_close(brighter, inside + 4, atol=1e-4, rtol=1e-5)


def test_openexr_and_developed_raw_are_linear() -> None:
    pytest.importorskip("OpenEXR")
    page = read_image(SAMPLES / "tiled.exr")
    assert page.value_range.curve == CURVE
    middle = page.value_range.to_unit(torch.tensor([page.value_range.span * 0.18]))
    assert middle.item() == pytest.approx(0.461, abs=0.001)


@pytest.mark.parametrize("kind", ["I;16", "F"])
def test_a_file_that_says_so_comes_out_better(kind: str, tmp_path: Path) -> None:
    light = shot() if kind == "F" else in_16_bits(shot())
    for name, more in {"plain": {}, "linear": {"icc_profile": linear_srgb()}}.items():
        to_pil(light).save(tmp_path / f"{name}.tif", **more)
    arguments = [str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main([*arguments, "--log", "plain"]) == 0
    scores = {}
    for name in ("plain", "linear"):
        with Image.open(tmp_path / "out" / f"{name}.tif") as file:
            scores[name] = psnr(from_pil(file).to(torch.float32) / (1 if kind == "F" else 65535))
            assert file.info.get("icc_profile") == (linear_srgb() if name == "linear" else None)
    assert scores["linear"] > scores["plain"] + 1
    assert scores["plain"] > psnr(light.to(torch.float32) / (1 if kind == "F" else 65535)) + 1


def test_tiles_and_pillow_images_are_denoised_alike(tmp_path: Path) -> None:
    image = to_pil(shot())
    image.info["icc_profile"] = linear_srgb()
    denoiser = Denoiser(device="cpu", noise_level=10)
    whole = from_pil(denoiser(image))
    tiled = from_pil(Denoiser(device="cpu", noise_level=10, tile=64)(image))
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)
    assert psnr(whole) > psnr(shot()) + 2
