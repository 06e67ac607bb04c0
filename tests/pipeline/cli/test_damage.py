"""Damaged files fail by name, or come out whole with a note; libraries print nothing themselves."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import ICC, XMP, picture
from PIL import Image, PngImagePlugin

from denoise_batch.cli.batch import main

SIZE = (64, 48)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "imgs").mkdir()
    return folder


def denoised(folder: Path, *arguments: str) -> Path:
    options = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--overwrite", *arguments]
    main([str(folder), *options])
    return folder.with_name(folder.name + "-denoised")


def changed(content: bytes, start: int, size: int, count: int) -> list[bytes]:
    """The content with one byte in a span changed, `count` times."""
    rng = np.random.default_rng(0)
    found = []
    for at, by in zip(
        rng.integers(start, start + size, count), rng.integers(1, 256, count), strict=True
    ):
        damaged = bytearray(content)
        damaged[at] ^= by
        found.append(bytes(damaged))
    return found


def strip(path: Path) -> tuple[bytes, int, int]:
    """A TIFF file, and where its one strip lies."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return path.read_bytes(), page.dataoffsets[0], page.databytecounts[0]


# How many of 30 files with one changed byte must fail. What no decoder can tell is not in here:
# PackBits and plain samples have no redundancy, LZW and Group 4 little.
KINDS = [
    ("tiff_adobe_deflate", "RGB", 30),
    ("tiff_adobe_deflate", "I;16", 30),
    ("tiff_lzw", "RGB", 15),
    ("group4", "1", 20),
    ("group3", "1", 20),
]


@pytest.mark.parametrize(("compression", "mode", "least"), KINDS)
def test_a_changed_byte_of_a_compressed_tiff_fails_the_file(
    compression: str, mode: str, least: int, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = picture(*SIZE)
    whole = image.convert("L").convert(mode) if mode != "RGB" else image
    whole.save(folder / "whole.tif", compression=compression, strip_size=1 << 20)
    content, start, size = strip(folder / "whole.tif")
    for number, damaged in enumerate(changed(content, start, size, 30)):
        (folder / f"{number:02}.tif").write_bytes(damaged)
    output = denoised(folder, "--quiet")
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("failed ") and ".tif: is " in line for line in lines[:-1]), err
    assert "done" in lines[-1]
    written = {path.name for path in output.glob("*.tif")}
    assert len(written) <= 31 - least
    with Image.open(output / "whole.tif") as after, Image.open(folder / "whole.tif") as before:
        assert after.tobytes() == before.tobytes()


def test_complaints_are_of_their_own_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Several threads decode: none is blamed for what another one reads."""
    picture(*SIZE).convert("1").save(folder / "a.tif", compression="group4")
    content, start, _ = strip(folder / "a.tif")
    damaged = content[: start + 20] + b"\0\0" + content[start + 22 :]
    for number in range(20):
        (folder / f"{number:02}-whole.tif").write_bytes(content)
        (folder / f"{number:02}-damaged.tif").write_bytes(damaged)
    output = denoised(folder, "--quiet")
    assert len(list(output.glob("*-whole.tif"))) == 20
    assert not list(output.glob("*-damaged.tif"))
    assert capfd.readouterr().err.count("is damaged (") == 20


def test_odd_tags_are_no_damage(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff warns of tags that it does not know, and of their order."""
    odd = [(65000, 3, 1, 7, True), (33550, 12, 3, (1.0, 1.0, 0.0), True), (50000, 2, 3, "ab", True)]
    tifffile.imwrite(
        folder / "a.tif", np.asarray(picture(*SIZE)), photometric="rgb", compression="lzw",
        extratags=odd, metadata=None,
    )  # fmt: skip
    assert (denoised(folder, "--quiet") / "a.tif").exists()
    assert capfd.readouterr().err == ""


# PNG


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", found)


def png(*chunks: bytes, behind: bytes = b"", mode: str = "RGB") -> bytes:
    """A PNG file with more chunks behind its header, and behind its pixels."""
    file = io.BytesIO()
    picture(*SIZE).convert(mode).save(file, "PNG")
    content = file.getvalue()
    return content[:33] + b"".join(chunks) + content[33:-12] + behind + content[-12:]


LARGE = zlib.compress(b"a" * (2 << 20))
SIDE_CHUNKS = {
    "large zTXt": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "large iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "large tEXt": chunk(b"tEXt", b"Comment\0" + b"a" * (2 << 20)),
    "large iCCP": chunk(b"iCCP", b"p\0\0" + LARGE),
    "broken zTXt": chunk(b"zTXt", b"Comment\0\0" + LARGE[:100]),
    "broken iCCP": chunk(b"iCCP", b"p\0\0" + b"no profile"),
    "method zTXt": chunk(b"zTXt", b"Comment\0\1" + zlib.compress(b"hello")),
    "method iTXt": chunk(b"iTXt", b"Comment\0\1\7\0\0" + zlib.compress(b"hello")),
    "method iCCP": chunk(b"iCCP", b"p\0\2" + zlib.compress(ICC)),
    "checksum tEXt": chunk(b"tEXt", b"Comment\0hello", 1),
    "checksum iCCP": chunk(b"iCCP", b"p\0\0" + zlib.compress(ICC), 1),
    "checksum gAMA": chunk(b"gAMA", struct.pack(">I", 45455), 1),
    "checksum pHYs": chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1), 1),
    "checksum eXIf": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", 1),
    "checksum tIME": chunk(b"tIME", bytes(7), 1),
    "checksum private": chunk(b"prVt", b"hello", 1),
    "short gAMA": chunk(b"gAMA", b"\0\0"),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short cHRM": chunk(b"cHRM", b"\0\0"),
    "long sRGB": chunk(b"sRGB", b"\0\0\0"),
}


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "16"])
@pytest.mark.parametrize("is_behind", [False, True], ids=["before", "behind"])
def test_a_png_loses_a_bad_side_chunk_and_no_pixel(
    mode: str, is_behind: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = chunk(b"tEXt", b"Title\0kept")
    for name, bad in SIDE_CHUNKS.items():
        if mode == "16":
            samples = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype="u2")
            import imagecodecs

            whole = imagecodecs.png_encode(samples)
            parts = [kept, bad]
            content = whole[:33] + b"".join(parts[: 2 - is_behind]) + whole[33:-12]
            content += (bad if is_behind else b"") + whole[-12:]
        else:
            content = png(kept, b"" if is_behind else bad, behind=bad * is_behind, mode=mode)
        (folder / f"{name}.png").write_bytes(content)
    output = denoised(folder)
    out = capsys.readouterr().out
    for name in SIDE_CHUNKS:
        assert f"{name}.png: chunks dropped, damaged or over 1 MiB: {name[-4:]}" in out.replace(
            "private", "prVt"
        ) or name.endswith("private")
        with Image.open(output / f"{name}.png") as after:
            after.load()
            assert after.info["Title"] == "kept"
            if mode == "RGB":
                assert after.tobytes() == picture(*SIZE).tobytes()


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_damaged_chunk_of_pixels_fails_the_file(name: bytes, folder: Path) -> None:
    content = bytearray(png())
    at = content.index(name)
    content[at + 4 + 13 if name == b"IHDR" else at + 40] ^= 1
    (folder / "a.png").write_bytes(content)
    assert not (denoised(folder) / "a.png").exists()


@pytest.mark.parametrize("name", [b"PLTE", b"tRNS"])
def test_a_picture_that_cannot_be_opened_is_called_damaged(
    name: bytes, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").write_bytes(png(chunk(name, bytes(6), 1)))
    denoised(folder)
    assert "a.png: is a damaged PNG file" in capsys.readouterr().err


# JPEG: libjpeg goes on with whatever it gets

JPEGS = {
    "baseline": {}, "gray": {"mode": "L"}, "progressive": {"progressive": True},
    "full colour": {"subsampling": 0}, "restarts": {"restart_marker_rows": 1},
    "CMYK": {"mode": "CMYK"},
}  # fmt: skip


def jpeg_of(case: str) -> bytes:
    options = dict(JPEGS[case])
    file = io.BytesIO()
    picture(96, 64).convert(options.pop("mode", "RGB")).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize("case", JPEGS)
def test_damaged_pixels_of_a_jpeg_fail_the_file(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = jpeg_of(case)
    start = whole.rindex(b"\xff\xda") + 14
    size = len(whole) - 2 - start
    third, half = size // 3, start + size // 2
    cases = {
        "whole": whole,
        "hole": whole[:half] + bytes(size // 4) + whole[half + size // 4 :],
        "no-tail": whole[: -third - 2] + whole[-2:],
        "zero-tail": whole[: -third - 2] + bytes(third + 2),
    }
    for name, content in cases.items():
        (folder / f"{name}.jpg").write_bytes(content)
    for number, content in enumerate(changed(whole, start, size, 12)):
        (folder / f"{number:02}.jpg").write_bytes(content)
    written = {path.stem for path in denoised(folder).glob("*.jpg")}
    assert written & cases.keys() == {"whole"}
    assert len(written) <= 10  # in many a changed byte is a pixel of another colour, and no more
    assert "zero-tail.jpg: is damaged" in capsys.readouterr().err


def test_bytes_behind_the_pixels_of_a_jpeg_are_no_damage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = jpeg_of("baseline")
    for name, more in (("few", b"\x17\x2a"), ("zeros", bytes(300)), ("ones", b"\xff" * 99)):
        (folder / f"{name}.jpg").write_bytes(whole[:-2] + more + whole[-2:])
    output = denoised(folder, "--format", "png")
    out = capsys.readouterr().out
    assert "zeros.jpg: its pixels end" in out
    assert out.count("its pixels end") == 1
    with Image.open(io.BytesIO(whole)) as image:
        before = image.tobytes()
    for path in output.glob("*.png"):
        with Image.open(path) as after:
            assert after.tobytes() == before, path.name


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}, {"rowsperstrip": 16}])
@pytest.mark.parametrize("photometric", ["ycbcr", "minisblack"])
def test_a_damaged_jpeg_in_tiff_fails_the_file(
    photometric: str, options: dict[str, Any], folder: Path
) -> None:
    array = np.asarray(picture(96, 64).convert("RGB" if photometric == "ycbcr" else "L"))
    tifffile.imwrite(
        folder / "whole.tif", array, photometric=photometric, compression="jpeg", **options
    )
    with tifffile.TiffFile(folder / "whole.tif") as file:
        page = file.pages.first
        start, size = page.dataoffsets[-1], page.databytecounts[-1]
    content = (folder / "whole.tif").read_bytes()
    half = start + size * 2 // 3
    hole = content[:half] + bytes(size // 5) + content[half + size // 5 :]
    (folder / "hole.tif").write_bytes(hole)
    assert {path.stem for path in denoised(folder).glob("*.tif")} == {"whole"}


def test_a_deflate_strip_that_goes_on_without_its_checksum_is_damaged(folder: Path) -> None:
    """Zeros are codes of pixels, too: libtiff stops at the last of them."""
    samples = np.random.default_rng(0).integers(0, 9000, (64, 96)).astype("u2")
    for name, array in {"u1": samples.astype("u1"), "u2": samples, "f4": samples / 7.0}.items():
        array = array.astype("f4") if name == "f4" else array
        tifffile.imwrite(folder / f"{name}.tif", array, compression="zlib")
        content, start, size = strip(folder / f"{name}.tif")
        for share in (2, 3, 5):
            bad = content[: start + size - size // share] + bytes(size // share)
            (folder / f"{name}-{share}.tif").write_bytes(bad + content[start + size :])
    assert {path.stem for path in denoised(folder).glob("*.tif")} == {"u1", "u2", "f4"}


# Side data of the other formats


def broken_segments() -> dict[str, bytes]:
    """JPEG, WebP, GIF and TIFF files, each with damaged metadata and whole pixels."""
    found = {}
    exif = Image.Exif()
    exif[271], exif[0x8769] = "Maker", {33434: 0.5}
    for suffix, options in (
        ("jpg", {"exif": exif.tobytes(), "icc_profile": ICC * 150, "xmp": XMP, "comment": b"c"}),
        ("webp", {"exif": exif.tobytes(), "icc_profile": ICC, "xmp": XMP, "lossless": True}),
        ("png", {"exif": exif.tobytes()}),
        ("avif", {"exif": exif.tobytes(), "icc_profile": ICC}),
    ):
        file = io.BytesIO()
        picture(*SIZE).save(file, Image.registered_extensions()[f".{suffix}"], **options)
        whole = file.getvalue()
        at = whole.index(b"MM\0*") if b"MM\0*" in whole else whole.index(b"II*\0")
        for name, bad in (
            ("head", b"XX"),
            ("offset", b"MM\0*\xff\xff\xff\xff"),
            ("zero", bytes(20)),
        ):
            content = whole[:at] + bad + whole[at + len(bad) :]
            if suffix == "png":
                start = at - 8
                data = content[at : at + struct.unpack_from(">I", content, start)[0]]
                end = at + len(data)
                content = (
                    content[:end]
                    + struct.pack(">I", zlib.crc32(b"eXIf" + data))
                    + content[end + 4 :]
                )
            found[f"exif-{name}.{suffix}"] = content
        if suffix == "jpg":
            second = whole.index(b"ICC_PROFILE\0\2")
            found["icc-missing.jpg"] = whole[:second] + b"ICC_PROFILE\0\7" + whole[second + 13 :]
            found["icc-count.jpg"] = whole.replace(b"ICC_PROFILE\0\1\2", b"ICC_PROFILE\0\1\x09", 1)
            comment = whole.index(b"\xff\xfe")
            found["comment.jpg"] = whole[: comment + 2] + b"\0\2" + whole[comment + 5 :]
    file = io.BytesIO()
    picture(*SIZE).convert("P").save(file, "GIF", comment=b"hello")
    found["comment.gif"] = file.getvalue().replace(b"hello", b"h\0\xffll")
    return found


def test_damaged_metadata_cost_no_picture(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = broken_segments()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    output = denoised(folder)
    out, err = capfd.readouterr()
    for name in files:
        after = output / Path(name).with_suffix(
            ".png" if name.endswith("gif") else Path(name).suffix
        )
        assert after.exists(), out + err
        with Image.open(after) as image:
            image.load()
            assert image.size == SIZE
    assert "icc-count.jpg: colour profile dropped: it is damaged" in out
    assert "exif-offset.avif: damaged EXIF block dropped" in out


def test_a_png_with_much_text_keeps_its_pixels(folder: Path) -> None:
    info = PngImagePlugin.PngInfo()
    for number in range(70):
        info.add_text(f"t{number}", "a" * (1 << 20), zip=True)
    picture(*SIZE).save(folder / "a.png", pnginfo=info)
    with Image.open(denoised(folder) / "a.png") as after:
        after.load()
        assert after.info["t3"] == "a" * (1 << 20)
        assert "t69" not in after.info
