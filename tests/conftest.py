"""What every test relies on: fixed seeds, reproducible examples, one thread, Ctrl-C's signal."""

import os
import signal
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch

# One thread: on a busy machine a second one waits in OpenMP barriers (25 small training steps took
# 8.8 s with two and 0.06 s with one, on 2 shared cores).
torch.set_num_threads(1)

# A shell that runs the tests in the background lets them ignore it, as do the commands then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _TorchRandom:
    """torch's global generator as hypothesis wants it: each example starts from the same seed."""

    seed: Callable[..., Any] = staticmethod(torch.manual_seed)
    getstate: Callable[..., Any] = staticmethod(torch.get_rng_state)
    setstate: Callable[..., Any] = staticmethod(torch.set_rng_state)


# hypothesis keeps only a weak reference.
_torch_random = _TorchRandom()
hypothesis.register_random(_torch_random)

hypothesis.settings.register_profile(
    "ci", max_examples=40, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile(
    "deep", max_examples=2000, derandomize=False, deadline=None, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same torch seed, whatever the order."""
    torch.manual_seed(0)
