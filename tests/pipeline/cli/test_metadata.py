"""What a file says beside its pixels, where a format or a library gets in the way."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import DAMAGED_EXIF, GRAY_ICC, ICC, picture
from PIL import Image, PngImagePlugin

from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_pages

PAGE_NUMBER, DOT_RANGE = 297, 336


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    folder.mkdir()
    return folder


def denoised(folder: Path, *arguments: str) -> Path:
    options = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--overwrite", *arguments]
    assert main([str(folder), *options]) == 0
    return folder.with_name(folder.name + "-denoised")


def tags_of(path: Path) -> list[dict[int, Any]]:
    with tifffile.TiffFile(path) as tiff:
        return [{tag.code: tag.value for tag in page.aspage().tags} for page in tiff.pages]


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_page_numbers_of_tiff_are_kept_or_dropped_never_made_up(
    compression: str | None, dtype: str, folder: Path
) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (3, 14, 23, 3), dtype=dtype)
    with tifffile.TiffWriter(folder / "scan.tif") as tiff:
        for number, page in enumerate(pages):
            said = [(PAGE_NUMBER, 3, 2, (number, 3), True), (DOT_RANGE, 3, 2, (0, 255), True)]
            tiff.write(
                page, photometric="rgb", compression=compression, metadata=None, extratags=said
            )
    output = denoised(folder) / "scan.tif"
    assert np.array_equal(tifffile.imread(output, key=range(3)), pages)
    for number, tags in enumerate(tags_of(output)):
        assert tags.get(PAGE_NUMBER) == (None if compression else (number, 3))
        assert DOT_RANGE not in tags


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_an_unspecified_sample_of_tiff_is_no_alpha(
    dtype: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (14, 23, 4), dtype=dtype)
    tifffile.imwrite(folder / "a.tif", samples, photometric="rgb", extrasamples=["unspecified"])
    output = denoised(folder) / "a.tif"
    assert np.array_equal(tifffile.imread(output), samples[:, :, :3])
    assert "extra samples dropped: they are not alpha" in capsys.readouterr().out


def test_premultiplied_alpha_is_written_as_straight_alpha(folder: Path) -> None:
    colour, alpha = (30000, 0, 65535, 7), (60000, 0, 65535, 1)  # the last exceeds its alpha
    samples = np.array([[(c, c // 2, 0, a) for c, a in zip(colour, alpha, strict=True)]], "u2")
    tifffile.imwrite(folder / "a.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
    output = denoised(folder) / "a.tif"
    assert tags_of(output)[0][338] in (2, (2,))
    reds = tifffile.imread(output)[0, :, 0].tolist()
    assert reds == [32768, 0, 65535, 65535]


@pytest.mark.parametrize("suffix", ["tiff", "bmp", "avif", "png", "jpeg"])
def test_a_damaged_exif_block_costs_no_picture(
    suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(40, 30).save(folder / "a.jpg", exif=DAMAGED_EXIF)
    (output,) = denoised(folder, "--format", suffix).glob("a.*")
    is_kept = suffix in {"png", "jpeg"}  # as it is
    with Image.open(output) as image:
        assert image.size == (40, 30)
        assert ("exif" in image.info) == is_kept
    assert ("damaged EXIF block dropped" in capsys.readouterr().out) != is_kept


def test_a_picture_with_a_damaged_exif_block_is_shown(folder: Path) -> None:
    picture(40, 30).save(folder / "a.jpg", exif=DAMAGED_EXIF)
    report = folder.parent / "report.html"
    denoised(folder, "--report", str(report))
    page = report.read_text()
    assert page.count("data:image/webp") >= 2
    assert "cannot be shown" not in page


@pytest.mark.parametrize("suffix", ["jpeg", "bmp", "png"])
def test_orientation_that_imagemagick_keeps_in_the_text_of_a_png_is_heeded(
    suffix: str, folder: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    block = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    picture(40, 30).save(folder / "a.png", pnginfo=info)
    (output,) = denoised(folder, "--format", suffix).glob("a.*")
    with Image.open(output) as image:
        assert image.size == ((30, 40) if suffix == "bmp" else (40, 30))
        assert image.getexif().get(274) == (None if suffix == "bmp" else 6)
        assert "exif" not in image.info or suffix == "jpeg"  # as text, not twice


@pytest.mark.parametrize("method", [2, 3])
def test_the_colour_profile_of_jpeg_2000_goes_along(
    method: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, "JPEG2000")
    data = buffer.getvalue()
    head, colour = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    size = int.from_bytes(data[head : head + 4])
    old = int.from_bytes(data[colour : colour + 4])
    box = struct.pack(">I4s3B", 11 + len(ICC), b"colr", method, 0, 0) + ICC
    length = struct.pack(">I", size - old + len(box))
    before, after = data[head + 4 : colour], data[colour + old :]
    (folder / "a.jp2").write_bytes(data[:head] + length + before + box + after)
    with Image.open(denoised(folder, "--format", "png") / "a.png") as image:
        assert image.info["icc_profile"] == ICC
    denoised(folder, "--format", "jp2")
    assert "colour profile dropped: JPEG2000 cannot hold one" in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "suffix"), [("L", "webp"), ("LA", "avif"), ("L", "png")])
def test_a_gray_profile_stays_with_gray_pixels(
    mode: str, suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not by Pillow's own argument to PNG alone: TIFF takes any profile.
    picture(40, 30).convert(mode).save(folder / "a.tif", icc_profile=GRAY_ICC)
    output = denoised(folder, "--format", suffix) / f"a.{suffix}"
    with Image.open(output) as image:
        is_gray = image.mode in {"L", "LA"}
        assert is_gray == (suffix == "png")
        assert image.info.get("icc_profile") == (GRAY_ICC if is_gray else None)
    note = "colour profile dropped: it is for gray"
    assert (note in capsys.readouterr().out) != is_gray


def test_pages_that_differ_in_size_count_each(folder: Path) -> None:
    pages = [picture(40, 30), picture(8, 6), picture(20, 10)]
    source = folder / "a.tif"
    pages[0].save(source, save_all=True, append_images=pages[1:])
    pixels = 40 * 30 + 8 * 6 + 20 * 10
    sizes: list[int] = []
    read_pages(source, sizes.append)
    assert sizes == [3 * pixels]
    report = folder.parent / "report.json"
    denoised(folder, "--report", str(report))
    summary = json.loads(report.read_text())
    assert summary["totals"]["megapixels"] == pytest.approx(pixels / 1e6)
