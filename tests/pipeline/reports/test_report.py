"""JSON and CSV: a documented, stable form."""

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import AWKWARD

from denoise_batch.kernels import OptionError
from denoise_batch.models import shipped_manifest
from denoise_batch.options import DenoiseOptions
from denoise_batch.quality import Quality
from denoise_batch.reports import write_report
from denoise_batch.reports.report import SCHEMA, Report

DOCS = Path(__file__).parents[3] / "docs" / "reports.md"


def written(path: Path, report: Report) -> str:
    write_report(path, report)
    return path.read_text(encoding="utf-8")


def keys(value: object, prefix: str = "") -> set[str]:
    """Return every field's path: those of a list's objects once, those of `options` not at all."""
    if isinstance(value, dict) and prefix not in ("options.",):
        found: set[str] = set()
        for key, item in value.items():
            found |= {f"{prefix}{key}"} | keys(item, f"{prefix}{key}.")
        return found
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys(item, prefix) for item in value))
    return set()


def test_json_has_the_run_and_every_image(run_of: Callable[..., Report], tmp_path: Path) -> None:
    document = json.loads(written(tmp_path / "report.json", run_of(3)))
    assert document["format"] == "denoise-batch report"
    assert document["schema"] == SCHEMA == 1
    assert document["exit_code"] == 1
    name = shipped_manifest()["default"]
    assert document["weights"]["name"] == name
    assert document["weights"]["sha256"] == shipped_manifest()["weights"][name]["sha256"]
    assert document["totals"]["done"] == 3
    assert document["totals"]["failed"] == 1
    assert document["totals"]["skipped"] == 1
    assert document["totals"]["gain"] == pytest.approx(10)
    assert document["totals"]["megapixels_per_second"] == pytest.approx(3 * 96 * 64 / 1e6 / 2, 1e-2)
    images = document["images"]
    assert [image["status"] for image in images] == ["done"] * 3 + ["failed", "skipped"]
    assert images[0]["name"] == AWKWARD
    assert images[0]["psnr_basis"] == "reference"
    assert "copy it again" in images[3]["reason"]
    assert images[3]["psnr_out"] is None


def test_every_field_of_the_schema_is_documented(
    run_of: Callable[..., Report], tmp_path: Path
) -> None:
    document = json.loads(written(tmp_path / "report.json", run_of(1)))
    documented = set(re.findall(r"`([\w.]+)`", DOCS.read_text(encoding="utf-8")))
    fields = keys(document)
    # A change of this set is a change of the schema: add fields, never rename or remove any.
    missing = {field for field in fields if field not in documented}
    assert not missing, sorted(missing)
    assert len(fields) == 68


def test_unknown_and_infinite_numbers_are_null_in_json(
    run_of: Callable[..., Report], tmp_path: Path
) -> None:
    report = run_of(1, lambda index: Quality(None, None, 20.0, math.inf, "reference"))
    text = written(tmp_path / "report.json", report)
    image = json.loads(text, parse_constant=pytest.fail)["images"][0]
    assert image["psnr_in"] == 20.0
    assert image["psnr_out"] is None
    assert image["sigma_in_255"] is None


def test_csv_keeps_line_breaks_in_names(run_of: Callable[..., Report], tmp_path: Path) -> None:
    report = run_of(1)
    results = [replace(r, job=replace(r.job, name="b\rc.png")) for r in report.results]
    write_report(
        tmp_path / "r.csv", replace(report, summary=replace(report.summary, results=tuple(results)))
    )
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == ["b\rc.png"] * len(results)


def test_csv_has_a_row_per_image(run_of: Callable[..., Report], tmp_path: Path) -> None:
    text = written(tmp_path / "report.csv", run_of(3))
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["status"] for row in rows] == ["done"] * 3 + ["failed", "skipped"]
    assert rows[0]["name"] == AWKWARD
    assert float(rows[1]["psnr_out"]) == pytest.approx(29.9)
    assert float(rows[0]["seconds_compute"]) == pytest.approx(0.06)
    assert rows[3]["psnr_out"] == ""


def test_a_report_replaces_an_older_one_whole_or_not_at_all(
    run_of: Callable[..., Report], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    assert json.loads(written(path, run_of(1)))
    with pytest.raises(OptionError, match="cannot be written"):
        write_report(tmp_path / "nowhere" / "report.json", run_of(1))
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize(
    ("path", "says"),
    [("report.txt", ".html"), ("none/report.json", "make it"), ("a.json", "folder")],
)
def test_an_unwritable_report_is_refused_before_the_run(
    path: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OptionError, match=says):
        DenoiseOptions(("imgs",), reports=(tmp_path / path,))
