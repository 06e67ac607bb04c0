"""A hand-made finished run: tests of reports need no network."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image
from report_runs import AWKWARD, SECONDS, quality_of, summary_of

from denoise_batch.files.scan import Job
from denoise_batch.options import DenoiseOptions
from denoise_batch.quality import Quality
from denoise_batch.reports.report import Report, make_report
from denoise_batch.streaming.result import Result


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Report]:
    """Return a function that makes a run of `done` 96×64 images, a failed and a skipped one."""

    def make(done: int, quality: Callable[[int], Quality | None] = quality_of) -> Report:
        source, output = tmp_path / "in", tmp_path / "out"
        for folder in (source, output):
            folder.mkdir(exist_ok=True)
        results = []
        noisy, denoised = picture(96, 64, 1), picture(96, 64, 2)
        for index in range(done):
            name = AWKWARD if index == 0 else f"img{index}.png"
            noisy.save(source / name)
            denoised.save(output / name)
            job = Job(source / name, output / name, name, output)
            results.append(
                Result(job, "done", "", (96, 64), seconds=SECONDS, quality=quality(index))
            )
        broken = Job(source / "broken.png", output / "broken.png", "broken.png", output)
        results.append(Result(broken, "failed", "broken.png: is no <picture>; copy it again"))
        Image.new("L", (8, 8)).save(source / "old.png")
        Image.new("L", (8, 8)).save(output / "old.png")
        old = Job(source / "old.png", output / "old.png", "old.png", output)
        results.append(Result(old, "skipped", "up to date"))
        return make_report(DenoiseOptions((str(source),)), summary_of(results))

    return make
