"""Limits of memory: a file that does not fit fails by name, before it is decoded; others go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image

from denoise_batch import device
from denoise_batch.cli.batch import main

MIB = 1 << 20


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group that leaves 100 MiB, below two others; its file `memory.max` sets more."""
    group = tmp_path / "system/sys/fs/cgroup/batch.slice/job-7"
    group.mkdir(parents=True)
    (tmp_path / "system/proc/self").mkdir(parents=True)
    (tmp_path / "system/proc/self/cgroup").write_text("0::/batch.slice/job-7\n")
    (group / "memory.max").write_text(str(1500 * MIB))
    (group / "memory.current").write_text(str(1400 * MIB))
    monkeypatch.setattr(device, "SYSTEM", tmp_path / "system")
    return group


def bilevel(path: Path) -> None:
    """A small file that is large once it is decoded, as are both its pages if it is TIFF."""
    page = Image.new("1", (5000, 4000) if path.suffix == ".png" else (3600, 3000), 1)
    if path.suffix == ".png":
        page.save(path)
    else:
        page.save(path, save_all=True, append_images=[page], compression="group4")


@pytest.mark.parametrize("name", ["pages.tif", "bilevel.png"])
def test_a_file_that_does_not_fit_fails_by_name_and_the_rest_is_done(
    name: str,
    limited: Path,
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    picture(24, 20, 0).save(folder / "a.png")
    picture(24, 20, 1).save(folder / "z.png")
    bilevel(folder / name)
    assert (folder / name).stat().st_size < MIB
    command = [str(folder), "-w", str(weights), "-d", "cpu", "--log", "json"]
    assert main(command) == 1
    events = map(json.loads, capsys.readouterr().out.splitlines())
    images = {event["name"]: event for event in events if event["event"] == "image"}
    assert {name: event["status"] for name, event in images.items()} == {
        "a.png": "done", name: "failed", "z.png": "done"
    }  # fmt: skip
    reason = images[name]["reason"]
    assert reason.startswith(f"{folder / name}: needs about 0.")
    assert "0.1 GB are free" in reason
    assert ("2 pages, 22 megapixels" if name == "pages.tif" else "20 megapixels") in reason
    (limited / "memory.max").write_text(str(4000 * MIB))
    assert main(command) == 0


SCRIPT = """
import resource, sys
from pathlib import Path
from denoise_batch.cli.batch import main
def pages(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) << 10
code = main(["{small}", "-o", "{out}", *sys.argv[1:]])
assert code == 0, code
limit = pages("VmSize") + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(["{large}", "-o", "{out}", *sys.argv[1:]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_limit_of_the_address_space_is_seen(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    picture(24, 20, 0).save(tmp_path / "small" / "a.png")
    picture(24, 20, 1).save(tmp_path / "large" / "b.png")
    Image.new("1", (9000, 9000), 1).save(tmp_path / "large" / "c.png")
    paths = {name: str(tmp_path / name) for name in ("small", "large", "out")}
    arguments = ["-w", str(weights), "-d", "cpu", "--log", "plain"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(**paths), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "c.png: needs about 0." in done.stderr
    assert (tmp_path / "out" / "b.png").exists()


PEAKS = """
import json, sys
from pathlib import Path
from PIL import Image
from denoise_batch.cli.batch import main
from denoise_batch.files.images import output_format, read_pages
def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) << 10
folder = Path(sys.argv[1])
arguments = ["-o", str(folder / "out"), "--overwrite", "--strength", "0", "-d", "cpu", "--quiet"]
peaks = {}
for path in [folder / "warm.png", *sorted(folder.glob("*.*"))]:
    sizes = []
    class Seen(Exception): pass
    def see(footprint):
        sizes.append(footprint)
        raise Seen
    try:
        read_pages(path, see)
    except Exception:
        pass
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is taken
    before = status("VmRSS")
    assert main([str(path), *arguments]) == 0
    promised = sizes[0].peak_bytes(output_format(path)) - sizes[0].sample_bytes  # no network
    peaks[path.name] = (status("VmHWM") - before, promised)
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_files_take_no_more_memory_than_is_foreseen(tmp_path: Path) -> None:
    def striped(mode: str, size: tuple[int, int] = (3000, 2000)) -> Image.Image:
        """A quarter of noise, the rest of one value; alpha has holes."""
        noise = Image.effect_noise((size[0] // 4, size[1]), 90)
        plane = Image.new("L", size, 255)
        plane.paste(noise, (0, 0))
        if mode in ("RGB", "RGBA"):
            return Image.merge(mode, [plane] * (len(mode) - 1) + [plane.rotate(180)])
        return plane.convert(mode)

    picture(24, 20, 0).save(tmp_path / "warm.png")
    striped("1", (6000, 4000)).save(tmp_path / "1.png")
    for mode, suffix in (("L", "png"), ("RGB", "jpg"), ("RGBA", "png")):
        striped(mode).save(tmp_path / f"{mode}.{suffix}")
    striped("L").convert("F").save(tmp_path / "float.tif")
    page = striped("RGB", (500, 400))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 29)
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    assert len(peaks) == 7
    wrong = {name: pair for name, pair in peaks.items() if pair[0] > 1.15 * pair[1] + 32 * MIB}
    assert wrong == {}
    # 10 bytes a pixel; a test of 169 megapixels had 15.
    assert peaks["1.png"][0] < 10 * 24_000_000
