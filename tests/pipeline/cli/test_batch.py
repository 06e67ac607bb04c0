"""`denoise-batch` as its user sees it: files, table, exit codes, and what bad input does."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files.images import read_image
from denoise_batch.models import Network, load_weights, save_weights
from denoise_batch.streaming import stream as engine_module
from denoise_batch.streaming.stream import Budget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/a.png, imgs/ä ö/b.jpg, imgs/deep/er/c.png (gray)."""
    root = tmp_path / "imgs"
    for sub in ("ä ö", "deep/er"):
        (root / sub).mkdir(parents=True)
    picture(33, 21, 1).save(root / "a.png")
    picture(40, 30, 2).save(root / "ä ö" / "b.jpg")
    picture(17, 16, 3).convert("L").save(root / "deep" / "er" / "c.png")
    return root


def files_below(folder: Path) -> set[str]:
    """All files but those that a run keeps for itself."""
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and ".denoise-batch" not in p.parts
    }


def run(*arguments: object, weights: Path) -> int:
    return main([*map(str, arguments), "--weights", str(weights), "--device", "cpu"])


def test_the_tree_is_mirrored_and_the_pixels_are_the_networks(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    before = {path: (folder / path).read_bytes() for path in files_below(folder)}
    assert run(folder, "-o", tmp_path / "out", weights=weights) == 0
    assert files_below(tmp_path / "out") == {"a.png", "ä ö/b.jpg", "deep/er/c.png"}
    assert before == {path: (folder / path).read_bytes() for path in files_below(folder)}
    network = load_weights(weights).network
    for name in ("a.png", "deep/er/c.png"):
        expected = network(read_image(folder / name).to_unit()[None])[0]
        written = read_image(tmp_path / "out" / name).to_unit()
        torch.testing.assert_close(written, expected, atol=0.51 / 255, rtol=0)
    with Image.open(tmp_path / "out" / "deep/er/c.png") as image:
        assert image.mode == "L"


def test_without_an_output_the_results_stand_beside_the_input(folder: Path, weights: Path) -> None:
    assert run(folder, weights=weights) == 0
    assert "a.png" in files_below(folder.with_name("imgs-denoised"))


def test_a_single_file_goes_to_a_single_file(folder: Path, weights: Path, tmp_path: Path) -> None:
    assert run(folder / "a.png", "-o", tmp_path / "x.png", weights=weights) == 0
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (33, 21)


@pytest.mark.parametrize("batch_size", ["1", "2", "auto"])
def test_the_batch_size_does_not_change_the_result(
    weights: Path, tmp_path: Path, batch_size: str
) -> None:
    for index in range(5):
        path = tmp_path / "imgs" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        picture(20, 20, index).save(path)
    assert run(tmp_path / "imgs", "-b", batch_size, weights=weights) == 0
    network = load_weights(weights).network
    for index in range(5):
        expected = network(read_image(tmp_path / "imgs" / f"{index}.png").to_unit()[None])[0]
        written = read_image(tmp_path / "imgs-denoised" / f"{index}.png").to_unit()
        torch.testing.assert_close(written, expected, atol=0.51 / 255, rtol=0)


def test_references_add_psnr_per_image_and_overall(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The network turns everything into about 0.5, and the references say what that is worth.
    for kind, value in (("noisy", 153), ("clean", 102)):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / kind / "flat.png")
    assert run(tmp_path / "noisy", "--reference", tmp_path / "clean", weights=weights) == 0
    out = capsys.readouterr().out
    assert "PSNR in" in out
    assert "13.98" in out  # −10·log10(0.2²)
    assert "mean of 1" in out
    assert "1 done" in out


def test_float_images_are_compared_in_the_scale_of_their_reference(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise that leaves the range of the clean image changes nothing else."""
    noisy, clean = tmp_path / "noisy", tmp_path / "clean"
    ramp = torch.linspace(0, 1, 256).view(16, 16)
    for folder, image in ((noisy, ramp + 0.1 * torch.randn(16, 16)), (clean, ramp)):
        folder.mkdir()
        data = struct.pack("256f", *image.flatten().tolist())
        Image.frombytes("F", (16, 16), data).save(folder / "a.tif")
    options = ["--reference", clean, "--strength", "0", "--log", "json"]
    assert run(noisy, *options, weights=weights) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (psnr,) = [row["psnr_in"] for row in rows if row["event"] == "image"]
    assert psnr == pytest.approx(20.4, abs=0.8)


def test_a_reference_whose_name_cannot_be_costs_its_psnr_only(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
    picture(16, 16).save(tmp_path / "noisy" / ("x" * 251 + ".png"))
    picture(16, 16).save(tmp_path / "noisy" / "b.jpg")
    picture(16, 16).save(tmp_path / "clean" / "b.PNG")
    assert run(tmp_path / "noisy", "--reference", tmp_path / "clean", weights=weights) == 0
    out = capsys.readouterr().out
    assert out.count("no reference") == 1
    assert "2 done" in out


def test_a_missing_reference_and_one_of_another_size_are_said(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clean").mkdir()
    picture(8, 8).save(tmp_path / "clean" / "a.png")
    assert run(folder, "--reference", tmp_path / "clean", weights=weights) == 0
    out = capsys.readouterr().out
    assert "no reference" in out
    assert "8x8" in out
    assert "PSNR out" not in out


def test_bad_files_are_reported_and_the_rest_is_done(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert run(folder, weights=weights) == 1
    out = capsys.readouterr().out
    output = folder.with_name("imgs-denoised")
    assert files_below(output) == {"a.png", "ä ö/b.jpg", "deep/er/c.png"}
    assert "3 done, 3 failed" in out
    for name in ("empty.png", "text.png", "cut.png"):
        assert name in out


def test_when_every_file_fails_the_code_is_6(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "x.png").write_bytes(b"")
    assert run(tmp_path / "imgs", weights=weights) == 6
    assert files_below(tmp_path / "imgs") == {"x.png"}
    assert "1 failed" in capsys.readouterr().out


def test_a_second_run_skips_what_is_there_and_overwrite_does_not(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, weights=weights) == 0
    target = folder.with_name("imgs-denoised") / "a.png"
    target.write_bytes(b"mine")
    assert run(folder, weights=weights) == 0
    assert target.read_bytes() == b"mine"
    assert "3 skipped" in capsys.readouterr().out
    assert run(folder, "--overwrite", weights=weights) == 0
    with Image.open(target) as image:
        assert image.size == (33, 21)


def test_an_output_inside_the_input_is_not_fed_back(folder: Path, weights: Path) -> None:
    for _ in range(2):
        assert run(folder, "-o", folder / "out", "--overwrite", weights=weights) == 0
    assert files_below(folder / "out") == {"a.png", "ä ö/b.jpg", "deep/er/c.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["none"], 2, "none"),
        ([], 2, "Missing argument"),
        (["empty"], 3, "empty"),
        (["imgs", "-b", "0"], 2, "batch-size"),
        (["imgs", "-b", "x"], 2, "batch-size"),
        (["imgs", "-q", "0"], 2, "quality"),
        (["imgs", "--reference", "none"], 2, "--reference"),
        (["imgs", "-o", "imgs"], 2, "overwrite the input"),
        ([""], 2, "an input is empty"),
        (["imgs", "", "-o", "out"], 2, "an input is empty"),
        (["file://"], 2, "file://: names no path"),
        (["imgs", "-o", ""], 2, "--output is empty"),
        (["imgs", "-o", "file://"], 2, "file://: names no path"),
        (["imgs", "--reference", ""], 2, "--reference is empty"),
        (["imgs", "--weights", "none.safetensors"], 5, "no such weights"),
        (["imgs", "--weights", "imgs/a.png"], 5, "a.png"),
        (["imgs", "--device", "tpu"], 2, "--device"),
        (["imgs", "--device", "cuda:²"], 2, "--device"),
        (["imgs", "--nonsense"], 2, "nonsense"),
    ],
    ids=str,
)
def test_wrong_use_ends_with_a_reason_and_its_code(
    folder: Path,
    arguments: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    picture(8, 8).save(folder.parent / "here.png")
    before = files_below(folder.parent)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert files_below(folder.parent) == before


def test_missing_cuda_is_code_4(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(folder), "--device", "cuda"]) == 4
    assert "--device cpu" in capsys.readouterr().err
    assert not folder.with_name("imgs-denoised").exists()


def test_an_output_that_cannot_be_written_fails_its_file_only(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file where a folder should be stops even root, whom permissions do not.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_text("in the way")
    assert run(folder, "-o", tmp_path / "out", weights=weights) == 1
    assert files_below(tmp_path / "out") == {"a.png", "ä ö/b.jpg", "deep"}
    assert "1 failed" in capsys.readouterr().out


def test_output_that_is_not_finite_is_never_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network("tconv")
    network.parameters()[-1].fill_(float("nan"))
    save_weights(tmp_path / "nan.safetensors", network, {})
    assert run(folder, weights=tmp_path / "nan.safetensors") == 6
    assert files_below(folder.with_name("imgs-denoised")) == set()
    assert "not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no"),
        RuntimeError("CUDA error: out of memory\nfrom pin_memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GB)"),
    ],
    ids=["torch", "cuda", "cublas", "mps"],
)
def test_out_of_memory_halves_the_batch_then_tiles_then_fails_the_image(
    error: Exception, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        path = tmp_path / "imgs" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        picture(20, 20, index).save(path)
    picture(64, 64).save(tmp_path / "imgs" / "large.png")
    forward = Network.forward_padded
    sizes = []

    def little_memory(self: Network, input: torch.Tensor) -> torch.Tensor:
        sizes.append((len(input), input.shape[2] * input.shape[3]))
        if len(input) > 1 or input.shape[2] * input.shape[3] > 28 * 28:
            raise error
        return forward(self, input)

    monkeypatch.setattr(Network, "forward_padded", little_memory)
    assert run(tmp_path / "imgs", weights=weights) == 0
    network = load_weights(weights).network
    monkeypatch.undo()
    for path in (tmp_path / "imgs").iterdir():
        expected = network(read_image(path).to_unit()[None])[0]
        written = read_image(tmp_path / "imgs-denoised" / path.name).to_unit()
        torch.testing.assert_close(written, expected, atol=0.51 / 255, rtol=0)

    monkeypatch.setattr(Network, "forward_padded", little_memory)
    (tmp_path / "imgs-denoised" / "large.png").unlink()
    assert run(tmp_path / "imgs", "--tile", "off", weights=weights) == 1
    assert files_below(tmp_path / "imgs-denoised") == {f"{index}.png" for index in range(5)}


def test_other_errors_of_the_network_are_not_hidden(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Network, input: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Network, "forward_padded", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(folder, weights=weights)


def test_long_folders_show_the_worst_the_best_and_the_failures(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imgs").mkdir()
    for index in range(70):
        picture(8, 8, index).save(tmp_path / "imgs" / f"{index}.png")
    (tmp_path / "imgs" / "zz.png").write_bytes(b"")
    assert run(tmp_path / "imgs", weights=weights) == 1
    out = capsys.readouterr().out
    assert "zz.png" in out
    assert "worst 10 of 70" in out
    assert "best 10" in out
    table = out[: out.index("no PSNR")]
    assert table.count(".png") == 21


def test_memory_is_bounded_whatever_the_folder_holds(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded and not yet written stays below the budget, though every shape differs."""
    (tmp_path / "imgs").mkdir()
    for index in range(60):
        picture(200 + index, 100, index).save(tmp_path / "imgs" / f"{index}.png")
    budgets = []

    def small_budget(limit: int) -> Budget:
        budgets.append(Budget(700_000))
        return budgets[-1]

    monkeypatch.setattr(engine_module, "Budget", small_budget)
    assert run(tmp_path / "imgs", weights=weights) == 0
    assert budgets[0].used == 0
    assert 3 * 3 * 260 * 100 <= budgets[0].most <= 700_000


def test_an_interrupt_finishes_files_in_flight_and_leaves_only_whole_ones(
    weights: Path, tmp_path: Path
) -> None:
    """The console script as a process of its own, and a real SIGINT."""
    (tmp_path / "imgs").mkdir()
    for index in range(400):
        picture(200, 150, 0).save(tmp_path / "imgs" / f"{index}.png", compress_level=1)
    command = [sys.executable, "-m", "denoise_batch", str(tmp_path / "imgs"), "-b", "1"]
    process = subprocess.Popen(
        [*command, "--weights", str(weights), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    output = tmp_path / "imgs-denoised"
    while process.poll() is None and not (output.is_dir() and any(output.glob("*.png"))):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out + err
    assert "Traceback" not in err
    written = files_below(output)
    assert 0 < len(written) < 400
    assert all(name.endswith(".png") and not name.startswith(".") for name in written)
    for name in written:
        with Image.open(output / name) as image:
            image.load()


def test_names_that_are_no_text_or_very_long_are_done(tmp_path: Path, weights: Path) -> None:
    """In a process of its own, whose stdout is strict about text."""
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    names = [os.fsdecode(b"bad-\xff.png"), "画" * 82 + ".png", "x" * 251 + ".png", "a b'\n.png"]
    for name in names:
        picture(8, 8).save(imgs / name)
    command = [sys.executable, "-m", "denoise_batch", str(imgs), "-w", str(weights)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "imgs-denoised").glob("*.png")} == set(names)


def test_read_only_inputs_are_read(tmp_path: Path, weights: Path) -> None:
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    picture(8, 8).save(imgs / "a.png")
    (imgs / "a.png").chmod(0o400)
    imgs.chmod(0o500)
    try:
        assert run(imgs, "-o", tmp_path / "out", weights=weights) == 0
    finally:
        imgs.chmod(0o700)
    assert files_below(tmp_path / "out") == {"a.png"}
    assert files_below(imgs) == {"a.png"}
