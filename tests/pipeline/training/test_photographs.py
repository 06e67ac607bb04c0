"""Tiles: the split by photograph, even shares, and one outcome for one seed."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from pictures import picture
from PIL import Image
from torch import Tensor

from denoise_batch.kernels import OptionError, TrainingError
from denoise_batch.training import pairs as pairs_module
from denoise_batch.training.data import (
    load_photographs,
    map_tiles,
    split_photographs,
    training_pairs,
    validation_tiles,
)
from denoise_batch.training.noise import GaussianNoise, SubpixelNoise, parse_noise
from denoise_batch.training.pairs import Batch, CropPairs, Denoise, Generators, Pairs, mean_and_std

CPU = torch.device("cpu")
nothing = torch.zeros_like  # a network that none of these pairs uses


def squares_as_they_are(squares: Tensor, generator: torch.Generator) -> Tensor:
    return squares


def test_no_photograph_is_on_both_sides_and_none_is_lost(photographs: Path) -> None:
    split = split_photographs(photographs, 32, 0.3)
    assert not set(split.training) & set(split.validation)
    assert len(split.training) + len(split.validation) == 10
    assert split.too_small == 0


def test_more_photographs_move_none_to_the_other_side(photographs: Path) -> None:
    before = split_photographs(photographs, 32, 0.3)
    (photographs / "more").mkdir()
    for path in before.training:
        (photographs / "more" / path.name).write_bytes(path.read_bytes())
    after = split_photographs(photographs, 32, 0.3)
    assert set(before.training) <= set(after.training)
    assert set(before.validation) <= set(after.validation)


def test_too_small_photographs_are_counted_and_left_out(photographs: Path) -> None:
    with pytest.raises(TrainingError, match="10 are smaller than 81 px"):
        split_photographs(photographs, 81, 0.3)


def test_a_folder_with_the_name_of_a_photograph_is_none(photographs: Path) -> None:
    before = split_photographs(photographs, 32, 0.3)
    (photographs / "empty.JPG").mkdir()
    assert split_photographs(photographs, 32, 0.3) == before


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not a folder"):
        split_photographs(tmp_path / "none", 32, 0.2)


def test_a_broken_photograph_is_named(photographs: Path) -> None:
    (photographs / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"broken\.png"):
        split_photographs(photographs, 32, 0.2)


@pytest.mark.parametrize("is_zoomed", [True, False])
def test_an_unreadable_photograph_is_one_line_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zoomed: bool
) -> None:
    noise = SubpixelNoise(2) if is_zoomed else GaussianNoise(25, 25)
    options: dict[str, Any] = {"count": 4, "tile_px": 16, "versions": 2, "seed": 0, "device": CPU}
    truncated = tmp_path / "truncated.png"
    picture(96, 80).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    with pytest.raises(TrainingError, match=r"^.*truncated\.png: is damaged.*copy it again.*$"):
        training_pairs([truncated], noise, **options)
    with pytest.raises(TrainingError, match=r"none\.png: cannot be read: No such file"):
        training_pairs([tmp_path / "none.png"], noise, **options)
    picture(96, 80).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TrainingError, match=r"large\.png: has too many pixels .*split it"):
        training_pairs([tmp_path / "large.png"], noise, **options)
    with pytest.raises(TrainingError, match=r"large\.png: has too many pixels .*split it"):
        split_photographs(tmp_path, 32, 0.2)


@pytest.mark.parametrize("kind", ["I;16.png", "I;16.tif", "F.tif", "RGB;16.png", "stack.tif"])
def test_photographs_above_8_bits_keep_their_depth_and_range(tmp_path: Path, kind: str) -> None:
    """992 … 5312 counts are 17 of 255 levels of 16 bits."""
    chance = np.random.default_rng(0)
    shape = {"RGB;16.png": (80, 96, 3), "stack.tif": (3, 80, 96)}.get(kind, (80, 96))
    counts = chance.integers(992, 5312, shape).astype(np.float32 if kind[0] == "F" else np.uint16)
    path = tmp_path / kind
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(counts))
    else:
        tifffile.imwrite(path, counts, photometric="minisblack")
    pages = load_photographs(path)
    assert len(pages) == (3 if kind == "stack.tif" else 1)
    values = torch.stack(pages)
    assert len(values.unique()) > 2000
    assert values.min() == 0
    assert values.max() == 1
    assert abs(values.mean() - 0.5) < 0.02
    given = load_photographs(path, (0.0, 10_000.0))[0]
    assert abs(given.mean() - 0.3152) < 0.002
    tiles = map_tiles([path], 5, 16, 0, squares_as_they_are, is_zoomed=True)
    assert abs(tiles.float().mean() - 127.5) < 8
    pairs = CropPairs(pages, GaussianNoise(25, 25), 32, 8, has_clean_targets=True)
    _, target, _ = pairs.batch(torch.arange(8), step_generators(), nothing)
    assert target.shape == (8, 3, 32, 32)
    assert len(target.unique()) > 1000


def step_generators() -> Generators:
    generators = Generators(CPU)
    generators.seed(0, 0)
    return generators


def load_photograph_of(image: Image.Image, path: Path) -> Tensor:
    image.save(path)
    return load_photographs(path)[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_photographs_of_8_bits_are_what_pillow_makes_of_them(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photograph.tif"
    picture(96, 80).convert(mode).save(path)
    with Image.open(path) as file:
        assert file.mode == mode
        expected = file.convert("RGB")
    rows = load_photographs(path)[0].permute(1, 2, 0)
    assert bytes(rows.flatten().tolist()) == expected.tobytes()


def test_the_seed_alone_decides_the_tiles(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    first = map_tiles(paths, 23, 32, 5, squares_as_they_are, is_zoomed=True)
    assert first.shape == (23, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, map_tiles(paths, 23, 32, 5, squares_as_they_are, is_zoomed=True))
    assert not torch.equal(first, map_tiles(paths, 23, 32, 6, squares_as_they_are, is_zoomed=True))


def test_every_photograph_gives_its_even_share(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).training

    def shares(squares: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full((len(squares), 1), len(squares))

    assert set(
        map_tiles(paths, 5 * len(paths), 32, 0, shares, is_zoomed=False).flatten().tolist()
    ) == {5}


def step(number: int) -> Generators:
    generators = Generators(CPU)
    generators.seed(0, number)
    return generators


def test_a_stored_pair_is_two_different_versions_of_the_same_tile(photographs: Path) -> None:
    noise = SubpixelNoise(4)
    paths = split_photographs(photographs, 32, 0.3).training
    pairs = training_pairs(paths, noise, count=9, tile_px=8, versions=2, seed=0, device=CPU)
    one, other, _ = pairs.batch(torch.arange(9), step(0), nothing)
    assert one.shape == other.shape == (9, 3, 8, 8)
    assert not torch.equal(one, other)
    again = torch.stack(pairs.batch(torch.arange(9), step(1), nothing)[:2])
    both = torch.stack([one, other])
    same = (again == both).flatten(2).all(2).all(0)
    swapped = (again == both.flip(0)).flatten(2).all(2).all(0)
    assert (same | swapped).all()
    assert swapped.any()


def test_plain_subpixel_pairs_are_the_stored_bytes_over_255(photographs: Path) -> None:
    noise = SubpixelNoise(4)
    paths = split_photographs(photographs, 32, 0.3).training

    def draw(squares: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([noise.draw(squares, generator) for _ in range(3)], 1)

    stored = map_tiles(paths, 9, 32, 5, draw, is_zoomed=True)
    generators = step(7)
    first = torch.randint(3, (9,), generator=generators.device)
    second = (first + torch.randint(1, 3, (9,), generator=generators.device)) % 3
    rows = torch.arange(9)
    pairs = training_pairs(paths, noise, count=9, tile_px=8, versions=3, seed=5, device=CPU)
    noisy, target, _ = pairs.batch(rows, step(7), nothing)
    assert torch.equal(noisy, stored[rows, first] / 255)
    assert torch.equal(target, stored[rows, second] / 255)


@pytest.mark.parametrize("last", ["gaussian:25", "poisson:30", "bernoulli:0.5", "camera:0.5"])
def test_noise_after_subpixel_noise_is_drawn_anew_in_its_own_units(
    photographs: Path, last: str
) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    options: dict[str, Any] = {"count": 64, "tile_px": 8, "versions": 2, "seed": 0, "device": CPU}
    plain = training_pairs(paths, parse_noise("subpixel:4"), **options)
    chain = training_pairs(paths, parse_noise(f"subpixel:4+{last}"), **options)
    points, others, _ = plain.batch(torch.arange(64), step(7), nothing)
    noisy, target, _ = chain.batch(torch.arange(64), step(7), nothing)
    assert (target - others).nanmean().item() == pytest.approx(0, abs=0.01)
    assert target.isnan().float().mean().item() == pytest.approx(
        0.5 if "bernoulli" in last else 0, abs=0.05
    )
    assert (noisy - points).std() > 0.01
    assert not torch.equal(noisy, chain.batch(torch.arange(64), step(8), nothing)[0])


def test_crops_and_noise_are_drawn_anew_each_time(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    noise = GaussianNoise(25, 25)
    pairs = training_pairs(paths, noise, count=6, tile_px=32, versions=2, seed=0, device=CPU)
    first, second, _ = pairs.batch(torch.arange(6), step(0), nothing)
    third, *_ = pairs.batch(torch.arange(6), step(1), nothing)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)
    assert (first - second).std().item() == pytest.approx(2**0.5 * 25 / 255, rel=0.05)


def test_a_step_draws_the_same_whatever_came_before(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    noise = GaussianNoise(0, 55)
    pairs = training_pairs(paths, noise, count=6, tile_px=32, versions=2, seed=0, device=CPU)
    expected = pairs.batch(torch.arange(6), step(7), nothing)
    generators = step(3)
    pairs.batch(torch.arange(6), generators, nothing)
    generators.seed(0, 7)
    assert all(map(torch.equal, pairs.batch(torch.arange(6), generators, nothing), expected))


def test_clean_targets_are_the_crop_itself(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    options: dict[str, Any] = {"count": 6, "tile_px": 32, "versions": 2, "seed": 0, "device": CPU}
    pairs = training_pairs(paths, GaussianNoise(25, 25), has_clean_targets=True, **options)
    noisy, clean, level = pairs.batch(torch.arange(6), step(0), nothing)
    torch.testing.assert_close(clean * 255, (clean * 255).round(), atol=1e-4, rtol=0)
    assert (noisy - clean).std().item() == pytest.approx(25 / 255, rel=0.05)
    assert torch.equal(level, torch.full((6,), 25 / 255))
    with pytest.raises(OptionError, match="targets"):
        training_pairs(paths, SubpixelNoise(2), has_clean_targets=True, **options)


@pytest.mark.parametrize(
    ("noise", "has_clean_targets"),
    [
        ("gaussian:25", True), ("gaussian:25", False), ("subpixel:2", False),
        ("subpixel:2+gaussian:25", False),
    ],
)  # fmt: skip
def test_gray_tiles_have_one_noise_for_all_channels(
    photographs: Path, noise: str, has_clean_targets: bool
) -> None:
    paths = split_photographs(photographs, 32, 0.3).training
    pairs = training_pairs(
        paths, parse_noise(noise), count=64, tile_px=16, versions=2, seed=0, device=CPU,
        has_clean_targets=has_clean_targets, gray_share=0.5,
    )  # fmt: skip
    noisy, target, _ = pairs.batch(torch.arange(64), step(0), nothing)
    is_gray = (noisy == noisy[:, :1]).flatten(1).all(1)
    assert 16 < is_gray.sum() < 48
    assert torch.equal(is_gray, (target == target[:, :1]).flatten(1).all(1))
    assert not torch.equal(noisy[is_gray], target[is_gray])


def crops(photographs: Path, noise: str, **options: Any) -> Pairs:
    paths = split_photographs(photographs, 32, 0.3).training
    given = {"count": 64, "tile_px": 32, "versions": 2, "seed": 0, "device": CPU} | options
    return training_pairs(paths, parse_noise(noise), **given)


def test_a_batch_of_real_noise_depends_on_seed_and_step_alone(photographs: Path) -> None:
    options: dict[str, Any] = {"gray_share": 0.3, "graphics_share": 0.3, "has_clean_targets": True}
    pairs = crops(photographs, "real", **options)
    first = pairs.batch(torch.arange(24), step(7), nothing)
    pairs.batch(torch.arange(24), step(8), nothing)
    again = crops(photographs, "real", **options).batch(torch.arange(24), step(7), nothing)
    assert all(map(torch.equal, first, again))
    assert first.level.shape == (24,)
    assert not first.noisy.isnan().any()


def test_the_level_of_gray_tiles_is_that_of_their_one_noise(photographs: Path) -> None:
    pairs = crops(photographs, "camera", gray_share=0.5, has_clean_targets=True)
    noisy, clean, level = pairs.batch(torch.arange(64), step(0), nothing)
    measured = (noisy - clean).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(level, measured, rtol=0.25, atol=2e-3)  # some end in mirrors


def test_graphics_take_their_share_of_the_tiles(photographs: Path) -> None:
    options: dict[str, Any] = {"graphics_share": 0.5, "has_clean_targets": True}
    plain, mixed = (
        crops(photographs, "gaussian:0", **chosen).batch(torch.arange(200), step(0), nothing)
        for chosen in ({**options, "graphics_share": 0.0}, options)
    )
    is_drawn = (plain.target != mixed.target).flatten(1).any(1)
    assert is_drawn.float().mean().item() == pytest.approx(0.5, abs=0.1)
    with pytest.raises(OptionError, match="graphics-share"):
        crops(photographs, "subpixel:2", graphics_share=0.1)


def test_a_share_of_the_drawn_tiles_stays_clean(photographs: Path) -> None:
    pairs = crops(photographs, "gaussian:25", graphics_share=1.0, gray_share=0.3)
    noisy, target, level = pairs.batch(torch.arange(300), step(0), nothing)
    is_clean = (noisy == target).flatten(1).all(1)
    assert is_clean.float().mean().item() == pytest.approx(0.4, abs=0.08)
    assert torch.equal(level, torch.where(is_clean, 0.0, 25 / 255))


def test_an_estimator_sees_more_clean_photographs(photographs: Path) -> None:
    pairs = crops(photographs, "gaussian:25", clean_share=0.3, has_clean_targets=True)
    noisy, clean, level = pairs.batch(torch.arange(300), step(0), nothing)
    is_clean = (noisy == clean).flatten(1).all(1)
    assert is_clean.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(level, torch.where(is_clean, 0.0, 25 / 255))


def test_framed_tiles_hold_noise_inside_and_one_colour_around_it(photographs: Path) -> None:
    options: dict[str, Any] = {"has_clean_targets": True}
    plain, framed = (
        crops(photographs, "gaussian:25", framed_share=share, **options).batch(
            torch.arange(300), step(0), nothing
        )
        for share in (0.0, 0.5)
    )
    assert torch.equal(plain.level, framed.level)
    is_painted = (plain.noisy != framed.noisy).any(1)
    is_framed = is_painted.flatten(1).any(1)
    assert 0.3 < is_framed.float().mean().item() < 0.55  # some frames have no side in the tile
    for row in is_framed.nonzero().flatten().tolist():
        around = framed.noisy[row][:, is_painted[row]]
        assert torch.equal(around, around[:, :1].expand_as(around))
        assert torch.equal(framed.target[row][:, is_painted[row]], around)
        kept = ~is_painted[row]
        assert kept.float().mean().item() > 0.08
        assert torch.equal(framed.noisy[row][:, kept], plain.noisy[row][:, kept])
        assert torch.equal(framed.target[row][:, kept], plain.target[row][:, kept])
        inside = kept.any(0).nonzero().flatten()  # a rectangle or an ellipse has no holes
        middle = kept[kept.any(1).nonzero().flatten().float().mean().round().int()]
        assert middle[inside.min() : inside.max() + 1].float().mean().item() > 0.9
    colours = framed.noisy[is_painted[:, None].expand_as(framed.noisy)]
    assert {0.0, 1.0} < set(colours.unique().tolist())
    with pytest.raises(OptionError, match="framed-share"):
        crops(photographs, "subpixel:2", framed_share=0.1)


def test_some_crops_are_halved_or_enlarged_and_some_end_in_mirrors() -> None:
    ramp = torch.arange(120) / 255
    down, across = ramp.view(-1, 1).expand(-1, 120), ramp.expand(120, -1)
    photograph = torch.stack([down, across, torch.zeros_like(across)])
    pairs = CropPairs([photograph], GaussianNoise(0, 0), 32, 400, has_clean_targets=True)
    noisy, target, _ = pairs.batch(torch.arange(400), step(0), nothing)
    assert torch.equal(noisy, target)
    slope = 255 * (target[:, 0, 16, 0] - target[:, 0, 15, 0])  # below 1 where a crop is enlarged
    assert (slope > 1.5).float().mean().item() == pytest.approx(0.15, abs=0.05)
    assert (slope < 0.95).float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert slope.min() > 0.33
    falls = target[:, 0, -1, 0] < target[:, 0, -2, 0]
    assert falls.float().mean().item() == pytest.approx(0.25 * 4 / 5, abs=0.06)
    mirrored = target[falls & (slope > 0.95)][0]
    size = 31 - int((mirrored[0, 1:, 0] < mirrored[0, :-1, 0]).sum())
    assert size >= 27
    assert torch.equal(mirrored[:, size + 1 :], mirrored[:, 2 * size - 31 : size].flip(1))


class Rows(Pairs):
    """Tiles that are there already; remembers how many were asked for at once."""

    def __init__(self, tiles: Tensor) -> None:
        self._tiles = tiles
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._tiles)

    def batch(self, indices: Tensor, generators: Generators, denoise: Denoise) -> Batch:
        self.asked.append(len(indices))
        tiles = self._tiles[indices]
        return Batch(tiles, tiles, torch.zeros(len(tiles)))


def test_mean_and_deviation_are_those_of_all_tiles_drawn_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale = torch.linspace(0.1, 1, 301).view(-1, 1, 1, 1)
    tiles = torch.rand(301, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * scale
    mean, std = tiles.mean((0, 2, 3)).tolist(), tiles.std((0, 2, 3)).tolist()
    whole = Rows(tiles)
    assert mean_and_std(whole, 8, step(0)) == (mean, std)  # to the last bit
    assert whole.asked == [301]
    monkeypatch.setattr(pairs_module, "CHUNK_PX", 64 * 100)
    pieces = Rows(tiles)
    of_pieces = mean_and_std(pieces, 8, step(0))
    assert pieces.asked == [100, 100, 100, 1]
    assert of_pieces[0] == pytest.approx(mean, rel=1e-6)
    assert of_pieces[1] == pytest.approx(std, rel=1e-6)


def test_validation_draws_no_more_noise_at_once_than_memory_should_hold(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = GaussianNoise.draw_with_level

    def count(
        self: GaussianNoise, source: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        drawn.append(len(source))
        return draw(self, source, generator)

    monkeypatch.setattr(GaussianNoise, "draw_with_level", count)
    monkeypatch.setattr(pairs_module, "CHUNK_PX", 32 * 32 * 4)
    paths = split_photographs(photographs, 32, 0.3).validation[:1]
    tiles = validation_tiles(paths, GaussianNoise(25, 25), count=10, tile_px=32, seed=1, device=CPU)
    assert drawn == [4, 4, 2]
    assert (tiles.noisy - tiles.clean).std().item() == pytest.approx(25 / 255, rel=0.03)


def test_validation_keeps_the_clean_tiles_beside_the_noisy_ones(photographs: Path) -> None:
    paths = split_photographs(photographs, 32, 0.3).validation
    tiles = validation_tiles(paths, GaussianNoise(25, 25), count=7, tile_px=32, seed=1, device=CPU)
    residual = tiles.noisy - tiles.clean
    assert residual.std().item() == pytest.approx(25 / 255, rel=0.03)
    assert tiles.clean.min() >= 0
    assert tiles.clean.max() <= 1
