"""What a file holds beside its picture, and files that are not read, through the command."""

import csv
import hashlib
import io
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pictures import picture
from PIL import ExifTags, Image, PngImagePlugin

from denoise_batch.cli.batch import main
from denoise_batch.files import images, kinds, scan

OPTIONS = ["-w", "tconv", "-d", "cpu", "--strength", "0", "--overwrite"]
NOISE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the extras raw, phones and render read is refused here; test_extras.py has them."""
    readable = images.READABLE_SUFFIXES - kinds.READ_WITH_EXTRAS
    writable = images.WRITABLE_SUFFIXES - kinds.READ_WITH_EXTRAS
    monkeypatch.setattr(kinds, "READ", {})
    monkeypatch.setattr(images, "WRITABLE_SUFFIXES", writable)
    monkeypatch.setattr(scan, "READABLE_SUFFIXES", readable)
    monkeypatch.setattr(scan, "_output_suffix", scan._output_suffix.__wrapped__)  # not cached


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    folder.mkdir()
    return folder


def run(folder: Path, *arguments: str, code: int = 0) -> Path:
    assert main([str(folder), *OPTIONS, *arguments]) == code
    return folder.with_name(folder.name + "-denoised")


def jpeg(width: int = 40, height: int = 30, seed: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(width, height, seed).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG file with one more segment behind its start."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def with_xmp(data: bytes, properties: str, elements: str = "") -> bytes:
    packet = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f"{properties}><dc:title>Zoë</dc:title>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    )
    return with_segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet.encode())


# Kinds that are not read


def bayer(path: Path, **options: Any) -> None:
    """A TIFF/EP file: a small picture whose sub-directory holds the sensor's samples."""
    with tifffile.TiffWriter(path, **options) as tiff:
        tiff.write(np.zeros((12, 16, 3), "u1"), photometric="rgb", subifds=1, subfiletype=1)
        mosaic = NOISE.integers(0, 4096, (120, 160), dtype=np.uint16)
        pattern = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, b"\0\1\1\2", True)]
        tiff.write(mosaic, photometric=32803, extratags=pattern, metadata=None)


RAW_SIGNATURES = {
    "a.raf": b"FUJIFILMCCD-RAW 0201FF383501",
    "a.orf": b"IIRO\x08\0\0\0", "b.orf": b"MMOR\0\0\0\x08", "c.orf": b"IIRS\x08\0\0\0",
    "a.rw2": b"IIU\0\x18\0\0\0", "a.cr2": b"II*\0\x10\0\0\0CR\2\0",
    "a.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a.crw": b"II\x1a\0\0\0HEAPCCDR",
    "a.x3f": b"FOVb\3\0\2\0", "a.mrw": b"\0MRM\0\0\1\0", "a.iiq": b"II*\0\x08\0\0\0IIIITwaR",
    "a.jpg": b"FUJIFILMCCD-RAW 0201FF383501", "b.tif": b"IIU\0\x18\0\0\0",
    "no suffix": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
}  # fmt: skip


@pytest.mark.parametrize("name", RAW_SIGNATURES)
def test_camera_raw_is_named_by_its_content(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(RAW_SIGNATURES[name] + b"\0" * 300 + jpeg() + b"\0" * 300)
    run(path, code=6)
    said = capsys.readouterr().out
    assert "camera RAW" in said
    assert "rawtherapee-cli" in said
    assert [entry.name for entry in tmp_path.iterdir() if entry.name[0] != "."] == [name]


@pytest.mark.parametrize("suffix", ["nef", "NEF", "dng", "ARW", "pef", "srw", "3fr", "raw", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_a_sensors_mosaic_behind_a_thumbnail_is_camera_raw(
    suffix: str, order: str, is_big: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{suffix}"
    bayer(path, byteorder=order, bigtiff=is_big)
    run(path, code=6)
    assert "camera RAW" in capsys.readouterr().out


def test_other_signs_of_camera_raw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = NOISE.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    dng = [(50706, 1, 4, b"\1\4\0\0", True)]
    tifffile.imwrite(folder / "dng.tif", samples, photometric="rgb", extratags=dng)
    tifffile.imwrite(folder / "linear.tif", samples, photometric=34892, planarconfig="contig")
    tifffile.imwrite(folder / "mosaic.tiff", samples[:, :, 0], photometric=32803)
    run(folder, code=6)
    assert capsys.readouterr().out.count("is camera RAW") == 3
    for name, kind in (("a.nef", "TIFF"), ("b.CR2", "JPEG"), ("c.dng", "PNG")):
        picture(40, 30).save(folder / name, kind)
        run(folder / name, code=6)
        assert "camera RAW" in capsys.readouterr().out


OTHERS = {
    "FITS": b"SIMPLE  =                    T", "Photoshop": b"8BPS\0\1",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "JPEG XL": b"\xff\x0a\xfa\x1f", "JPEG XR": b"II\xbc\1\x20\0\0\0", "Radiance": b"#?RADIANCE\n",
    "HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "PDF": b"%PDF-1.7\n",
    "DICOM": b"\0" * 128 + b"DICM",
    "layered": b"gimp xcf v011\0", "DjVu": b"AT&TFORM\0\0\0\0DJVU",
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.png", "a", "a.tif"])
def test_other_kinds_are_refused_by_their_name(
    kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(OTHERS[kind] + b"\0" * 3000)
    run(tmp_path / name, code=6)
    said = capsys.readouterr().out
    assert kind in said
    assert "not read" in said


@pytest.mark.parametrize(
    ("format_name", "kind"),
    [("ICO", "icon"), ("ICNS", "icon"), ("DDS", "DDS"), ("PCX", ""), ("SGI", ""), ("TGA", ""),
     ("MSP", "MSP"), ("XBM", "XBM"), ("SPIDER", ""), ("EPS", "PostScript")],
)  # fmt: skip
def test_only_what_the_document_names_is_read_although_pillow_reads_more(
    format_name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mode = {"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(format_name, "RGB")
    path = tmp_path / ("a.tga" if format_name == "TGA" else "a.dat")
    picture(32, 32).convert(mode).save(path, format_name)
    is_read = format_name in {"PCX", "SGI", "TGA"}
    run(path, code=0 if is_read else 6)
    said = capsys.readouterr().out
    assert (kind in said and "not read" in said) or is_read or format_name == "SPIDER"


def test_content_decides_for_pictures_with_another_name(tmp_path: Path) -> None:
    for name in ("favicon.ico", "phone.heic", "a.hdr"):
        picture(40, 30).save(tmp_path / name, "PNG")
        run(tmp_path / name)
        with Image.open(tmp_path / f"{Path(name).stem}-denoised.png") as image:
            assert image.size == (40, 30)


# Passed over


@pytest.mark.parametrize("suffix", ["heic", "jxl", "exr", "fits", "dds", "psd", "hdr"])
def test_tiff_with_the_name_of_another_kind_is_told_to_be_renamed(
    suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(folder / f"a.{suffix}", samples(9, 11))
    run(folder / f"a.{suffix}", code=6)
    said = capsys.readouterr().out
    assert f"is named .{suffix} (" in said
    assert "but holds TIFF; rename it" in said


def test_a_folder_says_what_it_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(40, 30).save(folder / "a.png")
    (folder / "sub").mkdir()
    others = [
        "1.heic",
        "2.HEIC",
        "sub/3.heic",
        "a.nef",
        "b.NEF",
        "c.dng",
        "d.jxl",
        "e.exr",
        "f.psd",
    ]
    silent = ["a.txt", "a.xmp", "Thumbs.db", ".DS_Store", "._a.heic", "a.mov", "notes.pdf"]
    for name in others + silent:
        (folder / name).write_bytes(b"x")
    reports = [str(folder.parent / f"report.{form}") for form in ("json", "csv", "html")]
    run(folder, *(f"--report={path}" for path in reports))
    out = capsys.readouterr().out
    line = "passed over: 3 .heic, 2 .nef, 1 .dng, 1 .exr, 1 .jxl, 1 .psd (not supported; "
    counts = {".heic": 3, ".nef": 2, ".dng": 1, ".exr": 1, ".jxl": 1, ".psd": 1}
    assert line in out
    assert "pip install 'denoise-batch[phones,raw,render]'" in out
    assert json.loads(Path(reports[0]).read_text())["passed_over"] == counts
    rows = list(csv.DictReader(io.StringIO(Path(reports[1]).read_text())))
    assert [row["status"] for row in rows].count("passed over") == 9
    assert {row["name"] for row in rows} == {"a.png", *others}
    assert line in Path(reports[2]).read_text()
    assert not any(name in out for name in ("txt", "xmp", "Thumbs", "DS_Store", ".mov", ".pdf"))
    run(folder, "--dry-run")
    assert line in capsys.readouterr().out
    run(folder, "--log", "json")
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert events[0]["passed_over"] == events[-1]["passed_over"] == counts
    run(folder, "--log", "json", "--dry-run")
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [e["passed_over"] for e in events if e["event"] == "passed_over"] == [counts]
    assert main([str(folder / "*.*"), *OPTIONS, "-o", str(folder.parent / "out")]) == 0
    assert "passed over: 2 .heic, 2 .nef" in capsys.readouterr().out
    assert main([str(folder), *OPTIONS, "--no-recursive"]) == 0
    assert "passed over: 2 .heic, 2 .nef" in capsys.readouterr().out


def test_a_folder_of_nothing_else_says_so_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.cr2").write_bytes(b"x")
    run(folder, code=3)
    assert (
        "passed over: 1 .cr2 (not supported; pip install 'denoise-batch[raw]'"
        in capsys.readouterr().err
    )
    assert main([str(folder / "*.cr2"), *OPTIONS]) == 3
    assert "passed over: 1 .cr2" in capsys.readouterr().err
    assert main([str(folder / "a.cr2"), *OPTIONS]) == 6
    assert "is camera RAW" in capsys.readouterr().out


def test_nothing_passed_over_is_not_mentioned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(40, 30).save(folder / "a.png")
    report = folder.parent / "r.json"
    run(folder, "--report", str(report))
    assert "passed over" not in capsys.readouterr().out
    assert json.loads(report.read_text())["passed_over"] == {}


# Pages of a TIFF file


def samples(*shape: int, dtype: str = "u1") -> Any:
    return NOISE.integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "shape"), [("u1", (5, 30, 40)), ("u2", (7, 30, 41)), ("f4", (4, 30, 40)),
                         ("u1", (3, 30, 40, 3))],
)  # fmt: skip
def test_all_planes_of_an_imagej_stack_in_one_page_are_kept(
    order: str, dtype: str, shape: tuple[int, ...], folder: Path
) -> None:
    planes = samples(*shape, dtype=dtype)
    said: dict[str, Any] = {"metadata": {"truncate": 1}}
    photometric = "rgb" if len(shape) == 4 else "minisblack"
    with tifffile.TiffWriter(folder / "a.tif", imagej=True, byteorder=order) as tiff:
        tiff.write(planes, photometric=photometric, truncate=True, **said)
    with tifffile.TiffFile(folder / "a.tif") as tiff:
        assert len(tiff.pages) == 1
    output = run(folder) / "a.tif"
    with tifffile.TiffFile(output) as tiff:
        assert len(tiff.pages) == len(planes)
        assert np.array_equal(tiff.asarray(), planes)
        assert f"images={len(planes)}" in tiff.pages[0].tags[270].value
        assert 270 not in tiff.pages[1].aspage().tags
        assert all(np.array_equal(page.asarray(), plane)
                   for page, plane in zip(tiff.pages, planes, strict=True))  # fmt: skip


def test_all_planes_of_other_stacks_in_one_page_are_kept(folder: Path) -> None:
    planes = samples(6, 20, 30)
    tifffile.imwrite(folder / "shaped.tif", planes, truncate=True, photometric="minisblack")
    # MetaMorph: the planes follow the first, and UIC2Tag has six rationals for each.
    uic2 = (33629, 5, 6, (0, 1) * 6, True)
    tifffile.imwrite(folder / "stk.tif", planes, truncate=True, photometric="minisblack",
                     metadata=None, extratags=[uic2])  # fmt: skip
    output = run(folder)
    for name in ("shaped.tif", "stk.tif"):
        with tifffile.TiffFile(output / name) as tiff:
            assert len(tiff.pages) == 6, name
            assert all(
                np.array_equal(page.asarray(), plane)
                for page, plane in zip(tiff.pages, planes, strict=True)
            )
    assert np.array_equal(tifffile.imread(output / "shaped.tif"), planes)


def test_a_stack_that_lacks_planes_is_an_error_and_a_stale_promise_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planes = samples(6, 20, 30)
    tifffile.imwrite(folder / "a.tif", planes, imagej=True, truncate=True)
    data = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(data[: -2 * 600 - 1])
    run(folder, code=6)
    assert "promises 6 planes (ImageJ), but ends after 3" in capsys.readouterr().out
    (folder / "a.tif").write_bytes(data[: -5 * 600])
    output = run(folder) / "a.tif"
    assert "promises 6 planes; it holds one" in capsys.readouterr().out
    assert np.array_equal(tifffile.imread(output, key=0), planes[0])


@pytest.mark.parametrize(
    "description", ["ImageJ=1.54f\nimages=7\nslices=7\n", '{"shape": [7, 9, 11]}']
)
def test_a_file_of_fewer_pages_than_its_description_promises_is_noted(
    description: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("short", 3), ("whole", 7)):
        with tifffile.TiffWriter(folder / f"{name}.tif") as tiff:
            for number in range(count):
                said = description if number == 0 else None
                tiff.write(samples(9, 11), metadata=None, description=said)
    run(folder)
    said = capsys.readouterr().out
    assert "short.tif: its " in said
    assert said.count("promises 7 planes; it holds 3") == 1


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("is_colour", [False, True])
@pytest.mark.parametrize("where", ["below", "behind"])
def test_levels_of_a_pyramid_are_dropped_with_a_note(
    dtype: str, is_colour: bool, where: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channels = (3,) if is_colour else ()
    levels = [samples(*(64 >> level, 96 >> level), *channels, dtype=dtype) for level in range(3)]
    said: dict[str, Any] = {"photometric": "rgb" if is_colour else "minisblack", "metadata": None}
    with tifffile.TiffWriter(folder / "a.tif") as tiff:
        for level, array in enumerate(levels):
            more = {"subfiletype": 1} if level else {"subifds": 2 if where == "below" else 0}
            tiff.write(array, tile=(16, 16), compression="zlib", **said, **more)
    output = run(folder) / "a.tif"
    with tifffile.TiffFile(output) as tiff:
        assert len(tiff.pages) == 1
        assert 330 not in tiff.pages[0].tags
        assert np.array_equal(tiff.pages[0].asarray(), levels[0])
    said_out = capsys.readouterr().out
    assert "2 reduced copies (overviews or thumbnails) dropped" in said_out
    assert "96×64" in said_out


def mask_of(height: int, width: int, dtype: str = "u1") -> Any:
    mask = NOISE.random((height, width)) > 0.5
    return mask if dtype == "bool" else mask.astype(dtype) * 200


def write_pages(path: Path, *pages: tuple[Any, int, int | None], **options: Any) -> None:
    """Write pages: samples, NewSubfileType, photometric interpretation (None: by the samples)."""
    with tifffile.TiffWriter(path, **options) as tiff:
        for number, (array, flags, _) in enumerate(pages):
            tiff.write(
                array,
                photometric="rgb" if array.ndim == 3 else "minisblack",
                subfiletype=1 if flags else 0,  # the writer does not know masks
                compression="zlib" if number % 3 else None,
                rowsperstrip=7,
                description=f"page {number}",
                metadata=None,
            )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for page, (_, flags, photometric) in zip(tiff.pages, pages, strict=True):
            if flags:
                page.aspage().tags[254].overwrite(flags)
            if photometric is not None:
                page.aspage().tags[262].overwrite(photometric)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
@pytest.mark.parametrize(("flags", "photometric"), [(4, 4), (4, 1), (0, 4)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "bool"])
def test_masks_go_along_untouched_and_in_their_place(
    order: str, is_big: bool, flags: int, photometric: int, dtype: str, folder: Path
) -> None:
    pictures = [samples(30, 40, 3), samples(20, 25, 3)]
    masks = [mask_of(30, 40, dtype), mask_of(20, 25, dtype)]
    options: dict[str, Any] = {"byteorder": order, "bigtiff": is_big}
    write_pages(
        folder / "a.tif",
        (pictures[0], 0, None), (masks[0], flags, photometric), (pictures[1], 0, None),
        (masks[1], flags, photometric), **options,
    )  # fmt: skip
    output = run(folder) / "a.tif"
    with tifffile.TiffFile(folder / "a.tif") as old, tifffile.TiffFile(output) as new:
        assert len(new.pages) == 4
        for number, (before, after) in enumerate(zip(old.pages, new.pages, strict=True)):
            before, after = before.aspage(), after.aspage()
            assert after.tags[270].value == f"page {number}"
            assert np.array_equal(before.asarray(), after.asarray())
            if number % 2:
                assert {
                    tag.code: tag.value for tag in before.tags if tag.code not in {273, 279}
                } == {tag.code: tag.value for tag in after.tags if tag.code not in {273, 279}}
    with Image.open(output) as image:
        assert image.tag_v2[270] == "page 0"


def test_a_cloud_optimised_tiff_keeps_its_picture_and_its_mask(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colour, mask = samples(64, 96, 3), mask_of(64, 96)
    write_pages(
        folder / "a.tif",
        (colour, 0, None), (mask, 4, 4), (colour[::2, ::2], 1, None), (mask[::2, ::2], 5, 4),
        (colour[::4, ::4], 1, None), (mask[::4, ::4], 4, 4),
    )  # fmt: skip
    output = run(folder) / "a.tif"
    assert "4 reduced copies (overviews or thumbnails) dropped" in capsys.readouterr().out
    with tifffile.TiffFile(output) as tiff:
        assert len(tiff.pages) == 2
        assert np.array_equal(tiff.pages[0].asarray(), colour)
        assert np.array_equal(tiff.pages[1].asarray(), mask)
        assert tiff.pages[1].aspage().tags[254].value == 4


def test_a_mask_that_the_format_cannot_hold_is_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pages(folder / "a.tif", (samples(30, 40, 3), 0, None), (mask_of(30, 40), 4, 4))
    run(folder, "--format", "png")
    assert "1 mask dropped: PNG cannot hold it" in capsys.readouterr().out


def test_16_bit_colour_beside_a_thumbnail_and_an_infra_red_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colour, infra_red = samples(30, 40, 3, dtype="u2") * 250, samples(30, 40, dtype="u2") * 250
    small = colour[::5, ::5].astype("u1")
    pages = [(colour, 0, None), (small, 1, None), (infra_red, 4, None)]
    write_pages(folder / "a.tif", *pages)
    write_pages(folder / "b.tif", pages[0], pages[2], pages[1])
    write_pages(folder / "c.tif", pages[1], pages[0], pages[2])
    output = run(folder)
    assert capsys.readouterr().out.count("1 reduced copies (overviews or thumbnails) dropped") == 3
    for name in ("a.tif", "b.tif", "c.tif"):
        with tifffile.TiffFile(output / name) as tiff:
            assert len(tiff.pages) == 2, name
            assert np.array_equal(tiff.pages[0].asarray(), colour)
            assert np.array_equal(tiff.pages[1].asarray(), infra_red)


def test_a_picture_behind_its_thumbnail_and_a_volume_are_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tifffile.TiffWriter(folder / "a.tif") as tiff:
        tiff.write(samples(15, 20, 3), photometric="rgb", subifds=1, subfiletype=1, metadata=None)
        tiff.write(samples(30, 40, 3), photometric="rgb", metadata=None)
    tifffile.imwrite(folder / "b.tif", samples(16, 32, 32), volumetric=True, tile=(16, 16, 16),
                     photometric="minisblack", metadata=None)  # fmt: skip
    run(folder, code=6)
    said = capsys.readouterr().out
    assert "a.tif: is a thumbnail of 20×15 with the picture (40×30)" in said
    assert "b.tif: is a volume of 16 slices" in said


@pytest.mark.parametrize("form", ["tiff", "jpeg", "png", "webp", "avif"])
def test_photoshops_layers_are_dropped_with_a_note(
    form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = b"Adobe Photoshop Document Data Block\0" + b"MIB8ryaL" + os.urandom(100_000)
    array = samples(30, 40, 3)
    tifffile.imwrite(folder / "a.tif", array, photometric="rgb", software="Photoshop",
                     metadata=None, extratags=[(37724, 7, len(layers), layers, True)])  # fmt: skip
    (output,) = run(folder, "--format", form, "--no-provenance").glob("a.*")
    assert "Photoshop's layers dropped" in capsys.readouterr().out
    assert layers[50:90] not in output.read_bytes()
    with Image.open(output) as image:
        assert image.size == (40, 30)
        assert 37724 not in image.getexif()
        assert image.getexif().get(305) == "Photoshop"


# JPEG: what follows the picture, and who speaks of it


def mpf(data: bytes, others: list[bytes]) -> bytes:
    """A JPEG file with an MPF index and the pictures that it names."""
    count = 1 + len(others)
    size = 8 + 2 + 3 * 12 + 4 + 16 * count
    entry_at = 8 + 2 + 3 * 12 + 4
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3)
    head += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, count)
    head += struct.pack("<HHII", 0xB002, 7, 16 * count, entry_at) + struct.pack("<I", 0)
    whole = len(data) + 4 + 4 + size
    entries, at = struct.pack("<IIIHH", 0x030000, whole, 0, 0, 0), whole - 10
    for other in others:
        entries += struct.pack("<IIIHH", 0, len(other), at, 0, 0)
        at += len(other)
    return with_segment(data, 0xE2, b"MPF\0" + head + entries) + b"".join(others)


HDRGM = 'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
CONTAINER = (
    'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" '
)
DIRECTORY = (
    "<Container:Directory><rdf:Seq>"
    '<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="Primary" '
    'Item:Mime="image/jpeg"/></rdf:li>'
    '<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="{}" Item:Mime="{}" '
    'Item:Length="1234"/></rdf:li></rdf:Seq></Container:Directory>'
)
CAMERA = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" '
MOTION = 'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1" GCamera:SpecialTypeID="x" '
MICRO = 'GCamera:MicroVideo="1" GCamera:MicroVideoVersion="1" GCamera:MicroVideoOffset="1234" '
FILM = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + b"\0\0\x10\0mdat" + b"\1" * 4088
SAMSUNG = b"\0\0\1\x0a\x0e\0\0\0Image_UTC_Data1600000000000SEFHk\0\0\0\1\0\0\0\x0c\0\0\0SEFT"


def payloads() -> dict[str, tuple[bytes, str, tuple[bytes, ...]]]:
    """Case → file, what the note says, and what the output must not say."""
    gain_map = with_xmp(jpeg(20, 15, 1), HDRGM)
    hdr = with_xmp(jpeg(), HDRGM + CONTAINER, DIRECTORY.format("GainMap", "image/jpeg"))
    iso = with_segment(jpeg(20, 15, 1), 0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")
    motion = CAMERA + MOTION + CONTAINER
    film = DIRECTORY.format("MotionPhoto", "video/mp4")
    apple = (
        'xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/" HDRGainMap:HDRGainMapVersion="1"'
    )
    gone = (b"Container", b"GainMap", b"hdrgm", b"MPF\0")
    still = (b"MotionPhoto", b"MicroVideo", b"Container", b"ftyp")
    return {
        "ultra-hdr": (mpf(hdr, [gain_map]), "gain map (HDR)", gone),
        "ultra-hdr of ISO": (mpf(jpeg(), [iso]), "gain map (HDR)", (b"21496",)),
        "gain map without an index": (hdr + gain_map, "gain map (HDR)", gone),
        "of an iPhone": (mpf(jpeg(), [with_xmp(jpeg(20, 15), apple)]), "gain map (HDR)", gone),
        "motion photo": (with_xmp(jpeg(), motion, film) + FILM, "film of a Motion Photo", still),
        "micro video": (with_xmp(jpeg(), CAMERA + MICRO) + FILM, "film of a Motion Photo", still),
        "Samsung": (jpeg() + SAMSUNG, "Samsung's trailer", (b"SEFT",)),
        "Samsung's film": (
            jpeg() + b"\0\0\x30\x0a\x10\0\0\0MotionPhoto_Data" + FILM + SAMSUNG,
            "film of a Motion Photo",
            still,
        ),
        "ultra-hdr with a film": (
            mpf(with_xmp(jpeg(), HDRGM + motion, film), [gain_map]) + FILM, "film", (*gone, *still)
        ),
        "a stereo pair": (mpf(jpeg(), [jpeg(40, 30, 2)]), "1 more of a multi-picture", (b"MPF\0",)),
        "three pictures": (mpf(jpeg(), [jpeg()] * 2), "2 more of a multi-picture", (b"MPF\0",)),
        "unknown bytes": (jpeg() + b"some maker's data", "17 bytes after", (b"maker",)),
        "a second picture": (jpeg(progressive=True) + jpeg(20, 15), "bytes after the end", ()),
        "a ZIP archive": (jpeg() + b"PK\3\4" + b"a" * 100, "104 bytes after", (b"PK",)),
        "credentials": (
            with_segment(jpeg(), 0xEB, b"JP\0\1\0\0\0\1\0\0\0\x20jumb\0\0\0\0jumdc2pa"),
            "content credentials (JUMBF)",
            (b"jumb",),
        ),
        "a JFIF thumbnail": (
            jpeg().replace(b"\0\0\xff\xdb", b"\2\2" + b"\7" * 12 + b"\xff\xdb", 1)
            .replace(b"\xff\xe0\0\x10", b"\xff\xe0\0\x1c", 1),
            "JFIF thumbnail",
            (b"\7" * 12,),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", payloads())
def test_what_follows_a_picture_is_noted_and_no_longer_promised(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, note, gone = payloads()[case]
    (folder / "a.jpg").write_bytes(data)
    output = (run(folder) / "a.jpg").read_bytes()
    said = capsys.readouterr().out
    assert note in said
    assert "dropped" in said
    assert [word for word in gone if word in output] == []
    with Image.open(io.BytesIO(output)) as image:
        assert image.size == (40, 30)
        assert image.format == "JPEG"
    if b"adobe:ns:meta" in data[:200]:
        assert "<dc:title>Zoë</dc:title>".encode() in output
    if b"SpecialTypeID" in data:
        assert b'GCamera:SpecialTypeID="x"' in output
    again = folder.with_name("again")
    again.mkdir()
    (again / "a.jpg").write_bytes(output)
    run(again)
    assert "dropped" not in capsys.readouterr().out


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0" * 5000, b"\xff" * 7, b"\r\n"])
def test_padding_behind_a_picture_is_nothing(
    padding: bytes, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.jpg").write_bytes(jpeg(restart_marker_rows=1) + padding)
    run(folder)
    assert "note" not in capsys.readouterr().out


def test_what_follows_other_pictures_is_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Portable maps may hold one picture after another."""
    picture(41, 30).save(folder / "a.png")
    picture(41, 30).save(folder / "a.webp")
    deep = samples(30, 41, 3).astype("f4")
    for name, header, data in (
        ("a.pbm", b"P4\n# 1\n41 30\n", bytes(6 * 30)),
        ("a.pgm", b"P5\n41 30\n255\n", deep[:, :, 0].astype("u1")),
        ("b.pgm", b"P5 41 30 4095\n", deep[:, :, 0].astype(">u2")),
        ("a.ppm", b"P6\n41 30 # of 8 bits\n255\n", deep.astype("u1")),
        ("b.ppm", b"P6\n41 30\n65535\n", deep.astype(">u2")),
        ("a.pfm", b"PF\n41 30\n-1.0\n", deep),
        ("b.pfm", b"Pf\n41 30\n-1.0\n", deep[:, :, 0]),
        ("a.pam", b"P7\nWIDTH 41\nHEIGHT 30\nDEPTH 3\nMAXVAL 255\nENDHDR\n", deep.astype("u1")),
    ):
        (folder / name).write_bytes(header + bytes(data))
    for path in [*folder.iterdir()]:
        (folder / f"whole-{path.name}").write_bytes(path.read_bytes())
        path.write_bytes(path.read_bytes() + b"more")
    run(folder)
    assert capsys.readouterr().out.count("4 bytes after the end of the picture dropped") == 10


def test_metadata_of_jpeg_2000_are_dropped_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(40, 30).save(folder / "whole.jp2")
    whole = (folder / "whole.jp2").read_bytes()
    at = whole.index(b"jp2c") - 4
    for name, key, kind in (
        ("XMP", "be7acfcb97a942e89c71999491e3afac", b"uuid"),
        ("georeference", "b14bf8bd083d4b43a5ae8cd7d5a6ce03", b"uuid"),
        ("EXIF", b"JpgTiffExif->JP2".hex(), b"uuid"),
        ("XML", b"<a/>".hex(), b"xml "),
    ):
        body = bytes.fromhex(key) + b" content"
        box = struct.pack(">I", len(body) + 8) + kind + body
        (folder / f"{name}.jp2").write_bytes(whole[:at] + box + whole[at:])
    run(folder)
    said = capsys.readouterr().out
    for name in ("XMP", "georeference", "EXIF", "XML"):
        assert f"{name}.jp2: {name} dropped: only the picture is kept" in said
    assert "whole.jp2" not in "".join(line for line in said.splitlines() if "note" in line)


@pytest.mark.parametrize("form", ["png", "webp", "tiff", "avif"])
def test_other_formats_promise_nothing_either(form: str, folder: Path) -> None:
    (folder / "a.jpg").write_bytes(payloads()["ultra-hdr"][0])
    (output,) = run(folder, "--format", form).glob("a.*")
    with Image.open(output) as image:
        xmp = image.info["xmp"]
    assert "Zoë".encode() in xmp
    assert b"Container" not in xmp
    assert b"hdrgm" not in xmp


# Copies of the noisy picture


def exif_with_thumbnail(order: str, thumbnail: bytes, *, at_end: bool = True) -> bytes:
    """An EXIF block by hand: maker, a maker's note behind it, and a thumbnail."""
    note = b"\0".join([b"Nikon", b"points to itself" * 4])
    first, sub, second = 8, 8 + 2 + 24 + 4, 8 + 2 + 24 + 4 + 2 + 12 + 4
    data = second + 2 + 36 + 4
    places = (data, data + len(note)) if at_end else (data + len(thumbnail), data)
    pack = lambda layout, *values: struct.pack(order + layout, *values)  # noqa: E731
    head = (b"II" if order == "<" else b"MM") + pack("HI", 42, first)
    head += pack("H", 2) + pack("HHI", 271, 2, 4) + b"Abc\0" + pack("HHII", 0x8769, 4, 1, sub)
    head += pack("I", second) + pack("H", 1) + pack("HHII", 37500, 7, len(note), places[0])
    head += pack("I", 0) + pack("H", 3) + pack("HHIHH", 259, 3, 1, 6, 0)
    head += pack("HHII", 513, 4, 1, places[1]) + pack("HHII", 514, 4, 1, len(thumbnail))
    head += pack("I", 0)
    return b"Exif\0\0" + head + (note + thumbnail if at_end else thumbnail + note)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("at_end", [False, True])
def test_exif_thumbnails_show_the_new_picture(
    suffix: str, order: str, at_end: bool, folder: Path
) -> None:
    old = jpeg(160, 120, 9)  # of another picture
    block = exif_with_thumbnail(order, old, at_end=at_end)
    picture(320, 240, 1).save(folder / f"a.{suffix}", exif=block)
    output = run(folder) / f"a.{suffix}"
    data = output.read_bytes()
    assert old[100:] not in data
    with Image.open(output) as image:
        exif = image.info["exif"]
        assert image.getexif()[271] == "Abc"
        assert image.getexif().get_ifd(0x8769)[37500].endswith(b"points to itself")
        tags = image.getexif().get_ifd(ExifTags.IFD.IFD1)
        start = 6 if exif.startswith(b"Exif") else 0
        new = exif[start + tags[513] : start + tags[513] + tags[514]]
        with Image.open(io.BytesIO(new)) as thumbnail:
            assert thumbnail.size == (160, 120)
            expected = image.convert("RGB").resize((160, 120), Image.Resampling.BOX)
            difference = np.asarray(thumbnail, float) - np.asarray(expected, float)
            assert np.abs(difference).mean() < 15


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_thumbnail_without_room_for_a_new_one_is_removed(
    suffix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = exif_with_thumbnail("<", jpeg(2, 2)[:200])
    picture(320, 240, 1).save(folder / f"a.{suffix}", exif=block)
    output = run(folder) / f"a.{suffix}"
    assert "EXIF thumbnail dropped" in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.getexif()[271] == "Abc"
        assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)


def resources(*parts: tuple[int, bytes]) -> bytes:
    return b"".join(
        b"8BIM" + struct.pack(">H", number) + b"\0\0" + struct.pack(">I", len(data)) + data
        + b"\0" * (len(data) % 2)
        for number, data in parts
    )  # fmt: skip


IPTC = b"\x1c\x02\x05\x00\x04Zoe!"


def test_photoshops_thumbnails_are_dropped_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = struct.pack(">IIIIIIHH", 1, 40, 30, 120, 3600, 9, 24, 1) + jpeg(seed=5)
    block = resources((1028, IPTC), (1036, small), (1033, small), (1005, b"\0" * 16))
    kept = resources((1028, IPTC), (1005, b"\0" * 16))
    lead = b"Photoshop 3.0\0"
    (folder / "a.jpg").write_bytes(with_segment(jpeg(), 0xED, lead + block))
    half = len(block) // 2  # one resource over two segments
    halves = with_segment(jpeg(), 0xED, lead + block[half:])
    (folder / "b.jpg").write_bytes(with_segment(halves, 0xED, lead + block[:half]))
    tifffile.imwrite(folder / "c.tif", samples(30, 40, 3), photometric="rgb", metadata=None,
                     extratags=[(34377, 1, len(block), block, True)])  # fmt: skip
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type 8bim", f"\n8bim\n{len(block):8}\n{block.hex()}\n", zip=True)
    picture(40, 30).save(folder / "d.png", pnginfo=info)
    output = run(folder)
    said = capsys.readouterr().out
    for name in ("a.jpg", "b.jpg", "d.png"):
        assert f"{name}: Photoshop's thumbnail dropped" in said
    for name in ("a.jpg", "b.jpg", "c.tif"):
        data = (output / name).read_bytes()
        assert small[40:] not in data, name
        assert kept in data, name
    with Image.open(output / "d.png") as image:
        text = image.info["Raw profile type 8bim"].split("\n")
        assert bytes.fromhex("".join(text[3:])) == kept
        assert int(text[2]) == len(kept)


def extended(data: bytes, packet: bytes, guid: bytes) -> bytes:
    for start in reversed(range(0, len(packet), 50_000)):
        head = (
            b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(packet), start)
        )
        data = with_segment(data, 0xE1, head + packet[start : start + 50_000])
    return data


@pytest.mark.parametrize("keeps_more", [False, True])
def test_copies_in_xmp_are_dropped_with_a_note(
    keeps_more: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xap = (
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="3" '
        'xmlns:xapGImg="http://ns.adobe.com/xap/1.0/g/img/" '
    )
    thumbnails = (
        "<xmp:Thumbnails><rdf:Alt><rdf:li rdf:parseType='Resource'><xapGImg:image>/9j/4AAQ"
        "</xapGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails>"
    )
    (folder / "a.jpg").write_bytes(with_xmp(jpeg(), xap, thumbnails))
    depth = 'GDepth:Data="AAAA" ' if keeps_more else ""
    more = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
        'syntax-ns#"><rdf:Description rdf:about="" xmlns:GImage="http://ns.google.com/photos/1.0/'
        'image/" xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/" '
        f'{depth}GImage:Data="{"/9j/4AAQ" * 20_000}"/></rdf:RDF></x:xmpmeta>'
    ).encode()  # fmt: skip
    guid = hashlib.md5(more).hexdigest().upper()
    has = f'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{guid}" '
    mime = 'xmlns:GImage="http://ns.google.com/photos/1.0/image/" GImage:Mime="image/jpeg" '
    main_packet = with_xmp(extended(jpeg(), more, guid.encode()), has + mime)
    (folder / "b.jpg").write_bytes(main_packet)
    output = run(folder)
    said = capsys.readouterr().out
    assert "a.jpg: thumbnail in XMP dropped" in said
    assert "b.jpg: original picture in XMP dropped" in said
    for name in ("a.jpg", "b.jpg"):
        data = (output / name).read_bytes()
        assert b"/9j/4AAQ" not in data
        assert b"GImage" not in data
        assert "Zoë".encode() in data
    assert b'xmp:Rating="3"' in (output / "a.jpg").read_bytes()
    data = (output / "b.jpg").read_bytes()
    assert (b"HasExtendedXMP" in data) == (b"xmp/extension/" in data) == keeps_more
    if keeps_more:
        at = data.index(b"xmp/extension/\0") + 15
        found, size = data[at : at + 32], int.from_bytes(data[at + 32 : at + 36])
        packet = data[at + 40 : at + 40 + size]
        assert b'GDepth:Data="AAAA"' in packet
        assert hashlib.md5(packet).hexdigest().upper().encode() == found
        assert b'HasExtendedXMP="' + found + b'"' in data


# Files: times, permissions, names, limits, a missing end


def test_outputs_keep_times_and_permissions(folder: Path) -> None:
    names = ["a.png", "b.jpg", "c.tif", "d.webp"]
    for number, name in enumerate(names):
        picture(40, 30).save(folder / name)
        (folder / name).chmod(0o600 if number % 2 else 0o640)
        os.utime(folder / name, ns=(10**18 + number, 1_234_567_890_123_456_789 + number))
    output = run(folder)
    for name in names:
        old, new = (folder / name).stat(), (output / name).stat()
        assert new.st_mtime_ns == old.st_mtime_ns
        assert stat.S_IMODE(new.st_mode) == stat.S_IMODE(old.st_mode)
    output = run(folder, "--no-times")
    for name in names:
        old, new = (folder / name).stat(), (output / name).stat()
        assert new.st_mtime_ns > old.st_mtime_ns
        assert stat.S_IMODE(new.st_mode) == stat.S_IMODE(old.st_mode)


def test_a_file_of_the_same_size_and_time_is_not_taken_for_an_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-w", "tconv", "-d", "cpu"]
    picture(40, 30).save(folder / "a.bmp")
    assert main([str(folder), *options]) == 0
    output = folder.with_name("imgs-denoised") / "a.bmp"
    assert main([str(folder), *options]) == 0
    assert "0 done, 1 skipped" in capsys.readouterr().out
    data, status = (folder / "a.bmp").read_bytes(), (folder / "a.bmp").stat()
    output.write_bytes(data)
    os.utime(output, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main([str(folder), *options, "--strength", "0.5"]) == 0
    assert output.read_bytes() == data
    output.unlink()
    assert main([str(folder), *options]) == 0
    first = output.read_bytes()
    assert main([str(folder), *options, "--strength", "0.5"]) == 0
    assert output.read_bytes() != first  # ours, so made anew


@pytest.mark.parametrize(
    ("kind", "name", "is_noted"),
    [("PNG", "a.jpg", True), ("TIFF", "a.jpeg", True), ("BMP", "a.JPG", True),
     ("PNG", "a.webp", True), ("GIF", "a.jpg", True), ("JPEG", "a.jpg", False),
     ("JPEG", "a.png", False), ("PNG", "a.tif", False), ("WEBP", "a.jpg", True)],
)  # fmt: skip
def test_a_lossless_picture_with_a_lossy_name_is_noted(
    kind: str, name: str, is_noted: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(40, 30).save(folder / name, kind, **({"lossless": True} if kind == "WEBP" else {}))
    run(folder)
    assert (f"it holds {kind}, which is lossless" in capsys.readouterr().out) == is_noted
    run(folder, "--format", "png")
    assert "lossless" not in capsys.readouterr().out


@pytest.mark.parametrize(("form", "most"), [("jpeg", 65_500), ("webp", 16_383), ("avif", 65_536)])
def test_a_picture_too_large_for_a_format_names_the_limit(
    form: str, most: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (most + 1, 1)).save(folder / "wide.png")
    Image.new("L", (1, most + 1)).save(folder / "high.png")
    run(folder, "--format", form, "--no-measure", code=6)
    said = capsys.readouterr().out
    assert said.count(f"holds at most {most} pixels a side, not {most + 1}") == 2


ENDLESS = {
    "baseline": {}, "progressive": {"progressive": True}, "gray": {"mode": "L"},
    "full colour": {"subsampling": 0}, "restarts": {"restart_marker_blocks": 3},
    "restart rows": {"restart_marker_rows": 1}, "optimised": {"optimize": True, "quality": 30},
}  # fmt: skip


@pytest.mark.parametrize("case", ENDLESS)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_file_that_lacks_only_its_end_mark_is_read(
    case: str, cut: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = dict(ENDLESS[case])
    buffer = io.BytesIO()
    picture(67, 45, 3).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    whole = buffer.getvalue()
    (folder / "a.jpg").write_bytes(whole[:-cut])
    output = run(folder, "--format", "png") / "a.png"
    assert "its end mark is missing" in capsys.readouterr().out
    with Image.open(output) as new, Image.open(io.BytesIO(whole)) as old:
        assert new.tobytes() == old.tobytes()


@pytest.mark.parametrize("case", ENDLESS)
def test_a_jpeg_file_that_lacks_pixels_is_damaged(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = dict(ENDLESS[case])
    buffer = io.BytesIO()
    picture(67, 45, 3).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    whole = buffer.getvalue()
    # Anywhere, and where a restart interval or a scan ends.
    marks = [
        at for at in range(len(whole) - 1) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7
    ]
    scans = [at for at in range(1, len(whole)) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    cuts = {len(whole) - 4 - 7 * step for step in range(12)} | set(marks[-3:]) | set(scans[-4:])
    for cut in cuts:
        (folder / f"{cut}.jpg").write_bytes(whole[:cut])
    run(folder, code=6)
    assert f"0 done, {len(cuts)} failed" in capsys.readouterr().out
