"""The peers of `scripts/bench training-peers`, for a Python that need not have denoise-batch.

    python denoising_peers.py METHOD FOLDER SECONDS

Reads training.npy and unseen.npy in FOLDER, uint16 (stacks, shots, H, W), and told.json: gain,
offset and sigma of the camera in counts, and rms, that of the noise. Writes denoised.npy, float32
(candidates, *unseen), and denoised.json: names of the candidates, package, version.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Told = Mapping[str, float]
BLURS_PX = (0.7, 1.0, 1.4, 2.0)
NLM_STRENGTHS = (0.7, 1.0, 1.4, 2.0)  # times σ
# CAREamics has no defaults for these; they are ours for a U-Net.
PATCH_PX, BATCH_SIZE = 64, 8
PACKAGES = {
    "gaussian": "scikit-image", "nlm": "scikit-image", "bm3d": "bm3d", "anscombe-bm3d": "bm3d",
    "n2v": "careamics", "n2n": "careamics",
}  # fmt: skip


def main() -> None:
    """Denoise the unseen shots by the method named on the command line."""
    method, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    unseen = np.load(folder / "unseen.npy").astype(np.float32)
    if PACKAGES[method] == "careamics":
        training = np.load(folder / "training.npy").astype(np.float32)
        found = {"": careamics(method, training, unseen, folder / f"{method}-{seconds}", seconds)}
    else:
        found = filtered(method, unseen, json.loads((folder / "told.json").read_text()))
    np.save(folder / "denoised.npy", np.stack(list(found.values())).astype(np.float32))
    package = PACKAGES[method]
    about = {"candidates": [*found], "package": package}
    about["version"] = importlib.metadata.version(package)
    (folder / "denoised.json").write_text(json.dumps(about))


def filtered(method: str, noisy: Array, told: Told) -> dict[str, Array]:
    """Return candidates by name: filters of several strengths, or one that knows its strength."""
    sigma = told["rms"]
    if method == "gaussian":
        from skimage.filters import gaussian

        return {f"σ {px} px": _pages(noisy, partial(gaussian, sigma=px)) for px in BLURS_PX}
    if method == "nlm":
        from skimage.restoration import denoise_nl_means

        denoise = partial(denoise_nl_means, patch_size=5, patch_distance=6, sigma=sigma)
        return {
            f"{strength} σ": _pages(noisy, partial(denoise, h=strength * sigma))
            for strength in NLM_STRENGTHS
        }
    if method == "bm3d":
        return {"": _bm3d(noisy, sigma)}
    camera = (told["gain"], told["offset"], told["sigma"])
    return {"": from_stable(_bm3d(to_stable(noisy, *camera), 1.0), *camera)}


def to_stable(counts: Array, gain: float, offset: float, sigma: float) -> Array:
    """Return values whose noise has σ 1: the generalised Anscombe transform.

    Starck, Murtagh and Bijaoui, "Image Processing and Data Analysis" (1998).

    Args:
        counts: photons that arrive by chance, times `gain`, plus `offset` and read noise.
        gain: counts per photon.
        offset: counts without light.
        sigma: of the read noise, in counts.
    """
    photons, read = (counts.astype(np.float64) - offset) / gain, sigma / gain
    stable: Array = 2 * np.sqrt(np.maximum(photons + 3 / 8 + read**2, 0))
    return stable


def from_stable(stable: Array, gain: float, offset: float, sigma: float) -> Array:
    """Return the mean counts whose transformed mean is `stable`: the exact unbiased inverse.

    Its closed form: Mäkitalo and Foi, "Optimal inversion of the generalized Anscombe transformation
    for Poisson-Gaussian noise" (2013).
    """
    read, root = sigma / gain, np.sqrt(3 / 2)
    d = np.maximum(stable, 2 * np.sqrt(3 / 8 + read**2))  # what no light becomes
    photons = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8 - read**2
    counts: Array = np.maximum(photons, 0) * gain + offset
    return counts


def careamics(method: str, training: Array, unseen: Array, folder: Path, seconds: float) -> Array:
    """Train CAREamics' Noise2Void or Noise2Noise for so many seconds; denoise."""
    from careamics import CAREamist
    from careamics.config import create_advanced_n2n_config, create_advanced_n2v_config

    create = create_advanced_n2v_config if method == "n2v" else create_advanced_n2n_config
    config = create(
        experiment_name=method, data_type="array", axes="SYX", patch_size=(PATCH_PX, PATCH_PX),
        batch_size=BATCH_SIZE, num_epochs=-1, trainer_params={"max_time": {"seconds": seconds}},
        seed=1,
    )  # fmt: skip
    careamist = CAREamist(config, work_dir=folder, enable_progress_bar=False)
    shots = {"train_data": _one_axis(training)}
    if method == "n2n":  # the next shot is the target
        shots["train_data_target"] = _one_axis(np.roll(training, -1, 1))
    careamist.train(**shots)
    careamist.trainer.save_checkpoint(folder / "end.ckpt")
    found, _ = careamist.predict(
        _one_axis(unseen), batch_size=1, num_workers=0, checkpoint=folder / "end.ckpt"
    )
    return np.stack(found).reshape(unseen.shape)


def _bm3d(noisy: Array, sigma: float) -> Array:
    from bm3d import bm3d

    low, width = noisy.min(), noisy.max() - noisy.min()  # it expects about [0, 1]
    denoise = partial(bm3d, sigma_psd=sigma / width)
    found: Array = _pages((noisy - low) / width, denoise) * width + low
    return found


def _pages(noisy: Array, denoise: Callable[[Array], Array]) -> Array:
    return np.stack([denoise(page) for page in _one_axis(noisy)]).reshape(noisy.shape)


def _one_axis(stacks: Array) -> Array:
    """(stacks, shots, H, W) → (stacks · shots, H, W)."""
    return stacks.reshape(-1, *stacks.shape[2:])


if __name__ == "__main__":
    main()
