"""JPEG pixels come from the decode that listens to libjpeg; they must be Pillow's."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoise_batch.files.images import read_image


def coded(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    """A JPEG file of blurred noise, where chroma subsampling and rounding show."""
    random = np.random.default_rng(size[0] + 7 * size[1])
    bands = len(Image.new(mode, (1, 1)).getbands())
    small = random.integers(0, 256, (size[1] // 3 + 2, size[0] // 3 + 2, bands), np.uint8)
    image = Image.fromarray(small.squeeze(2) if bands == 1 else small, mode)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", **options)
    return file.getvalue()


def without_segments(data: bytes, *markers: int) -> bytes:
    """The file without its application segments of these markers."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        kept += b"" if data[at + 1] in markers else data[at:end]
        at = end
    return kept + data[at:]


def renamed(data: bytes, names: bytes) -> bytes:
    """The file with other numbers of its three components, in frame and scan."""
    frame = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    scan = data.index(b"\xff\xda")
    changed = bytearray(data)
    for number, name in enumerate(names):
        changed[frame + 10 + 3 * number] = name
        changed[scan + 5 + 2 * number] = name
    return bytes(changed)


WAYS: dict[str, dict[str, Any]] = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "rough": {"quality": 8, "optimize": True},
}
CASES = {
    f"{mode}-{size[0]}x{size[1]}-{name}": coded(mode, size, **{"quality": 75, **options})
    for mode in ("L", "RGB")
    for size in ((64, 48), (37, 53), (1, 1), (9, 200))
    for name, options in WAYS.items()
}
PLAIN = coded("RGB", (45, 31), quality=80)
CASES |= {
    "rgb-coded": coded("RGB", (45, 31), quality=80, keep_rgb=True),
    "cmyk": coded("CMYK", (45, 31), quality=80),
    "no-jfif": without_segments(PLAIN, 0xE0),
    "no-jfif-other-names": renamed(without_segments(PLAIN, 0xE0), bytes([7, 8, 9])),
    "no-jfif-names-of-rgb": renamed(without_segments(PLAIN, 0xE0), b"RGB"),
    "jfif-names-of-rgb": renamed(PLAIN, b"RGB"),
    "adobe-says-rgb": without_segments(PLAIN, 0xE0).replace(
        b"\xff\xd8", b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0", 1
    ),
    "adobe-says-ycc": without_segments(PLAIN, 0xE0).replace(
        b"\xff\xd8", b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1", 1
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_jpeg_file_has_the_pixels_that_pillow_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(CASES[name])
    with Image.open(path) as image:
        expected = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    page = read_image(path)
    found = page.stored(page.samples).numpy()
    assert np.array_equal(found.squeeze(2) if expected.ndim == 2 else found, expected)
    assert "damage" not in page.note
