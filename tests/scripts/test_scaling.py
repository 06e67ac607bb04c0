"""scripts/scaling: its output; no test here looks at a rate."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"


def test_it_measures_what_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scaling = importlib.import_module("scaling")
    for name, value in {"TILES": 4, "TILE_PX": 32, "BATCH": 2, "SIDE": 96}.items():
        monkeypatch.setattr(scaling, name, value)
    figures = tmp_path / "figures.json"
    cases = ["apart", "processes", "--workers", "1", "--images", "2", "--rounds", "1"]
    assert scaling.main([*cases, "--json", str(figures)]) == 0
    assert "images/s" in capsys.readouterr().out
    rates = json.loads(figures.read_text())["rates"]
    assert list(rates) == ["apart", "processes"]
    assert all(rate > 0 for case in rates.values() for rate in case.values())


def test_an_unknown_case_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scaling = importlib.import_module("scaling")
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["warp"])
    assert "unknown case warp; choose from train, apart, processes, ray" in capsys.readouterr().err
