"""The experiments in order of importance; each leaves its results in results/NAME.json."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from config import NAMES, PAPER_BATCH, PAPER_LR, REPAIRED, REPORT
from cost import measure_cost
from figures import draw_tiles, score_dataset
from parity import measure_parity
from reproduction import Reproduction
from training import NORM_STEPS

from denoise_batch.metrics import psnr

# A run that is continued for longer keeps the distance between its records.
RECORDS_PER_EPOCH = 4
LEARNING_RATES = (0.05, 0.5, 2.0)
NOISES = ("subpixel:8", "gaussian:25", "poisson:30", "bernoulli:0.5")


def report(reproduction: Reproduction) -> None:
    """Both architectures, trained as in the course paper."""
    for name, epochs in zip(NAMES, reproduction.scale.report_epochs, strict=True):
        steps = epochs * reproduction.scale.tiles // PAPER_BATCH
        reproduction.run("report", name, REPORT[name], steps, epochs * RECORDS_PER_EPOCH)


def repaired(reproduction: Reproduction) -> None:
    """Both with the remedies that the other experiments found."""
    epochs = reproduction.scale.repaired_epochs
    for name, recipe in REPAIRED.items():
        steps = epochs * reproduction.scale.tiles // recipe.batch_size
        reproduction.run("repaired", name, recipe, steps, epochs * RECORDS_PER_EPOCH)


def gradients(reproduction: Reproduction) -> None:
    """Gradients of each layer in the first steps, by initialisation and standardisation."""
    changes: dict[str, dict[str, Any]] = {
        "the report's": {},
        "standardised": {"is_standardised": True},
        "torch's initialisation": {"init": "torch"},
        "He's initialisation": {"init": "he"},
        "no Sigmoid": {"has_sigmoid": False},
    }
    for name in NAMES:
        for label, change in changes.items():
            recipe = replace(REPORT[name], **change)
            reproduction.run("gradients", f"{name}, {label}", recipe, NORM_STEPS, 1)


def ablation(reproduction: Reproduction) -> None:
    """The course paper's recipe with one change, and the repaired one with one remedy removed.

    Includes its two remedies (section V), learning rate and standardisation, alone and together.
    """
    for name in NAMES:
        base, mended = REPORT[name], REPAIRED[name]
        runs = {
            f"lr {lr:g}{', standardised' * is_standardised}": replace(
                base, lr=lr, is_standardised=is_standardised
            )
            for lr in LEARNING_RATES
            for is_standardised in (False, True)
        }
        runs |= {
            "torch's initialisation": replace(base, init="torch"),
            "He's initialisation": replace(base, init="he"),
            "momentum 0.9": replace(base, momentum=0.9),
            "no Sigmoid": replace(base, has_sigmoid=False),
            "shuffled": replace(base, is_shuffled=True),
            "repaired": mended,
            "repaired, not standardised": replace(mended, is_standardised=False),
            "repaired, constant rate": replace(mended, schedule="constant"),
            "repaired, no clipping": replace(mended, clip_norm=0.0),
            "repaired, no momentum": replace(mended, momentum=0.0),
            "Architecture 1's repair, no clipping": replace(
                REPAIRED["tconv"], architecture=name, clip_norm=0.0
            ),
        }
        for label, recipe in runs.items():
            reproduction.run(
                "ablation", f"{name}, {label}", recipe, reproduction.scale.short_steps, 2
            )


def slow(reproduction: Reproduction) -> None:
    """A tenth of the rate for ten times the steps."""
    recipe = replace(REPORT["upsample"], lr=PAPER_LR / 10)
    reproduction.run("slow", "upsample", recipe, 10 * reproduction.scale.short_steps, 2)


def noise2noise(reproduction: Reproduction) -> None:
    """Noisy against clean targets, with equal steps and draws, for several noise models."""
    for seed in range(reproduction.scale.seeds):
        for noise in NOISES:
            for targets in ("noisy", "clean"):
                recipe = replace(REPAIRED["tconv"], noise=noise, targets=targets, seed=seed)
                name = f"{noise} {targets} {seed}"
                reproduction.run("noise2noise", name, recipe, reproduction.scale.noise_steps, 1)


def parity(reproduction: Reproduction) -> None:
    """Our layers beside torch.nn, autograd and torch.optim."""
    measure_parity(reproduction, REPORT["tconv"])


def cost(reproduction: Reproduction) -> None:
    """PSNR and multiply-adds on the Kodak photographs."""
    measure_cost(reproduction, REPAIRED)


def pictures(reproduction: Reproduction) -> None:
    """Scores of the shipped and the authors' weights; Figures 2 and 3."""
    noisy = psnr(reproduction.dataset.validation_noisy, reproduction.dataset.validation_clean)
    reproduction.keep("protocol", {"noisy_psnr": noisy} | score_dataset(reproduction))
    draw_tiles(reproduction)


EXPERIMENTS: dict[str, Callable[[Reproduction], None]] = {
    "report": report,
    "repaired": repaired,
    "gradients": gradients,
    "ablation": ablation,
    "noise2noise": noise2noise,
    "parity": parity,
    "cost": cost,
    "pictures": pictures,
    "slow": slow,
}
