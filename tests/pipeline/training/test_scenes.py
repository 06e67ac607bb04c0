"""Training on real noise: paired folders, bursts, single noisy images."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image

from denoise_batch.cli.train import main
from denoise_batch.files.pixels import to_pil
from denoise_batch.files.ranges import BITS_8, UNIT, ValueRange
from denoise_batch.kernels import OptionError, TrainingError
from denoise_batch.models import load_weights
from denoise_batch.training.data import split_photographs
from denoise_batch.training.options import TrainOptions
from denoise_batch.training.pairs import Generators
from denoise_batch.training.scene_pairs import (
    MOST_OTHERS,
    NEIGHBOR_SHARE,
    Scene,
    ScenePairs,
    hide_spots,
)
from denoise_batch.training.scenes import (
    Reading,
    load_bursts,
    load_paired_folders,
    load_single_images,
)
from denoise_batch.training.train import train

SHORT = ["--tiles", "16", "--validation-tiles", "4", "--epochs", "1", "--device", "cpu"]


def step(number: int = 0) -> Generators:
    generators = Generators(torch.device("cpu"))
    generators.seed(0, number)
    return generators


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """first/x/0.png …, second/x/0.bmp …: flat scenes, the second shot brighter by 1."""
    for number in range(5):
        for offset, name in enumerate(("first/x", "second/x")):
            path = tmp_path / name / f"{number}.{('png', 'bmp')[offset]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 40), (10 * number + offset,) * 3).save(path)
    return tmp_path


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Three scenes of four shots; shot s of scene n has the value 20·n + s."""
    for number in range(3):
        for shot in range(4):
            path = tmp_path / "bursts" / f"scene {number}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 48), (20 * number + shot,) * 3).save(path)
    return tmp_path / "bursts"


def test_paired_shots_find_each_other_whatever_their_suffix(shots: Path) -> None:
    scenes = load_paired_folders(shots / "first", shots / "second", Reading())
    assert len(scenes.training) == 4
    assert len(scenes.validation) == 1
    for scene in (*scenes.training, *scenes.validation):
        assert torch.equal(scene.samples[1], scene.samples[0] + 1)


def _save_float(path: Path, values: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(values[:, :, None]).save(path)


def test_float_shots_of_a_scene_are_brought_to_one_scale(tmp_path: Path) -> None:
    """Each by its own range, a hot pixel in one of them would darken that one alone."""
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        scene = 100 + 500 * torch.rand(32, 32, generator=generator)
        _save_float(tmp_path / "first" / f"{number}.tif", scene)
        scene[0, 0] = 2000.0
        _save_float(tmp_path / "second" / f"{number}.tif", scene)
    scenes = load_paired_folders(tmp_path / "first", tmp_path / "second", Reading())
    for scene in (*scenes.training, *scenes.validation):
        one, other = scene.unit(0).flatten(), scene.unit(1).flatten()
        assert torch.equal(one[1:], other[1:])
        assert -0.01 < one.min() < 0.01
        assert 0.99 < one.max() < 1.01, "the hot pixel does not move the range"
        assert scene.unknown is not None
        assert scene.unknown.nonzero().tolist() == [[1, 0, 0, 0]], "nor is it a target"


def test_a_folder_with_the_name_of_a_picture_is_none(shots: Path, bursts: Path) -> None:
    (shots / "first" / "x").rename(shots / "first" / "x.png")
    (shots / "second" / "x").rename(shots / "second" / "x.png")
    assert len(load_paired_folders(shots / "first", shots / "second", Reading()).training) == 4
    (bursts / "scene 1").rename(bursts / "IMG_0001.JPG")
    scenes = load_bursts(bursts, Reading())
    assert len(scenes.training) + len(scenes.validation) == 3


@pytest.mark.parametrize("kind", ["scenes", "photographs"])
def test_hidden_folders_and_earlier_runs_are_no_data(
    kind: str, photographs: Path, tmp_path: Path
) -> None:
    def found() -> list[Any]:
        if kind == "photographs":
            split = split_photographs(photographs, 32, 0.3)
            return [*split.training, *split.validation]
        scenes = load_single_images(photographs, Reading())
        return [*scenes.training, *scenes.validation]

    assert len(found()) == 10
    source = next(path for path in photographs.rglob("*") if path.is_file())
    for name in (".git/a.png", ".b/c/a.png", "._x/a.png", "__MACOSX/d/a.png", "@eaDir/a.png"):
        (photographs / name).parent.mkdir(parents=True)
        shutil.copy(source, photographs / name)
    run = photographs / "run"
    run.mkdir()
    for name in ("samples.png", "curves.png", "mine.png"):
        shutil.copy(source, run / name)
    assert len(found()) == 13, "by their names alone these are pictures"
    for name in ("config.json", "metrics.jsonl"):
        (run / name).touch()
    assert len(found()) == 11
    shutil.copytree(photographs, tmp_path / ".hidden")
    assert len(load_single_images(tmp_path / ".hidden", Reading()).training) == 9


@pytest.mark.parametrize("load", [load_single_images, load_bursts, load_paired_folders])
def test_a_folder_without_images_is_said_to_have_none(load: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    folders = [tmp_path / "data", tmp_path] if load is load_paired_folders else [tmp_path / "data"]
    with pytest.raises(TrainingError, match=r"holds no images \(\.tif, \.png, .* …\)$"):
        load(*folders, Reading())
    (tmp_path / "data" / "1.npy").touch()
    with pytest.raises(TrainingError, match="save NumPy's arrays as TIFF"):
        load(*folders, Reading())


def test_a_batch_is_two_different_shots_of_one_scene(bursts: Path) -> None:
    scenes = load_bursts(bursts, Reading(share=0.3))
    pairs = ScenePairs(scenes.training, 32, 100)
    one, other, _ = pairs.batch(torch.arange(64), step(), torch.zeros_like)
    assert one.shape == other.shape == (64, 3, 32, 32)
    first, second = ((255 * part[:, 0, 0, 0]).round().int() for part in (one, other))
    assert torch.equal(first // 20, second // 20)
    assert (first != second).all()
    assert {int(value) % 20 for value in first} == {0, 1, 2, 3}


@pytest.mark.parametrize("count", [2, 3, MOST_OTHERS + 1, MOST_OTHERS + 5])
def test_a_target_is_the_mean_of_other_shots(count: int) -> None:
    clean, sigma = torch.rand(1, 1, 48, 48), 0.1
    samples = clean + sigma * torch.randn(count, 1, 48, 48)
    unknown = torch.zeros(count, 1, 48, 48, dtype=torch.bool)
    unknown[0, 0, 0, :16] = unknown[:, 0, 47, 47] = True
    samples[0, 0, 0, :16] = 1.5  # hot: they tell nothing of the noise
    pairs = ScenePairs([Scene(samples, UNIT, unknown)], 48, 40)
    noisy, target, level = pairs.batch(torch.arange(40), step(), torch.zeros_like)
    assert target.shape == (40, 3, 48, 48)
    assert target[:, :, 47, 47].isnan().all(), "known in no shot"
    is_first = (noisy == samples[0]).flatten(1).all(1)
    assert is_first.any()
    assert target[is_first, :, 0, 0].isfinite().all()
    others = min(count - 1, MOST_OTHERS)
    error = (target - clean)[:, :, 1:47].square().mean().sqrt().item()
    assert error == pytest.approx(sigma / others**0.5, rel=0.1)
    assert (noisy - target)[:, :, 1:47].abs().amin((1, 2, 3)).max() > 0, "its own is left out"
    torch.testing.assert_close(level, torch.full((40,), sigma), rtol=0.1, atol=0)
    found = {tuple((noisy[row] == samples).flatten(1).all(1).tolist()) for row in range(40)}
    assert len(found) > min(count, 10) / 2, "every shot is an input"


def test_neighbours_are_adjacent_pixels_of_one_cell() -> None:
    rows = torch.arange(64, dtype=torch.uint8).view(64, 1).expand(64, 64)
    columns = torch.arange(64, dtype=torch.uint8).view(1, 64).expand(64, 64)
    scene = Scene(torch.stack([rows, columns, rows * 0])[None], BITS_8)
    pairs = ScenePairs([scene], 16, 8, "neighbor")
    one, other, _ = pairs.batch(torch.arange(8), step(), torch.zeros_like)
    assert one.shape == (8, 3, 16, 16)
    apart = (255 * (one - other)).round().abs().sum(1)
    assert (apart == 1).all(), "neighbours differ by one row or one column"


def test_the_regulariser_moves_the_target_by_what_the_network_says() -> None:
    scene = Scene(torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8), BITS_8)
    pairs = ScenePairs([scene], 16, 8, "neighbor")
    plain = pairs.batch(torch.arange(8), step(), torch.zeros_like)
    moved = pairs.batch(torch.arange(8), step(), lambda images: images)
    assert torch.equal(plain[0], moved[0])
    expected = plain[1] + NEIGHBOR_SHARE * (plain[0] - plain[1])
    torch.testing.assert_close(moved[1], expected)


@pytest.mark.parametrize("method", ["neighbor", "blind-spot"])
def test_the_level_of_one_shot_is_that_of_its_noise_not_of_its_edges(method: str) -> None:
    stripes = 0.3 + 0.4 * (torch.arange(96) // 8 % 2)
    shot = stripes + 0.03 * torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    pairs = ScenePairs([Scene(shot, UNIT)], 32, 8, method)
    level = pairs.batch(torch.arange(8), step(), torch.zeros_like).level
    torch.testing.assert_close(level, torch.full((8,), 0.03), rtol=0.15, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_more_noise_makes_independent_inputs_and_targets(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas = 0.05, 0.2
    shots = [
        0.5 + sigma * torch.randn(1, channels, 96, 96, generator=generator) for sigma in sigmas
    ]
    unknown = torch.zeros(1, 1, 96, 96, dtype=torch.bool)
    unknown[:, :, :48] = True
    scenes = [Scene(shots[0], UNIT), Scene(shots[1], UNIT, unknown)]
    pairs = ScenePairs(scenes, 32, 80, "recorrupted")
    input, target, level = pairs.batch(torch.arange(80), step(), torch.zeros_like)
    assert target.isnan().any()
    both = (input + target) / 2
    for sigma in sigmas:
        rows = (level / (2**0.5 * sigma) - 1).abs() < 0.1
        assert rows.any(), "the level is that of the input"
        known = ~target[rows].isnan()
        one, other = input[rows][known] - 0.5, target[rows][known] - 0.5
        assert one.std().item() == pytest.approx(2**0.5 * sigma, rel=0.05)
        assert abs((one * other).mean().item()) < 0.1 * sigma**2
        assert (both[rows][known] - 0.5).std().item() == pytest.approx(sigma, rel=0.05)
    if channels == 1:
        torch.testing.assert_close(input[:, 0], input[:, 1])


def test_a_hidden_pixel_of_every_cell_is_the_target() -> None:
    noisy = torch.rand(4, 3, 24, 16)
    input, target = hide_spots(noisy, step())
    known = ~target.isnan()
    assert torch.equal(known.any(1), known.all(1)), "in all channels"
    cells = known[:, 0].reshape(4, 3, 8, 2, 8).sum((2, 4))
    assert (cells == 1).all()
    assert torch.equal(target[known], noisy[known])
    assert torch.equal(input[~known], noisy[~known])
    row, column = known[0, 0].nonzero()[0].tolist()
    rows, columns = (
        slice(max(0, min(at - 2, extent - 5)), max(0, min(at - 2, extent - 5)) + 5)
        for at, extent in ((row, 24), (column, 16))
    )
    around = noisy[0].clone()
    around[:, row, column] = torch.nan
    neighbours = around[:, rows, columns].flatten(1)
    is_it = (neighbours == input[0, :, row, column, None]).all(0)
    assert is_it.sum() == 1, "one neighbour, in all channels"


def test_a_hidden_pixel_s_place_looks_like_any_other() -> None:
    """A substitute without noise tells a network where to look; it need not denoise elsewhere."""
    noisy = 0.5 + 0.1 * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    input, target = hide_spots(noisy, step())
    substitutes = input[~target.isnan()]
    assert substitutes.std() == pytest.approx(0.1, rel=0.15)
    assert substitutes.mean() == pytest.approx(0.5, abs=0.02)


def test_crops_are_what_denoise_batch_sees_of_the_file() -> None:
    samples = torch.randint(900, 5400, (2, 1, 40, 40)).to(torch.uint16)
    scene = Scene(samples, ValueRange(992.0, 4320.0))
    noisy, target, _ = ScenePairs([scene], 40, 1).batch(torch.arange(1), step(), torch.zeros_like)
    shots = [scene.unit(0).expand(3, -1, -1), scene.unit(1).expand(3, -1, -1)]
    order = shots if torch.equal(noisy[0], shots[0]) else shots[::-1]
    torch.testing.assert_close(noisy[0], order[0])
    torch.testing.assert_close(target[0], order[1])
    assert len(noisy.unique()) > 1000, "no gray level is lost"


def test_pixels_without_meaning_are_no_targets() -> None:
    unknown = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    unknown[1, 0, :5] = True
    scene = Scene(torch.rand(2, 1, 32, 32), UNIT, unknown)
    seen = set()
    for number in range(8):
        _, target, level = ScenePairs([scene], 32, 1).batch(
            torch.arange(1), step(number), torch.zeros_like
        )
        assert level.isfinite().all()
        seen.add(int(target.isnan().sum()))
    assert seen == {0, 3 * 5 * 32}


def test_second_shots_without_a_first_are_named(shots: Path) -> None:
    first, second = shots / "first", shots / "second"
    assert load_paired_folders(first, second, Reading()).notes == ()
    partner = next((second / "x").iterdir())
    (second / "x" / f"alias{partner.suffix}").symlink_to(partner)  # as another case on some systems
    assert load_paired_folders(first, second, Reading()).notes == ()
    picture(40, 48).save(second / "late.png")
    (note,) = load_paired_folders(first, second, Reading()).notes
    assert note == f"{second}: 1 image has no first shot, such as late.png; left out"


def test_bad_folders_are_named(shots: Path, bursts: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not a folder"):
        load_paired_folders(shots / "first", shots / "none", Reading())
    with pytest.raises(OptionError, match="holds the first shots"):
        load_paired_folders(shots / "first", shots / "second" / ".." / "first", Reading())
    (shots / "second" / "x" / "3.bmp").unlink()
    with pytest.raises(TrainingError, match="no partner"):
        load_paired_folders(shots / "first", shots / "second", Reading())
    picture(40, 47).save(bursts / "scene 1" / "9.png")
    with pytest.raises(TrainingError, match=r"9\.png, page 1: 40×47 px, but .*0\.png, .*40×48"):
        load_bursts(bursts, Reading())
    lonely = tmp_path / "lonely" / "scene"
    lonely.mkdir(parents=True)
    picture(40, 40).save(lonely / "0.png")
    with pytest.raises(TrainingError, match=r"0\.png: found one shot.* --self auto"):
        load_bursts(lonely.parent, Reading())
    with pytest.raises(TrainingError, match="scenes of at least 64 px a side: 0; smaller: 5"):
        load_single_images(shots / "first", Reading(smallest_px=64))


def test_every_kind_of_data_trains_from_the_command_line(
    shots: Path, bursts: Path, photographs: Path, tmp_path: Path
) -> None:
    tensors = torch.randint(256, (20, 3, 24, 24), dtype=torch.uint8)
    torch.save((tensors, tensors), tmp_path / "train.pkl")
    torch.save((tensors[:4], tensors[:4]), tmp_path / "val.pkl")
    runs: dict[str, list[object]] = {
        "pairs": [shots / "first", "--pairs", shots / "second"],
        "bursts": [bursts, "--bursts"],
        "single": [photographs, "--self", "neighbor"],
        "tensors": [tmp_path / "train.pkl", "--validation", tmp_path / "val.pkl"],
    }
    for kind, arguments in runs.items():
        output = tmp_path / "runs" / kind
        # A two-tensor file brings its tiles.
        short = SHORT[4:] if kind == "tensors" else SHORT
        assert main([*map(str, arguments), "-o", str(output), *short]) == 0, kind
        training = load_weights(output / "best.safetensors").training
        assert training["noise"] == kind
        tiles = (20, 24) if kind == "tensors" else (16, 32)
        assert (training["tiles"], training["tile_px"]) == tiles, kind


def test_a_run_does_not_go_on_with_other_partners(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(shots / "first"), "--pairs", str(shots / "second"), *SHORT]
    command += ["-o", str(tmp_path / "run"), "--resume"]
    assert main(command) == 0
    assert main(command) == 0
    Image.new("RGB", (48, 40), (99, 98, 97)).save(shots / "second" / "x" / "3.bmp")
    capsys.readouterr()
    assert main(command) == 2
    assert "the data changed since" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["recorrupted", "neighbor", "blind-spot", "auto"])
def test_single_noisy_images_alone_teach_to_denoise(tmp_path: Path, method: str) -> None:
    """Flat pictures with noise: their neighbours tell what the noise is."""
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        values = 0.2 + 0.05 * number + 0.15 * torch.randn(3, 64, 64, generator=generator)
        pixels = (values.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).flatten().tolist()
        path = tmp_path / "noisy" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.frombytes("RGB", (64, 64), bytes(pixels)).save(path)
    arguments = ["--self", method, "--tile-px", "24", "--tiles", "128", "--epochs", "4"]
    output = ["-o", str(tmp_path / "run"), "--validation-tiles", "8", "--device", "cpu"]
    assert main([str(tmp_path / "noisy"), *arguments, *output]) == 0
    network = load_weights(tmp_path / "run" / "best.safetensors").network
    clean = torch.full((1, 3, 64, 64), 0.5)
    noisy = clean + 0.15 * torch.randn(clean.shape, generator=generator)
    assert (network(noisy) - clean).std() < 0.5 * (noisy - clean).std()


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [(["--bursts", "--noise", "gaussian:25"], "noise"),
     (["--bursts", "--versions", "3"], "versions"),
     (["--self", "neighbor", "--noise", "camera"], "noise"),
     (["--pairs", ".", "--noise", "subpixel:8"], "noise"),
     (["--optimizer", "adam", "--momentum", "0.9"], "momentum"),
     (["--optimizer", "adamw", "--no-nesterov"], "nesterov"),
     (["x.pt", "--noise", "gaussian:25"], "noise"), (["x.pt", "--tiles", "16"], "tiles"),
     (["x.pt", "--tile-px", "16"], "tile-px"),
     (["x.pt", "--validation-tiles", "4"], "validation-tiles")],
    ids=str,
)  # fmt: skip
def test_options_without_effect_are_refused(
    arguments: list[str], flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if arguments[0] == "x.pt" else [str(tmp_path)]
    assert main([*data, *arguments, "-o", str(tmp_path / "run")]) == 2
    assert f"--{flag}: has no effect: " in capsys.readouterr().err


def test_a_run_that_was_given_an_option_without_effect_resumes_without_it(bursts: Path) -> None:
    output = bursts.parent / "run"
    train(TrainOptions(bursts, output, "tconv", noise="camera", kind="bursts", tiles=16,
                       validation_tiles=4, epochs=1, device="cpu"))  # fmt: skip
    assert main([str(bursts), "--bursts", "-o", str(output), *SHORT, "--resume"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [["--bursts", "--self", "neighbor"], ["--self", "blind"], ["--validation", "x.pt"],
     ["--bursts", "--targets", "clean"], ["--bursts", "--gray-share", "0.1"]],
    ids=str,
)  # fmt: skip
def test_contradictions_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *arguments, "-o", str(tmp_path / "run")]) == 2
    assert "--" in capsys.readouterr().err
