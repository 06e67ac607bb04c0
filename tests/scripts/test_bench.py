"""scripts/benchmarks: what holds at any speed; no test here looks at a time."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from multiprocessing import active_children
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


@pytest.fixture
def meddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Run code in every provider's process before it starts."""

    def meddle_with(code: str) -> None:
        (tmp_path / "meddler.py").write_text(
            "import os, signal, sys, time\nfrom dataclasses import replace\n"
            "import torch\nimport providers, worker\n"
            "def serve(*arguments):\n"
            + textwrap.indent(textwrap.dedent(code), "    ")
            + "\n    worker.serve(*arguments)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))  # the process has the same sys.path
        monkeypatch.setattr(sibling("worker"), "serve", sibling("meddler").serve)

    yield meddle_with
    sys.modules.pop("meddler", None)


def run(main: Main, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "bench.json"
    code = main([*arguments, *TINY, "--json", str(file)])
    return code, json.loads(file.read_text())


def test_list_prints_one_case_a_line_and_measures_nothing() -> None:
    command = [sys.executable, str(BENCHMARKS), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()
    assert "infer/blocks/1x32x512x512/float32" in names
    assert "train/unet-level/16x3x96x96/float32" in names
    assert not any("bfloat16" in name for name in names)
    assert len(set(names)) == len(names)


def test_a_gpu_has_cases_in_bfloat16_and_a_processor_peers_that_compute_in_it() -> None:
    registry = sibling("registry")
    cpu, gpu = ({c.name: c for c in registry.cases(device)} for device in ("cpu", "cuda"))
    assert cpu.keys() < gpu.keys()
    assert gpu["train/unet/16x3x96x96/bfloat16"].providers == ("ours", "eager", "compile")
    assert {"eager-bf16", "compile-bf16"} < set(cpu["train/unet/16x3x96x96/float32"].providers)
    assert "openvino-bf16" in cpu["infer/unet/1x3x1024x1024/float32"].providers
    for device, cases in (("cpu", cpu), ("cuda", gpu)):
        for case in cases.values():
            assert {"fastest", *case.providers} >= case.targets(device).keys()


@pytest.mark.parametrize(
    ("pattern", "modes"),
    [("infer/unet/*", {"infer"}), ("*/unet/*float32", {"train", "infer"}), ("SGD", {"step"})],
)
def test_patterns_choose_cases(pattern: str, modes: set[str]) -> None:
    registry = sibling("registry")
    chosen = registry.select(registry.cases("cpu"), [pattern])
    assert {case.mode for case in chosen} == modes


def test_a_pattern_that_matches_nothing_is_a_usage_error(main: Main) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no-such-case"])
    assert stop.value.code == 2


def test_a_run_writes_the_documented_json(main: Main, tmp_path: Path) -> None:
    code, document = run(main, tmp_path, "forward/conv3x3-32/*/float32", "--providers", "ours")
    assert code == 0
    assert document["version"] == 2
    assert document.keys() == {
        "version", "date", "commit", "device", "cpu", "cores", "threads", "rounds", "quick",
        "versions", "peaks", "cases",
    }  # fmt: skip
    assert document["threads"] == 1
    assert document["versions"]["torch"] == version("torch")
    (case,) = document["cases"]
    assert case.keys() == {
        "name", "mode", "subject", "shape", "dtype", "tolerance", "norm", "gflop",
        "winograd_gflop", "bound_ms", "targets", "red", "ratios", "memory_ratio", "providers",
    }  # fmt: skip
    assert case["gflop"] == pytest.approx(2 * 2 * 16 * 16 * 32 * 32 * 9 / 1e9)
    assert case["winograd_gflop"] == pytest.approx(case["gflop"] / 4)
    peaks = document["peaks"]
    assert peaks.keys() == {"fma", "bandwidth", "gemm"}
    assert peaks["gemm"] == {}
    bound_ms = peaks["fma"] and case["winograd_gflop"] / max(peaks["fma"].values()) * 1e3
    assert case["bound_ms"] == (pytest.approx(bound_ms) if bound_ms else None)
    assert case["providers"].keys() == {"ours", "eager"}
    assert case["ratios"].keys() == {"eager", "fastest"}
    for entry in case["providers"].values():
        assert entry.keys() == {
            "status", "reason", "error", "median_ms", "p20_ms", "p80_ms", "samples", "gflops",
            "bound_fraction", "peak_mb",
        }  # fmt: skip
        assert entry["status"] == "ok"
        share = bound_ms and bound_ms / entry["median_ms"]
        assert entry["bound_fraction"] == (pytest.approx(share) if share else None)
        assert 0 < entry["p20_ms"] <= entry["median_ms"] <= entry["p80_ms"]
        assert entry["error"] <= case["tolerance"]


@pytest.mark.parametrize("pattern", ["train/tconv", "backward/MSELoss", "step/AdamW"])
def test_every_mode_passes_its_gate(main: Main, tmp_path: Path, pattern: str) -> None:
    code, document = run(main, tmp_path, pattern, "--providers", "ours")
    assert code == 0
    assert document["cases"]
    assert not any(case["red"] for case in document["cases"])


def test_a_red_gate_reports_no_number(
    main: Main,
    meddle: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    meddle("""
        honest = providers.PREPARE["ours"]
        def wrong(problem):
            runner = honest(problem)
            results = lambda: {name: value * 1.001 for name, value in runner.results().items()}
            return replace(runner, results=results)
        providers.PREPARE["ours"] = wrong
    """)
    code, document = run(main, tmp_path, "forward/ReLU")
    assert code == 1
    (case,) = document["cases"]
    assert case["red"]
    assert case["ratios"] == {}
    assert {name: entry["status"] for name, entry in case["providers"].items()} == {
        "ours": "wrong", "eager": "ungated",
    }  # fmt: skip
    assert all(entry["median_ms"] is None for entry in case["providers"].values())
    assert all(entry["peak_mb"] is None for entry in case["providers"].values())
    assert "wrong: error 0.001, allowed 1e-05" in capsys.readouterr().out


@pytest.mark.slow
def test_ours_that_fails_is_red_and_the_run_goes_on(
    main: Main, meddle: Callable[[str], None], tmp_path: Path
) -> None:
    meddle("""
        honest = providers.PREPARE["ours"]
        def broken(problem):
            match problem.case.subject:
                case "ReLU":
                    raise RuntimeError("no kernel for this")
                case "Sigmoid":
                    os._exit(3)
                case "PixelShuffle":
                    os.kill(os.getpid(), signal.SIGSEGV)
            return honest(problem)
        providers.PREPARE["ours"] = broken
    """)
    subjects = ("ReLU", "Sigmoid", "PixelShuffle", "PixelUnshuffle")
    code, document = run(main, tmp_path, *(f"forward/{name}" for name in subjects))
    assert code == 1
    ours = {case["subject"]: case["providers"]["ours"] for case in document["cases"]}
    assert {name: (entry["status"], entry["reason"]) for name, entry in ours.items()} == {
        "ReLU": ("failed", "RuntimeError: no kernel for this"),
        "Sigmoid": ("failed", "its process died: exit code 3"),
        "PixelShuffle": ("failed", "its process died: SIGSEGV"),
        "PixelUnshuffle": ("ok", None),
    }
    assert not active_children()


def test_a_peer_that_dies_while_it_is_timed_loses_its_number_alone(
    main: Main, meddle: Callable[[str], None], tmp_path: Path
) -> None:
    meddle("""
        honest = providers.PREPARE["eager"]
        def mortal(problem):
            runner, calls = honest(problem), []
            def run():
                calls.append(1)
                if len(calls) > 12:
                    os._exit(3)
                runner.run()
            return replace(runner, run=run)
        providers.PREPARE["eager"] = mortal
    """)
    code, document = run(main, tmp_path, "forward/ReLU")
    assert code == 1  # the reference is vital
    (case,) = document["cases"]
    assert case["providers"]["eager"]["reason"] == "its process died: exit code 3"
    assert case["providers"]["eager"]["median_ms"] is None
    assert case["providers"]["ours"]["median_ms"] > 0
    assert case["ratios"] == {}


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_no_process_outlives_the_run(tmp_path: Path, name: str) -> None:
    started = tmp_path / "started"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(started)!r}, 'a').write('.')\n")
    command = [sys.executable, str(BENCHMARKS), "infer/tconv/", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    bench = subprocess.Popen(
        [*command, "--providers", "ours"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert bench.stderr is not None
    assert bench.stderr.readline().startswith("1/1 infer/tconv/")
    while len(started.read_text()) < 4:  # the bench, a tracker of Python's, ours and eager
        time.sleep(0.05)
    bench.send_signal(signal.Signals[name])
    _, error = bench.communicate(timeout=120)  # reads until no process has stderr any more
    assert bench.returncode == (130 if name == "SIGINT" else -signal.SIGKILL)
    assert ("interrupted" in error) == (name == "SIGINT")


def test_providers_that_cannot_run_here_are_said_and_no_failure(
    main: Main,
    meddle: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    meddle("""
        for name in ("onnxruntime", "openvino"):
            sys.modules[name] = None  # importing it now fails
        torch.cpu.get_capabilities = lambda: {"avx2": True}
    """)
    names = ("onnxruntime", "openvino", "eager-bf16")
    code, document = run(main, tmp_path, "infer/tconv/", "--providers", f"ours,{','.join(names)}")
    assert code == 0
    (case,) = document["cases"]
    for name in names:
        assert case["providers"][name]["status"] == "unavailable"
        assert case["providers"][name]["median_ms"] is None
    assert [case["providers"][name]["reason"] for name in names] == [
        "onnxruntime is not installed (extra: bench)",
        "openvino is not installed (extra: bench)",
        "this processor has no bfloat16",
    ]
    assert case["providers"]["ours"]["median_ms"] is not None
    assert "not installed" in capsys.readouterr().out


def test_a_peer_in_bfloat16_has_its_own_tolerance_and_is_not_the_fastest() -> None:
    registry, measure, timing = map(sibling, ("registry", "measure", "timing"))
    case = registry.Case("infer", "unet", (1, 3, 32, 32), "float32")
    assert case.computed_by("eager").tolerance == 1e-4
    assert case.computed_by("eager-bf16").tolerance == 5e-2
    seconds = {"ours": 0.2, "eager": 0.5, "openvino": 0.4, "openvino-bf16": 0.1}
    entries = {
        name: measure.Entry("ok", timing=timing.summary([second]))
        for name, second in seconds.items()
    }
    ratios = measure.Outcome(case, sibling("bounds").Flops(), entries).ratios
    assert ratios == pytest.approx(
        {"eager": 0.4, "openvino": 0.5, "openvino-bf16": 2.0, "fastest": 0.5}
    )


def test_every_round_begins_with_the_next_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = sibling("timing")
    monkeypatch.setattr(timing, "PAUSE_S", 0)
    order: list[str] = []

    def turn(name: str) -> Callable[[int], Sequence[float]]:
        def measured(calls: int) -> Sequence[float]:
            order.append(name)
            return [1.0] * calls if name != "c" or order.count("c") < 4 else ()

        return measured

    timings = timing.alternate({name: turn(name) for name in "abc"}, rounds=4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "ab"  # once each, to know how slow
    assert timings.keys() == {"a", "b"}
    assert timings["a"].samples == 4 * timing.MIN_CALLS


def test_winograd_leaves_36_multiplications_a_tile_of_16_outputs() -> None:
    bounds, registry, worker = map(sibling, ("bounds", "registry", "worker"))

    def flops(mode: str, subject: str, side: int) -> Any:
        case = registry.Case(mode, subject, (1, 32, side, side), "float32")
        runner = worker._prepare(case, "eager", torch.device("cpu"))
        return bounds.count_flops(runner)

    a_pair = 2 * 32 * 32
    assert flops("infer", "conv3x3-32", 8) == bounds.Flops(a_pair * 64 * 9, a_pair * 4 * 36)
    assert flops("infer", "conv3x3-32", 6) == bounds.Flops(a_pair * 36 * 9, a_pair * 4 * 36)
    backward = flops("forward+backward", "conv3x3-32", 8)
    assert (backward.direct, backward.winograd) == (3 * a_pair * 64 * 9, 3 * a_pair * 4 * 36)
    strided = flops("forward+backward", "down2x2-32-64", 8)
    assert strided.direct == strided.winograd == 3 * 2 * 32 * 64 * 16 * 4


def test_peaks_are_measured_for_every_instruction_set_or_unknown_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bounds = sibling("bounds")
    options = {"rounds": 1, "threads": 1, "is_quick": True}
    cpu = torch.device("cpu")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert bounds.measure_peaks(cpu, ["float32"], **options) == bounds.Peaks()
    assert bounds.Peaks().bound_s("float32", bounds.Flops(100, 25)) is None
    monkeypatch.delenv("CXX")
    sets = [name for name in bounds.build.instruction_sets() if bounds.is_supported(name)]
    if not shutil.which("g++") or not sets:
        pytest.skip("needs g++")
    peaks = bounds.measure_peaks(cpu, ["float32"], **options)
    assert list(peaks.fma) == sets
    assert min(*peaks.fma.values(), peaks.bandwidth) > 0
    fastest = max(peaks.fma.values())
    assert peaks.bound_s("float32", bounds.Flops(100, 25)) == pytest.approx(25e-9 / fastest)
    assert peaks.bound_s("bfloat16", bounds.Flops(100, 25)) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("mode", ["infer", pytest.param("train", marks=pytest.mark.slow)])
def test_peak_memory_counts_what_a_call_needs(mode: str) -> None:
    registry, measure = sibling("registry"), sibling("measure")
    case = registry.Case(mode, "tconv", (1, 3, 512, 512), "float32")
    outcome = measure.measure(case, ["ours"], torch.device("cpu"), rounds=1, threads=1)
    first_map = 24 * 256 * 256 * 4
    for entry in outcome.entries.values():
        assert first_map < entry.peak_bytes < 20 * first_map
    assert outcome.memory_ratio is not None


@pytest.mark.parametrize("name", ["nan", "shape", "missing"])
def test_results_that_cannot_be_compared_are_infinitely_wrong(name: str) -> None:
    expected = {"output": torch.ones(2)}
    actual = {
        "nan": {"output": torch.tensor([1.0, float("nan")])},
        "shape": {"output": torch.ones(1, 2)},
        "missing": {},
    }[name]
    assert sibling("measure").relative_error(actual, expected, "max") == float("inf")


@pytest.mark.parametrize("subject", ["tconv", "unet", "unet-level"])
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
    image = torch.rand(2, 3, 61, 74)
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


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="needs Linux, which keeps a process on some cores"
)


@needs_affinity
def test_host_measures_png_and_jpeg_beside_pillow(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "host.json"
    small = ["--images", "2", "--megapixels", "0.02", "--rounds", "1", "--cores", "1"]
    assert main(["host", *small, "--network", "100", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows = {(row["kind"], row["cores"], row["provider"]): row for row in result["rows"]}
    assert rows.keys() == {
        (kind, 1, provider)
        for kind in ("png", "jpg")
        for provider in ("pillow", "ours", "estimates")
    }
    for (kind, _, _), row in rows.items():
        assert row["megapixels_per_s"] == pytest.approx(0.04 / row["seconds"])
        pillow = rows[kind, 1, "pillow"]["megapixels_per_s"]
        assert row["ratio"] == pytest.approx(row["megapixels_per_s"] / pillow)
    for kind, cores in result["cores_needed"].items():
        rate = rows[kind, 1, "estimates"]["megapixels_per_s"]
        assert cores == pytest.approx(100 / rate)
    assert "a network of 100 MP/s takes" in capsys.readouterr().out


@needs_affinity
def test_host_keeps_its_children_on_their_cores() -> None:
    host = sibling("host")
    before = os.sched_getaffinity(0)
    command = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    with host._confined(1):
        child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "1"
    assert os.sched_getaffinity(0) == before


def test_cores_needed_come_from_the_default_command_on_the_most_cores() -> None:
    host = sibling("host")
    rows = [
        host.Row("png", cores, provider, 1.0, rate, 1.0)
        for cores, provider, rate in (
            (1, "estimates", 9.0), (2, "estimates", 14.0), (2, "ours", 16.0), (2, "pillow", 20.0),
        )
    ]  # fmt: skip
    assert host.cores_needed(rows, 1400) == {"png": 200.0}


def test_host_tells_outputs_with_other_pixels(tmp_path: Path) -> None:
    host = sibling("host")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, level in ((one, 1), (other, 9)):
        folder.mkdir()
        for name in ("equal", "off"):
            image = Image.new("RGB", (9, 7), (level if name == "off" else 5, 2, 3))
            image.save(folder / f"{name}.png", compress_level=level)
    Image.new("RGB", (3, 3)).save(one / "alone.png")
    assert host.differing(one, other) == ["alone.png", "off.png"]


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
