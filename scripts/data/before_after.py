"""The README's picture: noisy, denoised and original side by side, labelled.

usage: python scripts/data/before_after.py NOISY DENOISED CLEAN NAME[,NAME…] OUTPUT
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CROP = (40, 20, 280, 200)
GAP = 6
LABELS = ("noisy", "denoised", "original")
LABEL_PX = 36


def main(noisy: str, denoised: str, clean: str, names: str, output: str) -> None:
    """Draw a row for each name and a column for each folder, at twice the size."""
    width, height = 2 * (CROP[2] - CROP[0]), 2 * (CROP[3] - CROP[1])
    rows = names.split(",")
    size = (3 * width + 2 * GAP, LABEL_PX + len(rows) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    for column, (label, folder) in enumerate(zip(LABELS, (noisy, denoised, clean), strict=True)):
        left = column * (width + GAP)
        draw.text((left + width / 2, LABEL_PX / 2), label, "black", font, anchor="mm")
        for row, name in enumerate(rows):
            with Image.open(Path(folder) / name) as image:
                crop = image.convert("RGB").crop(CROP).resize((width, height), Image.NEAREST)
            sheet.paste(crop, (left, LABEL_PX + row * (height + GAP)))
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
