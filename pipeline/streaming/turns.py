"""Who computes when, where the network and everyone else share the same cores (ADR 23)."""

import math
from collections.abc import Sequence

import torch

from .denoiser import Denoiser
from .in_flight import FileInFlight
from .memory import cores

_FILES, _PIXELS = 6, 1 << 24  # for each writer, or in all; seconds of the network


def takes_turns(denoiser: Denoiser) -> bool:
    """Whether the network computes on every core, so that writing has to wait for it."""
    return denoiser.device.type == "cpu" and torch.get_num_threads() >= cores()


def worker_threads(denoiser: Denoiser) -> int:
    """How many threads decode, and how many encode."""
    return min(16, cores()) if takes_turns(denoiser) else max(2, min(8, cores() // 2))


def fills_turn(files: Sequence[FileInFlight], threads: int) -> bool:
    """Whether these keep all writers busy until all end at about the same time.

    Several files a writer, or fewer large ones.

    Args:
        files: that the network is done with.
        threads: that write.
    """
    pixels = sum(math.prod(file.size) * len(file.pictures) for file in files)
    return len(files) >= (threads if pixels >= _PIXELS else threads * _FILES)


def compute_alone() -> None:
    """In a thread that measures what it reads or writes: without helpers.

    A team of OpenMP threads for each writer, beside the network's, makes more threads than cores;
    then libgomp lets all of them sleep between operations: half the network's speed.
    """
    torch.set_num_threads(1)
