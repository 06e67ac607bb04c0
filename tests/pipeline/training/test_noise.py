"""The noise models: zero mean, independent draws, the spelling of --noise."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)

from denoise_batch.kernels import OptionError
from denoise_batch.training.noise import (
    BernoulliNoise,
    CameraNoise,
    ChainedNoise,
    CorrelatedNoise,
    GaussianNoise,
    JpegNoise,
    MixedNoise,
    NoiseModel,
    PoissonNoise,
    RawNoise,
    SubpixelNoise,
    parse_noise,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_the_asked_for_deviation_and_no_bias() -> None:
    clean = torch.full((1, 3, 200, 200), 0.5)
    residual = GaussianNoise(25, 25).draw(clean, generator()) - clean
    assert residual.std().item() == pytest.approx(25 / 255, rel=0.01)
    assert residual.mean().item() == pytest.approx(0, abs=0.001)


def test_each_image_draws_its_own_sigma_within_the_range() -> None:
    clean = torch.zeros(64, 3, 32, 32)
    sigmas = 255 * GaussianNoise(10, 50).draw(clean, generator()).std((1, 2, 3))
    assert sigmas.min() > 9
    assert sigmas.max() < 52
    assert sigmas.max() - sigmas.min() > 25


def test_two_draws_are_independent() -> None:
    clean = torch.full((4, 3, 64, 64), 0.5)
    rng, noise = generator(), GaussianNoise(25, 25)
    first, second = noise.draw(clean, rng) - clean, noise.draw(clean, rng) - clean
    correlation = (first * second).mean() / (first.std() * second.std())
    assert abs(correlation.item()) < 0.02


def test_subpixel_noise_takes_one_pixel_of_every_block_for_all_channels() -> None:
    # Every source pixel is unique, so the drawn value tells where it came from.
    values = torch.arange(16 * 24, dtype=torch.float32).view(1, 1, 16, 24)
    source = torch.cat([values, values + 1000, values + 2000], 1)
    drawn = SubpixelNoise(8).draw(source, generator())
    assert drawn.shape == (1, 3, 2, 3)
    position = drawn[0, 0].long()
    rows, columns = position // 24, position % 24
    assert torch.equal(rows // 8, torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert torch.equal(columns // 8, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert torch.equal(
        drawn[:, 1:] - drawn[:, :1],
        torch.tensor([1000.0, 2000]).view(1, 2, 1, 1).expand(1, 2, 2, 3),
    )


def test_subpixel_draws_average_to_the_clean_tile() -> None:
    source = torch.rand(1, 3, 16, 16, generator=generator())
    noise, rng = SubpixelNoise(4), generator(1)
    mean = torch.stack([noise.draw(source, rng) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, noise.clean(source), atol=0.02, rtol=0)


def test_subpixel_noise_leaves_flat_areas_alone() -> None:
    source = torch.full((2, 3, 32, 32), 0.25)
    assert torch.equal(SubpixelNoise(8).draw(source, generator()), torch.full((2, 3, 4, 4), 0.25))


def test_poisson_noise_has_the_variance_of_counting() -> None:
    clean = torch.full((1, 3, 200, 200), 0.5)
    residual = PoissonNoise(30, 30).draw(clean, generator()) - clean
    assert residual.mean().item() == pytest.approx(0, abs=0.002)
    assert residual.var().item() == pytest.approx(0.5 / 30, rel=0.02)


def test_bernoulli_noise_loses_whole_pixels_and_says_so_to_the_target() -> None:
    clean = torch.full((1, 3, 100, 100), 0.5)
    noise = BernoulliNoise(0.3, 0.3)
    noisy = noise.draw(clean, generator())
    lost = noisy == 0
    assert (lost.any(1) == lost.all(1)).all()
    assert lost.float().mean().item() == pytest.approx(0.3, abs=0.02)
    target = noise.draw_target(clean, generator())
    assert torch.equal(target.isnan(), lost)
    assert (target[~lost] == 0.5).all()


def test_camera_noise_grows_with_light_and_keeps_the_mean() -> None:
    clean = torch.full((40, 3, 32, 32), 0.2)
    bright = torch.full((40, 3, 32, 32), 0.7)
    noise = CameraNoise()
    dark_residual = noise.draw(clean, generator()) - clean
    residual = noise.draw(bright, generator()) - bright
    assert residual.mean().item() == pytest.approx(0, abs=0.01)
    assert 2 < 255 * residual.std().item() < 30
    assert dark_residual.std() > 0
    assert torch.equal(noise.draw(bright, generator()), noise.draw(bright, generator()))


def test_stronger_camera_noise_is_stronger() -> None:
    clean = torch.full((20, 3, 32, 32), 0.5)
    weak, strong = ((CameraNoise(s).draw(clean, generator()) - clean).std() for s in (0.25, 1.0))
    assert weak < 0.5 * strong


@pytest.mark.parametrize("channels", [1, 3])
def test_camera_noise_of_any_channels_goes_through_jpeg(channels: int) -> None:
    clean = torch.full((20, channels, 32, 32), 0.5)
    residual = CameraNoise(0.25).draw(clean, generator(1)) - clean
    assert residual.shape == clean.shape
    assert 0 < 255 * residual.std().item() < 10


def test_chained_noise_adds_up() -> None:
    clean = torch.full((1, 3, 200, 200), 0.5)
    noise = parse_noise("gaussian:20+gaussian:15")
    residual = noise.draw(clean, generator()) - clean
    assert 255 * residual.std().item() == pytest.approx(25, rel=0.02)


def test_a_chain_after_subpixel_noise_works_on_the_small_tile() -> None:
    noise = parse_noise("subpixel:4+gaussian:5")
    source = torch.full((2, 3, 32, 32), 0.5)
    assert noise.factor == 4
    assert noise.draw(source, generator()).shape == noise.clean(source).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("last", ["gaussian:5", "poisson:500", "bernoulli:0.2", "camera:0.1"])
def test_pixels_lost_anywhere_in_a_chain_are_unknown_and_bias_no_target(last: str) -> None:
    clean = torch.full((20, 3, 32, 32), 0.5)
    noise = parse_noise(f"bernoulli:0.5+{last}")
    target = noise.draw_target(clean, generator())
    unknown = target.isnan()
    assert unknown.any(1).equal(unknown.all(1))
    share = 0.6 if last.startswith("bernoulli") else 0.5
    assert unknown.float().mean().item() == pytest.approx(share, abs=0.02)
    assert target[~unknown].mean().item() == pytest.approx(0.5, abs=0.01)
    assert target[~unknown].min() > 0.2  # nothing of a lost neighbour, by JPEG or otherwise


def test_a_target_after_subpixel_noise_is_of_the_small_tile() -> None:
    source = torch.rand(20, 3, 32, 32, generator=generator())
    noise = parse_noise("subpixel:4+bernoulli:0.5+gaussian:5")
    target = noise.draw_target(source, generator())
    assert target.shape == (20, 3, 8, 8)
    error = (target - noise.clean(source)).nanmean()
    assert error.item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("text", ["gaussian:9", "poisson:9", "bernoulli:0.9", "camera"])
def test_the_source_is_never_changed(text: str) -> None:
    source = torch.rand(2, 3, 16, 16)
    copy = source.clone()
    noise: NoiseModel = parse_noise(text)
    noise.draw(source, generator())
    noise.draw_target(source, generator())
    assert torch.equal(source, copy)


def rms(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.square().mean((1, 2, 3)).sqrt()


def is_of_8_bits(tiles: torch.Tensor) -> torch.Tensor:
    levels = tiles * 255
    return ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)


PARTS = ["white", "poisson-gaussian", "correlated", "raw", "jpeg", "8bit", "camera", "real"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", PARTS)
def test_every_part_states_the_level_of_what_it_added(text: str, channels: int) -> None:
    clean = torch.rand(12, channels, 32, 48, generator=generator(5))
    noise = parse_noise(text)
    noisy, level = noise.draw_with_level(clean, generator(1))
    assert noisy.shape == clean.shape
    assert level.shape == (12,)
    assert torch.equal(noisy, noise.draw(clean, generator(1)))
    if text == "real":
        level, measured = level[~is_of_8_bits(noisy)], rms(noisy - clean)[~is_of_8_bits(noisy)]
    else:
        measured = rms(noisy - clean)
    torch.testing.assert_close(level, measured, rtol=0.06, atol=1e-4)


def test_clipping_does_not_change_the_level_of_white_noise() -> None:
    dark = torch.full((2, 3, 64, 64), 0.02)
    noisy, level = parse_noise("gaussian:75+8bit").draw_with_level(dark, generator())
    assert torch.equal(level, torch.full((2,), 75 / 255))
    assert is_of_8_bits(noisy).all()
    assert rms(noisy - dark).max() < 0.8 * 75 / 255
    _, measured = parse_noise("gaussian:20+jpeg:60").draw_with_level(dark, generator())
    assert measured.max() < 20 / 255


def test_white_noise_is_mostly_weak() -> None:
    _, level = parse_noise("white").draw_with_level(torch.zeros(2000, 1, 2, 2), generator())
    assert 255 * level.max() > 70
    assert 255 * level.median().item() == pytest.approx(75 * 0.5**1.3, rel=0.1)


def test_poisson_gaussian_noise_grows_with_light() -> None:
    half = torch.cat([torch.full((40, 3, 32, 16), 0.1), torch.full((40, 3, 32, 16), 0.9)], 3)
    residual = parse_noise("poisson-gaussian").draw(half, generator()) - half
    assert residual[..., 16:].std() > 1.3 * residual[..., :16].std()
    assert residual.mean().item() == pytest.approx(0, abs=0.003)


def correlation(residual: torch.Tensor, distance: int) -> float:
    one, other = residual[..., distance:], residual[..., :-distance]
    return ((one * other).mean() / residual.square().mean()).item()


def test_correlated_noise_is_coarse_chroma_more_so_and_as_strong_as_asked() -> None:
    clean = torch.full((60, 3, 64, 64), 0.5)
    noisy, level = parse_noise("correlated:20").draw_with_level(clean, generator())
    torch.testing.assert_close(level, torch.full((60,), 20 / 255), rtol=1e-4, atol=0)
    residual = noisy - clean
    luma = residual.mean(1, keepdim=True)
    assert correlation(luma, 1) > 0.5
    assert correlation(residual - luma, 3) > correlation(luma, 3) + 0.05
    assert abs(correlation(GaussianNoise(20, 20).draw(clean, generator()) - clean, 1)) < 0.02


@pytest.mark.parametrize("shape", [(3, 33, 20), (1, 17, 16), (3, 2, 2)], ids=str)
def test_raw_noise_fits_images_of_any_size(shape: tuple[int, ...]) -> None:
    clean = torch.rand(1, *shape, generator=generator())
    assert parse_noise("raw").draw(clean, generator()).shape == clean.shape


def test_raw_noise_is_of_8_bits_coarse_and_centred() -> None:
    clean = torch.full((80, 3, 64, 64), 0.5)
    residual = RawNoise().draw(clean, generator()) - clean
    assert is_of_8_bits(residual + clean).all()
    assert residual.mean().item() == pytest.approx(0, abs=0.01)
    assert correlation(residual, 1) > 0.3
    each = 255 * rms(residual)
    assert each.min() < 3
    assert 10 < each.max() < 90
    weak = 255 * rms(RawNoise(0.25).draw(clean, generator()) - clean)
    assert weak.mean() < 0.5 * each.mean()


def test_raw_noise_is_often_weak_where_the_picture_is_flat_and_in_chroma() -> None:
    clean = torch.full((200, 3, 64, 64), 0.5)
    texture = torch.randint(2, (200, 1, 64, 32), generator=generator())
    clean[..., 32:] += 0.1 * (2 * texture - 1)
    residual = RawNoise().draw(clean, generator()) - clean
    ratio = rms(residual[..., 4:28]) / rms(residual[..., 36:60])
    assert 0.2 < (ratio < 0.8).float().mean() < 0.5
    luma = residual.mean(1, keepdim=True)
    assert 0.1 < (rms(residual - luma) < 0.5 * rms(luma)).float().mean() < 0.5


def test_raw_noise_is_as_strong_in_coarse_octaves_as_in_fine_ones() -> None:
    """Of white noise, which no denoiser saw, a quarter is in the coarser of these octaves."""
    clean = torch.full((200, 3, 64, 64), 0.5)
    luma = (RawNoise().draw(clean, generator()) - clean).mean(1, keepdim=True)
    fine = luma - F.avg_pool2d(luma, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    means = F.avg_pool2d(luma, 4)
    coarse = means - F.avg_pool2d(means, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    ratio = (rms(coarse) / rms(fine)).median().item()
    assert 0.6 < ratio < 1.3


def test_raw_noise_of_gray_is_the_luma_of_colour() -> None:
    clean = torch.full((40, 1, 32, 32), 0.5)
    gray = 255 * rms(RawNoise().draw(clean, generator()) - clean).mean()
    colour = 255 * rms(RawNoise().draw(clean.expand(-1, 3, -1, -1), generator()) - clean).mean()
    assert 0.3 * colour < gray < colour


def test_jpeg_harms_more_at_lower_quality_and_begins_its_blocks_anywhere() -> None:
    rows = torch.arange(64).view(-1, 1) + torch.arange(64)
    clean = (0.5 + 0.3 * torch.sin(rows / 3)).expand(8, 3, 64, 64)
    poor, fine = (rms(parse_noise(f"jpeg:{q}").draw(clean, generator()) - clean) for q in (20, 95))
    assert (poor > fine).all()
    assert fine.max() < 3 / 255
    assert len({tile.sum().item() for tile in parse_noise("jpeg:20").draw(clean, generator())}) == 8


def test_a_mixture_leaves_what_its_parts_leave_over_clean() -> None:
    clean = torch.full((400, 1, 8, 8), 0.5)
    noise = MixedNoise(((0.5, GaussianNoise(20, 20)), (0.25, GaussianNoise(40, 40))))
    noisy, level = noise.draw_with_level(clean, generator())
    shares = [(level == sigma / 255).float().mean().item() for sigma in (0, 20, 40)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
    assert torch.equal(noisy[level == 0], clean[level == 0])


def test_real_noise_is_clean_now_and_then_and_mostly_of_8_bits() -> None:
    clean = torch.full((400, 3, 16, 16), 128 / 255)
    noisy, level = parse_noise("real").draw_with_level(clean, generator())
    assert (level == 0).float().mean().item() == pytest.approx(0.03, abs=0.025)
    assert 0.5 < is_of_8_bits(noisy).float().mean() < 0.75
    assert 255 * level.max() > 65


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("gaussian:25", GaussianNoise(25, 25)),
        ("gaussian:0-55", GaussianNoise(0, 55)),
        ("gaussian:2.5-7.5", GaussianNoise(2.5, 7.5)),
        ("subpixel:8", SubpixelNoise(8)),
        ("poisson:30", PoissonNoise(30, 30)),
        ("poisson:10-60", PoissonNoise(10, 60)),
        ("bernoulli:0.5", BernoulliNoise(0.5, 0.5)),
        ("white", GaussianNoise(0, 75, 1.3)),
        ("correlated:5-25", CorrelatedNoise(5, 25, 1.0)),
        ("raw:0.5", RawNoise(0.5)),
        ("jpeg:75", JpegNoise(75, 75)),
        ("camera", CameraNoise(1.0)),
        ("camera:0.5", CameraNoise(0.5)),
        ("poisson:30+gaussian:5", ChainedNoise((PoissonNoise(30, 30), GaussianNoise(5, 5)))),
    ],
)
def test_noise_is_spelled_as_documented(text: str, model: object) -> None:
    assert parse_noise(text) == model


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gaussian",
        "gaussian:",
        "gaussian:-5",
        "gaussian:50-10",
        "gaussian:256",
        "subpixel:1",
        "subpixel:8.5",
        "subpixel:65",
        "salt:3",
        "jpeg:0",
        "jpeg:60-101",
        "raw:1-2",
        "8bit:8",
        "real:2",
        "gaussian:25:3",
    ],
)
def test_any_other_spelling_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(OptionError, match=r"gaussian:25.*subpixel:8"):
        parse_noise(text)
