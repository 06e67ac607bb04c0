"""What is run, in order of importance; every stage leaves results/STAGE.json."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cost import measure_cost
from lab import Lab
from parity import measure_parity
from recipes import REPORT_LR, Recipe
from sheets import draw_pictures, score_protocol
from training import NORM_STEPS

from denoise_batch.metrics import psnr

NAMES = {"tconv": "Architecture 1", "upsample": "Architecture 2"}
BATCH = 4
# Records of a whole run; a run that was trained for longer keeps the distance between them.
RECORDS_PER_EPOCH = 4

REPORT = {name: Recipe(name) for name in NAMES}
REPAIRED = {
    "tconv": Recipe(
        "tconv",
        lr=2.0,
        schedule="cosine",
        momentum=0.9,
        clip_norm=0.1,
        is_standardised=True,
        is_shuffled=True,
    ),
    "upsample": Recipe(
        "upsample",
        lr=1.5,
        schedule="cosine",
        momentum=0.9,
        clip_norm=0.1,
        is_standardised=True,
        is_shuffled=True,
        is_augmented=True,
        batch_size=8,
    ),
}
LEARNING_RATES = (0.05, 0.5, 2.0)
NOISES = ("subpixel:8", "gaussian:25", "poisson:30", "bernoulli:0.5")


def report(lab: Lab) -> None:
    """Both architectures as the report trained them."""
    for name, epochs in zip(NAMES, lab.scale.report_epochs, strict=True):
        steps = epochs * lab.scale.tiles // BATCH
        lab.run("report", name, REPORT[name], steps, epochs * RECORDS_PER_EPOCH)


def repaired(lab: Lab) -> None:
    """Both with the remedies that the diagnosis found."""
    epochs = lab.scale.repaired_epochs
    for name, recipe in REPAIRED.items():
        steps = epochs * lab.scale.tiles // recipe.batch_size
        lab.run("repaired", name, recipe, steps, epochs * RECORDS_PER_EPOCH)


def gradients(lab: Lab) -> None:
    """Every layer's gradient in the first steps, by initialisation and standardisation."""
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
            lab.run("gradients", f"{name}, {label}", recipe, NORM_STEPS, 1)


def ablation(lab: Lab) -> None:
    """The report's recipe with one thing changed, and the repaired one with one thing taken out.

    The learning rate and standardisation, the report's two remedies (section V), apart and both.
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
            lab.run("ablation", f"{name}, {label}", recipe, lab.scale.short_steps, 2)


def slow(lab: Lab) -> None:
    """A tenth of the rate for ten times the steps: is a low rate more than lost time?"""
    recipe = replace(REPORT["upsample"], lr=REPORT_LR / 10)
    lab.run("slow", "upsample", recipe, 10 * lab.scale.short_steps, 2)


def noise2noise(lab: Lab) -> None:
    """Noisy targets against clean ones, equal steps and equal draws, for several noises."""
    for seed in range(lab.scale.seeds):
        for noise in NOISES:
            for targets in ("noisy", "clean"):
                recipe = replace(REPAIRED["tconv"], noise=noise, targets=targets, seed=seed)
                name = f"{noise} {targets} {seed}"
                lab.run("noise2noise", name, recipe, lab.scale.noise_steps, 1)


def parity(lab: Lab) -> None:
    """Our blocks beside torch.nn, autograd and torch.optim, step for step."""
    measure_parity(lab, REPORT["tconv"])


def cost(lab: Lab) -> None:
    """PSNR against multiply-adds on the Kodak photographs."""
    measure_cost(lab, REPAIRED)


def pictures(lab: Lab) -> None:
    """The protocol's scores of everything trained, and the report's Figures 2 and 3."""
    noisy = psnr(lab.protocol.validation_noisy, lab.protocol.validation_clean)
    lab.keep("protocol", {"noisy_psnr": noisy} | score_protocol(lab))
    draw_pictures(lab)


STAGES: dict[str, Callable[[Lab], None]] = {
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
