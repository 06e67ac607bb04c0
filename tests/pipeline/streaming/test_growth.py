"""Hundreds of thousands of files: what a look costs, and what the manifest takes."""

import gc
import os
import time
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from denoise_batch.files.scan import FileStat
from denoise_batch.options import DenoiseOptions
from denoise_batch.progress import Progress, Stop
from denoise_batch.streaming import session as session_module
from denoise_batch.streaming.manifest import FOLDER, Entry, Manifest
from denoise_batch.streaming.session import Session
from denoise_batch.streaming.watch import watch

HEX = "0123456789abcdef" * 4


def entry(name: str, index: int, output: FileStat, source: FileStat, run: tuple[str, str]) -> Entry:
    digest = f"{index:064x}"
    return Entry(name, output, digest, source, digest, *run, f"/data/scans/{name}", "ab" * 46)


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_an_entry_takes_at_most_a_kilobyte(count: int, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    with (tmp_path / FOLDER / "manifest.jsonl").open("w") as file:
        for index in range(count):
            stamp = FileStat(
                12_345_678, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789, index
            )
            name = f"2026-11-28/camera-{index % 7}/IMG_{index:06}.tif"
            file.write(entry(name, index, stamp, stamp, (HEX, HEX[:16])).to_json() + "\n")
    gc.collect()
    tracemalloc.start()
    manifest = Manifest(tmp_path)
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{now / count:.0f} bytes an entry, {most / count:.0f} at most")
    assert len(manifest.names()) == count
    assert now < 800 * count
    assert most < 1_000 * count


@pytest.fixture
def done(tmp_path: Path, weights: Path) -> Session:
    return all_done(300, tmp_path, weights)


def all_done(count: int, tmp_path: Path, weights: Path) -> Session:
    """A session over files that are done; they are no pictures, so that reading them shows."""
    imgs, out = tmp_path / "imgs", tmp_path / "out"
    options = DenoiseOptions((str(imgs),), output=out, weights=str(weights), device="cpu")
    session = Session(options)
    lines = []
    for index in range(count):
        name = f"day{index % 3}/{index:03}.png"
        for root in (imgs, out):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"no picture")
        stats = FileStat.of(out / name), FileStat.of(imgs / name)
        item = entry(name, index, *stats, session.engine.digests)
        lines.append(item._replace(source=str(imgs / name)).to_json() + "\n")
    (out / FOLDER).mkdir()
    (out / FOLDER / "manifest.jsonl").write_text("".join(lines))
    return session


def test_a_look_at_what_is_done_costs_a_stat_a_file(
    done: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    looks: list[Counter[str]] = []
    stop, look = Stop(), Session.look

    def counted_look(session: Session) -> Any:
        looks.append(Counter(calls))
        if len(looks) == 8:
            stop.set(15)
        if len(looks) == 6:
            (tmp_path / "imgs" / "day0" / "new.png").write_bytes(b"no picture")
        return look(session)

    def counting(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setattr(Session, "look", counted_look)
    for name in ("stat", "lstat", "open", "scandir"):
        counting(os, name)
    counting(session_module, "scan")
    rounds: list[int] = []
    watch(done, 0.001, Progress(), stop, lambda summary: rounds.append(len(summary.results)))
    # The first look finds them, the second finds that they have not changed and are done.
    assert rounds[0] == 300
    idle = [looks[number + 1] - looks[number] for number in (3, 4)]
    for cost in idle:
        assert cost["scandir"] == 4
        assert cost["stat"] + cost["lstat"] + cost["open"] < 30  # of the folders; 300 are entries'
        assert cost["scan"] == 0
    # What is new is one file's work, and the manifest is not read again for it.
    new = looks[7] - looks[5]
    assert rounds[1:] == [1]
    assert new["scan"] == 1


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_look_at_100_000_done_files_takes_less_than_a_second(
    count: int, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = all_done(count, tmp_path, weights)
    began: list[float] = []  # each look, in seconds of this processor
    stop, look = Stop(), Session.look

    def timed(session: Session) -> Any:
        began.append(time.process_time())
        if len(began) == 7:
            stop.set(15)
        return look(session)

    monkeypatch.setattr(Session, "look", timed)
    rounds: list[int] = []
    watch(session, 0.001, Progress(), stop, lambda summary: rounds.append(len(summary.results)))
    assert rounds == [count]
    seconds = [after - before for before, after in pairwise(began)]
    print(f"{count} files: {seconds[1]:.2f} s to plan, then {max(seconds[2:]):.3f} s a look")
    assert min(seconds[2:]) < max(1.0 * count / 100_000, 0.05)
