import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from denoise_batch.files.decoded_image import DecodedImage
from denoise_batch.files.images import (
    READABLE_SUFFIXES,
    WRITABLE_SUFFIXES,
    output_format,
    output_suffix,
    read_image,
    write_image,
)
from denoise_batch.files.metadata import ORIENTATION
from denoise_batch.files.sniff import sample_bits
from denoise_batch.kernels.errors import ImageError, ShapeError

CHANNELS = {"L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}


def noise_bytes(count: int) -> bytes:
    return bytes(torch.randint(0, 256, (count,)).tolist())


def noise_image(mode: str, width: int = 7, height: int = 5) -> Image.Image:
    """An image of any mode, every sample random; odd extents by default."""
    size, count = (width, height), width * height
    if mode == "1":
        return noise_image("L", width, height).point(lambda value: 255 * (value > 127)).convert("1")
    if mode == "I;16":
        return Image.frombytes("I;16", size, noise_bytes(2 * count))
    if mode == "F":
        return Image.frombytes("F", size, struct.pack(f"{count}f", *torch.rand(count).tolist()))
    image = Image.frombytes(mode, size, noise_bytes(CHANNELS[mode] * count))
    if mode in {"P", "PA"}:
        image.putpalette(noise_bytes(768))
    return image


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    if path.suffix == ".webp":
        options = {"lossless": True, "exact": True, **options}
    image.save(path, **options)
    return path


def rewritten(path: Path) -> Path:
    """The file after reading it and writing the same pixels back."""
    picture = read_image(path)
    target = path.parent / "out" / path.name
    write_image(target, picture, picture.pixels)
    assert [entry.name for entry in target.parent.iterdir()] == [path.name]
    return target


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image.copy() if image.format != "JPEG" else image


def png_bytes(
    bits: int, colour_type: int, width: int, height: int, row: bytes, key: bytes = b""
) -> bytes:
    """A PNG file by hand, for the depths that Pillow cannot write; `key` becomes transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * height)
    head = chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"")
    body = head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


LOSSLESS = [
    *((".png", mode, mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16")),
    (".png", "P", "RGB"),
    *((".tif", mode, mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16", "F")),
    (".tif", "P", "RGB"),
    (".tif", "PA", "RGBA"),
    *((".bmp", mode, mode) for mode in ("1", "L", "RGB")),
    *((".tga", mode, mode) for mode in ("L", "LA", "RGB", "RGBA")),
    *((".ppm", mode, mode) for mode in ("1", "L", "RGB", "F")),
    *((".webp", mode, mode) for mode in ("RGB", "RGBA")),
    *((".jp2", mode, mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
]


@pytest.mark.parametrize(
    ("suffix", "mode", "kept"), LOSSLESS, ids=[f"{row[0][1:]}-{row[1]}" for row in LOSSLESS]
)
def test_unchanged_pixels_of_lossless_formats_come_back_bit_for_bit(
    suffix: str, mode: str, kept: str, tmp_path: Path
) -> None:
    source = saved(tmp_path / f"a{suffix}", noise_image(mode))
    before, after = opened(source), opened(rewritten(source))
    assert after.mode == kept
    assert after.size == before.size
    assert after.tobytes() == before.convert(kept).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_are_the_samples_over_their_peak(mode: str, tmp_path: Path) -> None:
    image = noise_image(mode)
    picture = read_image(saved(tmp_path / "a.png", image))
    expected = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    expected = expected.view(5, 7, -1).permute(2, 0, 1) / 255
    torch.testing.assert_close(picture.pixels, expected, rtol=0, atol=0)
    assert picture.pixels.dtype == torch.float32
    assert picture.alpha is None
    assert picture.layout.size == (5, 7)


def test_alpha_passes_through_while_pixels_change(tmp_path: Path) -> None:
    image = noise_image("RGBA")
    picture = read_image(saved(tmp_path / "a.png", image))
    write_image(tmp_path / "b.png", picture, torch.zeros_like(picture.pixels))
    after = opened(tmp_path / "b.png")
    assert after.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    assert after.getchannel("R").getextrema() == (0, 0)


@pytest.mark.parametrize(("mode", "key"), [("L", 40), ("RGB", (1, 2, 3)), ("P", 7)])
def test_a_transparent_colour_becomes_alpha(mode: str, key: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.png", noise_image(mode), transparency=key)
    kept = "LA" if mode == "L" else "RGBA"
    assert opened(rewritten(source)).tobytes() == opened(source).convert(kept).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_gray_of_few_bits_becomes_alpha(bits: int, tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    row = {1: b"\x80", 2: b"\xc0", 4: b"\xf0", 8: b"\xff\x00"}[bits]  # white, black
    source.write_bytes(png_bytes(bits, 0, 2, 1, row, struct.pack(">H", (1 << bits) - 1)))
    picture = read_image(source)
    assert picture.alpha is not None
    assert picture.alpha.flatten().tolist() == [0, 255]
    assert picture.samples.flatten().tolist() == [255, 0]


def test_samples_are_rounded_to_the_nearest_and_clamped(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("L", 4, 1)))
    levels = torch.tensor([[[-9.0, 7.49, 7.51, 999.0]]])
    write_image(tmp_path / "b.png", picture, levels.to(torch.float64) / 255)
    assert opened(tmp_path / "b.png").tobytes() == bytes([0, 7, 8, 255])


@given(st.binary(min_size=12, max_size=12))
def test_write_after_read_is_the_identity_for_8_bits(
    tmp_path_factory: pytest.TempPathFactory, samples: bytes
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    image = Image.frombytes("RGB", (2, 2), samples)
    assert opened(rewritten(saved(folder / "a.png", image))).tobytes() == samples


@given(st.binary(min_size=12, max_size=12))
def test_write_after_read_is_the_identity_for_16_bits(
    tmp_path_factory: pytest.TempPathFactory, samples: bytes
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    image = Image.frombytes("I;16", (3, 2), samples)
    assert opened(rewritten(saved(folder / "a.tif", image))).tobytes() == samples


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_every_16_bit_level_survives(suffix: str, tmp_path: Path) -> None:
    levels = struct.pack("<65536H", *range(65536))
    image = Image.frombytes("I;16", (256, 256), levels)
    if suffix == ".pgm":  # Pillow before 11.2 cannot write 16-bit PGM from I;16
        source = tmp_path / "a.pgm"
        source.write_bytes(b"P5 256 256 65535\n" + struct.pack(">65536H", *range(65536)))
    else:
        source = saved(tmp_path / f"a{suffix}", image)
    picture = read_image(source)
    assert picture.pixels.shape == (1, 256, 256)
    assert picture.pixels.max() == 1
    written = opened(rewritten(source)).convert("I").tobytes()
    assert written == image.convert("I").tobytes()


@pytest.mark.parametrize(
    ("order", "photometric"), [("<", 1), (">", 1), ("<", 0)], ids=["little", "big", "inverted"]
)
def test_16_bit_tiff_of_either_byte_order_and_polarity_is_read_as_it_looks(
    order: str, photometric: int, tmp_path: Path
) -> None:
    tags = {256: 2, 257: 1, 258: 16, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 1, 279: 4}
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, tags[tag], 0) for tag in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    data = (head + entries + b"\0" * 4).ljust(200, b"\0") + struct.pack(f"{order}2H", 0, 65535)
    source = tmp_path / "a.tif"
    source.write_bytes(data)
    expected = torch.tensor([[[1.0, 0.0]]]) if photometric == 0 else torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(read_image(source).pixels, expected)
    torch.testing.assert_close(read_image(rewritten(source)).pixels, expected)


def test_12_bit_tiff_fills_the_range(tmp_path: Path) -> None:
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, tags[tag], 0) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    source = tmp_path / "a.tif"
    source.write_bytes((head + entries + b"\0" * 4).ljust(200, b"\0") + b"\x00\x0f\xff")
    pixels = read_image(source).pixels
    torch.testing.assert_close(pixels, torch.tensor([[[0.0, 1.0]]]))
    torch.testing.assert_close(read_image(rewritten(source)).pixels, pixels)


def test_12_bit_jpeg_2000_is_read_as_pillow_brings_it_to_16(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jp2", noise_image("I;16"))
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\x4f\xff\x51") + 42] = 11
    path.write_bytes(content)
    with Image.open(path) as image:
        assert sample_bits(image, io.BytesIO(content)) == 12
        expected = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint16)
    assert torch.equal(read_image(path).samples.flatten(), expected)


@pytest.mark.parametrize("suffix", [".tif", ".pfm"])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 65535), (-1024, 3071), (1e-30, 3e30), (5, 5)]
)
def test_float_images_of_any_range_round_trip_exactly(
    low: float, high: float, suffix: str, tmp_path: Path
) -> None:
    values = torch.rand(35) * (high - low) + low
    image = Image.frombytes("F", (7, 5), struct.pack("35f", *values.tolist()))
    source = saved(tmp_path / f"a{suffix}", image)
    picture = read_image(source)
    assert 0 <= picture.pixels.min() <= picture.pixels.max() <= 1
    assert opened(rewritten(source)).tobytes() == image.tobytes()


def test_float_results_are_scaled_back_and_not_clamped(tmp_path: Path) -> None:
    image = Image.frombytes("F", (2, 1), struct.pack("2f", 100, 300))
    picture = read_image(saved(tmp_path / "a.tif", image))
    write_image(tmp_path / "b.tif", picture, torch.tensor([[[0.5, 1.25]]]))
    assert struct.unpack("2f", opened(tmp_path / "b.tif").tobytes()) == (200, 350)


@pytest.mark.parametrize("profile", [None, b"no profile"])
def test_cmyk_is_read_as_rgb_and_says_so(profile: bytes | None, tmp_path: Path) -> None:
    white = Image.new("CMYK", (16, 16))
    picture = read_image(saved(tmp_path / "a.jpg", white, icc_profile=profile))
    torch.testing.assert_close(picture.pixels, torch.ones(3, 16, 16))
    assert picture.layout.mode == "RGB"
    assert picture.layout.note == "CMYK is written as RGB"
    assert picture.metadata.icc_profile is None


def test_lossy_formats_come_back_close(tmp_path: Path) -> None:
    smooth = Image.linear_gradient("L").resize((40, 32)).convert("RGB")
    for suffix in (".jpg", ".webp"):
        options = {"lossless": False} if suffix == ".webp" else {}
        (folder := tmp_path / suffix).mkdir()
        source = saved(folder / f"a{suffix}", smooth, quality=95, **options)
        before, after = read_image(source).pixels, read_image(rewritten(source)).pixels
        torch.testing.assert_close(after, before, rtol=0, atol=0.04)


# Metadata

EXIF = Image.Exif()
EXIF[274], EXIF[271], EXIF[305] = 6, "Maker", "tool"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><!-- kept --></x:xmpmeta>"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_icc_survive_and_pixels_are_not_rotated(suffix: str, tmp_path: Path) -> None:
    image = noise_image("RGB", 9, 4)
    source = saved(tmp_path / f"a{suffix}", image, exif=EXIF.tobytes(), icc_profile=ICC)
    picture = read_image(source)
    assert picture.pixels.shape == (3, 4, 9)
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
    picture = read_image(source)
    write_image(tmp_path / "b.tif", picture, picture.pixels)
    with Image.open(tmp_path / "b.tif") as after:
        assert after.info["xmp"] == XMP
        assert after.getexif()[0x010E] == "a harbour"


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".jp2", ".tga"])
def test_a_format_without_orientation_gets_upright_pixels(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB"), exif=exif))
    write_image(tmp_path / f"b{suffix}", picture, picture.pixels)
    expected = opened(tmp_path / "a.png").transpose(Image.Transpose.ROTATE_270)
    assert opened(tmp_path / f"b{suffix}").tobytes() == expected.tobytes()


def test_big_tiff_keeps_its_tags(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[ORIENTATION] = "a harbour", 6
    source = saved(tmp_path / "a.tif", noise_image("RGB"), exif=exif, big_tiff=True)
    picture = read_image(source)
    for target in (rewritten(source), tmp_path / "b.png"):
        write_image(target, picture, picture.pixels)
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
    picture, target = read_image(source), rewritten(source)
    stored = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(5, 7, 4)
    torch.testing.assert_close(picture.pixels, stored[..., :3].permute(2, 0, 1) / 255)
    assert opened(target).tobytes() == opened(source).tobytes()
    with Image.open(target) as after:
        assert after.getexif()[274] == orientation


def test_webp_keeps_its_kind_of_coding(tmp_path: Path) -> None:
    for is_lossless in (True, False):
        source = saved(
            tmp_path / "a.webp", noise_image("RGBA"), lossless=is_lossless, icc_profile=ICC
        )
        assert read_image(source).layout.is_lossless is is_lossless
        assert read_image(rewritten(source)).layout.is_lossless is is_lossless


def test_high_quality_jpeg_keeps_full_colour_resolution(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.jpg", noise_image("RGB", 32, 32))
    picture = read_image(source)
    for quality, factor in ((95, 1), (80, 2)):
        write_image(tmp_path / "b.jpg", picture, picture.pixels, quality=quality)
        with Image.open(tmp_path / "b.jpg") as after:
            assert after.layer[0][1] == factor  # type: ignore[attr-defined]  # sampling of luma


# Formats


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.png", ".png"),
        ("a.JPG", ".JPG"),
        ("a.jpeg", ".jpeg"),
        ("a.gif", ".png"),
        ("a.qoi", ".png"),
        ("a.xyz", ".png"),
        ("a", ".png"),
    ],
)
def test_suffix_is_kept_where_the_format_can_be_written(name: str, suffix: str) -> None:
    assert output_suffix(Path(name)) == suffix


def test_suffix_lists_agree() -> None:
    assert WRITABLE_SUFFIXES < READABLE_SUFFIXES
    for suffix in READABLE_SUFFIXES:
        assert output_format(Path("a" + output_suffix(Path("a" + suffix))))


def test_a_bare_jpeg_2000_codestream_stays_one(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.j2k", noise_image("RGB"))
    assert rewritten(source).read_bytes()[:4] == b"\xff\x4f\xff\x51"


def test_gif_becomes_png(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.gif", noise_image("P"))
    picture = read_image(source)
    write_image(tmp_path / "a.png", picture, picture.pixels)
    assert opened(tmp_path / "a.png").tobytes() == opened(source).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".jpg"), ("I;16", ".jpg"), ("I;16", ".webp"), ("F", ".png"), ("LA", ".bmp")],
)
def test_what_a_format_cannot_hold_is_refused(mode: str, suffix: str, tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.tif", noise_image(mode)))
    with pytest.raises(ImageError, match=rf"b\{suffix}: .* cannot hold mode {mode}; write"):
        write_image(tmp_path / f"b{suffix}", picture, picture.pixels)
    assert not (tmp_path / f"b{suffix}").exists()


def test_a_wider_mode_takes_what_a_format_lacks(tmp_path: Path) -> None:
    image = noise_image("L")
    picture = read_image(saved(tmp_path / "a.png", image))
    write_image(tmp_path / "b.webp", picture, picture.pixels, quality=100)
    assert read_image(tmp_path / "b.webp").pixels.shape == (3, 5, 7)


def test_an_unknown_output_suffix_is_refused(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("L")))
    with pytest.raises(ImageError, match=r"b\.gif: suffix '\.gif' cannot be written"):
        write_image(tmp_path / "b.gif", picture, picture.pixels)


def test_parents_are_made_and_an_existing_file_is_replaced(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("L")))
    target = tmp_path / "x" / "y" / ("长名字 ü" + "n" * 200 + ".png")
    write_image(target, picture, picture.pixels)
    write_image(target, picture, torch.zeros_like(picture.pixels))
    assert opened(target).getextrema() == (0, 0)
    assert list(target.parent.iterdir()) == [target]


def test_a_wrong_shape_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    with pytest.raises(ShapeError, match="pixels"):
        write_image(tmp_path / "b.png", picture, picture.pixels[:1])
    assert not (tmp_path / "b.png").exists()


def test_a_result_with_nan_is_not_written(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    with pytest.raises(ImageError, match="NaN"):
        write_image(tmp_path / "b.png", picture, picture.pixels * float("nan"))
    assert not (tmp_path / "b.png").exists()


# Bad files


def one_line(error: pytest.ExceptionInfo[ImageError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", r"is empty \(0 bytes\)"),
        (b"these are not the pixels you are looking for\n" * 20, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (png_bytes(16, 4, 2, 2, b"\x12\x34" * 4), "16-bit samples"),
        (png_bytes(8, 2, 50_000, 50_000, b""), "too many pixels"),
        (b"P6 1 1 65535\n" + b"\x12\x34" * 3, "16-bit samples in mode RGB"),
    ],
    ids=["missing", "empty", "text", "postscript", "la16", "bomb", "ppm16"],
)
def test_a_bad_file_is_one_line_that_says_why(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    assert ";" in one_line(error, path)


def tiff_bytes(values: dict[int, Any], samples: bytes) -> bytes:
    """An uncompressed 1×1 TIFF file by hand, for the depths that Pillow cannot write."""
    tags = {256: 1, 257: 1, 259: 1, 273: 300, 278: 1, 279: len(samples), **values}
    entries = b"".join(
        struct.pack("<HHIHH", tag, 3, 1, tags[tag], 0)
        if isinstance(tags[tag], int)
        else struct.pack("<HHII", tag, 3, len(tags[tag]), 280)
        for tag in sorted(tags)
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + b"\0" * 4
    bits = struct.pack("<4H", *([values[258][0]] * 4)) if isinstance(values[258], tuple) else b""
    return (head.ljust(280, b"\0") + bits).ljust(300, b"\0") + samples


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_bytes({258: 32, 262: 1, 277: 1, 339: 1}, bytes(4)), "wide integer"),
        (tiff_bytes({258: 16, 262: 1, 277: 1, 339: 2}, bytes(2)), "signed"),
        (tiff_bytes({258: 8, 262: 1, 277: 1, 339: 2}, bytes(1)), "signed"),
    ],
    ids=["gray32", "signed16", "signed8"],
)
def test_tiff_samples_that_would_lose_bits_are_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    one_line(error, path)


def test_16_bit_colour_of_jpeg_2000_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jp2", noise_image("RGB"))
    content = bytearray(path.read_bytes())
    first = content.index(b"\xff\x4f\xff\x51") + 42
    content[first : first + 9 : 3] = b"\x0f\x0f\x0f"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="16-bit samples in mode RGB"):
        read_image(path)


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="Pillow without AVIF")
def test_10_bit_samples_of_avif_are_told_from_8(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.avif", noise_image("RGB", 16, 16))
    content = path.read_bytes()
    at = content.index(b"av1C") + 6  # tier, high bit depth, twelve bits, monochrome, ...
    deep = content[:at] + bytes([content[at] | 0x40]) + content[at + 1 :]
    with Image.open(path) as image:
        assert sample_bits(image, io.BytesIO(content)) == 8
        assert sample_bits(image, io.BytesIO(deep)) == 10


def test_a_transparent_colour_of_16_bit_gray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="transparent colour"):
        read_image(saved(tmp_path / "a.png", noise_image("I;16"), transparency=5))


def test_dropped_extra_samples_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes({258: (8,) * 4, 262: 2, 277: 4, 338: 0}, b"\xff\0\xff\7"))
    picture = read_image(path)
    assert picture.pixels.flatten().tolist() == [1, 0, 1]
    assert "extra samples" in picture.layout.note


def test_float_with_nan_is_refused(tmp_path: Path) -> None:
    image = Image.frombytes("F", (2, 1), struct.pack("2f", 1, float("nan")))
    with pytest.raises(ImageError, match="NaN"):
        read_image(saved(tmp_path / "a.tif", image))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_refused_rather_than_dropped(suffix: str, tmp_path: Path) -> None:
    first, *rest = (noise_image("RGB") for _ in range(3))
    path = tmp_path / f"a{suffix}"
    first.save(path, save_all=True, append_images=rest)
    with pytest.raises(ImageError, match="has 3 frames; animations are not supported"):
        read_image(path)


def test_the_first_picture_of_a_phone_jpeg_is_kept_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    first, second = noise_image("RGB", 16, 8), noise_image("RGB", 16, 8)
    first.save(path, format="MPO", save_all=True, append_images=[second])
    picture = read_image(path)
    assert picture.pixels.shape == (3, 8, 16)
    assert "multi-picture" in picture.layout.note


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp", ".ppm", ".tga"])
def test_a_truncated_file_is_an_error_and_never_filled(suffix: str, tmp_path: Path) -> None:
    whole = saved(tmp_path / f"whole{suffix}", noise_image("RGB", 40, 30)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as error:
            read_image(path)
        one_line(error, path)


def test_a_png_without_its_end_mark_is_truncated(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise_image("RGB"))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".tif", ".webp", ".gif", ".tga", ".jp2"]))
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    content = bytearray(saved(path, noise_image("RGB", 9, 9), exif=EXIF).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        picture = read_image(path)
    except ImageError:
        return
    assert isinstance(picture, DecodedImage)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", noise_image("L"))

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(io, "open", deny)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: Permission denied") as error:
        read_image(path)
    assert isinstance(error.value.__cause__, PermissionError)


def test_large_files_and_odd_headers_warn_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for suffix in (".png", ".tif"):
        assert read_image(saved(tmp_path / f"a{suffix}", noise_image("L"))).layout.size == (5, 7)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise_image("RGB", 64, 64))
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# Half-written never


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "PIL.Image.Image.save"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(
    failing: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB")))

    def fail(*arguments: Any, **_: object) -> None:
        if failing.endswith("save"):
            arguments[1].write(b"half")
        raise failure

    monkeypatch.setattr(failing, fail)
    expected = ImageError if isinstance(failure, OSError) else KeyboardInterrupt
    folder = tmp_path / "out"
    with pytest.raises(expected):
        write_image(folder / "b.png", picture, picture.pixels)
    assert list(folder.iterdir()) == []


def test_a_failed_write_keeps_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    target = tmp_path / "b.png"
    target.write_bytes(b"older")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ImageError, match=r"b\.png: cannot be written: No space left on device;"):
        write_image(target, picture, picture.pixels)
    assert target.read_bytes() == b"older"


def test_a_folder_in_the_way_is_an_image_error(tmp_path: Path) -> None:
    picture = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ImageError, match=r"b\.png: cannot be written: Is a directory"):
        write_image(tmp_path / "b.png", picture, picture.pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
