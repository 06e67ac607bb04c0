"""Microscope-like stacks whose truth is known: drawn scenes, blurred by a lens, seen by a camera.

A scene (cells, filaments, blobs, light from out of focus) has values in [0, 1], 1 at its brightest
place. A stack is 16-bit shots of one scene.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BLACK, WHITE = 1100.0, 3980.0  # counts without light and at a scene's brightest place
FINE = 2  # a scene is drawn at so many times its size
LENS_PX, HAZE_PX = 1.0, 12.0  # σ of the blur of what is in focus, and of what is not


@dataclass(frozen=True)
class Camera:
    """How light becomes counts.

    Attributes:
        photons: mean number at white; None: light without noise.
        sigma: of the noise that is added everywhere, in counts.
    """

    photons: float | None
    sigma: float

    @property
    def gain(self) -> float | None:
        """Counts per photon."""
        return None if self.photons is None else (WHITE - BLACK) / self.photons

    def shoot(self, scene: NDArray[Any], shots: int, chance: np.random.Generator) -> NDArray[Any]:
        """Return shots of a scene (H, W), uint16 (shots, H, W)."""
        light = np.broadcast_to(scene, (shots, *scene.shape))
        if self.photons is not None:
            light = chance.poisson(light * self.photons) / self.photons
        counts = to_counts(light) + chance.normal(0, self.sigma, light.shape)
        return counts.round().clip(0, 65535).astype(np.uint16)


CAMERAS = {"photons": Camera(40, 24), "white": Camera(None, 200)}


def to_counts(scene: NDArray[Any]) -> NDArray[Any]:
    """Return the counts of values in [0, 1] without noise."""
    return BLACK + (WHITE - BLACK) * scene


def draw_scene(seed: str, px: int) -> NDArray[Any]:
    """Draw a scene, float64 (px, px) in [0, 1]; the seed decides everything about it."""
    chance, side = random.Random(seed), px * FINE
    canvas = Image.new("F", (side, side))
    draw = ImageDraw.Draw(canvas)

    def many(of_256_px: int) -> range:
        return range(math.ceil(of_256_px * (px / 256) ** 2))

    def place() -> tuple[float, float]:
        return chance.uniform(0, side), chance.uniform(0, side)

    def ellipse(x: float, y: float, rx: float, ry: float, brightness: float) -> None:
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=brightness)

    for _ in many(6):  # cells with nuclei
        (x, y), rx, ry = place(), chance.uniform(20, 48) * FINE, chance.uniform(20, 48) * FINE
        ellipse(x, y, rx, ry, chance.uniform(0.08, 0.3))
        ellipse(x, y, rx / 3, ry / 3, chance.uniform(0.2, 0.5))
    for _ in many(24):  # filaments
        points, angle = [place()], chance.uniform(0, math.tau)
        for _ in range(chance.randint(10, 40)):
            angle += chance.gauss(0, 0.2)
            x, y = points[-1]
            points.append((x + 4 * FINE * math.cos(angle), y + 4 * FINE * math.sin(angle)))
        draw.line(points, fill=chance.uniform(0.3, 1), width=chance.randint(2, 5), joint="curve")
    for _ in many(40):  # blobs
        radius = chance.uniform(0.7, 3) * FINE
        ellipse(*place(), radius, radius, chance.uniform(0.4, 1))
    drawn = np.asarray(canvas, np.float64).reshape(px, FINE, px, FINE).mean((1, 3))
    seen = 0.03 + _blur(drawn, LENS_PX) + 0.5 * _blur(drawn, HAZE_PX)
    scene: NDArray[Any] = seen / seen.max()
    return scene


def make_stacks(
    folder: Path, camera: Camera, *, stacks: int, shots: int, px: int, seed: int
) -> NDArray[Any]:
    """Fill a new folder with TIFF stacks, and folder.npy with them, uint16 (stacks, shots, px, px).

    The scenes depend on the seed and the folder's name alone. Returns what the stacks show: float64
    counts (stacks, 1, px, px).
    """
    folder.mkdir(parents=True)
    scenes = [draw_scene(f"{seed}:{folder.name}:{number}", px) for number in range(stacks)]
    chance = np.random.default_rng([seed, *folder.name.encode()])
    noisy = np.stack([camera.shoot(scene, shots, chance) for scene in scenes])
    np.save(folder.with_suffix(".npy"), noisy)
    for number, stack in enumerate(noisy):
        first, *rest = (Image.fromarray(shot) for shot in stack)
        first.save(folder / f"{number:03}.tif", save_all=True, append_images=rest)
    return to_counts(np.stack(scenes)[:, None])


def _blur(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Blur with a Gaussian, periodically."""
    rows, columns = np.fft.fftfreq(image.shape[0]), np.fft.rfftfreq(image.shape[1])
    transfer = np.exp(-2 * (math.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns**2))
    return np.fft.irfft2(np.fft.rfft2(image) * transfer, image.shape)
