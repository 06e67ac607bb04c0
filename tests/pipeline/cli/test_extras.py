"""Formats of the extras: camera RAW, HEIC and JPEG XL, OpenEXR, in and out."""

import json
import math
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image, ImageCms, ImageOps

from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_image

SAMPLES = Path(__file__).parents[2] / "samples"  # README.md there says what wrote them
np = pytest.importorskip("numpy")


def run(*arguments: str | Path) -> int:
    given = [str(argument) for argument in arguments]
    return main([*given, "--device", "cpu", "--weights", "tconv", "--no-measure", "--quiet"])


def psnr(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)
    return float(-10 * math.log10(max((difference**2).mean() / 255**2, 1e-12)))


@pytest.fixture
def heif() -> Any:
    module = pytest.importorskip("pillow_heif")
    module.register_heif_opener()
    return module


@pytest.fixture
def jxl() -> Any:
    return pytest.importorskip("pillow_jxl")


def test_a_heic_file_keeps_format_metadata_and_way_up(heif: Any, tmp_path: Path) -> None:
    """HEIF turns by a property of its own; an orientation in the EXIF block says nothing."""
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    picture(40, 24).save(tmp_path / "turned.heic", quality=95, exif=exif.tobytes())
    out = tmp_path / "out"
    assert run(SAMPLES / "jpeg.heic", tmp_path / "turned.heic", "-o", out, "--strength", "0") == 0
    for name, size in (("jpeg.heic", (40, 24)), ("turned.heic", (24, 40))):
        folder = SAMPLES if name == "jpeg.heic" else tmp_path
        with Image.open(out / name) as image, Image.open(folder / name) as source:
            assert image.format == "HEIF"
            assert image.size == source.size == size
            assert psnr(image, source) > 28
            assert (image.getexif()[271], image.getexif()[274]) == ("Maker", 1)
    with Image.open(out / "jpeg.heic") as image:
        assert image.getexif()[315] == "Me"
        with Image.open(SAMPLES / "jpeg.heic") as source:
            assert image.info["icc_profile"] == source.info["icc_profile"]
    assert heif.open_heif(out / "jpeg.heic").info["chroma"] == 420


def test_one_thread_at_a_time_encodes_heif(
    heif: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libheif's encoder ended a process in which two did."""
    for index in range(6):
        picture(40 + index, 24, index).save(tmp_path / f"{index}.png")
    save, active, most = Image.Image.save, [], []

    def watched(image: Image.Image, *arguments: Any, **options: Any) -> None:
        is_heif = "HEIF" in arguments
        if is_heif:
            active.append(image)
            most.append(len(active))
            time.sleep(0.05)
        save(image, *arguments, **options)
        if is_heif:
            active.pop()

    monkeypatch.setattr(Image.Image, "save", watched)
    arguments = ["--format", "heic", "--strength", "0", "--workers", "4"]
    assert run(tmp_path, "-o", tmp_path / "out", *arguments) == 0
    assert most == [1] * 6


def test_ten_bits_stay_ten(heif: Any, tmp_path: Path) -> None:
    assert run(SAMPLES / "deep.heic", "-o", tmp_path, "--strength", "0") == 0
    before, after = (
        heif.open_heif(folder / "deep.heic", convert_hdr_to_8bit=False)
        for folder in (SAMPLES, tmp_path)
    )
    assert after.info["bit_depth"] == 10
    difference = np.asarray(before).astype(float) - np.asarray(after).astype(float)
    assert 20 * math.log10(65535 / difference.std()) > 40
    pytest.importorskip("imagecodecs")
    assert run(SAMPLES / "deep.heic", "-o", tmp_path, "--format", "png", "--strength", "0") == 0
    assert read_image(tmp_path / "deep.png").storage.mode == "RGB;16"
    assert run(SAMPLES / "deep.heic", "-o", tmp_path / "x", "--format", "jpeg") == 6


@pytest.mark.parametrize(("format", "suffix"), [("heic", ".heic"), ("jxl", ".jxl")])
def test_photographs_are_written_in_the_formats_of_phones(
    format: str, suffix: str, heif: Any, jxl: Any, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274], exif[271] = 8, "Maker"
    for name, image in {"a.jpg": picture(40, 24), "b.png": picture(33, 21).convert("LA")}.items():
        image.save(tmp_path / name, exif=exif)
    image.save(tmp_path / "c.png", "PNG")
    out = tmp_path / "out"
    arguments = ["--format", format, "--strength", "0", "--quality", "98"]
    assert run(tmp_path / "a.jpg", tmp_path / "b.png", "-o", out, *arguments) == 0
    for name in ("a.jpg", "b.png"):
        with Image.open(tmp_path / name) as source, Image.open(out / f"{name[0]}{suffix}") as file:
            assert file.getexif()[271] == "Maker"
            assert file.getexif().get(274, 1) == 1
            assert psnr(file, ImageOps.exif_transpose(source)) > 28
    Image.new("I;16", (8, 8), 300).save(tmp_path / "deep.tif")
    assert run(tmp_path / "deep.tif", "-o", out, "--format", "heic") == 6


def test_jpeg_xl_keeps_pixels_metadata_and_way_up(jxl: Any, tmp_path: Path) -> None:
    names = ("jpeg.jxl", "turned.jxl", "lossless.jxl", "gray.jxl")
    assert run(*(SAMPLES / name for name in names), "-o", tmp_path, "--strength", "0") == 0
    for name in names[:2]:
        with Image.open(tmp_path / name) as image, Image.open(SAMPLES / name) as source:
            assert image.format == "JXL"
            assert image.size == (24, 40)
            assert image.getexif().get(274, 1) == 1
            assert image.getexif().get(271) == source.getexif().get(271)
            turn = Image.Transpose.ROTATE_270
            assert psnr(image, source.transpose(turn) if name == "jpeg.jxl" else source) > 28
    assert b"<x:xmpmeta" in (SAMPLES / "turned.jxl").read_bytes()
    assert b"<x:xmpmeta" in (tmp_path / "turned.jxl").read_bytes()
    with Image.open(tmp_path / "lossless.jxl") as image:
        assert image.tobytes() == picture(40, 24).tobytes()
    with Image.open(tmp_path / "gray.jxl") as image, Image.open(SAMPLES / "gray.jxl") as source:
        assert image.mode == "I;16"
        assert image.tobytes() == source.tobytes()


def test_metadata_that_cannot_be_read_are_noted(
    jxl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[271] = "Maker"
    source = tmp_path / "compressed.jxl"
    picture(40, 24).save(source, exif=exif.tobytes(), compress_metadata=True)
    arguments = ["--device", "cpu", "--weights", "tconv", "--no-measure", "--log", "plain"]
    assert main([str(source), "-o", str(tmp_path / "out"), *arguments]) == 0
    assert "compressed.jxl: EXIF or XMP dropped: it is compressed" in capsys.readouterr().out


def test_what_would_lose_bits_is_refused(
    jxl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(SAMPLES / "deep.jxl", "-o", tmp_path) == 6
    assert "has 16-bit colour, of which its reader would keep 8 bits" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["jpeg.heic", "deep.heic", "jpeg.jxl", "gray.jxl", "tiled.exr"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_truncated_file_fails_by_name(
    name: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = {"heic": "pillow_heif", "jxl": "pillow_jxl", "exr": "OpenEXR"}[name.split(".")[1]]
    pytest.importorskip(module)
    content = (SAMPLES / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    picture(8, 8).save(tmp_path / "good.png")
    assert run(tmp_path, "-o", tmp_path / "out") == 1
    assert f"{name}: is damaged" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["good.png"]


def test_damaged_openexr_fails_by_name_and_prints_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exr = pytest.importorskip("OpenEXR")
    (folder := tmp_path / "imgs").mkdir()
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    colour = np.random.default_rng(0).random((64, 48, 3)).astype("f2")
    exr.File(header, {"RGB": colour}).write(str(folder / "whole.exr"))
    whole = (folder / "whole.exr").read_bytes()
    half = len(whole) // 2
    hole = whole[:half] + bytes(99) + whole[half + 99 :]
    for name, content in {"cut": whole[:-9], "half": whole[:half], "hole": hole}.items():
        (folder / f"{name}.exr").write_bytes(content)
    assert main([str(folder), "-d", "cpu", "-w", "tconv", "--log", "json"]) == 1
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    reasons = [line["reason"] for line in lines if line.get("status") == "failed"]
    assert len(reasons) == 3
    assert all(".exr: is damaged (" in reason for reason in reasons)
    assert "EXR_ERR" not in err


@pytest.mark.parametrize("name", ["tiled.exr", "attributes.exr"])
def test_openexr_keeps_everything_beside_the_picture(name: str, tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    assert run(SAMPLES / name, "-o", tmp_path / "same", "--strength", "0") == 0
    assert run(SAMPLES / name, "-o", tmp_path / "clean") == 0
    files = [exr.File(str(folder / name)) for folder in (SAMPLES, tmp_path / "same")]
    clean = exr.File(str(tmp_path / "clean" / name))
    (before, after), new = ([dict(file.channels()) for file in files], clean.channels())
    assert before.keys() == after.keys() == {"RGB", "Z"}
    for channel in before:
        pixels = before[channel].pixels
        assert after[channel].pixels.dtype == pixels.dtype == new[channel].pixels.dtype
        assert (after[channel].pixels == pixels).all()
    assert (new["Z"].pixels == before["Z"].pixels).all()
    assert 0 < abs(new["RGB"].pixels - before["RGB"].pixels).mean() < 0.5  # of 0 … 4
    for file in (files[1], clean):
        kept = {key: str(value) for key, value in file.header().items()}
        assert kept == {key: str(value) for key, value in files[0].header().items()}


def test_openexr_of_other_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exr = pytest.importorskip("OpenEXR")
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    rng = np.random.default_rng(0)
    gray = rng.random((20, 30)).astype("f4")
    window = (np.array([5, 6], "i4"), np.array([34, 25], "i4"))
    exr.File({**header, "dataWindow": window}, {"Y": gray}).write(str(tmp_path / "gray.exr"))
    colour = rng.random((20, 30, 4)).astype("f4") * 1000 - 10
    exr.File(header, {"RGBA": colour}).write(str(tmp_path / "rgba.exr"))
    exr.File(header, {"Z": gray}).write(str(tmp_path / "depth.exr"))
    parts = [exr.Part({**header, "name": name}, {"RGB": colour[..., :3]}) for name in "ab"]
    exr.File(parts).write(str(tmp_path / "parts.exr"))
    out = tmp_path / "out"
    assert run(tmp_path, "-o", out, "--strength", "0") == 1
    errors = capsys.readouterr().err
    assert "depth.exr: has the channels Z; R, G and B, or Y, are needed" in errors
    assert "parts.exr: has 2 parts; save each as a file of its own" in errors
    with exr.File(str(out / "gray.exr")) as file:
        assert (file.channels()["Y"].pixels == gray).all()
        assert file.header()["dataWindow"][0].tolist() == [5, 6]
    with exr.File(str(out / "rgba.exr")) as file:
        assert (file.channels()["RGBA"].pixels == colour).all()


def mosaic(path: Path, colour: tuple[float, float, float], *, orientation: int = 1) -> None:
    """A DNG of a flat scene, in linear light, through filters of 1/2, 1 and 2/3."""
    tifffile = pytest.importorskip("tifffile")
    cfa = np.zeros((64, 96))
    for row, column, channel, gain in (
        (0, 0, 0, 0.5),
        (0, 1, 1, 1),
        (1, 0, 1, 1),
        (1, 1, 2, 2 / 3),
    ):
        cfa[row::2, column::2] = colour[channel] * gain
    samples = (256 + cfa * (4095 - 256)).round().astype("u2")
    matrix = [3.2405, -1.5371, -0.4985, -0.9693, 1.8760, 0.0416, 0.0556, -0.2040, 1.0572]
    matrix = [value * (0.5, 1, 2 / 3)[at // 3] for at, value in enumerate(matrix)]
    rationals = [part for value in matrix for part in (round(value * 10000), 10000)]
    tifffile.imwrite(
        path,
        samples,
        photometric=32803,
        software="Camera 1.0",
        datetime="2026:11:28 12:00:00",
        extratags=[
            (271, 2, 0, "Maker", True), (272, 2, 0, "Model", True),
            (274, 3, 1, orientation, True),
            (33421, 3, 2, (2, 2), True), (33422, 1, 4, (0, 1, 1, 2), True),
            (50706, 1, 4, (1, 4, 0, 0), True), (50708, 2, 0, "Maker Model", True),
            (50714, 3, 1, 256, True), (50717, 3, 1, 4095, True),
            (50721, 10, 9, tuple(rationals), True), (50778, 3, 1, 21, True),
            (50728, 5, 3, (1, 2, 1, 1, 2, 3), True),
        ],
    )  # fmt: skip


def test_camera_raw_is_developed_to_linear_light(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    tifffile = pytest.importorskip("tifffile")
    mosaic(tmp_path / "a.dng", (0.18, 0.18, 0.18))
    mosaic(tmp_path / "b.dng", (0.3, 0.2, 0.1), orientation=6)
    assert run(tmp_path, "-o", tmp_path / "out", "--strength", "0") == 0
    for name, colour, shape in (("a", (0.18,) * 3, (64, 96)), ("b", (0.3, 0.2, 0.1), (96, 64))):
        with tifffile.TiffFile(tmp_path / "out" / f"{name}.tif") as file:
            page = file.pages[0]
            assert page.shape == (*shape, 3)
            assert page.dtype == np.uint16
            middle = page.asarray()[20:-20, 20:-20].reshape(-1, 3).mean(0) / 65535
            assert np.allclose(middle, colour, rtol=0.02)
            assert page.tags[271].value == "Maker"
            assert page.tags[306].value == "2026:11:28 12:00:00"
            assert page.tags.get(274) is None or page.tags[274].value == 1
            profile = ImageCms.ImageCmsProfile(__import__("io").BytesIO(page.tags[34675].value))
            assert "Linear sRGB" in ImageCms.getProfileDescription(profile)


def test_the_linear_profile_is_srgb_without_its_curve() -> None:
    """An 18 % gray in linear light is 118 of 255 in sRGB, and so for each primary."""
    import io

    from denoise_batch.files.raw import linear_srgb

    linear = ImageCms.ImageCmsProfile(io.BytesIO(linear_srgb()))
    srgb = ImageCms.createProfile("sRGB")
    for colour in ((46, 46, 46), (255, 0, 0), (0, 128, 0), (10, 20, 200)):
        image = Image.new("RGB", (1, 1), colour)
        shown = ImageCms.profileToProfile(image, linear, srgb, renderingIntent=1)
        assert shown is not None
        wanted = [_encoded(value / 255) * 255 for value in colour]
        assert shown.getpixel((0, 0)) == pytest.approx(wanted, abs=2)


def _encoded(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def test_a_damaged_raw_file_fails_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rawpy")
    mosaic(tmp_path / "a.dng", (0.5, 0.5, 0.5))
    content = (tmp_path / "a.dng").read_bytes()
    (tmp_path / "a.dng").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.nef").write_bytes(b"II*\0" + struct.pack("<I", 8) + bytes(200))
    assert run(tmp_path, "-o", tmp_path / "out") == 6
    errors = capsys.readouterr().err
    assert "a.dng: cannot be developed" in errors
    assert "b.nef: cannot be developed" in errors


def test_without_the_extras_their_files_say_which(tmp_path: Path) -> None:
    for name in ("jpeg.heic", "gray.jxl", "tiled.exr"):
        (tmp_path / name).write_bytes((SAMPLES / name).read_bytes())
    (tmp_path / "a.nef").write_bytes(b"II*\0" + bytes(200))
    picture(8, 8).save(tmp_path / "a.png")
    code = f"""
import sys
modules = ("rawpy", "pillow_heif", "pillow_jxl", "OpenEXR")
sys.modules.update(dict.fromkeys(modules))  # None: an import of it fails
from denoise_batch.cli.batch import main
more = ["--device", "cpu", "--weights", "tconv", "--log", "plain"]
print(main([{str(tmp_path)!r}, "-o", {str(tmp_path / "out")!r}, *more]))
for name in ("jpeg.heic", "gray.jxl", "tiled.exr", "a.nef"):
    main([{str(tmp_path)!r} + "/" + name, "-o", {str(tmp_path / "one")!r}, *more])
print(main([{str(tmp_path)!r}, "-o", {str(tmp_path / "out")!r}, "--format", "heic", *more]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    assert "passed over: 1 .exr, 1 .heic, 1 .jxl, 1 .nef" in said
    assert "pip install 'denoise-batch[phones,raw,render]'" in said
    for name, extra in {"heic": "phones", "jxl": "phones", "exr": "render", "nef": "raw"}.items():
        line = next(line for line in said.splitlines() if f".{name}: is " in line)
        assert f"pip install 'denoise-batch[{extra}]'" in line
    assert "--format heic: .heic needs the extra: pip install 'denoise-batch[phones]'" in said
    assert done.stdout.split()[0] == "0" or "\n0\n" in done.stdout


def test_a_developed_picture_lies_beside_its_jpeg(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    mosaic(tmp_path / "a.dng", (0.5, 0.4, 0.3))
    picture(16, 16).save(tmp_path / "a.jpg")
    assert run(tmp_path, "-o", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.jpg", "a.tif"]
    assert torch.isfinite(read_image(tmp_path / "out" / "a.tif").to_unit()).all()
