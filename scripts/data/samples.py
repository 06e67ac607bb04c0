"""Create docs/samples: small clean photographs, and the same with Gaussian noise.

    python scripts/data/samples.py FOLDER_WITH_ORIGINALS docs/samples

The originals below are in skimage/data of the scikit-image wheel; docs/samples/README.md gives
their authors and licences. The same version of torch gives the same bytes.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

ORIGINALS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
)
LONG_SIDE_PX = 320
SIGMA_255 = 25.0


def shrunk(image: Image.Image) -> Image.Image:
    """Resize the image to LONG_SIDE_PX on its long side, with a Lanczos filter."""
    scale = LONG_SIDE_PX / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def noisy(image: Image.Image, seed: int) -> Image.Image:
    """Add white Gaussian noise; round and clip to 8 bits."""
    samples = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    levels = (samples + SIGMA_255 * noise).round().clamp(0, 255).to(torch.uint8)
    return Image.frombytes(image.mode, image.size, bytes(levels.tolist()))


def main(originals: Path, samples: Path) -> None:
    """Write clean/NAME.png and noisy/NAME.png for every original."""
    for folder in ("clean", "noisy"):
        (samples / folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(ORIGINALS):
        with Image.open(originals / name) as image:
            clean = shrunk(image)
        target = Path(name).with_suffix(".png").name
        clean.save(samples / "clean" / target, optimize=True)
        noisy(clean, seed).save(samples / "noisy" / target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: samples.py FOLDER_WITH_ORIGINALS docs/samples")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
