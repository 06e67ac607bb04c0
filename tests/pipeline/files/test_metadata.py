"""Metadata of files that are read and written back."""

import struct
from pathlib import Path

import pytest
import torch
from pictures import ICC, XMP, noise_image, opened, rewritten, saved, write_unit
from PIL import Image, PngImagePlugin

from denoise_batch.files.images import read_image
from denoise_batch.files.metadata import ORIENTATION
from denoise_batch.files.pixels import from_pil

EXIF = Image.Exif()
EXIF[274], EXIF[271], EXIF[305] = 6, "Maker", "tool"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_icc_survive_and_pixels_are_not_rotated(suffix: str, tmp_path: Path) -> None:
    image = noise_image("RGB", 9, 4)
    source = saved(tmp_path / f"a{suffix}", image, exif=EXIF.tobytes(), icc_profile=ICC)
    page = read_image(source)
    assert page.to_unit().shape == (3, 4, 9)
    with Image.open(rewritten(source)) as after:
        assert after.getexif()[274] == 6
        assert after.getexif()[271] == "Maker"
        assert after.info["icc_profile"] == ICC
        if suffix != ".tif":
            with Image.open(source) as before:
                assert after.info["exif"] == before.info["exif"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_resolution_survives(suffix: str, tmp_path: Path) -> None:
    source = saved(tmp_path / f"a{suffix}", noise_image("RGB"), dpi=(300, 72))
    with Image.open(rewritten(source)) as after:
        assert tuple(round(value) for value in after.info["dpi"]) == (300, 72)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_xmp_survives(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"a{suffix}"
    if suffix == ".webp":
        saved(source, noise_image("RGB"), xmp=XMP)
    else:
        packet = b"http://ns.adobe.com/xap/1.0/\0" + XMP
        segment = b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet
        saved(source, noise_image("RGB"), extra=segment)
    with Image.open(rewritten(source)) as after:
        assert after.info["xmp"] == XMP


def test_xmp_goes_along_to_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a harbour"
    source = saved(tmp_path / "a.webp", noise_image("RGB"), xmp=XMP, exif=exif)
    page = read_image(source)
    write_unit(tmp_path / "b.tif", page, page.to_unit())
    with Image.open(tmp_path / "b.tif") as after:
        assert after.info["xmp"] == XMP
        assert after.getexif()[0x010E] == "a harbour"


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".jp2", ".tga"])
def test_a_format_without_orientation_gets_upright_pixels(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    page = read_image(saved(tmp_path / "a.png", noise_image("RGB"), exif=exif))
    write_unit(tmp_path / f"b{suffix}", page, page.to_unit())
    expected = opened(tmp_path / "a.png").transpose(Image.Transpose.ROTATE_270)
    assert opened(tmp_path / f"b{suffix}").tobytes() == expected.tobytes()


def test_big_tiff_keeps_its_tags(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[ORIENTATION] = "a harbour", 6
    source = saved(tmp_path / "a.tif", noise_image("RGB"), exif=exif, big_tiff=True)
    page = read_image(source)
    for target in (rewritten(source), tmp_path / "b.png"):
        write_unit(target, page, page.to_unit())
        with Image.open(target) as after:
            assert after.getexif()[0x010E] == "a harbour"
            assert after.getexif()[ORIENTATION] == 6


def test_iptc_comment_and_progressive_coding_of_jpeg_survive(tmp_path: Path) -> None:
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\x50\0\x01A"
    segment = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
    source = saved(
        tmp_path / "a.jpg", noise_image("RGB"), extra=segment, comment=b"hello", progressive=True
    )
    with Image.open(rewritten(source)) as after:
        assert after.info["comment"] == b"hello"
        assert after.info["photoshop"][0x0404] == b"\x1c\x02\x50\0\x01A"
        assert after.info["progressive"]


def test_text_and_colour_chunks_of_png_survive(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "plain")
    info.add_text("Long", "squeezed " * 50, zip=True)
    info.add_itxt("Name", "Grüße 写真", "de", "Name")
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"sRGB", b"\x01")
    source = saved(tmp_path / "a.png", noise_image("RGB"), pnginfo=info)
    with Image.open(source) as before, Image.open(rewritten(source)) as after:
        before.load()
        after.load()
        assert after.info == before.info
        assert after.info["Name"] == "Grüße 写真"
        assert after.info["gamma"] == 0.45455


def test_exif_and_gps_folders_of_tiff_survive(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[270], exif[33432] = "scan", "by someone"
    exif[0x8769], exif[0x8825] = {33434: 0.5}, {1: "N"}
    source = saved(tmp_path / "a.tif", noise_image("L"), exif=exif.tobytes())
    source.write_bytes(source.read_bytes().replace(b"by someone", "© someone".encode()))
    with Image.open(rewritten(source)) as after:
        exif = after.getexif()
        assert exif[270] == "scan"
        assert exif[33432].encode("latin-1").decode() == "© someone"
        assert exif.get_ifd(0x8769)[33434] == 0.5
        assert exif.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_tags_and_compression_of_tiff_survive(compression: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[270], exif[33550], exif[50838] = "scan 7", (1.5, 2.5, 0.0), (3, 70000)
    source = saved(tmp_path / "a.tif", noise_image("I;16"), exif=exif, compression=compression)
    with Image.open(rewritten(source)) as after:
        assert after.info["compression"] == compression
        tags = after.getexif()
        assert (tags[270], tags[33550], tags[50838]) == ("scan 7", (1.5, 2.5, 0.0), (3, 70000))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_stored_in_the_orientation_it_came_in(
    orientation: int, compression: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = noise_image("RGBA")
    source = saved(tmp_path / "a.tif", image, exif=exif, compression=compression)
    page, target = read_image(source), rewritten(source)
    assert torch.equal(page.samples, from_pil(image)[..., :3])
    assert opened(target).tobytes() == opened(source).tobytes()
    with Image.open(target) as after:
        assert after.getexif()[274] == orientation


def test_webp_keeps_its_kind_of_coding(tmp_path: Path) -> None:
    for is_lossless in (True, False):
        source = saved(
            tmp_path / "a.webp", noise_image("RGBA"), lossless=is_lossless, icc_profile=ICC
        )
        assert read_image(source).storage.is_lossless is is_lossless
        assert read_image(rewritten(source)).storage.is_lossless is is_lossless


def test_high_quality_jpeg_keeps_full_colour_resolution(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.jpg", noise_image("RGB", 32, 32))
    page = read_image(source)
    for quality, factor in ((95, 1), (80, 2)):
        write_unit(tmp_path / "b.jpg", page, page.to_unit(), quality=quality)
        with Image.open(tmp_path / "b.jpg") as after:
            assert after.layer[0][1] == factor  # type: ignore[attr-defined]  # sampling of luma
