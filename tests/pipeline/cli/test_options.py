"""What the options of `denoise-batch` do, as seen in files, lines and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_image
from denoise_batch.files.scan import Job
from denoise_batch.kernels import OptionError
from denoise_batch.models import Network, load_weights
from denoise_batch.streaming import session as denoise_module
from denoise_batch.streaming import stream
from denoise_batch.streaming.denoiser import Output
from denoise_batch.streaming.result import Summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/a.png, imgs/sub/b.png."""
    root = tmp_path / "imgs"
    (root / "sub").mkdir(parents=True)
    picture(33, 21, 1).save(root / "a.png")
    picture(40, 30, 2).save(root / "sub" / "b.png")
    return root


def run(*arguments: object, weights: Path) -> int:
    return main([*map(str, arguments), "-w", str(weights), "-d", "cpu"])


def names(folder: Path) -> list[str]:
    paths = (p for p in folder.rglob("*") if p.is_file() and ".denoise-batch" not in p.parts)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_strength_mixes_input_and_output(folder: Path, weights: Path, tmp_path: Path) -> None:
    assert run(folder, "-s", "0.25", "-o", tmp_path / "out", weights=weights) == 0
    before = read_image(folder / "a.png").to_unit()
    network = load_weights(weights).network
    expected = before.lerp(network(before[None])[0], 0.25)
    after = read_image(tmp_path / "out" / "a.png").to_unit()
    torch.testing.assert_close(after, expected, atol=0.51 / 255, rtol=0)


def test_the_ensemble_is_the_mean_of_eight_passes(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = Network.forward_padded, 0

    def counted(self: Network, input: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return forward(self, input)

    monkeypatch.setattr(Network, "forward_padded", counted)
    assert run(folder / "a.png", "--tta", "-o", tmp_path / "out", weights=weights) == 0
    assert passes == 8


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_refused_on_a_processor_before_anything_is_written(
    precision: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "-p", precision, weights=weights) == 2
    error = capsys.readouterr().err
    assert f"--precision {precision} on a processor" in error
    assert "use --precision fp32, or a GPU" in error
    assert not folder.with_name("imgs-denoised").exists()
    assert run(folder, "-p", "auto", "--log", "json", weights=weights) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["precision"] == "fp32"


@pytest.fixture
def has_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is a device that computes in low precision."""
    monkeypatch.setattr(stream, "precision_on", lambda name, device: name)


@pytest.mark.usefixtures("has_low_precision")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_comes_close(
    precision: str, folder: Path, weights: Path, tmp_path: Path
) -> None:
    for name in ("fp32", precision):
        assert run(folder, "-p", name, "-o", tmp_path / name, weights=weights) == 0
    whole = read_image(tmp_path / "fp32" / "a.png").to_unit()
    narrow = read_image(tmp_path / precision / "a.png").to_unit()
    torch.testing.assert_close(narrow, whole, atol=3 / 255, rtol=0)


@pytest.mark.usefixtures("has_low_precision")
def test_what_is_not_finite_in_low_precision_is_made_again_in_float32(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = Network.forward_padded

    def overflowing(self: Network, input: torch.Tensor) -> torch.Tensor:
        output = forward(self, input)
        if self.compute_dtype == torch.float16 and input.shape[2] > 32:
            output[:, :, 5, 5] = float("nan")
        return output

    monkeypatch.setattr(Network, "forward_padded", overflowing)
    assert run(folder, "-p", "fp16", "--log", "json", weights=weights) == 0
    images = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = {e["name"]: e["notes"] for e in images if e["event"] == "image"}
    assert notes["a.png"] == []
    assert "made again in float32" in notes["sub/b.png"][0]
    monkeypatch.undo()
    expected = load_weights(weights).network(read_image(folder / "sub/b.png").to_unit()[None])[0]
    after = read_image(folder.with_name("imgs-denoised") / "sub/b.png").to_unit()
    torch.testing.assert_close(after, expected, atol=0.51 / 255, rtol=0)


@pytest.mark.usefixtures("has_low_precision")
def test_seconds_of_a_page_that_needs_no_second_pass_count_once(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "imgs").mkdir()
    pages = [picture(24, 20), picture(40, 48)]
    pages[0].save(tmp_path / "imgs" / "a.tif", save_all=True, append_images=pages[1:])
    forward, outcome = Network.forward_padded, Output.outcome

    def overflowing(self: Network, input: torch.Tensor) -> torch.Tensor:
        output = forward(self, input)
        if self.compute_dtype == torch.float16 and input.shape[2] > 32:
            output[:, :, 5, 5] = float("nan")
        return output

    def a_second(self: Output) -> tuple[bool, dict[str, float]]:
        return outcome(self)[0], {"compute": 1.0}

    monkeypatch.setattr(Network, "forward_padded", overflowing)
    monkeypatch.setattr(Output, "outcome", a_second)
    assert run(tmp_path / "imgs", "-p", "fp16", "--log", "json", weights=weights) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (image,) = (event for event in events if event["event"] == "image")
    assert image["seconds"]["compute"] == 3  # two pages, and one of them again


def test_format_and_suffix_name_the_outputs(folder: Path, weights: Path, tmp_path: Path) -> None:
    picture(8, 8).save(folder / "a.gif")
    out = tmp_path / "out"
    assert run(folder, "-f", "webp", "--suffix", "_clean", "-o", out, weights=weights) == 0
    # a.gif and a.png want one name: both keep their old suffix in it.
    assert names(out) == ["a.gif_clean.webp", "a.png_clean.webp", "sub/b_clean.webp"]
    with Image.open(out / "sub" / "b_clean.webp") as image:
        assert image.format == "WEBP"


def test_a_suffix_beside_the_input_is_not_fed_back(folder: Path, weights: Path) -> None:
    for _ in range(2):
        assert run(folder / "*.png", "--suffix", "_dn", weights=weights) == 0
    assert names(folder) == ["a.png", "a_dn.png", "sub/b.png"]


def test_what_a_format_cannot_hold_fails_that_file(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(8, 8).convert("RGBA").save(folder / "alpha.png")
    assert run(folder, "-f", "jpeg", "-o", tmp_path / "out", weights=weights) == 1
    assert names(tmp_path / "out") == ["a.jpg", "sub/b.jpg"]
    assert "JPEG cannot hold mode RGBA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strength", "1.5"], "--strength"),
        (["--precision", "int8"], "--precision"),
        (["--tile", "0"], "--tile"),
        (["--tile", "big"], "--tile"),
        (["--format", "gif"], "--format"),
        (["--suffix", "a/b"], "--suffix"),
        (["--shard", "3/2"], "--shard"),
        (["--shard", "2"], "--shard"),
        (["--limit", "0"], "--limit"),
        (["--log", "xml"], "--log"),
        (["--watch", "0"], "--watch"),
        (["--watch", "nan"], "--watch"),
        (["--watch", "inf"], "--watch"),
        (["--watch", "1", "--dry-run"], "--watch"),
        (["--dry-run", "--report", "run.json"], "--report"),
    ],
    ids=" ".join,
)
def test_wrong_values_name_their_option(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not folder.with_name("imgs-denoised").exists()


def test_quiet_says_nothing_but_failures(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--quiet", weights=weights) == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    (folder / "bad.png").write_bytes(b"")
    assert run(folder, "--quiet", weights=weights) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert "bad.png: is empty" in lines[0]
    assert "1 failed" in lines[1]


def test_json_lines_say_everything(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    assert run(folder, "--log", "json", weights=weights) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    start, *images, end = [json.loads(line) for line in captured.out.splitlines()]
    assert (start["event"], start["todo"], start["device"]) == ("start", 3, "cpu")
    by_name = {event["name"]: event for event in images}
    assert by_name["a.png"]["status"] == "done"
    assert (by_name["a.png"]["width"], by_name["a.png"]["height"]) == (33, 21)
    assert by_name["a.png"]["output"].endswith("imgs-denoised/a.png")
    assert set(by_name["a.png"]["seconds"]) == {
        "decode",
        "transfer",
        "compute",
        "encode",
        "measure",
    }
    assert by_name["bad.png"]["status"] == "failed"
    assert "is empty" in by_name["bad.png"]["reason"]
    assert (end["event"], end["done"], end["failed"], end["exit_code"]) == ("end", 2, 1, 1)


def test_json_lines_and_the_report_give_an_image_the_same_form(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    report = folder.parent / "report.json"
    assert run(folder, "--log", "json", "--report", report, weights=weights) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    images = {e.pop("name"): e for e in events if e.pop("event") == "image" and e.pop("time")}
    reported = {image.pop("name"): image for image in json.loads(report.read_text())["images"]}
    assert images == reported


def test_without_a_terminal_there_is_a_plain_line_for_every_image(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, weights=weights) == 0
    err = capsys.readouterr().err
    assert "2 to denoise" in err
    assert "done a.png 33x21" in err
    assert "\x1b" not in err


def test_watching_takes_what_comes_whole_and_ends_with_143(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.with_name("imgs-denoised")
    growing = folder / "growing.png"

    def drop_files() -> None:
        deadline = time.monotonic() + 60
        while len(names(output)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        picture(12, 12, 3).save(folder / "late.png")
        while not (output / "late.png").exists() and time.monotonic() < deadline:
            with growing.open("ab") as file:
                file.write(b"x")  # never the same twice
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=drop_files)
    output.mkdir()
    helper.start()
    code = run(folder, "--watch", "0.3", "--quiet", weights=weights)
    helper.join()
    assert code == 143
    assert names(output) == ["a.png", "late.png", "sub/b.png"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_file_whose_output_moves_is_written_there_too(tmp_path: Path, weights: Path) -> None:
    """x.gif is x.png in the output until a real x.png comes; then it is x.gif.png."""
    drop, output = tmp_path / "drop", tmp_path / "done"
    drop.mkdir()
    picture(20, 12).convert("P").save(drop / "x.gif")

    def sizes() -> dict[str, tuple[int, int]]:
        found = {}
        for path in output.glob("*.png"):
            with Image.open(path) as image:
                found[path.name] = image.size
        return found

    def drop_files() -> None:
        deadline = time.monotonic() + 60
        for expected in ({"x.png": (20, 12)}, {"x.png": (16, 16), "x.gif.png": (20, 12)}):
            while sizes() != expected and time.monotonic() < deadline:
                time.sleep(0.02)
            picture(16, 16).save(drop / "x.png")
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=drop_files)
    helper.start()
    assert run(drop, "-o", output, "--watch", "0.1", "--quiet", weights=weights) == 143
    helper.join()
    assert sizes() == {"x.png": (16, 16), "x.gif.png": (20, 12)}


@pytest.mark.parametrize("trouble", ["locked", "listing"])
def test_a_watch_outlives_what_passes(
    trouble: str,
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another run holds the output, or the folder cannot be listed, for a while."""
    looks, jobs, run_jobs = 0, denoise_module.Session.jobs, denoise_module.Session.run

    def failing_jobs(session: denoise_module.Session) -> list[Job]:
        nonlocal looks
        looks += 1
        if trouble == "listing" and looks in (2, 3):
            raise OptionError("drop: in trouble")
        return jobs(session)

    def failing_run(session: denoise_module.Session, *args: Any) -> Summary:
        if trouble == "locked" and looks in (2, 3):
            raise OptionError("drop: in trouble")
        summary = run_jobs(session, *args)
        signal.raise_signal(signal.SIGTERM)
        return summary

    monkeypatch.setattr(denoise_module.Session, "jobs", failing_jobs)
    monkeypatch.setattr(denoise_module.Session, "run", failing_run)
    assert run(folder, "--watch", "0.1", "--log", "json", weights=weights) == 143
    assert names(folder.with_name("imgs-denoised")) == ["a.png", "sub/b.png"]
    captured = capsys.readouterr()
    assert captured.err == "error: drop: in trouble; trying again\n"  # once
    assert all(json.loads(line) for line in captured.out.splitlines())


def test_an_empty_drop_folder_is_no_error(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "drop").mkdir()
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    assert run(tmp_path / "drop", "--watch", "0.1", weights=weights) == 130


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 130),
    ],
    ids=["term-term", "int-term", "term-int"],
)
def test_a_second_signal_ends_the_run_at_once_with_its_own_code(
    folder: Path,
    weights: Path,
    first: int,
    second: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*args: object) -> None:
        signal.raise_signal(first)
        signal.raise_signal(second)

    monkeypatch.setattr(denoise_module.Session, "run", interrupted)
    assert run(folder, weights=weights) == code
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_dry_run_without_a_plan(
    folder: Path,
    weights: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = denoise_module.Session.jobs

    def interrupted(session: denoise_module.Session) -> list[Job]:
        signal.raise_signal(number)
        return jobs(session)

    monkeypatch.setattr(denoise_module.Session, "jobs", interrupted)
    assert run(folder, "--dry-run", weights=weights) == 128 + number
    assert capsys.readouterr().out == ""


def test_sigterm_finishes_files_in_flight(weights: Path, tmp_path: Path) -> None:
    """The console script as a process of its own: whole files only, and the rest left for later."""
    (tmp_path / "imgs").mkdir()
    picture(160, 120, 0).save(tmp_path / "imgs" / "0.png", compress_level=1)
    for index in range(1, 600):
        shutil.copyfile(tmp_path / "imgs" / "0.png", tmp_path / "imgs" / f"{index}.png")
    command = [sys.executable, "-m", "denoise_batch", str(tmp_path / "imgs"), "-b", "1"]
    command += ["--weights", str(weights), "--device", "cpu", "--log", "json"]
    with (
        (tmp_path / "stderr").open("w+") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        lines += process.stdout  # not communicate(), which loses what was read ahead
        assert process.wait(60) == 143, (tmp_path / "stderr").read_text()
    events = [json.loads(line) for line in lines]
    assert events[-1]["signal"] == signal.SIGTERM
    written = names(tmp_path / "imgs-denoised")
    assert sorted(e["name"] for e in events if e["event"] == "image") == written
    assert 0 < len(written) < 600
    assert events[-1]["left"] == 600 - len(written)


def test_png_levels_change_bytes_and_no_pixel(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in (0, 2, 9):
        arguments = ["--strength", 0, "--png-level", level]
        assert run(folder, *arguments, "-o", tmp_path / str(level), weights=weights) == 0
    sizes = [(tmp_path / name / "a.png").stat().st_size for name in "029"]
    assert sizes[0] > sizes[1] >= sizes[2]
    images = [Image.open(tmp_path / name / "a.png").tobytes() for name in "029"]
    assert images[0] == images[1] == images[2]
    assert run(folder, "--png-level", 9, "-o", tmp_path / "2", weights=weights) == 0
    capsys.readouterr()
    assert run(folder, "--png-level", 10, weights=weights) == 2
    assert "--png-level 10: from 0 to 9" in capsys.readouterr().err


def test_workers_are_threads_and_by_default_as_many_as_cores_beside_a_gpu(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    assert run(folder, "--workers", 5, weights=weights) == 0
    assert started.count("reader") == 5
    assert run(folder, "--workers", 0, weights=weights) == 2
    assert "--workers 0: must be at least 1" in capsys.readouterr().err
    monkeypatch.setattr(stream, "cores", lambda: 32)
    on_gpu = SimpleNamespace(is_asynchronous=True, device=torch.device("cuda"))
    assert stream.worker_threads(on_gpu) == 32
