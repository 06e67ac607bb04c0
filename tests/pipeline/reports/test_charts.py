"""SVG charts: valid, thinned out, with round numbers on the axis."""

import math
from xml.etree import ElementTree

import pytest

from denoise_batch.reports.charts import MOST_ITEMS, Change, dumbbells, nice_ticks


def test_a_chart_is_valid_svg_with_one_item_an_image() -> None:
    changes = [Change(f"<&{n}>.png", 20 + n, 30 + n / 2) for n in range(5)]
    root = ElementTree.fromstring(dumbbells(changes, "PSNR", "dB", 2))
    items = root.findall("g")
    assert len(items) == 5
    assert items[0].findtext("title") == "<&0>.png: 20.00 → 30.00 dB"
    for circle in root.iter("circle"):
        assert 0 <= float(circle.get("cx", "nan")) <= 520
        assert 0 <= float(circle.get("cy", "nan")) <= 230


def test_thousands_of_images_are_thinned_out() -> None:
    changes = [Change("x", n, n + 1) for n in range(5000)]
    root = ElementTree.fromstring(dumbbells(changes, "", "", 1))
    assert len(root.findall("g")) == MOST_ITEMS
    assert "of 5000 images" in "".join(root.itertext())


def test_what_is_infinite_or_missing_is_left_out() -> None:
    assert dumbbells([Change("x", 20.0, math.inf)], "", "", 1) == ""
    assert dumbbells([], "", "", 1) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (18.3, 34.9), (5, 5), (0, 0), (-3, 1e6), (0.1, 0.11)]
)
def test_ticks_are_few_and_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
