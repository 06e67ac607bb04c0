"""Inline SVG charts of an HTML report: every image's value before and after, in order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 12, 24
MOST_ITEMS = 260  # that a chart of this width can tell apart


@dataclass(frozen=True)
class Change:
    """One image's value before and after.

    Attributes:
        name: shown when it is pointed at.
        before: of the input.
        after: of the output.
    """

    name: str
    before: float
    after: float


def dumbbells(changes: Sequence[Change], title: str, unit: str, digits: int) -> str:
    """An SVG with a stem from before to after for each image, ordered by the value after.

    More than `MOST_ITEMS` images are thinned out evenly; the first and last stay.

    Args:
        changes: what to show; infinite values are left out.
        title: for screen readers.
        unit: of the values.
        digits: behind the point.
    """
    known = [c for c in changes if math.isfinite(c.before) and math.isfinite(c.after)]
    known.sort(key=lambda change: change.after)
    if not known:
        return ""
    shown = known
    if len(known) > MOST_ITEMS:
        step = (len(known) - 1) / (MOST_ITEMS - 1)
        shown = [known[round(index * step)] for index in range(MOST_ITEMS)]
    values = [value for change in shown for value in (change.before, change.after)]
    ticks = nice_ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    pitch = (WIDTH - LEFT - RIGHT) / len(shown)
    radius = max(1.1, min(4.5, pitch * 0.32))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
    ]
    for tick in ticks:
        y = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for index, change in enumerate(shown):
        x = LEFT + (index + 0.5) * pitch
        before, after = y_of(change.before), y_of(change.after)
        label = f"{change.name}: {change.before:.{digits}f} → {change.after:.{digits}f} {unit}"
        parts.append(
            f'<g class="item"><title>{escape(label)}</title>'
            f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{before:.1f}" y2="{after:.1f}"'
            f' stroke-width="{max(0.8, radius * 0.6):.1f}"/>'
            f'<circle class="dot-before" cx="{x:.1f}" cy="{before:.1f}" r="{radius:.1f}"/>'
            f'<circle class="dot-after" cx="{x:.1f}" cy="{after:.1f}" r="{radius:.1f}"/></g>'
        )
    count = f"{len(known)} images" if len(known) > 1 else "1 image"
    if len(shown) < len(known):
        count = f"{len(shown)} of {count}"
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{count}, lowest to highest '
        "after denoising</text></svg>"
    )
    return "".join(parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that span [low, high], three to eight of them."""
    span = max(high - low, 1e-6 * max(abs(high), 1), 1e-9)
    raw = span / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return [round(index * step, 12) for index in range(first, last + 1)]
