"""What a file says beside its pixels, where a format or a library gets in the way."""

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import DAMAGED_EXIF, GRAY_ICC, ICC, XMP, picture, saved
from PIL import Image, PngImagePlugin

from denoise_batch.cli.batch import main
from denoise_batch.files.footprint import Footprint
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
def test_page_numbers_of_tiff_are_kept(compression: str | None, dtype: str, folder: Path) -> None:
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
        assert tags[PAGE_NUMBER] == (number, 3)
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
    sizes: list[Footprint] = []
    read_pages(source, sizes.append)
    assert [size.sample_bytes for size in sizes] == [3 * pixels]
    report = folder.parent / "report.json"
    denoised(folder, "--report", str(report))
    summary = json.loads(report.read_text())
    assert summary["totals"]["megapixels"] == pytest.approx(pixels / 1e6)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("with_xmp", [False, True])
def test_all_comments_of_a_jpeg_go_along(count: int, with_xmp: bool, folder: Path) -> None:
    comments = [f"comment {number} Zoë".encode() for number in range(count)]
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, "JPEG", **({"xmp": XMP} if with_xmp else {}))
    content = buffer.getvalue()
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", len(c) + 2) + c for c in comments)
    (folder / "a.jpg").write_bytes(content[:2] + segments + content[2:])
    after = (denoised(folder) / "a.jpg").read_bytes()
    places = [after.index(comment) for comment in comments]
    assert places == sorted(places)
    assert all(after.count(comment) == 1 for comment in comments)
    assert (XMP in after) == with_xmp


def test_photoshops_resources_that_were_thumbnails_alone_leave_no_empty_tag(folder: Path) -> None:
    thumbnail = b"8BIM" + struct.pack(">HHI", 1036, 0, 30) + b"t" * 30
    samples = np.asarray(picture(40, 30))
    tifffile.imwrite(folder / "a.tif", samples, photometric="rgb", metadata=None,
                     extratags=[(34377, 7, len(thumbnail), thumbnail, True)])  # fmt: skip
    assert 34377 not in tags_of(denoised(folder) / "a.tif")[0]


@pytest.mark.parametrize(
    ("box", "name"),
    [
        (b"mdcv" + bytes(24), "HDR metadata (mDCV, cLLI)"),
        (b"clli" + bytes(4), "HDR metadata (mDCV, cLLI)"),
        (b"clap" + struct.pack(">8I", 30, 1, 20, 1, 0, 1, 0, 1), "crop (clean aperture)"),
    ],
)
def test_what_avif_says_beside_the_picture_is_dropped_with_a_note(
    box: bytes, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, "AVIF")
    content = buffer.getvalue()
    free = struct.pack(">I", len(box) + 4) + box  # at the end: readers skip it there
    (folder / "a.avif").write_bytes(content + free)
    denoised(folder)
    assert f"{name} dropped" in capsys.readouterr().out


# Colour beside ICC profiles: code points (CICP, ITU-T H.273), significant bits, HDR metadata

P3, PQ, HLG = (12, 13), (9, 16), (9, 18)


def code_points(path: Path) -> tuple[int, int]:
    """Primaries and transfer function of an AVIF file (its nclx box) or a PNG file (cICP)."""
    content = path.read_bytes()
    if path.suffix == ".png":
        at = content.index(b"cICP") + 4
        return content[at], content[at + 1]
    at = content.index(b"colrnclx") + 8
    primaries, transfer = struct.unpack_from(">HH", content, at)
    return primaries, transfer


def with_code_points(content: bytes, wanted: tuple[int, int]) -> bytes:
    at = content.index(b"colrnclx") + 8
    return content[:at] + struct.pack(">HH", *wanted) + content[at + 4 :]


@pytest.mark.parametrize("wanted", [P3, PQ, HLG], ids=["p3", "pq", "hlg"])
@pytest.mark.parametrize("suffix", ["preserve", "png"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_code_points_of_avif_go_along(
    wanted: tuple[int, int], suffix: str, mode: str, folder: Path
) -> None:
    buffer = io.BytesIO()
    picture(40, 30).convert(mode).save(buffer, "AVIF", quality=95)
    (folder / "a.avif").write_bytes(with_code_points(buffer.getvalue(), wanted))
    (output,) = denoised(folder, "--format", suffix).glob("a.*")
    assert code_points(output) == wanted
    with Image.open(output) as after:
        after.load()
        assert after.size == (40, 30)


@pytest.mark.parametrize("source", ["avif", "png"])
@pytest.mark.parametrize("suffix", ["jpeg", "tiff", "webp"])
def test_code_points_that_a_format_cannot_hold_are_noted(
    source: str, suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, source)
    content = buffer.getvalue()
    if source == "avif":
        content = with_code_points(content, P3)
    else:
        content = content[:33] + png_chunk(b"cICP", bytes([*P3, 0, 1])) + content[33:]
    (folder / f"a.{source}").write_bytes(content)
    denoised(folder, "--format", suffix)
    assert "colour space dropped:" in capsys.readouterr().out


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_text_in_avif_survives_each_orientation(orientation: int, folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    exif[315] = "Zo@@ a"
    exif[0x8769] = {33434: 0.5, 37510: b"UNICODE\0Zo\xeb"}
    block = exif.tobytes().replace(b"Zo@@ a", "Zoë a".encode())
    assert "Zoë".encode() in block
    packet = "<x:xmpmeta xmlns:x='adobe:ns:meta/'>Zoë</x:xmpmeta>".encode()
    picture(40, 30).save(folder / "jpeg.jpg", exif=block, xmp=packet)
    pillow = Image.Exif()
    pillow[274] = orientation
    picture(40, 30).save(folder / "a.avif", exif=pillow, xmp=packet)
    first = denoised(folder, "--format", "avif")
    again = folder.parent / "again"
    again.mkdir()
    for path in first.glob("*.avif"):
        (again / path.name).write_bytes(path.read_bytes())
    for path in denoised(again).glob("*.avif"):
        content = path.read_bytes()
        assert packet in content
        with Image.open(path) as image:
            assert image.getexif().get(274, 1) == orientation
            assert image.info["xmp"] == packet
        if path.name == "jpeg.avif":
            assert "Zoë a".encode() in content
            assert b"UNICODE\0Zo\xeb" in content


CHUNKS = [
    (b"sBIT", b"\5\6\5"),
    (b"mDCV", struct.pack(">8H2I", *range(1, 9), 10_000_000, 50)),
    (b"cLLI", struct.pack(">2I", 10_000_000, 4_000_000)),
    (b"cICP", bytes([*PQ, 0, 1])),
    (b"gAMA", struct.pack(">I", 45455)),
    (b"cHRM", struct.pack(">8I", *range(1, 9))),
    (b"sCAL", b"\x01" + b"1\0" + b"1"),
    (b"prVt", b"safe to copy"),
]


@pytest.mark.parametrize("deep", [False, True], ids=["8", "16"])
def test_colour_chunks_of_png_go_along(deep: bool, folder: Path) -> None:
    if deep:
        samples = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype="u2")
        content = imagecodecs.png_encode(samples)
    else:
        buffer = io.BytesIO()
        picture(40, 30).save(buffer, "PNG")
        content = buffer.getvalue()
    more = b"".join(png_chunk(*chunk) for chunk in CHUNKS)
    (folder / "a.png").write_bytes(content[:33] + more + content[33:])
    after = (denoised(folder) / "a.png").read_bytes()
    for chunk in CHUNKS:
        assert after.count(png_chunk(*chunk)) == 1
    assert after.index(b"sBIT") < after.index(b"IDAT")


@pytest.mark.parametrize(
    ("mode", "bits", "is_kept"),
    [("L", b"\5", True), ("LA", b"\5\5", True), ("P", b"\5\6\5", True), ("RGBA", b"\5" * 4, True),
     ("key", b"\5", False)],
)  # fmt: skip
def test_significant_bits_of_png_are_kept_or_dropped_with_a_note(
    mode: str, bits: bytes, is_kept: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    options = {"transparency": 7} if mode == "key" else {}
    image = picture(40, 30).convert("L" if mode == "key" else mode)
    image.save(buffer, "PNG", **options)
    content = buffer.getvalue()
    (folder / "a.png").write_bytes(content[:33] + png_chunk(b"sBIT", bits) + content[33:])
    after = (denoised(folder) / "a.png").read_bytes()
    assert (b"sBIT" in after) == is_kept
    assert ("significant bits (sBIT) dropped" in capsys.readouterr().out) != is_kept


def bmp_v5(kind: bytes, profile: bytes) -> bytes:
    """A BMP file with a header of version 5 and a profile at its end."""
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, "BMP")
    old = buffer.getvalue()
    pixels = old[54:]
    header = bytearray(old[14:54].ljust(124, b"\0"))
    header[:4] = struct.pack("<I", 124)
    header[56:60] = kind[::-1]
    header[112:120] = struct.pack("<II", 124 + len(pixels), len(profile))
    head = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(profile), 0, 0, 138)
    return head + bytes(header) + pixels + profile


def test_profiles_of_bmp_are_noted_or_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "embedded.bmp").write_bytes(bmp_v5(b"MBED", ICC))
    (folder / "linked.bmp").write_bytes(bmp_v5(b"LINK", b"C:\\p3.icc\0"))
    (folder / "srgb.bmp").write_bytes(bmp_v5(b"sRGB", b""))
    denoised(folder)
    out = capsys.readouterr().out
    assert "embedded.bmp: colour profile dropped: BMP cannot hold one" in out
    assert "linked.bmp: colour profile dropped: it is in another file" in out
    assert "srgb.bmp: colour" not in out
    output = denoised(folder, "--format", "png")
    with Image.open(output / "embedded.png") as after:
        assert after.info["icc_profile"] == ICC


def software(path: Path) -> str:
    with Image.open(path) as image:
        tags = image.tag_v2 if image.format == "TIFF" else image.getexif()  # type: ignore[attr-defined]
        return str(tags.get(305, ""))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_outputs_say_what_made_them(suffix: str, tmp_path: Path) -> None:
    """In files with EXIF, whose other bytes stay where they are, and in files without."""
    exif = Image.Exif()
    exif[271], exif[305] = "Maker", "Camera 1.0"
    exif.get_ifd(34665)[37500] = b"notes" * 9
    saved(tmp_path / f"with{suffix}", picture(16, 16), exif=exif)
    saved(tmp_path / f"without{suffix}", picture(16, 16))
    out = tmp_path / "out"
    arguments = [str(tmp_path), "-o", str(out), "--device", "cpu", "--quiet", "--weights", "tconv"]
    assert main(arguments) == 0
    for name in ("with", "without"):
        said = software(out / f"{name}{suffix}")
        assert re.fullmatch(r"denoise-batch \d\S*, weights tconv \(sha256 [0-9a-f]{12}\)", said)
    with Image.open(out / f"with{suffix}") as image:
        assert image.getexif()[271] == "Maker"
        if suffix != ".tif":
            assert image.getexif().get_ifd(34665)[37500] == b"notes" * 9
    before = software(tmp_path / f"with{suffix}")
    assert main([*arguments, "--overwrite", "--no-provenance"]) == 0
    assert software(out / f"with{suffix}") == before
    assert software(out / f"without{suffix}") == ""
