"""Every tag of a TIFF file keeps its own type and bytes, whatever a library expects of it."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import XMP
from PIL import Image, TiffTags

from denoise_batch.cli.batch import main

# What says how samples are stored, and what points to directories, which this test does not draw.
STRUCTURE = {
    *range(254, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, *range(320, 329), 330,
    *range(332, 335), *range(336, 340), 347, *range(512, 522), *range(529, 533), 559, 34675, 50674,
    *range(32995, 32999),
    34665, 34853, 40965, 400, 274,
}  # fmt: skip
# What counts levels of samples: 290 is the unit of gray, 301 the transfer function.
LEVELS = {280, 281, 290, 291, 301, 340, 341}
PRIVATE = {33550, 33922, 34377, 37510, 42112, 42113, 50838, 50839, 65000, 65535}
CODES = sorted(({*TiffTags.TAGS_V2} | PRIVATE) - STRUCTURE - {37724, 50706, 50707})
TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
MORE = {13: 4, 16: 8, 17: 8, 18: 8}
KINDS = [
    ("raw", "u1", 1), ("tiff_lzw", "u1", 3), ("packbits", "u1", 1), ("tiff_adobe_deflate", "u1", 3),
    ("raw", "u2", 3), ("tiff_lzw", "u2", 3), ("tiff_adobe_deflate", "f4", 3),
]  # fmt: skip


def tiff(
    kind: tuple[str, str, int], tags: list[tuple[int, int, int, bytes]], order: str = "<"
) -> bytes:
    """A page of tifffile's, with more tags (code, type, count, bytes in this order)."""
    compression, dtype, channels = kind
    shape = (9, 11, channels) if channels > 1 else (9, 11)
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    name = {"raw": None, "tiff_lzw": "lzw", "tiff_adobe_deflate": "zlib"}.get(
        compression, "packbits"
    )
    photometric = "rgb" if channels == 3 else "minisblack"
    path = Path("page.tif")
    tifffile.imwrite(
        path, array, photometric=photometric, compression=name, metadata=None, software=False,
        byteorder=order, bigtiff=False,
    )  # fmt: skip
    content = path.read_bytes()
    path.unlink()
    (start,) = struct.unpack_from(order + "I", content, 4)
    (number,) = struct.unpack_from(order + "H", content, start)
    own = {}
    for at in range(start + 2, start + 2 + 12 * number, 12):
        own[struct.unpack_from(order + "H", content, at)[0]] = content[at : at + 12]
    end = len(content) + len(content) % 2
    body, at = b"", end + 2 + 12 * len({*own, *(tag[0] for tag in tags)}) + 4
    for code, type_, count, data in tags:
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value = struct.pack(order + "I", at + len(body))
            body += data + b"\0" * (len(data) % 2)
        own[code] = struct.pack(order + "HHI", code, type_, count) + value
    directory = struct.pack(order + "H", len(own)) + b"".join(own[code] for code in sorted(own))
    content = content[:4] + struct.pack(order + "I", end) + content[8:].ljust(end - 8, b"\0")
    return content + directory + bytes(4) + body


def raw_tags(path: Path, more: dict[int, int] | None = None) -> dict[int, tuple[int, int, bytes]]:
    """Type, count and bytes, little-endian, of each tag of the first page."""
    content, found = path.read_bytes(), {}
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (number,) = struct.unpack_from(order + "H", content, start)
    for at in range(start + 2, start + 2 + 12 * number, 12):
        code, type_, count, offset = struct.unpack_from(order + "HHII", content, at)
        one = {**TYPES, **(more or {})}[type_]
        size = count * one
        at = at + 8 if size <= 4 else offset
        unit = 4 if type_ in (5, 10) else one
        values = [content[i : i + unit] for i in range(at, at + size, unit)]
        found[code] = type_, count, b"".join(v if order == "<" else v[::-1] for v in values)
    return found


def value(type_: int, count: int, rng: np.random.Generator, order: str) -> bytes:
    """Random values: text of type 2 ends in a null byte, fractions have no zero in them."""
    if type_ == 2:
        return bytes(rng.integers(1, 256, count - 1, dtype="u1")) + b"\0"
    if type_ in (11, 12):
        return rng.random(count).astype(f"{order}f{TYPES[type_]}").tobytes()
    return bytes(rng.integers(1, 120, count * TYPES[type_], dtype="u1"))


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_every_tag_keeps_its_type_and_bytes(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    rng = np.random.default_rng(1)
    for number, kind in enumerate(KINDS):
        for type_ in TYPES:
            counts = {code: int(rng.choice([2, 3, 7])) for code in CODES}
            tags = [(c, type_, n, value(type_, n, rng, order)) for c, n in counts.items()]
            (folder / f"{number}-{type_}.tif").write_bytes(tiff(kind, tags, order))
    arguments = ["--strength", "0", "--quiet", "--no-provenance"]
    assert main([str(folder), "-w", "tconv", "-d", "cpu", *arguments]) == 0
    for path in sorted(folder.iterdir()):
        before, after = raw_tags(path), raw_tags(tmp_path / "imgs-denoised" / path.name)
        for code in CODES:
            assert after.get(code) == before[code], (path.name, code)


def test_pointers_and_wide_integers_keep_their_type_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types 13 and 18 that point to no directory, and 16 and 17, which are BigTIFF's."""
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    for order in "<>":
        for kind in (KINDS[0], KINDS[4]):
            tags = []
            for number, (type_, size) in enumerate(MORE.items()):
                for count in (1, 3):
                    values = (np.arange(count) + 1) * 1_000_000_007
                    data = values.astype(f"{order}u{size}").tobytes()
                    tags.append((65000 + 10 * number + count, type_, count, data))
            tags.append((65500, 18, 1, b"\xff" * 8))
            (folder / f"{kind[1]}{order == '>'}.tif").write_bytes(tiff(kind, tags, order))
    assert main([str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0"]) == 0
    assert "damaged" not in capsys.readouterr().out
    for path in folder.iterdir():
        before, after = (raw_tags(f, MORE) for f in (path, tmp_path / "imgs-denoised" / path.name))
        for code in before.keys() - STRUCTURE:
            assert after.get(code) == before[code], (path.name, code)


def test_a_directory_behind_a_private_pointer_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    content = tiff(KINDS[0], [(65000, 13, 1, struct.pack("<I", 8))])
    at = len(content) + len(content) % 2
    inner = struct.pack("<HHHIII", 1, 65001, 4, 1, 123_456_789, 0)
    content = content.ljust(at, b"\0") + inner
    place = content.index(struct.pack("<HHII", 65000, 13, 1, 8))
    content = content[: place + 8] + struct.pack("<I", at) + content[place + 12 :]
    (folder / "a.tif").write_bytes(content)
    assert main([str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0"]) == 0
    output = (tmp_path / "imgs-denoised" / "a.tif").read_bytes()
    (where,) = struct.unpack("<I", raw_tags(tmp_path / "imgs-denoised" / "a.tif", MORE)[65000][2])
    assert output[where : where + len(inner)] == inner


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("kind", [2, 0])
def test_pages_stay_pages(
    dtype: str, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NewSubfileType 2: one page of several; and the old SubfileType 3."""
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    with tifffile.TiffWriter(folder / "a.tif") as file:
        for page in np.random.default_rng(0).integers(0, 255, (3, 9, 11, 3)).astype(dtype):
            file.write(page, photometric="rgb", subfiletype=kind, metadata=None,
                       extratags=[(255, 3, 1, 3, True)])  # fmt: skip
    assert (
        main([str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0", "--format", "tiff"]) == 0
    )
    with tifffile.TiffFile(next((tmp_path / "imgs-denoised").iterdir())) as file:
        assert len(file.pages) == 3
        for page in file.pages:
            assert page.aspage().tags[254].value == kind
            assert page.aspage().tags[255].value == 3


def test_tags_of_levels_are_dropped_with_the_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    image = Image.new("P", (9, 11))
    image.putpalette(list(range(256)) * 3)
    image.save(folder / "a.tif", tiffinfo={290: 3, 301: tuple(range(256))})
    assert main([str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0"]) == 0
    assert not LEVELS & set(raw_tags(tmp_path / "imgs-denoised" / "a.tif"))


@pytest.mark.parametrize("type_", [1, 2, 7])
@pytest.mark.parametrize("suffix", ["tiff", "png", "jpeg", "webp"])
def test_xmp_of_any_type_is_xmp(
    type_: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    packet = XMP + b"\0" if type_ == 2 else XMP
    content = tiff(("tiff_lzw", "u1", 3), [(700, type_, len(packet), packet)])
    (folder / "a.tif").write_bytes(content)
    arguments = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--format", suffix]
    assert main([str(folder), *arguments]) == 0
    (output,) = (tmp_path / "imgs-denoised").glob("a.*")
    with Image.open(output) as image:
        found = image.info["xmp"]
        found = found.encode() if isinstance(found, str) else found
        assert found.rstrip(b"\0") == XMP


def test_exif_and_gps_folders_survive_in_tiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "imgs").mkdir()
    exif = Image.Exif()
    exif[271] = "Maker"
    exif[0x8769], exif[0x8825] = (
        {33434: 0.5, 37510: b"UNICODE\0Zo\xeb"},
        {1: "N", 2: (1.0, 2.0, 3.0)},
    )
    for name in ("scan.tif", "jpeg.jpg", "photo.png", "web.webp"):
        Image.new("RGB", (9, 11)).save(folder / name, exif=exif.tobytes())
    arguments = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--format", "tiff"]
    assert main([str(folder), *arguments]) == 0
    outputs = list((tmp_path / "imgs-denoised").glob("*.tif"))
    assert len(outputs) == 4
    for output in outputs:
        with Image.open(output) as image:
            assert image.getexif()[271] == "Maker"
            assert image.getexif().get_ifd(0x8769)[33434] == 0.5
            assert image.getexif().get_ifd(0x8769)[37510] == b"UNICODE\0Zo\xeb"
            assert image.getexif().get_ifd(0x8825)[2] == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("dtype", "channels"), [("u1", 1), ("u2", 1), ("f4", 1), ("u1", 3), ("u2", 3)]
)
def test_a_stack_of_imagej_is_read_as_one(dtype: str, channels: int, tmp_path: Path) -> None:
    """Its readers skip the directories if the samples seem to follow each other without gaps."""
    (folder := tmp_path / "imgs").mkdir()
    shape = (5, 20, 30, channels) if channels > 1 else (5, 20, 30)
    stack = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    description = "ImageJ=1.53\nimages=5\nslices=5\n"
    with tifffile.TiffWriter(folder / "a.tif") as tiff_file:
        for number, page in enumerate(stack):
            tiff_file.write(
                page, photometric="rgb" if channels > 1 else "minisblack", metadata=None,
                description=None if number else description, software=False,
            )  # fmt: skip
    assert main([str(folder), "-w", "tconv", "-d", "cpu", "--strength", "0"]) == 0
    with tifffile.TiffFile(tmp_path / "imgs-denoised" / "a.tif") as output:
        assert len(output.pages) == 5
        assert output.is_imagej
        assert np.array_equal(output.asarray(), stack)
