"""The tables of docs/formats.md, cell by cell, through the command."""

import io
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from pictures import ICC, XMP, write_unit
from PIL import Image, PngImagePlugin

from denoise_batch.cli.batch import main
from denoise_batch.files import sixteen_bit
from denoise_batch.files.images import read_image
from denoise_batch.files.metadata import Metadata, exif_block

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"
SIZE = (23, 14)
SUFFIXES = {
    "PNG": ".png", "JPEG": ".jpg", "WebP, lossy": ".webp", "WebP, lossless": ".webp",
    "TIFF": ".tif", "TIFF, several pages": ".tif", "BMP": ".bmp", "PPM, PGM, PFM": ".ppm",
}  # fmt: skip
MODES = {
    "1-bit": "1", "palette": "P", "16-bit gray": "I;16", "float gray": "F",
    "16-bit RGB": "RGB;16", "16-bit RGBA": "RGBA;16",
}  # fmt: skip


def table(number: int) -> list[tuple[str, str, str]]:
    """(format, column, cell) of a table in the document."""
    lines = DOCS.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|--")]
    columns = [cell.strip() for cell in lines[starts[number] - 1].strip("|").split("|")]
    cells = []
    for line in lines[starts[number] + 1 :]:
        if not line.startswith("|"):
            break
        row = [cell.strip() for cell in line.strip("|").split("|")]
        cells += [(row[0], *pair) for pair in zip(columns[1:], row[1:], strict=True)]
    return cells


def smooth(mode: str, seed: int) -> Image.Image:
    """A picture that lossy formats keep well, with every sample used."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (3 * 4,), generator=generator).tolist()
    rgb = Image.frombytes("RGB", (2, 2), bytes(coarse)).resize(SIZE, Image.Resampling.BICUBIC)
    count = SIZE[0] * SIZE[1]
    if mode in {"I;16", "F"}:
        samples = torch.rand(count, generator=generator)
        data = samples.numpy() * 65535
        return Image.frombytes(
            mode, SIZE, (data.astype("<u2") if mode == "I;16" else data / 65535).tobytes()
        )
    if mode.endswith("A"):
        image = rgb.convert(mode)
        alpha = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        image.putalpha(Image.frombytes("L", SIZE, bytes(alpha.tolist())))
        return image
    return rgb.convert(mode)


def save(path: Path, kind: str, mode: str) -> None:
    pages = 3 if kind == "TIFF, several pages" else 1
    if mode.endswith(";16") and mode != "I;16":
        channels = len(mode.removesuffix(";16"))
        shape = (pages, SIZE[1], SIZE[0], channels)
        array = np.random.default_rng(pages).integers(0, 65536, shape, dtype=np.uint16)
        if kind == "PNG":
            path.write_bytes(imagecodecs.png_encode(array[0]))
        elif kind.startswith("PPM"):
            head = f"P6 {SIZE[0]} {SIZE[1]} 65535\n".encode()
            path.write_bytes(head + array[0].astype(">u2").tobytes())
        else:
            extra = ("unassalpha",) if channels == 4 else None
            tifffile.imwrite(path, array, photometric="rgb", extrasamples=extra)
        return
    first, *rest = (smooth(mode, page) for page in range(pages))
    options = {"lossless": True, "exact": True} if kind == "WebP, lossless" else {}
    more = {"save_all": True, "append_images": rest} if rest else {}
    suffix = "pfm" if mode == "F" and kind.startswith("PPM") else None
    first.save(path, format="PPM" if suffix else None, **options, **more)


def pages_of(path: Path) -> list[Image.Image]:
    with Image.open(path) as image:
        pages = []
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            pages.append(image.copy())
        return pages


def strength_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    arguments = [str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0"]
    assert main(arguments) == 0, capsys.readouterr()
    return folder.with_name(folder.name + "-denoised")


def test_samples_come_back_as_the_table_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    cases = []
    for number, (kind, column, cell) in enumerate(table(0)):
        mode, suffix = MODES.get(column, column), SUFFIXES[kind]
        if cell == "–":
            assert not holds(suffix, mode), f"{kind} holds {mode} after all"
            continue
        path = folder / f"{number}{suffix if mode != 'F' or 'TIFF' in kind else '.pfm'}"
        save(path, kind, mode)
        cases.append((path.name, mode, cell, f"{kind} {column}"))
    output = strength_0(folder, capsys)
    assert len(cases) > 40
    for name, mode, cell, label in cases:
        if mode in {"RGB;16", "RGBA;16"}:
            if name.endswith(".ppm"):
                pixels = SIZE[0] * SIZE[1] * 6
                written = [(place / name).read_bytes()[-pixels:] for place in (folder, output)]
                assert written[0] == written[1], label
                continue
            read = tifffile.imread if name.endswith(".tif") else imagecodecs.imread
            assert np.array_equal(read(folder / name), read(output / name)), label
            continue
        before, after = pages_of(folder / name), pages_of(output / name)
        assert len(before) == len(after), label
        sign, _, kept = cell.partition(" ")
        for old, new in zip(before, after, strict=True):
            assert new.mode == (kept or old.mode), label
            expected = old.convert(kept) if kept else old
            if sign == "=":
                assert new.tobytes() == expected.tobytes(), label
            else:
                difference = np.abs(np.asarray(new, float) - np.asarray(expected, float))
                assert difference.mean() < 3, label


def holds(suffix: str, mode: str) -> bool:
    """Whether Pillow can write a mode in this format and reads it back as the same."""
    buffer = io.BytesIO()
    try:
        smooth(mode, 0).save(buffer, Image.registered_extensions()[suffix])
        return Image.open(buffer).mode == mode
    except (OSError, ValueError, KeyError):  # no such mode, of the format or at all
        return False


def test_metadata_come_back_as_the_table_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    exif = Image.Exif()
    exif[274], exif[271], exif[0x8769] = 6, "Maker", {33434: 0.5}
    for kind, suffix in SUFFIXES.items():
        options = {"lossless": True} if kind == "WebP, lossless" else {}
        more = {"save_all": True, "append_images": [smooth("RGB", 1)]} if "several" in kind else {}
        said: dict[str, object] = {"icc_profile": ICC, "dpi": (300, 72)}
        if "TIFF" in kind:
            said["exif"] = Image.Exif()
            said["exif"][274], said["exif"][271], said["exif"][700] = 6, "Maker", XMP
        elif kind == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", XMP.decode())
            said |= {"exif": exif.tobytes(), "pnginfo": info}
        else:
            said |= {"exif": exif.tobytes(), "xmp": XMP}
        smooth("RGB", 0).save(folder / f"{kind}{suffix}", **said, **options, **more)
    output = strength_0(folder, capsys)
    for kind, column, cell in table(1):
        name = f"{kind}{SUFFIXES[kind]}"
        with Image.open(folder / name) as before, Image.open(output / name) as after:
            pages = getattr(before, "n_frames", 1)
            for page in range(pages):
                before.seek(page)
                after.seek(page)
                found = [value_of(image, column) for image in (before, after)]
                assert found[0] == found[1], (kind, column)
                assert (found[0] is not None) == (cell == "yes"), (kind, column, found)


def value_of(image: Image.Image, column: str) -> object:
    if column == "orientation 6":
        return image.getexif().get(274)
    if column == "ICC profile":
        return image.info.get("icc_profile")
    if column == "XMP":
        return image.info.get("xmp")
    dpi = image.info.get("dpi")
    return tuple(round(float(value)) for value in dpi) if dpi else None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_without_the_extra_is_an_error_for_that_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    save(folder / f"deep{suffix}", "PNG" if suffix == ".png" else "TIFF", "RGB;16")
    smooth("RGB", 0).save(folder / "plain.png")
    monkeypatch.setattr(sixteen_bit, "find_spec", lambda name: None)
    assert main([str(folder), "-w", "tconv", "-d", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "denoise-batch[scientific]" in out
    assert "1 done, 1 failed" in out


def test_metadata_of_16_bit_colour_survive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    exif = Image.Exif()
    exif[274], exif[271], exif[0x8769] = 6, "Maker", {33434: 0.5}
    exif[282], exif[283], exif[296] = 300.0, 72.0, 2  # where a TIFF file has its resolution
    for mode, suffix in [("RGB", ".png"), ("RGBA", ".png"), ("RGB", ".tif"), ("RGBA", ".tif")]:
        path = folder / f"{mode}{suffix}"
        save(path, "PNG" if suffix == ".png" else "TIFF", f"{mode};16")
        page = read_image(path)
        # Written by ourselves, since Pillow cannot; the next lines hold that to account.
        metadata = Metadata(exif_block(exif.tobytes()), ICC, (300.0, 72.0))
        write_unit(path, replace(page, metadata=metadata), page.to_unit())
        with Image.open(path) as image:
            assert image.getexif()[274] == 6
            assert image.info["icc_profile"] == ICC
            assert tuple(round(float(v)) for v in image.info["dpi"]) == (300, 72)
    output = strength_0(folder, capsys)
    for path in folder.iterdir():
        with Image.open(path) as before, Image.open(output / path.name) as after:
            for column in ("orientation 6", "ICC profile", "resolution"):
                assert value_of(before, column) == value_of(after, column) is not None
            assert after.getexif()[271] == "Maker"
            assert after.getexif().get_ifd(0x8769)[33434] == 0.5
