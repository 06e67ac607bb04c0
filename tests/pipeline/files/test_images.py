"""Image files, read and written back: samples, alpha and mode; formats; bad files."""

import io
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import (
    float_image,
    noise_image,
    opened,
    png_bytes,
    rewritten,
    saved,
    tiff_bytes,
    write_unit,
)
from PIL import Image

from denoise_batch.files.images import (
    READABLE_SUFFIXES,
    WRITABLE_SUFFIXES,
    output_format,
    output_suffix,
    read_image,
    write_pages,
)
from denoise_batch.files.pixels import DecodedImage, from_pil, to_pil
from denoise_batch.files.sniff import sniff
from denoise_batch.kernels.errors import ImageError, ShapeError

LOSSLESS = [
    *((".png", mode, mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16")),
    (".png", "P", "RGB"),
    *((".tif", mode, mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16", "F")),
    (".tif", "P", "RGB"),
    (".tif", "PA", "RGBA"),
    *((".bmp", mode, mode) for mode in ("1", "L", "RGB")),
    *((".tga", mode, mode) for mode in ("L", "LA", "RGB", "RGBA")),
    *((".ppm", mode, mode) for mode in ("1", "L", "RGB", "F")),
    *((".webp", mode, mode) for mode in ("RGB", "RGBA")),
    *((".jp2", mode, mode) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
]


@pytest.mark.parametrize(
    ("suffix", "mode", "kept"), LOSSLESS, ids=[f"{row[0][1:]}-{row[1]}" for row in LOSSLESS]
)
def test_unchanged_pixels_of_lossless_formats_come_back_bit_for_bit(
    suffix: str, mode: str, kept: str, tmp_path: Path
) -> None:
    source = saved(tmp_path / f"a{suffix}", noise_image(mode))
    before, after = opened(source), opened(rewritten(source))
    assert after.mode == kept
    assert after.size == before.size
    assert after.tobytes() == before.convert(kept).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "F"])
@pytest.mark.parametrize("size", [(7, 5), (1500, 1001)], ids=["small", "in strips"])
def test_tensors_and_pillow_images_turn_into_each_other(mode: str, size: tuple[int, int]) -> None:
    image = noise_image(mode, *size)
    samples = from_pil(image)
    assert samples.shape == (size[1], size[0], 3 if mode == "RGB" else 1)
    assert to_pil(samples).tobytes() == image.tobytes()
    mirrored = image.transpose(Image.Transpose.TRANSPOSE)
    assert to_pil(samples.transpose(0, 1)).tobytes() == mirrored.tobytes()  # not contiguous


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_are_the_samples_over_their_peak(mode: str, tmp_path: Path) -> None:
    image = noise_image(mode)
    page = read_image(saved(tmp_path / "a.png", image))
    expected = from_pil(image).permute(2, 0, 1) / 255
    torch.testing.assert_close(page.to_unit(), expected, rtol=0, atol=0)
    assert page.to_unit().dtype == torch.float32
    assert page.alpha is None
    assert page.size == (5, 7)


def test_alpha_passes_through_while_pixels_change(tmp_path: Path) -> None:
    image = noise_image("RGBA")
    page = read_image(saved(tmp_path / "a.png", image))
    write_unit(tmp_path / "b.png", page, torch.zeros_like(page.to_unit()))
    after = opened(tmp_path / "b.png")
    assert after.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    assert after.getchannel("R").getextrema() == (0, 0)


@pytest.mark.parametrize(("mode", "key"), [("L", 40), ("RGB", (1, 2, 3)), ("P", 7)])
def test_a_transparent_colour_becomes_alpha(mode: str, key: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.png", noise_image(mode), transparency=key)
    kept = "LA" if mode == "L" else "RGBA"
    assert opened(rewritten(source)).tobytes() == opened(source).convert(kept).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_gray_of_few_bits_becomes_alpha(bits: int, tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    row = {1: b"\x80", 2: b"\xc0", 4: b"\xf0", 8: b"\xff\x00"}[bits]  # white, black
    source.write_bytes(png_bytes(bits, 0, 2, 1, row, struct.pack(">H", (1 << bits) - 1)))
    page = read_image(source)
    assert page.alpha is not None
    assert page.alpha.flatten().tolist() == [0, 255]
    assert page.stored(page.samples).flatten().tolist() == [255, 0]


def test_samples_are_rounded_to_the_nearest_and_clamped(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("L", 4, 1)))
    levels = torch.tensor([[[-9.0, 7.49, 7.51, 999.0]]])
    write_unit(tmp_path / "b.png", page, levels.to(torch.float64) / 255)
    assert opened(tmp_path / "b.png").tobytes() == bytes([0, 7, 8, 255])


@given(st.binary(min_size=12, max_size=12))
def test_write_after_read_is_the_identity_for_8_bits(
    tmp_path_factory: pytest.TempPathFactory, samples: bytes
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    image = Image.frombytes("RGB", (2, 2), samples)
    assert opened(rewritten(saved(folder / "a.png", image))).tobytes() == samples


@given(st.binary(min_size=12, max_size=12))
def test_write_after_read_is_the_identity_for_16_bits(
    tmp_path_factory: pytest.TempPathFactory, samples: bytes
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    image = Image.frombytes("I;16", (3, 2), samples)
    assert opened(rewritten(saved(folder / "a.tif", image))).tobytes() == samples


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_every_16_bit_level_survives(suffix: str, tmp_path: Path) -> None:
    levels = struct.pack("<65536H", *range(65536))
    image = Image.frombytes("I;16", (256, 256), levels)
    if suffix == ".pgm":  # Pillow before 11.2 cannot write 16-bit PGM from I;16
        source = tmp_path / "a.pgm"
        source.write_bytes(b"P5 256 256 65535\n" + struct.pack(">65536H", *range(65536)))
    else:
        source = saved(tmp_path / f"a{suffix}", image)
    page = read_image(source)
    assert page.to_unit().shape == (1, 256, 256)
    written = opened(rewritten(source)).convert("I").tobytes()
    assert written == image.convert("I").tobytes()


@pytest.mark.parametrize(
    ("order", "photometric"), [("<", 1), (">", 1), ("<", 0)], ids=["little", "big", "inverted"]
)
def test_16_bit_tiff_of_either_byte_order_and_polarity_is_read_as_it_looks(
    order: str, photometric: int, tmp_path: Path
) -> None:
    samples = struct.pack(f"{order}2H", 0, 65535)
    tags = {258: 16, 262: photometric, 277: 1}
    source = tmp_path / "a.tif"
    source.write_bytes(tiff_bytes(tags, samples, width=2, order=order))
    expected = torch.tensor([[[1.0, 0.0]]]) if photometric == 0 else torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(read_image(source).to_unit(), expected)
    torch.testing.assert_close(read_image(rewritten(source)).to_unit(), expected)


def test_12_bit_jpeg_2000_is_refused(tmp_path: Path) -> None:
    """Pillow would write it with 16 bits, and other values."""
    path = saved(tmp_path / "a.jp2", noise_image("I;16"))
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\x4f\xff\x51") + 42] = 11
    path.write_bytes(content)
    with pytest.raises(ImageError, match="12-bit") as error:
        read_image(path)
    one_line(error, path)


@pytest.mark.parametrize("suffix", [".tif", ".pfm"])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 65535), (-1024, 3071), (1e-30, 3e30), (5, 5)]
)
def test_float_images_of_any_range_round_trip_exactly(
    low: float, high: float, suffix: str, tmp_path: Path
) -> None:
    image = float_image((torch.rand(35) * (high - low) + low).tolist(), 7)
    source = saved(tmp_path / f"a{suffix}", image)
    page = read_image(source)
    assert -0.1 <= page.to_unit().min() <= page.to_unit().max() <= 1.1
    assert opened(rewritten(source)).tobytes() == image.tobytes()


def test_float_results_are_scaled_back_and_not_clamped(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.tif", float_image([100, 300], 2)))
    write_unit(tmp_path / "b.tif", page, torch.tensor([[[0.5, 1.25]]]))
    assert struct.unpack("2f", opened(tmp_path / "b.tif").tobytes()) == (200, 350)


@pytest.mark.parametrize("profile", [None, b"no profile"])
def test_cmyk_is_read_as_rgb_and_says_so(profile: bytes | None, tmp_path: Path) -> None:
    white = Image.new("CMYK", (16, 16))
    page = read_image(saved(tmp_path / "a.jpg", white, icc_profile=profile))
    torch.testing.assert_close(page.to_unit(), torch.ones(1, 16, 16))
    assert page.storage.mode == "RGB"
    assert page.note == "CMYK is written as RGB"
    assert page.metadata.icc_profile is None


def test_lossy_formats_come_back_close(tmp_path: Path) -> None:
    smooth = Image.linear_gradient("L").resize((40, 32)).convert("RGB")
    for suffix in (".jpg", ".webp"):
        options = {"lossless": False} if suffix == ".webp" else {}
        (folder := tmp_path / suffix).mkdir()
        source = saved(folder / f"a{suffix}", smooth, quality=95, **options)
        before, after = read_image(source).to_unit(), read_image(rewritten(source)).to_unit()
        torch.testing.assert_close(after, before, rtol=0, atol=0.04)


# Formats


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.png", ".png"),
        ("a.JPG", ".JPG"),
        ("a.jpeg", ".jpeg"),
        ("a.gif", ".png"),
        ("a.qoi", ".png"),
        ("a.xyz", ".png"),
        ("a", ".png"),
    ],
)
def test_suffix_is_kept_where_the_format_can_be_written(name: str, suffix: str) -> None:
    assert output_suffix(Path(name)) == suffix


def test_suffix_lists_agree() -> None:
    assert WRITABLE_SUFFIXES < READABLE_SUFFIXES
    for suffix in READABLE_SUFFIXES:
        assert output_format(Path("a" + output_suffix(Path("a" + suffix))))


def test_a_bare_jpeg_2000_codestream_stays_one(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.j2k", noise_image("RGB"))
    assert rewritten(source).read_bytes()[:4] == b"\xff\x4f\xff\x51"


def test_gif_becomes_png(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.gif", noise_image("P"))
    page = read_image(source)
    write_unit(tmp_path / "a.png", page, page.to_unit())
    assert opened(tmp_path / "a.png").tobytes() == opened(source).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("mode", "suffix", "remedy"),
    [
        ("RGBA", ".jpg", "a .png or .tif file"),
        ("I;16", ".jpg", "a .png or .tif file"),
        ("I;16", ".webp", "a .png or .tif file"),
        ("F", ".png", "a .tif file"),
        ("LA", ".bmp", "a .png or .tif file"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    mode: str, suffix: str, remedy: str, tmp_path: Path
) -> None:
    page = read_image(saved(tmp_path / "a.tif", noise_image(mode)))
    with pytest.raises(
        ImageError, match=rf"b\{suffix}: .* cannot hold mode {mode}; write {remedy}$"
    ):
        write_unit(tmp_path / f"b{suffix}", page, page.to_unit())
    assert not (tmp_path / f"b{suffix}").exists()


def test_a_wider_mode_takes_what_a_format_lacks(tmp_path: Path) -> None:
    image = noise_image("L")
    page = read_image(saved(tmp_path / "a.png", image))
    write_unit(tmp_path / "b.webp", page, page.to_unit(), quality=100)
    assert opened(tmp_path / "b.webp").mode == "RGB"
    assert read_image(tmp_path / "b.webp").to_unit().shape == (1, 5, 7)  # still gray


def test_an_unknown_output_suffix_is_refused(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("L")))
    with pytest.raises(ImageError, match=r"b\.gif: suffix '\.gif' cannot be written"):
        write_unit(tmp_path / "b.gif", page, page.to_unit())


def test_parents_are_made_and_an_existing_file_is_replaced(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("L")))
    target = tmp_path / "x" / "y" / ("长名字 ü" + "n" * 200 + ".png")
    write_unit(target, page, page.to_unit())
    write_unit(target, page, torch.zeros_like(page.to_unit()))
    assert opened(target).getextrema() == (0, 0)
    assert list(target.parent.iterdir()) == [target]


def test_a_wrong_shape_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    with pytest.raises(ShapeError, match="samples"):
        write_pages(tmp_path / "b.png", [page], [page.samples[:, :, :1]])
    assert not (tmp_path / "b.png").exists()


# Bad files


def one_line(error: pytest.ExceptionInfo[ImageError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", r"is empty \(0 bytes\)"),
        (b"these are not the pixels you are looking for\n" * 20, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        (png_bytes(8, 2, 50_000, 50_000, b""), "too many pixels"),
    ],
    ids=["missing", "empty", "text", "postscript", "bomb"],
)
def test_a_bad_file_is_one_line_that_says_why(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    assert ";" in one_line(error, path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_bytes({258: 32, 262: 1, 277: 1, 339: 1}, bytes(4)), "wide integer"),
        (tiff_bytes({258: 16, 262: 1, 277: 1, 339: 2}, bytes(2)), "signed"),
        (tiff_bytes({258: 8, 262: 1, 277: 1, 339: 2}, bytes(1)), "signed"),
    ],
    ids=["gray32", "signed16", "signed8"],
)
def test_tiff_samples_that_would_lose_bits_are_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    one_line(error, path)


def test_16_bit_colour_of_jpeg_2000_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jp2", noise_image("RGB"))
    content = bytearray(path.read_bytes())
    first = content.index(b"\xff\x4f\xff\x51") + 42
    content[first : first + 9 : 3] = b"\x0f\x0f\x0f"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="16-bit samples in mode RGB"):
        read_image(path)


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="Pillow without AVIF")
def test_10_bit_samples_of_avif_are_told_from_8(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.avif", noise_image("RGB", 16, 16))
    content = path.read_bytes()
    at = content.index(b"av1C") + 6  # tier, high bit depth, twelve bits, monochrome, ...
    deep = content[:at] + bytes([content[at] | 0x40]) + content[at + 1 :]
    with Image.open(path) as image:
        assert sniff(image, io.BytesIO(content)).bits == (8,)
        assert sniff(image, io.BytesIO(deep)).bits == (10,)


def test_dropped_extra_samples_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes({258: (8,) * 4, 262: 2, 277: 4, 338: 0}, b"\xff\0\xff\7"))
    page = read_image(path)
    assert page.to_unit().flatten().tolist() == [1, 0, 1]
    assert "extra samples" in page.note


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_refused_rather_than_dropped(suffix: str, tmp_path: Path) -> None:
    first, *rest = (noise_image("RGB") for _ in range(3))
    path = tmp_path / f"a{suffix}"
    first.save(path, save_all=True, append_images=rest)
    with pytest.raises(ImageError, match="has 3 frames; animations are not supported"):
        read_image(path)


def test_the_first_picture_of_a_phone_jpeg_is_kept_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    first, second = noise_image("RGB", 16, 8), noise_image("RGB", 16, 8)
    first.save(path, format="MPO", save_all=True, append_images=[second])
    page = read_image(path)
    assert page.to_unit().shape == (3, 8, 16)
    assert "multi-picture" in page.note


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp", ".ppm", ".tga"])
def test_a_truncated_file_is_an_error_and_never_filled(suffix: str, tmp_path: Path) -> None:
    whole = saved(tmp_path / f"whole{suffix}", noise_image("RGB", 40, 30)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as error:
            read_image(path)
        one_line(error, path)


def test_a_png_without_its_end_mark_is_truncated(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise_image("RGB"))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


@given(data=st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".tif", ".webp", ".gif", ".tga", ".jp2"]))
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    content = bytearray(saved(path, noise_image("RGB", 9, 9), exif=exif).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        page = read_image(path)
    except ImageError:
        return
    assert isinstance(page, DecodedImage)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", noise_image("L"))

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(io, "open", deny)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: Permission denied") as error:
        read_image(path)
    assert isinstance(error.value.__cause__, PermissionError)


def test_large_files_and_odd_headers_warn_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for suffix in (".png", ".tif"):
        assert read_image(saved(tmp_path / f"a{suffix}", noise_image("L"))).size == (5, 7)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise_image("RGB", 64, 64))
    before = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# Half-written never


@pytest.mark.parametrize("failing", ["os.replace", "os.fsync", "PIL.Image.Image.save"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(
    failing: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("RGB")))

    def fail(*arguments: Any, **_: object) -> None:
        if failing.endswith("save"):
            arguments[1].write(b"half")
        raise failure

    monkeypatch.setattr(failing, fail)
    expected = ImageError if isinstance(failure, OSError) else KeyboardInterrupt
    folder = tmp_path / "out"
    with pytest.raises(expected):
        write_unit(folder / "b.png", page, page.to_unit())
    assert list(folder.iterdir()) == []


def test_a_failed_write_keeps_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    target = tmp_path / "b.png"
    target.write_bytes(b"older")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ImageError, match=r"b\.png: cannot be written: No space left on device;"):
        write_unit(target, page, page.to_unit())
    assert target.read_bytes() == b"older"


def test_a_folder_in_the_way_is_an_image_error(tmp_path: Path) -> None:
    page = read_image(saved(tmp_path / "a.png", noise_image("RGB")))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ImageError, match=r"b\.png: cannot be written: Is a directory"):
        write_unit(tmp_path / "b.png", page, page.to_unit())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_memory_of_a_copy_is_held_until_pillow_has_it() -> None:
    for seed in range(20):  # what is freed too early is seldom overwritten at once
        samples = torch.randint(256, (40, 30, 3), dtype=torch.uint8).transpose(0, 1)
        expected = samples.contiguous().numpy().tobytes()
        assert to_pil(samples).tobytes() == expected, seed
