"""The README's picture: noisy, denoised and clean side by side.

usage: python scripts/data/before_after.py NOISY DENOISED CLEAN NAME[,NAME…] OUTPUT
"""

import sys
from pathlib import Path

from PIL import Image

CROP = (40, 20, 280, 200)
GAP = 6


def main(noisy: str, denoised: str, clean: str, names: str, output: str) -> None:
    """A row for each name, a column for each folder, at twice the size."""
    width, height = 2 * (CROP[2] - CROP[0]), 2 * (CROP[3] - CROP[1])
    rows = names.split(",")
    size = (3 * width + 2 * GAP, len(rows) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for row, name in enumerate(rows):
        for column, folder in enumerate((noisy, denoised, clean)):
            with Image.open(Path(folder) / name) as image:
                crop = image.convert("RGB").crop(CROP).resize((width, height), Image.NEAREST)
            sheet.paste(crop, (column * (width + GAP), row * (height + GAP)))
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
