"""Training on what microscopes write: 16-bit stacks of few counts, by the command line."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from pictures import blobs
from PIL import Image

from denoise_batch import Denoiser
from denoise_batch.cli.batch import main as batch
from denoise_batch.cli.train import main
from denoise_batch.evaluate import EvalOptions, Scorer
from denoise_batch.files.images import read_pages
from denoise_batch.kernels import TrainingError, WeightsError
from denoise_batch.models import Network, load_weights, save_weights
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.scenes import (
    Reading,
    load_bursts,
    load_paired_folders,
    load_single_images,
    scene_validation,
)
from denoise_batch.training.train import train

SHORT = ["--tiles", "16", "--validation-tiles", "4", "--epochs", "1", "--device", "cpu"]
BLACK, WHITE = 992, 5312
Array = np.ndarray[Any, Any]


def counts(
    pages: int, seed: int, size: int = 64, is_one_scene: bool = False, shot: int = 0
) -> Array:
    """(pages, size, size) of 0 to 40 photons and read noise, as 992 … 5312 counts and more."""
    chance = np.random.default_rng([seed, shot] if shot else seed)
    pictures = [
        blobs(size, 100 * seed + (0 if is_one_scene else page))[0].numpy() for page in range(pages)
    ]
    photons = chance.poisson(40 * np.stack(pictures).clip(0, 1)) + chance.normal(
        0, 0.3, (pages, size, size)
    )
    return (BLACK + photons * (WHITE - BLACK) / 40).round().clip(0, 65535).astype(np.uint16)


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """Three stacks of six pages, each page a scene."""
    (tmp_path / "stacks").mkdir()
    for number in range(3):
        tifffile.imwrite(
            tmp_path / "stacks" / f"{number}.tif", counts(6, number), photometric="minisblack"
        )
    return tmp_path / "stacks"


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Three stacks of six shots of one scene."""
    (tmp_path / "bursts").mkdir()
    for number in range(3):
        pages = counts(6, number, is_one_scene=True)
        tifffile.imwrite(tmp_path / "bursts" / f"{number}.tif", pages, photometric="minisblack")
    return tmp_path / "bursts"


def test_stacks_train_in_every_way_and_draw_what_is_there(
    stacks: Path, bursts: Path, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    for number in range(3):
        path = tmp_path / "second" / f"{number}.tif"
        tifffile.imwrite(path, counts(6, number, shot=1), photometric="minisblack")
    runs: dict[str, list[object]] = {
        "bursts": [bursts, "--bursts"],
        "pairs": [stacks, "--pairs", tmp_path / "second"],
        "single": [stacks, "--self", "blind-spot", "--axes", "ZYX"],
        "gaussian:25": [stacks, "--noise", "gaussian:25", "--validation-share", "0.5"],
    }
    for kind, arguments in runs.items():
        output = tmp_path / "runs" / kind[:6]
        assert main([*map(str, arguments), "-o", str(output), *SHORT]) == 0, kind
        training = load_weights(output / "best.safetensors").training
        assert training.get("self") == ("blind-spot" if kind == "single" else None)
        assert training.get("axes") == ("ZYX" if kind == "single" else None)
        with Image.open(output / "samples.png") as samples:
            seen = np.asarray(samples.convert("L"), float)
        first = seen[4:124, 4:124]
        assert 60 < first.mean() < 200, kind
        assert first.std() > 30, kind


def test_training_sees_the_values_that_denoise_batch_sees(stacks: Path) -> None:
    scenes = load_single_images(stacks, Reading())
    for scene in (*scenes.training, *scenes.validation):
        assert scene.samples.dtype == torch.uint16
    found = [scene.unit(0) for scene in (*scenes.training, *scenes.validation)]
    pages = [page.to_unit() for path in sorted(stacks.iterdir()) for page in read_pages(path)]
    assert len(found) == len(pages) == 18
    for unit in pages:
        assert any(torch.equal(unit, other) for other in found)
    assert len(torch.stack(pages).unique()) > 1000, "31 levels of 8 bits before"


def test_all_shots_of_a_scene_have_one_range(tmp_path: Path) -> None:
    """A hot pixel in one file must not darken its shots alone."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    for number in range(2):
        pages = counts(2, number).astype(np.float32)
        tifffile.imwrite(tmp_path / "first" / f"{number}.tif", pages, photometric="minisblack")
        pages[:, :8, :8] *= 5
        tifffile.imwrite(tmp_path / "second" / f"{number}.tif", pages, photometric="minisblack")
    scenes = load_paired_folders(tmp_path / "first", tmp_path / "second", Reading())
    for scene in (*scenes.training, *scenes.validation):
        assert torch.equal(scene.unit(0)[:, 8:], scene.unit(1)[:, 8:])


def test_a_given_range_goes_with_the_weights(stacks: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [str(stacks), "--self", "neighbor", "--range", f"{BLACK}-{WHITE}"]
    assert main([*arguments, "-o", str(output), *SHORT]) == 0
    weights = output / "best.safetensors"
    assert load_weights(weights).training["range"] == [BLACK, WHITE]
    assert load_weights(weights).value_range == (BLACK, WHITE)
    assert main([*arguments, "-o", str(output), *SHORT, "--resume"]) == 0

    def denoised(name: str, *options: str) -> Array:
        target = tmp_path / name
        files = [str(stacks / "1.tif"), "-o", str(target), "--weights", str(weights), "-d", "cpu"]
        assert batch([*files, "--no-measure", *options]) == 0
        return tifffile.imread(target / "1.tif")

    stored = denoised("stored")
    assert np.array_equal(stored, denoised("same", "--range", f"{BLACK}-{WHITE}"))
    assert not np.array_equal(stored, denoised("other", "--range", "0-65535"))
    assert Scorer(EvalOptions(str(weights), stacks, (), device="cpu")).value_range == (BLACK, WHITE)
    page = tifffile.imread(stacks / "1.tif")[0]
    assert np.array_equal(Denoiser(weights, device="cpu")(page), stored[0])


def test_weights_with_a_damaged_range_are_refused(stacks: Path, tmp_path: Path) -> None:
    for found in ([3, 1], "wide", [1], [0, float("nan")]):
        save_weights(tmp_path / "x.safetensors", Network("tconv", 0.5, 0.2), {"range": found})
        with pytest.raises(WeightsError, match="range"):
            load_weights(tmp_path / "x.safetensors")


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="{}" Type="uint16" SizeX="40" SizeY="40" SizeC="{}" SizeZ="{}" '
    'SizeT="{}"><TiffData/></Pixels></Image>{}</OME>'
)


def write_hyperstacks(folder: Path, how: str, sizes: dict[str, int]) -> None:
    """Two files of pages along `sizes`, the slowest first: t + 1000 · (1 + number of the scene)."""
    folder.mkdir()
    for number in range(2):
        pages = np.full((*sizes.values(), 40, 40), 1000, np.uint16)
        pages += counts(1, number, 40)[0] % 2
        scene = 0
        for axis, (letter, size) in enumerate(sizes.items()):
            along = np.arange(size).reshape(-1, *[1] * (pages.ndim - axis - 1))
            step = 1 if letter == "T" else 1000 * 3**scene
            scene += letter != "T"
            pages += (step * along).astype(np.uint16)
        axes = "".join(sizes) + "YX"
        path = folder / f"{number}.tif"
        if how == "ome":
            order = "XY" + axes[-3::-1] + "".join(c for c in "ZCT" if c not in axes)
            text = OME.format(order, *(sizes.get(letter, 1) for letter in "CZT"), "")
            flat = pages.reshape(-1, 40, 40)
            tifffile.imwrite(path, flat, photometric="minisblack", description=text, metadata=None)
            continue
        kind: dict[str, Any] = {"imagej": True} if how == "imagej" else {}
        metadata = None if how == "unnamed" else {"axes": axes}
        tifffile.imwrite(
            path, pages, metadata=metadata or {}, **(kind or {"photometric": "minisblack"})
        )


@pytest.mark.parametrize("axes", [None, "TZYX"])
@pytest.mark.parametrize("how", ["imagej", "ome", "tifffile", "unnamed"])
def test_hyperstacks_are_sorted_by_what_they_say(
    how: str, axes: str | None, tmp_path: Path
) -> None:
    """Four times of three slices: three scenes of four shots."""
    write_hyperstacks(tmp_path / "data", how, {"T": 4, "Z": 3})
    if how == "unnamed" and axes is None:
        with pytest.raises(TrainingError, match="its pages are 4 × 3, not shots of one scene"):
            load_bursts(tmp_path / "data", Reading())
        return
    scenes = load_bursts(tmp_path / "data", Reading(axes))
    found = [*scenes.training, *scenes.validation]
    assert [len(scene) for scene in found] == [4] * 6
    for scene in found:
        means = scene.samples.float().mean((1, 2, 3))
        assert (means.diff() - 1).abs().max() < 0.2, "the shots of one slice, in order"
    assert len(load_single_images(tmp_path / "data", Reading("SYX")).training) == 12
    assert len(load_single_images(tmp_path / "data", Reading()).training) == 12


@pytest.mark.parametrize(
    ("how", "order"), [("imagej", "TZC"), ("ome", "CTZ"), ("ome", "ZCT"), ("tifffile", "CTZ")]
)
def test_the_order_of_axes_is_the_file_s(how: str, order: str, tmp_path: Path) -> None:
    sizes = {"T": 4, "Z": 3, "C": 2}
    write_hyperstacks(tmp_path / "data", how, {letter: sizes[letter] for letter in order})
    scenes = load_bursts(tmp_path / "data", Reading())
    found = [*scenes.training, *scenes.validation]
    assert [len(scene) for scene in found] == [4] * 12
    for scene in found:
        means = scene.samples.float().mean((1, 2, 3))
        assert (means.diff() - 1).abs().max() < 0.2
    for axes in (order[::-1], "".join(letter for letter in order if letter != "C"), "T"):
        with pytest.raises(TrainingError, match=r"the slowest first, which --axes .* contradicts"):
            load_bursts(tmp_path / "data", Reading(axes + "YX"))


def test_a_single_axis_may_be_given_another_name(tmp_path: Path) -> None:
    """Programs call the pages of any stack slices or channels."""
    write_hyperstacks(tmp_path / "data", "imagej", {"C": 4})
    with pytest.raises(TrainingError, match=r"4 channels, not shots .* give --axes TYX"):
        load_bursts(tmp_path / "data", Reading())
    write_hyperstacks(tmp_path / "frames", "ome", {"T": 4})
    for folder, axes in (("data", "TYX"), ("frames", None), ("frames", "TZYX")):
        scenes = load_bursts(tmp_path / folder, Reading(axes))
        assert [len(scene) for scene in (*scenes.training, *scenes.validation)] == [4, 4]
    with pytest.raises(TrainingError, match=r"4 channels, .* which --axes TZYX contradicts"):
        load_bursts(tmp_path / "data", Reading("TZYX"))
    text = "ImageJ=1.54f\nimages=4\nslices=4\nloop=false\n"  # no hyperstack: any stack is "slices"
    pages = counts(4, 1, is_one_scene=True)
    path = tmp_path / "1.tif"
    tifffile.imwrite(path, pages, photometric="minisblack", description=text, metadata=None)
    assert len(load_bursts(path, Reading(smallest_px=16)).training[0]) == 4


@pytest.mark.parametrize(
    ("text", "count", "reason"),
    [(OME.format("XYCZT", 1, 3, 4, '<Image><Pixels SizeX="4"/></Image>'), 12, ""),
     (OME.format("XYCZT", 1, 3, 4, ""), 10, "4 frames × 3 slices, but has 10"),
     (OME.format("XYCZT", 3, 1, 4, ""), 4, ""),
     ("ImageJ=1.54f\nslices=many\nframes=4\nhyperstack=true\n", 4, ""),
     ('{"shape": [4, "x"], "axes": 3}', 4, "")],
    ids=["other scenes", "truncated", "colours", "no number", "damaged"],
)  # fmt: skip
def test_what_files_say_must_fit_their_pages(
    text: str, count: int, reason: str, tmp_path: Path
) -> None:
    pages = counts(count, 1, is_one_scene=True)
    path = tmp_path / "1.tif"
    description = text.encode()
    tifffile.imwrite(path, pages, photometric="minisblack", description=description, metadata=None)
    if reason:
        with pytest.raises(TrainingError, match=reason):
            load_bursts(path, Reading(smallest_px=16))
        scenes = load_bursts(path, Reading(smallest_px=16, axes="TYX"))
        assert {len(scene) for scene in (*scenes.training, *scenes.validation)} == {count}
    else:
        scenes = load_bursts(path, Reading(smallest_px=16))
        assert {len(scene) for scene in (*scenes.training, *scenes.validation)} == {4}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--bursts", "--axes", "TZYX"], "does not say how many frames and slices"),
     (["--bursts", "--axes", "TXY"], "letters of what the pages of a file are"),
     (["--bursts", "--axes", "QYX"], "letters of what the pages of a file are"),
     (["--self", "neighbor", "--axes", "TYX"], "use --bursts"),
     (["--axes", "TYX"], "--axes: has no effect"),
     (["--self", "neighbor", "--range", "5-1"], "LOW below HIGH"),
     (["--self", "neighbor", "--range", "much"], "LOW-HIGH")],
    ids=str,
)  # fmt: skip
def test_axes_and_ranges_that_cannot_be_are_refused(
    arguments: list[str], reason: str, stacks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(stacks.parent / "run")]
    assert main([str(stacks), *arguments, *output, *SHORT]) in (1, 2)
    error = capsys.readouterr().err
    assert reason in " ".join(error.split())
    assert "Traceback" not in error


def test_one_stack_alone_is_enough(stacks: Path, bursts: Path, tmp_path: Path) -> None:
    """Of one file the last pages are held out, of one scene the end of its longer side."""
    scenes = load_single_images(stacks / "0.tif", Reading())
    assert (len(scenes.training), len(scenes.validation)) == (5, 1)
    wide = np.concatenate([tifffile.imread(bursts / "0.tif")] * 2, 2)
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="minisblack")
    scenes = load_bursts(tmp_path / "wide.tif", Reading(smallest_px=32))
    assert scenes.training[0].size == (64, 96)
    assert scenes.validation[0].size == (64, 32)


def test_bursts_that_lie_apart_are_cropped_to_what_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    offsets = [(0, 0), (3, -2), (-4, 1)]
    for number in range(3):
        whole = blobs(140, number)[0].numpy()
        chance = np.random.default_rng(number)
        shots = []
        for down, right in offsets if number == 1 else [(0, 0)] * 3:
            part = whole[20 - down : 116 - down, 20 - right : 116 - right]
            shots.append(1000 + 100 * chance.poisson(40 * part.clip(0, 1)))
        pages = np.stack(shots).astype(np.uint16)
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(tmp_path / "run"), *SHORT]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 scenes" in told
    assert "1.tif: shot 3 by -4 px down, +1 px right" in told
    scenes = load_bursts(tmp_path / "data", Reading())
    found = {scene.size: scene for scene in (*scenes.training, *scenes.validation)}
    assert set(found) == {(96, 96), (89, 93)}
    one, two, three = (found[89, 93].unit(shot) for shot in range(3))
    apart = found[96, 96]
    noise = (apart.unit(0) - apart.unit(1)).std()
    assert max((one - two).std(), (one - three).std()) < 1.2 * noise


def test_faults_of_a_single_file_name_it_and_its_page(tmp_path: Path) -> None:
    path = tmp_path / "1.tif"
    with tifffile.TiffWriter(path) as file:
        for size in (64, 64, 48):
            file.write(counts(1, 1, size)[0], photometric="minisblack", metadata=None)
    with pytest.raises(TrainingError) as caught:
        load_bursts(path, Reading(smallest_px=16))
    start = f"{path}, page 3: 48×48 px, but {path}, page 1: 64×64 px; "
    assert str(caught.value).startswith(start)
    tifffile.imwrite(path, counts(1, 1).repeat(2, 0), photometric="minisblack")
    with pytest.raises(TrainingError) as caught:
        load_bursts(path, Reading(smallest_px=16))
    assert str(caught.value).startswith(f"{path}: shots 1 and 2 are the same")


def test_what_moves_is_refused_by_its_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        first = (1000 + 4000 * blobs(200, number)[0].numpy()).astype(np.uint16)
        second = first + 1
        if number == 1:
            second[:, :100] = np.roll(first, 6, 1)[:, :100]
        pages = np.stack([first, second])
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(tmp_path / "run"), *SHORT]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "1.tif" in error
    assert "up to 6 px" in error
    assert "leave this scene out" in error


def test_bleached_shots_are_brought_to_the_first_one_s_brightness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        pages = counts(4, number, 128, is_one_scene=True)
        if number != 1:
            for shot, page in enumerate(pages):
                page[:] = BLACK + (page - float(BLACK)).clip(0) * 0.7**shot
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(tmp_path / "run"), *SHORT]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "shots of 2 of 3 scenes differ in brightness, by up to 2.9 times" in told
    assert "shot 4" in told
    scenes = load_bursts(tmp_path / "data", Reading())
    for scene in (*scenes.training, *scenes.validation):
        smooth = torch.nn.functional.avg_pool2d(scene.unit(0), 9, 1, 4)  # not where noise is bright
        bright = smooth > smooth.mean()
        means = [scene.unit(shot)[bright].mean() for shot in range(4)]
        assert max(means) - min(means) < 0.02


def test_longer_exposures_are_seen_as_the_first_shot_s_file_is(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    for number in range(2):
        path = tmp_path / "first" / f"{number}.tif"
        clean = 1000 + 3000 * blobs(128, number)[0].numpy()
        chance = np.random.default_rng(number)
        short, long = (gain * clean + chance.normal(0, 150, clean.shape) for gain in (1, 3))
        tifffile.imwrite(path, short.astype(np.uint16), photometric="minisblack")
        path = tmp_path / "second" / f"{number}.tif"
        kind = np.uint16 if number else np.float32  # of counts all the same
        tifffile.imwrite(path, long.astype(kind), photometric="minisblack")
    scenes = load_paired_folders(tmp_path / "first", tmp_path / "second", Reading())
    assert "2 of 2 scenes differ in brightness" in scenes.notes[0]
    alone = [read_pages(tmp_path / "first" / f"{number}.tif")[0].to_unit() for number in (0, 1)]
    for scene in (*scenes.training, *scenes.validation):
        first, second = scene.unit(0), scene.unit(1)
        assert any(torch.allclose(first, unit, atol=1e-4) for unit in alone)
        assert (second - first).mean().abs() < 0.01
        assert (second.std() / first.std() - 1).abs() < 0.1


def test_copies_are_refused_and_blank_shots_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        pages = counts(4, number, is_one_scene=True)
        if number == 1:
            pages[:] = BLACK
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    assert len(load_bursts(tmp_path / "data", Reading()).training) == 2
    pages[3] = pages[1]
    tifffile.imwrite(tmp_path / "data" / "2.tif", pages, photometric="minisblack")
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(tmp_path / "run"), *SHORT]) == 1
    assert "2.tif: shots 2 and 4 are the same" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("shot", [0, 2])
def test_a_shot_with_the_cap_on_is_refused(tmp_path: Path, shot: int) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        pages = counts(4, number, 160, is_one_scene=True)
        if number == 1:
            pages[shot] = BLACK + np.random.default_rng(3).normal(0, 24, (160, 160))
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    with pytest.raises(TrainingError, match=f"1.tif: shot {shot + 1} shows nothing of what shot"):
        load_bursts(tmp_path / "data", Reading())


def test_an_overexposed_shot_is_darkened_and_what_it_clipped_is_unknown(tmp_path: Path) -> None:
    chance, clean = np.random.default_rng(0), blobs(192)[0].numpy()
    for scene in range(2):
        (tmp_path / f"{scene}").mkdir()
        for number, exposure in enumerate((1, 1, 4 if scene else 1)):
            light = 200 * exposure * clean + chance.normal(0, 6, clean.shape)
            page = Image.fromarray(light.clip(0, 255).astype(np.uint8))
            page.save(tmp_path / f"{scene}" / f"{number}.png")
    scenes = load_bursts(tmp_path, Reading())
    assert "shots of 1 of 2 scenes differ in brightness" in scenes.notes[0]
    matched = next(s for s in (*scenes.training, *scenes.validation) if s.unknown is not None)
    assert matched.unknown is not None
    known = ~matched.unknown.any(0)[0]
    assert 0.1 < known.float().mean() < 0.9
    difference = (matched.unit(2) - matched.unit(0))[:, known]
    assert difference.mean().abs() < 0.02


def test_rounding_is_not_taken_for_noise(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        y, x = np.mgrid[:128, :128] / 30
        page = (30_000 + 20_000 * np.sin(x + number) * np.cos(y)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", page, photometric="minisblack")
    options = {"data": tmp_path / "data", "output": tmp_path / "run", "network": "tconv"}
    with pytest.raises(TrainingError, match="weaker than the rounding of the samples"):
        train(TrainOptions(**options, kind="single", self_supervised="auto"))


def test_pairs_of_other_scenes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("first", 0), ("second", 50)):
        (tmp_path / name).mkdir()
        for number in range(3):
            page = counts(1, seed + number, 200)
            tifffile.imwrite(tmp_path / name / f"{number}.tif", page, photometric="minisblack")
    pairs = [str(tmp_path / "first"), "--pairs", str(tmp_path / "second")]
    assert main([*pairs, "-o", str(tmp_path / "run"), *SHORT]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "shot 2 shows nothing of what shot 1 shows" in told or "moved" in told


@pytest.mark.parametrize("way", ["--bursts", "--self", "--noise"])
@pytest.mark.parametrize("start", ["", "tconv"])
def test_a_range_that_holds_no_sample_is_refused(
    stacks: Path,
    bursts: Path,
    tmp_path: Path,
    way: str,
    start: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the network starts from: the tiles would be all alike."""
    ways: dict[str, list[object]] = {
        "--bursts": [bursts, way],
        "--self": [stacks, way, "auto"],
        "--noise": [stacks, way, "gaussian:25", "--validation-share", "0.5"],
    }
    command = [*map(str, ways[way]), "-o", str(tmp_path / "run"), *SHORT]
    command += ["--init", start] if start else []
    assert main([*command, "--range", "0-100"]) == 1
    said = capsys.readouterr().err
    assert "error: " in said
    assert "all samples lie beyond --range 0-100 (they are 9" in said
    assert not (tmp_path / "run").exists()


def test_a_range_that_holds_few_samples_is_told(
    bursts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(bursts), "--bursts", *SHORT, "-o"]
    assert main([*command, str(tmp_path / "few"), "--range", "2000-2100"]) == 0
    warning = r"warning: .* [6-9]\d % of the samples lie beyond --range 2000-2100 \(they are "
    assert re.search(warning, capsys.readouterr().err)
    assert main([*command, str(tmp_path / "all"), "--range", "0-65535"]) == 0
    assert "beyond" not in capsys.readouterr().err


def test_a_range_that_does_not_suit_the_samples_is_named_whatever_fails(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(stacks), "--self", "recorrupted", *SHORT, "-o", str(tmp_path / "run"), "--range"]
    assert main([*command, "5200-5300"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no area of 16×16 px shows noise" in said
    assert "lie beyond --range 5200-5300" in said
    assert main([*command, "10000000-90000000"]) == 1
    assert "all samples lie beyond --range 1e+07-9e+07" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "0-10000000"]) == 0
    assert "a small part of --range 0-1e+07" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("frames", [3, 4])
@pytest.mark.parametrize("scenes", [None, 6])
@pytest.mark.parametrize("way", ["--bursts", "--self"])
def test_frames_that_tifffile_stored_as_colours_are_refused(
    tmp_path: Path, frames: int, scenes: int | None, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = np.stack([counts(frames, seed, is_one_scene=True) for seed in range(scenes or 1)])
    (tmp_path / "data").mkdir()
    path, stored = tmp_path / "data" / "1.tif", pages if scenes else pages[0]
    axes = {"axes": "ZTYX" if scenes else "TYX"}
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig="separate", metadata=axes)
    command = [str(tmp_path / "data"), way, *(["auto"] if way == "--self" else [])]
    assert main([*command, "-o", str(tmp_path / "run"), *SHORT]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"{frames} frames, but stores some of them as the colours of a page" in said


@pytest.mark.parametrize("start", ["", "tconv"])
@pytest.mark.parametrize("way", [["--bursts"], ["--self", "auto", "--axes", "SYX"]], ids=str)
def test_shots_that_are_constant_are_refused(
    tmp_path: Path, way: list[str], start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        pages = np.full((3, 64, 64), 1000, np.uint16)
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    command = [str(tmp_path / "data"), *way, "-o", str(tmp_path / "run"), *SHORT]
    assert main([*command, *(["--init", start] if start else [])]) == 1
    assert "constant" in capsys.readouterr().err


def test_shots_without_any_meaning_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        pages = np.full((3, 64, 64), np.nan, np.float32)
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", pages, photometric="minisblack")
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(tmp_path / "run"), *SHORT]) == 1
    assert "have no pixel with a meaning" in " ".join(capsys.readouterr().err.split())


def test_shots_with_an_empty_channel_train(tmp_path: Path) -> None:
    for scene in range(3):
        (tmp_path / "data" / f"{scene}").mkdir(parents=True)
        for shot, page in enumerate(counts(2, scene, is_one_scene=True)):
            level = (page // 32).clip(0, 255).astype(np.uint8)
            picture = np.stack([level, level // 2, np.zeros_like(level)], 2)
            Image.fromarray(picture).save(tmp_path / "data" / f"{scene}" / f"{shot}.png")
    output = tmp_path / "run"
    assert main([str(tmp_path / "data"), "--bursts", "-o", str(output), *SHORT]) == 0
    rows = (output / "metrics.jsonl").read_text()
    assert "NaN" not in rows
    assert "Infinity" not in rows


def test_auto_says_what_it_chose_and_refuses_what_no_way_removes(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main([str(stacks), "--self", "auto", "-o", str(output), *SHORT]) == 0
    told = capsys.readouterr().err
    chosen = load_weights(output / "best.safetensors").training["self"]
    assert f"--self {chosen}" in told
    (tmp_path / "blurred").mkdir()
    for number in range(3):
        pages = counts(6, number, 97).astype(float)
        wide = pages[:, :, 1:] + pages[:, :, :-1]
        wide = ((wide[:, 1:] + wide[:, :-1]) / 4).round().astype(np.uint16)
        tifffile.imwrite(tmp_path / "blurred" / f"{number}.tif", wide, photometric="minisblack")
    blurred = [str(tmp_path / "blurred"), "-o", str(tmp_path / "other"), *SHORT]
    assert main([*blurred, "--self", "auto"]) == 1
    refused = " ".join(capsys.readouterr().err.split())
    assert "correlates" in refused
    assert "--pairs" in refused
    assert main([*blurred, "--self", "neighbor"]) == 0
    assert "warning" in capsys.readouterr().err


def test_auto_adds_noise_where_it_is_normal_or_made_so(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photons' noise is behind their curve; hot pixels are not."""
    (tmp_path / "large").mkdir()
    for number in range(3):
        path = tmp_path / "large" / f"{number}.tif"
        tifffile.imwrite(path, counts(2, number, 192), photometric="minisblack")
    arguments = ["-o", str(tmp_path / "run"), *SHORT]
    assert main([str(tmp_path / "large"), "--self", "auto", *arguments]) == 0
    assert "--self recorrupted" in capsys.readouterr().err
    for path in stacks.iterdir():
        pages = tifffile.imread(path)
        pages[np.random.default_rng(0).random(pages.shape) < 0.01] = WHITE
        tifffile.imwrite(path, pages, photometric="minisblack")
    arguments[1] = str(tmp_path / "other")
    assert main([str(stacks), "--self", "recorrupted", *arguments]) == 0
    assert "not normal noise of one strength" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["padded", "masked", "clipped"])
def test_what_is_constant_or_clipped_is_no_noise(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the flattest areas show none; correlated noise is refused all the same."""
    chance = np.random.default_rng(0)
    for number in range(3):
        clean = 1000 + 3000 * blobs(160, number)[0].numpy()
        fine = chance.normal(0, 200, (161, 161))
        wide = (fine[1:, 1:] + fine[:-1, 1:] + fine[1:, :-1] + fine[:-1, :-1]) / 2
        for name, noise in (("fine", fine[1:, 1:]), ("wide", wide)):
            page = (clean + noise).round().clip(0, 65535)
            if kind == "padded":
                page[80:] = 0
            elif kind == "masked":
                page[40:120] = page.mean().round()
            else:
                page[80:] = (200 * page[80:] / 3000 - 200).clip(0)
            path = tmp_path / name / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, page.astype(np.uint16), photometric="minisblack")
    arguments = ["--self", "auto", "-o", str(tmp_path / "run"), *SHORT]
    assert main([str(tmp_path / "wide"), *arguments]) == 1
    assert "correlates by 0.5" in " ".join(capsys.readouterr().err.split())
    assert main([str(tmp_path / "fine"), *arguments]) == 0
    assert "--self recorrupted" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["auto", "recorrupted"])
@pytest.mark.parametrize("side", [12, 40])
def test_images_without_noise_to_measure_are_refused(
    method: str, side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        page = counts(1, number, side)[0]
        if side > 16:
            page[:] = 1000 + number
        tifffile.imwrite(tmp_path / f"{number}.tif", page, photometric="minisblack")
    output = ["-o", str(tmp_path / "run"), *SHORT]
    assert main([str(tmp_path), "--self", method, "--tile-px", "8", *output]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"--self {method}: no area of 16×16 px shows noise" in told


def test_validation_tiles_show_noise(tmp_path: Path) -> None:
    """Most of a shot is a border; what is left is enough."""
    pages = counts(4, 0, 160, is_one_scene=True)
    pages[:, 48:] = 0
    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", pages, photometric="minisblack")
    scenes = load_bursts(tmp_path, Reading())
    found = scene_validation(scenes.validation, 32, 64, 0, torch.device("cpu"))
    assert (found.noisy != found.clean).flatten(1).any(1).all()
    blank = [replace(scenes.validation[0], samples=scenes.validation[0].samples[:, :, 48:])]
    with pytest.raises(TrainingError, match="show no noise"):
        scene_validation(blank, 32, 64, 0, torch.device("cpu"))


def test_images_smaller_than_two_tiles_have_hidden_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", counts(6, 0, 48), photometric="minisblack")
    arguments = [str(tmp_path / "a.tif"), "--self", "auto", "-o", str(tmp_path / "run"), *SHORT]
    assert main(arguments) == 0
    assert "--self blind-spot" in capsys.readouterr().err


def test_hidden_pixels_are_drawn_by_the_seed(stacks: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"kind": "single", "self_supervised": "blind-spot", "tiles": 32}
    options |= {"validation_tiles": 4, "device": "cpu", "epochs": 2}
    train(TrainOptions(stacks, tmp_path / "one", "tconv", **options))
    train(TrainOptions(stacks, tmp_path / "two", "tconv", **options))
    one, two = (tmp_path / name / "best.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
