"""The terminal table: readable at every width, short for long folders, with right totals."""

import io
from pathlib import Path

import pytest
from report_runs import SECONDS, quality_of, summary_of
from rich.cells import cell_len
from rich.console import Console

from denoise_batch.cli.console import print_summary, ranked, shortened
from denoise_batch.files.scan import Job
from denoise_batch.quality import Quality
from denoise_batch.streaming.result import Result


def result(name: str, quality: Quality | None, status: str = "done", reason: str = "") -> Result:
    job = Job(Path("in", name), Path("out", name), name, Path("out"))
    size = (768, 512) if status == "done" else None
    seconds = SECONDS if status == "done" else {}
    return Result(job, status, reason, size, seconds=seconds, quality=quality)  # type: ignore[arg-type]


def shown(results: list[Result], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(summary_of(results), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


RESULTS = [result(f"holiday/some folder/image {n}.png", quality_of(n)) for n in range(3)]


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 70, 80, 100, 120, 200])
def test_no_value_is_cut_and_no_row_is_too_long(width: int) -> None:
    text = shown(RESULTS, width)
    table = text[: text.index("decode")]
    assert all(cell_len(line.rstrip()) <= width for line in table.splitlines())
    rows = [line for line in table.splitlines() if ".png" in line or "mean of" in line]
    assert len(rows) == 4
    for row in rows:
        values = row.split("png" if "png" in row else "mean of 3")[1]
        assert "…" not in values
        assert "+10.00" in values
    if width >= 40:
        assert "30.00" in table
    if width >= 80:
        assert "σ in" in table
        assert "20.00" in table
    if width >= 100:
        assert "768×512" in table
        assert "0.10 s" in table


def test_totals_speed_and_stages_are_one_line_each() -> None:
    lines = shown(RESULTS, 80).splitlines()
    assert "3 done; 1.2 MP in 2.0 s, 0.6 MP/s, 1.5 images/s on cpu" in lines
    assert "decode 10% · transfer 0% · compute 60% · encode 20% · measure 10%" in lines
    mean = next(line for line in lines if "mean of 3" in line)
    assert "19.90" in mean
    assert "29.90" in mean


def test_a_long_folder_shows_worst_best_and_failures() -> None:
    many = [result(f"{n:04}.png", quality_of(n % 100)) for n in range(1988)]
    many += [result(f"bad{n}.png", None, "failed", f"bad{n}.png: damaged") for n in range(12)]
    text = shown(many, 90)
    assert "worst 10 of 1988" in text
    assert "best 10" in text
    assert "10 of 12 failed" in text
    table = text[: text.index("failed bad0.png")]
    assert table.count(".png") == 30
    assert text.count("failed bad") == 12  # each with its reason
    assert "1988 done, 12 failed" in text


def test_estimates_are_marked_and_missing_ones_explained() -> None:
    reason = "the noise is not white, which an estimate needs"
    results = [
        result("a.png", Quality(25.0, 1.0, 20.2, 31.0, "estimate")),
        result("b.png", Quality(12.0, 3.0, reason=reason)),
        result("c.png", Quality(2.0, 1.0, reason="too little noise to estimate it (σ̂ 2.0)")),
        result("d.png", Quality(3.0, 1.0, reason="too little noise to estimate it (σ̂ 3.0)")),
    ]
    text = shown(results, 100)
    assert text.count("est.") == 3  # two headings and their explanation
    assert f"no PSNR for 1 image: {reason}" in text
    assert "no PSNR for 2 images: too little noise" in text
    assert "mean of 1" in text


def test_skipped_images_are_counted_but_not_listed() -> None:
    old = [result(f"{n}.png", None, "skipped", "up to date") for n in range(5)]
    assert "3.png" not in shown([*RESULTS, *old], 80)
    assert "3 done, 5 skipped" in shown([*RESULTS, *old], 80)
    nothing_new = shown(old, 80)
    assert nothing_new.startswith("0 done, 5 skipped (--overwrite denoises them again)")


def test_markup_in_names_is_escaped() -> None:
    text = shown([result("[red]x[/red].png", quality_of(0))], 80)
    assert "[red]x[/red].png" in text


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [("a/b.png", 9, "a/b.png"), ("long/folder/b.png", 8, "…r/b.png"), ("図図図.png", 7, "…図.png")],
)
def test_long_names_keep_their_end(name: str, cells: int, expected: str) -> None:
    assert shortened(name, cells) == expected


def test_ranked_puts_the_worst_first() -> None:
    results = [
        result("none.png", None),
        result("good.png", Quality(20.0, 1.0, 20.0, 35.0, "reference")),
        result("sigma.png", Quality(40.0, 1.0)),
        result("bad.png", Quality(20.0, 1.0, 20.0, 25.0, "reference")),
        result("failed.png", None, "failed", "why"),
    ]
    names = [r.job.name for r in ranked(results)]
    assert names == ["bad.png", "good.png", "sigma.png", "none.png"]
