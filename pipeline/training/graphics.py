"""Drawn pictures to train and score on: text, line art, patterns, screens, charts, flat areas.

Photographs alone teach a network to take thin lines for noise. Every picture depends only on its
seed and on the fonts that it may use.
"""

import math
import random
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from ..files.pixels import from_pil, to_pil
from ..files.scratch import memory

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}
SYLLABLES = "ka-lo-mi-ren-sta-por-tu-vel-qui-dis-gra-fen-ox-hul-yb-jaz-wim-ion-est-Al-Mor-Qu-Xi-Be"


class Graphics:
    """Numbered pictures, each drawn when it is first used, and kept compressed.

    Args:
        seed: of the set.
        count: pictures in the set.
        size_px: side of a picture.
    """

    def __init__(self, seed: int, count: int = 6000, size_px: int = 256) -> None:
        self._seed = seed
        self._count = count
        self._drawn: dict[int, bytes] = {}
        self.size_px = size_px

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        """Return a picture, uint8 (3, size_px, size_px)."""
        if number not in self._drawn:
            kind = tuple(KINDS)[number % len(KINDS)]
            picture = draw_graphic(kind, f"{self._seed}:{number}", self.size_px, system_fonts())
            self._drawn[number] = zlib.compress(memory(picture), 1)
        samples = bytearray(zlib.decompress(self._drawn[number]))
        return torch.frombuffer(samples, dtype=torch.uint8).view(3, self.size_px, self.size_px)


def draw_graphic(kind: str, seed: str, size_px: int, fonts: Sequence[Path] = ()) -> Tensor:
    """Draw a picture, uint8 (3, size_px, size_px).

    Args:
        kind: a name in `KINDS`.
        seed: decides everything about the picture.
        size_px: side of the picture.
        fonts: font files to choose from; without any, Pillow's own font is used.
    """
    canvas = _Canvas(random.Random(f"{kind}:{seed}"), size_px, fonts)
    KINDS[kind](canvas)
    return from_pil(canvas.image).permute(2, 0, 1).contiguous()


@cache
def system_fonts() -> tuple[Path, ...]:
    """Return the font files of this machine, sorted; those that draw no Latin text are left out."""
    found: list[Path] = []
    for folder in FONT_FOLDERS.get(sys.platform, ()):
        for path in sorted(Path(folder).expanduser().rglob("*")):
            if path.suffix.lower() in (".ttf", ".otf", ".ttc") and _draws_text(path):
                found.append(path)
    return tuple(found)


def _draws_text(path: Path) -> bool:
    try:
        font = ImageFont.truetype(path, 16)
        masks = {bytes(font.getmask(letter)) for letter in "agx5"}
    except (OSError, ValueError):
        return False
    return len(masks) == 4


class _Canvas:
    """A picture in the making: its colours, its pen, its random choices."""

    def __init__(self, rng: random.Random, size_px: int, fonts: Sequence[Path]) -> None:
        self.rng = rng
        self.size_px = size_px
        self.fonts = fonts
        self.is_dark = rng.random() < 0.3
        paper = self._shade(self.is_dark) if rng.random() < 0.8 else self.colour()
        self.image = Image.new("RGB", (size_px, size_px), paper)
        self.paper = paper
        self.pen = ImageDraw.Draw(self.image)

    def colour(self) -> Colour:
        """Any colour: a gray, a corner of the cube, or anything between."""
        rng, share = self.rng, self.rng.random()
        if share < 0.25:
            gray = rng.choice((0, 128, 255, rng.randint(0, 255)))
            return (gray, gray, gray)
        if share < 0.5:
            return (rng.choice((0, 255)), rng.choice((0, 255)), rng.choice((0, 255)))
        return (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))

    def ink(self) -> Colour:
        """A colour to draw with: mostly one that stands out from the paper."""
        return self._shade(not self.is_dark) if self.rng.random() < 0.65 else self.colour()

    def _shade(self, is_dark: bool) -> Colour:
        low, high, plain = (0, 60, 0) if is_dark else (200, 255, 255)
        if self.rng.random() < 0.5:
            return (plain, plain, plain)
        return (
            self.rng.randint(low, high),
            self.rng.randint(low, high),
            self.rng.randint(low, high),
        )

    def font(self, low_px: float = 7, high_px: float = 30) -> tuple[Font, int]:
        """Return a font and its size; small sizes are as frequent as large ones."""
        size = round(low_px * (high_px / low_px) ** self.rng.random())
        if not self.fonts:
            return ImageFont.load_default(size), size
        return ImageFont.truetype(self.rng.choice(self.fonts), size), size

    def two_inks(self) -> tuple[Tensor, Tensor]:
        """Return the ink and the paper, (3, 1, 1) each; they differ."""
        ink, paper = self.ink(), self.paper
        if ink == paper:
            ink = (255 - ink[0], ink[1], 255 - ink[2])
        one, other = (torch.tensor(colour).view(3, 1, 1) for colour in (ink, paper))
        return one, other

    def words(self, count: int) -> str:
        """Return invented words and numbers."""
        rng, syllables = self.rng, SYLLABLES.split("-")

        def word() -> str:
            if rng.random() < 0.15:
                return str(rng.randint(0, 10 ** rng.randint(1, 6)))
            text = "".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))
            return text + (rng.choice(".,;:!?()/-=+*#@%&{}[]") if rng.random() < 0.2 else "")

        return " ".join(word() for _ in range(count))

    def place(self, beyond_px: int = 20) -> int:
        """Return a coordinate, which may lie beyond the picture."""
        return self.rng.randint(-beyond_px, self.size_px + beyond_px)

    def box(self, low_px: int, high_px: int) -> tuple[int, int, int, int]:
        """Return a box with sides between the two."""
        left, top = self.place(), self.place()
        width, height = (self.rng.randint(low_px, high_px) for _ in range(2))
        return left, top, left + width, top + height

    def write_lines(self, top: int, bottom: int) -> None:
        """Write text from one row to another, in one font or in many."""
        rng = self.rng
        font, size = self.font()
        is_mixed = rng.random() < 0.5
        self.pen.fontmode = "1" if rng.random() < 0.15 else "L"
        ink, y = self.ink(), top
        while y < bottom:
            if is_mixed:
                (font, size), ink = self.font(), self.ink()
            text = self.words(rng.randint(2, 3 + self.size_px // (2 * size)))
            self.pen.text((rng.randint(-8, 20), y), text, ink, font)
            y += int(size * rng.uniform(1.1, 1.6)) + 1

    def show(self, values: Tensor) -> None:
        """Replace the picture by (3, H, W) in [0, 255]."""
        levels = values.round().clamp(0, 255).to(torch.uint8)
        self.image = to_pil(levels.permute(1, 2, 0))
        self.pen = ImageDraw.Draw(self.image)


def _text(canvas: _Canvas) -> None:
    canvas.write_lines(0, canvas.size_px)


def _code(canvas: _Canvas) -> None:
    """Short, indented lines of coloured words, as in an editor or a terminal."""
    rng = canvas.rng
    font, size = canvas.font(8, 16)
    inks = [canvas.ink() for _ in range(4)]
    for y in range(2, canvas.size_px, round(size * 1.35)):
        x: float = 4 + 12 * rng.randint(0, 4)
        for word in canvas.words(rng.randint(0, 6)).split():
            canvas.pen.text((x, y), word, rng.choice(inks), font)
            x += canvas.pen.textlength(word + " ", font)


def _lines(canvas: _Canvas) -> None:
    """Line art: loose strokes, a hatching or circles in circles; most strokes are 1 px wide."""
    rng, pen, size = canvas.rng, canvas.pen, canvas.size_px
    style = rng.random()
    if style < 0.4:
        _strokes(canvas, rng.randint(10, 120))
        return
    ink, width, step = canvas.ink(), rng.choice((1, 1, 2)), rng.uniform(2, 14)
    if style < 0.7:
        slope = rng.uniform(-2, 2)
        for number in range(int(5 * size / step)):
            y = -2 * size + number * step
            pen.line((0, y, size, y + slope * size), ink, width)
    else:
        x, y = canvas.place(0), canvas.place(0)
        for number in range(1, int(1.5 * size / step)):
            radius = number * step
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), None, ink, width)
        if rng.random() < 0.4:
            for degrees in range(0, 360, rng.choice((3, 5, 10, 15))):
                angle = math.radians(degrees)
                end = (x + 2 * size * math.cos(angle), y + 2 * size * math.sin(angle))
                pen.line((x, y, *end), ink)
    if rng.random() < 0.4:
        _strokes(canvas, 20)


def _strokes(canvas: _Canvas, count: int) -> None:
    rng, pen, size = canvas.rng, canvas.pen, canvas.size_px
    for _ in range(count):
        ink, width, style = (
            canvas.ink(),
            rng.choice((1, 1, 1, 2, 3, rng.randint(1, 8))),
            rng.random(),
        )
        if style < 0.5:
            pen.line([canvas.place() for _ in range(4)], ink, width)
        elif style < 0.65:
            pen.line((0, y := canvas.place(0), size, y), ink, width)
        elif style < 0.75:
            pen.line((x := canvas.place(0), 0, x, size), ink, width)
        elif style < 0.9:
            draw = pen.ellipse if rng.random() < 0.6 else pen.rectangle
            draw(canvas.box(4, 120), canvas.colour() if rng.random() < 0.15 else None, ink, width)
        else:
            pen.arc(canvas.box(5, 150), rng.randint(0, 180), rng.randint(180, 360), ink, width)


def _pattern(canvas: _Canvas) -> None:
    """Checks, stripes and grids, mostly of 1 px, with plain boxes or text on them."""
    rng, size = canvas.rng, canvas.size_px
    rows, columns = torch.arange(size).view(-1, 1), torch.arange(size)
    tall, wide = rng.choice((1, 1, 2, 3, 4, 8)), rng.choice((1, 1, 2, 3, 4, 8))
    style = rng.random()
    if style < 0.35:
        is_ink = (columns // wide + rows // tall) % 2 == 1
    elif style < 0.5:
        is_ink = ((columns // wide) % 2 == 1).expand(size, -1)
    elif style < 0.65:
        is_ink = ((rows // tall) % 2 == 1).expand(-1, size)
    elif style < 0.85:
        is_ink = columns % (wide + rng.randint(1, 6)) == 0
        is_ink = is_ink | (rows % (tall + rng.randint(1, 6)) == 0)
    else:
        is_ink = (columns + rows) // wide % (tall + 1) == 0
    ink, paper = canvas.two_inks()
    canvas.show(torch.where(is_ink, ink, paper).float())
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 5)):
            canvas.pen.rectangle(canvas.box(20, 150), canvas.colour())
    if rng.random() < 0.3:
        canvas.write_lines(0, size // 3)


def _chart(canvas: _Canvas) -> None:
    """Axes with labels, grid lines, curves and bars."""
    rng, pen, size = canvas.rng, canvas.pen, canvas.size_px
    floor = size - 20
    if rng.random() < 0.6:
        grid = (60, 60, 60) if canvas.is_dark else (210, 210, 210)
        for y in range(10, floor, rng.randint(12, 40)):
            pen.line((20, y, size, y), grid)
    if rng.random() < 0.5:
        x, width = 24, rng.randint(3, 20)
        while x < size - 10:
            top = floor - rng.randint(5, max(6, size - 60))
            pen.rectangle((x, min(top, floor), x + width, floor), canvas.colour())
            x += width + rng.randint(1, 10)
    for _ in range(rng.randint(1, 5)):
        height, points = rng.uniform(30, size - 40), []
        for x in range(20, size, rng.randint(2, 12)):
            height = min(size - 22.0, max(5.0, height + rng.gauss(0, 8)))
            points.append((x, height))
        pen.line(points, canvas.colour(), rng.choice((1, 1, 2, 3)))
    ink, (font, _) = canvas.ink(), canvas.font(7, 12)
    pen.line((20, 10, 20, floor, size - 10, floor), ink)
    for x in range(20, size, 40):
        pen.text((x, floor + 3), str(rng.randint(0, 999)), ink, font)
        pen.text((1, x - 10), str(rng.randint(0, 99)), ink, font)


def _screen(canvas: _Canvas) -> None:
    """Windows, buttons and labels one over another."""
    rng = canvas.rng
    for _ in range(rng.randint(3, 12)):
        box = canvas.box(12, 200)
        fill = canvas.colour() if rng.random() < 0.7 else None
        outline = canvas.ink() if rng.random() < 0.6 else None
        radius = min(rng.choice((0, 0, 3, 6)), (box[3] - box[1]) // 2, (box[2] - box[0]) // 2)
        canvas.pen.rounded_rectangle(box, radius, fill, outline)
        if rng.random() < 0.8:
            font, size = canvas.font(8, 18)
            text = canvas.words(3)[: 2 * (box[2] - box[0]) // size]
            canvas.pen.text((box[0] + 4, box[1] + 3), text, canvas.ink(), font)
    if rng.random() < 0.4:
        _strokes(canvas, 15)


def _flat(canvas: _Canvas) -> None:
    """One colour to the corners, or few areas of plain colours."""
    rng, pen, size = canvas.rng, canvas.pen, canvas.size_px
    if rng.random() < 0.5:
        return
    pen.rectangle((canvas.place(0), 0, size, size), canvas.colour())
    pen.polygon([canvas.place() for _ in range(8)], canvas.colour())
    for _ in range(rng.randint(0, 12)):
        outline = canvas.ink() if rng.random() < 0.5 else None
        pen.ellipse(canvas.box(4, 100), canvas.colour(), outline)


def _gradient(canvas: _Canvas) -> None:
    """A linear or radial gradient, with or without dithering."""
    rng, size = canvas.rng, canvas.size_px
    first, second, third = (torch.tensor(canvas.colour()).view(3, 1, 1) for _ in range(3))
    down, across = (torch.linspace(0, 1, size) for _ in range(2))
    if rng.random() < 0.3:
        x, y = rng.random(), rng.random()
        share = ((down.view(-1, 1) - y).square() + (across - x).square()).sqrt().clamp(0, 1)
        values = first + (second - first) * share
    else:
        values = first + (second - first) * down.view(-1, 1) * rng.random()
        values = values + (third - first) * across * rng.random()
    if rng.random() < 0.5:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        values = values + torch.rand(values.shape, generator=generator) - 0.5
    canvas.show(values)
    if rng.random() < 0.4:
        _strokes(canvas, 6)


def _halftone(canvas: _Canvas) -> None:
    """A smooth picture printed in dots, or dithered by Bayer's matrix."""
    rng, size = canvas.rng, canvas.size_px
    rows, columns = torch.arange(size).view(-1, 1), torch.arange(size)
    waves = (2 * math.pi / size * rng.uniform(0.3, 3) for _ in range(2))
    down, across = (torch.sin(wave * at) for wave, at in zip(waves, (rows, columns), strict=True))
    tone = 0.5 + 0.5 * down * across
    if rng.random() < 0.5:
        angle, step = rng.uniform(0, math.pi / 2), 2 * math.pi / rng.uniform(3, 9)
        u = rows * math.sin(angle) + columns * math.cos(angle)
        v = rows * math.cos(angle) - columns * math.sin(angle)
        threshold = 0.5 + 0.25 * (torch.cos(step * u) + torch.cos(step * v))
    else:
        bayer = torch.tensor([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
        threshold = (bayer[rows % 4, columns % 4] + 0.5) / 16
    ink, paper = canvas.two_inks()
    canvas.show(torch.where(tone > threshold, ink, paper).float())


def _hatching(canvas: _Canvas) -> None:
    """Dense lines, as of an engraving: of up to three directions, straight or bent, thin to fat."""
    rng, size = canvas.rng, canvas.size_px
    rows, columns = torch.arange(size).view(-1, 1), torch.arange(size)
    wave = rng.uniform(0.5, 3) * 2 * math.pi / size
    tone = 0.5 + 0.5 * torch.sin(wave * rows + rng.uniform(0, 6)) * torch.cos(wave * columns)
    inked = torch.zeros(size, size)
    for _ in range(rng.choice((1, 1, 2, 3))):
        angle, step = rng.uniform(0, math.pi), 1.6 * 5 ** rng.random()
        bend, length = rng.choice((0, rng.uniform(0, 12))), rng.uniform(20, 120)
        along = rows * math.cos(angle) - columns * math.sin(angle)
        across = rows * math.sin(angle) + columns * math.cos(angle)
        across = across + bend * torch.sin(2 * math.pi * along / length)
        distance = step * (across / step - (across / step).round()).abs()
        width = step * rng.uniform(0.2, 0.6) * ((0.4 + tone) if rng.random() < 0.5 else 1)
        inked = inked.maximum((width / 2 - distance + 0.5).clamp(0, 1))
    inked = inked.round() if rng.random() < 0.4 else inked
    ink, paper = canvas.two_inks()
    canvas.show(paper + (ink - paper) * inked)
    if rng.random() < 0.4:
        canvas.pen.rectangle(canvas.box(20, 150), canvas.colour())
    if rng.random() < 0.3:
        _strokes(canvas, 10)


def _print(canvas: _Canvas) -> None:
    """Coloured pictures in print: four screens of dots, as sharp as a file or as soft as a scan."""
    rng, size = canvas.rng, canvas.size_px
    rows, columns = torch.arange(size).view(-1, 1), torch.arange(size)
    step, softness = 2 * math.pi / rng.uniform(2.5, 9), rng.choice((0.01, 0.1, 0.4, 1))
    values = torch.full((3, size, size), 255.0)
    inks = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))  # each takes this of the paper's light
    for ink, degrees in zip(inks, (15, 75, 0, 45), strict=True):
        angle, phase = math.radians(degrees + rng.uniform(-5, 5)), rng.uniform(0, 6)
        u = rows * math.sin(angle) + columns * math.cos(angle)
        v = rows * math.cos(angle) - columns * math.sin(angle)
        screen = 0.5 + 0.25 * (torch.cos(step * u + phase) + torch.cos(step * v))
        covered = ((_tone(canvas) - screen) / softness + 0.5).clamp(0, 1)
        values = values * (1 - covered * rng.uniform(0.6, 1) * torch.tensor(ink).view(3, 1, 1))
    canvas.show(values)
    if rng.random() < 0.5:
        canvas.image = canvas.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1)))


def _dither(canvas: _Canvas) -> None:
    """A smooth picture in few colours, its error diffused (Floyd and Steinberg), as in a GIF."""
    rng = canvas.rng
    canvas.show(torch.stack([255 * _tone(canvas) for _ in range(3)]))
    if rng.random() < 0.4:
        canvas.write_lines(0, canvas.size_px // 2)
    few = canvas.image.convert("1") if rng.random() < 0.4 else _few_colours(canvas)
    canvas.image = few.convert("RGB")


def _few_colours(canvas: _Canvas) -> Image.Image:
    count = canvas.rng.choice((2, 4, 8, 16, 64, 256))
    palette = canvas.image.quantize(count)
    return canvas.image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _tone(canvas: _Canvas) -> Tensor:
    """A smooth picture of waves, (size_px, size_px) in [0, 1]."""
    rng, size = canvas.rng, canvas.size_px
    down, across = (
        torch.sin(2 * math.pi / size * rng.uniform(0.2, 3) * torch.arange(size) + rng.uniform(0, 6))
        for _ in range(2)
    )
    return 0.5 + 0.5 * down.view(-1, 1) * across


def _cells(canvas: _Canvas) -> None:
    """Cells of a heat map or mosaic, or many dots, as of a scatter plot or stippling."""
    rng, size = canvas.rng, canvas.size_px
    if rng.random() < 0.5:
        side, chance = rng.randint(1, 12), torch.Generator().manual_seed(rng.getrandbits(62))
        count = -(-size // side)
        tone = torch.rand(1, count, count, generator=chance)
        first, second, third = (torch.tensor(canvas.colour()).view(3, 1, 1) for _ in range(3))
        low, high = (2 * tone).clamp_max(1), (2 * tone - 1).clamp_min(0)
        values = first + (second - first) * low + (third - second) * high
        values = values.repeat_interleave(side, 1).repeat_interleave(side, 2)
        canvas.show(values[:, :size, :size])
        if side > 4 and rng.random() < 0.3:
            for at in range(0, size, side):
                canvas.pen.line((at, 0, at, size), canvas.paper)
                canvas.pen.line((0, at, size, at), canvas.paper)
        return
    radius, inks = rng.uniform(0.5, 4), [canvas.ink() for _ in range(rng.randint(1, 5))]
    outline = canvas.ink() if rng.random() < 0.3 else None
    x, y, spread = canvas.place(0), canvas.place(0), rng.uniform(0.1, 1) * size
    for _ in range(round(size * size * rng.uniform(0.02, 0.4) / (math.pi * radius * radius))):
        across, down = rng.gauss(x, spread), rng.gauss(y, spread)
        box = (across - radius, down - radius, across + radius, down + radius)
        canvas.pen.ellipse(box, rng.choice(inks), outline)


KINDS: dict[str, Callable[[_Canvas], None]] = {
    "text": _text,
    "lines": _lines,
    "code": _code,
    "pattern": _pattern,
    "chart": _chart,
    "screen": _screen,
    "flat": _flat,
    "gradient": _gradient,
    "halftone": _halftone,
    "hatching": _hatching,
    "print": _print,
    "dither": _dither,
    "cells": _cells,
}
