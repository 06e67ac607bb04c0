"""scripts/benchmarks: what holds at any speed; no test here looks at a time."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from denoise_batch.models import ARCHITECTURES, Network

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
TINY = ["--quick", "--rounds", "1", "--threads", "1"]

Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def _siblings_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is no package: its files import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def main() -> Main:
    spec = importlib.util.spec_from_file_location("bench_main", BENCHMARKS / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Main = module.main
    return found


def sibling(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(main: Main, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "bench.json"
    code = main([*arguments, *TINY, "--json", str(file)])
    return code, json.loads(file.read_text())


def test_list_prints_one_case_a_line_and_measures_nothing() -> None:
    command = [sys.executable, str(BENCHMARKS), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()
    assert "train/unet/16x3x96x96/bfloat16" in names
    assert "infer/tconv/1x3x1024x1024/float32" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("pattern", "modes"),
    [("infer/unet/*", {"infer"}), ("*/unet/*float32", {"train", "infer"}), ("SGD", {"step"})],
)
def test_patterns_choose_cases(pattern: str, modes: set[str]) -> None:
    registry = sibling("registry")
    chosen = registry.select(registry.cases(), [pattern])
    assert {case.mode for case in chosen} == modes


def test_a_pattern_that_matches_nothing_is_a_usage_error(main: Main) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no-such-case"])
    assert stop.value.code == 2


def test_a_run_writes_the_documented_json(main: Main, tmp_path: Path) -> None:
    code, document = run(main, tmp_path, "forward/conv3x3-32/*/float32", "--providers", "ours")
    assert code == 0
    assert document["version"] == 1
    assert document.keys() == {
        "version", "date", "commit", "device", "cpu", "cores", "threads", "rounds", "quick",
        "versions", "gemm", "cases",
    }  # fmt: skip
    assert document["threads"] == 1
    assert document["versions"]["torch"] == version("torch")
    (case,) = document["cases"]
    assert case.keys() == {
        "name", "mode", "subject", "shape", "dtype", "tolerance", "norm", "gflop", "targets", "red",
        "ratios", "memory_ratio", "providers",
    }  # fmt: skip
    assert case["gflop"] == pytest.approx(2 * 2 * 16 * 16 * 32 * 32 * 9 / 1e9)
    assert case["providers"].keys() == {"ours", "eager"}
    assert case["ratios"].keys() == {"eager", "fastest"}
    for entry in case["providers"].values():
        assert entry.keys() == {
            "status", "reason", "error", "median_ms", "p20_ms", "p80_ms", "samples", "gflops",
            "gemm_fraction", "peak_mb",
        }  # fmt: skip
        assert entry["status"] == "ok"
        assert 0 < entry["p20_ms"] <= entry["median_ms"] <= entry["p80_ms"]
        assert entry["error"] <= case["tolerance"]


@pytest.mark.parametrize("pattern", ["train/unet/64*", "backward/MSELoss", "step/AdamW"])
def test_every_mode_passes_its_gate(main: Main, tmp_path: Path, pattern: str) -> None:
    code, document = run(main, tmp_path, pattern, "--providers", "ours")
    assert code == 0
    assert document["cases"]
    assert not any(case["red"] for case in document["cases"])


def test_a_red_gate_reports_no_number(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = sibling("providers").PREPARE
    honest = prepare["ours"]

    def wrong(problem: Any) -> Any:
        runner = honest(problem)
        return replace(
            runner,
            results=lambda: {name: value * 1.001 for name, value in runner.results().items()},
        )

    monkeypatch.setitem(prepare, "ours", wrong)
    code, document = run(main, tmp_path, "forward/ReLU/*/float32")
    assert code == 1
    (case,) = document["cases"]
    assert case["red"]
    assert case["ratios"] == {}
    assert {name: entry["status"] for name, entry in case["providers"].items()} == {
        "ours": "wrong", "eager": "ungated",
    }  # fmt: skip
    assert all(entry["median_ms"] is None for entry in case["providers"].values())
    assert "wrong: error 0.001, allowed 1e-05" in capsys.readouterr().out


def test_ours_that_raises_is_red_and_the_run_goes_on(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(problem: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setitem(sibling("providers").PREPARE, "ours", broken)
    code, document = run(main, tmp_path, "forward/ReLU")
    assert code == 1
    assert [case["providers"]["ours"]["reason"] for case in document["cases"]] == [
        "RuntimeError: no kernel for this"
    ] * 2


def test_a_missing_provider_is_said_and_no_failure(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    code, document = run(main, tmp_path, "infer/tconv.0*/float32")
    assert code == 0
    (case,) = document["cases"]
    for name in ("onnxruntime", "openvino"):
        assert case["providers"][name]["status"] == "unavailable"
        assert case["providers"][name]["reason"] == f"{name} is not installed (extra: bench)"
        assert case["providers"][name]["median_ms"] is None
    assert case["providers"]["ours"]["median_ms"] is not None
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nan", "shape", "missing"])
def test_results_that_cannot_be_compared_are_infinitely_wrong(name: str) -> None:
    expected = {"output": torch.ones(2)}
    actual = {
        "nan": {"output": torch.tensor([1.0, float("nan")])},
        "shape": {"output": torch.ones(1, 2)},
        "missing": {},
    }[name]
    assert sibling("measure").relative_error(actual, expected, "max") == float("inf")


@pytest.mark.parametrize("subject", ["tconv", "unet"])
def test_the_onnx_export_is_the_network(subject: str) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    case = sibling("registry").Case("infer", subject, (1, 3, 21, 34), "float32")
    problem = sibling("problem").pose(case, torch.device("cpu"))
    model = sibling("runtimes").onnx_model(problem)
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": problem.input.contiguous().numpy()})
    expected = case.block().eval()(problem.input)
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_torch_equivalents_are_the_networks(architecture: str) -> None:
    network = Network(architecture, (0.4, 0.5, 0.6), 0.2, torch.Generator().manual_seed(0)).eval()
    equivalent = sibling("torch_networks").torch_equivalent(network)
    expected = list(equivalent.parameters())
    for own, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(own, value.detach(), rtol=0, atol=0)
    image = torch.rand(2, 3, 21, 34)
    torch.testing.assert_close(network(image), equivalent(image).detach(), rtol=0, atol=1e-5)


def test_folder_measures_stages_stream_and_memory(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "folder.json"
    arguments = ["folder", "--images", "3", "--memory", "2,4", "--weights", "tconv"]
    assert main([*arguments, "--threads", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert set(result["stages_alone_s"]) == {"decode", "network", "encode"}
    assert all(seconds > 0 for seconds in result["stages_alone_s"].values())
    assert result["images_per_s"] == pytest.approx(3 / result["stream_s"])
    assert set(result["peak_bytes"]) == {"2", "4"}
    out = capsys.readouterr().out
    assert "wall over slowest stage" in out
    assert "peak memory: 2 images" in out


def test_the_small_folder_of_the_memory_bench_has_the_largest_image(tmp_path: Path) -> None:
    folder = sibling("folder")
    folder.make_images(tmp_path / "images", 9, folder.SAMPLES)
    paths = sorted((tmp_path / "images").iterdir())

    def pixels(path: Path) -> int:
        with Image.open(path) as image:
            return image.width * image.height

    for count in (1, 2, 4, 9):
        chosen = folder._spread(paths, count)
        assert len(set(chosen)) == count
        assert max(paths, key=pixels) in chosen
    assert folder._spread(paths, 9) == paths


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_folder_reads_the_memory_of_the_command_not_of_the_bench(tmp_path: Path) -> None:
    folder = sibling("folder")
    folder.make_images(tmp_path / "images", 2, folder.SAMPLES)
    options = folder._parser().parse_args(["--memory", "2", "--weights", "tconv", "--threads", "1"])
    ballast = torch.ones(1 << 30, dtype=torch.uint8)  # a child begins with its parent's `ru_maxrss`
    ((count, peak),) = folder.memory_peaks(tmp_path / "images", tmp_path, options)
    assert count == 2
    assert 100 << 20 < peak < ballast.numel()
