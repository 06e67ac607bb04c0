"""Kinds of samples that Pillow has no mode for: bit for bit at strength 0, or refused by name."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from pictures import ICC, picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files import sixteen_bit

H, W = 15, 22


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "imgs").mkdir()
    return folder


def run(folder: Path, *arguments: str) -> Path:
    options = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--overwrite", *arguments]
    main([str(folder), *options])
    return folder.with_name(folder.name + "-denoised")


def noise(dtype: str, *shape: int) -> NDArray[np.generic]:
    rng = np.random.default_rng(sum(shape))
    if dtype[-2] == "u":
        return rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    return (rng.random(shape) * 300 - 100).astype(dtype)


COMPRESSIONS = {1: None, 5: "lzw", 8: "zlib", 32773: "packbits", 34925: "lzma", 50000: "zstd"}
BANDS = [(1, "minisblack"), (3, "rgb"), (4, "rgb"), (2, "minisblack"), (3, "minisblack"),
         (4, "minisblack")]  # fmt: skip


@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4", "f8"])
def test_tiff_of_every_depth_and_number_of_bands_comes_back(dtype: str, folder: Path) -> None:
    """3 and 4 bands of MinIsBlack, with unspecified extra samples, are what GDAL writes."""
    for code, compression in COMPRESSIONS.items():
        for channels, photometric in BANDS:
            is_colour = photometric == "rgb" and channels == 4
            tifffile.imwrite(
                folder / f"{code}-{channels}-{photometric}.tif",
                noise(dtype, H, W, channels) if channels > 1 else noise(dtype, H, W),
                photometric=photometric,
                planarconfig="contig" if channels > 1 else None,
                extrasamples=["unassalpha"] if is_colour else None,
                compression=compression,
                resolution=(300, 300), resolutionunit="INCH", description="kept", metadata=None,
            )  # fmt: skip
    output = run(folder)
    for path in folder.iterdir():
        with tifffile.TiffFile(path) as before, tifffile.TiffFile(output / path.name) as after:
            old, new = before.pages.first, after.pages.first
            assert np.array_equal(old.asarray(), new.asarray()), path.name
            assert old.dtype == new.dtype
            assert old.compression == new.compression
            assert old.photometric == new.photometric
            assert old.extrasamples == new.extrasamples
            assert new.tags[282].value == (300, 1)
            assert new.description == "kept"


def test_other_layouts_of_tiff_come_back(folder: Path) -> None:
    planar = {"photometric": "minisblack", "planarconfig": "separate"}
    files = {
        "planar16": (noise("u2", 3, H, W), {"photometric": "rgb", "planarconfig": "separate"}),
        "planarf": (noise("f4", 3, H, W), planar),
        "planar4": (noise("u1", 4, H, W), planar),
        "big16": (noise("u2", H, W, 3), {"photometric": "rgb", "bigtiff": True}),
        "bigf2": (noise("f2", H, W), {"bigtiff": True}),
        "motorola": (noise(">f4", H, W, 3), {"photometric": "rgb", "byteorder": ">"}),
        "motorolaz": (noise(">f4", H, W), {"byteorder": ">", "compression": "zlib"}),
        "motorolal": (noise(">f4", H, W), {"byteorder": ">", "compression": "lzw",
                                           "photometric": "minisblack", "predictor": True}),
        "motorola8": (noise(">f8", H, W), {"byteorder": ">"}),
        "tiles": (noise("f4", 40, 70, 3), {"photometric": "rgb", "tile": (16, 32),
                                           "compression": "zlib", "predictor": True}),
        "tiles16": (noise("u2", 40, 70, 3), {"photometric": "rgb", "tile": (16, 32),
                                             "compression": "lzw", "predictor": True}),
        "zstd": (noise("u2", H, W, 3), {"photometric": "rgb", "compression": "zstd"}),
        "webp": (noise("u1", H, W, 3), {"photometric": "rgb", "compression": "webp"}),
        "webp4": (noise("u1", H, W, 4), {"photometric": "rgb", "compression": "webp",
                                         "extrasamples": ["unassalpha"]}),
        "lerc": (noise("f4", H, W), {"compression": "lerc"}),
        "la16": (noise("u2", H, W, 2), {"photometric": "minisblack", "planarconfig": "contig",
                                        "extrasamples": ["unassalpha"]}),
        "pages": (noise("f2", 3, H, W), {"photometric": "minisblack"}),
        "pages3": (noise("u2", 3, H, W, 3), {"photometric": "rgb"}),
    }  # fmt: skip
    for name, (array, options) in files.items():
        tifffile.imwrite(folder / f"{name}.tif", array, metadata=None, **options)
    output = run(folder)
    for name, (array, _) in files.items():
        expected = array.transpose(1, 2, 0) if name.startswith("planar") else array
        found = tifffile.imread(output / f"{name}.tif")
        assert np.array_equal(found, expected), name
        assert found.dtype == expected.dtype.newbyteorder("=")


def test_pages_of_different_kinds_share_a_file(folder: Path) -> None:
    pages = [noise("u2", H, W, 3), noise("u1", H, W, 3), noise("f4", H, W), noise("u1", H, W)]
    with tifffile.TiffWriter(folder / "a.tif") as tiff:
        for number, page in enumerate(pages):
            kind = "rgb" if page.ndim == 3 else "minisblack"
            tiff.write(page, photometric=kind, metadata=None, description=f"page {number}")
    with tifffile.TiffFile(run(folder) / "a.tif") as tiff:
        assert len(tiff.pages) == len(pages)
        for number, (page, expected) in enumerate(zip(tiff.pages, pages, strict=True)):
            assert np.array_equal(page.asarray(), expected)
            assert page.aspage().description == f"page {number}"


WHITE_AS_0 = {"u1": noise("u1", H, W), "u2": noise("u2", H, W), "f4": noise("f4", H, W),
              "bool": noise("u1", H, W) > 127, "la": noise("u2", H, W, 2),
              "bands": noise("u1", H, W, 3)}  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_gray_with_white_as_0_comes_back_with_its_tags(
    order: str, compression: str | None, folder: Path
) -> None:
    for name, array in WHITE_AS_0.items():
        is_several = array.ndim > 2
        tifffile.imwrite(
            folder / f"{name}.tif", array.astype(array.dtype.newbyteorder(order)),
            byteorder=order, photometric="miniswhite", metadata=None, compression=compression,
            planarconfig="contig" if is_several else None,
            extrasamples=["unassalpha"] if name == "la" else None,
            extratags=[(42113, 2, 0, "3", True), (280, 3, 1, 2, True), (281, 3, 1, 200, True)],
        )  # fmt: skip
    output = run(folder)
    for name, array in WHITE_AS_0.items():
        with tifffile.TiffFile(output / f"{name}.tif") as tiff:
            page = tiff.pages.first
            assert page.photometric == 0
            assert np.array_equal(page.asarray(), array), name
            assert page.tags[42113].value == "3"
            assert page.tags[281].value == 200
    gray = run(folder, "--format", "png")
    for name in ("u1", "u2"):
        array = WHITE_AS_0[name]
        expected = np.iinfo(array.dtype).max - array
        assert np.array_equal(imagecodecs.imread(gray / f"{name}.png"), expected)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("value", [0, 200])
def test_no_data_of_gray_with_white_as_0_is_kept(dtype: str, value: int, folder: Path) -> None:
    array = np.asarray(picture(64, 48).convert("L")).astype(dtype) * (1 if dtype == "u1" else 200)
    array = array.clip(0, 50_000)
    array[:20, :15] = value
    tags = [(42113, 2, 0, str(value), True)]
    tifffile.imwrite(folder / "a.tif", array, photometric="miniswhite", extratags=tags)
    output = tifffile.imread(run(folder, "--strength", "1") / "a.tif")
    assert (output[:20, :15] == value).all()
    assert not np.array_equal(output, array)


def test_gray_with_alpha_of_16_bits_is_png_too(folder: Path) -> None:
    array = noise("u2", H, W, 2)
    (folder / "a.png").write_bytes(imagecodecs.png_encode(array))
    for arguments in ((), ("--format", "tiff")):
        (path,) = run(folder, *arguments).glob("a.tif" if arguments else "a.png")
        read = tifffile.imread if arguments else imagecodecs.imread
        assert np.array_equal(read(path), array)


def test_floats_are_denoised(folder: Path) -> None:
    clean = np.asarray(picture(64, 48), "f8") / 255
    for dtype in ("f2", "f4", "f8"):
        tifffile.imwrite(folder / f"{dtype}.tif", clean.astype(dtype), photometric="rgb")
    output = run(folder, "--strength", "1")
    for dtype in ("f2", "f4", "f8"):
        after = tifffile.imread(output / f"{dtype}.tif")
        assert after.dtype == dtype
        assert 0.001 < np.abs(after.astype("f8") - clean).mean() < 0.2


def pam(array: NDArray[np.generic], kind: str) -> bytes:
    height, width, depth = array.shape
    peak = 255 if array.dtype == np.uint8 else 65535
    lines = (f"P7\n# made by hand\nWIDTH {width}\nHEIGHT {height}\nDEPTH {depth}\n"
             f"MAXVAL {peak}\nTUPLTYPE {kind}\nENDHDR\n")  # fmt: skip
    return lines.encode() + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_becomes_alpha(channels: int, folder: Path) -> None:
    """As it does with 8 bits; the colour below stays."""
    samples = noise("u2", H, W, channels)
    samples[3:9, 4:11] = key = samples[0, 0]
    whole = bytes(imagecodecs.png_encode(samples[:, :, 0] if channels == 1 else samples))
    said = b"tRNS" + key.astype(">u2").tobytes()
    chunk = struct.pack(">I", 2 * channels) + said + struct.pack(">I", zlib.crc32(said))
    (folder / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    output = imagecodecs.png_decode((run(folder) / "a.png").read_bytes())
    assert np.array_equal(output[:, :, :-1], samples)
    assert np.array_equal(output[:, :, -1] == 0, (samples == key).all(2))


def test_portable_maps_come_back(folder: Path) -> None:
    colour, deep = noise("f4", H, W, 3), noise("u2", H, W, 3)
    for name, order in (("little", "<"), ("big", ">")):
        head = f"PF\n{W} {H}\n{-1 if order == '<' else 1}.0\n".encode()
        (folder / f"{name}.pfm").write_bytes(head + colour[::-1].astype(order + "f4").tobytes())
    (folder / "deep.ppm").write_bytes(
        f"P6\n# comment\n{W} {H}\n65535\n".encode() + deep.astype(">u2").tobytes()
    )
    kinds = {"GRAYSCALE": 1, "GRAYSCALE_ALPHA": 2, "RGB": 3, "RGB_ALPHA": 4}
    arrays = {}
    for kind, depth in kinds.items():
        for dtype in ("u1", "u2"):
            arrays[f"{kind}-{dtype}"] = array = noise(dtype, H, W, depth)
            (folder / f"{kind}-{dtype}.pam").write_bytes(pam(array, kind))
    output = run(folder)
    for name in ("little", "big"):
        content = (output / f"{name}.pfm").read_bytes()
        assert content.startswith(f"PF\n{W} {H}\n-1.0\n".encode())
        found = np.frombuffer(content[-colour.nbytes :], "<f4").reshape(colour.shape)
        assert np.array_equal(found[::-1], colour)
    content = (output / "deep.ppm").read_bytes()
    assert content == f"P6\n{W} {H}\n65535\n".encode() + deep.astype(">u2").tobytes()
    for name, array in arrays.items():
        head, _, data = (output / f"{name}.pam").read_bytes().partition(b"ENDHDR\n")
        assert f"DEPTH {array.shape[2]}".encode() in head
        kind = array.dtype.newbyteorder(">")
        assert np.array_equal(np.frombuffer(data, kind).reshape(array.shape), array)
    other = run(folder, "--format", "png")
    assert np.array_equal(imagecodecs.imread(other / "deep.png"), deep)


def jpeg12() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(noise("u2", H, W) >> 4, bitspersample=12))


REFUSED = {
    "five.tif": ("5 bands", noise("u1", H, W, 5)),
    "five16.tif": ("5 bands", noise("u2", H, W, 5)),
    "cmyk16.tif": ("16-bit", noise("u2", H, W, 4)),
    "lab16.tif": ("16-bit Lab", noise("u2", H, W, 3)),
    "int16.tif": ("signed", noise("u2", H, W).astype("i2")),
    "int16rgb.tif": ("16-bit signed", noise("u2", H, W, 3).astype("i2")),
    "uint32.tif": ("wide integer", noise("u4", H, W)),
    "uint32rgb.tif": ("32-bit unsigned", noise("u4", H, W, 3)),
    "complex.tif": ("64-bit complex", noise("f4", H, W).astype("c8")),
    "volume.tif": ("4 slices", noise("u2", 4, H, W, 3)),
}


def test_other_kinds_are_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"cmyk16.tif": "separated", "lab16.tif": "cielab"}
    for name, (_, array) in REFUSED.items():
        kind = names.get(name, "rgb" if array.shape[-1] == 3 else "minisblack")
        tifffile.imwrite(
            folder / name, array, photometric=kind, metadata=None,
            planarconfig="contig" if array.ndim > 2 else None,
            volumetric=name.startswith("volume"),
        )  # fmt: skip
    (folder / "twelve.jpg").write_bytes(jpeg12())
    (folder / "lossless.jpg").write_bytes(bytes(imagecodecs.ljpeg_encode(noise("u2", H, W))))
    (folder / "ls.jpg").write_bytes(bytes(imagecodecs.jpegls_encode(noise("u1", H, W))))
    bands = pam(np.concatenate([noise("u1", H, W, 3)] * 2, 2), "MULTISPECTRAL")
    (folder / "six.pam").write_bytes(bands)
    run(folder)
    err = capsys.readouterr().err
    for name, (reason, _) in REFUSED.items():
        assert any(f"/{name}: " in line and reason in line for line in err.splitlines()), name
    for name, reason in (
        ("twelve.jpg", "is a 12-bit JPEG"), ("lossless.jpg", "lossless 16-bit JPEG"),
        ("ls.jpg", "is JPEG-LS"), ("six.pam", "6 bands"),
    ):  # fmt: skip
        assert any(f"/{name}: " in line and reason in line for line in err.splitlines()), name
    assert "not an image" not in err
    assert "damaged" not in err


def test_a_dry_run_says_of_such_files_that_they_would_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(folder / "good.tif", noise("u2", H, W, 3), photometric="rgb")
    tifffile.imwrite(folder / "five.tif", noise("u2", H, W, 5), photometric="minisblack",
                     planarconfig="contig")  # fmt: skip
    tifffile.imwrite(folder / "signed.tif", noise("u2", H, W).astype("i2"))
    tifffile.imwrite(folder / "complex.tif", noise("f4", H, W).astype("c8"))
    tifffile.imwrite(folder / "cfa.tif", noise("u2", H, W), photometric=32803)
    (folder / "twelve.jpg").write_bytes(jpeg12())
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"hello")
    frames = [Image.new("L", (9, 9), level) for level in (0, 99)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    picture(20, 20).save(folder / "good.png")
    assert main([str(folder), "-w", "tconv", "-d", "cpu", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    main([str(folder), "-w", "tconv", "-d", "cpu"])
    reasons = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()
               if " failed " in line]  # fmt: skip
    assert len(reasons) == 9
    for reason in reasons:
        assert reason in planned
    assert planned.count("would fail") == 9
    assert planned.count("would denoise") == 2
    assert "2 to denoise, 0 to skip, 9 to fail" in planned


@pytest.mark.parametrize("dtype", ["f2", "f8", "u2"])
def test_without_the_extra_the_kind_and_the_extra_are_named(
    dtype: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(folder / "a.tif", noise(dtype, H, W, 3), photometric="rgb")
    monkeypatch.setattr(sixteen_bit, "find_spec", lambda name: None)
    run(folder)
    err = capsys.readouterr().err
    kind = "integers" if dtype == "u2" else "float"
    assert f"3 samples of {int(dtype[1]) * 8}-bit {kind}" in err
    assert "denoise-batch[scientific]" in err


def test_a_damaged_page_of_tifffile_fails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    array = np.asarray(picture(64, 48), "f4")
    for name, compression in (("deflate", "zlib"), ("lzw", "lzw"), ("raw", None)):
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, array, photometric="rgb", compression=compression)
        with tifffile.TiffFile(path) as tiff:
            at, size = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
        content = path.read_bytes()
        path.write_bytes(content[: at + size // 2])  # and the tags lie before
        changed = bytearray(content)
        changed[at + size // 2 : at + size // 2 + 4] = struct.pack("<I", 0xDEADBEEF)
        if compression == "zlib":
            (folder / f"{name}-changed.tif").write_bytes(changed)
    output = run(folder, "--quiet")
    assert not list(output.glob("*.tif"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("failed ") for line in lines[:4])


def test_profiles_of_16_bits_survive(folder: Path) -> None:
    tifffile.imwrite(folder / "a.tif", noise("u2", H, W, 3), photometric="rgb", iccprofile=ICC)
    for suffix in ("tif", "png"):
        output = run(folder, "--format", "png" if suffix == "png" else "tiff")
        with Image.open(output / f"a.{suffix}") as image:
            assert image.info["icc_profile"] == ICC
