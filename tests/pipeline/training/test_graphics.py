"""Drawn pictures: every kind, the same for the same seed, with and without fonts."""

import pytest
import torch

from denoise_batch.training.graphics import KINDS, Graphics, draw_graphic, system_fonts


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_drawn_alike_for_one_seed_and_differently_for_another(kind: str) -> None:
    pictures = [draw_graphic(kind, str(seed), 64) for seed in range(8)]
    assert all(picture.shape == (3, 64, 64) for picture in pictures)
    assert all(picture.dtype == torch.uint8 for picture in pictures)
    assert torch.equal(pictures[3], draw_graphic(kind, "3", 64))
    assert len({bytes(picture.flatten().tolist()) for picture in pictures}) > 5


@pytest.mark.parametrize("kind", ["text", "code", "chart", "screen"])
def test_the_system_s_fonts_are_used_where_there_are_any(kind: str) -> None:
    fonts = system_fonts()
    picture = draw_graphic(kind, "0", 128, fonts)
    assert torch.equal(picture, draw_graphic(kind, "0", 128, fonts))
    assert torch.equal(picture, draw_graphic(kind, "0", 128)) == (not fonts)


def test_a_set_is_drawn_when_it_is_used_whatever_came_before() -> None:
    one, other = Graphics(3, 40, 48), Graphics(3, 40, 48)
    assert len(one) == 40
    last = one[39]
    assert torch.equal(last, [other[number] for number in range(40)][39])
    assert torch.equal(one[39], last)  # drawn once, kept compressed
    assert not torch.equal(last, Graphics(4, 40, 48)[39])


def test_some_pictures_are_flat_to_their_corners() -> None:
    pictures = [draw_graphic("flat", str(seed), 32) for seed in range(20)]
    flat = [p for p in pictures if (p == p[:, :1, :1]).all()]
    assert 3 < len(flat) < 20
