"""A folder of images from file to file, as a user runs it."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import Section

from denoise_batch.files.pixels import to_pil

PROGRAM = [sys.executable, "-m", "denoise_batch"]


def folder_section(device: torch.device, *, is_quick: bool) -> Section:
    """PNGs of one size and JPEGs of many, by plain launches and by CUDA graphs."""
    count, side = (3, 48) if is_quick else (64, 1024)
    section = Section(
        f"Folders of {count} images, file to file",
        "Wall clock of the whole command, Python's start included.",
        ("images", "options", "seconds", "images/s", "MP/s"),
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sizes = {
            "one size, PNG": [(side, side)] * count,
            "many sizes, JPEG": [(side + 16 * (i % 5), side - 8 * (i % 3)) for i in range(count)],
        }
        if is_quick:
            del sizes["many sizes, JPEG"]
        for title, extents in sizes.items():
            folder = _images(root / title, extents, "png" if "PNG" in title else "jpg")
            megapixels = sum(width * height for width, height in extents) / 1e6
            for options in ((), ("--cuda-graphs",)):
                target = root / f"{title} {len(options)}"
                command = [*PROGRAM, str(folder), "-o", str(target), "--device", str(device)]
                started = time.perf_counter()
                result = subprocess.run([*command, *options], capture_output=True, text=True)
                seconds = time.perf_counter() - started
                written = sum(path.suffix in (".png", ".jpg") for path in target.rglob("*"))
                if result.returncode or written != count:
                    section.is_wrong = True
                    section.text += f" {title}: {result.stderr.strip()[-300:]}"
                section.rows.append(
                    (
                        title,
                        " ".join(options) or "default",
                        f"{seconds:.1f}",
                        f"{count / seconds:.1f}",
                        f"{megapixels / seconds:.1f}",
                    )
                )
    return section


def _images(folder: Path, extents: list[tuple[int, int]], suffix: str) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index, (width, height) in enumerate(extents):
        # Smooth with noise on it, so that files are as large as photographs'.
        ramp = torch.linspace(40, 200, width).expand(height, width)
        noise = torch.randn(height, width, 3, generator=generator) * 20
        pixels = (ramp[:, :, None] + noise).clamp(0, 255).to(torch.uint8)
        to_pil(pixels).save(folder / f"{index:03}.{suffix}")
    return folder
