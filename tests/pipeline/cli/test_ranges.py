"""What values mean: ranges, "no data", hidden colours, gray stored as RGB, flat colours."""

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import png_bytes
from PIL import Image

from denoise_batch.cli.batch import main

SIZE = (96, 128)


def clean(seed: int = 0) -> "np.ndarray[Any, Any]":
    """A gray picture of edges and slopes in [0, 1]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 64
    waves = 0.5 + 0.25 * np.sin(5 * x + 2 * y + seed) + 0.25 * np.cos(4 * y * x)
    return np.where((x - 1) ** 2 + (y - 0.75) ** 2 < 0.16, 0.85 - 0.4 * y, waves)


def noisy(seed: int = 0, sigma: float = 0.1) -> "np.ndarray[Any, Any]":
    return clean(seed) + sigma * np.random.default_rng(seed).standard_normal(SIZE)


def run(folder: Path, *options: str) -> Path:
    arguments = [str(folder), "-d", "cpu", "--no-measure", "--overwrite", *options]
    assert main(arguments) == 0
    return folder.with_name(folder.name + "-denoised")


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    (tmp_path / "imgs").mkdir()
    return tmp_path / "imgs"


def psnr(output: "np.ndarray[Any, Any]", low: float, high: float, seed: int = 0) -> float:
    error = (output.astype(np.float64) - low) / (high - low) - clean(seed)
    return float(-10 * math.log10((error**2).mean()))


@pytest.mark.parametrize("kind", ["float", "two", "uint16"])
def test_a_few_samples_without_meaning_in_a_large_image_are_kept(kind: str, imgs: Path) -> None:
    chance = np.random.default_rng(3)
    large = np.tile(noisy(), (6, 8))[:900, :1100]
    places = chance.choice(large.size, 10, replace=False)
    if kind == "uint16":
        picture = (30_000 + 600 * large.clip(0, 1)).astype(np.uint16)
        picture.flat[places] = 0
    else:
        picture = (300 + 244 * large).astype(np.float32)
        picture.flat[places[:5]] = -9999
        picture.flat[places[5:]] = 9.969e36 if kind == "two" else -9999
    tifffile.imwrite(imgs / "a.tif", picture)
    output = tifffile.imread(run(imgs) / "a.tif")
    assert np.array_equal(output.flat[places], picture.flat[places])
    others = np.delete(output.flatten(), places).astype(float)
    changed = others - np.delete(picture.flatten(), places)
    assert 0.02 < changed.std() / (600 if kind == "uint16" else 244) < 0.2


@pytest.mark.parametrize("declared", [True, False])
def test_no_data_in_one_band_is_kept(declared: bool, imgs: Path) -> None:
    picture = np.stack([300 + 244 * noisy(seed) for seed in range(3)], 2).astype(np.float32)
    for band, rows in enumerate((12, 14, 16)):
        picture[:rows, :, band] = -9999
    tags = [(42113, 2, 0, "-9999", True)] if declared else []
    tifffile.imwrite(imgs / "a.tif", picture, photometric="rgb", extratags=tags)
    output = tifffile.imread(run(imgs) / "a.tif")
    gaps = picture == -9999
    assert np.array_equal(output[gaps], picture[gaps])
    assert np.abs(output[~gaps] - picture[~gaps]).max() < 244


def test_the_same_noise_is_removed_at_every_full_scale(imgs: Path) -> None:
    integers, floats = (200, 600, 4095, 20_000, 33_000, 65_000), (0.001, 0.005, 1.0, 300.0)
    picture = 0.25 + 0.5 * noisy()  # not clipped at 65 535
    for full in integers:
        tifffile.imwrite(imgs / f"u{full}.tif", (picture * full).round().astype(np.uint16))
        (imgs / f"p{full}.png").write_bytes(
            imagecodecs.png_encode((picture * full).round().astype(np.uint16))
        )
    for full in floats:
        tifffile.imwrite(imgs / f"f{full}.tif", (picture * full).astype(np.float32))
    tifffile.imwrite(imgs / "offset.tif", (992 + picture * 4320).round().astype(np.uint16))
    output = run(imgs)
    scores = {}
    for path in sorted(imgs.iterdir()):
        written = tifffile.imread if path.suffix == ".tif" else imagecodecs.imread
        if path.stem == "offset":
            ends = 992 + 0.25 * 4320, 992 + 0.75 * 4320
        else:
            ends = 0.25 * float(path.stem[1:]), 0.75 * float(path.stem[1:])
        scores[path.name] = psnr(written(output / path.name), *ends)
    assert max(scores.values()) - min(scores.values()) < 0.5, scores
    assert min(scores.values()) > 27  # 20 dB before


def test_all_pages_of_a_file_have_one_range(imgs: Path) -> None:
    dim, bright = (1000 + 300 * noisy(1)), (1000 + 3000 * noisy(2))
    stack = np.stack([dim, bright]).round().astype(np.uint16)
    for name, pages in (("both", stack), ("turned", stack[::-1]), ("alone", stack[:1])):
        tifffile.imwrite(imgs / f"{name}.tif", pages, photometric="minisblack")
    output = run(imgs)
    both, turned, alone = (
        tifffile.imread(output / f"{name}.tif") for name in ("both", "turned", "alone")
    )
    assert np.array_equal(both, turned[::-1])
    assert not np.array_equal(both[0], alone)
    same = run(imgs, "--strength", "0")
    assert np.array_equal(tifffile.imread(same / "both.tif"), stack)


@pytest.mark.parametrize("declared", ["tags", "imagej", "sbit", "option"])
def test_what_says_the_range_is_believed(declared: str, imgs: Path) -> None:
    picture = (200 + 300 * noisy()).round().astype(np.uint16)
    tifffile.imwrite(imgs / "a.tif", picture)
    wanted = tifffile.imread(run(imgs, "--range", "0-4095") / "a.tif")
    estimated = tifffile.imread(run(imgs) / "a.tif")
    assert not np.array_equal(wanted, estimated)
    options: list[str] = []
    name = "b.tif"
    if declared == "tags":
        tags = [(340, 3, 1, 0, True), (341, 3, 1, 4095, True)]
        tifffile.imwrite(imgs / name, picture, extratags=tags)
    elif declared == "imagej":
        tifffile.imwrite(imgs / name, picture, imagej=True, metadata={"min": 0.0, "max": 4095.0})
    elif declared == "sbit":
        name = "b.png"
        plain = imagecodecs.png_encode(picture)
        chunk = b"\0\0\0\1sBIT\x0c" + struct.pack(">I", zlib.crc32(b"sBIT\x0c"))
        (imgs / name).write_bytes(plain[:33] + chunk + plain[33:])
    else:
        tifffile.imwrite(imgs / name, picture)
        options = ["--range", "0-4095"]
    output = run(imgs, *options) / name
    read = imagecodecs.imread if name.endswith("png") else tifffile.imread
    assert np.array_equal(read(output), wanted)


def test_a_declared_range_that_the_samples_contradict_is_not_believed(imgs: Path) -> None:
    picture = (1000 + 3000 * noisy()).round().astype(np.uint16)
    tifffile.imwrite(imgs / "a.tif", picture)
    tags = [(340, 3, 1, 0, True), (341, 3, 1, 255, True)]
    tifffile.imwrite(imgs / "b.tif", picture, extratags=tags)
    output = run(imgs)
    assert np.array_equal(tifffile.imread(output / "a.tif"), tifffile.imread(output / "b.tif"))


@pytest.mark.parametrize("text", ["5", "9-2", "a-b", "1-1", "0-inf"])
def test_a_range_that_is_none_is_refused(
    text: str, imgs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(imgs), "--range", text]) == 2
    assert "--range" in capsys.readouterr().err


VOID = (slice(0, 40), slice(0, 20))


@pytest.mark.parametrize(
    ("value", "dtype", "full"),
    [
        (-9999, "float32", 244), (-3.4028235e38, "float32", 244), (math.nan, "float32", 1),
        (math.inf, "float32", 1), (-math.inf, "float32", 0.01), (1e20, "float32", 244),
        (0, "uint16", 10_000), (65535, "uint16", 244), (65535, "uint16", 10_000),
        (-32768, "float32", 3000),
    ],
)  # fmt: skip
def test_pixels_without_meaning_neither_change_nor_disturb(
    value: float, dtype: str, full: float, imgs: Path
) -> None:
    offset = 300 if full == 244 else 20_000 if dtype == "uint16" else 0
    picture = offset + full * noisy()
    stored = picture.round().astype(dtype) if dtype == "uint16" else picture.astype(dtype)
    tifffile.imwrite(imgs / "whole.tif", stored)
    stored = stored.copy()
    stored[VOID] = value
    stored[60:62, 70:73] = value
    tifffile.imwrite(imgs / "void.tif", stored)
    output = run(imgs)
    whole, void = (tifffile.imread(output / f"{name}.tif") for name in ("whole", "void"))
    is_void = np.zeros(SIZE, bool)
    is_void[VOID] = is_void[60:62, 70:73] = True
    assert void[is_void].tobytes() == stored[is_void].tobytes()
    errors = [
        float(np.sqrt((((image.astype(float) - offset) / full - clean())[~is_void] ** 2).mean()))
        for image in (whole, void)
    ]
    assert errors[1] < 1.15 * errors[0]


@pytest.mark.parametrize("value", [700, -0.5])
def test_declared_no_data_inside_the_range_is_kept(value: float, imgs: Path) -> None:
    dtype = np.uint16 if value > 0 else np.float32
    picture = (
        (1000 * noisy() if value > 0 else noisy() - 0.5).clip(0 if value > 0 else -9).astype(dtype)
    )
    picture[VOID] = value
    tag = [(42113, 2, 0, str(value), True)]
    tifffile.imwrite(imgs / "a.tif", picture, extratags=tag)
    output = tifffile.imread(run(imgs) / "a.tif")
    assert (output[VOID] == dtype(value)).all()
    assert not np.array_equal(output, picture)


def test_declared_no_data_of_8_bits_is_kept(imgs: Path) -> None:
    picture = (255 * noisy()).clip(0, 255).astype(np.uint8)
    colours = np.stack([picture, picture // 2, 255 - picture], 2)
    colours[VOID] = 255
    tifffile.imwrite(
        imgs / "a.tif", colours, photometric="rgb", extratags=[(42113, 2, 0, "255", True)]
    )
    output = tifffile.imread(run(imgs) / "a.tif")
    assert (output[VOID] == 255).all()


def test_a_hot_pixel_moves_no_range_and_a_bright_star_survives(imgs: Path) -> None:
    picture = 300 + 244 * noisy()
    tifffile.imwrite(imgs / "plain.tif", picture.astype(np.float32))
    hot = picture.copy()
    hot[50, 60] = 65535
    tifffile.imwrite(imgs / "hot.tif", hot.astype(np.float32))
    tifffile.imwrite(imgs / "hot16.tif", hot.round().astype(np.uint16))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    star = 20_000 * np.exp(-((y - 50) ** 2 + (x - 60) ** 2) / 4)
    tifffile.imwrite(imgs / "star.tif", (picture + star).astype(np.float32))
    output = run(imgs)
    far = np.hypot(y - 50, x - 60) > 12
    results = {path.stem: tifffile.imread(path).astype(float) for path in output.glob("*.tif")}
    errors = {
        name: np.sqrt((((image - 300) / 244 - clean())[far] ** 2).mean())
        for name, image in results.items()
    }
    assert max(errors["hot"], errors["hot16"]) < 1.02 * errors["plain"], errors
    assert errors["star"] < 1.25 * errors["plain"], errors
    assert results["hot"][50, 60] == pytest.approx(65535, rel=0.01)
    assert results["star"][50, 60] == pytest.approx(20_000 + picture[50, 60], rel=0.02)
    assert results["star"].sum() == pytest.approx((picture + star).sum(), rel=0.01)


def beyond(kind: str, share: float, peak: float) -> "np.ndarray[Any, Any]":
    """What outliers add to a picture: hot pixels of one or of any value, clusters, or stars."""
    chance = np.random.default_rng(7)
    count = max(1, round(share * SIZE[0] * SIZE[1]))
    found = np.zeros(SIZE)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    if kind in ("one", "any"):
        places = chance.choice(found.size, count, replace=False)
        found.flat[places] = peak if kind == "one" else chance.uniform(0.15, 1, count) * peak
    while (found >= peak).sum() < count and kind not in ("one", "any"):
        row, column = chance.integers(0, SIZE[0]), chance.integers(0, SIZE[1])
        if kind == "pairs":
            found[row : row + 2, column : column + 2] = peak
        elif kind == "discs":
            found[(y - row) ** 2 + (x - column) ** 2 <= 9] = peak
        else:
            star = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)
            found += chance.uniform(2, 6) * peak * star
    return found.clip(0, peak)


DEPTHS = {"u16": (3000, 65535, "u2"), "u12": (300, 4095, "u2"), "u10": (100, 1023, "u2"),
          "f4": (0.2, 50, "f4")}  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["one", "any", "pairs", "discs", "stars"])
def test_outliers_set_no_range_and_come_back_bit_for_bit(kind: str, depth: str, imgs: Path) -> None:
    """Of 0.01 to 5 % of the pixels, 1 % of stars, whose wings cover six times as much."""
    full, peak, dtype = DEPTHS[depth]
    shares = (0.0, 1e-4, 1e-3, 5e-3, 0.01) if kind == "stars" else (0.0, 1e-4, 2e-3, 0.01, 0.05)
    added = {share: beyond(kind, share, peak) if share else np.zeros(SIZE) for share in shares}
    pictures = {}
    for share, more in added.items():
        picture = full * noisy() + more
        if kind != "stars":
            picture = np.where(more > 0, more, picture)
        picture = picture.clip(None, peak)
        if dtype == "u2":
            picture = picture.clip(0).round()
        pictures[share] = picture.astype(dtype)
        tifffile.imwrite(imgs / f"{share}.tif", pictures[share])
    output = run(imgs)
    scores = {}
    for share, picture in pictures.items():
        result = tifffile.imread(output / f"{share}.tif")
        assert np.array_equal(result[picture >= peak], picture[picture >= peak])
        counts = added[share] < 0.02 * full
        error = (result.astype(float) / full - clean())[counts]
        scores[share] = -10 * math.log10((error**2).mean())
    most_lost = {"stars": 2.5, "any": 2.0}.get(kind, 1.0)  # of any value: some within the range
    assert min(scores.values()) > scores[0.0] - most_lost, scores


def shown(kind: str) -> "np.ndarray[Any, Any]":
    """Ordinary pictures of which a small part is far brighter, or darker, than the rest."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    noise = np.random.default_rng(1).standard_normal(SIZE)
    if kind == "window":  # 4 %, five times as bright
        lit = (abs(y - 40) < 11) & (abs(x - 60) < 11)
        return np.where(lit, 15_000 + 50 * y + 1000 * noise, 3000 * noisy())
    if kind == "cells":  # of 3 %, on a dark ground: the only picture there is
        places = [(20, 30), (50, 90), (75, 40)]
        cells = sum(20_000 * np.exp(-((y - r) ** 2 + (x - c) ** 2) / 60) for r, c in places)
        return 200 + cells + 20 * noise + 0.05 * cells * noise
    if kind == "lines":  # of one pixel, on white
        return np.where((y % 24 == 3) | (x == y), 4000, 60_000) + 800 * noise
    return 5000 + 9000 * clean() ** 6 + 500 * noise


@pytest.mark.parametrize("kind", ["window", "cells", "lines", "contrast"])
def test_highlights_and_lines_are_within_the_range(kind: str, imgs: Path) -> None:
    picture = shown(kind).clip(0, 65535).round().astype(np.uint16)
    tifffile.imwrite(imgs / "a.tif", picture)
    found = tifffile.imread(run(imgs) / "a.tif")
    tail = math.ceil(0.001 * picture.size)
    ordered = np.sort(picture, None)
    ends = f"{ordered[tail]}-{ordered[-1 - tail]}"
    assert np.array_equal(found, tifffile.imread(run(imgs, "--range", ends) / "a.tif"))


def test_a_page_that_takes_little_of_its_files_range_is_noted(
    imgs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dim, bright = (600 * noisy()).clip(0), (65_000 * noisy()).clip(0, 65535)
    pages = {"a": [bright, dim], "b": [dim, bright, dim], "c": [bright, bright], "d": [dim]}
    for name, content in pages.items():
        with tifffile.TiffWriter(imgs / f"{name}.tif") as tiff:
            for page in content:
                tiff.write(page.round().astype(np.uint16), photometric="minisblack")
    run(imgs)
    said = capsys.readouterr().out
    assert "a.tif: page 2 holds little of the file's range (" in said
    assert "b.tif: 2 pages, such as page 1, hold little" in said
    assert "c.tif:" not in said
    assert "d.tif:" not in said


def test_saturated_highlights_are_not_taken_for_no_data(imgs: Path) -> None:
    """They belong to the picture where values lead up to them."""
    picture = (70_000 * noisy(sigma=0.05)).clip(0, 65535).round().astype(np.uint16)
    assert (picture == 65535).mean() > 0.01
    tifffile.imwrite(imgs / "a.tif", picture)
    output = tifffile.imread(run(imgs) / "a.tif")
    target = (70_000 * clean()).clip(0, 65535)
    before, after = (
        np.sqrt(((image.astype(float) - target) ** 2).mean()) for image in (picture, output)
    )
    assert after < before / 2


@pytest.mark.parametrize("hidden", [0, 255])
def test_colours_under_alpha_0_do_not_reach_what_is_seen(hidden: int, imgs: Path) -> None:
    gray = (255 * noisy()).clip(0, 255).astype(np.uint8)
    alpha = np.where(np.hypot(*np.mgrid[-48:48, -64:64]) < 40, 255, 0).astype(np.uint8)
    colours = np.stack([gray, 255 - gray, gray // 2 + 60], 2)
    cut = np.where(alpha[..., None] == 0, hidden, colours).astype(np.uint8)
    Image.fromarray(colours).save(imgs / "whole.png")
    Image.fromarray(np.dstack([cut, alpha])).save(imgs / "cut.png")
    output = run(imgs)
    whole = np.asarray(Image.open(output / "whole.png")).astype(float)
    result = np.asarray(Image.open(output / "cut.png"))
    assert np.array_equal(result[alpha == 0], np.dstack([cut, alpha])[alpha == 0])
    edge = (alpha > 0) & (np.hypot(*np.mgrid[-48:48, -64:64]) > 36)
    target = np.stack([255 * clean(), 255 - 255 * clean(), 127.5 * clean() + 60], 2)
    errors = [np.sqrt(((im[..., :3] - target)[edge] ** 2).mean()) for im in (whole, result)]
    assert errors[1] < 1.4 * errors[0]


@pytest.mark.parametrize(
    ("suffix", "bits"),
    [(".png", 8), (".jpg", 8), (".tif", 8), (".bmp", 8), (".png", 16), (".tif", 16)],
)
def test_gray_stored_as_rgb_stays_gray(suffix: str, bits: int, imgs: Path) -> None:
    gray = (noisy().clip(0, 1) * (2**bits - 1)).round().astype(f"uint{bits}")
    rgb = np.stack([gray] * 3, 2)
    name = f"a{suffix}"
    if bits == 16 and suffix == ".png":
        (imgs / name).write_bytes(imagecodecs.png_encode(rgb))
    elif bits == 16:
        tifffile.imwrite(imgs / name, rgb, photometric="rgb")
    else:
        Image.fromarray(rgb).save(imgs / name)
    output = run(imgs) / name
    read = tifffile.imread(output) if suffix == ".tif" else imagecodecs.imread(str(output))
    assert (read.shape, read.dtype) == (rgb.shape, rgb.dtype)
    assert np.array_equal(read[..., 0], read[..., 1])
    assert np.array_equal(read[..., 0], read[..., 2])
    assert psnr(read[..., 0], 0, 2**bits - 1) > 25


@pytest.mark.parametrize("weights", ["unet-level-10", "unet-gaussian-4", "tconv"])
def test_flat_colours_come_back_within_one_level(weights: str, imgs: Path) -> None:
    colours = [
        (0, 0, 0),
        (255, 255, 255),
        (255, 255, 0),
        (0, 0, 255),
        (128, 128, 128),
        (9, 200, 31),
    ]
    for number, colour in enumerate(colours):
        for size in ((1, 1), (16, 16), (70, 45), (200, 31)):
            Image.new("RGB", size, colour).save(imgs / f"{number}-{size[0]}.png")
        deep = np.full((40, 50, 3), np.array(colour) * 257, np.uint16)
        tifffile.imwrite(imgs / f"{number}.tif", deep, photometric="rgb")
    output = run(imgs, "-w", weights)
    for path in imgs.iterdir():
        read = tifffile.imread if path.suffix == ".tif" else imagecodecs.imread
        before, after = (read(str(folder / path.name)).astype(int) for folder in (imgs, output))
        assert np.abs(before - after).max() <= 1, path.name


@pytest.mark.parametrize("tile", ["off", "64"])
def test_borders_of_a_noisy_colour_are_as_good_as_its_middle(tile: str, imgs: Path) -> None:
    colour = np.array([240, 235, 20])
    noise = np.random.default_rng(0).normal(0, 3, (150, 170, 3))
    Image.fromarray((colour + noise).round().clip(0, 255).astype(np.uint8)).save(imgs / "a.png")
    output = np.asarray(Image.open(run(imgs, "--tile", tile) / "a.png")).astype(float)
    off = np.abs(output - colour).max(2)
    assert off.max() <= 5
    assert off[:4].mean() < off[20:-20, 20:-20].mean() + 1


def packed(samples: "np.ndarray[Any, Any]", bits: int) -> bytes:
    """Rows of samples of a few bits, each padded to whole bytes."""
    rows = []
    for row in samples:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows.append(int(digits, 2).to_bytes(len(digits) // 8, "big"))
    return b"".join(rows)


def tiff_of_bits(samples: "np.ndarray[Any, Any]", bits: int = 12, photometric: int = 1) -> bytes:
    """An uncompressed TIFF file of one strip, by hand."""
    height, width = samples.shape
    data = packed(samples, bits)
    values = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height,
        279: len(data), 280: 1, 281: (1 << bits) - 2,
    }  # fmt: skip
    data += b"\0" * (len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in values)
    return head + data + struct.pack("<H", len(values)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("bits", "photometric"), [(1, 0), (1, 1), (2, 0), (2, 1), (4, 0), (4, 1), (12, 1)]
)
@pytest.mark.parametrize("width", [4, 7, 33])
def test_tiff_of_few_bits_keeps_depth_values_and_tags(
    bits: int, photometric: int, width: int, imgs: Path
) -> None:
    samples = np.random.default_rng(0).integers(0, 1 << bits, (9, width))
    (imgs / "a.tif").write_bytes(tiff_of_bits(samples, bits, photometric))
    output = run(imgs, "--strength", "0") / "a.tif"
    with tifffile.TiffFile(output) as tiff:
        page = tiff.pages.first
        assert (page.bitspersample, page.imagewidth, page.imagelength) == (bits, width, 9)
        assert page.photometric == photometric
        assert np.array_equal(page.asarray(), samples)
        assert (page.tags[280].value, page.tags[281].value) == (1, (1 << bits) - 2)
    denoised = tifffile.imread(run(imgs, "--noise-level", "40") / "a.tif")
    assert denoised.max() < 1 << bits
    assert not np.array_equal(denoised, samples) or bits < 12


def test_pages_of_few_bits_share_a_file(imgs: Path) -> None:
    chance = np.random.default_rng(0)
    pages, content = [], b""
    for bits, photometric in ((4, 1), (12, 1), (2, 0), (1, 0), (4, 0)):
        pages.append(chance.integers(0, 1 << bits, (5, 9)))
        page = tiff_of_bits(pages[-1], bits, photometric)
        content = chained(content, page) if content else page
    (imgs / "a.tif").write_bytes(content)
    with tifffile.TiffFile(run(imgs, "--strength", "0") / "a.tif") as tiff:
        assert [page.aspage().bitspersample for page in tiff.pages] == [4, 12, 2, 1, 4]
        assert [int(page.aspage().photometric) for page in tiff.pages] == [1, 1, 0, 0, 0]
        for page, expected in zip(tiff.pages, pages, strict=True):
            assert np.array_equal(page.asarray(), expected)


def chained(content: bytes, page: bytes) -> bytes:
    """A TIFF file with the only page of another one behind its own, by hand."""
    at = len(content)
    (start,) = struct.unpack_from("<I", page, 4)
    moved = bytearray(page)
    for entry in range(start + 2, start + 2 + 12 * moved[start], 12):
        if moved[entry : entry + 2] == b"\x11\1":  # strip offsets
            struct.pack_into("<I", moved, entry + 8, at + 8)
    link, (where,) = 4, struct.unpack_from("<I", content, 4)
    while where:
        link = where + 2 + 12 * content[where]
        (where,) = struct.unpack_from("<I", content, link)
    return content[:link] + struct.pack("<I", at + start) + content[link + 4 :] + bytes(moved)


@pytest.mark.parametrize(("bits", "factor"), [(2, 85), (4, 17)])
def test_tiff_of_few_bits_in_other_formats_looks_the_same(
    bits: int, factor: int, imgs: Path
) -> None:
    samples = np.random.default_rng(0).integers(0, 1 << bits, (5, 7))
    (imgs / "a.tif").write_bytes(tiff_of_bits(samples, bits))
    (imgs / "b.tif").write_bytes(tiff_of_bits((1 << bits) - 1 - samples, bits, 0))
    output = run(imgs, "--strength", "0", "--format", "png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(imagecodecs.imread(str(output / name)), samples * factor)


def test_samples_that_the_output_has_more_bits_for_are_noted(
    imgs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (imgs / "two.png").write_bytes(png_bytes(2, 0, 4, 1, b"\x1b"))
    (imgs / "four.png").write_bytes(png_bytes(4, 0, 4, 1, b"\x01\xef"))
    (imgs / "one.png").write_bytes(png_bytes(1, 0, 4, 1, b"\x50"))
    colour = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 58, 0, 0, 54, 40, 2, 1, 1, 16, 0, 4, 0, 0, 0, 0
    )
    (imgs / "a.bmp").write_bytes(colour + b"\x1f\x7c\xe0\x03")
    output = run(imgs, "--strength", "0")
    said = capsys.readouterr().out
    assert "two.png: 2-bit gray is written with 8 bits" in said
    assert "four.png: 4-bit gray is written with 8 bits" in said
    assert "a.bmp: 16-bit colour is written with 8 bits a channel" in said
    assert "one.png:" not in said
    assert imagecodecs.imread(str(output / "two.png")).tolist() == [[0, 85, 170, 255]]
    assert imagecodecs.imread(str(output / "four.png")).tolist() == [[0, 17, 238, 255]]
    assert np.asarray(Image.open(output / "a.bmp")).tolist() == [[[255, 0, 255], [0, 255, 0]]]


def test_12_bit_tiff_in_another_format_looks_the_same(imgs: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 4096, (5, 7))
    (imgs / "a.tif").write_bytes(tiff_of_bits(samples))
    output = run(imgs, "--strength", "0", "--format", "png") / "a.png"
    expected = (samples / 4095 * 65535).round().astype(np.uint16)
    assert np.array_equal(imagecodecs.imread(str(output)), expected)
    output = run(imgs, "--strength", "0", "--format", "ppm") / "a.ppm"
    assert output.read_bytes().startswith(b"P5\n7 5\n4095\n")


@pytest.mark.parametrize("most", [1, 15, 100, 254, 255, 256, 1023, 4095, 16383, 65534, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_pnm_keeps_its_largest_sample(kind: str, most: int, imgs: Path) -> None:
    bands = 3 if kind in ("P3", "P6") else 1
    samples = np.random.default_rng(most).integers(0, most + 1, (5, 7 * bands))
    samples[0, :2] = 0, most
    header = f"{kind}\n7 5\n{most}\n".encode()
    body = samples.astype("u1" if most < 256 else ">u2").tobytes()
    if kind in ("P2", "P3"):
        body = " ".join(map(str, samples.flatten().tolist())).encode()
    name = f"a.{'ppm' if bands == 3 else 'pgm'}"
    (imgs / name).write_bytes(header + body)
    written = (run(imgs, "--strength", "0") / name).read_bytes()
    parts = written.split(maxsplit=4)
    assert parts[:4] == [f"P{6 if bands == 3 else 5}".encode(), b"7", b"5", str(most).encode()]
    data = written[-samples.size * (1 if most < 256 else 2) :]
    assert np.array_equal(np.frombuffer(data, "u1" if most < 256 else ">u2"), samples.flatten())


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6", "P7"])
@pytest.mark.parametrize("most", [1023, 4095, 65535])
def test_samples_of_any_maximum_fill_16_bits_in_other_formats(
    kind: str, most: int, imgs: Path
) -> None:
    bands = {"P3": 3, "P6": 3, "P7": 4}.get(kind, 1)
    samples = np.random.default_rng(most).integers(0, most + 1, (5, 7, bands))
    header = f"{kind}\n7 5\n{most}\n".encode()
    if kind == "P7":
        header = (
            f"P7\nWIDTH 7\nHEIGHT 5\nDEPTH 4\nMAXVAL {most}\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
        ).encode()
    body = samples.astype(">u2").tobytes()
    if kind in ("P2", "P3"):
        body = b"# words\n" + " ".join(map(str, samples.flatten().tolist())).encode()
    (imgs / ("a.pam" if kind == "P7" else "a.pnm")).write_bytes(header + body)
    expected = (samples / most * 65535).round().astype(np.uint16).squeeze()
    for form, read in (("png", imagecodecs.imread), ("tiff", tifffile.imread)):
        (output,) = run(imgs, "--strength", "0", "--format", form).glob(f"a.{form[:3]}*")
        assert np.array_equal(read(str(output)), expected), form


@pytest.mark.parametrize(
    "words", ["1 2", "1 2 x 4 5 6", "1 2 3 4 5 4096", "1 2 3 4 5 -6", "1 2 3 4 5 99999999999"]
)
def test_plain_maps_that_are_damaged_fail(words: str, imgs: Path) -> None:
    (imgs / "a.ppm").write_bytes(f"P3\n2 1\n4095\n{words}\n".encode())
    assert main([str(imgs), "-d", "cpu", "-w", "tconv"]) == 6


@pytest.mark.parametrize("form", ["webp", "jpeg", "avif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_gray_in_lossy_formats_stays_gray(form: str, mode: str, imgs: Path) -> None:
    """As far as WebP can: its decoders round the colours of one luma differently."""
    gray = Image.fromarray((noisy().clip(0, 1) * 255).round().astype(np.uint8)).convert(mode)
    if not (form == "jpeg" and mode == "RGBA"):
        gray.save(imgs / f"a.{form}", quality=90)
    gray.save(imgs / "b.png")
    formats = () if form == "jpeg" and mode == "RGBA" else ("preserve", form)
    for option in formats:
        output = run(imgs, "--format", option)
        for path in output.glob("[ab].*"):
            result = np.asarray(Image.open(path).convert("RGB")).astype(int)
            limit = 1 if path.suffix == ".webp" else 0
            assert (result.max(2) - result.min(2)).max() <= limit, path.name
            assert psnr(result[..., 1], 0, 255) > 24


@pytest.mark.parametrize(
    ("options", "suffix"), [((), ".jpg"), (("--format", "webp"), ".webp"), (("-q", "40"), ".jpg")]
)
def test_the_psnr_is_that_of_the_written_file(
    options: tuple[str, ...], suffix: str, imgs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = np.stack([clean(), clean(1), clean(2)], 2)
    noise = 0.08 * np.random.default_rng(0).standard_normal(colours.shape)
    Image.fromarray(((colours + noise).clip(0, 1) * 255).astype(np.uint8)).save(imgs / "a.jpg")
    target = (colours.clip(0, 1) * 255).round().astype(np.uint8)
    (imgs.parent / "clean").mkdir()
    Image.fromarray(target).save(imgs.parent / "clean" / "a.png")
    reference = str(imgs.parent / "clean")
    output = run(imgs, "--reference", reference, "--log", "json", *options) / f"a{suffix}"
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (printed,) = [row["psnr_out"] for row in rows if row["event"] == "image"]
    written = np.asarray(Image.open(output).convert("RGB"), float)
    expected = -10 * math.log10((((written - target) / 255) ** 2).mean())
    assert printed == pytest.approx(expected, abs=0.002)
