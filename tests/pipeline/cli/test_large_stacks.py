"""Stacks that memory does not hold: their pages are on disk, and the output is the same file."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files import tiff_tags
from denoise_batch.files.footprint import Footprint, PageSize
from denoise_batch.files.scratch import Scratch
from denoise_batch.kernels import ImageError
from denoise_batch.options import DenoiseOptions
from denoise_batch.progress import Progress, Stop
from denoise_batch.streaming import large
from denoise_batch.streaming.manifest import FOLDER
from denoise_batch.streaming.result import Summary
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.watch import watch

MIB = 1 << 20
NOISE = np.random.default_rng(0)


def noisy(height: int, width: int, dtype: str, low: float = 1000, high: float = 5000) -> Any:
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / 9) * np.cos(columns / 7) / 2 + 0.5 + NOISE.normal(0, 0.1, (height, width))
    return (low + (high - low) * wave.clip(0, 1)).astype(dtype)


def microscope(path: Path) -> None:
    """Gray of 16 bits with hot pixels, saturation and a dark page; pages of two sizes."""
    pages = [noisy(41, 37, "u2"), noisy(30, 52, "u2"), noisy(41, 37, "u2", 1000, 1200)]
    pages[0][3, 4], pages[1][20, 30] = 65535, 65535
    with tifffile.TiffWriter(path) as tiff:
        for number, page in enumerate(pages):
            tiff.write(page, compression="zlib" if number else None, description=f"page {number}",
                       metadata=None)  # fmt: skip


def floats(path: Path) -> None:
    """Holes, infinities and collars of −9999, too many for the sample that stands for all."""
    pages = [noisy(400, 500, "f4", 0.2, 0.4) for _ in range(3)]
    pages[0][:90, :80], pages[1][5:9, 7], pages[2][17, 11] = -9999, np.nan, np.inf
    tifffile.imwrite(path, np.stack(pages), photometric="minisblack", metadata=None)


def colours(path: Path) -> None:
    """Gray in RGB, then colours, then holes under alpha 0, then black and white."""
    gray = picture(40, 30, 0).convert("L").convert("RGB")
    clear = picture(33, 21, 2).convert("RGBA")
    clear.putalpha(clear.getchannel("R").point(lambda value: 255 * (value > 90)))
    others = [picture(25, 20, 1), clear, picture(31, 9, 3).convert("L").convert("1")]
    gray.save(path, save_all=True, append_images=others, compression="tiff_lzw")


def wide_colours(path: Path) -> None:
    tifffile.imwrite(path, np.stack([np.stack([noisy(30, 40, "u2")] * 3, 2)] * 3), metadata=None,
                     photometric="rgb", compression="zlib")  # fmt: skip


def image_j(path: Path) -> None:
    """One directory for all planes."""
    description = "ImageJ=1.54f\nimages=4\nframes=4\nmin=900.0\nmax=5200.0\n"
    planes = [noisy(24, 31, "<u2") for _ in range(4)]
    tifffile.imwrite(path, planes[0], description=description, metadata=None)
    with path.open("ab") as file:
        file.write(b"".join(plane.tobytes() for plane in planes[1:]))


def masks(path: Path) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for seed in range(2):
            tiff.write(np.asarray(picture(40, 30, seed)), photometric="rgb", metadata=None)
            mask = (NOISE.random((30, 40)) > 0.5).astype("u1") * 200
            tiff.write(mask, subfiletype=1, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for page in tiff.pages[1::2]:
            page.aspage().tags[254].overwrite(4)


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(2):
            page = noisy(32, 48, "u2")
            tiff.write(page, subifds=1, metadata=None)
            tiff.write(page[::2, ::2], subfiletype=1, metadata=None)


def white_noise(path: Path) -> None:
    """Large enough for an estimate of the error, which the network is probed for."""
    smooth = np.add.outer(np.linspace(60, 180, 384), np.linspace(0, 20, 352))
    pages = [(smooth + NOISE.normal(0, 20, smooth.shape)).clip(0, 255) for _ in range(2)]
    tifffile.imwrite(path, np.stack(pages).astype("u1"), metadata=None)


KINDS = [
    microscope, floats, colours, wide_colours, image_j, masks, pyramid, white_noise
]  # fmt: skip


class Said(NamedTuple):
    """What a run wrote and told."""

    code: int
    files: dict[str, bytes]
    events: dict[str, Any]


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Denoise a folder into another, and return what came out."""

    def run(folder: Path, out: Path, *arguments: str) -> Said:
        capsys.readouterr()
        options = ["-o", str(out), "-w", str(weights), "-d", "cpu", "--log", "json"]
        code = main([str(folder), *options, *arguments])
        events = map(json.loads, capsys.readouterr().out.splitlines())
        images = {event.pop("name"): event for event in events if event["event"] == "image"}
        for event in images.values():
            event["reason"] = str(event.get("reason")).replace(str(out), "OUT")
            for key in ("seconds", "time", "output"):
                event.pop(key, None)
        return Said(code, {path.name: path.read_bytes() for path in out.glob("[!.]*.*")}, images)

    return run


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Every file of several pages is large; the folders of the scratch files that were made."""
    folders: list[Path] = []

    class Noted(Scratch):
        def __init__(self, folder: Path, *arguments: Any) -> None:
            super().__init__(folder, *arguments)
            folders.append(folder)

    monkeypatch.setattr(large, "LARGE", 1 << 60)
    monkeypatch.setattr(large, "Scratch", Noted)
    yield folders
    for folder in folders:
        assert [path.name for path in folder.iterdir() if path.name.startswith(".pages.")] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_pages_on_disk_become_the_same_file(
    kind: Callable[[Path], None],
    run: Callable[..., Said],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    kind(folder / "a.tif")
    shutil.copytree(folder, tmp_path / "clean")
    arguments = ["--reference", str(tmp_path / "clean")] * (kind is not white_noise)
    expected = run(folder, tmp_path / "memory", *arguments)
    scratch = request.getfixturevalue("on_disk")
    assert run(folder, tmp_path / "disk", *arguments) == expected
    assert scratch == [tmp_path / "disk" / FOLDER]
    assert expected.code == 0
    assert expected.files["a.tif"]
    event = expected.events["a.tif"]
    assert event["pages"] > 1
    assert event["psnr_basis"] == ("estimate" if kind is white_noise else "reference")


def test_finished_stacks_are_shown_from_disk(
    weights: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    microscope(folder / "a.tif")
    command = [str(folder), "-w", str(weights), "-d", "cpu", "--quiet"]
    assert main(command) == 0
    reports = []
    for name in ("memory.html", "disk.html"):
        assert main([*command, "--report", str(tmp_path / name)]) == 0
        text = (tmp_path / name).read_text()
        reports.append(re.sub(r"\d\d:\d\d:\d\d UTC", "", text))
        if name == "memory.html":
            scratch = request.getfixturevalue("on_disk")
    assert reports[0] == reports[1]
    assert scratch.count(folder.with_name("imgs-denoised")) == 2  # input and output


def test_a_stop_ends_the_reading_of_a_stack(
    on_disk: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    microscope(tmp_path / "a.tif")
    put, stop, puts = Scratch.put, Stop(), []

    def stopping(self: Scratch, *arguments: Any) -> Any:
        puts.append(put(self, *arguments))
        stop.set(signal.SIGTERM)
        return puts[-1]

    monkeypatch.setattr(Scratch, "put", stopping)
    options = DenoiseOptions((str(tmp_path / "a.tif"),), weights=str(weights), device="cpu")
    with Session(options) as session:
        summary = session.run(session.jobs(), stop=stop)
    assert (summary.signal, summary.results, summary.left) == (signal.SIGTERM, (), 1)
    assert (len(puts), len(on_disk)) == (1, 1)


def test_a_large_file_with_odd_tags_is_copied_to_disk(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    tags = [(341, "H", 1, 5200, False)]  # libtiff reads no compressed page that has it
    tifffile.imwrite(folder / "a.tif", noisy(40, 30, "u2"), compression="zlib", extratags=tags)
    expected = run(folder, tmp_path / "memory")
    monkeypatch.setattr(tiff_tags, "_MOST_IN_MEMORY", 0)
    assert run(folder, tmp_path / "disk") == expected
    assert expected.code == 0


CHILD = """
import json, os, resource, signal, sys
from pathlib import Path
from denoise_batch.cli.batch import main
from denoise_batch.files.scratch import Scratch
from denoise_batch.streaming import large
def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) << 10
small, stack, out, limit, most_puts = sys.argv[1:6]
arguments = ["-o", out, *sys.argv[6:]]
assert main([small, *arguments]) == 0
if int(limit):
    most = status("VmSize") + int(limit)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
else:
    large.LARGE = 1 << 60
put, puts = Scratch.put, []
def counted(*put_arguments):
    puts.append(put(*put_arguments))
    if len(puts) == int(most_puts):
        os.kill(os.getpid(), signal.SIGKILL)
    return puts[-1]
Scratch.put = counted
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is taken
before = status("VmRSS")
code = main([stack, *arguments])
print(json.dumps([code, len(puts), status("VmHWM") - before]))
"""


def child(tmp_path: Path, limit: int, most_puts: int, *arguments: str) -> Any:
    """Run one small picture, then `stack.tif`, in a process of its own."""
    picture(24, 20, 0).save(tmp_path / "small.png")
    files = [str(tmp_path / name) for name in ("small.png", "stack.tif", "out")]
    return subprocess.run(
        [sys.executable, "-c", CHILD, *files, str(limit), str(most_puts), "-w", "tconv", "-d",
         "cpu", "--quiet", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # each takes address space
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_stack_larger_than_the_address_space_is_denoised(tmp_path: Path) -> None:
    count, height, width = 120, 600, 800
    page = noisy(height, width, "u2")
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for number in range(count):
            tiff.write(page + number, metadata=None, contiguous=False)
    size, limit = count * page.nbytes, 105 * MIB
    assert size > limit
    done = child(tmp_path, limit, 0, "--strength", "0", "--no-measure", "--no-provenance")
    assert done.returncode == 0, done.stderr
    code, puts, peak = json.loads(done.stdout)
    assert code == 0, done.stderr
    assert puts > 2.9 * count  # as read, prepared, denoised
    assert peak < size // 3, f"{peak / MIB:.0f} of {size / MIB:.0f} MiB"
    with tifffile.TiffFile(tmp_path / "out" / "stack.tif") as tiff:
        assert len(tiff.pages) == count
        for number in (0, count // 2, count - 1):
            assert np.array_equal(tiff.pages[number].asarray(), page + number)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("most_puts", [2, 5, 8])  # as they are read, prepared, denoised
def test_a_run_killed_with_pages_on_disk_leaves_nothing(most_puts: int, tmp_path: Path) -> None:
    microscope(tmp_path / "stack.tif")
    done = child(tmp_path, 0, most_puts)
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = tmp_path / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    kept = {"small.png", f"{FOLDER}/lock", f"{FOLDER}/manifest.jsonl"}
    assert names - {f"{FOLDER}/speed.json"} == kept
    assert main([str(tmp_path / "stack.tif"), "-o", str(out), "-w", "tconv", "--quiet"]) == 0
    assert (out / "stack.tif").exists()


def test_too_little_disk_is_told_before_anything_is_decoded(
    on_disk: list[Path], run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    microscope(folder / "a.tif")
    picture(24, 20, 0).save(folder / "b.png")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    said = run(folder, tmp_path / "out")
    assert said.code == 1
    assert said.events["b.png"]["status"] == "done"
    reason = said.events["a.tif"]["reason"]
    assert reason.startswith(f"{folder / 'a.tif'}: needs about ")
    assert "GB of disk (3 pages, 0 megapixels), 1e-06 GB are free in OUT" in reason
    assert on_disk == []


def test_what_a_file_system_keeps_in_memory_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or not large.is_memory(shared):
        pytest.skip("no tmpfs here")
    monkeypatch.setattr(large, "available_host_bytes", lambda: 1000)
    footprint = Footprint([PageSize(100, 1, 2)] * 9)
    with pytest.raises(ImageError, match="1e-06 GB are free in /dev/shm"):
        large.scratch_for(shared, footprint, 1800)
    assert not large.is_memory(Path("/proc"))


def test_a_watch_tries_again_what_had_too_little_disk(
    on_disk: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imgs").mkdir()
    microscope(tmp_path / "imgs" / "a.tif")
    usage, stop = shutil.disk_usage(tmp_path), Stop()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    statuses: list[str] = []

    def on_round(summary: Summary) -> None:
        statuses.extend(result.status for result in summary.results)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        if summary.exit_code == 0:
            stop.set(signal.SIGTERM)

    end = threading.Timer(60, stop.set, [signal.SIGTERM])
    end.start()
    options = DenoiseOptions((str(tmp_path / "imgs"),), weights=str(weights), device="cpu")
    with Session(options) as session:
        watch(session, 0.01, Progress(), stop, on_round)
    end.cancel()
    assert statuses == ["failed", "done"]
    assert len(on_disk) == 1


@pytest.mark.parametrize("most_puts", [2, 5, 8])
def test_a_full_disk_fails_the_stack_by_name_and_the_rest_is_done(
    most_puts: int,
    on_disk: list[Path],
    run: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    microscope(folder / "a.tif")
    picture(24, 20, 0).save(folder / "b.png")
    put, puts = Scratch.put, []

    def full(self: Scratch, *arguments: Any) -> Any:
        puts.append(self)
        if len(puts) == most_puts:
            with self._failures():
                raise OSError(28, os.strerror(28))
        return put(self, *arguments)

    monkeypatch.setattr(Scratch, "put", full)
    said = run(folder, tmp_path / "out", "--batch-size", "1")
    puts.clear()
    assert said.code == 1
    assert said.events["b.png"]["status"] == "done"
    assert said.events["a.tif"]["reason"] == (
        f"{folder / 'a.tif'}: its pages cannot be kept in OUT/{FOLDER}: No space left on device; "
        "make room there, or choose another --output"
    )
    assert "a.tif" not in said.files
    assert on_disk == [tmp_path / "out" / FOLDER]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("when", ["reading", "computing"])
def test_a_stack_that_fails_gives_its_room_back_and_takes_no_other_along(
    when: str,
    on_disk: list[Path],
    run: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages of one size, so that those of both stacks could share a batch."""
    folder = tmp_path / "imgs"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, np.stack([noisy(41, 37, "u2") for _ in range(6)]))
    make, get, put = Scratch.__init__, Scratch.get, Scratch.put
    made: list[Scratch] = []
    begun: list[int] = []  # files of pages that are open when a new one is made
    calls: list[Scratch] = []

    def watched(self: Scratch, *arguments: Any) -> None:
        opened = Path("/proc/self/fd").iterdir()
        names = [str(path.readlink()) for path in opened if path.is_symlink()]
        begun.append(sum("(deleted)" in name and FOLDER in name for name in names))
        made.append(self)
        make(self, *arguments)

    def fail(self: Scratch) -> None:
        calls.append(self)
        if self is made[0] and len(calls) == 4:
            with self._failures():
                raise OSError(5, os.strerror(5))

    def failing_get(self: Scratch, *arguments: Any) -> Any:
        if when == "computing":
            fail(self)
        return get(self, *arguments)

    def failing_put(self: Scratch, *arguments: Any) -> Any:
        if when == "reading":
            fail(self)
        return put(self, *arguments)

    monkeypatch.setattr(Scratch, "__init__", watched)
    monkeypatch.setattr(Scratch, "get", failing_get)
    monkeypatch.setattr(Scratch, "put", failing_put)
    said = run(folder, tmp_path / "out", "--batch-size", "4", "--workers", "2")
    assert said.code == 1
    assert begun == [0, 0]
    status = sorted(said.events[name]["status"] for name in ("a.tif", "b.tif"))
    assert status == ["done", "failed"]
    failed = next(name for name in said.events if said.events[name]["status"] == "failed")
    assert "Input/output error" in said.events[failed]["reason"]


def test_a_folder_of_state_that_is_gone_is_made_again(
    on_disk: list[Path], run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    microscope(folder / "a.tif")
    make = Scratch.__init__

    def after_cleaning(self: Scratch, folder: Path, *arguments: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        make(self, folder, *arguments)

    monkeypatch.setattr(Scratch, "__init__", after_cleaning)
    assert run(folder, tmp_path / "out").events["a.tif"]["status"] == "done"


@pytest.mark.parametrize("kind", [microscope, colours, masks, wide_colours])
def test_an_output_beyond_4_gb_is_a_big_tiff(
    kind: Callable[[Path], None],
    run: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    kind(folder / "a.tif")
    expected = run(folder, tmp_path / "classic", "--strength", "0")
    monkeypatch.setattr(tiff_tags, "_CLASSIC_LIMIT", len(expected.files["a.tif"]) * 6 // 10)
    said = run(folder, tmp_path / "big", "--strength", "0")
    assert said.code == 0
    assert said.events == expected.events
    files = [tmp_path / name / "a.tif" for name in ("classic", "big")]
    with tifffile.TiffFile(files[0]) as classic, tifffile.TiffFile(files[1]) as big:
        assert big.is_bigtiff
        assert not classic.is_bigtiff
        assert len(big.pages) == len(classic.pages)
        for old, new in zip(classic.pages, big.pages, strict=True):
            assert np.array_equal(old.asarray(), new.asarray())
            places = {254, 273, 279, 324, 325}
            tags = [
                {tag.code: tag.value for tag in page.aspage().tags if tag.code not in places}
                for page in (old, new)
            ]
            assert tags[0] == tags[1]
        with Image.open(files[1]) as image:
            assert getattr(image, "n_frames", 1) == len(classic.pages)
