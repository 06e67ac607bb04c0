"""What a terminal shows during a run, and how far inside an image it is."""

import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from rich.console import Console

from denoise_batch.cli.console import Bars
from denoise_batch.files.scan import Job
from denoise_batch.kernels import Conv2d
from denoise_batch.kernels.work import WORK
from denoise_batch.models import ARCHITECTURES, Network, save_weights
from denoise_batch.options import DenoiseOptions
from denoise_batch.progress import Progress
from denoise_batch.streaming import session
from denoise_batch.streaming.result import Plan, Result, Summary

PLAN = Plan((), (), (), "cpu", "fp32", "weights/unet-level-10.safetensors", "native kernels")


class Steps(Progress[Plan, Result]):
    """Keeps what it is told of the inside of images."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_step(self, name: str, done: int, total: int) -> None:
        self.seen.append((name, done, total))


def steps_of(source: Path, weights: Path, **options: Any) -> list[tuple[str, int, int]]:
    steps = Steps()
    chosen = DenoiseOptions((str(source),), weights=str(weights), device="cpu", **options)
    assert session.denoise(chosen, steps).exit_code == 0
    return steps.seen


def test_tiles_and_layers_tell_how_many_pixels_are_done(tmp_path: Path, weights: Path) -> None:
    picture(33, 21).save(tmp_path / "a.png")
    for options in ({}, {"tta": True}, {"tile": "16"}):
        seen = steps_of(tmp_path / "a.png", weights, overwrite=True, **options)
        pixels = [done for _, done, _ in seen]
        assert {(name, total) for name, _, total in seen} == {("a.png", 693)}
        assert len(seen) >= 4
        assert pixels == sorted(set(pixels))
        assert pixels[-1] == 693


def test_pages_count_together_and_small_images_each(tmp_path: Path, weights: Path) -> None:
    pages = [picture(40, 30), picture(20, 10)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    seen = steps_of(tmp_path / "a.tif", weights)
    assert {total for _, _, total in seen} == {1400}
    assert seen[-1] == ("a.tif", 1400, 1400)
    for index in range(3):
        picture(40, 30).save(tmp_path / f"{index}.png")
    seen = steps_of(tmp_path / "*.png", weights, output=tmp_path / "out")
    assert set(seen) >= {(f"{index}.png", 1200, 1200) for index in range(3)}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_forward_tells_of_all_its_multiply_adds(architecture: str) -> None:
    network = Network(architecture).eval()
    counted: list[int] = []
    input = torch.rand(2, 3, 64, 96)
    with WORK.told(counted.append):
        network.forward_padded(input, torch.zeros(2))
    assert sum(counted) == pytest.approx(network.multiply_adds * 2 * 64 * 96, 0.1)
    known = {"unet": 37e3, "unet-level": 91e3}  # as their documentation says
    if architecture in known:
        assert network.multiply_adds == pytest.approx(known[architecture], 0.03)


def test_a_convolution_tells_of_its_multiply_adds() -> None:
    counted: list[int] = []
    conv = Conv2d(3, 8, 3, padding=1).eval()
    with WORK.told(counted.append):
        conv(torch.rand(2, 3, 5, 7))
    conv(torch.rand(2, 3, 5, 7))
    assert counted == [3 * 8 * 9 * 2 * 5 * 7]


class Terminal:
    """Bars on a terminal of so many columns, with a clock to set."""

    def __init__(self, columns: int) -> None:
        self.now = 0.0
        self.console = Console(file=io.StringIO(), force_terminal=True, width=columns)
        self.bars = Bars(self.console, lambda: self.now)

    def lines(self) -> list[str]:
        with self.console.capture() as shown:
            self.console.print(self.bars.live.get_renderable())
        return re.sub(r"\x1b\[[0-9;]*m", "", shown.get()).splitlines()


def job(name: str) -> Job:
    return Job(Path("in", name), Path("out", name), name, Path("out"))


def start_of(*jobs: Job) -> Plan:
    return Plan(jobs, (), (), PLAN.device, PLAN.precision, PLAN.weights, PLAN.kernels)


@pytest.mark.parametrize("columns", [80, 40, 200])
def test_bars_show_device_weights_image_speed_and_time_left(columns: int) -> None:
    terminal = Terminal(columns)
    bars = terminal.bars
    name = "holidays/" + 20 * "very/" + "large-image.tif"
    bars.on_start(start_of(job(name), job("b.png")))
    bars.live.stop()
    assert terminal.lines()[0].startswith("unet-level-10, fp32 on cpu")
    assert terminal.lines()[1] == "reading"
    terminal.now = 10.0
    bars.on_step(name, 12_000_000, 24_000_000)
    lines = terminal.lines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= columns
    assert lines[1].endswith("denoising, 12.0 of 24.0 MP")
    assert "large-image.tif"[-5:] in lines[1]
    assert " 0/2 " in f" {lines[2].lstrip('━╸╺ ')}"
    # A tenth was reading, half of the next 80 % is done, and another image follows.
    if columns >= 80:
        share = (0.1 + 0.8 / 2) / 2
        assert f"{share:4.0%}  1.2 MP/s  ETA 0:00:{10 / share - 10:.0f}" in lines[2]
    bars.on_step(name, 24_000_000, 24_000_000)
    assert terminal.lines()[1].endswith("writing")
    bars.on_result(Result(job(name), "done", "", (6000, 4000)))
    terminal.now = 20.0
    assert terminal.lines()[1].endswith("done")
    if columns >= 80:
        assert terminal.lines()[2].endswith("1/2   50%  1.2 MP/s  ETA 0:00:20")


def test_bars_come_back_for_what_a_watch_finds_later() -> None:
    bars = Terminal(80).bars
    with bars:
        for _ in range(2):
            bars.on_start(start_of())
            assert bars.live.is_started
            bars.show_summary(Summary((), 0.1, "cpu", "weights", None, 0))
            assert not bars.live.is_started


def on_a_terminal(command: list[str], **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **environment}
    shown = b""
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        end = time.monotonic() + 120
        while time.monotonic() < end and select.select([parent], [], [], 60)[0]:
            try:
                block = os.read(parent, 1 << 16)
            except OSError:  # the other end is closed
                break
            shown += block
        assert process.wait(60) == 0
    os.close(parent)
    return shown.decode()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_terminal_shows_progress_and_a_dumb_one_lines(tmp_path: Path, term: str) -> None:
    save_weights(tmp_path / "w.safetensors", Network("upsample"), {})
    picture(900, 700).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "denoise_batch", str(tmp_path / "a.png"), "-d", "cpu"]
    command += ["-w", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "out")]
    shown = on_a_terminal(command, TERM=term, COLUMNS="80")
    assert ("w, fp32 on cpu: " in shown) == (term != "dumb")
    assert ("ETA" in shown) == (term != "dumb")
    assert ("[1/1] done a.png" in shown) == (term == "dumb")
    assert "1 done; 0.6 MP" in shown
